"""Negative log-likelihoods of a normal, a Poisson and a Student-t distribution.

The idea: a spread is passed as its logarithm, so that no step of an optimizer can make
it 0 or negative; dividing by it multiplies with exp(-s), taken in two halves of the
exponent so that neither overflows before its product does.
"""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_positive
from jaxsafe.losses._inputs import matching, where_included, wide_floating
from jaxsafe.ops._entrywise import chain

_NAN = float("nan")
_LOG_2PI = 1.8378770664093453


def gaussian_nll_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    log_variance: ArrayLike,
    *,
    full: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Minus the log-likelihood of a normal distribution.

    torch passes the variance and clamps it; its logarithm needs no clamp.

    Value: (s + (x - y)**2 exp(-s)) / 2 with s the log-variance; with `full`
      log(2 pi) / 2 more; 0 where excluded.
    Gradient: (x - y) exp(-s) to the mean, (1 - (x - y)**2 exp(-s)) / 2 to s, finite
      where these are; 0 where excluded.
    NaN in: NaN out; never from where `where` is False.
    Error: for |s| <= 20, float32 9 ulp of the larger term, gradient 8.1; half precision
      gives a float32 loss within 9 ulp and gradients within 0.51 ulp.

    Args:
      predictions: the mean, floating array.
      targets: array of the shape of `predictions`, or one number.
      log_variance: array of the shape of `predictions`, or one number.
      full: add the constant term.
      where: bool array, True = include; broadcasts to `predictions`.

    Returns:
      Array of the shape of `predictions`; float32 for half precision.

    Raises:
      TypeError: `predictions` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> gaussian_nll_loss(jnp.asarray([1.0, 1.0]), 1.0, jnp.asarray([0.0, -200.0]))
      Array([   0., -100.], dtype=float32)

    References:
      Nix & Weigend, "Estimating the mean and variance of the target probability
      distribution", ICNN 1994.
    """
    name = "losses.gaussian_nll_loss"
    x = wide_floating(name, "predictions", predictions)
    y = matching(name, "targets", targets, x)
    s = matching(name, "log_variance", log_variance, x)
    return where_included(_gaussian(full), where, x, y, s)


@functools.cache
def _gaussian(full: bool) -> Callable[..., jax.Array]:
    constant = 0.5 * _LOG_2PI if full else 0.0

    def loss(x: jax.Array, y: jax.Array, s: jax.Array) -> jax.Array:
        return 0.5 * s + _half_square(times_exp(x - y, -0.5 * s)) + constant

    return loss


def poisson_nll_loss(
    log_rate: ArrayLike,
    targets: ArrayLike,
    *,
    full: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Minus the log-likelihood of a Poisson distribution.

    Value: exp(x) - y x with x the logarithm of the rate; with `full` log(y!) more; 0
      where excluded. A rate of 0 and a count of 0 give 0.
    Gradient: exp(x) - y to the logarithm of the rate, -x to the count; 0 where
      excluded.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 1.9 ulp of the larger term, gradient 1.6 of it; half precision
      gives a float32 loss within 1.9 ulp and gradients within 0.51 ulp.

    Args:
      log_rate: floating array.
      targets: counts; array of the shape of `log_rate`, or one number.
      full: add the term that depends on the counts alone.
      where: bool array, True = include; broadcasts to `log_rate`.

    Returns:
      Array of the shape of `log_rate`; float32 for half precision.

    Raises:
      TypeError: `log_rate` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> poisson_nll_loss(jnp.asarray([-jnp.inf, 0.0]), jnp.asarray([0, 3]))
      Array([0., 1.], dtype=float32)

    References:
      McCullagh & Nelder, "Generalized Linear Models", 6, 1989.
    """
    name = "losses.poisson_nll_loss"
    x = wide_floating(name, "log_rate", log_rate)
    y = matching(name, "targets", targets, x)
    return where_included(_poisson(full), where, x, y)


@functools.cache
def _poisson(full: bool) -> Callable[..., jax.Array]:
    def loss(x: jax.Array, y: jax.Array) -> jax.Array:
        # 0 * -inf, the count times the logarithm of the rate, is 0.
        certain = (y == 0) & (x < 0) & jnp.isinf(x)
        safe = jnp.where(certain, 0, x)
        value = jnp.where(certain, 0, jnp.exp(safe) - y * safe)
        return value + lax.lgamma(y + 1) if full else value

    return loss


