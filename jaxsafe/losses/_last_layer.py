"""The last layer as the losses take it: hidden states, kernel, bias and labels.

What both forms of linear cross-entropy check, mask and multiply with. A token that is
ignored is hidden here, whatever was there.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike, DTypeLike

from jaxsafe import _floats
from jaxsafe._errors import check_floating, check_not_empty, error
from jaxsafe.losses._labels import check_labels

_NAN = float("nan")


class Layer(NamedTuple):
    """Arguments that fit, tokens in one axis.

    Attributes:
      hidden: [tokens, features], 0 where ignored.
      kernel: [features, vocabulary], of the same dtype.
      bias: [vocabulary], of the dtype to compute in, or None.
      label: a class, or -1 for a token that has no loss to compute.
      ignored: bool, the label is `ignore_index`.
      bad: bool, the label names no class.
    """

    hidden: jax.Array
    kernel: jax.Array
    bias: jax.Array | None
    label: jax.Array
    ignored: jax.Array
    bad: jax.Array

    def loss(self, value: jax.Array) -> jax.Array:
        """`value` of the tokens that have one."""
        return jnp.where(self.ignored, 0, jnp.where(self.bad, _NAN, value))


def checked(
    function: str,
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    bias: ArrayLike | None,
    ignore_index: int | None,
) -> Layer:
    """Check the arguments and mask what takes no part."""
    h, k, b = _arrays(function, hidden, kernel, bias)
    classes = k.shape[1]
    index, ignored = check_labels(
        function,
        "hidden @ kernel",
        labels,
        (*h.shape[:-1], classes),
        h.ndim - 1,
        ignore_index,
    )
    index, ignored = index.reshape(-1), ignored.reshape(-1)
    bad = ~ignored & ((index < 0) | (index >= classes))
    label = jnp.where(ignored | bad, -1, index.astype(jnp.int32))
    h = h.reshape(-1, h.shape[-1])
    if ignore_index is not None:
        h = jnp.where(ignored[:, None], 0, h)
    return Layer(h, k, b, label, ignored, bad)


def _arrays(
    function: str, hidden: ArrayLike, kernel: ArrayLike, bias: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    h = check_floating(function, "hidden", hidden)
    k = check_floating(function, "kernel", kernel)
    check_not_empty(function, "hidden", h)
    check_not_empty(function, "kernel", k)
    if k.ndim != 2 or h.ndim == 0 or h.shape[-1] != k.shape[0]:
        raise error(
            ValueError,
            function,
            "hidden must be [..., features] and kernel [features, vocabulary]",
            f"shapes {h.shape} and {k.shape}",
            "Transpose an embedding table before passing it as kernel.",
        )
    dtype = jnp.result_type(h, k)
    if bias is None:
        return h.astype(dtype), k.astype(dtype), None
    b = check_floating(function, "bias", bias)
    if b.shape != k.shape[1:]:
        raise error(
            ValueError,
            function,
            f"bias must have shape {k.shape[1:]}, one entry per class",
            b.shape,
            "Check the bias of the last layer.",
        )
    return h.astype(dtype), k.astype(dtype), b.astype(_floats.wide(dtype))


def product(
    x: jax.Array,
    y: jax.Array,
    axes: tuple[int, int],
    precision: Any,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Sum over one axis of each; in the dtype of `x` unless `dtype` is given."""
    contracted = (((axes[0],), (axes[1],)), ((), ()))
    dtype = x.dtype if dtype is None else dtype
    return lax.dot_general(
        x, y, contracted, precision=precision, preferred_element_type=dtype
    )


def over_blocks(step: Any, state: Any, entries: int, size: int) -> Any:
    """`step(first, how many, state)` block by block; the last may be smaller."""
    whole, left = divmod(entries, size)
    state = lax.fori_loop(0, whole, lambda i, s: step(i * size, size, s), state)
    return step(jnp.asarray(whole * size), left, state) if left else state


def block(x: jax.Array, start: jax.Array, size: int, axis: int) -> jax.Array:
    """Entries from `start` on."""
    return lax.dynamic_slice_in_dim(x, start, size, axis)


def put(whole: jax.Array, part: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    """`whole` with `part` from `start` on."""
    part = part.astype(whole.dtype)
    return lax.dynamic_update_slice_in_dim(whole, part, start, axis)
