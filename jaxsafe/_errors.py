"""How every error reads, and the argument checks that raise it.

A message is `function: what is wrong (got value). What to do.` It is raised while
tracing or on the host, never from inside a device program: a program that raises on
one device leaves the others waiting for it.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class NonFiniteError(FloatingPointError):
    """A NaN or Inf that jaxsafe refuses to pass on; raised on the host.

    >>> issubclass(NonFiniteError, FloatingPointError)
    True
    """


def error(
    kind: type[Exception], function: str, wrong: str, got: object, remedy: str
) -> Exception:
    """Return (not raise) an exception whose message has the house form."""
    return kind(f"{function}: {wrong} (got {got}). {remedy}")


def check_floating(function: str, name: str, x: ArrayLike) -> jax.Array:
    """Return `x` as an array; raise TypeError unless its dtype is floating."""
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise error(
            TypeError,
            function,
            f"{name} must be a floating array",
            array.dtype,
            f"Convert it first, for example {name}.astype(jnp.float32).",
        )
    return array


def check_axis(function: str, axis: int, ndim: int) -> int:
    """Return `axis` counted from 0; raise ValueError unless the array has it."""
    if not -ndim <= axis < ndim:
        raise error(
            ValueError,
            function,
            f"axis must lie in [{-ndim}, {ndim}) for an array of {ndim} dimensions",
            axis,
            "Check axis and the shape of the array.",
        )
    return axis % ndim


def check_not_empty(function: str, name: str, x: jax.Array) -> None:
    """Raise ValueError if `x` has no entries: the mean of nothing is NaN."""
    if x.size == 0:
        raise error(
            ValueError,
            function,
            f"{name} must not be empty",
            f"shape {x.shape}",
            "Leave out batches without rows.",
        )


def check_positive(function: str, name: str, value: Any) -> None:
    """Raise ValueError unless a concrete `value` is a finite number above 0."""
    if isinstance(value, jax.core.Tracer):
        return
    if not (_is_number(value) and 0 < float(value) < float("inf")):
        raise error(
            ValueError,
            function,
            f"{name} must be a finite number above 0",
            value,
            f"Pass a positive {name}.",
        )


def check_fraction(function: str, name: str, value: Any) -> None:
    """Raise ValueError unless a concrete `value` lies in (0, 1]."""
    if isinstance(value, jax.core.Tracer):
        return
    if not (_is_number(value) and 0 < float(value) <= 1):
        raise error(
            ValueError,
            function,
            f"{name} must lie in (0, 1]",
            value,
            f"Pass a {name} such as 0.5.",
        )


def _is_number(value: Any) -> bool:
    return not isinstance(value, str | bytes | None) and jnp.ndim(value) == 0


def check_count(function: str, name: str, value: Any, *, least: int = 1) -> None:
    """Raise ValueError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise error(
            ValueError,
            function,
            f"{name} must be an integer of at least {least}",
            value,
            f"Pass a whole number for {name}.",
        )


def check_choice(
    function: str, name: str, value: object, choices: tuple[str, ...]
) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise error(
            ValueError,
            function,
            f"{name} must be one of {', '.join(map(repr, choices))}",
            repr(value),
            "Check the spelling.",
        )