def student_t_nll_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    log_scale: ArrayLike,
    *,
    df: float = 4.0,
    full: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Minus the log-likelihood of a Student-t distribution: outliers pull little.

    Value: s + (df + 1) / 2 log1p(z**2), z = (x - y) exp(-s) / sqrt(df), s log_scale;
      no square overflows; with `full` the constant term more; 0 where excluded.
    Gradient: (df + 1) z**2 / (1 + z**2) / (x - y) to the location, at most
      (df + 1) / (2 sqrt(df) exp(s)); 1 - (df + 1) z**2 / (1 + z**2) to s.
    NaN in: NaN out; never from where `where` is False.
    Error: for |s| <= 20, float32 6.9 ulp of the larger term, gradient 7.2; half
      precision gives a float32 loss within 6.9 ulp and gradients within 0.51 ulp; on a
      GPU gradient 8.8.

    Args:
      predictions: the location, floating array.
      targets: array of the shape of `predictions`, or one number.
      log_scale: array of the shape of `predictions`, or one number.
      df: degrees of freedom, above 0; a large number is nearly a normal distribution.
      full: add the constant term.
      where: bool array, True = include; broadcasts to `predictions`.

    Returns:
      Array of the shape of `predictions`; float32 for half precision.

    Raises:
      TypeError: `predictions` is not floating.
      ValueError: the batch is empty, the shapes differ, or `df` is not positive.

    Examples:
      >>> jax.grad(student_t_nll_loss)(jnp.float32(1e30), 0.0, 0.0)
      Array(5.e-30, dtype=float32)

    References:
      Lange, Little & Taylor, "Robust statistical modeling using the t distribution",
      JASA 84, 1989.
    """
    name = "losses.student_t_nll_loss"
    x = wide_floating(name, "predictions", predictions)
    y = matching(name, "targets", targets, x)
    s = matching(name, "log_scale", log_scale, x)
    check_positive(name, "df", df)
    return where_included(_student(float(df), full), where, x, y, s)


@functools.cache
def _student(df: float, full: bool) -> Callable[..., jax.Array]:
    constant = _student_constant(df) if full else 0.0
    # In the exponent the rounding of s + log(df) / 2 would be magnified.
    inverse = df**-0.5

    def loss(x: jax.Array, y: jax.Array, s: jax.Array) -> jax.Array:
        return s + 0.5 * (df + 1) * _log1p_square(inverse * (x - y), s) + constant

    return loss


def _student_constant(df: float) -> float:
    return (
        math.lgamma(df / 2) - math.lgamma((df + 1) / 2) + 0.5 * math.log(df * math.pi)
    )


_half_square = chain(lambda z: 0.5 * z * z, lambda z: z)


@jax.custom_jvp
def times_exp(x: jax.Array, s: jax.Array) -> jax.Array:
    """X exp(s), which is 0 for x = 0 and overflows only if the product does."""
    half = _half_power(s)
    return (x * half) * half


@times_exp.defjvp
def _times_exp_jvp(primals: Any, tangents: Any) -> Any:
    (x, s), (dx, ds) = primals, tangents
    half = _half_power(s)
    z = times_exp(x, s)
    return z, (dx * half) * half + z * ds


def _half_power(s: jax.Array) -> jax.Array:
    """exp(s / 2), kept finite: 0 times it must be 0."""
    top = math.log(_floats.largest(s.dtype)) - 1
    return jnp.exp(jnp.where(0.5 * s > top, top, 0.5 * s))


@jax.custom_jvp
def _log1p_square(e: jax.Array, s: jax.Array) -> jax.Array:
    """log(1 + (e exp(-s))**2)."""
    near, z, w, far_e, far_s = _split(e, s)
    size = jnp.abs(jnp.where(near, 1, w))
    # Where the quotient left the range its logarithm is a difference of logarithms.
    lost = size < 2.0**-100
    log_z = jnp.where(
        lost, jnp.log(jnp.abs(far_e)) - far_s, -jnp.log(jnp.where(lost, 1, size))
    )
    far = 2 * log_z + jnp.log1p(w * w)
    return jnp.where(near, jnp.log1p(z * z), far)


@_log1p_square.defjvp
def _log1p_square_jvp(primals: Any, tangents: Any) -> Any:
    (e, s), (de, ds) = primals, tangents
    near, z, w, far_e, _ = _split(e, s)
    near_s = jnp.where(near, s, 0)
    slope = jnp.where(
        near, times_exp(z, -near_s) / (1 + z * z), (1 / far_e) / (1 + w * w)
    )
    share = jnp.where(near, z * z / (1 + z * z), 1 / (1 + w * w))
    return _log1p_square(e, s), 2 * slope * de - 2 * share * ds


def _split(e: jax.Array, s: jax.Array) -> tuple[jax.Array, ...]:
    """(|z| <= 1, z where so, 1 / z elsewhere, e and s elsewhere), z = e exp(-s)."""
    near = jnp.abs(times_exp(e, -s)) <= 1
    far_e, far_s = jnp.where(near, 1, e), jnp.where(near, 0, s)
    z = times_exp(jnp.where(near, e, 0), jnp.where(near, -s, 0))
    w = jnp.where(near, 0, times_exp(1 / far_e, far_s))
    return near, z, w, far_e, far_s


def _gaussian_oracle(mp: Any, x: Any, y: Any, s: Any) -> tuple[Any, ...]:
    e, inverse = x - y, mp.exp(-s)
    slope = e * inverse
    return (s + e * slope) / 2, (slope, -slope, (1 - e * slope) / 2)


def _gaussian_size(mp: Any, x: Any, y: Any, s: Any) -> tuple[Any, ...]:
    """The larger of the terms, which may cancel."""
    square = (x - y) ** 2 * mp.exp(-s)
    slope = abs(x - y) * mp.exp(-s)
    return max(abs(s), square) / 2, (slope, slope, max(1, square) / 2)


def _poisson_oracle(mp: Any, x: Any, y: Any) -> tuple[Any, ...]:
    return mp.exp(x) - y * x, (mp.exp(x) - y, -x)


def _poisson_size(mp: Any, x: Any, y: Any) -> tuple[Any, ...]:
    rate = mp.exp(x)
    return max(rate, abs(y * x)), (max(rate, y), abs(x))


def _student_oracle(mp: Any, x: Any, y: Any, s: Any) -> tuple[Any, ...]:
    e, square = x - y, (x - y) ** 2 * mp.exp(-2 * s) / 4
    share = 5 * square / (1 + square)
    slope = share / e if e else mp.mpf(0)
    return s + 2.5 * mp.log1p(square), (slope, -slope, 1 - share)


def _student_size(mp: Any, x: Any, y: Any, s: Any) -> tuple[Any, ...]:
    value, (slope, _, to_scale) = _student_oracle(mp, x, y, s)
    terms = max(abs(s), value - s)
    return terms, (abs(slope), abs(slope), max(1, 1 - to_scale))


def _spread_sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    """Residuals of every size; log-spreads within +-20; tame ones last."""
    count = 300
    x = rng.normal(size=count) * 10.0 ** rng.uniform(-4, 4, count)
    s = rng.uniform(-20, 20, count)
    x[-20:], s[-20:] = rng.normal(size=20), rng.normal(size=20)
    yield x, rng.normal(size=count), s


def _poisson_sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    x = rng.uniform(-20, 20, 300)
    x[-20:] = rng.normal(size=20)
    yield x, rng.poisson(3, 300) + 1.0


_ANY = ((-float("inf"), float("inf")),)


def _row(name: str, **promises: Any) -> None:
    _catalog.add(
        _catalog.Row(
            name=f"losses.{name}",
            kind="entrywise",
            result=_floats.wide,
            **promises,
        )
    )


_row(
    "gaussian_nll_loss",
    function=gaussian_nll_loss,
    naive=lambda x, y, s: 0.5 * (s + (x - y) ** 2 / jnp.exp(s)),
    domain=_ANY * 3,
    edges=(
        Edge(args=(1.0, 1.0, -400.0), value=-200.0, gradient=(0.0, 0.0, 0.5)),
        Edge(args=(3.0, 1.0, 0.0), value=2.0, gradient=(2.0, -2.0, -1.5)),
        Edge(args=(_NAN, 0.0, 0.0), value=_NAN, gradient=(_NAN, _NAN, _NAN)),
    ),
    ulp=_catalog.bounds((9, 8.1), (10.5, 10.5), half=(9, 0.51)),
    oracle=_gaussian_oracle,
    size=_gaussian_size,
    sample=_spread_sample,
)
_row(
    "poisson_nll_loss",
    function=poisson_nll_loss,
    naive=lambda x, y: jnp.exp(x) - y * x,
    domain=_ANY * 2,
    edges=(
        Edge(args=(-float("inf"), 0.0), value=0.0, gradient=(0.0, 0.0)),
        Edge(args=(0.0, 1.0), value=1.0, gradient=(0.0, 0.0)),
        Edge(args=(_NAN, 0.0), value=_NAN, gradient=(_NAN, _NAN)),
    ),
    ulp=_catalog.bounds(float32=(1.9, 1.6), float64=(2.2, 1.7), half=(1.9, 0.51)),
    oracle=_poisson_oracle,
    size=_poisson_size,
    sample=_poisson_sample,
)
_row(
    "student_t_nll_loss",
    function=functools.partial(student_t_nll_loss, df=4.0),
    naive=lambda x, y, s: s + 2.5 * jnp.log(1 + ((x - y) / jnp.exp(s)) ** 2 / 4),
    domain=_ANY * 3,
    edges=(
        Edge(args=(1.0, 1.0, -20.0), value=-20.0, gradient=(0.0, 0.0, 1.0)),
        Edge(args=(_NAN, 0.0, 0.0), value=_NAN, gradient=(_NAN, _NAN, _NAN)),
    ),
    ulp=_catalog.bounds((6.9, 7.2), (9.5, 7.7), half=(6.9, 0.51), gpu=(6.9, 8.8)),
    oracle=_student_oracle,
    size=_student_size,
    sample=_spread_sample,
)
