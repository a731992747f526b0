"""Eigenvalues and singular values whose slopes stay finite where two of them meet.

The derivative of an eigenvector divides by the distance to every other eigenvalue. At
equal ones each basis of their subspace is as good as another, so nothing that depends
on the matrix alone can depend on that part: it is left out instead of being infinite.
The matrix is scaled by a power of two, so entries of 1e25 are as good as entries of 1.

Source: Giles, "An extended collection of matrix derivative results for forward and
reverse mode algorithmic differentiation", 2008, sections 3.1 and 3.2.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_floating, error
from jaxsafe.ops._exact import exponent_near, pinned, power_of_two

_INF = float("inf")

matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


class Eigh(NamedTuple):
    """Eigenvalues in ascending order, and eigenvectors as columns."""

    eigenvalues: jax.Array
    eigenvectors: jax.Array


class SVD(NamedTuple):
    """Factors u @ diag(s) @ vh of a matrix, with s in descending order."""

    u: jax.Array
    s: jax.Array
    vh: jax.Array


def eigh(x: ArrayLike, *, symmetrize_input: bool = True) -> Eigh:
    """Eigenvalues and eigenvectors of symmetric matrices.

    Value: as jnp.linalg.eigh, for entries of any magnitude.
    Gradient: exact where the eigenvalues are more than n eps of the largest apart.
      Between closer ones the rotation of their eigenvectors counts as 0: exact for the
      eigenvalues' symmetric functions such as trace(f(x)), but a matrix function built
      from the vectors misses that part.
    NaN in: NaN out.
    Error: float32 4 ulp of the largest value, gradient 8 of 1 at gaps of its size;
      bfloat16 and float16 0.51.

    Args:
      x: floating array [..., n, n].
      symmetrize_input: use (x + x^T) / 2; else the lower triangle.

    Returns:
      `Eigh(eigenvalues, eigenvectors)` of shapes [..., n] and [..., n, n].

    Raises:
      TypeError: `x` is not floating.
      ValueError: `x` is not a stack of square matrices.

    Examples:
      >>> jax.grad(lambda x: jnp.exp(eigh(x)[0]).sum())(jnp.zeros((2, 2)))
      Array([[1., 0.],
             [0., 1.]], dtype=float32)

    References:
      Giles, 2008, section 3.1.
    """
    x = check_matrix("ops.eigh", "x", x, square=True)
    scaled, scale = scaled_to_one(x.astype(_floats.wide(x.dtype)))
    if symmetrize_input:
        scaled = 0.5 * (scaled + scaled.mT)
    w, v = _eigh(scaled)
    return Eigh((pinned(w) * scale[..., 0]).astype(x.dtype), v.astype(x.dtype))


def svd(x: ArrayLike) -> SVD:
    """Thin singular value decomposition.

    Value: as jnp.linalg.svd with full_matrices=False, for entries of any magnitude.
    Gradient: exact where the singular values are more than n eps of the largest apart,
      and from 0. Between closer ones the rotation of their vectors counts as 0: exact
      for the singular values' symmetric functions.
    NaN in: NaN out.
    Error: float32 4 ulp of the largest value, gradient 8 of 1 at gaps of its size;
      bfloat16 and float16 0.51.

    Args:
      x: floating array [..., m, n].

    Returns:
      `SVD(u, s, vh)` of shapes [..., m, k], [..., k] and [..., k, n], k = min(m, n).

    Raises:
      TypeError: `x` is not floating.
      ValueError: `x` has fewer than two dimensions.

    Examples:
      >>> jax.grad(lambda x: svd(x).s.sum())(jnp.eye(2))
      Array([[1., 0.],
             [0., 1.]], dtype=float32)

    References:
      Giles, 2008, section 3.2.
    """
    x = check_matrix("ops.svd", "x", x)
    scaled, scale = scaled_to_one(x.astype(_floats.wide(x.dtype)))
    u, s, vh = svd_core(scaled)
    s = pinned(s) * scale[..., 0]
    return SVD(u.astype(x.dtype), s.astype(x.dtype), vh.astype(x.dtype))


def check_matrix(
    function: str, name: str, x: ArrayLike, *, square: bool = False
) -> jax.Array:
    """Return `x` as an array; raise unless it holds (square) floating matrices."""
    x = check_floating(function, name, x)
    if x.ndim < 2 or (square and x.shape[-1] != x.shape[-2]):
        shape = "[..., n, n]" if square else "[..., m, n]"
        raise error(
            ValueError,
            function,
            f"{name} must have the shape {shape}",
            x.shape,
            "Stack matrices along leading dimensions.",
        )
    return x


def scaled_to_one(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Matrices with largest entry in [1/4, 1), and powers of four that undo it."""
    peak = jnp.max(jnp.abs(lax.stop_gradient(x)), (-2, -1), keepdims=True, initial=0)
    exponent = exponent_near(peak)
    exponent = exponent + exponent % 2
    return x * power_of_two(-exponent, x.dtype), power_of_two(exponent, x.dtype)


def inverse(x: jax.Array, floor: jax.Array) -> jax.Array:
    """1 / x, or 0 where |x| is no more than `floor`."""
    low = jnp.abs(x) <= floor
    return jnp.where(low, 0, 1 / jnp.where(low, 1, x))


