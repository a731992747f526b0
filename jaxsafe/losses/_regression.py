"""Losses of a difference: squared error, half of it, and log-cosh.

The squares are as simple as they look: their gradient is the difference itself, right
even where the square overflows. log(cosh(e)) is not: near 0 it is e**2 / 2, which
`logaddexp(e, -e) - log(2)` cancels to noise, often below 0. There cosh(e) - 1 is
written as a product, so nothing cancels.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe.losses._inputs import matching, where_included, wide_floating
from jaxsafe.ops._entrywise import chain
from jaxsafe.ops._tanh import log_cosh_core

_INF, _NAN = float("inf"), float("nan")


def squared_error(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Square of the difference.

    Value: (x - y)**2; infinite only where the true square overflows (a difference
      above 1.8e19 in float32); 0 where excluded.
    Gradient: 2 (x - y), finite also where the value is not; 0 where excluded.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 2.3 ulp, gradient 0.6; bfloat16 and float16 give a float32 loss
      within 2.3 ulp and gradients within 0.51 ulp.

    Args:
      predictions: floating array.
      targets: array of the shape of `predictions`, or one number; 0 by default.
      where: bool array, True = include; broadcasts to `predictions`.

    Returns:
      Array of the shape of `predictions`; float32 for half precision.

    Raises:
      TypeError: `predictions` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> squared_error(jnp.asarray([300.0]), jnp.asarray([1.0]))
      Array([89401.], dtype=float32)

    References:
      Bishop, "Pattern Recognition and Machine Learning", 1.5.5, 2006.
    """
    return _of_error("losses.squared_error", jnp.square, predictions, targets, where)


def l2_loss(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Half the square of the difference.

    Value: (x - y)**2 / 2; infinite only where the true one overflows (a difference
      above 2.6e19 in float32); 0 where excluded.
    Gradient: x - y, finite also where the value is not; 0 where excluded.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 2.3 ulp, gradient 0.6; bfloat16 and float16 give a float32 loss
      within 3 ulp and gradients within 0.51 ulp.

    Args:
      predictions: floating array.
      targets: array of the shape of `predictions`, or one number; 0 by default.
      where: bool array, True = include; broadcasts to `predictions`.

    Returns:
      Array of the shape of `predictions`; float32 for half precision.

    Raises:
      TypeError: `predictions` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> jax.value_and_grad(l2_loss)(jnp.float32(1e30))
      (Array(inf, dtype=float32), Array(1.e+30, dtype=float32))

    References:
      Bishop, "Pattern Recognition and Machine Learning", 1.5.5, 2006.
    """
    return _of_error("losses.l2_loss", _half_square, predictions, targets, where)


def log_cosh(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    *,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Logarithm of the hyperbolic cosine of the difference: a smooth Huber loss.

    Value: log(cosh(e)), e the difference; e**2 / 2 near 0, |e| - log(2) far away,
      never below 0; 0 where excluded.
    Gradient: tanh(e); 0 where excluded.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 12 ulp, gradient 5; bfloat16 and float16 give a float32 loss within
      12 ulp and gradients within 0.51 ulp.

    Args:
      predictions: floating array.
      targets: array of the shape of `predictions`, or one number; 0 by default.
      where: bool array, True = include; broadcasts to `predictions`.

    Returns:
      Array of the shape of `predictions`; float32 for half precision.

    Raises:
      TypeError: `predictions` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> log_cosh(jnp.asarray([0.0, 100.0]))
      Array([ 0.      , 99.306854], dtype=float32)

    References:
      Chen et al., "Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder", 2019.
    """
    return _of_error("losses.log_cosh", log_cosh_core, predictions, targets, where)


def _of_error(
    name: str, function: Any, predictions: Any, targets: Any, where: Any
) -> jax.Array:
    x = wide_floating(name, "predictions", predictions)
    y = matching(name, "targets", 0 if targets is None else targets, x)
    return where_included(_of_difference(function), where, x, y)


@functools.cache
def _of_difference(function: Any) -> Any:
    return lambda x, y: function(x - y)


# JAX's own slope of 0.5 * e * e is 0.5 * (e + e), which overflows.
_half_square = chain(lambda e: 0.5 * e * e, lambda e: e)


def _square_oracle(factor: float, _: Any, x: Any, y: Any) -> tuple[Any, ...]:
    e = x - y
    return factor * e * e, (2 * factor * e, -2 * factor * e)


def _log_cosh_oracle(mp: Any, x: Any, y: Any) -> tuple[Any, ...]:
    e = x - y
    size = abs(e)
    value = mp.log1p(mp.expm1(size) * -mp.expm1(-size) / 2)
    if size > 1:
        value = size - mp.log(2) + mp.log1p(mp.exp(-2 * size))
    return value, (mp.tanh(e), -mp.tanh(e))


_ANY = ((-_INF, _INF), (-_INF, _INF))
_NONE = Edge(args=(_NAN, 0.0), value=_NAN, gradient=(_NAN, _NAN))
for _name, _function, _factor in (
    ("squared_error", squared_error, 1.0),
    ("l2_loss", l2_loss, 0.5),
):
    _catalog.add(
        _catalog.Row(
            name=f"losses.{_name}",
            function=_function,
            naive=functools.partial(lambda x, y, k: k * (x - y) ** 2, k=_factor),
            kind="entrywise",
            domain=_ANY,
            edges=(
                _NONE,
                Edge(args=(2.0, 2.0), value=0.0, gradient=(0.0, 0.0)),
                Edge(
                    args=(3.0, 1.0),
                    value=4 * _factor,
                    gradient=(4 * _factor, -4 * _factor),
                ),
            ),
            ulp=_catalog.bounds(
                float32=(2.3, 0.6), float64=(2.3, 0.6), half=(2.3, 0.51)
            ),
            oracle=functools.partial(_square_oracle, _factor),
            result=_floats.wide,
        )
    )
_catalog.add(
    _catalog.Row(
        name="losses.log_cosh",
        function=log_cosh,
        naive=lambda x, y: jnp.log(jnp.cosh(x - y)),
        kind="entrywise",
        domain=_ANY,
        edges=(
            _NONE,
            Edge(args=(2.0, 2.0), value=0.0, gradient=(0.0, 0.0)),
            Edge(args=(_INF, 0.0), value=_INF, gradient=(1.0, -1.0)),
            Edge(args=(1.0, 0.0), value=0.4337808, gradient=(0.7615942, -0.7615942)),
        ),
        ulp=_catalog.bounds(float32=(12, 5), float64=(7.9, 7.8), half=(12, 0.51)),
        oracle=_log_cosh_oracle,
        result=_floats.wide,
    )
)
