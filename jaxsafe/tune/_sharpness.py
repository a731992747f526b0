"""How sharply the loss bends: the largest eigenvalue of its Hessian, by Lanczos.

Plain gradient descent on a quadratic diverges beyond the rate 2 / lambda, so the number
belongs beside a range test. The Hessian is never formed: one product with a vector is
`jax.jvp` of `jax.grad`. Only three vectors are kept; without a basis to orthogonalise
against, eigenvalues may come twice, and the largest is right all the same.

Source: Cullum, Willoughby, Lanczos algorithms for large symmetric eigenvalue
computations, 1985; Cohen et al., Gradient descent on neural networks typically occurs
at the edge of stability, 2021, https://arxiv.org/abs/2103.00065.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsafe import _errors, _text, _tree
from jaxsafe._tree import PyTree

_NAME = "sharpness"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sharpness:
    """The largest eigenvalue of the Hessian, and what it says of the rate.

    Attributes:
      eigenvalue: the algebraically largest one; NaN if loss or derivatives are.
      error: bound on its distance to a true eigenvalue; rounding comes on top.
      iterations: products with the Hessian.

    Example:
      >>> from jaxsafe import tune
      >>> tune.Sharpness(eigenvalue=4.0, error=0.0, iterations=8).largest_rate
      0.5
    """

    eigenvalue: float
    error: float
    iterations: int

    @property
    def largest_rate(self) -> float:
        """2 / lambda, beyond which gradient descent diverges; infinite if it is <= 0.

        With heavy-ball momentum b it is 2 (1 + b) / lambda; for Adam it says little.
        """
        if math.isnan(self.eigenvalue):
            return math.nan
        return 2 / self.eigenvalue if self.eigenvalue > 0 else math.inf

    def summary(self) -> str:
        """One line."""
        return (
            f"sharpness {self.eigenvalue:.4g} (+-{self.error:.1g}), "
            f"2 / sharpness = {self.largest_rate:.4g}"
        )

    def to_json(self) -> str:
        """The record as one JSON object; a number that is not finite is null."""
        return _text.to_json(self)


def sharpness(
    loss_fn: Callable[..., jax.Array],
    params: PyTree,
    *batch: Any,
    iterations: int = 30,
    seed: int = 0,
) -> Sharpness:
    """Estimate the largest eigenvalue of the Hessian of a loss by Lanczos iteration.

    Value:     exact to rounding once `iterations` reaches the number of parameters;
               usually to three digits after 30.
    NaN in:    NaN out.

    Args:
      loss_fn: `loss_fn(params, *batch) -> scalar`, twice differentiable in forward
        over reverse mode.
      params: where the Hessian is taken; leaves that are not floating are constants.
      *batch: further arguments.
      iterations: products with the Hessian; each costs about two gradients.
      seed: of the random vector to begin with.

    Returns:
      A `Sharpness`.

    Raises:
      ValueError: `iterations` is no positive integer, or nothing can be differentiated.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsafe import tune
      >>> bend = tune.sharpness(lambda w, a: jnp.sum(a * w**2), jnp.ones(3), 5.0)
      >>> round(bend.eigenvalue, 3), round(bend.largest_rate, 3)
      (10.0, 0.2)
    """
    _errors.check_count(_NAME, "iterations", iterations)
    leaves, structure = jax.tree.flatten(params)
    moving = [i for i, x in enumerate(leaves) if _is_real(x)]
    size = sum(jnp.size(leaves[i]) for i in moving)
    if not size:
        raise _errors.error(
            ValueError, _NAME, "params has no floating leaf", params, "Pass parameters."
        )
    point = [_tree.strong(leaves[i]) for i in moving]

    def loss(parts: list[jax.Array], batch: Any) -> jax.Array:
        full = list(leaves)
        for i, part in zip(moving, parts, strict=True):
            full[i] = part
        return loss_fn(jax.tree.unflatten(structure, full), *batch)

    steps = min(iterations, size)
    key = jax.random.key(seed)
    found = jax.jit(_lanczos, static_argnums=(0, 4))(loss, point, batch, key, steps)
    diagonal, beside = (np.asarray(x, np.float64) for x in found)
    return _largest(diagonal, beside)


def _is_real(leaf: Any) -> bool:
    return _tree.is_inexact(leaf) and not jnp.iscomplexobj(leaf)


def _lanczos(
    loss: Callable[..., jax.Array],
    point: list[jax.Array],
    batch: Any,
    key: jax.Array,
    steps: int,
) -> tuple[jax.Array, jax.Array]:
    """Diagonal and off-diagonal of the tridiagonal matrix."""
    keys = jax.random.split(key, len(point))
    start = [
        jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, point, strict=True)
    ]
    start = _scaled(start, 1 / jnp.sqrt(_dot(start, start)))
    grad = jax.grad(loss)

    def step(carry: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        before, now, beta = carry
        _, bent = jax.jvp(lambda p: grad(p, batch), (point,), (now,))
        alpha = _dot(bent, now)
        rest = jax.tree.map(
            lambda h, v, u: h - (alpha * v + beta * u).astype(h.dtype),
            bent,
            now,
            before,
        )
        norm = jnp.sqrt(_dot(rest, rest))
        # What is left is rounding: the host cuts the matrix here.
        gone = norm <= 1e-6 * jnp.abs(alpha)
        after = _scaled(rest, jnp.where(gone, 0, 1 / jnp.where(gone, 1, norm)))
        return (now, after, norm), (alpha, jnp.where(gone, 0, norm))

    nothing = jax.tree.map(jnp.zeros_like, start)
    _, (diagonal, beside) = lax.scan(
        step, (nothing, start, jnp.zeros(())), None, length=steps
    )
    return diagonal, beside


def _dot(a: list[jax.Array], b: list[jax.Array]) -> jax.Array:
    parts = [jnp.sum(_tree.widened(x) * y) for x, y in zip(a, b, strict=True)]
    return jnp.stack(parts).sum()


def _scaled(tree: list[jax.Array], factor: jax.Array) -> list[jax.Array]:
    return [(x * factor).astype(x.dtype) for x in tree]


def _largest(diagonal: np.ndarray, beside: np.ndarray) -> Sharpness:
    if not (np.isfinite(diagonal).all() and np.isfinite(beside).all()):
        nan = math.nan
        return Sharpness(eigenvalue=nan, error=nan, iterations=len(diagonal))
    ends = np.flatnonzero(beside == 0)
    count = int(ends[0]) + 1 if ends.size else len(diagonal)
    off = beside[: count - 1]
    values, vectors = np.linalg.eigh(
        np.diag(diagonal[:count]) + np.diag(off, 1) + np.diag(off, -1)
    )
    return Sharpness(
        eigenvalue=float(values[-1]),
        error=float(abs(beside[count - 1] * vectors[-1, -1])),
        iterations=count,
    )
