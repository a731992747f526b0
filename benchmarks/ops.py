"""Every function of the catalog beside the one it replaces, value and gradient."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxsafe.losses
import jaxsafe.ops  # noqa: F401  (fills the catalog)
from benchmarks import _peers
from benchmarks._case import Case, Program
from jaxsafe._catalog import CATALOG, Row

_DTYPES = ("float32", "bfloat16")
# Entries of an argument; rows of a reduction.
_LENGTH, _ROWS, _CLASSES = 2**22, 1024, 4096
# The bars that the project has set itself, gradient in float32 on CPU.
_BARS = {
    "losses.sigmoid_binary_cross_entropy": 0.45,
    "losses.sigmoid_focal_loss": 0.30,
    "ops.softmax": 1.05,
    "losses.softmax_cross_entropy_with_integer_labels": 1.05,
}


def cases(*, quick: bool) -> Iterator[Case]:
    """Functions of `jaxsafe.ops`."""
    return room("ops.", quick=quick)


def room(prefix: str, *, quick: bool) -> Iterator[Case]:
    """The rows of the catalog whose name begins like that."""
    for row in CATALOG.values():
        if not row.name.startswith(prefix) or row.kind == "whole":
            continue
        for dtype in _DTYPES[: 1 if quick else 2]:
            for derivative in (False, True):
                yield _case(row, dtype, quick=quick, derivative=derivative)


def _case(row: Row, dtype: str, *, quick: bool, derivative: bool) -> Case:
    peer = _peers.of(row)
    twin = dataclasses.replace(row, function=peer.function)
    name = peer.name if peer.name != "by hand" else f"{row.name} by hand"
    what = "value and gradient" if derivative else "value"
    ours = f"jaxsafe.{row.name}"
    bar = _BARS.get(row.name) if derivative and dtype == "float32" else None
    return Case(
        name=f"{row.name}, {what}, {dtype}",
        contenders={
            name: functools.partial(_program, twin, dtype, quick, derivative),
            ours: functools.partial(_program, row, dtype, quick, derivative),
        },
        baseline=name,
        bars={} if bar is None else {ours: bar},
    )


def _program(row: Row, dtype: str, quick: bool, derivative: bool) -> Program:
    args = _arguments(row, dtype, quick=quick)
    if not derivative:
        return Program(row.function, args)
    floating = tuple(
        i for i, x in enumerate(args) if jnp.issubdtype(x.dtype, jnp.floating)
    )
    out = jax.tree.leaves(jax.eval_shape(row.function, *args))[0]
    if row.name.startswith("losses."):
        slope = jnp.ones((), jnp.float32)
    else:
        # What a model hands down to a layer is an array. Of a plain sum it would be a
        # constant, and the gradient of softmax 0.
        slope = jnp.asarray(np.random.default_rng(1).normal(size=out.shape), out.dtype)
    return Program(_with_gradient(row.function, floating), (*args, slope))


def _with_gradient(function: Callable[..., Any], at: tuple[int, ...]) -> Any:
    def total(*args: Any) -> jax.Array:
        *inputs, slope = args
        out = jax.tree.leaves(function(*inputs))[0]
        return jnp.sum((out * slope).astype(jnp.float32))

    return jax.value_and_grad(total, argnums=at)


def _arguments(row: Row, dtype: str, *, quick: bool) -> tuple[jax.Array, ...]:
    """Numbers of moderate size from the domain; a row has many classes."""
    rng = np.random.default_rng(0)
    shape: tuple[int, ...] = (_LENGTH // (16 if quick else 1),)
    if row.kind != "entrywise":
        shape = (_ROWS // (16 if quick else 1), _CLASSES)
    args = [_drawn(rng, *ends, shape, dtype) for ends in row.domain]
    if row.kind == "labelled":
        args.append(jnp.asarray(rng.integers(0, shape[-1], shape[0])))
    return tuple(args)


def _drawn(
    rng: Any, low: float | None, high: float | None, shape: Any, dtype: str
) -> jax.Array:
    least = max(low, -4.0) if low else 1e-3
    most = 4.0 if high is None else min(high, 4.0)
    return jnp.asarray(rng.uniform(least, most, shape), dtype)
