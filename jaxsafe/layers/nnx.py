"""flax.nnx's normalisation and attention layers, with stable statistics.

Each is a subclass that keeps flax's constructor, call, parameters and Variables, so a
checkpoint of flax's layer loads; only the arithmetic differs (`layers._normalize`,
`layers._attention`). `use_fast_variance` is accepted and has no effect.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes
from jax import lax

from jaxsafe.layers import _attention, _normalize

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "LayerNorm",
    "MultiHeadAttention",
    "RMSNorm",
    "dot_product_attention",
]


class LayerNorm(nnx.LayerNorm):
    """`flax.nnx.LayerNorm` for any mean and any magnitude.

    Value: as flax's; a constant row gives the bias, and so does a fully masked one.
    Gradient: that of the value, finite for a constant row.
    NaN in: NaN for the row; never from where `mask` is False (a masked NaN or Inf
      gives the bias, other masked entries are normalised as flax does).
    Error: float32 1e-6 of a standard deviation for |mean| / std up to 1e6.

    Args:
      *args: as `flax.nnx.LayerNorm`.
      **kwargs: as `flax.nnx.LayerNorm`; `use_fast_variance` has no effect.

    Examples:
      >>> from flax import nnx
      >>> from jaxsafe.layers import nnx as safe
      >>> safe.LayerNorm(4, rngs=nnx.Rngs(0))(jnp.asarray([1e4, 10001, 10002, 10003]))
      Array([-1.3416404 , -0.44721344,  0.44721344,  1.3416404 ], dtype=float32)
    """

    def __call__(self, x: Any, *, mask: Any = None) -> jax.Array:
        """Normalise `x`; `mask` True = counts for the statistics."""
        return _layer(self, x, self.reduction_axes, self.feature_axes, mask)


class RMSNorm(nnx.RMSNorm):
    """`flax.nnx.RMSNorm` for any magnitude.

    Value: as flax's; a row of zeros gives 0, and so does a fully masked one.
    Gradient: that of the value.
    NaN in: NaN for the row; never from where `mask` is False.
    Error: float32 4 ulp.

    Args:
      *args: as `flax.nnx.RMSNorm`.
      **kwargs: as `flax.nnx.RMSNorm`; `use_fast_variance` has no effect.

    Examples:
      >>> from flax import nnx
      >>> from jaxsafe.layers import nnx as safe
      >>> safe.RMSNorm(2, rngs=nnx.Rngs(0))(jnp.asarray([1e25, -1e25]))
      Array([ 1., -1.], dtype=float32)
    """

    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """Normalise `x`; `mask` True = counts for the statistics."""
        axes, features = self.reduction_axes, self.feature_axes
        return _layer(self, x, axes, features, mask, centre=False)


class GroupNorm(nnx.GroupNorm):
    """`flax.nnx.GroupNorm` for any mean and any magnitude.

    Value, Gradient, NaN in, Error: as `LayerNorm`, for each group.

    Args:
      *args: as `flax.nnx.GroupNorm`.
      **kwargs: as `flax.nnx.GroupNorm`; `use_fast_variance` has no effect.

    Examples:
      >>> from flax import nnx
      >>> from jaxsafe.layers import nnx as safe
      >>> layer = safe.GroupNorm(4, num_groups=2, rngs=nnx.Rngs(0))
      >>> layer(jnp.asarray([[1e4, 10064, 1e25, -1e25]]))
      Array([[-1.,  1.,  1., -1.]], dtype=float32)
    """

    def __call__(self, x: Any, *, mask: Any = None) -> jax.Array:
        """Normalise `x`; `mask` True = counts for the statistics."""
        x, scale, bias = self.promote_dtype(
            (x, _value(self.scale), _value(self.bias)), dtype=self.dtype
        )
        standard = _normalize.standardize_groups(
            _normalize.to_compute("nnx.GroupNorm", x, self.dtype),
            self.num_groups,
            self.reduction_axes,
            eps=self.epsilon,
            where=mask,
            axis_name=self.axis_name,
            groups=self.axis_index_groups,
        )
        return _affine(self, x, standard, scale, bias, -1)


class BatchNorm(nnx.BatchNorm):
    """`flax.nnx.BatchNorm` for any mean and any magnitude.

    Value: as flax's; a constant feature gives the bias. The running variance stays
      finite for finite inputs; a feature that is masked everywhere keeps its running
      statistics.
    Gradient: that of the value, finite for a constant feature.
    NaN in: NaN for the feature and its running statistics, which a guard rolls back;
      never from where `mask` is False.
    Error: float32 1e-6 of a standard deviation for |mean| / std up to 1e6.

    Args:
      *args: as `flax.nnx.BatchNorm`.
      **kwargs: as `flax.nnx.BatchNorm`; `use_fast_variance` has no effect. With
        `axis_name`, devices count by their unmasked entries.

    Examples:
      >>> from flax import nnx
      >>> from jaxsafe.layers import nnx as safe
      >>> safe.BatchNorm(1, rngs=nnx.Rngs(0))(jnp.asarray([[1e4], [1e4 + 1]]))
      Array([[-1.],
             [ 1.]], dtype=float32)
    """

    def __call__(
        self, x: Any, use_running_average: bool | None = None, *, mask: Any = None
    ) -> jax.Array:
        """Normalise `x` by the batch, or by the running statistics."""
        running = self.use_running_average
        if use_running_average is not None:
            running = use_running_average
        if running or running is None:  # flax's own code is right, and raises for None
            x = _normalize.unmasked(x, mask)
            return super().__call__(x, use_running_average=running)
        old = self.mean[...], self.var[...]
        x, _, _, scale, bias = self.promote_dtype(
            (x, *old, _value(self.scale), _value(self.bias)), dtype=self.dtype
        )
        features = _normalize.axis_tuple("nnx.BatchNorm", self.axis, x.ndim)
        moments = _normalize.standardize(
            _normalize.to_compute("nnx.BatchNorm", x, self.dtype),
            tuple(i for i in range(x.ndim) if i not in features),
            eps=self.epsilon,
            where=mask,
            axis_name=self.axis_name,
            groups=self.axis_index_groups,
        )
        moved = functools.partial(_normalize.moving_average, moments, self.momentum)
        self.mean[...] = lax.stop_gradient(moved(old[0], moments.mean))
        self.var[...] = lax.stop_gradient(moved(old[1], moments.variance))
        return _affine(self, x, moments.standard, scale, bias, features)


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: Any = None,
    mask: Any = None,
    broadcast_dropout: bool = True,
    dropout_rng: Any = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    promote_dtype: Any = dtypes.promote_dtype,
    is_causal: bool = False,
) -> jax.Array:
    """`flax.nnx.dot_product_attention` in which nothing masked leaks.

    Value: as flax's; 0 for a query that may attend to no key.
    Gradient: that of the value; 0 for a query without a key and for what is masked.
    NaN in: NaN for the queries that attend to it and for no others.
    Error: that of `ops.softmax` and the two matrix products; half precision is
      computed in float32 and rounded once.

    Args:
      query: [..., queries, heads, depth].
      key: [..., keys, key heads, depth].
      value: [..., keys, key heads, value depth].
      bias: added to the scores [..., heads, queries, keys].
      mask: True = attend; broadcasts to the scores.
      broadcast_dropout: drop the same weights for all heads and batch entries.
      dropout_rng: key of the dropout.
      dropout_rate: share of weights to drop.
      deterministic: drop nothing.
      dtype: of the result; None for that of the inputs.
      precision: of the matrix products.
      module: where to sow the weights as "attention_weights".
      promote_dtype: as in flax.
      is_causal: let no query attend to a later key.

    Returns:
      Array [..., queries, heads, value depth].

    Raises:
      ValueError: the shapes do not fit.

    Examples:
      >>> from jaxsafe.layers import nnx as safe
      >>> value = jnp.asarray([1.0, jnp.nan]).reshape(2, 1, 1)
      >>> q = jnp.ones((2, 1, 1))
      >>> safe.dot_product_attention(q, q, value, is_causal=True).ravel()
      Array([ 1., nan], dtype=float32)
    """
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    if is_causal:
        causal = jnp.tri(query.shape[-3], key.shape[-3], dtype=bool)
        mask = causal if mask is None else _attention.both(mask, causal)

    def change(weights: jax.Array) -> jax.Array:
        if module is not None:
            module.sow(nnx.Intermediate, "attention_weights", weights)
        if deterministic or dropout_rate == 0:
            return weights
        return _attention.dropout(weights, dropout_rng, dropout_rate, broadcast_dropout)

    return _attention.attend(
        query, key, value, bias=bias, mask=mask, change=change, precision=precision
    )


class MultiHeadAttention(nnx.MultiHeadAttention):
    """`flax.nnx.MultiHeadAttention` in which nothing masked leaks.

    Value, Gradient, NaN in, Error: see `dot_product_attention`. With `normalize_qk`
      queries and keys are normalised by the `LayerNorm` of this module.

    Args:
      *args: as `flax.nnx.MultiHeadAttention`.
      attention_fn: as in flax; ours by default.
      **kwargs: as `flax.nnx.MultiHeadAttention`.

    Examples:
      >>> from flax import nnx
      >>> from jaxsafe.layers import nnx as safe
      >>> layer = safe.MultiHeadAttention(1, 2, decode=False, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((3, 2)), mask=jnp.zeros((1, 3, 3), bool))[0]
      Array([0., 0.], dtype=float32)
    """

    def __init__(
        self,
        *args: Any,
        attention_fn: Callable[..., jax.Array] = dot_product_attention,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, attention_fn=attention_fn, **kwargs)
        if self.normalize_qk:
            self.query_ln = self._stable(self.query_ln)
            self.key_ln = self._stable(self.key_ln)

    def _stable(self, layer: Any) -> LayerNorm:
        """Our LayerNorm with the parameters that flax made, metadata included."""
        new = LayerNorm(
            self.head_dim,
            use_bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            promote_dtype=self.ln_promote_dtype,
            rngs=nnx.Rngs(0),
        )
        new.scale = layer.scale
        return new


def _layer(
    layer: Any, x: Any, axes: Any, features: Any, mask: Any, *, centre: bool = True
) -> jax.Array:
    bias = _value(layer.bias) if centre else None
    x, scale, bias = layer.promote_dtype(
        (x, _value(layer.scale), bias), dtype=layer.dtype
    )
    name = f"nnx.{type(layer).__name__}"
    moments = _normalize.standardize(
        _normalize.to_compute(name, x, layer.dtype),
        _normalize.axis_tuple(name, axes, x.ndim),
        eps=layer.epsilon,
        where=mask,
        centre=centre,
        axis_name=layer.axis_name,
        groups=layer.axis_index_groups,
    )
    return _affine(layer, x, moments.standard, scale, bias, features)


def _affine(
    layer: Any, x: jax.Array, standard: jax.Array, scale: Any, bias: Any, features: Any
) -> jax.Array:
    axes = _normalize.axis_tuple(f"nnx.{type(layer).__name__}", features, x.ndim)
    out = _normalize.affine(standard, scale, bias, axes)
    given = [a for a in (x, scale, bias) if a is not None]
    return out.astype(dtypes.canonicalize_dtype(*given, dtype=layer.dtype))


def _value(variable: Any) -> Any:
    return None if variable is None else variable[...]
