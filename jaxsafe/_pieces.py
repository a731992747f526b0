"""Many small leaves as one vector: a CPU spends three kernels on the sum of each.

Of 400 leaves the norm takes a fifth of the time so, and compiling it hardly any.
Accelerators do not want it: there a copy of leaves that are spread over devices would
have to be gathered.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Entries of a leaf up to which a copy costs less than kernels of its own.
_SMALL = 2**14


class Pieces(NamedTuple):
    """The same numbers in fewer arrays.

    Attributes:
      arrays: the large parts, and last the small ones, end to end, if there are any.
      large: positions of the large parts.
      small: positions of the small ones.
      ends: where each of these ends in the vector.
    """

    arrays: list[jax.Array]
    large: list[int]
    small: list[int]
    ends: list[int]


def of(parts: list[jax.Array], dtype: Any) -> Pieces:
    """Real parts are widened to `dtype` where they are joined."""
    small = [i for i, x in enumerate(parts) if _is_small(x)]
    large = [i for i, x in enumerate(parts) if not _is_small(x)]
    arrays = [parts[i] for i in large]
    if small:
        arrays.append(jnp.concatenate([parts[i].astype(dtype).ravel() for i in small]))
    sizes = [parts[i].size for i in small]
    return Pieces(arrays, large, small, np.cumsum(sizes, dtype=int).tolist())


def bad_parts(pieces: Pieces, bad_arrays: jax.Array) -> jax.Array:
    """bool[parts]: which hold a NaN or an infinity, if one knows it of the arrays."""
    found = bad_arrays[: len(pieces.large)]
    if pieces.small:
        sizes = np.diff([0, *pieces.ends])
        begins = np.asarray(pieces.ends) - sizes
        # As many entries of each as the longest has: one kernel looks at all of them.
        at = jnp.arange(sizes.max(initial=0))[None]
        entries = pieces.arrays[-1].at[begins[:, None] + at].get(mode="clip")
        bad = (at < sizes[:, None]) & ~jnp.isfinite(entries)
        found = jnp.concatenate([found, bad.any(axis=1)])
    return found[np.argsort(pieces.large + pieces.small)]


def _is_small(x: jax.Array) -> bool:
    # What is spread over devices by its type cannot be joined with what is not.
    spread = any(jax.typeof(x).sharding.spec)
    return x.size <= _SMALL and not jnp.iscomplexobj(x) and not spread
