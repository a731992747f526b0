"""Cholesky factors and linear systems that fail loudly, or not at all.

A covariance matrix is positive semi-definite on paper and has a pivot of -1e-9 in
float32: one jitter, as small as works, makes it definite again. A singular system has
no solution or many: the least-squares solution of least norm always exists. Either way
a status says what was done.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_count, check_floating, check_positive, error
from jaxsafe.ops._spectral import (
    check_matrix,
    inverse,
    matmul,
    resolution,
    scaled_to_one,
    svd_core,
)

_INF = float("inf")


class CholeskyInfo(NamedTuple):
    """What `cholesky` did: what it added to the diagonal, and whether that helped."""

    jitter: jax.Array
    ok: jax.Array


class SolveInfo(NamedTuple):
    """What `solve` met: the numerical rank, and whether it is full."""

    rank: jax.Array
    ok: jax.Array


def cholesky(
    a: ArrayLike, *, jitter: float | None = None, max_tries: int = 6
) -> tuple[jax.Array, CholeskyInfo]:
    """Cholesky factor of a matrix that is positive definite but for rounding.

    Value: lower factor of (a + a^T) / 2, as jnp.linalg.cholesky, if that exists. Else
      jitter, relative to the mean of the diagonal (to 1 for a zero matrix), is added to
      the diagonal and multiplied by 10 until it does. Finite for every finite positive
      semi-definite matrix; NaN with `ok` False for one that is further from definite
      than the largest jitter.
    Gradient: that of the factor at the jitter used, which counts as a constant.
    NaN in: NaN out, with `ok` False.
    Error: float32 1.4 ulp of the root of the largest entry, gradient 0.7 of 1, for well
      conditioned matrices; bfloat16 and float16 0.51; on a GPU float32 1.8 ulp.

    Args:
      a: floating array [..., n, n].
      jitter: first jitter to try; by default 8 eps of the dtype computed in.
      max_tries: how many jitters to try after none.

    Returns:
      The factor, and `CholeskyInfo(jitter, ok)` of shape [...] with the amount added.

    Raises:
      TypeError: `a` is not floating.
      ValueError: `a` is not a stack of square matrices, `jitter` is not positive or
        `max_tries` is not a count.

    Examples:
      >>> factor, info = cholesky(jnp.ones((2, 2)))
      >>> bool(jnp.isfinite(factor).all()), bool(info.ok)
      (True, True)

    References:
      Higham, "Accuracy and Stability of Numerical Algorithms", 2002, chapter 10.
    """
    a = check_matrix("ops.cholesky", "a", a, square=True)
    check_count("ops.cholesky", "max_tries", max_tries)
    eps = float(jnp.finfo(_floats.wide(a.dtype)).eps)
    least = 8 * eps if jitter is None else jitter
    check_positive("ops.cholesky", "jitter", least)
    return _cholesky(a, float(least), max_tries)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _cholesky(
    a: jax.Array, least: float, max_tries: int
) -> tuple[jax.Array, CholeskyInfo]:
    scaled, scale = scaled_to_one(a.astype(_floats.wide(a.dtype)))
    scaled = 0.5 * (scaled + scaled.mT)
    amount, ok = _least_jitter(lax.stop_gradient(scaled), least, max_tries)
    factor = _factor(scaled, amount) * jnp.sqrt(scale)
    amount = (amount * scale[..., 0, 0]).astype(a.dtype)
    return factor.astype(a.dtype), CholeskyInfo(amount, ok)


def _factor(a: jax.Array, amount: jax.Array) -> jax.Array:
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)
    lift = amount[..., None, None] * jnp.broadcast_to(eye, a.shape)
    return jnp.linalg.cholesky(a + lift)


def _least_jitter(
    a: jax.Array, least: float, max_tries: int
) -> tuple[jax.Array, jax.Array]:
    """The first of 0, least, 10 least, ... (of the mean diagonal) that works."""
    mean = jnp.mean(jnp.abs(jnp.diagonal(a, axis1=-2, axis2=-1)), -1)
    unit = least * jnp.where(mean == 0, 1, mean)

    def works(amount: jax.Array) -> jax.Array:
        return jnp.isfinite(_factor(a, amount)).all((-2, -1))

    def more(carry: Any) -> jax.Array:
        tried, _, ok = carry
        return (tried < max_tries) & ~ok.all()

    def attempt(carry: Any) -> Any:
        tried, amount, ok = carry
        amount = jnp.where(ok, amount, jnp.where(amount == 0, unit, 10 * amount))
        return tried + 1, amount, works(amount)

    none = jnp.zeros_like(unit)
    start = (jnp.zeros((), jnp.int32), none, works(none))
    _, amount, ok = lax.while_loop(more, attempt, start)
    return amount, ok


def solve(a: ArrayLike, b: ArrayLike) -> tuple[jax.Array, SolveInfo]:
    """Solution of a @ x = b, also if `a` is singular.

    Value: as jnp.linalg.solve; for an `a` that is singular to working precision (a
      singular value within n eps of 0, relative to the largest) the least-squares
      solution of least norm, with `ok` False.
    Gradient: of the pseudo-inverse at constant rank.
    NaN in: NaN out, with `ok` False.
    Error: float32 2.2 ulp of the largest entry, gradient 1.4, for well conditioned
      `a`; bfloat16 and float16 0.51.

    Args:
      a: floating array [..., n, n].
      b: floating array, a vector [n] or matrices [..., n, k].

    Returns:
      The solution, shaped as `b`, and `SolveInfo(rank, ok)` of shape [...].

    Raises:
      TypeError: `a` or `b` is not floating.
      ValueError: `a` is not a stack of square matrices or `b` does not fit.

    Examples:
      >>> x, info = solve(jnp.ones((2, 2)), jnp.asarray([2.0, 2.0]))
      >>> x.round(5), info.ok
      (Array([1., 1.], dtype=float32), Array(False, dtype=bool))

    References:
      Golub & Pereyra, "The differentiation of pseudo-inverses", SIAM J. Numer. Anal.
      10(2), 1973.
    """
    a = check_matrix("ops.solve", "a", a, square=True)
    b = check_floating("ops.solve", "b", b)
    vector = b.ndim == 1
    if b.ndim == 0 or b.shape[-1 if vector else -2] != a.shape[-1]:
        raise error(
            ValueError,
            "ops.solve",
            f"b must be a vector [{a.shape[-1]}] or matrices [..., {a.shape[-1]}, k]",
            b.shape,
            "Append an axis to a batch of vectors.",
        )
    return _solve(a, b)


@jax.jit
def _solve(a: jax.Array, b: jax.Array) -> tuple[jax.Array, SolveInfo]:
    dtype, vector = jnp.result_type(a, b), b.ndim == 1
    wide = _floats.wide(dtype)
    right = b.astype(wide)[:, None] if vector else b.astype(wide)
    batch = jnp.broadcast_shapes(a.shape[:-2], right.shape[:-2])
    right = jnp.broadcast_to(right, batch + right.shape[-2:])
    a = jnp.broadcast_to(a.astype(wide), batch + a.shape[-2:])
    scaled, scale = scaled_to_one(a)
    pseudo, s = _pseudo_inverse(scaled)
    x = matmul(pseudo, right)
    # One step of refinement makes the residual as small as that of an elimination.
    x = (x + matmul(pseudo, right - matmul(scaled, x))) / scale
    rank = jnp.sum(s > resolution(s), -1, dtype=jnp.int32)
    info = SolveInfo(rank, rank == a.shape[-1])
    return (x[..., 0] if vector else x).astype(dtype), info


@jax.custom_jvp
def _pseudo_inverse(a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(pseudo-inverse, singular values, which count as constants)."""
    u, s, vh = svd_core(a)
    return matmul(vh.mT * inverse(s, resolution(s))[..., None, :], u.mT), s


