"""What differs between versions of JAX, and everything taken from `jax.extend`.

A jaxpr is read through these few functions only. Between jax 0.10 and 0.12 a closed
jaxpr became a plain one, and `scan` describes its operands by `ft_in` instead of
`num_consts` and `num_carry`; no other module of this package knows.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend import core
from jax.sharding import PartitionSpec

Jaxpr = Any
Equation = Any

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
_SILENT = ("debug_callback", "debug_print")


def open_jaxpr(jaxpr: Jaxpr) -> tuple[Jaxpr, list[Any]]:
    """The equations' owner and the values of its constants."""
    return getattr(jaxpr, "jaxpr", jaxpr), list(getattr(jaxpr, "consts", ()))


def is_literal(atom: Any) -> bool:
    """Whether an operand is a number written into the program."""
    return isinstance(atom, core.Literal)


def called(eqn: Equation) -> Jaxpr | None:
    """The program of an equation that runs it once on its own operands, else None."""
    key = _CALLS.get(eqn.primitive.name)
    if key is None or key not in eqn.params:
        return None
    jaxpr = eqn.params[key]
    inner, _ = open_jaxpr(jaxpr)
    fits = len(inner.invars) == len(eqn.invars)
    return jaxpr if fits and len(inner.outvars) == len(eqn.outvars) else None


def inner_jaxprs(eqn: Equation) -> list[Jaxpr]:
    """Every program that an equation holds, however it runs it."""
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            inner, _ = open_jaxpr(item)
            if hasattr(inner, "eqns"):
                found.append(inner)
    return found


def name_of(eqn: Equation) -> str:
    """The name that `jax.ad_checkpoint.checkpoint_name` gave a value, or ""."""
    return eqn.params["name"] if eqn.primitive.name == "name" else ""


def has_own_derivative(eqn: Equation) -> bool:
    """Whether an equation brings a derivative that its program does not show."""
    return eqn.primitive.name in ("custom_jvp_call", "custom_vjp_call")


def is_recomputed(eqn: Equation) -> bool:
    """Whether an equation is the second run of a `jax.checkpoint`, and its backward."""
    return bool(eqn.params.get("differentiated", False))


def is_silent(eqn: Equation) -> bool:
    """Whether an equation only prints: a replay must not print again."""
    return eqn.primitive.name in _SILENT


def scan_sizes(eqn: Equation) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried."""
    params = eqn.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def shards(eqn: Equation) -> tuple[Jaxpr, tuple[str, ...]] | None:
    """The program that every device of a `shard_map` runs, and the axes it is over."""
    if eqn.primitive.name != "shard_map":
        return None
    params = eqn.params
    manual = params["newly_manual_axes"]
    axes = tuple(name for name in params["mesh"].axis_names if name in manual)
    return params["jaxpr"], axes


def map_shards(
    eqn: Equation, function: Callable[..., Any], out: PartitionSpec
) -> Callable[..., Any]:
    """`function` as a `shard_map` like that of `eqn`, with one more result.

    The further result, any pytree, is put together as `out` says.
    """
    params = eqn.params
    return jax.shard_map(
        function,
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=([*params["out_specs"]], out),
        check_vma=params["check_vma"],
        axis_names=params["newly_manual_axes"],
    )


def device_index() -> jax.Array | None:
    """int32[]: which device runs this, inside of shard_map; None outside."""
    axes = tuple(jax.sharding.get_abstract_mesh().manual_axes)
    return jax.lax.axis_index(axes).astype(np.int32) if axes else None


def bind(eqn: Equation, values: list[Any]) -> list[Any]:
    """Run one equation on values, in the context in which it was traced."""
    params = eqn.primitive.get_bind_params(eqn.params)
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def evaluate(jaxpr: Jaxpr, values: list[Any]) -> list[Any]:
    """Run a whole jaxpr as it stands."""
    inner, consts = open_jaxpr(jaxpr)
    return list(jax.core.eval_jaxpr(inner, consts, *values))


def name_stack(eqn: Equation) -> str:
    """Scopes and transformations of an equation, relative to its own jaxpr."""
    return str(eqn.source_info.name_stack)


def frames(eqn: Equation) -> list[tuple[str, int, str]]:
    """(file, line, function) of the Python calls that made it, innermost first."""
    traceback = eqn.source_info.traceback
    if traceback is None:
        return []
    return [(f.file_name, f.line_num, f.function_name) for f in traceback.frames]


@functools.cache
def _is_floating(dtype: Any) -> bool:
    return bool(jax.numpy.issubdtype(dtype, jax.numpy.inexact))


def is_floating(aval: Any) -> bool:
    """Whether values of this type can hold a NaN."""
    dtype = getattr(aval, "dtype", None)
    shape = getattr(aval, "shape", None)
    # References (mutable arrays) have a dtype too, but no value of their own.
    plain = isinstance(aval, jax.core.ShapedArray)
    return plain and shape is not None and _is_floating(dtype)


def literal_kind(value: Any) -> str:
    """Say "nan", "inf" or "" of a number written into the program."""
    if not _is_floating(jax.numpy.result_type(value)):
        return ""
    array = np.asarray(value)
    wide = array.astype(np.complex128 if np.iscomplexobj(array) else np.float64)
    return "nan" if np.isnan(wide).any() else "inf" if np.isinf(wide).any() else ""
