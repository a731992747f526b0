"""The direction of a vector.

It is the unit vector of `_norm`, which is taken from a scaled copy and so is right at
any magnitude, and whose derivative never forms a quotient by 0. A vector of length 0
has no direction: its unit vector and every derivative are 0.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe._catalog import Edge
from jaxsafe.ops._norm import direction
from jaxsafe.ops._reduction import Axis, only, reduction

_INF, _NAN = float("inf"), float("nan")


def normalize(
    x: ArrayLike, axis: Axis = -1, *, where: ArrayLike | None = None
) -> jax.Array:
    """Vector of length 1 in the direction of `x`.

    Value: x / norm(x); 0 for a zero vector and where excluded.
    Gradient: (I - u u^T) / norm(x) with u the value; 0 for a zero vector.
    NaN in: NaN for the whole vector; never from where `where` is False.
    Error: float32 2.2 ulp, gradient 6 ulp of max(|true|, 1/(16 norm(x))), up to 1,000
      entries; bfloat16 and float16 0.51; on a GPU float32 3.5 ulp.

    Args:
      x: floating array.
      axis: axis or axes that make up a vector.
      where: bool array, True = include; broadcasts to `x`.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.
      ValueError: `x` has no such axis.

    Examples:
      >>> normalize(jnp.asarray([[0.0, 4e30], [0.0, 0.0]]))
      Array([[0., 1.],
             [0., 0.]], dtype=float32)

    References:
      Blue, ACM TOMS 4(1), 1978.
    """
    return reduction("ops.normalize", _unit, axis, where=where, x=x)


def _unit(x: jax.Array, axes: tuple[int, ...], where: jax.Array | None) -> jax.Array:
    return direction(only(x, where), axes)[0]


def _length(mp: Any, x: list[Any]) -> Any:
    return mp.sqrt(mp.fsum(v * v for v in x))


def _normalize_oracle(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    r = _length(mp, x)
    unit = [v / r for v in x]
    own = mp.fsum(v * v for v in unit[1:]) / r
    return unit, ([own, *(-unit[0] * v / r for v in unit[1:])],)


def _normalize_size(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    value, (gradient,) = _normalize_oracle(mp, x)
    least = 1 / (16 * _length(mp, x))
    return value, ([max(abs(g), least) for g in gradient],)


def _sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    """Tame rows; then one entry to many, of like size or one far above the others."""
    yield (rng.standard_normal((8, 5)),)
    for n in (1, 2, 4, 8, 60):
        x = rng.standard_normal((128, n))
        x[::2, 0] *= 2.0 ** rng.uniform(0, 14, 64)
        # Just above a power of two, where the ulp of a reciprocal is small.
        long = rng.uniform(1, 1.04, (128, 1)) * 2.0 ** rng.integers(-9, 9, (128, 1))
        yield (x / np.linalg.norm(x, axis=1, keepdims=True) * long,)


_catalog.add(
    _catalog.Row(
        name="ops.normalize",
        function=normalize,
        naive=lambda x: x / jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True)),
        kind="reduction",
        domain=((-_INF, _INF),),
        edges=(
            Edge(args=((0.0, 0.0),), value=(0.0, 0.0), gradient=((0.0, 0.0),)),
            Edge(args=((3.0, 4.0),), value=(0.6, 0.8), gradient=((0.128, -0.096),)),
            Edge(args=((_INF, 1.0),), value=(1.0, 0.0), gradient=((0.0, 0.0),)),
            Edge(args=((1.0, _NAN),), value=(_NAN, _NAN), gradient=((_NAN, _NAN),)),
        ),
        ulp=_catalog.bounds(float32=(2.2, 6), float64=(2.1, 5), gpu=(3.5, 6)),
        oracle=_normalize_oracle,
        size=_normalize_size,
        sample=_sample,
    )
)
