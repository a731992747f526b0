"""The one gate: is this step finite, how long is its gradient, scale it.

Every layer (clipping, learning-rate back-off, the guarded optimizer, the step as a
transaction) asks here, so nothing is decided twice.

One pass over the gradients yields both the flag and the norm: the sum of squares is
non-finite if any entry is. For a *finite* gradient that sum can still overflow (one
float32 entry of 2e19) or vanish (entries of 1e-25), so the squares are also summed at
a scale that is out of danger: Blue, "A portable Fortran program to find the Euclidean
norm of a vector", ACM TOMS 4(1), 1978. Scales are powers of two, so they cost no
accuracy, and no maximum is needed to choose them (on CPU a maximum may lose a NaN).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsafe import _floats, _pieces, _tree
from jaxsafe._pin import pinned
from jaxsafe._tree import PyTree
from jaxsafe._varying import cond

# Below this sum of squares, entries that XLA flushed to zero could matter.
_LEAST_TRUSTED_SUM = 2.0**-70


class Verdict(NamedTuple):
    """What one look at a step found.

    Attributes:
      ok: bool[], everything looked at is finite.
      length: float[], `scale` times the global norm of the gradients; never overflows.
      scale: float[], power of two.
      bad_leaves: bool[leaves], which gradient leaves are not finite.
    """

    ok: jax.Array
    length: jax.Array
    scale: jax.Array
    bad_leaves: jax.Array

    @property
    def bad_leaf(self) -> jax.Array:
        """int32[]: index of the first non-finite gradient leaf, or -1."""
        none = self.bad_leaves.shape[0] == 0
        return jnp.asarray(-1, jnp.int32) if none else _tree.first_true(self.bad_leaves)

    @property
    def norm(self) -> jax.Array:
        """float32[]: the global norm; of a finite gradient never infinite."""
        return norm_of(self.length, self.scale)


def norm_of(length: jax.Array, scale: jax.Array) -> jax.Array:
    """float32: length / scale; of a finite length never infinite."""
    norm = (length / scale).astype(jnp.float32)
    most = jnp.asarray(_floats.largest(jnp.float32), jnp.float32)
    return jnp.where(jnp.isfinite(length), jnp.minimum(norm, most), norm)


def judge(
    grads: PyTree, *, value: Any = None, axis_name: Any = None, also: Any = None
) -> Verdict:
    """Look once at a gradient tree, and at a loss `value` if there is one.

    Args:
      grads: pytree; leaves that are not floating or complex are ignored.
      value: pytree that has to be finite too, such as the loss.
      axis_name: mapped axes over which all devices must agree on `ok`; the gradients
        themselves must already be averaged over them.
      also: bool[], a further condition.
    """
    leaves = jax.tree.leaves(grads)
    inexact = [i for i, x in enumerate(leaves) if _tree.is_inexact(x)]
    parts = [jnp.asarray(leaves[i]) for i in inexact]
    bad_leaves = jnp.zeros((len(leaves),), bool)
    if parts:
        length, scale, bad = _length(parts)
        everything = len(parts) == len(leaves)
        bad_leaves = bad if everything else bad_leaves.at[np.asarray(inexact)].set(bad)
    else:
        length, scale = jnp.zeros(()), jnp.ones(())
    ok = jnp.isfinite(length)
    if value is not None:
        ok = ok & _tree.all_finite(value)
    if also is not None:
        ok = ok & also
    return Verdict(agree(ok, axis_name), length, scale, bad_leaves)


def clip(updates: PyTree, verdict: Verdict, max_norm: Any) -> tuple[PyTree, jax.Array]:
    """Scale `updates` to a norm of at most `max_norm`; also say whether that did it."""
    factors, clipped = clip_factors(verdict, max_norm)
    return scale_by(updates, *factors), clipped


def clip_factors(
    verdict: Verdict, max_norm: Any
) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """What to `scale_by`, if there is a norm; and whether that shortens anything.

    The factor is applied in two steps, first the power of two, so that it cannot
    underflow for a norm of 1e38; entries that need no clipping come back bit by bit.
    """
    if max_norm is None:
        return (), jnp.asarray(False)
    dtype = verdict.length.dtype
    limit = jnp.asarray(max_norm, dtype)
    # A non-finite gradient is handed on as it is, for whoever checks it to see.
    clipped = jnp.isfinite(verdict.length) & (verdict.length > limit * verdict.scale)
    first = jnp.where(clipped, verdict.scale, 1)
    second = jnp.where(clipped, limit / verdict.length, 1)
    return (first, second), clipped


def count_nonfinite(updates: PyTree, verdict: Verdict | None = None) -> jax.Array:
    """int32[]: non-finite entries; of what `verdict` looked at, if there is one.

    Exact on CPU; elsewhere float32 counts them, exact up to 2^24.
    """

    def count() -> jax.Array:
        return _tree.count_nonfinite(updates)

    def on_cpu() -> jax.Array:
        if verdict is None:
            return count()
        none = jnp.zeros((), jnp.int32)
        return cond(jnp.isfinite(verdict.length), lambda: none, count)

    def beside_the_norm() -> jax.Array:
        # Of sharded leaves it rides in the all-reduce of the norm, which is float32;
        # an integer would need one of its own.
        return _tree.count_nonfinite(updates, dtype=jnp.float32).astype(jnp.int32)

    return lax.platform_dependent(cpu=on_cpu, default=beside_the_norm)


def commit(
    ok: jax.Array,
    attempt: Callable[[], PyTree],
    keep: PyTree,
    *,
    check: Callable[[PyTree], jax.Array] | None = None,
    axis_name: Any = None,
) -> tuple[jax.Array, PyTree]:
    """`attempt()` where `ok` and where its result passes `check`, else `keep`.

    Returns whether it was committed, and the tree. On CPU a rejected attempt is not
    even made; on an accelerator a conditional would block the host, so it is made and
    thrown away by a select. Without a check the attempt can overwrite donated buffers;
    with one, old and new have to exist side by side.
    """

    def checked() -> tuple[jax.Array, PyTree]:
        new = attempt()
        return ok if check is None else agree(check(new), axis_name), new

    def on_cpu() -> tuple[jax.Array, PyTree]:
        def try_it() -> tuple[jax.Array, PyTree]:
            fine, new = checked()
            if check is None:
                _tree.check_same_leaves(new, keep)
                return fine, jax.tree.map(_tree.strong, new)
            return fine, _tree.select(fine, new, keep)

        return cond(ok, try_it, lambda: (ok, jax.tree.map(_tree.strong, keep)))

    def elsewhere() -> tuple[jax.Array, PyTree]:
        fine, new = checked()
        return ok & fine, _tree.select(ok & fine, new, keep)

    return lax.platform_dependent(cpu=on_cpu, default=elsewhere)


def commit_update(
    ok: jax.Array,
    attempt: Callable[[], tuple[PyTree, PyTree]],
    state: PyTree,
    *,
    checked: bool = True,
    axis_name: Any = None,
) -> tuple[jax.Array, tuple[PyTree, PyTree]]:
    """`commit` for an attempt (updates, state): zeros and the old state if it fails.

    Checked are the updates that come out.
    """
    # An optimizer may hand back another dtype than that of the gradients.
    shapes, _ = jax.eval_shape(attempt)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    check = (lambda new: _tree.all_finite(new[0])) if checked else None
    return commit(ok, attempt, (zeros, state), check=check, axis_name=axis_name)


def agree(ok: jax.Array, axis_name: Any) -> jax.Array:
    """True where `ok` holds on every device along the mapped axes."""
    if axis_name is None:
        return ok
    return lax.pmin(ok.astype(jnp.int32), axis_name).astype(bool)


def scale_by(updates: PyTree, *factors: jax.Array) -> PyTree:
    """Multiply every inexact leaf by scalars, in order, at float32 or better."""
    if not factors:
        return updates

    def leaf(x: Any) -> Any:
        if not _tree.is_inexact(x):
            return x
        x = jnp.asarray(x)
        if jnp.iscomplexobj(x):
            return lax.complex(leaf(x.real), leaf(x.imag))
        wide = x.astype(_floats.wide(x.dtype))
        for factor in factors:
            wide = wide * factor.astype(wide.dtype)
        return wide.astype(x.dtype)

    return jax.tree.map(leaf, updates)


def _length(parts: list[jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(scale * norm, scale, bool[parts]: which are not finite)."""
    dtype = _widest(parts)
    half_range = _floats.half_range(dtype)

    def second_pass_if_needed() -> tuple[jax.Array, jax.Array, jax.Array]:
        pieces = _pieces.of(parts, dtype)

        def rescued(plain: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            scale = jnp.where(jnp.isfinite(plain), half_range, 1 / half_range)
            scale = scale.astype(dtype)
            again = _each_sum(pieces.arrays, scale, dtype)
            bad = _pieces.bad_parts(pieces, ~jnp.isfinite(again))
            return again.sum(), scale, bad

        def trusted(plain: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            return plain, jnp.ones((), dtype), jnp.zeros((len(parts),), bool)

        plain = _each_sum(pieces.arrays, 1, dtype).sum()
        return cond(_trusted(plain), trusted, rescued, plain)

    def of_all_scales(usual: Any, large: Any, small: Any) -> tuple[Any, Any, Any]:
        # A third sum costs no bytes. Two would not do: squares of float32 span 2^-252
        # to 2^256, and one float32 sum of up to 2^32 of them is accurate from
        # `_LEAST_TRUSTED_SUM` to 2^128, 198 powers of two. Two end to end, down from
        # 2^32 of the largest, end at norms of 1e-16.
        total = usual.sum()
        low = jnp.isfinite(total)
        picked = jnp.where(low, small.sum(), large.sum())
        scale = jnp.where(low, half_range, 1 / half_range).astype(dtype)
        bad = ~jnp.isfinite(large)
        ok = _trusted(total)
        return (
            jnp.where(ok, total, picked),
            jnp.where(ok, 1, scale).astype(dtype),
            bad,
        )

    scales = (1, 1 / half_range, half_range)

    def in_one_reduction() -> tuple[jax.Array, jax.Array, jax.Array]:
        found = [_sums_of_squares(x, scales, dtype) for x in parts]
        return of_all_scales(*map(jnp.stack, zip(*found, strict=True)))

    # A conditional left in a GPU program blocks the host; on CPU it saves a pass.
    # A GPU's compiler reads the gradients once for each sum, unless they are one
    # reduction; that of a TPU merges sums, and puts them behind what made the gradient.
    total, scale, bad = lax.platform_dependent(
        cpu=second_pass_if_needed,
        tpu=lambda: of_all_scales(*(_each_sum(parts, s, dtype) for s in scales)),
        default=in_one_reduction,
    )
    return jnp.sqrt(total), scale, bad


def leaf_lengths(parts: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """(scale * norm, scale) of every part, float[parts]; never overflows.

    Non-finite exactly for the parts that are.
    """
    dtype = _widest(parts)
    half_range = _floats.half_range(dtype)

    def rescued(plain: jax.Array) -> tuple[jax.Array, jax.Array]:
        low = jnp.isfinite(plain)
        scale = jnp.where(low, half_range, 1 / half_range).astype(dtype)
        small, large = (
            _each_sum(parts, s, dtype) for s in (half_range, 1 / half_range)
        )
        again = jnp.where(low, small, large)
        fine = _trusted(plain)
        return jnp.where(fine, plain, again), jnp.where(fine, 1, scale).astype(dtype)

    plain = _each_sum(parts, 1, dtype)
    total, scale = lax.platform_dependent(
        plain,
        cpu=lambda plain: cond(
            _trusted(plain).all(), lambda x: (x, jnp.ones_like(x)), rescued, plain
        ),
        default=rescued,
    )
    return jnp.sqrt(total), scale


def clip_leaves(
    updates: PyTree, lengths: jax.Array, scales: jax.Array, limits: jax.Array
) -> tuple[PyTree, jax.Array]:
    """Shorten each inexact leaf to its limit; also say which ones it did.

    As `clip`, for what `leaf_lengths` has found.
    """
    clipped = jnp.isfinite(lengths) & (lengths > limits * scales)
    first = jnp.where(clipped, scales, 1)
    second = jnp.where(clipped, limits / lengths, 1)
    factors = zip(first, second, strict=True)
    leaves, tree = jax.tree.flatten(updates)
    leaves = [scale_by(x, *next(factors)) if _tree.is_inexact(x) else x for x in leaves]
    return jax.tree.unflatten(tree, leaves), clipped


def _widest(parts: list[jax.Array]) -> Any:
    dtypes = [_floats.wide(x.real.dtype) for x in parts]
    return max(dtypes, key=lambda d: jnp.finfo(d).bits)


def _trusted(total: jax.Array) -> jax.Array:
    """Sums of squares from which neither overflow nor underflow took anything."""
    return jnp.isfinite(total) & (total >= _LEAST_TRUSTED_SUM)


def _each_sum(parts: list[jax.Array], scale: Any, dtype: Any) -> jax.Array:
    """dtype[parts]: the sum of squares of every part, at this scale."""
    return jnp.stack([_sum_of_squares(x, scale, dtype) for x in parts])


def _sum_of_squares(x: jax.Array, scale: Any, dtype: Any) -> jax.Array:
    if jnp.iscomplexobj(x):
        return _sum_of_squares(x.real, scale, dtype) + _sum_of_squares(
            x.imag, scale, dtype
        )
    return jnp.sum(_squares(x, scale, dtype))


def _sums_of_squares(
    x: jax.Array, scales: tuple[Any, ...], dtype: Any
) -> tuple[jax.Array, ...]:
    """One for each scale, in one reduction: XLA does not always merge several."""
    if jnp.iscomplexobj(x):
        halves = (_sums_of_squares(part, scales, dtype) for part in (x.real, x.imag))
        return tuple(a + b for a, b in zip(*halves, strict=True))

    def add(left: Any, right: Any) -> Any:
        return tuple(a + b for a, b in zip(left, right, strict=True))

    squares = tuple(_squares(x, scale, dtype) for scale in scales)
    zeros = tuple(jnp.zeros((), dtype) for _ in scales)
    return lax.reduce(squares, zeros, add, tuple(range(x.ndim)))


def _squares(x: jax.Array, scale: Any, dtype: Any) -> jax.Array:
    wide = x.astype(dtype)
    return jnp.square(wide if isinstance(scale, int) else pinned(wide * scale))
