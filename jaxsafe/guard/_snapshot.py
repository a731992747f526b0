"""The last state that is known to be good, kept on the device or in host memory.

A committed step shows that the state it *started* from was good: its loss and its
gradients were finite there, and the check passed. Of the state that it wrote nothing is
known until the next step has looked at it. So a copy is a candidate first, and becomes
the snapshot when the next step is committed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxsafe import _errors
from jaxsafe._tree import PyTree
from jaxsafe.guard._transaction import Guarded
from jaxsafe.transforms import _control

_HOST = "pinned_host"


class Snapshots:
    """Keeps a good state, and goes back to it.

    Args:
      every: committed steps between two copies; 0 keeps none.
      state: the state to start from, taken to be good.
      place: "device" or "host".
    """

    def __init__(self, every: int, state: PyTree, *, place: str = "device") -> None:
        _errors.check_choice("guard.run", "snapshots", place, ("device", "host"))
        self.every = every
        self.place = place
        self.good = self._copy(state) if every else None
        self.candidate: Any = None
        self.count = 0

    def note_committed(self, state: PyTree) -> None:
        """Hear that the last step was committed and wrote `state`."""
        if not self.every:
            return
        if self.candidate is not None:
            self.good, self.candidate = self.candidate, None
        self.count += 1
        if self._is_due():
            self.candidate = self._copy(state)

    def restore(self, carry: Guarded) -> Guarded:
        """`carry` with the good model state; control state is never rolled back."""
        self.candidate = None
        is_control = _control.is_control
        state = jax.tree.map(
            # A copy again: the next step may donate what it is given.
            lambda now, good: now if is_control(now) else _copy_like(good, now),
            carry.state,
            self.good,
            is_leaf=is_control,
        )
        return carry._replace(state=state)

    def pack(self) -> PyTree:
        """What a checkpoint has to hold besides the state; None if nothing."""
        # The candidate is not in it: right after a commit it is the state itself.
        if not self.every:
            return None
        return {"good": self.good, "count": jnp.asarray(self.count, jnp.int32)}

    def unpack(self, packed: PyTree, state: PyTree) -> None:
        """Go on as the run did that wrote `packed`, or None, beside `state`."""
        if packed is None:
            packed = {"good": self._copy(state), "count": 0}
        self.good, self.count = packed["good"], int(packed["count"])
        self.candidate = self._copy(state) if self._is_due() else None

    def _is_due(self) -> bool:
        return self.count > 0 and self.count % self.every == 0

    def _copy(self, tree: PyTree) -> PyTree:
        if self.place == "device":
            return jax.tree.map(jnp.copy, tree)
        return jax.tree.map(_to_host, tree)


def _to_host(leaf: Any) -> jax.Array:
    array = jnp.asarray(leaf)
    # Without may_alias=False a backend whose two memories are one would hand back the
    # buffer itself, which the next step may donate.
    sharding = array.sharding.with_memory_kind(_HOST)
    return jax.device_put(array, sharding, may_alias=False)


def _copy_like(good: jax.Array, now: jax.Array) -> jax.Array:
    if good.sharding.memory_kind == now.sharding.memory_kind:
        return jnp.copy(good)
    return jax.device_put(good, now.sharding, may_alias=False)
