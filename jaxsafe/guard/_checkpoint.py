"""Checkpoints that hold all a run needs to go on, and nothing that is not finite.

One checkpoint is one directory of orbax's, which appears whole or not at all. Its
number is the position in the data: the checkpoint 12 is what batch 12 starts from. In
it are the model state (random keys included), control state (rate factor, loss scale,
counters), and, in a run that rolls back, the good snapshot.

Invariants:
  1. What was read back is bitwise what was saved.
  2. Nothing is saved after a rejected step, or with a leaf that is not finite.
  3. The newest checkpoint is always kept, since it is the one to go on from; the best
     one is kept besides. A metric that is not finite ranks below all that are.
"""

import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsafe import _errors, _tree
from jaxsafe._tree import PyTree
from jaxsafe.guard import _transaction
from jaxsafe.guard._transaction import Guarded

_all_finite = jax.jit(_tree.all_finite)


class Checkpoints:
    """Where `guard.run` saves, and where it resumes from; or a loop of your own.

    Value:     written by orbax in the background; a process that is killed while it
               writes leaves the checkpoint before it.

    Args:
      directory: a directory for this run alone, made if missing. Checkpoints that are
        in it are resumed from, by a new `Checkpoints` object as well: a fresh run wants
        a directory of its own. Nothing in it is overwritten.
      every: batches between two checkpoints.
      keep: how many of the newest to keep.
      best: function of aux that says how good a checkpoint is, lower is better, such
        as `lambda aux: aux["loss"]`; the best one is kept besides the newest. A NaN or
        an infinity ranks worst, and is never the best.

    Attributes:
      finished: whether a run of this process has come to its end with it.

    Raises:
      ValueError: `every` or `keep` is no count.
      TypeError: `best` is no function.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> from jaxsafe import guard
      >>> step = guard.transaction(lambda state, x: (state + x, x))
      >>> with guard.Checkpoints(tempfile.mkdtemp()) as checkpoints:
      ...     carry = guard.run(
      ...         step, step.init(jnp.zeros(())), [1.0, 2.0], checkpoints=checkpoints)
      ...     carry, position = checkpoints.restore(step.init(jnp.zeros(())))
      >>> float(carry.state), position
      (3.0, 2)
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every: int = 1,
        keep: int = 3,
        best: Callable[[PyTree], Any] | None = None,
    ) -> None:
        _errors.check_count("Checkpoints", "every", every)
        _errors.check_count("Checkpoints", "keep", keep)
        if not (best is None or callable(best)):
            raise _errors.error(
                TypeError,
                "Checkpoints",
                "best must be a function of aux",
                type(best).__name__,
                'Write for example best=lambda aux: aux["loss"].',
            )
        self.every = every
        self.best = best
        self.finished = False
        self._manager = _make_manager(os.fspath(directory), keep, best is not None)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Wait for what is being written, and let go of the directory."""
        self._manager.close()

    def wait(self) -> None:
        """Wait for what is being written."""
        self._manager.wait_until_finished()

    def positions(self) -> list[int]:
        """Positions of all checkpoints that are kept, oldest first."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        """Position of the newest checkpoint; None if there is none."""
        return self._manager.latest_step()

    def best_position(self) -> int | None:
        """Position of the best checkpoint; None if none has a finite metric.

        Raises:
          ValueError: nothing says what is best.
        """
        if self.best is None:
            raise _errors.error(
                ValueError,
                "Checkpoints",
                "nothing says which checkpoint is best",
                "best=None",
                'Write for example Checkpoints(..., best=lambda aux: aux["loss"]).',
            )
        self.wait()  # metrics are read from disk
        position = self._manager.best_step()
        if position is None or _rank(self._manager.metrics(position)) == math.inf:
            return None
        return int(position)

    def is_due(self, position: int) -> bool:
        """Whether `every` batches have passed since the newest checkpoint."""
        return position - (self.latest() or 0) >= self.every

    def save(
        self,
        carry: Guarded,
        position: int,
        *,
        aux: PyTree = None,
        must_be_finite: PyTree = None,
        snapshot: PyTree = None,
    ) -> bool:
        """Save `carry` as what batch number `position` starts from, unless it is bad.

        Args:
          carry: what the step returned; it may be donated as soon as this returns.
          position: index of the next batch.
          aux: what the step returned besides, for `best`.
          must_be_finite: leaves that have to be finite; None for all of the state.
          snapshot: a state to keep with it, for a run that rolls back.

        Returns:
          Whether it was saved: False after a rejected step, for a leaf that is not
          finite, and for a position that is not past the newest one.
        """
        if not bool(carry.control.ok) or position <= (self.latest() or 0):
            return False
        if must_be_finite is None:
            must_be_finite, _ = _transaction.examine(carry.state, (), None)
        if not bool(_all_finite(_tree.inexact_leaves(must_be_finite))):
            return False
        import orbax.checkpoint as ocp

        about = {"leaves": _leaves(carry), "snapshot": snapshot is not None}
        items = {
            "carry": ocp.args.StandardSave(_storable(carry)),
            "about": ocp.args.JsonSave(about),
        }
        if snapshot is not None:
            items["snapshot"] = ocp.args.StandardSave(_storable(snapshot))
        metrics = {"value": float(self.best(aux))} if self.best else None
        return bool(
            self._manager.save(
                position, args=ocp.args.Composite(**items), metrics=metrics, force=True
            )
        )

    def restore(
        self, like: Guarded, *, position: int | None = None
    ) -> tuple[Guarded, int]:
        """Return a carry that was saved, and the index of the batch to go on with.

        Args:
          like: `step.init(state)`: its structure, shapes and devices are taken over.
          position: which checkpoint; None for the newest. Where there is none at all,
            the answer is (like, 0).

        Raises:
          ValueError: there is no such checkpoint, or `like` does not fit it.
        """
        self.wait()
        if position is None:
            position = self.latest()
        if position is None:
            return like, 0
        if position not in self.positions():
            raise _errors.error(
                ValueError,
                "Checkpoints",
                "there is no such checkpoint",
                position,
                f"Take one of {self.positions()}.",
            )
        saved, wanted = self._about(position)["leaves"], _leaves(like)
        if saved != wanted:
            path = next(p for p in wanted | saved if wanted.get(p) != saved.get(p))
            raise _errors.error(
                ValueError,
                "Checkpoints",
                f"checkpoint {position} in {self._manager.directory} does not fit",
                f"at {path}: {saved.get(path)}, where the run has {wanted.get(path)}",
                "Start from the same model and optimizer, or use another directory.",
            )
        return self._read("carry", like, position), position

    def restore_snapshot(self, like: PyTree, position: int) -> PyTree:
        """The snapshot that was saved at `position`, or None."""
        if not self._about(position)["snapshot"]:
            return None
        return self._read("snapshot", like, position)

    def _about(self, position: int) -> Any:
        import orbax.checkpoint as ocp

        args = ocp.args.Composite(about=ocp.args.JsonRestore())
        return self._manager.restore(position, args=args)["about"]

    def _read(self, item: str, like: PyTree, position: int) -> PyTree:
        import orbax.checkpoint as ocp

        wanted = ocp.args.StandardRestore(_storable(like))
        args = ocp.args.Composite(**{item: wanted})
        stored = iter(jax.tree.leaves(self._manager.restore(position, args=args)[item]))
        return jax.tree.map(lambda x: _as_in_run(x, stored), like)


def _leaves(tree: PyTree) -> dict[str, str]:
    """Path -> dtype and shape of every leaf; orbax would cast one to the other."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(_storable(tree))
    return {
        jax.tree_util.keystr(path): f"{jnp.result_type(x)}{list(jnp.shape(x))}"
        for path, x in leaves
    }


