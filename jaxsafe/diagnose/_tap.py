"""Look at activations while training: mark them in the model, collect them outside.

A mark costs nothing where nobody collects: `tap` then returns its argument, so the
program is the very one without it. Whether somebody collects is a context that is part
of JAX's cache keys, so a function that was jitted without collecting is traced anew.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsafe import _program, _tree
from jaxsafe._errors import error
from jaxsafe._program import Node
from jaxsafe.diagnose._range import Extent, Extremes

T = TypeVar("T")

_collecting = jax.make_user_context(default_value=False)


class TapInfo(NamedTuple):
    """Range of one tapped activation in one call, on the device.

    Attributes:
      largest: largest magnitude, in the dtype of the activation; NaN or infinite if an
        entry is, 0 if the tap was not reached.
      smallest: smallest magnitude that is not 0; 0 if there is none.
      finite: bool[], no entry is NaN or infinite.

    >>> import jax.numpy as jnp
    >>> from jaxsafe import diagnose
    >>> fn = diagnose.collect_taps(lambda x: diagnose.tap("half", x / 2))
    >>> _, taps = fn(jnp.array([0.0, 3.0, -8.0]))
    >>> float(taps["half"].largest), float(taps["half"].smallest)
    (4.0, 1.5)
    """

    largest: jax.Array
    smallest: jax.Array
    finite: jax.Array


def tap(name: str, x: T) -> T:
    """Mark an activation, so that `collect_taps` reports its range.

    Use what it returns, `h = tap("h", h)`: a mark whose result is not used may be left
    out with the rest of the dead code. Only the forward value is looked at; for a
    gradient, tap the gradient.

    Value:     x, bitwise; without `collect_taps` around it the compiled program is
               the same as without the tap.
    Gradient:  that of the identity.
    NaN in:    NaN out; reported as not finite.

    Args:
      name: what to call it. Inside a flax module the module's path is put before it;
        taps of one full name are reported as one.
      x: an array, or a pytree of them, whose paths are put behind the name. Integers
        are not looked at.

    Raises:
      TypeError: `name` is not a string, or empty.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsafe import diagnose
      >>> def model(w, x):
      ...     h = diagnose.tap("hidden", jnp.exp(x @ w))
      ...     return h.sum()
      >>> step = jax.jit(diagnose.collect_taps(jax.value_and_grad(model)))
      >>> (loss, grad), taps = step(jnp.full((2, 2), 30.0), jnp.ones((1, 2)))
      >>> f"{float(taps['hidden'].largest):.3g}", bool(taps["hidden"].finite)
      ('1.14e+26', True)
    """
    if not isinstance(name, str) or not name:
        raise error(
            TypeError,
            "tap",
            "name must be a string that is not empty",
            repr(name),
            'Write for example h = tap("hidden", h).',
        )
    if not _collecting.value:
        return x

    def marked(path: Any, leaf: Any) -> Any:
        if not _tree.is_inexact(leaf):
            return leaf
        return _program.mark(name + jax.tree_util.keystr(path), jnp.asarray(leaf))

    return jax.tree_util.tree_map_with_path(marked, x)


def collect_taps(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Make `fn` return the ranges of its taps beside its result.

    Pure, and free of callbacks: jit, scan or vmap what it returns. Taps inside `fn` are
    found through jit, grad, vmap, scan (over all iterations), while, cond, remat,
    shard_map (over all devices), custom derivatives and flax modules. Inside of a
    shard_map every device has taps of its own: give them an axis and the spec of all
    its axes, or reduce them. Parts of `fn` without a tap run as they are. `watch` tells
    the trend of what comes out.

    Value:     `(fn(*args, **kwargs), taps)`, `taps` a dict from name to `TapInfo`.
    Gradient:  that of `fn`. Put it outside: `collect_taps(jax.value_and_grad(loss))`;
               inside works, unless a tap stands in a function with a custom derivative.
    NaN in:    NaN out, and `finite` of the taps that it reaches is False.

    Args:
      fn: a function that `jax.jit` accepts. It is traced, not run.

    Raises:
      NotImplementedError: when called, a tap stands in a kernel or a linear solver.
      TypeError: when called, `fn` cannot be traced.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax import lax
      >>> from jaxsafe import diagnose
      >>> def body(c, _):
      ...     return diagnose.tap("carry", c * 100), None
      >>> run = diagnose.collect_taps(lambda c: lax.scan(body, c, length=3)[0])
      >>> result, taps = run(jnp.float16(1))
      >>> float(result), bool(taps["carry"].finite)
      (inf, False)
    """

    @functools.wraps(fn)
    def collecting(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, TapInfo]]:
        kept: list[Any] = []

        @functools.wraps(fn)
        def arrays(*args: Any, **kwargs: Any) -> list[Any]:
            leaves, kept[:] = _parted(fn(*args, **kwargs))
            return leaves

        with _collecting(True):
            traced, opened = _program.trace_marked("collect_taps", arrays, args, kwargs)
        program = traced.program
        results, keys, rows = _program.evaluate(
            program, program.constant_values, traced.values, Extremes(_is_tap)
        )
        if opened:
            results = [_without_derivative(x) for x in results]
        structure, fixed = kept
        rest = iter(results)
        out = [next(rest) if leaf is None else leaf[0] for leaf in fixed]
        return jax.tree.unflatten(structure, out), _infos(keys, rows)

    return collecting


def _parted(result: Any) -> tuple[list[Any], list[Any]]:
    """The arrays of a result, and [its structure, its other leaves in brackets]."""
    leaves, structure = jax.tree.flatten(result)
    fixed = [None if isinstance(x, jax.Array | np.ndarray) else [x] for x in leaves]
    arrays = [x for x, f in zip(leaves, fixed, strict=True) if f is None]
    return arrays, [structure, fixed]


def _is_tap(node: Node) -> bool:
    return node.step is not None and _program.mark_of(node.step) is not None


def _infos(keys: list[Node], rows: Extent) -> dict[str, TapInfo]:
    taps: dict[str, list[tuple[Node, Extent]]] = {}
    for i, node in enumerate(keys):
        row = jax.tree.map(lambda x, i=i: x[i], rows)
        taps.setdefault(_full_name(node), []).append((node, row))
    return {name: _info(found) for name, found in taps.items()}


def _full_name(node: Node) -> str:
    assert node.step is not None
    name = _program.mark_of(node.step)
    module = node.step.site.module
    return f"{module}/{name}" if module else str(name)


def _info(found: list[tuple[Node, Extent]]) -> TapInfo:
    nodes, rows = zip(*found, strict=True)
    dtype = jnp.result_type(*[jnp.finfo(node.aval.dtype).dtype for node in nodes])
    row = functools.reduce(Extremes(_is_tap).merge, rows)
    wide = jnp.dtype(f"float{jnp.iinfo(row.largest.dtype).bits}")
    largest, smallest = (lax.bitcast_convert_type(bits, wide) for bits in row)
    return TapInfo(
        largest=largest.astype(dtype),
        smallest=jnp.where(jnp.isfinite(smallest), smallest, 0).astype(dtype),
        finite=jnp.isfinite(largest),
    )


@jax.custom_jvp
def _without_derivative(x: Any) -> Any:
    """`x`, which must not be differentiated."""
    return x


@_without_derivative.defjvp
def _refuse(primals: Any, tangents: Any) -> Any:  # noqa: ARG001
    raise error(
        NotImplementedError,
        "collect_taps",
        "a tap stands in a function with a custom derivative, which is differentiated",
        "grad outside",
        "Write collect_taps(jax.value_and_grad(loss)): grad inside.",
    )
