"""The triplet margin loss: distances whose gradient is finite at a distance of 0.

The idea: the distance is the length of the difference, taken from a scaled copy, so
that no square overflows and no square root is differentiated at 0. The usual `eps`
below the root is not needed for that; it is one more entry of the difference.

Source: Balntas et al., "Learning local feature descriptors with triplets and shallow
convolutional neural networks", BMVC 2016.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import error
from jaxsafe.losses._pair import floating, same_shape
from jaxsafe.ops._norm import axis_tuple, length

_INF, _NAN = float("inf"), float("nan")


def triplet_margin_loss(
    anchors: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    axis: int = -1,
    norm_degree: int = 2,
    margin: ArrayLike = 1.0,
    eps: ArrayLike = 0.0,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """By how much a positive is not closer than a negative by a margin.

    Value: max(|a - p| - |a - n| + margin, 0); 0 if `where` leaves nothing.
    Gradient: the unit vectors of the differences; 0 at a distance of 0, where the loss
      is 0, and where excluded.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 3 ulp of the sum of distances and margin, gradient 4 of the sum of
      both terms, up to 100 entries; bfloat16 and float16 give a float32 loss within
      3 ulp and gradients within 0.51 ulp.

    Args:
      anchors: floating array.
      positives: array of the shape of `anchors`.
      negatives: array of the shape of `anchors`.
      axis: axis of the vectors.
      norm_degree: 1 (sum of magnitudes) or 2 (Euclidean).
      margin: how much closer the positive has to be.
      eps: added to the sum of powers, as in optax. Not needed for a finite result.
      where: bool array, True = include; broadcasts to `anchors`.

    Returns:
      Array of the shape of `anchors` without `axis`; float32 for half precision.

    Raises:
      TypeError: `anchors` is not floating.
      ValueError: the batch is empty, the shapes differ, there is no such axis, or
        `norm_degree` is neither 1 nor 2.

    Examples:
      >>> same = jnp.asarray([1e20, 0.0])
      >>> triplet_margin_loss(same, same, same)
      Array(1., dtype=float32)
      >>> jax.grad(triplet_margin_loss)(same, same, same)
      Array([0., 0.], dtype=float32)

    References:
      Balntas et al., BMVC 2016.
    """
    name = "losses.triplet_margin_loss"
    a = floating(name, "anchors", anchors)
    p = same_shape(name, "positives", positives, a)
    n = same_shape(name, "negatives", negatives, a)
    (along,) = axis_tuple(name, axis, a.ndim)
    if norm_degree not in (1, 2):
        raise error(
            ValueError,
            name,
            "norm_degree must be 1 or 2",
            norm_degree,
            "Pass 2 for Euclidean distances.",
        )
    mask = jnp.broadcast_to(True if where is None else where, a.shape)
    a, p, n = (jnp.moveaxis(jnp.where(mask, v, 0), along, -1) for v in (a, p, n))
    near, far = (_distance(a - v, norm_degree, eps) for v in (p, n))
    gap = near - far + jnp.asarray(margin, a.dtype)
    # Asked this way round, a NaN is kept.
    return jnp.where((gap <= 0) | ~mask.any(along), 0, gap)


def _distance(difference: jax.Array, degree: int, eps: ArrayLike) -> jax.Array:
    extra = jnp.asarray(eps, difference.dtype)
    if degree == 1:
        return jnp.sum(jnp.abs(difference), -1) + extra
    if not isinstance(eps, int | float) or eps != 0:
        entry = jnp.broadcast_to(jnp.sqrt(extra), (*difference.shape[:-1], 1))
        difference = jnp.concatenate([difference, entry], -1)
    return length(difference, (difference.ndim - 1,))[..., 0]


def _unit(mp: Any, a: list[Any], b: list[Any]) -> tuple[Any, list[Any]]:
    difference = [x - y for x, y in zip(a, b, strict=True)]
    size = mp.sqrt(mp.fsum(d * d for d in difference))
    return size, [d / size for d in difference]


def _oracle(mp: Any, a: Any, p: Any, n: Any) -> tuple[Any, tuple[Any, ...]]:
    (near, u), (far, v) = _unit(mp, a, p), _unit(mp, a, n)
    gap = near - far + 1
    if gap <= 0:
        return mp.mpf(0), tuple([mp.mpf(0)] * len(a) for _ in range(3))
    moved = [x - y for x, y in zip(u, v, strict=True)]
    return gap, (moved, [-x for x in u], v)


def _size(mp: Any, a: Any, p: Any, n: Any) -> tuple[Any, tuple[Any, ...]]:
    """What is added up, before it cancels."""
    (near, u), (far, v) = _unit(mp, a, p), _unit(mp, a, n)
    u, v = [abs(x) for x in u], [abs(x) for x in v]
    return near + far + 1, ([x + y for x, y in zip(u, v, strict=True)], u, v)


def _sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    """Triplets of every scale."""
    for n in (5, 60):
        scale = 10.0 ** rng.uniform(-3, 3, (16, 1))
        yield tuple(scale * rng.normal(size=(3, 16, n)))


def _naive(a: jax.Array, p: jax.Array, n: jax.Array) -> jax.Array:
    near, far = (jnp.sqrt(jnp.sum((a - v) ** 2, -1)) for v in (p, n))
    return jnp.maximum(near - far + 1, 0)


_ZERO = (0.0, 0.0)
_catalog.add(
    _catalog.Row(
        name="losses.triplet_margin_loss",
        function=triplet_margin_loss,
        naive=_naive,
        kind="reduction",
        domain=((-_INF, _INF),) * 3,
        edges=(
            # All three agree.
            Edge(args=(_ZERO,) * 3, value=1.0, gradient=(_ZERO,) * 3),
            Edge(args=(_ZERO, _ZERO, (3.0, 4.0)), value=0.0, gradient=(_ZERO,) * 3),
            Edge(
                args=((1.0, _NAN), _ZERO, _ZERO),
                value=_NAN,
                gradient=((_NAN, _NAN),) * 3,
            ),
        ),
        ulp=_catalog.bounds(float32=(3, 4), float64=(3, 4), half=(3, 0.51)),
        oracle=_oracle,
        size=_size,
        sample=_sample,
        result=_floats.wide,
    )
)
