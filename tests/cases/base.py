"""The record of one case, and the decorator that makes one."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

ROOT_MARK = "# root"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One naive JAX function, with arguments that make it non-finite.

    A root is the first equation that makes a non-finite value out of finite ones and on
    which the bad result depends. An infinity that the user put there on purpose is no
    root.

    Attributes:
      name: name of the function.
      url: the bug report.
      cause: id of a row of `jaxsafe.diagnose.CAUSES`.
      phase: forward (the value is non-finite), backward (only the gradient is) or
        update (the function is an update step, or runs several).
      fn: what a user would write; its line with `# root` makes the first bad value.
      args: arguments as numpy arrays.
      root: primitive of the root; "(input)" if an argument already holds a NaN.
      also: primitives that are a fair answer too, where rounding decides.
      loop_index: iteration of the innermost loop in which it happens, or None.
      argnums: what to differentiate with respect to.
      expected: "value" and "grad" that a careful user would want, or None if there is
        no finite answer.
      convention: `expected` is a common choice, not the mathematical limit.
      oracle: recomputes `expected` in float64, where it is not plain mathematics.
      rtol: tolerance for `expected`.
      atol: tolerance for `expected`.
      note: what goes wrong.
      cure: what helps.
    """

    name: str
    url: str
    cause: str
    phase: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    root: str
    note: str
    cure: str
    also: tuple[str, ...] = ()
    loop_index: int | None = None
    argnums: int = 0
    expected: dict[str, Any] | None = None
    convention: bool = False
    oracle: Callable[[], dict[str, Any]] | None = None
    rtol: float = 1e-4
    atol: float = 1e-6

    @property
    def accepted_roots(self) -> tuple[str, ...]:
        """Names of primitives that a diagnosis may report."""
        return (self.root, *self.also)

    @property
    def arrays(self) -> tuple[Any, ...]:
        """The arguments as jax arrays."""
        return jax.tree.map(jnp.asarray, self.args)

    @property
    def failing(self) -> Callable[..., Any]:
        """The function whose output is non-finite: `fn`, or its gradient."""
        if self.phase == "backward":
            return jax.value_and_grad(self.fn, argnums=self.argnums)
        return self.fn

    @property
    def root_line(self) -> int:
        """Number of the line that is marked as the root."""
        return marked_line(self.fn)


def marked_line(fn: Callable[..., Any], mark: str = ROOT_MARK) -> int:
    """Number of the only line of `fn` that ends in `mark`."""
    lines, first = inspect.getsourcelines(fn)
    (offset,) = (i for i, text in enumerate(lines) if text.rstrip().endswith(mark))
    return first + offset


def registry() -> tuple[list[Case], Callable[..., Any]]:
    """A fresh list of cases and the decorator that fills it."""
    cases: list[Case] = []

    def case(*args: Any, **fields: Any) -> Callable[..., Any]:
        def wrap(fn: Callable[..., Any]) -> Callable[..., Any]:
            cases.append(Case(name=fn.__name__, fn=fn, args=args, **fields))
            return fn

        return wrap

    return cases, case


def f32(x: Any) -> np.ndarray:
    return np.asarray(x, np.float32)


def f16(x: Any) -> np.ndarray:
    return np.asarray(x, np.float16)


def bf16(x: Any) -> np.ndarray:
    return np.asarray(x, ml_dtypes.bfloat16)


def slope(f: Callable[[np.ndarray], Any], x: Any) -> np.ndarray:
    """Gradient of a scalar function by central differences in float64."""
    x = np.asarray(x, np.float64)
    grad = np.zeros_like(x)
    for i in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[i] = 1e-6
        grad[i] = (f(x + step) - f(x - step)) / 2e-6
    return grad
