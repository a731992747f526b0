"""Bad rows of a batch, inside a step: weight 0, zeros in their place, their ids out."""

from collections.abc import MutableMapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxsafe import _errors, _tree
from jaxsafe._errors import error
from jaxsafe.clean import _apply
from jaxsafe.clean._cleaner import Cleaner


class Gated(NamedTuple):
    """What `clean.gate` returns.

    Attributes:
      batch: as it came, with zeros (False for booleans) in the bad rows.
      weight: float32[rows], 0 for a bad row and 1 for a good one.
      bad: int32[], how many rows are bad.
      ids: int32[most], ids of the first bad rows, then -1.

    >>> import numpy as np
    >>> from jaxsafe import clean
    >>> clean.gate(np.array([[1.0], [np.nan]], np.float32)).weight
    Array([1., 0.], dtype=float32)
    """

    batch: Any
    weight: jax.Array
    bad: jax.Array
    ids: jax.Array


def gate(
    batch: Any,
    cleaner: Cleaner | None = None,
    *,
    ids: ArrayLike | None = None,
    most: int = 16,
) -> Gated:
    """Give the bad rows of a batch weight 0; for use inside a jitted step.

    A row is bad if one of its numbers is NaN or infinite; with a cleaner also if one is
    a sentinel, out of its range or not one of the allowed. Shapes do not change; what
    a bad row held reaches neither value nor gradient.

    Args:
      batch: pytree of arrays that share their first axis, the rows.
      cleaner: the batch is then one array [rows, features], as for `clean.apply`.
      ids: int[rows], what the rows are called; by default their position.
      most: how many ids come out.

    Returns:
      A `Gated`. Use `weight` in the loss (`losses.masked_mean`), and on the host
      `clean.note(ledger, gated.ids)`.

    Raises:
      ValueError: leaves differ in rows, or the features are not the fitted ones.

    >>> import numpy as np
    >>> from jaxsafe import clean
    >>> batch = {"x": np.array([[1.0], [np.inf]], np.float32), "y": np.array([3, 4])}
    >>> clean.gate(batch, most=2).ids
    Array([ 1, -1], dtype=int32)
    """
    _errors.check_count("clean.gate", "most", most)
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(batch)]
    if len({x.shape[:1] for x in leaves}) != 1 or leaves[0].ndim == 0:
        raise error(
            ValueError,
            "clean.gate",
            "the arrays of a batch must share their first axis",
            ", ".join(str(x.shape) for x in leaves),
            "Give every array one entry per row.",
        )
    rows = leaves[0].shape[0]
    good = jnp.ones((rows,), bool)
    for leaf in leaves:
        if _tree.is_inexact(leaf):
            good &= _tree.isfinite(leaf).reshape(rows, -1).all(axis=1)
    if cleaner is not None:
        good &= _within(cleaner, batch).reshape(rows, -1).all(axis=1)
    names = jnp.arange(rows) if ids is None else jnp.asarray(ids)
    (places,) = jnp.nonzero(~good, size=most, fill_value=rows)
    padded = jnp.append(names.astype(jnp.int32), jnp.int32(-1))
    return Gated(
        jax.tree.map(lambda x: _select(good, jnp.asarray(x)), batch),
        good.astype(jnp.float32),
        (~good).sum(dtype=jnp.int32),
        padded[places],
    )


def note(
    ledger: MutableMapping[int, str], ids: ArrayLike, *, reason: str = "bad row"
) -> int:
    """Write the ids of bad rows into a ledger; on the host.

    Use a `guard.Ledger` of its own for rows: that of `guard.run` holds batches.

    Args:
      ledger: from ids to reasons.
      ids: `gated.ids`, of one step or of several; -1 is none.
      reason: what is written.

    Returns:
      How many ids were new.

    >>> rows = {}
    >>> note(rows, [4, -1], reason="NaN"), rows
    (1, {4: 'NaN'})
    """
    import numpy as np

    found = np.unique(np.asarray(ids))
    new = [int(i) for i in found if i >= 0 and int(i) not in ledger]
    for i in new:
        ledger[i] = reason
    return len(new)


def _within(cleaner: Cleaner, batch: Any) -> jax.Array:
    """bool[rows, features]: no sentinel, and what the options allow."""
    x = _apply.check_array("clean.gate", cleaner, batch)
    good = ~_apply.missing_in(jnp, cleaner, x, x.dtype)
    ends = _apply.ends(jnp, cleaner, x)
    return good if ends is None else good & (x >= ends[0]) & (x <= ends[1])


def _select(good: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.where(good.reshape((-1,) + (1,) * (x.ndim - 1)), x, jnp.zeros_like(x))
