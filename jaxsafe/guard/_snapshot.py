"""The last state that is known to be good, kept on the device or in host memory.

A committed step says little about the state that it wrote. A moment of 1e30 is finite;
the step that reads it is committed too, since loss and gradients are those of before,
and writes the parameters that the third step cannot be taken from. So a copy is a
candidate first, and becomes the snapshot when two later steps have been committed.
"""

import collections
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsafe import _errors
from jaxsafe._tree import PyTree
from jaxsafe.guard._transaction import Guarded
from jaxsafe.transforms import _control

_HOST = "pinned_host"
_PROOF = 2  # committed steps that show a state to be good


class Snapshots:
    """Keeps a good state, and goes back to it.

    Args:
      every: committed steps between two copies; 0 keeps none.
      state: the state to start from, taken to be good.
      place: "device" or "host".
      keep: batches to remember, at most.
    """

    def __init__(
        self, every: int, state: PyTree, *, place: str = "device", keep: int = 0
    ) -> None:
        _errors.check_choice("guard.run", "snapshots", place, ("device", "host"))
        self.every = every
        self.place = place
        self.good = self._copy(state) if every else None
        self.candidate = self.good
        self.proofs = _PROOF
        self.count = 0
        self.since = _Since(keep if every else 0)

    def note_batch(self, batch: tuple[Any, ...]) -> None:
        """Hear on which batch a step was committed."""
        self.since.add(batch)

    def note_committed(self, state: PyTree) -> None:
        """Hear that the last step was committed and wrote `state`."""
        if not self.every:
            return
        if self.proofs < _PROOF:
            self.proofs += 1
            if self.proofs == _PROOF:
                self.good = self.candidate
                self.since.promote()
        self.count += 1
        if self.count % self.every == 0 and self.proofs == _PROOF:
            self.candidate, self.proofs = self._copy(state), 0
            self.since.mark()

    def restore(self, carry: Guarded) -> Guarded:
        """`carry` with the good model state; control state is never rolled back."""
        self.candidate, self.proofs = self.good, _PROOF
        self.since.restart()
        # A copy again: the next step may donate what it is given.
        return carry._replace(state=self._good_like(carry.state, copy=True))

    def replayable(self, carry: Guarded) -> tuple[Guarded, list[Any]] | None:
        """`carry` with the good model state, not to be donated, and the batches since.

        None where there is no snapshot, or not every batch since then is known.
        """
        batches = self.since.batches()
        if not self.every or batches is None:
            return None
        return carry._replace(state=self._good_like(carry.state, copy=False)), batches

    def _good_like(self, state: PyTree, *, copy: bool) -> PyTree:
        is_control = _control.is_control
        return jax.tree.map(
            lambda now, good: now if is_control(now) else _like(good, now, copy=copy),
            state,
            self.good,
            is_leaf=is_control,
        )

    def pack(self) -> PyTree:
        """What a checkpoint has to hold besides the state; None if nothing."""
        if not self.every:
            return None
        counts = jnp.asarray([self.count, self.proofs], jnp.int32)
        return {"good": self.good, "candidate": self.candidate, "counts": counts}

    def unpack(self, packed: PyTree, state: PyTree) -> None:
        """Go on as the run did that wrote `packed`, or None, beside `state`."""
        if packed is None:
            good = self._copy(state)
            packed = {"good": good, "candidate": good, "counts": (0, _PROOF)}
            self.since.restart()
        else:
            self.since.forget()
        self.good, self.candidate = packed["good"], packed["candidate"]
        self.count, self.proofs = (int(n) for n in packed["counts"])

    def _copy(self, tree: PyTree) -> PyTree:
        copy = jnp.copy if self.place == "device" else _to_host
        return jax.tree.map(lambda x: copy(x) if _is_array(x) else x, tree)


def _is_array(leaf: Any) -> bool:
    """False for the functions and settings in an equinox module: nothing to copy."""
    return isinstance(leaf, jax.Array | np.ndarray)


class _Since:
    """The batches that were committed since the good state: references, no copies.

    Args:
      most: how many to keep; 0 keeps none.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.recent: collections.deque[Any] = collections.deque(maxlen=most)
        self.total = 0
        # Batches that had been committed when each copy was taken; None if unknown.
        self.good_at: int | None = 0
        self.candidate_at: int | None = 0

    def add(self, batch: Any) -> None:
        self.total += 1
        self.recent.append(batch)

    def mark(self) -> None:
        """A candidate was copied."""
        self.candidate_at = self.total

    def promote(self) -> None:
        """The candidate is good: what lies before it is not needed any more."""
        self.good_at = self.candidate_at
        if self.good_at is not None:
            while len(self.recent) > self.total - self.good_at:
                self.recent.popleft()

    def restart(self) -> None:
        """The run goes on from the good state."""
        self.recent.clear()
        self.good_at = self.candidate_at = self.total

    def forget(self) -> None:
        """The run goes on, and nobody knows which batches lie behind it."""
        self.recent.clear()
        self.good_at = self.candidate_at = None

    def batches(self) -> list[Any] | None:
        """All of them, oldest first; None if some are missing."""
        if not self.most or self.good_at is None:
            return None
        count = self.total - self.good_at
        known = list(self.recent)
        return known[len(known) - count :] if count <= len(known) else None


def _to_host(leaf: Any) -> jax.Array:
    array = jnp.asarray(leaf)
    # Without may_alias=False a backend whose two memories are one would hand back the
    # buffer itself, which the next step may donate.
    sharding = array.sharding.with_memory_kind(_HOST)
    return jax.device_put(array, sharding, may_alias=False)


def _like(good: Any, now: Any, *, copy: bool) -> Any:
    if not (_is_array(good) and _is_array(now)):
        return good
    if good.sharding.memory_kind == now.sharding.memory_kind:
        return jnp.copy(good) if copy else good
    return jax.device_put(good, now.sharding, may_alias=False)
