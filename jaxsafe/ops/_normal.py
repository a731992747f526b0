"""log_ndtr: the tails of the normal distribution with all their digits.

The idea: with y = |x| / sqrt(2) the tail of the normal distribution is
exp(-y**2) erfcx(y) / 2, where erfcx = exp(y**2) erfc(y) is a tame function. It is

  erfcx(y) = T(y) / (1 + 2 y),    1/sqrt(pi) - y erfcx(y) = R(y) / (1 + 2 y)**2

with T and R between 0.5 and 1.3 on the whole half line: Chebyshev series in
(y - 3.75) / (y + 3.75). R carries what is left when y erfcx(y) cancels against its
limit, so that the curvature of log_ndtr is -(2 / sqrt(pi)) R / T**2 for x < 0, with no
difference at all. The exponential gets the rounding error of its square back.

Source of the variable and of T: Shepherd and Laframboise, "Chebyshev Approximation of
(1 + 2x) exp(x**2) erfc x in 0 <= x < inf", Mathematics of Computation 36, 1981. The
coefficients were computed with 200 bits.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe.ops._entrywise import add_unary, chain, entrywise
from jaxsafe.ops._exact import LOG2, difference, short

_INF = float("inf")
_SQRT_HALF = 0.7071067811865476
_SQRT_PI = 1.772453850905516
_SQRT_TWO_OVER_PI = 0.7978845608028654
_LOG2 = LOG2[0]
_SCALED_TAIL = (
    1.1775789345674017,
    -0.004590054580646478,
    -0.08424913336651792,
    0.05920993999819189,
    -0.026658668435305753,
    0.009074997670705265,
    -0.002413163540417608,
    0.0004907758365258086,
    -6.916973302501207e-05,
    4.13902798607301e-06,
    7.74038306619849e-07,
    -2.1886401049234397e-07,
    1.076499946567091e-08,
    4.521959811218287e-09,
    -7.754400208831351e-10,
    -6.318088340886684e-11,
    2.86879501093067e-11,
    1.9455868545777347e-13,
    -9.65469674843344e-13,
    3.25254814814874e-14,
    3.3478119482868056e-14,
    -1.864562880419313e-15,
    -1.2507950530688648e-15,
    7.418235256624044e-17,
    5.068148904796111e-17,
    -2.2370566594359995e-18,
    -2.187342944303018e-18,
)
_SCALED_REST = (
    1.110301112173963,
    0.1690745789274217,
    -0.23903235362007455,
    0.11495799738187608,
    -0.029253358280215542,
    8.987938382040593e-05,
    0.0036723214424159802,
    -0.001913611700165597,
    0.0005861101485089254,
    -0.00011518777510756137,
    1.1057067464867251e-05,
    1.0929829190568763e-06,
    -5.245752240268165e-07,
    4.522654030840605e-08,
    1.1088889207122853e-08,
    -2.758064667959754e-09,
    -1.2166511168542065e-10,
    1.0846997756690068e-10,
    -2.6831416128016704e-12,
    -3.9770033435814396e-12,
    2.6810658923447673e-13,
    1.514170294375484e-13,
    -1.3903626931348466e-14,
    -6.2485804648999245e-15,
    5.948820406131784e-16,
    2.8085856775629026e-16,
    -2.1565232302824673e-17,
)


def log_ndtr(x: ArrayLike) -> jax.Array:
    """Logarithm of the standard normal distribution function.

    Value: log(P(N < x)); about -x**2 / 2 far to the left.
    Gradient: density / distribution function; about -x far to the left, as far as x
      itself goes.
    NaN in: NaN out.
    Error: float32 7.8 ulp, gradient 9.6, second derivative 14.7; bfloat16 and
      float16 0.51.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> jax.grad(log_ndtr)(jnp.float32(-1e5))
      Array(100000., dtype=float32)

    References:
      Shepherd and Laframboise, "Chebyshev Approximation of (1 + 2x) exp(x**2) erfc x in
      0 <= x < inf", Mathematics of Computation 36, 1981.
    """
    return entrywise("ops.log_ndtr", log_ndtr_core, x=x)


def _chebyshev(coefficients: tuple[float, ...], y: jax.Array) -> jax.Array:
    """The series in (y - 3.75) / (y + 3.75), by Clenshaw's recurrence."""
    t = 1 - 7.5 / (y + 3.75)
    count = 27 if jnp.finfo(y.dtype).bits > 32 else 16
    now, before = jnp.zeros_like(y), jnp.zeros_like(y)
    for c in reversed(coefficients[1:count]):
        now, before = 2 * t * now - before + c, now
    return t * now - before + coefficients[0]


