"""Clip the gradient of each example, then average over the examples."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsafe import _errors, _gate, _tree
from jaxsafe._tree import PyTree
from jaxsafe.transforms._clip import blank, largest
from jaxsafe.transforms._control import counted

_NAME = "per_example_clip"


class PerExampleClipState(NamedTuple):
    """What the clip did.

    Attributes:
      example_norm: float32[], largest norm of an example of the last batch before
        clipping, of the finite ones with `nonfinite="drop"`.
      example_clipped: int32[], examples of it that were shortened.
      example_count: int32[], batches in which one was shortened so far.
      example_nonfinite: int32[], examples of it with a non-finite entry.

    Example:
      >>> from jaxsafe import transforms
      >>> int(transforms.per_example_clip(1.0).init(None).example_count)
      0
    """

    example_norm: jax.Array
    example_clipped: jax.Array
    example_count: jax.Array
    example_nonfinite: jax.Array


def per_example_clip(
    max_norm: float, *, nonfinite: str = "keep"
) -> optax.GradientTransformationExtraArgs:
    """Shorten each example's gradient to `max_norm` and return the mean over examples.

    Every floating leaf of the updates has one more axis than the parameters, the first,
    along which the examples lie: what `jax.vmap(jax.grad(loss), (None, 0))` gives. One
    wild example then moves the mean by at most max_norm / batch.

    Value:     mean of g * min(1, max_norm / |g|) over the examples, |g| over all leaves
               of one example; summed in float32 or better, in the dtype of the leaf.
    NaN in:    the mean is not finite, for a guard to see ("keep"); or the example is
               left out, and the mean is over the others ("drop"), 0 if none is left.

    Args:
      max_norm: positive number.
      nonfinite: "keep" or "drop", what becomes of an example with a non-finite entry.

    Returns:
      An optax transformation; its state is a `PerExampleClipState`.

    Raises:
      ValueError: `max_norm` is not positive, `nonfinite` is neither word, or the leaves
        do not share a first axis of at least one example.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import transforms
      >>> tx = transforms.per_example_clip(1.0, nonfinite="drop")
      >>> g = jnp.array([[3e30, 4e30], [0.2, 0.0], [jnp.nan, 0.0]])
      >>> updates, state = tx.update(g, tx.init(g[0]))
      >>> [round(float(u), 6) for u in updates], int(state.example_nonfinite)
      ([0.4, 0.4], 1)

    References:
      Abadi et al., Deep learning with differential privacy, 2016,
      https://arxiv.org/abs/1607.00133
    """
    _errors.check_positive(_NAME, "max_norm", max_norm)
    _errors.check_choice(_NAME, "nonfinite", nonfinite, ("keep", "drop"))

    def init(params: PyTree) -> PerExampleClipState:
        del params
        return blank(PerExampleClipState)

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PerExampleClipState]:
        del params, extra
        if not _tree.inexact_leaves(updates):
            return updates, state
        _check_examples(updates)

        def example(grads: PyTree) -> tuple[PyTree, Any]:
            verdict = _gate.judge(grads)
            grads, clipped = _gate.clip(_tree.widen(grads), verdict, max_norm)
            return grads, (verdict.norm, verdict.ok, clipped)

        grads, (norms, finite, clipped) = jax.vmap(example)(updates)
        counts = finite if nonfinite == "drop" else jnp.ones_like(finite)
        mean = jax.tree.map(lambda g, u: _mean(g, u, counts), grads, updates)
        return mean, PerExampleClipState(
            example_norm=largest(jnp.where(counts, norms, 0)),
            example_clipped=jnp.sum(clipped, dtype=jnp.int32),
            example_count=counted(state.example_count, clipped.any()),
            example_nonfinite=jnp.sum(~finite, dtype=jnp.int32),
        )

    return optax.GradientTransformationExtraArgs(init, update)


def _mean(grads: Any, updates: Any, included: jax.Array) -> Any:
    """Mean of the included examples in the dtype of `updates`; 0 without any."""
    if not _tree.is_inexact(updates):
        return updates
    mask = included.reshape(-1, *[1] * (grads.ndim - 1))
    total = jnp.sum(jnp.where(mask, grads, 0), 0)
    count = jnp.maximum(jnp.sum(included, dtype=jnp.int32), 1)
    return (total / count.astype(total.real.dtype)).astype(updates.dtype)


def _check_examples(updates: PyTree) -> None:
    shapes = [x.shape for x in _tree.inexact_leaves(updates)]
    sizes = {shape[:1] for shape in shapes}
    if len(sizes) != 1 or sizes <= {(), (0,)}:
        raise _errors.error(
            ValueError,
            _NAME,
            "all leaves must share a first axis of at least one example",
            f"shapes {shapes}",
            "Pass per-example gradients: jax.vmap(jax.grad(loss), (None, 0)).",
        )
