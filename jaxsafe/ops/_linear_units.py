"""elu, selu, celu: a straight line that bends into an exponential.

The idea: the slope of expm1 is exp, not expm1 + 1, which is 0 from x = -17.3 on in
float32 and from x = -6.2 on in bfloat16. A factor is applied before exp can be flushed
to 0, so that slopes are 0 only where their true value is out of range.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe.ops._entrywise import add_unary, chain, entrywise
from jaxsafe.ops._exp import lifted_exp

_INF = float("inf")
# Klambauer et al.: the fixed point with mean 0 and variance 1.
_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
_SELU_FLOOR = _SELU_SCALE * _SELU_ALPHA


def elu(x: ArrayLike, alpha: ArrayLike = 1.0) -> jax.Array:
    """Exponential linear unit.

    Value: x for x > 0, else alpha (exp(x) - 1).
    Gradient: 1 for x > 0, else alpha exp(x); as small as it truly is, never cancelled
      to 0. In alpha: exp(x) - 1 for x <= 0, else 0.
    NaN in: NaN out.
    Error: float32 6.1 ulp, gradient 2, second derivative 2; bfloat16 and float16 0.51.

    Args:
      x: floating array.
      alpha: minus the limit at -inf; broadcasts with `x`.

    Returns:
      Array of the common shape and dtype of `x` and `alpha`.

    Raises:
      TypeError: `x` or `alpha` is not floating.

    Examples:
      >>> jax.grad(elu)(jnp.float32(-20.0))
      Array(2.0611537e-09, dtype=float32)

    References:
      Clevert et al., "Fast and Accurate Deep Network Learning by Exponential Linear
      Units", 2016.
    """
    return entrywise("ops.elu", _elu, x=x, alpha=alpha)


def selu(x: ArrayLike) -> jax.Array:
    """Scaled exponential linear unit.

    Value: scale elu(x, alpha) with scale = 1.0507 and alpha = 1.6733.
    Gradient: scale for x > 0, else scale alpha exp(x), never cancelled to 0.
    NaN in: NaN out.
    Error: float32 6.1 ulp, gradient 2.5, second derivative 2.5; bfloat16 and
      float16 0.51.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> selu(jnp.asarray([-100.0, 1.0]))
      Array([-1.7580993,  1.050701 ], dtype=float32)

    References:
      Klambauer et al., "Self-Normalizing Neural Networks", 2017.
    """
    return entrywise("ops.selu", _selu, x=x)


def celu(x: ArrayLike, alpha: ArrayLike = 1.0) -> jax.Array:
    """Continuously differentiable exponential linear unit.

    Value: x for x > 0, else alpha (exp(x / alpha) - 1).
    Gradient: 1 for x > 0, else exp(x / alpha), never cancelled to 0. In alpha, with
      z = x / alpha: expm1(z) - z exp(z) for x <= 0, a series near 0, else 0.
    NaN in: NaN out.
    Error: float32 6.7 ulp, gradient 1.2, second derivative 2, at another alpha 5.5 and
      1.9; bfloat16 and float16 0.51; on a GPU gradient 1.7, at another alpha 1.5.

    Args:
      x: floating array.
      alpha: minus the limit at -inf, positive; broadcasts with `x`.

    Returns:
      Array of the common shape and dtype of `x` and `alpha`.

    Raises:
      TypeError: `x` or `alpha` is not floating.

    Examples:
      >>> jax.grad(celu)(jnp.float32(-20.0))
      Array(2.0611537e-09, dtype=float32)

    References:
      Barron, "Continuously Differentiable Exponential Linear Units", 2017.
    """
    return entrywise("ops.celu", _celu, x=x, alpha=alpha)


def _negative(x: jax.Array) -> jax.Array:
    # min(x, 0), which keeps a NaN and, at 0, the slope from below.
    return jnp.where(x > 0, 0, x)


@jax.custom_jvp
def _times_exp(factor: jax.Array, x: jax.Array) -> jax.Array:
    """Factor * exp(x) for x <= 0, flushed only if the product is."""
    scale, power = lifted_exp(x)
    return factor * scale * power


@_times_exp.defjvp
def _times_exp_jvp(primals: Any, tangents: Any) -> Any:
    (factor, x), (dfactor, dx) = primals, tangents
    value = _times_exp(factor, x)
    return value, value * dx + jnp.exp(x) * dfactor


@jax.custom_jvp
def _times_expm1(factor: jax.Array, x: jax.Array) -> jax.Array:
    return factor * jnp.expm1(x)


@_times_expm1.defjvp
def _times_expm1_jvp(primals: Any, tangents: Any) -> Any:
    (factor, x), (dfactor, dx) = primals, tangents
    tangent = _times_exp(factor, x) * dx + jnp.expm1(x) * dfactor
    return _times_expm1(factor, x), tangent


def _elu(x: jax.Array, alpha: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, _times_expm1(alpha, _negative(x)))


def _selu(x: jax.Array) -> jax.Array:
    bent = _times_expm1(jnp.full_like(x, _SELU_FLOOR), _negative(x))
    return jnp.where(x > 0, _SELU_SCALE * x, bent)


@jax.custom_jvp
def _celu(x: jax.Array, alpha: jax.Array) -> jax.Array:
    return jnp.where(x > 0, x, alpha * jnp.expm1(_negative(x) / alpha))


@_celu.defjvp
def _celu_jvp(primals: Any, tangents: Any) -> Any:
    (x, alpha), (dx, dalpha) = primals, tangents
    z = _per_alpha(x, alpha)
    return _celu(x, alpha), _celu_slope(x, alpha) * dx + _excess(z) * dalpha


def _per_alpha(x: jax.Array, alpha: jax.Array) -> jax.Array:
    """min(x, 0) / alpha, kept finite: no product with -inf may meet an exp of 0."""
    z = _negative(x) / alpha
    far = -2.0 * int(jnp.finfo(z.dtype).maxexp)
    return jnp.where(z < far, far, z)


@jax.custom_jvp
def _celu_slope(x: jax.Array, alpha: jax.Array) -> jax.Array:
    return jnp.where(x > 0, 1, jnp.exp(_per_alpha(x, alpha)))


@_celu_slope.defjvp
def _celu_slope_jvp(primals: Any, tangents: Any) -> Any:
    (x, alpha), (dx, dalpha) = primals, tangents
    z = _per_alpha(x, alpha)
    curvature = jnp.where(x > 0, 0, _times_exp(1 / alpha, z))
    return _celu_slope(x, alpha), curvature * (dx - z * dalpha)


def _excess_value(z: jax.Array) -> jax.Array:
    """expm1(z) - z exp(z) for z <= 0; the difference cancels near 0, its series not."""
    near = jnp.where(z < -0.5, 0, z)
    total = jnp.zeros_like(z)
    for k in range(18, 1, -1):
        # (1 - k) / k! of the series, as ratios of neighbours.
        total = (total * near / (k + 1)) * (k / (k - 1)) + 1
    return jnp.where(
        z < -0.5, jnp.expm1(z) - z * jnp.exp(z), -0.5 * near * near * total
    )


_excess = chain(_excess_value, lambda z: -z * jnp.exp(z))


def _elu_oracle(mp: Any, x: Any, alpha: Any = 1) -> tuple[Any, ...]:
    if x > 0:
        return x, (mp.mpf(1),), mp.mpf(0)
    slope = alpha * mp.exp(x)
    return alpha * mp.expm1(x), (slope,), slope


def _selu_oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    scale = mp.mpf(_SELU_SCALE)
    value, (slope,), second = _elu_oracle(mp, x, mp.mpf(_SELU_ALPHA))
    return scale * value, (scale * slope,), scale * second


def _celu_oracle(mp: Any, x: Any, alpha: Any = 1) -> tuple[Any, ...]:
    value, slopes, second = _elu_oracle(mp, x / alpha)
    return alpha * value, slopes, second / alpha


add_unary(
    "elu",
    elu,
    lambda x: jnp.where(x > 0, x, jnp.exp(x) - 1),
    ((-1.0, 0.0), (0.0, 1.0), (_INF, 1.0)),
    _catalog.bounds(float32=(6.1, 2, 2), float64=(4.6, 1.8, 1.8)),
    _elu_oracle,
)
add_unary(
    "elu[alpha]",
    lambda x: elu(x, 0.5),
    lambda x: jnp.where(x > 0, x, 0.5 * (jnp.exp(x) - 1)),
    ((-0.5, 0.0), (0.0, 0.5), (_INF, 1.0)),
    _catalog.bounds(float32=(6.1, 2, 2), float64=(4.6, 1.8, 1.8)),
    lambda mp, x: _elu_oracle(mp, x, mp.mpf(0.5)),
)
add_unary(
    "selu",
    selu,
    lambda x: _SELU_SCALE * jnp.where(x > 0, x, _SELU_ALPHA * (jnp.exp(x) - 1)),
    ((-_SELU_FLOOR, 0.0), (0.0, _SELU_FLOOR), (_INF, _SELU_SCALE)),
    _catalog.bounds(float32=(6.1, 2.5, 2.5), float64=(5.7, 2, 2)),
    _selu_oracle,
)
add_unary(
    "celu",
    celu,
    lambda x: jnp.where(x > 0, x, jnp.exp(x) - 1),
    ((-1.0, 0.0), (0.0, 1.0), (_INF, 1.0)),
    _catalog.bounds(float32=(6.7, 1.2, 2), float64=(5.1, 1.8, 1.8), gpu=(6.7, 1.7, 2)),
    _celu_oracle,
)
add_unary(
    "celu[alpha]",
    lambda x: celu(x, 0.5),
    lambda x: jnp.where(x > 0, x, 0.5 * (jnp.exp(2 * x) - 1)),
    ((-0.5, 0.0), (0.0, 1.0), (_INF, 1.0)),
    _catalog.bounds(
        float32=(5.5, 1.2, 1.9), float64=(4.7, 1.8, 1.8), gpu=(5.5, 1.5, 1.9)
    ),
    lambda mp, x: _celu_oracle(mp, x, mp.mpf(0.5)),
)
