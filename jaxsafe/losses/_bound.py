"""Bounding a loss: what is reported, or what is felt.

Bounding a loss hides a number; it cannot repair a NaN gradient, since 0 * NaN is NaN.
The default therefore bounds only the report. The other kinds also weaken the gradient
of large losses, each with a price that the docstring names. Every slope
is a custom rule, so that an infinite loss yields 0 and not 0 * inf.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_choice, check_floating, check_positive
from jaxsafe.ops import _in_two as in_two
from jaxsafe.ops._power import quotient

_INF, _NAN = float("inf"), float("nan")

Kind = Literal["report", "clip", "tanh", "log"]


def bound(
    loss: ArrayLike,
    limit: ArrayLike,
    *,
    kind: Kind = "report",
) -> jax.Array:
    """Keep a loss at or below a limit; kind `log` only slows its growth.

    What each kind does to learning, measured on one example of margin 60 under a limit
    of 10, with steps of 0.1 (`experiments/bounded_loss.py`): `report` is right after
    610 steps, like the loss without a bound; after 2000 steps `clip` and `tanh` have
    not moved and `log` stands at 55.9.

    Value: `report` and `clip` min(loss, limit); `tanh` limit * tanh(loss / limit);
      `log` loss up to the limit, beyond it limit + log1p(loss - limit), which is
      slow but not bounded: 98.7 for the largest float32 under a limit of 10. A negative
      loss is left alone, but for `tanh`, which stays above -limit.
    Gradient: `report` 1; `clip` 1 up to the limit, then 0: such an example learns
      nothing; `tanh` 1 - tanh**2, which fades like exp(-2 loss / limit); `log`
      1 / (1 + loss - limit) beyond the limit. 0 for every kind where the loss is NaN
      or infinite. None to `limit`.
    NaN in: NaN out, with gradient 0.
    Error: float32 0.51 ulp, gradient 0.51 for `report` and `clip`; 0.7 and 2.7
      for `tanh`; 0.9 and 2.4 for `log`; bfloat16 and float16 0.51.

    Args:
      loss: floating array.
      limit: positive number.
      kind: see above.

    Returns:
      Array of the shape and dtype of `loss`.

    Raises:
      TypeError: `loss` is not floating.
      ValueError: `limit` is not a positive number, or `kind` is unknown.

    Examples:
      >>> jax.value_and_grad(bound)(jnp.float32(1e4), 10.0)
      (Array(10., dtype=float32), Array(1., dtype=float32))

    References:
      Straight-through rule: Bengio, Léonard & Courville, arXiv:1308.3432.
    """
    x = check_floating("losses.bound", "loss", loss)
    check_choice("losses.bound", "kind", kind, tuple(_KINDS))
    check_positive("losses.bound", "limit", limit)
    return _rounded_once(x, limit, kind)


@functools.partial(jax.jit, static_argnums=2)
def _rounded_once(x: jax.Array, limit: ArrayLike, kind: str) -> jax.Array:
    wide = _floats.wide(x.dtype)
    cap = jnp.broadcast_to(jnp.asarray(limit, wide), x.shape)
    return _bound(x.astype(wide), cap, kind).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _bound(x: jax.Array, limit: jax.Array, kind: str) -> jax.Array:
    value, _ = _KINDS[kind]
    return value(x, limit)


@_bound.defjvp
def _bound_jvp(kind: str, primals: Any, tangents: Any) -> Any:
    (x, limit), (dx, _) = primals, tangents
    _, slope = _KINDS[kind]
    finite = jnp.isfinite(x)
    safe = jnp.where(finite, x, 0)
    return _bound(x, limit, kind), jnp.where(finite, slope(safe, limit) * dx, 0)


def _least(x: jax.Array, limit: jax.Array) -> jax.Array:
    return jnp.where(x > limit, limit, x)  # written so that NaN stays


def _one(x: jax.Array, limit: jax.Array) -> jax.Array:
    del limit
    return jnp.ones_like(x)


def _step(x: jax.Array, limit: jax.Array) -> jax.Array:
    return jnp.where(x > limit, 0, jnp.ones_like(x))


def soft_cap(x: jax.Array, cap: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(cap * tanh(x / cap), what its rounding lost); to JAX the latter is constant."""
    cap = jnp.broadcast_to(cap, x.shape)
    low = lax.stop_gradient(_tanh_in_two(x, cap).low)
    return _bound(x, cap, "tanh"), jnp.where(jnp.isnan(low), 0, low)


