"""Sparsemax losses: like the logistic loss, but exactly 0 once the margin is met.

The idea: with p the projection of the scores onto the probabilities, the loss is half
of (the sum of the squares of the other p, plus their sum squared) plus what the label
lacks to the threshold of the projection: non-negative terms, so that a nearly met
margin keeps its digits. Scores are measured from their maximum first.

Source: Martins & Astudillo, "From softmax to sparsemax", arXiv:1602.02068.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe.losses._inputs import included, matching, where_included, wide_floating
from jaxsafe.losses._labels import Rows, labelled
from jaxsafe.ops._entrywise import chain
from jaxsafe.ops._exact import difference

_INF, _NAN = float("inf"), float("nan")


def sparsemax_loss(
    logits: ArrayLike, labels: ArrayLike, *, where: ArrayLike | None = None
) -> jax.Array:
    """Binary sparsemax loss: 0 beyond the margin, a parabola, then a line.

    Value: with z = -x for label 1 and x for label 0: 0 for z <= -1, z for z >= 1, else
      (z + 1)**2 / 4; 0 where excluded.
    Gradient: (z + 1) / 2 clipped to [0, 1], with the sign of z; 0 where excluded.
    NaN in: NaN out; never from where `where` is False.
    Error: float32 2.3 ulp, gradient 0.51, second derivative 0.51; bfloat16 and float16
      logits give a float32 loss within 2.3 ulp and gradients within 0.51 ulp.

    Args:
      logits: floating array.
      labels: array of that shape, or one number; 0 or 1.
      where: bool array, True = include; broadcasts to `logits`.

    Returns:
      Array of the shape of `logits`; float32 for half-precision logits.

    Raises:
      TypeError: `logits` is not floating.
      ValueError: the batch is empty, or the shapes differ.

    Examples:
      >>> sparsemax_loss(jnp.asarray([0.0, 2.0, -3.0]), jnp.asarray([1, 1, 1]))
      Array([0.25, 0.  , 3.  ], dtype=float32)

    References:
      Blondel, Martins & Niculae, JMLR 21, 2020, section 4.4.
    """
    name = "losses.sparsemax_loss"
    x = wide_floating(name, "logits", logits)
    y = matching(name, "labels", labels, x)
    z = jnp.where(y == 0, x, -x)
    mask = None if where is None else included(name, where, x.shape, ())
    return where_included(_sparse_plus, mask, z)


def multiclass_sparsemax_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    axis: int = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    """Sparsemax loss of a label among several classes.

    Value: 0 if the label leads by 1 or more, else the Fenchel-Young loss of half the
      squared norm; 0 for a row that `where` empties; NaN for a label that names no
      included class.
    Gradient: sparsemax(scores) - onehot(label), own class from the sum of the others;
      0 where the loss is 0 or NaN by the rule above.
    NaN in: NaN for the row; never from where `where` is False.
    Error: float32 4.9 ulp of max(|true|, 1), gradient 3 of max(|true|, 1); bfloat16 and
      float16 give a float32 loss within 4.9 ulp and gradients within 0.51 ulp,
      likewise.

    Args:
      scores: floating array [..., classes, ...]; -inf leaves a class out.
      labels: integer array of the shape of `scores` without `axis`.
      axis: axis of the classes.
      where: bool array, True = include the class; broadcasts to `scores`, or has one
        entry per row.

    Returns:
      Array of the shape of `labels`; float32 for half precision.

    Raises:
      TypeError: `scores` is not floating or `labels` is not integer.
      ValueError: the batch is empty, the shapes do not fit, or a concrete label is out
        of range (a traced one gives NaN).

    Examples:
      >>> multiclass_sparsemax_loss(jnp.asarray([[0.0, 0.0]]), jnp.asarray([1]))
      Array([0.25], dtype=float32)

    References:
      Martins & Astudillo, arXiv:1602.02068.
    """
    name = "losses.multiclass_sparsemax_loss"
    return labelled(name, "scores", scores, labels, axis, where).loss(_of_rows)


def _plus(z: jax.Array) -> jax.Array:
    bent = jnp.where(jnp.abs(z) < 1, z, 0) + 1
    line = jnp.where(z <= -1, 0, z)  # written so that NaN stays
    return jnp.where(jnp.abs(z) < 1, 0.25 * bent * bent, line)


def _plus_slope(z: jax.Array) -> jax.Array:
    return jnp.where(z >= 1, 1, jnp.where(z <= -1, 0, 0.5 * (z + 1)))


_sparse_plus = chain(_plus, _plus_slope)


def _of_rows(rows: Rows, axis: int) -> jax.Array:
    return _loss(rows.scores, rows.is_label(axis), axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _loss(x: jax.Array, is_label: jax.Array, axis: int) -> jax.Array:
    gap, threshold = _threshold(x, axis)
    p = _simplex(x, axis)
    p = jnp.where(is_label, 0, p)
    own = jnp.sum(jnp.where(is_label, gap, 0), axis, keepdims=True)
    lack = jnp.where(own < threshold, threshold - own, 0)
    squares = jnp.sum(p * p, axis, keepdims=True)
    return 0.5 * (squares + jnp.square(jnp.sum(p, axis, keepdims=True))) + lack


@_loss.defjvp
def _loss_jvp(axis: int, primals: Any, tangents: Any) -> Any:
    (x, is_label), (dx, _) = primals, tangents
    p = jnp.where(is_label, 0, _simplex(x, axis))
    slope = jnp.where(is_label, -jnp.sum(p, axis, keepdims=True), p)
    return _loss(x, is_label, axis), jnp.sum(slope * dx, axis, keepdims=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _simplex(x: jax.Array, axis: int) -> jax.Array:
    """The probabilities nearest to the scores."""
    gap, threshold = _threshold(x, axis)
    p = jnp.where(gap > threshold, gap - threshold, 0)
    return jnp.where(jnp.isnan(x).any(axis, keepdims=True), _NAN, p)


@_simplex.defjvp
def _simplex_jvp(axis: int, primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    p = _simplex(x, axis)
    support = p > 0
    count = jnp.maximum(jnp.sum(support, axis, keepdims=True), 1).astype(x.dtype)
    mean = jnp.sum(jnp.where(support, dx, 0), axis, keepdims=True) / count
    return p, jnp.where(support, dx - mean, 0)


def _threshold(x: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
    """(scores from their maximum, what the projection takes off them)."""
    peak = jnp.max(x, axis, keepdims=True)
    gap = jnp.where(x == peak, 0, difference(x, peak)[0])
    falling = -jnp.sort(-gap, axis=axis)
    count = jax.lax.broadcasted_iota(x.dtype, x.shape, axis) + 1
    # Only gaps above -1 can belong to the support; -inf may not enter the sum.
    near = falling > -1
    total = jnp.cumsum(jnp.where(near, falling, 0), axis=axis)
    support = near & (1 + count * falling > total)
    size = jnp.sum(support, axis, keepdims=True)
    last = jnp.sum(jnp.where(support, falling, 0), axis, keepdims=True)
    return gap, (last - 1) / jnp.maximum(size, 1).astype(x.dtype)


def _plus_oracle(_: Any, x: Any) -> tuple[Any, tuple[Any, ...], Any]:
    z = -x
    if abs(z) < 1:
        return (z + 1) ** 2 / 4, (-(z + 1) / 2,), (z - z) + 0.5
    return max(z, 0), (-1 * (z > 0) + (z - z),), z - z


def _loss_oracle(mp: Any, x: list[Any], label: int) -> tuple[Any, tuple[Any, ...]]:
    falling = sorted(x, reverse=True)
    size = max(
        k for k in range(1, len(x) + 1) if 1 + k * falling[k - 1] > mp.fsum(falling[:k])
    )
    threshold = (mp.fsum(falling[:size]) - 1) / size
    p = [max(v - threshold, 0) for v in x]
    dot = mp.fsum(a * (b - x[label]) for a, b in zip(p, x, strict=True))
    value = dot + (1 - mp.fsum(a * a for a in p)) / 2
    return value, ([a - (i == label) for i, a in enumerate(p)],)


def _naive(x: jax.Array, labels: jax.Array) -> jax.Array:
    falling = -jnp.sort(-x, axis=-1)
    rank = jnp.arange(1, x.shape[-1] + 1, dtype=x.dtype)[None]
    total = jnp.cumsum(falling, axis=-1)
    size = jnp.sum(1 + rank * falling > total, axis=-1, keepdims=True)
    threshold = jnp.take_along_axis(total, size - 1, -1) - 1
    p = jnp.maximum(x - threshold / size.astype(x.dtype), 0)
    own = jnp.take_along_axis(x, jnp.expand_dims(labels, -1), -1)
    return jnp.sum(p * (x - own), -1) + 0.5 * (1 - jnp.sum(p * p, -1))


_catalog.add(
    _catalog.Row(
        name="losses.sparsemax_loss",
        function=functools.partial(sparsemax_loss, labels=1),
        naive=lambda x: jnp.where(
            x >= 1, 0, jnp.where(x <= -1, -x, 0.25 * (1 - x) ** 2)
        ),
        kind="entrywise",
        domain=((-_INF, _INF),),
        edges=(
            Edge(args=(_INF,), value=0.0, gradient=(0.0,)),
            Edge(args=(-_INF,), value=_INF, gradient=(-1.0,)),
            Edge(args=(0.0,), value=0.25, gradient=(-0.5,)),
            Edge(args=(_NAN,), value=_NAN, gradient=(_NAN,)),
        ),
        ulp=_catalog.bounds(
            float32=(2.3, 0.51, 0.51), float64=(2.3, 0.51, 0.51), half=(2.3, 0.51, 0.51)
        ),
        oracle=_plus_oracle,
        result=_floats.wide,
    )
)
_catalog.add(
    _catalog.Row(
        name="losses.multiclass_sparsemax_loss",
        function=multiclass_sparsemax_loss,
        naive=_naive,
        kind="labelled",
        domain=((-_INF, _INF),),
        edges=(
            Edge(args=((_INF, 0.0), 0), value=0.0, gradient=((0.0, 0.0),)),
            Edge(args=((_INF, 0.0), 1), value=_INF, gradient=((1.0, -1.0),)),
            Edge(
                args=((0.25, 0.0, -_INF), 0),
                value=0.140625,
                gradient=((-0.375, 0.375, 0.0),),
            ),
            Edge(args=((0.0, _NAN), 0), value=_NAN, gradient=((_NAN, _NAN),)),
        ),
        ulp=_catalog.bounds((4.9, 3), (4.9, 3), half=(4.9, 0.51)),
        oracle=_loss_oracle,
        size=_catalog.at_least(_loss_oracle, 1, 1),
        result=_floats.wide,
    )
)
