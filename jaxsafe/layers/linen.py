"""flax.linen's normalisation and attention layers, with stable statistics.

Each is a subclass that keeps flax's fields, call, parameters and collections, so a
checkpoint of flax's layer loads; only the arithmetic differs (`layers._normalize`,
`layers._attention`). `use_fast_variance` is accepted and has no effect; statistics are
computed in float32 at least, whatever `force_float32_reductions` says.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen
from flax.linen import dtypes

from jaxsafe._errors import error
from jaxsafe.layers import _attention, _normalize

__all__ = [
    "BatchNorm",
    "GroupNorm",
    "LayerNorm",
    "MultiHeadAttention",
    "RMSNorm",
    "dot_product_attention",
]


class LayerNorm(linen.LayerNorm):
    """`flax.linen.LayerNorm` for any mean and any magnitude.

    Value: as flax's; a constant row gives the bias, and so does a fully masked one.
    Gradient: that of the value, finite for a constant row.
    NaN in: NaN for the row; never from where `mask` is False (a masked NaN or Inf
      gives the bias, other masked entries are normalised as flax does).
    Error: float32 1e-6 of a standard deviation for |mean| / std up to 1e6.

    Fields: as `flax.linen.LayerNorm`.

    Examples:
      >>> from jaxsafe.layers import linen as safe
      >>> x = jnp.asarray([1e4, 10001, 10002, 10003])
      >>> safe.LayerNorm().init_with_output(jax.random.key(0), x)[0]
      Array([-1.3416404 , -0.44721344,  0.44721344,  1.3416404 ], dtype=float32)
    """

    @linen.compact
    def __call__(self, x: Any, *, mask: Any = None) -> jax.Array:
        """Normalise `x`; `mask` True = counts for the statistics."""
        return _layer(self, x, mask)


class RMSNorm(linen.RMSNorm):
    """`flax.linen.RMSNorm` for any magnitude.

    Value: as flax's; a row of zeros gives 0, and so does a fully masked one.
    Gradient: that of the value.
    NaN in: NaN for the row; never from where `mask` is False.
    Error: float32 4 ulp.

    Fields: as `flax.linen.RMSNorm`.

    Examples:
      >>> from jaxsafe.layers import linen as safe
      >>> x = jnp.asarray([1e25, -1e25])
      >>> safe.RMSNorm().init_with_output(jax.random.key(0), x)[0]
      Array([ 1., -1.], dtype=float32)
    """

    @linen.compact
    def __call__(self, x: Any, *, mask: Any = None) -> jax.Array:
        """Normalise `x`; `mask` True = counts for the statistics."""
        return _layer(self, x, mask, centre=False)


class GroupNorm(linen.GroupNorm):
    """`flax.linen.GroupNorm` for any mean and any magnitude.

    Value, Gradient, NaN in, Error: as `LayerNorm`, for each group.

    Fields: as `flax.linen.GroupNorm`.

    Raises:
      ValueError: the groups do not divide the channels, or the last axis is kept.

    Examples:
      >>> from jaxsafe.layers import linen as safe
      >>> x = jnp.asarray([[1e4, 10064, 1e25, -1e25]])
      >>> safe.GroupNorm(2).init_with_output(jax.random.key(0), x)[0]
      Array([[-1.,  1.,  1., -1.]], dtype=float32)
    """

    @linen.compact
    def __call__(self, x: Any, *, mask: Any = None) -> jax.Array:
        """Normalise `x`; `mask` True = counts for the statistics."""
        wide = _normalize.to_compute("linen.GroupNorm", x, self.dtype)
        standard = _normalize.standardize_groups(
            wide,
            _group_count(self, wide.shape[-1]),
            self.reduction_axes,
            eps=self.epsilon,
            where=mask,
            axis_name=self.axis_name,
            groups=self.axis_index_groups,
        )
        return _affine(self, x, standard, (wide.ndim - 1,))


class BatchNorm(linen.BatchNorm):
    """`flax.linen.BatchNorm` for any mean and any magnitude.

    Value: as flax's; a constant feature gives the bias. The running variance stays
      finite for finite inputs; a feature that is masked everywhere keeps its running
      statistics.
    Gradient: that of the value, finite for a constant feature.
    NaN in: NaN for the feature and its running statistics, which a guard rolls back;
      never from where `mask` is False.
    Error: float32 1e-6 of a standard deviation for |mean| / std up to 1e6.

    Fields: as `flax.linen.BatchNorm`. With `axis_name`, devices count by their
      unmasked entries.

    Examples:
      >>> from jaxsafe.layers import linen as safe
      >>> layer, x = safe.BatchNorm(False), jnp.asarray([[1e4], [1e4 + 1]])
      >>> layer.init_with_output(jax.random.key(0), x)[0]
      Array([[-1.],
             [ 1.]], dtype=float32)
    """

    @linen.compact
    def __call__(
        self, x: Any, use_running_average: bool | None = None, *, mask: Any = None
    ) -> jax.Array:
        """Normalise `x` by the batch, or by the running statistics."""
        running = linen.merge_param(
            "use_running_average", self.use_running_average, use_running_average
        )
        if running:  # flax's own code is right
            return super().__call__(_normalize.unmasked(x, mask), use_running_average)
        wide = _normalize.to_compute("linen.BatchNorm", x, self.dtype)
        features = _normalize.axis_tuple("linen.BatchNorm", self.axis, wide.ndim)
        shape = [wide.shape[axis] for axis in features]
        kept = jnp.float32 if self.force_float32_reductions else self.param_dtype
        mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(shape, kept))
        var = self.variable("batch_stats", "var", lambda: jnp.ones(shape, kept))
        moments = _normalize.standardize(
            wide,
            tuple(i for i in range(wide.ndim) if i not in features),
            eps=self.epsilon,
            where=mask,
            axis_name=None if self.is_initializing() else self.axis_name,
            groups=self.axis_index_groups,
        )
        if not self.is_initializing():
            moved = functools.partial(_normalize.moving_average, moments, self.momentum)
            mean.value = moved(mean.value, moments.mean)
            var.value = moved(var.value, moments.variance)
        return _affine(self, x, moments.standard, features)


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
) -> jax.Array:
    """`flax.linen.dot_product_attention` in which nothing masked leaks.

    Value: as flax's; 0 for a query that may attend to no key.
    Gradient: that of the value; 0 for a query without a key and for what is masked.
    NaN in: NaN for the queries that attend to it and for no others.
    Error: that of `ops.softmax` and the two matrix products; half precision is
      computed in float32 and rounded once (so `force_fp32_for_softmax` has no say).

    Args:
      query: [..., queries, heads, depth].
      key: [..., keys, heads, depth].
      value: [..., keys, heads, value depth].
      bias: added to the scores [..., heads, queries, keys].
      mask: True = attend; broadcasts to the scores.
      broadcast_dropout: drop the same weights for all heads and batch entries.
      dropout_rng: key of the dropout.
      dropout_rate: share of weights to drop.
      deterministic: drop nothing.
      dtype: of the result; None for that of the inputs.
      precision: of the matrix products.
      module: where to sow the weights as "attention_weights".

    Returns:
      Array [..., queries, heads, value depth].

    Raises:
      ValueError: the shapes do not fit.

    Examples:
      >>> from jaxsafe.layers import linen as safe
      >>> value = jnp.asarray([1.0, jnp.nan]).reshape(2, 1, 1)
      >>> q, causal = jnp.ones((2, 1, 1)), jnp.tri(2, dtype=bool)
      >>> safe.dot_product_attention(q, q, value, mask=causal).ravel()
      Array([ 1., nan], dtype=float32)
    """
    query, key, value = dtypes.promote_dtype(query, key, value, dtype=dtype)

    def change(weights: jax.Array) -> jax.Array:
        if module is not None:
            module.sow("intermediates", "attention_weights", weights)
        if deterministic or dropout_rate == 0:
            return weights
        return _attention.dropout(weights, dropout_rng, dropout_rate, broadcast_dropout)

    return _attention.attend(
        query, key, value, bias=bias, mask=mask, change=change, precision=precision
    )


class MultiHeadAttention(linen.MultiHeadAttention):
    """`flax.linen.MultiHeadAttention` in which nothing masked leaks.

    Value, Gradient, NaN in, Error: see `dot_product_attention`. With `normalize_qk`
      queries and keys are normalised as by the `LayerNorm` of this module.

    Fields: as `flax.linen.MultiHeadAttention`; its einsum classes are refused.

    Raises:
      ValueError: an einsum class is given, which `attention_fn` does not take.

    Examples:
      >>> from jaxsafe.layers import linen as safe
      >>> layer, x = safe.MultiHeadAttention(1), jnp.ones((3, 2))
      >>> mask = jnp.zeros((1, 3, 3), bool)
      >>> layer.init_with_output(jax.random.key(0), x, mask=mask)[0][0]
      Array([0., 0.], dtype=float32)
    """

    attention_fn: Callable[..., jax.Array] = dot_product_attention

    @linen.compact
    def __call__(self, *args: Any, **kwargs: Any) -> jax.Array:
        """Attend as flax does; see `flax.linen.MultiHeadAttention.__call__`."""
        ours = self.attention_fn is dot_product_attention
        if ours and (
            self.qk_attn_weights_einsum_cls or self.attn_weights_value_einsum_cls
        ):
            raise error(
                ValueError,
                "linen.MultiHeadAttention",
                "this attention_fn takes no einsum classes",
                "qk_attn_weights_einsum_cls or attn_weights_value_einsum_cls",
                "Pass attention_fn=flax.linen.dot_product_attention to use them.",
            )
        # flax names its LayerNorm inside the method: step in where it is called.
        with linen.intercept_methods(_stable_layer_norm):
            return super().__call__(*args, **kwargs)


def _stable_layer_norm(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    is_norm = type(context.module) is linen.LayerNorm
    if is_norm and context.method_name == "__call__":
        return _layer(context.module, *args, **kwargs)
    return call(*args, **kwargs)


def _layer(module: Any, x: Any, mask: Any = None, *, centre: bool = True) -> jax.Array:
    name = f"linen.{type(module).__name__}"
    wide = _normalize.to_compute(name, x, module.dtype)
    moments = _normalize.standardize(
        wide,
        _normalize.axis_tuple(name, module.reduction_axes, wide.ndim),
        eps=module.epsilon,
        where=mask,
        centre=centre,
        axis_name=module.axis_name,
        groups=module.axis_index_groups,
    )
    features = _normalize.axis_tuple(name, module.feature_axes, wide.ndim)
    return _affine(module, x, moments.standard, features)


def _affine(
    module: Any, x: Any, standard: jax.Array, features: tuple[int, ...]
) -> jax.Array:
    shape = [standard.shape[axis] for axis in features]
    scale = bias = None
    if module.use_scale:
        scale = module.param("scale", module.scale_init, shape, module.param_dtype)
    if getattr(module, "use_bias", False):
        bias = module.param("bias", module.bias_init, shape, module.param_dtype)
    out = _normalize.affine(standard, scale, bias, features)
    given = [a for a in (jnp.asarray(x), scale, bias) if a is not None]
    return out.astype(dtypes.canonicalize_dtype(*given, dtype=module.dtype))


def _group_count(module: Any, channels: int) -> int:
    count, size = module.num_groups, module.group_size
    if (count is None) == (size is None):
        raise error(
            ValueError,
            "linen.GroupNorm",
            "one of num_groups and group_size must be given",
            f"{count} and {size}",
            "Pass num_groups=None to use group_size.",
        )
    divisor = count if size is None else size
    if divisor <= 0 or channels % divisor:
        raise error(
            ValueError,
            "linen.GroupNorm",
            f"the groups must divide the {channels} channels",
            divisor,
            "Check num_groups or group_size.",
        )
    return divisor if size is None else channels // size