def resolution(values: jax.Array) -> jax.Array:
    """Values closer than this are equal but for rounding, shape [..., 1]."""
    size = jnp.max(jnp.abs(values), -1, keepdims=True, initial=0)
    eps = float(jnp.finfo(values.dtype).eps)
    return lax.stop_gradient(size) * (eps * values.shape[-1])


@jax.custom_jvp
def _eigh(x: jax.Array) -> tuple[jax.Array, ...]:
    w, v = jnp.linalg.eigh(x, symmetrize_input=False)
    return _spoiled(x, w, v)


@_eigh.defjvp
def _eigh_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    w, v = _eigh(x)
    rotated = matmul(matmul(v.mT, dx), v)
    gap = w[..., None, :] - w[..., :, None]
    turn = inverse(gap, resolution(w)[..., None]) * rotated
    return (w, v), (_diagonal(rotated), matmul(v, turn))


@jax.custom_jvp
def svd_core(x: jax.Array) -> tuple[jax.Array, ...]:
    """Thin decomposition of matrices of moderate size."""
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    return _spoiled(x, u, s, vh)


@svd_core.defjvp
def _svd_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    u, s, vh = svd_core(x)
    v, floor = vh.mT, resolution(s)
    rotated = matmul(matmul(u.mT, dx), v)
    row, column = s[..., None, :], s[..., :, None]
    gap = inverse(row - column, floor[..., None])
    gap = gap * inverse(row + column, floor[..., None])
    du = matmul(u, gap * (rotated * row + column * rotated.mT))
    dv = matmul(v, gap * (column * rotated + rotated.mT * row))
    each = inverse(s, floor)[..., None, :]
    # What leaves the space that the thin factors span.
    out_u, out_v = matmul(dx, v), matmul(dx.mT, u)
    du = du + (out_u - matmul(u, matmul(u.mT, out_u))) * each
    dv = dv + (out_v - matmul(v, matmul(v.mT, out_v))) * each
    return (u, s, vh), (du, _diagonal(rotated), dv.mT)


def _spoiled(x: jax.Array, *results: jax.Array) -> tuple[jax.Array, ...]:
    """All NaN if `x` is not finite: LAPACK may return numbers for such a matrix."""
    bad = ~jnp.isfinite(x).all((-2, -1))
    return tuple(
        jnp.where(jnp.expand_dims(bad, range(bad.ndim, r.ndim)), jnp.nan, r)
        for r in results
    )


def _diagonal(x: jax.Array) -> jax.Array:
    return jnp.diagonal(x, axis1=-2, axis2=-1)


def _eigh_oracle(mp: Any, x: Any) -> tuple[Any, None]:
    a = mp.matrix(x)
    values = mp.eigsy((a + a.T) / 2, eigvals_only=True)
    return sorted(values), None


def _svd_oracle(mp: Any, x: Any) -> tuple[Any, None]:
    return sorted(mp.svd_r(mp.matrix(x), compute_uv=False), reverse=True), None


def _largest(oracle: Any) -> Any:
    """Rounding the matrix alone moves each value by an ulp of the largest."""

    def size(mp: Any, x: Any) -> tuple[Any, Any]:
        values, _ = oracle(mp, x)
        ones = [[mp.mpf(1)] * len(row) for row in x]
        return [max(map(abs, values))] * len(values), (ones,)

    return size


def _apart(rng: Any, shape: tuple[int, int], values: Any) -> Any:
    import numpy as np

    m, n = shape
    u, _ = np.linalg.qr(rng.standard_normal((m, m)))
    v = u if m == n else np.linalg.qr(rng.standard_normal((n, n)))[0]
    k = len(values)
    return (u[:, :k] * np.asarray(values)) @ v[:, :k].T


def _symmetric(rng: Any) -> Any:
    for scale in (1.0, 4.0, 0.125):
        yield (_apart(rng, (2, 2), [-1.0 * scale, 2.0 * scale]),)
        yield (_apart(rng, (3, 3), [-2.0 * scale, 0.5 * scale, 3.0 * scale]),)


def _any(rng: Any) -> Any:
    for scale in (1.0, 4.0, 0.125):
        yield (_apart(rng, (3, 2), [3.0 * scale, 1.0 * scale]),)
        yield (_apart(rng, (3, 3), [5.0 * scale, 2.0 * scale, 1.0 * scale]),)


_ONE, _CORNER = ((1.0, 0.0), (0.0, 1.0)), ((1.0, 0.0), (0.0, 0.0))
_catalog.add(
    _catalog.Row(
        name="ops.eigh",
        function=lambda x: eigh(x).eigenvalues,
        naive=lambda x: jnp.linalg.eigh(x)[0],
        kind="whole",
        domain=((-_INF, _INF),),
        edges=(Edge(args=(_ONE,), value=(1.0, 1.0), gradient=(_CORNER,)),),
        ulp=_catalog.bounds(float32=(4, 8), float64=(4, 8)),
        oracle=_eigh_oracle,
        size=_largest(_eigh_oracle),
        sample=_symmetric,
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.svd",
        function=lambda x: svd(x).s,
        naive=lambda x: jnp.linalg.svd(x, full_matrices=False)[1],
        kind="whole",
        domain=((-_INF, _INF),),
        edges=(Edge(args=(_ONE,), value=(1.0, 1.0), gradient=(_CORNER,)),),
        ulp=_catalog.bounds(float32=(4, 8), float64=(4, 8)),
        oracle=_svd_oracle,
        size=_largest(_svd_oracle),
        sample=_any,
    )
)
