"""The last state that is known to be good, kept on the device.

A committed step shows that the state it *started* from was good: its loss and its
gradients were finite there, and the check passed. Of the state that it wrote nothing is
known until the next step has looked at it. So a copy is a candidate first, and becomes
the snapshot when the next step is committed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsafe._tree import PyTree
from jaxsafe.guard._transaction import Guarded
from jaxsafe.transforms import _control


class Snapshots:
    """Keeps a good state, and goes back to it.

    Args:
      every: committed steps between two copies; 0 keeps none.
      state: the state to start from, taken to be good.
    """

    def __init__(self, every: int, state: PyTree) -> None:
        self.every = every
        self.good = _copy(state) if every else None
        self.candidate: Any = None
        self.count = 0

    def note_committed(self, state: PyTree) -> None:
        """Hear that the last step was committed and wrote `state`."""
        if not self.every:
            return
        if self.candidate is not None:
            self.good, self.candidate = self.candidate, None
        self.count += 1
        if self.count % self.every == 0:
            self.candidate = _copy(state)

    def restore(self, carry: Guarded) -> Guarded:
        """`carry` with the good model state; control state is never rolled back."""
        self.candidate = None
        is_control = _control.is_control
        state = jax.tree.map(
            # A copy again: the next step may donate what it is given.
            lambda now, good: now if is_control(now) else _copy(good),
            carry.state,
            self.good,
            is_leaf=is_control,
        )
        return carry._replace(state=state)


def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)
