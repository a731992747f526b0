"""The contract of every safe function, read off the catalog.

Compiling is what costs time here, so each test builds one program per row that answers
several questions at once.
"""

import contextlib
import functools
import inspect
import operator
import re

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

import jaxsafe.losses
import jaxsafe.ops
from jaxsafe import _catalog
from jaxsafe._catalog import CATALOG
from tests import oracles, samples
from tests.accuracy import (
    bound,
    derivatives,
    differentiable,
    first,
    result_dtype,
    total,
    worst,
)

ROWS = [pytest.param(row, id=name) for name, row in CATALOG.items()]
every_row = pytest.mark.parametrize("row", ROWS)


def fast_rows(*kinds):
    """Every row; those of other kinds, which take long to compile, in the slow lane."""
    return pytest.mark.parametrize(
        "row",
        [
            pytest.param(
                row, id=name, marks=[pytest.mark.slow] * (row.kind not in kinds)
            )
            for name, row in CATALOG.items()
        ],
    )


# float16 takes the path of bfloat16 and float64 that of float32.
every_dtype = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(d, marks=[pytest.mark.slow] * (d in ("float16", "float64")))
        for d in oracles.DTYPES
    ],
)


def rows_of(*kinds):
    return pytest.mark.parametrize(
        "row", [p for p in ROWS if p.values[0].kind in kinds]
    )


def rows_and_dtypes():
    """All of them; in the default lane float32.

    Half precision is the float32 core, rounded once by what all rows share, and float64
    takes the path of float32.
    """
    for name, row in CATALOG.items():
        for dtype in oracles.DTYPES:
            marks = [] if dtype == "float32" else [pytest.mark.slow]
            yield pytest.param(row, dtype, id=f"{name}-{dtype}", marks=marks)


@pytest.mark.parametrize(("row", "dtype"), list(rows_and_dtypes()))
def test_error_and_edges(row, dtype):
    with oracles.precision(dtype):
        # Short rows as long as most edges are: one program for both.
        check_numbers(row, dtype, samples.arguments(row, dtype, lengths=(2, 60)))


@pytest.mark.slow
@every_dtype
@every_row
def test_error_on_many_more_arguments(row, dtype):
    with oracles.precision(dtype):
        batches = samples.arguments(row, dtype, more=20, lengths=(1, 3, 10, 60))
        check_numbers(row, dtype, batches)


@pytest.mark.slow
@every_row
def test_error_without_jit(row):
    args, on_device = few_arguments(row)
    got = derivatives(row, *on_device)
    assert (worst(row, "float32", args, got) <= bound(row, "float32")[:2]).all()


def few_arguments(row):
    """The same shapes for every row: each primitive compiles once."""
    args = samples.shorten(row, samples.arguments(row, "float32", lengths=(10,))[0])
    return args, [jnp.asarray(a) for a in args]


@fast_rows("entrywise")
def test_a_program_is_kept(row):
    _, on_device = few_arguments(row)
    row.function(*on_device)
    with compilations() as counted:
        row.function(*on_device)
    assert not counted


_COUNTED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: _COUNTED.append(event) if "compile" in event else None
)


@contextlib.contextmanager
def compilations():
    """List of what is traced and compiled in the block."""
    _COUNTED.clear()
    yield _COUNTED


def check_numbers(row, dtype, batches):
    second = len(row.ulp[dtype]) > 2
    edges = samples.edges(row, dtype)
    program = jax.jit(functools.partial(derivatives, row, second=second))
    out = in_few_programs(row, program, batches + edges.batches)
    for args, got in zip(batches, out, strict=False):
        found = worst(row, dtype, args, got)
        assert (found <= bound(row, dtype)).all(), (found, bound(row, dtype))
    for edge, (batch, place) in zip(row.edges, edges.places, strict=True):
        if not samples.exists_in(edge, dtype):
            continue
        value, gradients = out[len(batches) + batch][:2]
        check(edge, at(row, value, place), edge.value, result_dtype(row, dtype))
        for got, want in zip(gradients, edge.gradient, strict=True):
            check(edge, at(row, got, place), want, oracles.DTYPES[dtype])


def in_few_programs(row, program, batches):
    """What `program` makes of each batch: one call for all whose rows are alike."""
    if row.kind == "whole":
        return [program(*map(jnp.asarray, args)) for args in batches]
    alike = {}
    for i, args in enumerate(batches):
        alike.setdefault(tuple(a.shape[1:] for a in args), []).append(i)
    out = [None] * len(batches)
    for places in alike.values():
        columns = zip(*(batches[i] for i in places), strict=True)
        got = program(*(jnp.asarray(np.concatenate(parts)) for parts in columns))
        got = jax.tree.map(np.asarray, got)
        end = 0
        for i in places:
            start, end = end, end + len(batches[i][0])
            out[i] = jax.tree.map(operator.itemgetter(slice(start, end)), got)
    return out


def at(row, array, place):
    return array if row.kind == "whole" else array[place]


