"""Eigenvalues and singular values whose slopes stay finite where two of them meet.

The derivative of an eigenvector divides by the distance to every other eigenvalue. At
equal ones each basis of their subspace is as good as another, so nothing that depends
on the matrix alone can depend on that part: it is left out instead of being infinite.
The matrix is scaled by a power of two, so entries of 1e25 are as good as entries of 1.

Source: Giles, "An extended collection of matrix derivative results for forward and
reverse mode algorithmic differentiation", 2008, sections 3.1 and 3.2.
"""

import functools
from typing import Any, Literal, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxsafe import _catalog, _floats
from jaxsafe._catalog import Edge
from jaxsafe._errors import check_floating, error
from jaxsafe._pin import pinned
from jaxsafe.ops._exact import exponent_near, power_of_two

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


def eigh(a: ArrayLike, *, symmetrize_input: bool = True) -> Eigh:
    """Eigenvalues and eigenvectors of symmetric matrices.

    Value: as jnp.linalg.eigh, for entries of any magnitude.
    Gradient: exact where the eigenvalues are more than n eps of the largest apart.
      Between closer ones the rotation of their eigenvectors counts as 0: exact for the
      eigenvalues' symmetric functions such as trace(f(x)), but a matrix function built
      from the vectors misses that part.
    NaN in: NaN out.
    Error: float32 4.8 ulp of the largest value, gradient 7.1 of 1 at gaps of its size;
      bfloat16 and float16 0.51.

    Args:
      a: floating array [..., n, n].
      symmetrize_input: use (a + a^T) / 2; else the lower triangle.

    Returns:
      `Eigh(eigenvalues, eigenvectors)` of shapes [..., n] and [..., n, n].

    Raises:
      TypeError: `a` is not floating.
      ValueError: `a` is not a stack of square matrices.

    Examples:
      >>> jax.grad(lambda x: jnp.exp(eigh(x)[0]).sum())(jnp.zeros((2, 2)))
      Array([[1., 0.],
             [0., 1.]], dtype=float32)

    References:
      Giles, 2008, section 3.1.
    """
    a = check_matrix("ops.eigh", "a", a, square=True)
    return _scaled_eigh(a, symmetrize_input)


@functools.partial(jax.jit, static_argnums=1)
def _scaled_eigh(a: jax.Array, symmetrize_input: bool) -> Eigh:
    scaled, scale = scaled_to_one(a.astype(_floats.wide(a.dtype)))
    if symmetrize_input:
        scaled = 0.5 * (scaled + scaled.mT)
    w, v = _eigh(scaled)
    return Eigh((pinned(w) * scale[..., 0]).astype(a.dtype), v.astype(a.dtype))


