"""From a Python function and concrete arguments to a program.

Arrays among the arguments become the program's arguments, named as the user would
write them (`params['w'][0]`); everything else (numbers, strings, functions) stays what
it is, so a function sees exactly what it would see in a plain call. A number that is
NaN or infinite becomes an argument too, if the function lets it: written into the
program it could not be told from a NaN that the program makes. The function is traced,
never run.
"""

import cmath
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxsafe._errors import error
from jaxsafe._program._graph import Program, build, everything
from jaxsafe._program._modules import module_scopes


class Traced(NamedTuple):
    """A program, the arrays to run it on, and the names of its outputs.

    `positions` are those of the values among the leaves of `(args, kwargs)`.
    """

    program: Program
    values: list[Any]
    outputs: list[str]
    positions: tuple[int, ...] = ()


def trace(
    caller: str,
    fn: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    concrete: bool = True,
    enter: Callable[[Any], Callable[[Any], bool]] = lambda _: everything,
) -> Traced:
    """Trace `fn(*args, **kwargs)`.

    Args:
      caller: name of the public function, for its error messages.
      fn: the function.
      args: its arguments.
      kwargs: its keyword arguments.
      concrete: refuse tracers among them.
      enter: from the jaxpr, which equations to look into; see `build`.

    Raises:
      TypeError: an argument is a tracer, or `fn` cannot be traced.
      ValueError: an argument was donated and is gone.
    """
    paths, tree = jax.tree_util.tree_flatten_with_path((args, kwargs))
    names = [_argument_name(fn, path) for path, _ in paths]
    leaves = [leaf for _, leaf in paths]
    for name, leaf in zip(names, leaves, strict=True):
        if concrete:
            _check_concrete(caller, name, leaf)
    dynamic = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]
    bad = [i for i, leaf in enumerate(leaves) if _is_bad_number(leaf)]

    def jaxpr_of(dynamic: list[int]) -> Any:
        def flat(*arrays: Any) -> Any:
            # Copy: a function may write into the list it is given.
            filled = list(leaves)
            for i, array in zip(dynamic, arrays, strict=True):
                filled[i] = array
            a, k = jax.tree_util.tree_unflatten(tree, filled)
            return _arrays_only(fn(*a, **k))

        make = jax.make_jaxpr(flat, return_shape=True)
        with module_scopes():
            return make(*[leaves[i] for i in dynamic])

    try:
        try:
            chosen = sorted(dynamic + bad)
            jaxpr, shapes = jaxpr_of(chosen)
        except Exception:
            if not bad:
                raise
            chosen = dynamic  # a number that decides what is traced: `if rate > 1:`
            jaxpr, shapes = jaxpr_of(chosen)
    except Exception as reason:
        raise error(
            TypeError,
            caller,
            f"{getattr(fn, '__name__', 'fn')} cannot be traced",
            f"{type(reason).__name__}: {_first_line(reason)}",
            "Pass a function that jax.jit accepts, with arrays where it expects "
            "arrays and plain numbers where it needs them as Python values.",
        ) from reason
    out_paths = jax.tree_util.tree_flatten_with_path(shapes)[0]
    outputs = ["result" + jax.tree_util.keystr(path) for path, _ in out_paths]
    program = build(jaxpr, [names[i] for i in chosen], enter(jaxpr))
    return Traced(program, [leaves[i] for i in chosen], outputs, tuple(chosen))


def _is_array(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array):
        return True
    return isinstance(leaf, np.ndarray | np.generic) and leaf.dtype.kind not in "OSUMm"


def _is_bad_number(leaf: Any) -> bool:
    return isinstance(leaf, float | complex) and not (
        isinstance(leaf, np.generic) or cmath.isfinite(leaf)
    )


def _arrays_only(tree: Any) -> Any:
    """The leaves of a result that can come out of a traced function."""

    def keep(leaf: Any) -> Any:
        number = isinstance(leaf, bool | int | float | complex)
        return leaf if number or _is_array(leaf) else None

    return jax.tree.map(keep, tree)


def _check_concrete(caller: str, name: str, leaf: Any) -> None:
    if isinstance(leaf, jax.core.Tracer):
        raise error(
            TypeError,
            caller,
            f"argument {name} must be concrete",
            f"a tracer of type {jax.typeof(leaf)}",
            "Call it outside jit, grad, vmap and scan.",
        )
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise error(
            ValueError,
            caller,
            f"argument {name} was donated and is gone",
            f"a deleted {leaf.aval.str_short()}",
            "Pass the state that the step returned, or a copy made before it ran.",
        )


def _argument_name(fn: Callable[..., Any], path: tuple[Any, ...]) -> str:
    """`batch['x']` for a leaf of the argument `batch`."""
    group, first, rest = path[0].idx, path[1], path[2:]
    if group == 1:
        name = str(first.key)
    else:
        names = _parameter_names(fn)
        position = first.idx
        known = position < len(names)
        name = names[position] if known else f"args[{position}]"
    return name + jax.tree_util.keystr(rest)


def _parameter_names(fn: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return []
    plain = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return [p.name for p in parameters if p.kind in plain]


def _first_line(reason: Exception) -> str:
    return next(iter(str(reason).splitlines()), "")