def check(edge, got, want, dtype):
    if dtype == np.float64:  # ends of float32 stand for those of the dtype
        narrow, wide = jnp.finfo("float32"), np.finfo(np.float64)
        share = np.asarray(want) / float(narrow.max)
        ends = np.isfinite(share) & (np.abs(share) > 1e-3)
        handed_on = np.abs(np.hstack([np.ravel(a) for a in edge.args]))
        ends &= ~np.isin(np.abs(want), handed_on)
        want = np.where(ends, np.where(ends, share, 0) * wide.max, want)
        floor = np.log(float(narrow.tiny))
        want = np.where(np.isclose(want, floor, rtol=1e-12), np.log(wide.tiny), want)
    with np.errstate(over="ignore"):
        want = np.asarray(want).astype(dtype).astype(np.float64)
    eps = float(jnp.finfo(dtype).eps)
    got = np.asarray(got).astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=max(4 * eps, 1e-7), err_msg=str(edge))


@every_dtype
@every_row
def test_shape_and_dtype(row, dtype):
    with oracles.precision(dtype):
        args = samples.plain(row, dtype)
        out = jax.eval_shape(row.function, *args)
        assert out.dtype == result_dtype(row, dtype)
        # Not every naive twin takes half precision.
        plain = samples.plain(row, "float32")
        assert out.shape == jax.eval_shape(row.naive, *plain).shape
        gradient = jax.grad(total(row), argnums=differentiable(row))
        for i, g in enumerate(jax.eval_shape(gradient, *args)):
            assert (g.shape, g.dtype) == (args[i].shape, args[i].dtype)


@fast_rows("entrywise")
def test_naive_vmap_scan_and_derivatives_agree(row):
    args = samples.plain(row, "float32", count=3)
    moving, fixed = args[: len(row.domain)], args[len(row.domain) :]

    def function(*moving):
        return row.function(*moving, *fixed)

    def slopes(moving):
        return jax.grad(lambda m: total(row)(*m, *fixed))(moving)

    nudges, width = samples.nudges(moving)
    # Where the row bounds the second derivative, the oracle has judged it already.
    second = row.forward and len(row.ulp["float32"]) < 3

    @jax.jit
    def program(moving):
        out = {"ours": function(*moving), "naive": row.naive(*moving, *fixed)}
        out["backward"] = jax.jacrev(function, argnums=differentiable(row))(*moving)
        if row.forward:
            out["forward"] = jax.jacfwd(function, argnums=differentiable(row))(*moving)
        if second:
            out["hessian"] = jax.jacrev(slopes)(moving)
            out["slopes"] = jax.vmap(slopes)(nudges)
        if row.kind != "whole":
            every = (*moving, *fixed)
            out["mapped"] = jax.vmap(row.function)(*every)
            _, out["looped"] = lax.scan(lambda _, a: (_, row.function(*a)), 0, every)
        return out

    out = program(tuple(moving))
    np.testing.assert_allclose(out["ours"], out["naive"], rtol=5e-5, atol=2e-6)
    for name in {"mapped", "looped"} & set(out):
        np.testing.assert_allclose(out[name], out["ours"], rtol=1e-6, atol=1e-7)
    for a, b in zip(out.get("forward", ()), out["backward"], strict=row.forward):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)
    if not second:
        return
    want = samples.central_difference(out["slopes"], width)
    got = samples.as_matrix(out["hessian"], moving)
    scale = max(1.0, np.abs(want).max())
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * scale)


@fast_rows("entrywise", "labelled")
def test_second_derivative_is_finite_at_finite_edges(row):
    wanted = [e for e in row.edges if samples.is_tame(e)]
    if not (wanted and row.forward):
        return
    chosen = samples.edges(row, "float32", wanted)
    second = jax.grad(
        lambda *a: sum(g.sum() for g in jax.grad(total(row), differentiable(row))(*a)),
        differentiable(row),
    )
    out = jax.jit(lambda batches: [second(*args) for args in batches])(chosen.batches)
    for edge, (batch, place) in zip(wanted, chosen.places, strict=True):
        got = [at(row, g, place) for g in out[batch]]
        assert all(np.isfinite(g).all() for g in got), (edge, got)


@rows_of("entrywise", "reduction", "labelled")
def test_nan_comes_out(row):
    args = samples.plain(row, "float32")
    count = len(row.domain)
    # Row i has its NaN in argument i; the last one has none.
    rows = [jnp.stack([a[0]] * (count + 1)) for a in args]
    for i in range(count):
        rows[i] = rows[i].at[(i,) + (0,) * (rows[i].ndim - 1)].set(jnp.nan)
    out = np.asarray(jax.jit(row.function)(*rows))
    assert np.isnan(out[:count]).all()
    assert np.isfinite(out[count]).all()