def _tanh_in_two(x: jax.Array, limit: jax.Array) -> in_two.Two:
    bounded = in_two.times(in_two.tanh(_ratio(x, limit)), in_two.single(limit))
    return in_two.normal(bounded)


def _ratio(x: jax.Array, limit: jax.Array) -> in_two.Two:
    """Quotient, within the reach of tanh and its slope."""
    far = 512 * limit
    x = jnp.where(jnp.abs(x) > far, jnp.sign(x) * far, x)
    ratio = quotient(x, limit)
    product = in_two.times(in_two.single(ratio), in_two.single(limit))
    return in_two.Two(ratio, quotient((x - product.high) - product.low, limit))


def _tanh(x: jax.Array, limit: jax.Array) -> jax.Array:
    # For a small loss the quotient may be flushed to 0, and tanh changes nothing.
    small = jnp.abs(quotient(x, limit)) < float(jnp.finfo(x.dtype).eps)
    return jnp.where(small, x, _tanh_in_two(x, limit).high)


def _tanh_slope(x: jax.Array, limit: jax.Array) -> jax.Array:
    """1 - tanh**2 without cancellation: 1 / cosh**2."""
    ratio = _ratio(x, limit)
    size, low = jnp.abs(ratio.high), jnp.sign(ratio.high) * ratio.low
    h = in_two.exp(-2 * size, -2 * low)
    below = in_two.plus(in_two.single(jnp.ones_like(h)), in_two.single(h))
    near = 4 * h / in_two.normal(in_two.times(below, below)).high
    # There h may be flushed to 0 where the slope is not.
    return jnp.where(size > 20, jnp.square(2 * in_two.exp(-size, -low)), near)


def _log(x: jax.Array, limit: jax.Array) -> jax.Array:
    excess = jnp.where(x > limit, x - limit, 0)
    return jnp.where(x > limit, limit + jnp.log1p(excess), x)


def _log_slope(x: jax.Array, limit: jax.Array) -> jax.Array:
    return 1 / (1 + jnp.where(x > limit, x - limit, 0))


_Pointwise = Callable[[jax.Array, jax.Array], jax.Array]
# kind -> (value, slope)
_KINDS: dict[str, tuple[_Pointwise, _Pointwise]] = {
    "report": (_least, _one),
    "clip": (_least, _step),
    "tanh": (_tanh, _tanh_slope),
    "log": (_log, _log_slope),
}


def _tanh_oracle(mp: Any, x: Any) -> tuple[Any, tuple[Any, ...]]:
    return 10 * mp.tanh(x / 10), (mp.sech(x / 10) ** 2,)


def _log_oracle(mp: Any, x: Any) -> tuple[Any, tuple[Any, ...]]:
    if x <= 10:
        return x, (mp.mpf(1),)
    return 10 + mp.log1p(x - 10), (1 / (1 + x - 10),)


_NONE = Edge(args=(_NAN,), value=_NAN, gradient=(0.0,))


def _naive_log(x: jax.Array) -> jax.Array:
    return jnp.where(x > 10, 10 + jnp.log1p(x - 10), x)


def _least_of_ten(mp: Any, x: Any) -> tuple[Any, ...]:
    return min(x, 10), (mp.mpf(1),)


_PROMISES: tuple[tuple[Kind, _catalog.Ulp, Any, Any, float], ...] = (
    ("report", (0.51, 0.51), lambda x: jnp.minimum(x, 10), _least_of_ten, 10.0),
    (
        "clip",
        (0.51, 0.51),
        lambda x: jnp.minimum(x, 10),
        lambda mp, x: (min(x, 10), (mp.mpf(x <= 10),)),
        10.0,
    ),
    ("tanh", (0.7, 2.7), lambda x: 10 * jnp.tanh(x / 10), _tanh_oracle, 10.0),
    ("log", (0.9, 2.4), _naive_log, _log_oracle, _INF),
)
for _kind, _ulp, _naive, _oracle, _top in _PROMISES:
    _catalog.add(
        _catalog.Row(
            name=f"losses.bound[{_kind}]",
            function=functools.partial(bound, limit=10.0, kind=_kind),
            naive=_naive,
            kind="entrywise",
            domain=((-_INF, _INF),),
            edges=(_NONE, Edge(args=(_INF,), value=_top, gradient=(0.0,))),
            ulp=_catalog.bounds(float32=_ulp, float64=_ulp),
            oracle=_oracle,
        )
    )
