"""silu and mish: x times a gate, without infinity times 0 and with the tails right.

The idea: for a gate sigmoid(v), with t = exp(-|v|), the value for x < 0 is
x t / (1 + t). t comes as two factors which are still normal numbers where their product
is not, so a factor of x before the second keeps what is representable; x is bounded
where t is 0, so that no infinity meets that 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe.ops._entrywise import add_unary, chain, entrywise
from jaxsafe.ops._exp import lifted_exp

_INF = float("inf")


def silu(x: ArrayLike) -> jax.Array:
    """Sigmoid linear unit, also called swish.

    Value: x sigmoid(x); 0 at -inf.
    Gradient: sigmoid(x) + x sigmoid'(x), with limits 0 and 1.
    NaN in: NaN out.
    Error: float32 3.4 ulp, gradient 4.5, second derivative 7.7; bfloat16 and
      float16 0.51. Both derivatives cross 0: in ulp of at least 1/16.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> silu(jnp.asarray([-jnp.inf, 0.0, 100.0]))
      Array([ -0.,   0., 100.], dtype=float32)

    References:
      Elfwing et al., "Sigmoid-Weighted Linear Units", 2018.
    """
    return entrywise("ops.silu", _silu, x=x)


def mish(x: ArrayLike) -> jax.Array:
    """Self-regularised activation of Misra.

    Value: x tanh(softplus(x)); 0 at -inf.
    Gradient: a quotient of polynomials in exp(-|x|), with limits 0 and 1.
    NaN in: NaN out.
    Error: float32 5.3 ulp, gradient 5.9, second derivative 8.9; bfloat16 and
      float16 0.51. Both derivatives cross 0: in ulp of at least 1/16.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> mish(jnp.asarray([-jnp.inf, 0.0, 100.0]))
      Array([ -0.,   0., 100.], dtype=float32)

    References:
      Misra, "Mish: A Self Regularized Non-Monotonic Activation Function", 2019.
    """
    return entrywise("ops.mish", _mish, x=x)


def _bounded(x: jax.Array) -> jax.Array:
    """`x`, but no further out than where exp(-|x|) has long been 0."""
    far = 2.0 * int(jnp.finfo(x.dtype).maxexp)
    return jnp.where(jnp.abs(x) > far, jnp.sign(x) * far, x)


def gated(x: jax.Array, near: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """X sigmoid(v); `near` is x, bounded where t = exp(-|v|) = a b is 0."""
    return jnp.where(x < 0, near * a * b, x) / (1 + a * b)


def gated_slope(
    x: jax.Array, growth: jax.Array, a: jax.Array, b: jax.Array
) -> jax.Array:
    """Slope of x sigmoid(v); `growth` is x v', bounded."""
    t = a * b
    below = (1 + t + growth) * a * b
    above = 1 + t + growth * t
    return jnp.where(x < 0, below, above) / jnp.square(1 + t)


def gated_curvature(bend: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """Curvature; `bend` is 2 v' + x v'' - x v'**2 tanh(v / 2), bounded."""
    return bend * a * b / jnp.square(1 + a * b)


def _silu_value(x: jax.Array) -> jax.Array:
    near = _bounded(x)
    return gated(x, near, *lifted_exp(-jnp.abs(near)))


def _silu_slope(x: jax.Array) -> jax.Array:
    near = _bounded(x)
    return gated_slope(x, near, *lifted_exp(-jnp.abs(near)))


def _silu_curvature(x: jax.Array) -> jax.Array:
    near = _bounded(x)
    bend = 2 - near * jnp.tanh(0.5 * near)
    return gated_curvature(bend, *lifted_exp(-jnp.abs(near)))


_silu = chain(_silu_value, _silu_slope, _silu_curvature)


def _mish_value(x: jax.Array) -> jax.Array:
    near = _bounded(x)
    scale, power = lifted_exp(-jnp.abs(near))
    t = scale * power
    below = near * scale * power * (2 + t) / (2 + t * (2 + t))
    above = x * ((1 + 2 * t) / (1 + 2 * t * (1 + t)))
    return jnp.where(x < 0, below, above)


def _mish_slope(x: jax.Array) -> jax.Array:
    x = _bounded(x)
    scale, power = lifted_exp(-jnp.abs(x))
    t = scale * power
    below = (4 * (1 + x) + t * (6 + 4 * x + t * (4 + t))) * scale * power
    above = 1 + t * (4 + t * (6 + 4 * x + t * 4 * (1 + x)))
    quotient = jnp.where(x < 0, below, above)
    return quotient / jnp.square(_mish_scale(x, t))


def _mish_curvature(x: jax.Array) -> jax.Array:
    x = _bounded(x)
    scale, power = lifted_exp(-jnp.abs(x))
    t = scale * power
    below = 4 + t * (8 + t * (6 + 2 * t)) + x * (2 + t * (2 - t * (3 + 2 * t)))
    above = 2 + t * (6 + t * (8 + 4 * t)) + x * (t * (2 * t * (1 + t) - 3) - 2)
    bend = jnp.where(x < 0, below, above * t)
    return 4 * bend * scale * power / _mish_scale(x, t) ** 3


def _mish_scale(x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.where(x < 0, 2 + t * (2 + t), 1 + 2 * t * (1 + t))


_mish = chain(_mish_value, _mish_slope, _mish_curvature)


def _silu_oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    t = mp.exp(-abs(x))
    gate, bell = (1 if x >= 0 else t) / (1 + t), t / (1 + t) ** 2
    return x * gate, (gate + x * bell,), bell * (2 - x * mp.tanh(x / 2))


def _mish_oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    # Beyond, the terms left out are below what any dtype holds.
    if abs(x) > 2000:
        return max(x, mp.mpf(0)), (mp.mpf(x > 0),), mp.mpf(0)
    w = mp.exp(x)
    n, d = w * (w + 2), w * (w + 2) + 2
    slope = 4 * w * (w + 1) / d**2
    bend = 4 * w * (2 + 2 * w - 3 * w**2 - 2 * w**3) / d**3
    return x * n / d, (n / d + x * slope,), 2 * slope + x * bend


# Slope and curvature cross 0.
_FLOORS = (0, 2**-4, 2**-4)
add_unary(
    "silu",
    silu,
    lambda x: x / (1 + jnp.exp(-x)),
    ((0.0, 0.0), (0.0, 0.5), (_INF, 1.0)),
    _catalog.bounds(float32=(3.4, 4.5, 7.7), float64=(3.5, 4.6, 6.5)),
    _silu_oracle,
    _FLOORS,
)
add_unary(
    "mish",
    mish,
    lambda x: x * jnp.tanh(jnp.log(1 + jnp.exp(x))),
    ((0.0, 0.0), (0.0, 0.6), (_INF, 1.0)),
    _catalog.bounds(float32=(5.3, 5.9, 8.9), float64=(5.2, 5.9, 9.8)),
    _mish_oracle,
    _FLOORS,
)