@rows_of("reduction", "labelled")
def test_nan_comes_out_of_a_long_row_too(row):
    # XLA on CPU may lose a NaN in the maximum of 4,096 or more.
    args = samples.plain(row, "float32", count=1)
    args = tuple(
        jnp.full((3, 10_000), a[0, 0]) if a.ndim == 2 else jnp.broadcast_to(a[0], (3,))
        for a in args
    )
    places = jnp.asarray([0, 4000, 9999])
    poisoned = args[0].at[jnp.arange(3), places].set(jnp.nan)
    assert np.isnan(jax.jit(row.function)(poisoned, *args[1:])).all()


def has_where(row):
    return "where" in inspect.signature(row.function).parameters and row.kind != "whole"


@pytest.mark.parametrize("row", [p for p in ROWS if has_where(p.values[0])])
@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_what_is_masked_never_leaks(row, dtype):
    args = samples.plain(row, dtype)
    wide = [a.shape == args[0].shape and a.dtype != jnp.int32 for a in args]
    mask = jnp.ones(args[0].shape, bool).at[..., 3].set(False)
    junk = (0.5, np.nan, np.inf, -np.inf)
    versions = [
        tuple(a.at[..., 3].set(j) if w else a for a, w in zip(args, wide, strict=True))
        for j in junk
    ]
    masked = functools.partial(row.function, where=mask)

    def both(*args):
        gradient = jax.grad(
            lambda *a: first(row, masked(*a)).astype(jnp.float32).sum(),
            differentiable(row),
        )
        return masked(*args), gradient(*args)

    stacked = [jnp.stack(column) for column in zip(*versions, strict=True)]
    value, gradients = jax.jit(jax.vmap(both))(*stacked)
    for out in (value, *gradients):
        clean, *dirty = oracles.wide(out)
        np.testing.assert_array_equal(dirty, np.stack([clean] * len(dirty)))
    for out in gradients:
        assert np.isfinite(oracles.wide(out)).all()
        np.testing.assert_array_equal(oracles.wide(out)[..., 3], 0)


@rows_of("reduction", "labelled")
def test_masking_equals_leaving_out(row):
    if not has_where(row):
        return
    args = samples.plain(row, "float32")
    mask = jnp.ones(args[0].shape, bool).at[..., 3].set(False)
    short = [jnp.delete(a, 3, axis=-1) if a.ndim == 2 else a for a in args]
    masked = functools.partial(row.function, where=mask)
    got, want = jax.jit(lambda: (masked(*args), row.function(*short)))()
    if got.ndim == args[0].ndim:
        got = jnp.delete(got, 3, axis=-1)
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=1e-7)


@every_row
@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)]
)
def test_lowers_for_every_platform(row, dtype):
    args = samples.plain(row, dtype)
    specs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in args]
    both = jax.jit(functools.partial(derivatives, row))
    exported = jax.export.export(both, platforms=("cpu", "cuda", "tpu"))(*specs)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert "callback" not in exported.mlir_module()


@pytest.mark.slow
@rows_of("entrywise")
def test_any_bit_pattern(row):
    """Whatever the bits, the error stays within the bound."""
    program = jax.jit(functools.partial(derivatives, row))
    shape = (len(row.domain), 8)
    count = int(np.prod(shape))
    bits = st.lists(st.integers(0, 2**32 - 1), min_size=count, max_size=count)

    @settings(max_examples=15)
    @given(bits)
    def check_bits(bits):
        x = np.asarray(bits, np.uint32).view(np.float32).reshape(shape)
        args = samples.within(row, x)
        if row.sample is not None:  # pairs have to fit together
            return
        found = worst(row, "float32", args, program(*args))
        assert (found <= bound(row, "float32")[:2]).all()

    check_bits()


def test_every_public_function_has_a_row():
    public = {f"ops.{n}" for n in jaxsafe.ops.__all__}
    public |= {f"losses.{n}" for n in jaxsafe.losses.__all__}
    assert public == {name.partition("[")[0] for name in CATALOG}


def test_docstrings_have_the_house_form():
    for folder in (jaxsafe.ops, jaxsafe.losses):
        for name in folder.__all__:
            text = getattr(folder, name).__doc__
            for part in (
                "Value:", "Gradient:", "NaN in:", "Error:", "Args:", "Returns:",
                "Raises:", "Examples:", "References:",
            ):  # fmt: skip
                assert part in text, (name, part)


@every_row
def test_docstring_states_the_bounds(row):
    room, _, name = row.name.partition("[")[0].partition(".")
    text = inspect.getdoc(getattr(getattr(jaxsafe, room), name))
    stated = text[text.index("Error:") : text.index("Args:")]
    numbers = {float(n) for n in re.findall(r"(?<![\w.])\d+(?:\.\d+)?", stated)}
    demanded = [row.ulp.get(kind, ()) for kind in ("float32", "bfloat16", "gpu")]
    assert set().union(*demanded) <= numbers


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match=r"catalog: a name is taken \(got ops.log\)"):
        _catalog.add(CATALOG["ops.log"])