def _storable(tree: PyTree) -> PyTree:
    """`tree` without what is no number, such as the functions in an equinox module."""

    def leaf(x: Any) -> Any:
        if isinstance(x, bool):
            return np.asarray(x)  # under jit it is an array as well
        return None if _tree.is_fixed(x) else x

    return jax.tree.map(leaf, tree)


def _as_in_run(x: Any, stored: Iterator[Any]) -> Any:
    """The next stored leaf, in the kind of `x`; `x` itself if it is never stored."""
    if isinstance(x, bool):
        return bool(next(stored))
    return x if _tree.is_fixed(x) else next(stored)


def check_checkpoints(checkpoints: Any) -> None:
    """Raise TypeError unless `guard.run` can use `checkpoints`."""
    if checkpoints is None or isinstance(checkpoints, Checkpoints):
        return
    raise _errors.error(
        TypeError,
        "guard.run",
        "checkpoints must be a guard.Checkpoints",
        type(checkpoints).__name__,
        "Write guard.Checkpoints(directory, every=100); a manager of orbax's own knows "
        "neither the position in the data nor what is finite.",
    )


def _make_manager(directory: str, keep: int, with_best: bool) -> Any:
    import orbax.checkpoint as ocp
    from orbax.checkpoint import checkpoint_managers as policies

    if "://" not in directory:
        directory = os.path.abspath(directory)
    preserve = [policies.LatestN(n=keep)]
    if with_best:
        preserve.append(
            policies.BestN(
                get_metric_fn=_rank,
                reverse=True,
                n=1,
                keep_checkpoints_without_metrics=False,
            )
        )
    options = ocp.CheckpointManagerOptions(
        best_fn=_rank if with_best else None,
        best_mode="min",
        preservation_policy=policies.AnyPreservationPolicy(preserve),
        cleanup_tmp_directories=True,  # what a killed process was writing
    )
    return ocp.CheckpointManager(directory, options=options)


def _rank(metrics: dict[str, float]) -> float:
    # Sorted with a NaN among them, the order of all the others is left to chance.
    value = metrics["value"]
    return value if math.isfinite(value) else math.inf
