"""Fenchel-Young losses: the loss that a convex function of the scores induces.

The idea: the loss is the function minus the inner product of targets and scores, and a
target of 0 contributes nothing to that, whatever its score.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe.losses._inputs import matching, weighted, wide_floating
from jaxsafe.ops._logsumexp import logsumexp
from jaxsafe.ops._softmax import powers

_INF = float("inf")


def make_fenchel_young_loss(
    max_fun: Callable[..., jax.Array],
) -> Callable[..., jax.Array]:
    """Make the loss that a convex function of the scores, such as logsumexp, induces.

    Value: of the loss: max_fun(scores) - <targets, scores>; a target of 0 costs
      nothing, whatever its score.
    Gradient: of the loss: that of `max_fun` minus the targets; to the targets -scores,
      at most the largest finite number.
    NaN in: NaN for the row.
    Error: with logsumexp float32 2.6 ulp of max(|max_fun|, sum |targets * scores|),
      gradient 2.8 of the sum of its terms; bfloat16 and float16 scores give a float32
      loss within 2 ulp and gradients within 0.51 ulp.

    Args:
      max_fun: function of a vector of scores (and of further arguments), a scalar.

    Returns:
      `loss(scores, targets, *args, **kwargs)`, one loss per row of the last axis; what
      follows the targets goes to `max_fun`. float32 for half-precision scores.

    Raises:
      TypeError: by the loss, if `scores` is not floating.
      ValueError: by the loss, if the batch is empty or the shapes differ.

    Examples:
      >>> loss = make_fenchel_young_loss(jax.nn.logsumexp)
      >>> loss(jnp.asarray([0.0, -jnp.inf]), jnp.asarray([1.0, 0.0]))
      Array(0., dtype=float32)

    References:
      Blondel, Martins & Niculae, "Learning with Fenchel-Young losses", JMLR 21, 2020.
    """
    name = "losses.make_fenchel_young_loss"

    def loss(
        scores: ArrayLike, targets: ArrayLike, *args: Any, **kwargs: Any
    ) -> jax.Array:
        x = wide_floating(name, "scores", scores)
        q = matching(name, "targets", targets, x)

        def of_row(row: jax.Array) -> jax.Array:
            return max_fun(row, *args, **kwargs)

        value: jax.Array = jnp.vectorize(of_row, signature="(n)->()")(x)
        return value - jnp.sum(weighted(q, x), -1)

    return loss


def _young_oracle(mp: Any, x: list[Any], q: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    weights, total = powers(mp, x)
    inner = mp.fsum(a * b for a, b in zip(x, q, strict=True))
    slope = [w / total - b for w, b in zip(weights, q, strict=True)]
    return max(x) + mp.log(total) - inner, (slope, [-v for v in x])


def _young_size(mp: Any, x: list[Any], q: list[Any]) -> tuple[Any, tuple[Any, ...]]:
    weights, total = powers(mp, x)
    inner = mp.fsum(abs(a * b) for a, b in zip(x, q, strict=True))
    largest = max(max(abs(v) for v in x), abs(max(x) + mp.log(total)))
    slope = [w / total + b for w, b in zip(weights, q, strict=True)]
    return max(inner, largest), (slope, x)


def _young_sample(rng: Any) -> Iterator[tuple[Any, ...]]:
    for n in (6, 3):
        x = rng.normal(size=(4, n)) * np.asarray([[50], [10], [0.01], [1]])
        yield x, rng.dirichlet(np.ones(n), 4)


_catalog.add(
    _catalog.Row(
        name="losses.make_fenchel_young_loss[logsumexp]",
        function=make_fenchel_young_loss(functools.partial(logsumexp, axis=-1)),
        naive=lambda x, q: jnp.log(jnp.sum(jnp.exp(x), -1)) - jnp.sum(x * q, -1),
        kind="reduction",
        domain=((-_INF, _INF), (0.0, 1.0)),
        edges=(
            _catalog.Edge(
                args=((0.0, -_INF), (1.0, 0.0)),
                value=0.0,
                gradient=((0.0, 0.0), (0.0, _floats.largest("f4"))),
            ),
        ),
        ulp=_catalog.bounds(float32=(2.6, 2.8), float64=(2.6, 2.8), half=(2, 0.51)),
        oracle=_young_oracle,
        size=_young_size,
        sample=_young_sample,
        result=_floats.wide,
    )
)
