"""Run an optimizer in float32 whatever the parameters are."""

from typing import Any

import optax

from jaxsafe import _tree
from jaxsafe._tree import PyTree


def in_float32(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Give `inner` float32 copies of updates and parameters, and cast its result back.

    An optimizer that works in the dtype of half-precision parameters loses its epsilon:
    1e-8 is 0 in float16, so that Adam divides 0 by 0 for a parameter without gradient.
    Its moments cannot hold small squares either. Here its state is float32.

    Value:     the updates of `inner` in float32, rounded once to the dtype of the
               parameters, or of the updates where no parameters are passed. float64 and
               complex leaves are left as they are.
    NaN in:    what `inner` makes of it.

    Args:
      inner: any optax transformation.

    Returns:
      An optax transformation; its state is that of `inner` for float32 parameters.
      Extra arguments reach `inner` unchanged.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> from jaxsafe import transforms
      >>> params = jnp.ones(2, jnp.float16)
      >>> tx = transforms.in_float32(optax.adam(0.1))
      >>> grads = jnp.array([0.0, 1.0], jnp.float16)
      >>> updates, state = tx.update(grads, tx.init(params), params)
      >>> [float(u) for u in updates], updates.dtype.name  # optax gives [nan, -0.1]
      ([0.0, -0.0999755859375], 'float16')
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> Any:
        return inner.init(_tree.widen(params))

    def update(
        updates: PyTree, state: Any, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, Any]:
        wide = None if params is None else _tree.widen(params)
        new, state = inner.update(_tree.widen(updates), state, wide, **extra)
        return _tree.cast_like(new, updates if params is None else params), state

    return optax.GradientTransformationExtraArgs(init, update)
