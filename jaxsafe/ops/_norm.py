"""The Euclidean length, without overflow, underflow or an infinite slope.

The entries are multiplied by a power of two that brings the largest one near 1, so
the squares are in range and nothing is rounded. The gradient is the unit vector,
written as a safe quotient: at 0 it is 0, and its own derivative is guarded as well.

Source: Blue, "A portable Fortran program to find the Euclidean norm of a vector",
ACM TOMS 4(1), 1978.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_axis, check_floating
from jaxsafe.ops._exact import power_of_two
from jaxsafe.ops._power import quotient

_INF, _NAN = float("inf"), float("nan")

Axis = int | tuple[int, ...] | None


def norm(
    x: ArrayLike,
    *,
    axis: Axis = None,
    keepdims: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Euclidean length of the entries along `axis`.

    Value: sqrt(sum(x**2)); infinite only if the true length overflows; 0 if `where`
      leaves nothing.
    Gradient: x / norm(x); 0 at 0.
    NaN in: NaN out, value and gradient; never from where `where` is False.
    Error: float32 3 ulp, gradient 3, up to 10,000 entries; bfloat16 and float16 0.51.

    Args:
      x: floating array.
      axis: axis or axes to reduce, all by default.
      keepdims: keep reduced axes with length 1.
      where: bool array, True = include; broadcasts to `x`.

    Returns:
      Array of the dtype of `x`.

    Raises:
      TypeError: `x` is not floating.
      ValueError: `x` has no such axis.

    Examples:
      >>> norm(jnp.asarray([3e30, 4e30]))
      Array(5.e+30, dtype=float32)
      >>> jax.grad(norm)(jnp.zeros(2))
      Array([0., 0.], dtype=float32)

    References:
      Blue, ACM TOMS 4(1), 1978.
    """
    x = check_floating("ops.norm", "x", x)
    wide = x.astype(_floats.wide(x.dtype))
    if where is not None:
        wide = jnp.where(jnp.broadcast_to(where, x.shape), wide, 0)
    axes = axis_tuple("ops.norm", axis, x.ndim)
    length = _norm(wide, axes)
    return (length if keepdims else jnp.squeeze(length, axes)).astype(x.dtype)


def axis_tuple(function: str, axis: Axis, ndim: int) -> tuple[int, ...]:
    """The axes as non-negative numbers; None means all."""
    if axis is None:
        return tuple(range(ndim))
    axes = axis if isinstance(axis, tuple) else (axis,)
    return tuple(check_axis(function, a, ndim) for a in axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The length with reduced axes kept."""
    peak = jnp.max(jnp.abs(x), axes, keepdims=True, initial=0)
    reach = int(jnp.finfo(x.dtype).maxexp) - 8
    exponent = jnp.clip(jnp.frexp(peak)[1], -reach, reach)
    scaled = x * power_of_two(-exponent, x.dtype)
    length = jnp.sqrt(jnp.sum(jnp.square(scaled), axes, keepdims=True))
    return length * power_of_two(exponent, x.dtype)


@_norm.defjvp
def _norm_jvp(axes: tuple[int, ...], primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    length = _norm(x, axes)
    unit = quotient(x, jnp.broadcast_to(length, x.shape))
    return length, jnp.sum(unit * dx, axes, keepdims=True)


def _oracle(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    length = mp.sqrt(mp.fsum(v * v for v in x))
    return length, ([v / length for v in x],)


_catalog.add(
    _catalog.Row(
        name="ops.norm",
        function=functools.partial(norm, axis=-1),
        naive=lambda x: jnp.sqrt(jnp.sum(x**2, axis=-1)),
        kind="reduction",
        domain=((-_INF, _INF),),
        edges=(
            Edge(args=((0.0, 0.0),), value=0.0, gradient=((0.0, 0.0),)),
            Edge(args=((3.0, 4.0),), value=5.0, gradient=((0.6, 0.8),)),
            Edge(args=((-2.0,),), value=2.0, gradient=((-1.0,),)),
            Edge(args=((1.0, _NAN),), value=_NAN, gradient=((_NAN, _NAN),)),
        ),
        ulp=_catalog.bounds(float32=(3, 3), float64=(3, 3)),
        oracle=_oracle,
    )
)