@_pseudo_inverse.defjvp
def _pseudo_inverse_jvp(primals: Any, tangents: Any) -> Any:
    (a,), (da,) = primals, tangents
    p, s = _pseudo_inverse(a)
    eye = jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=a.dtype), a.shape)
    left, right = eye - matmul(a, p), eye - matmul(p, a)
    inside = matmul(matmul(p, da), p)
    outside = matmul(matmul(matmul(p, p.mT), da.mT), left)
    across = matmul(matmul(right, da.mT), matmul(p.mT, p))
    return (p, s), (outside + across - inside, jnp.zeros_like(s))


def _cholesky_oracle(mp: Any, a: Any) -> tuple[Any, None]:
    m = mp.matrix(a)
    return mp.cholesky((m + m.T) / 2).tolist(), None


def _cholesky_size(mp: Any, a: Any) -> tuple[Any, Any]:
    root = mp.sqrt(max(abs(v) for row in a for v in row))
    return [[root] * len(a) for _ in a], ([[mp.mpf(1)] * len(a) for _ in a],)


def _solve_oracle(mp: Any, a: Any, b: Any) -> tuple[Any, None]:
    return list(mp.lu_solve(mp.matrix(a), mp.matrix(b))), None


def _solve_size(mp: Any, a: Any, b: Any) -> tuple[Any, Any]:
    x, _ = _solve_oracle(mp, a, b)
    peak = max(map(abs, x))
    wide = max(peak, mp.mpf(1))
    return [peak] * len(x), ([[wide] * len(a) for _ in a], [mp.mpf(1)] * len(a))


def _definite(rng: Any) -> Any:
    import numpy as np

    for n in (2, 3):
        root = rng.uniform(-0.5, 0.5, (n, n)) + 1.5 * np.eye(n)
        yield (root @ root.T,)


def _systems(rng: Any) -> Any:
    import numpy as np

    for n in (2, 3):
        a = rng.uniform(-0.5, 0.5, (n, n)) + 2 * np.eye(n)
        yield a, rng.standard_normal(n)


_ONE, _CORNER = ((1.0, 0.0), (0.0, 1.0)), ((0.5, 0.0), (0.0, 0.0))
_catalog.add(
    _catalog.Row(
        name="ops.cholesky",
        function=lambda a: cholesky(a)[0],
        naive=jnp.linalg.cholesky,
        kind="whole",
        domain=((-_INF, _INF),),
        edges=(Edge(args=(_ONE,), value=_ONE, gradient=(_CORNER,)),),
        ulp=_catalog.bounds(float32=(1.4, 0.7), float64=(0.9, 0.5), gpu=(1.8, 0.7)),
        oracle=_cholesky_oracle,
        size=_cholesky_size,
        sample=_definite,
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.solve",
        function=lambda a, b: solve(a, b)[0],
        naive=jnp.linalg.solve,
        kind="whole",
        domain=((-_INF, _INF), (-_INF, _INF)),
        edges=(
            Edge(
                args=(((0.0, 0.0), (0.0, 0.0)), (1.0, 2.0)),
                value=(0.0, 0.0),
                gradient=(((0.0, 0.0), (0.0, 0.0)), (0.0, 0.0)),
            ),
        ),
        ulp=_catalog.bounds(float32=(2.2, 1.4), float64=(2.2, 1.4)),
        oracle=_solve_oracle,
        size=_solve_size,
        sample=_systems,
    )
)