def scaled_tail(y: jax.Array) -> jax.Array:
    """(1 + 2 y) erfcx(y) for y >= 0."""
    return _chebyshev(_SCALED_TAIL, y)


def _scaled_rest(y: jax.Array) -> jax.Array:
    """(1 + 2 y)**2 (1 / sqrt(pi) - y erfcx(y)) for y >= 0."""
    return _chebyshev(_SCALED_REST, y)


def half_bell(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(h, c) with exp(-x**2 / 2) = c h h, for a number that is about to be tiny.

    With x = head + rest the square of the short `head` is exact, and what it leaves out
    of x**2, rest (x + head), is small.
    """
    head = short(x)
    h = jnp.exp(-0.25 * head * head)
    return h, jnp.exp(-0.5 * (x - head) * (x + head))


def side(x: jax.Array) -> jax.Array:
    """|x|, but no more than where exp(-x**2 / 2) has long been 0."""
    size = jnp.abs(x)
    far = 16.0 if jnp.finfo(x.dtype).bits == 32 else 64.0
    return jnp.where(size > far, far, size)


def _upper(size: jax.Array) -> jax.Array:
    """P(N > size) for size >= 0."""
    y = _SQRT_HALF * size
    h, c = half_bell(size)
    return 0.25 * scaled_tail(y) / (0.5 + y) * c * h * h


def _log_ndtr(x: jax.Array) -> jax.Array:
    size = jnp.abs(x)
    y = _SQRT_HALF * size
    left = jnp.log(0.25 * scaled_tail(y) / (0.5 + y)) - 0.5 * x * x
    # log(1 - p) with what the difference rounds away: log1p is poor in float64.
    p = _upper(side(x))
    rest, lost = difference(jnp.ones_like(p), p)
    return jnp.where(x > 0, jnp.log(rest) + lost / rest, left)


def _far(dtype: Any) -> float:
    """Where 1 / x**2 no longer counts beside 1."""
    return float(2.0 ** (jnp.finfo(dtype).nmant // 2 + 2))


def _hazard(x: jax.Array) -> jax.Array:
    y = _SQRT_HALF * jnp.abs(x)
    # In the order that cannot overflow before the result does.
    left = (0.5 + y) * (2 * _SQRT_TWO_OVER_PI / scaled_tail(y))
    left = jnp.where(x < -_far(x.dtype), -x, left)
    size = side(x)
    h, c = half_bell(size)
    right = 0.5 * _SQRT_TWO_OVER_PI * c * h * h / (1 - _upper(size))
    return jnp.where(x > 0, right, left)


def _hazard_slope(x: jax.Array) -> jax.Array:
    y = _SQRT_HALF * jnp.abs(x)
    left = -2 / _SQRT_PI * _scaled_rest(y) / jnp.square(scaled_tail(y))
    size = side(x)
    h, c = half_bell(size)
    # hazard * (x + hazard), with x before the second half of the exponential.
    p = 1 - _upper(size)
    scaled = 0.5 * _SQRT_TWO_OVER_PI * c * h / p
    right = -scaled * (size + scaled * h) * h
    return jnp.where(x > 0, right, left)


# In the dtype of the argument, for other modules to build on.
log_ndtr_core = chain(_log_ndtr, _hazard, _hazard_slope)


def oracle_parts(mp: Any, x: Any) -> tuple[Any, Any]:
    """(density, distribution function), both with all digits in the left tail."""
    tail = mp.erfc(abs(x) / mp.sqrt(2)) / 2
    return mp.npdf(x), tail if x < 0 else 1 - tail


def _oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    if x < -1e9:
        # The next terms of the asymptotic series are below 120 bits.
        value = -x * x / 2 - mp.log(-x) - mp.log(2 * mp.pi) / 2 - x**-2
        return value, (-x - 1 / x,), -1 + x**-2
    if x > 1e3:
        return mp.mpf(0), (mp.mpf(0),), mp.mpf(0)
    density, p = oracle_parts(mp, x)
    slope = density / p
    value = mp.log(p) if x < 0 else mp.log1p(-mp.erfc(x / mp.sqrt(2)) / 2)
    return value, (slope,), -slope * (x + slope)


add_unary(
    "log_ndtr",
    log_ndtr,
    lambda x: jnp.log(0.5 * jax.lax.erfc(-_SQRT_HALF * x)),
    ((-_INF, _INF), (-_LOG2, _SQRT_TWO_OVER_PI), (0.0, 0.0)),
    _catalog.bounds(float32=(7.8, 9.6, 14.7), float64=(8, 7.5, 13.2)),
    _oracle,
)
