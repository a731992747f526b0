"""sigmoid, softplus and log_sigmoid: slopes that do not cancel.

With t = exp(-|x|), which cannot overflow, everything is a quotient or a sum of positive
numbers. The usual slope s (1 - s) is 0 from x = 16.6 on in float32 and from 5.6 on in
bfloat16: there 1 - s has no digits left.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog
from jaxsafe.ops._entrywise import add_unary, chain, entrywise
from jaxsafe.ops._exact import LOG2

_INF = float("inf")
_LOG2 = LOG2[0]


def sigmoid(x: ArrayLike) -> jax.Array:
    """Logistic function.

    Value: 1 / (1 + exp(-x)).
    Gradient: t / (1 + t)**2 with t = exp(-|x|); as small as it truly is, never
      cancelled to 0.
    NaN in: NaN out.
    Error: float32 2.5 ulp, gradient 4.8, second derivative 6.8; bfloat16 and
      float16 0.51.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> jax.grad(sigmoid)(jnp.float32(20.0))
      Array(2.0611537e-09, dtype=float32)

    References:
      Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    return entrywise("ops.sigmoid", sigmoid_core, x=x)


def softplus(x: ArrayLike) -> jax.Array:
    """Smooth positive part.

    Value: log(1 + exp(x)).
    Gradient: sigmoid(x).
    NaN in: NaN out.
    Error: float32 3.5 ulp, gradient 2.7, second derivative 4.5; bfloat16 and
      float16 0.51.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> softplus(jnp.asarray([0.0, 100.0]))
      Array([  0.6931472, 100.       ], dtype=float32)

    References:
      Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    return entrywise("ops.softplus", softplus_core, x=x)


def log_sigmoid(x: ArrayLike) -> jax.Array:
    """Logarithm of the logistic function.

    Value: -log(1 + exp(-x)).
    Gradient: sigmoid(-x).
    NaN in: NaN out.
    Error: float32 3.2 ulp, gradient 2.9, second derivative 4.7; bfloat16 and
      float16 0.51.

    Args:
      x: floating array.

    Returns:
      Array of the shape and dtype of `x`.

    Raises:
      TypeError: `x` is not floating.

    Examples:
      >>> log_sigmoid(jnp.asarray([-1000.0, 20.0]))
      Array([-1.0000000e+03, -2.0611537e-09], dtype=float32)

    References:
      Mächler, "Accurately computing log(1 - exp(-|a|))", 2012.
    """
    return entrywise("ops.log_sigmoid", log_sigmoid_core, x=x)


def _decay(x: jax.Array) -> jax.Array:
    return jnp.exp(-jnp.abs(x))


def _sigmoid(x: jax.Array) -> jax.Array:
    t = _decay(x)
    return jnp.where(x >= 0, 1, t) / (1 + t)


def _sigmoid_below(x: jax.Array) -> jax.Array:
    t = _decay(x)
    return jnp.where(x >= 0, t, 1) / (1 + t)


def _bell(x: jax.Array) -> jax.Array:
    t = _decay(x)
    return t / jnp.square(1 + t)


def _bell_slope(x: jax.Array) -> jax.Array:
    t = _decay(x)
    return jnp.sign(x) * t * jnp.expm1(-jnp.abs(x)) / (1 + t) ** 3


def _softplus(x: jax.Array) -> jax.Array:
    # max(x, 0), which keeps a NaN.
    return jnp.where(x < 0, 0, x) + jnp.log1p(_decay(x))


# In the dtype of the argument, for other modules to build on.
bell_core = chain(_bell, _bell_slope)
sigmoid_core = chain(_sigmoid, _bell, _bell_slope)
# sigmoid(-x); beside that of x it costs no exponential of its own.
sigmoid_below = chain(_sigmoid_below, lambda x: -_bell(x), lambda x: -_bell_slope(x))
softplus_core = chain(_softplus, _sigmoid, _bell, _bell_slope)


def log_sigmoid_core(x: jax.Array) -> jax.Array:
    """`log_sigmoid` in the dtype of the argument."""
    return -softplus_core(-x)


def _oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    t = mp.exp(-abs(x))
    bell = t / (1 + t) ** 2
    return (
        (1 if x >= 0 else t) / (1 + t),
        (bell,),
        mp.sign(x) * bell * mp.expm1(-abs(x)) / (1 + t),
    )


def _softplus_oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    slope, (bell,), _ = _oracle(mp, x)
    return max(x, 0) + mp.log1p(mp.exp(-abs(x))), (slope,), bell


def _log_sigmoid_oracle(mp: Any, x: Any) -> tuple[Any, ...]:
    value, (slope,), bell = _softplus_oracle(mp, -x)
    return -value, (slope,), -bell


add_unary(
    "sigmoid",
    sigmoid,
    lambda x: 1 / (1 + jnp.exp(-x)),
    ((0.0, 0.0), (0.5, 0.25), (1.0, 0.0)),
    _catalog.bounds(float32=(2.5, 4.8, 6.8), float64=(2.7, 4.2, 7.1)),
    _oracle,
)
add_unary(
    "softplus",
    softplus,
    lambda x: jnp.log(1 + jnp.exp(x)),
    ((0.0, 0.0), (_LOG2, 0.5), (_INF, 1.0)),
    _catalog.bounds(float32=(3.5, 2.7, 4.5), float64=(2.7, 2.7, 4.8)),
    _softplus_oracle,
)
add_unary(
    "log_sigmoid",
    log_sigmoid,
    lambda x: jnp.log(1 / (1 + jnp.exp(-x))),
    ((-_INF, 1.0), (-_LOG2, 0.5), (0.0, 0.0)),
    _catalog.bounds(float32=(3.2, 2.9, 4.7), float64=(2.9, 2.9, 4.6)),
    _log_sigmoid_oracle,
)