@overload
def svd(
    a: ArrayLike, full_matrices: bool = True, compute_uv: Literal[True] = True
) -> SVD: ...
@overload
def svd(
    a: ArrayLike, full_matrices: bool = True, *, compute_uv: Literal[False]
) -> jax.Array: ...
def svd(
    a: ArrayLike, full_matrices: bool = True, compute_uv: bool = True
) -> SVD | jax.Array:
    """Singular value decomposition.

    Value: as jnp.linalg.svd, for entries of any magnitude.
    Gradient: exact where the singular values are more than n eps of the largest apart,
      and from 0. Between closer ones the rotation of their vectors counts as 0: exact
      for the singular values' symmetric functions. So does, with `full_matrices`, the
      rotation among the vectors that complete a basis: exact for the space they span.
    NaN in: NaN out.
    Error: float32 4.2 ulp of the largest value, gradient 4.4 of 1 at gaps of its size;
      bfloat16 and float16 0.51; on a GPU gradient 6.2.

    Args:
      a: floating array [..., m, n].
      full_matrices: complete u and vh to square matrices.
      compute_uv: whether u and vh are wanted.

    Returns:
      `SVD(u, s, vh)` of shapes [..., m, m], [..., k] and [..., n, n], k = min(m, n);
      [..., m, k], [..., k] and [..., k, n] without `full_matrices`. Without
      `compute_uv` the array s alone.

    Raises:
      TypeError: `a` is not floating.
      ValueError: `a` has fewer than two dimensions.

    Examples:
      >>> jax.grad(lambda a: svd(a, compute_uv=False).sum())(jnp.eye(2))
      Array([[1., 0.],
             [0., 1.]], dtype=float32)

    References:
      Giles, 2008, section 3.2.
    """
    a = check_matrix("ops.svd", "a", a)
    return _scaled_svd(a, full_matrices, compute_uv)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _scaled_svd(a: jax.Array, full_matrices: bool, compute_uv: bool) -> SVD | jax.Array:
    scaled, scale = scaled_to_one(a.astype(_floats.wide(a.dtype)))
    if not compute_uv:
        return (pinned(_values(scaled)) * scale[..., 0]).astype(a.dtype)
    u, s, vh = svd_core(scaled, full_matrices)
    s = pinned(s) * scale[..., 0]
    return SVD(u.astype(a.dtype), s.astype(a.dtype), vh.astype(a.dtype))


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
def _values(x: jax.Array) -> jax.Array:
    """Singular values, without the cost of the vectors until they are needed."""
    return _spoiled(x, jnp.linalg.svd(x, compute_uv=False))[0]


@_values.defjvp
def _values_jvp(primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    u, s, vh = svd_core(x)
    return s, _diagonal(matmul(matmul(u.mT, dx), vh.mT))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def svd_core(x: jax.Array, full: bool = False) -> tuple[jax.Array, ...]:
    """Decomposition of matrices of moderate size."""
    u, s, vh = jnp.linalg.svd(x, full_matrices=full)
    return _spoiled(x, u, s, vh)


@svd_core.defjvp
def _svd_jvp(full: bool, primals: Any, tangents: Any) -> Any:
    (x,), (dx,) = primals, tangents
    u, s, vh = svd_core(x, full)
    k = s.shape[-1]
    du, ds, dv = _thin_tangents(u[..., :k], s, vh[..., :k, :].mT, dx)
    return (u, s, vh), (_completed(u, du), ds, _completed(vh.mT, dv).mT)


def _thin_tangents(
    u: jax.Array, s: jax.Array, v: jax.Array, dx: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """How the thin factors of x change with x."""
    floor = resolution(s)
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
    return du, _diagonal(rotated), dv


def _completed(u: jax.Array, du: jax.Array) -> jax.Array:
    """Tangent of all of `u` from that of its first columns: it stays orthogonal."""
    k = du.shape[-1]
    first, rest = u[..., :k], u[..., k:]
    return jnp.concatenate([du, -matmul(first, matmul(du.mT, rest))], -1)


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
        function=lambda a: eigh(a).eigenvalues,
        naive=lambda x: jnp.linalg.eigh(x)[0],
        kind="whole",
        domain=((-_INF, _INF),),
        edges=(Edge(args=(_ONE,), value=(1.0, 1.0), gradient=(_CORNER,)),),
        ulp=_catalog.bounds(float32=(4.8, 7.1), float64=(4.3, 7.1)),
        oracle=_eigh_oracle,
        size=_largest(_eigh_oracle),
        sample=_symmetric,
    )
)
_catalog.add(
    _catalog.Row(
        name="ops.svd",
        function=lambda a: svd(a).s,
        naive=lambda a: jnp.linalg.svd(a)[1],
        kind="whole",
        domain=((-_INF, _INF),),
        edges=(Edge(args=(_ONE,), value=(1.0, 1.0), gradient=(_CORNER,)),),
        ulp=_catalog.bounds(float32=(4.2, 4.4), float64=(4.2, 4.4), gpu=(4.2, 6.2)),
        oracle=_svd_oracle,
        size=_largest(_svd_oracle),
        sample=_any,
    )
)
