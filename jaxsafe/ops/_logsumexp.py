"""logsumexp, plain and with weights of either sign.

The idea for weights: a weight is a shift, b exp(a) = exp(a + log(b)), so the positive
and the negative terms are two plain logsumexp, and the result is the logarithm of the
difference of two exponentials.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_floating
from jaxsafe.ops._exact import LOG2, total
from jaxsafe.ops._logaddexp import logsubexp_core
from jaxsafe.ops._reduction import Axes, Axis, axis_tuple, only, reduction
from jaxsafe.ops._softmax import logsumexp_core, powers

_INF, _NAN = float("inf"), float("nan")


def logsumexp(
    a: ArrayLike,
    axis: Axis = None,
    b: ArrayLike | None = None,
    keepdims: bool = False,
    return_sign: bool = False,
    where: ArrayLike | None = None,
) -> Any:
    """Logarithm of the sum of exponentials, which may have weights.

    Value: log(sum(b * exp(a))); -inf for a row with nothing left and for terms that
      cancel; NaN for a negative sum, unless its sign is asked for.
    Gradient: that of the value, softmax(a) without weights; 0 for an empty row; one-hot
      at +inf; to a weight at most the largest finite number.
    NaN in: NaN for the whole row; never from where `where` is False or the weight is 0.
    Error: float32 2.4 ulp, gradient 4.3; bfloat16 and float16 0.51; the value in ulp of
      max(|value|, |max(a)|). With weights 1.2 and 3.5, of the sum of what may cancel.

    Args:
      a: floating array.
      axis: axis or axes to sum over, all by default.
      b: weights, real numbers that broadcast with `a`; 1 by default.
      keepdims: keep reduced axes with length 1.
      return_sign: return the sign of the sum too, and the logarithm of its size.
      where: bool array, True = include; broadcasts to `a`.

    Returns:
      Array of the dtype of `a`; with `return_sign` a pair: the logarithm, and the sign
      as -1, 0 or 1.

    Raises:
      TypeError: `a` or `b` is not floating.
      ValueError: `a` has no such axis.

    Examples:
      >>> logsumexp(jnp.asarray([1000.0, 1000.0]))
      Array(1000.6932, dtype=float32)
      >>> b = jnp.asarray([1.0, -1.0])
      >>> logsumexp(jnp.asarray([1.0, 2.0]), b=b, return_sign=True)
      (Array(1.5413, dtype=float32), Array(-1., dtype=float32))

    References:
      Blanchard, Higham & Higham, IMA J. Numer. Anal. 41(4), 2021.
    """
    name = "ops.logsumexp"
    if b is not None:
        x, weight = check_floating(name, "a", a), check_floating(name, "b", b)
        mask = None if where is None else jnp.asarray(where)
        x, weight = jnp.broadcast_arrays(x, weight)
        axes = axis_tuple(name, axis, x.ndim)
        value, sign = _weighted(x, weight, mask, axes, keepdims)
    else:
        value = reduction(name, _masked, axis, where=where, keepdims=keepdims, a=a)
        sign = None
    if return_sign:
        return value, _one_for(value) if sign is None else sign
    return value if sign is None else _of_positive(value, sign)


@jax.jit
def _one_for(value: jax.Array) -> jax.Array:
    """Sign of a sum of positive terms."""
    one = (value > -_INF).astype(value.dtype)
    return jnp.where(jnp.isnan(value), value, one)


@jax.jit
def _of_positive(value: jax.Array, sign: jax.Array) -> jax.Array:
    # A square root and no literal: without a jit, `jax_debug_nans` stops at that.
    return jnp.where(sign < 0, jnp.sqrt(sign), value)


def _masked(x: jax.Array, axes: Axes, where: jax.Array | None) -> jax.Array:
    return logsumexp_core(only(x, where, -_INF), axes)


@functools.partial(jax.jit, static_argnums=(3, 4))
def _weighted(
    a: jax.Array, b: jax.Array, where: jax.Array | None, axes: Axes, keepdims: bool
) -> tuple[jax.Array, jax.Array]:
    dtype = jnp.result_type(a, b)
    wide = _floats.wide(dtype)
    a = only(a.astype(wide), where, -_INF)
    value, sign = _signed(a, only(b.astype(wide), where, 0), axes)
    if not keepdims:
        value, sign = jnp.squeeze(value, axes), jnp.squeeze(sign, axes)
    return value.astype(dtype), sign.astype(dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _signed(a: jax.Array, b: jax.Array, axes: Axes) -> tuple[jax.Array, jax.Array]:
    x = _exponents(a, b)
    # A NaN counts as positive, and so gets into the result.
    below = logsumexp_core(jnp.where(b < 0, x, -_INF), axes)
    above = logsumexp_core(jnp.where(b < 0, -_INF, x), axes)
    less = above < below
    larger, smaller = jnp.where(less, below, above), jnp.where(less, above, below)
    nothing = smaller == -_INF
    both = jnp.where(nothing, 0, larger), jnp.where(nothing, -1, smaller)
    value = jnp.where(nothing, larger, logsubexp_core(*both))
    sign = jnp.where(above == below, 0, jnp.where(less, -1, 1)).astype(a.dtype)
    return value, jnp.where(jnp.isnan(value), value, sign)


@_signed.defjvp
def _signed_jvp(axes: Axes, primals: Any, tangents: Any) -> Any:
    (a, b), (da, db) = primals, tangents
    value, sign = _signed(a, b, axes)
    share = jnp.sign(b) * jnp.exp(_less(_exponents(a, b), value))
    to_b = jnp.exp(_less(a, value))
    to_b = jnp.where(to_b == _INF, _floats.largest(to_b.dtype), to_b)
    change = sign * total(share * da + to_b * db, axes)
    return (value, sign), (change, jnp.zeros_like(sign))


def _exponents(a: jax.Array, b: jax.Array) -> jax.Array:
    """The x of which a term is plus or minus the exponential; -inf for no term."""
    out = b == 0
    x = jnp.where(out, 0, a) + jnp.log(jnp.abs(jnp.where(out, 1, b)))
    return jnp.where(out, -_INF, x)


def _less(x: jax.Array, value: jax.Array) -> jax.Array:
    return jnp.where(x == -_INF, -_INF, jnp.where(x == value, 0, x - value))


def _oracle(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    weights, whole = powers(mp, x)
    return max(x) + mp.log(whole), ([w / whole for w in weights],)


def _size(mp: Any, x: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    value, gradient = _oracle(mp, x)
    return max(abs(value), abs(max(x))), gradient


def _terms(mp: Any, a: list[Any], b: list[Any]) -> tuple[list[Any], list[Any], Any]:
    """(exponentials, terms, their sum), all over the exponential of the largest a."""
    weights, _ = powers(mp, a)
    terms = [w * c for w, c in zip(weights, b, strict=True)]
    return weights, terms, mp.fsum(terms)


def _weighted_oracle(mp: Any, a: list[Any], b: list[Any]) -> Any:
    weights, terms, whole = _terms(mp, a, b)
    slopes = [t / whole for t in terms], [w / whole for w in weights]
    return max(a) + mp.log(abs(whole)), slopes


def _weighted_size(mp: Any, a: list[Any], b: list[Any]) -> Any:
    """What may cancel, and the rounding of the exponents, which moves every term."""
    _, terms, whole = _terms(mp, a, b)
    value, slopes = _weighted_oracle(mp, a, b)
    largest = max(abs(x + mp.log(abs(c))) for x, c in zip(a, b, strict=True))
    condition = mp.fsum(abs(t) for t in terms) / abs(whole)
    size = max(abs(value), largest, mp.mpf(1)) * condition
    return size, tuple([abs(s) * size for s in slope] for slope in slopes)


def _weighted_sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    for n in (3, 6):
        a = rng.normal(size=(4, n)) * np.asarray([[30], [5], [0.1], [1]])
        b = rng.uniform(0.1, 2, (4, n))
        b[::2, 1:] *= -0.1
        yield a, b


def _size_of_sum(a: ArrayLike, b: ArrayLike) -> Any:
    return logsumexp(a, -1, b, return_sign=True)[0]


_catalog.add(
    _catalog.Row(
        name="ops.logsumexp",
        function=functools.partial(logsumexp, axis=-1),
        naive=lambda x: jnp.log(jnp.sum(jnp.exp(x), axis=-1)),
        kind="reduction",
        domain=((-_INF, _INF),),
        edges=(
            Edge(args=((_INF, 1.0),), value=_INF, gradient=((1.0, 0.0),)),
            Edge(args=((-_INF, -_INF),), value=-_INF, gradient=((0.0, 0.0),)),
            Edge(args=((0.0, 0.0),), value=LOG2[0], gradient=((0.5, 0.5),)),
            Edge(args=((0.0, _NAN),), value=_NAN, gradient=((_NAN, _NAN),)),
        ),
        ulp=_catalog.bounds(float32=(2.4, 4.3), float64=(2.4, 4.3)),
        oracle=_oracle,
        size=_size,
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.logsumexp[b]",
        function=_size_of_sum,
        naive=lambda a, b: jnp.log(jnp.abs(jnp.sum(b * jnp.exp(a), axis=-1))),
        kind="reduction",
        domain=((-_INF, _INF), (-_INF, _INF)),
        edges=(
            Edge(
                args=((0.0, _NAN), (1.0, 0.0)),
                value=0.0,
                gradient=((1.0, 0.0), (1.0, _NAN)),
            ),
            Edge(
                args=((0.0, 0.0), (1.0, 0.0)),
                value=0.0,
                gradient=((1.0, 0.0), (1.0, 1.0)),
            ),
            Edge(
                args=((-_INF, 0.0), (1.0, 2.0)),
                value=LOG2[0],
                gradient=((0.0, 1.0), (0.0, 0.5)),
            ),
        ),
        ulp=_catalog.bounds(float32=(1.2, 3.5), float64=(1.2, 3.5)),
        oracle=_weighted_oracle,
        size=_weighted_size,
        sample=_weighted_sample,
    )
)
