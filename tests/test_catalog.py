"""The contract of every safe function, read off the catalog."""

import functools
import inspect
import itertools
import zlib

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxsafe.losses
import jaxsafe.ops
from jaxsafe import _catalog
from jaxsafe._catalog import CATALOG
from tests import oracles

ROWS = [pytest.param(row, id=name) for name, row in CATALOG.items()]
DTYPES = list(oracles.DTYPES)
every_row = pytest.mark.parametrize("row", ROWS)
# float16 takes the path of bfloat16; its exhaustive sweeps are elsewhere.
every_dtype = pytest.mark.parametrize(
    "dtype",
    [pytest.param(d, marks=[pytest.mark.slow] * (d == "float16")) for d in DTYPES],
)
REDUCTIONS = [p for p in ROWS if p.values[0].kind in ("reduction", "labelled")]
reductions = pytest.mark.parametrize("row", REDUCTIONS)


def out_dtype(row, dtype):
    return np.dtype(dtype if row.keeps_dtype else np.float32)


def rng_of(row):
    return np.random.default_rng(zlib.crc32(row.name.encode()))


def entrywise(row, dtype, rng, count):
    """Arguments of every magnitude inside the domain."""
    columns = []
    for low, high in row.domain:
        anywhere = oracles.random_bits(rng, 8 * count, dtype)
        if high == 1:
            ends = rng.integers(0, 2, count).astype(dtype)
            between = rng.random(count).astype(dtype)
            columns.append(np.where(rng.random(count) < 0.7, ends, between))
            continue
        moderate = (rng.standard_normal(8 * count) * 8).astype(dtype)
        x = np.where(rng.random(8 * count) < 0.5, anywhere, moderate)
        wide = oracles.wide(oracles.flush(x))
        above = wide >= float(jnp.finfo(dtype).tiny) if low is None else wide > low
        keep = above & (wide < high) & (wide != 0)
        columns.append(x[keep][:count])
    return tuple(columns)


def rows_of_numbers(row, dtype, rng, lengths):
    """Arrays [rows, n]: several lengths, scales and confident rows."""
    scales = np.repeat([1e-3, 1.0, 10.0, 50.0], 4)[:, None]
    for n in lengths:
        x = rng.standard_normal((16, n)) * scales
        x[::2] = np.sort(x[::2])[:, ::-1]  # first entry largest
        x[::4, 0] += scales[::4, 0]
        yield x.astype(dtype)
    if row.name == "ops.norm":
        info = jnp.finfo(dtype)
        for scale in (float(info.max) / 8, float(info.tiny) * 64):
            yield (rng.uniform(-1, 1, (6, 5)) * scale).astype(dtype)


def arguments(row, dtype, *, more=1, lengths=(3, 60)):
    """Yield argument tuples on which the bounds must hold; `more` times as many."""
    dtype, rng = oracles.DTYPES[dtype], rng_of(row)
    if row.kind in ("unary", "binary"):
        count = 2000 if row.kind == "unary" else 1000
        yield entrywise(row, dtype, rng, count * more)
        return
    draws = (rows_of_numbers(row, dtype, rng, lengths) for _ in range(more))
    for x in itertools.chain.from_iterable(draws):
        if row.kind == "labelled":
            labels = rng.integers(0, x.shape[1], x.shape[0]).astype(np.int32)
            labels[::2] = 0
            yield x, labels
        else:
            yield (x,)


def plain(row, dtype, count=5):
    """A few tame arguments, away from every edge."""
    rng = rng_of(row)
    if row.kind == "unary":
        return (jnp.asarray(rng.uniform(0.5, 3, count), dtype),)
    if row.kind == "binary":
        x, y = rng.uniform(0.5, 3, (2, count))
        return jnp.asarray(x, dtype), jnp.asarray(
            np.minimum(y, row.domain[1][1]), dtype
        )
    x = jnp.asarray(rng.standard_normal((3, count)), dtype)
    if row.kind == "labelled":
        return x, jnp.asarray([0, 1, 2], jnp.int32)
    return (x,)


def differentiable(row):
    return (0, 1) if row.kind == "binary" else (0,)


def total(row):
    """Sum of what the catalog's gradient belongs to: first entries of vectors."""

    def function(*args):
        out = row.function(*args)
        if row.kind == "reduction" and out.ndim == args[0].ndim:
            out = out[..., 0]
        return jnp.sum(out.astype(jnp.float32))

    return function


def errors(row, dtype, args, value, gradients):
    """Largest error of the value and of the gradient, in ulp."""
    want, slopes = oracles.reference(row, *args)
    size, slope_sizes = want, slopes
    if row.size is not None:
        size, slope_sizes = oracles.reference(row, *args, which="size")
    terms = args[0].shape[-1] if args[0].ndim > 1 else 0
    off = oracles.ulps(value, want, out_dtype(row, dtype), size.high, terms).max()
    slope_off = max(
        oracles.ulps(got, slope, oracles.DTYPES[dtype], unit.high, terms).max()
        for got, slope, unit in zip(gradients, slopes, slope_sizes, strict=True)
    )
    return off, slope_off


@every_dtype
@every_row
def test_error_stays_within_the_stated_ulp(row, dtype):
    check_error(row, dtype, jax.jit)


@every_row
def test_error_without_jit(row):
    check_error(row, "float32", lambda function: function, lengths=(10,))


@pytest.mark.slow
@every_dtype
@every_row
def test_error_on_many_more_arguments(row, dtype):
    check_error(row, dtype, jax.jit, more=20, lengths=(1, 3, 10, 60))


def check_error(row, dtype, compile_, **how_many):
    value = compile_(row.function)
    gradient = compile_(jax.grad(total(row), argnums=differentiable(row)))
    for args in arguments(row, dtype, **how_many):
        on_device = [jnp.asarray(a) for a in args]
        found = errors(row, dtype, args, value(*on_device), gradient(*on_device))
        assert (np.asarray(found) <= row.ulp[dtype]).all(), found


@every_dtype
@every_row
def test_shape_and_dtype(row, dtype):
    args = plain(row, dtype)
    out = jax.eval_shape(row.function, *args)
    assert out.dtype == out_dtype(row, dtype)
    assert out.shape == jax.eval_shape(row.naive, *args).shape
    gradient = jax.grad(total(row), argnums=differentiable(row))
    for i, g in enumerate(jax.eval_shape(gradient, *args)):
        assert (g.shape, g.dtype) == (args[i].shape, args[i].dtype)


@every_row
def test_equals_the_naive_twin_where_that_one_is_right(row):
    if row.name.startswith("losses.bound[t") or row.name.startswith("losses.bound[l"):
        args = (jnp.asarray([0.01, 0.02]),)  # far below the limit all kinds agree
        np.testing.assert_allclose(row.function(*args), row.naive(*args), rtol=1e-5)
        return
    args = plain(row, "float32")
    np.testing.assert_allclose(row.function(*args), row.naive(*args), rtol=2e-5)


@every_row
@every_dtype
def test_edges(row, dtype):
    value = jax.jit(row.function)
    gradient = jax.jit(jax.grad(total(row), argnums=differentiable(row)))
    for edge in row.edges:
        args = at_edge(edge, dtype)
        check(value(*args), edge.value, out_dtype(row, dtype))
        for got, want in zip(gradient(*args), edge.gradient, strict=True):
            check(got, want, oracles.DTYPES[dtype])


def at_edge(edge, dtype):
    """The arguments on the device; what float16 cannot hold becomes infinite."""
    args = [
        jnp.asarray(a, None if isinstance(a, int) else "float32") for a in edge.args
    ]
    return [a if a.dtype == jnp.int32 else a.astype(dtype) for a in args]


def check(got, want, dtype):
    with np.errstate(over="ignore"):
        want = np.asarray(want).astype(dtype).astype(np.float64)
    eps = float(jnp.finfo(dtype).eps)
    got = np.asarray(got).astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=4 * eps, atol=0)


@every_dtype
@every_row
def test_vmap_equals_loop(row, dtype):
    args = plain(row, dtype)
    eps = float(jnp.finfo(dtype).eps)
    for function in (row.function, jax.grad(total(row))):
        one, mapped = jax.jit(function), jax.jit(jax.vmap(function))(*args)
        for i in range(len(args[0])):
            single = one(*(a[i] for a in args))
            np.testing.assert_allclose(
                np.asarray(mapped[i], np.float64),
                np.asarray(single, np.float64),
                rtol=4 * eps,
                atol=eps / 4,
            )


@every_row
def test_scan_equals_a_direct_call(row):
    args = plain(row, "float32")
    _, out = lax.scan(lambda c, a: (c, row.function(*a)), None, args)
    np.testing.assert_allclose(out, row.function(*args), rtol=1e-6, atol=1e-7)


@every_row
def test_forward_and_reverse_mode_agree(row):
    args = plain(row, "float32")
    fixed = args[1:] if row.kind == "labelled" else ()
    moving = args[:1] if row.kind == "labelled" else args

    def function(*moving):
        return row.function(*moving, *fixed)

    forward = jax.jit(jax.jacfwd(function))(*moving)
    backward = jax.jit(jax.jacrev(function))(*moving)
    np.testing.assert_allclose(forward, backward, rtol=1e-5, atol=1e-7)


@every_dtype
@every_row
def test_second_derivative(row, dtype):
    args = [jnp.asarray(a[:1] if a.ndim == 1 else a[:1, :3]) for a in plain(row, dtype)]
    exactly = [a.astype(jnp.float32) if a.dtype != jnp.int32 else a for a in args]
    got = jax.jit(jax.hessian(total(row)))(*args).astype(jnp.float32)
    # Central difference of the gradient, itself checked against the oracle.
    step = 2.0**-8
    gradient = jax.jit(jax.grad(total(row)))
    columns = []
    for i in range(exactly[0].size):
        nudge = jnp.zeros(exactly[0].size).at[i].set(step).reshape(exactly[0].shape)
        up = gradient(exactly[0] + nudge, *exactly[1:])
        down = gradient(exactly[0] - nudge, *exactly[1:])
        columns.append((up - down).ravel() / (2 * step))
    want = jnp.stack(columns, axis=-1).reshape(got.shape)
    tolerance = 3e-4 if dtype == "float32" else 2e-2
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@every_row
def test_second_derivative_is_finite_at_finite_edges(row):
    for edge in row.edges:
        numbers = np.hstack([np.ravel(a) for a in edge.args])
        if not np.isfinite(numbers).all() or np.isnan(edge.value).any():
            continue
        args = at_edge(edge, "float32")
        second = jax.jit(jax.hessian(total(row), argnums=differentiable(row)))(*args)
        assert all(np.isfinite(h).all() for h in jax.tree.leaves(second)), edge


@every_row
def test_nan_comes_out(row):
    args = plain(row, "float32")
    for i in differentiable(row):
        poisoned = list(args)
        poisoned[i] = args[i].at[(0,) * args[i].ndim].set(jnp.nan)
        for function in (row.function, jax.jit(row.function)):
            out = np.asarray(function(*poisoned))
            assert np.isnan(out[0]).all()
            assert np.isfinite(out[1:]).all()


@reductions
def test_nan_comes_out_of_a_long_row_too(row):
    # XLA on CPU may lose a NaN in the maximum of 4,096 or more.
    for place in (0, 4000, 9999):
        x = jnp.zeros(10_000).at[place].set(jnp.nan)
        args = (x, jnp.asarray(1)) if row.kind == "labelled" else (x,)
        assert np.isnan(jax.jit(row.function)(*args)).all()


def has_where(row):
    return "where" in inspect.signature(row.function).parameters


masking = pytest.mark.parametrize("row", [p for p in ROWS if has_where(p.values[0])])


@masking
@every_dtype
@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf])
def test_what_is_masked_never_leaks(row, dtype, junk):
    args = plain(row, dtype)
    mask = jnp.ones(args[0].shape, bool).at[..., 3].set(False)
    clean = [a.at[..., 3].set(0) if a.shape == mask.shape else a for a in args]
    dirty = [a.at[..., 3].set(junk) if a.shape == mask.shape else a for a in args]
    masked = functools.partial(row.function, where=mask)
    np.testing.assert_array_equal(masked(*dirty), masked(*clean))
    gradient = jax.grad(lambda *a: masked(*a).astype(jnp.float32)[..., 0].sum())
    got = np.asarray(gradient(*dirty), np.float64)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got[..., 3], 0)
    np.testing.assert_array_equal(got, np.asarray(gradient(*clean), np.float64))


@reductions
def test_masking_equals_leaving_out(row):
    args = plain(row, "float32")
    x = args[0]
    mask = jnp.ones(x.shape, bool).at[..., 3].set(False)
    short = jnp.delete(x, 3, axis=-1)
    got, want = row.function(*args, where=mask), row.function(short, *args[1:])
    if got.ndim == x.ndim:
        got = jnp.delete(got, 3, axis=-1)
    np.testing.assert_allclose(got, want, rtol=1e-6)


@every_row
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lowers_for_every_platform(row, dtype):
    args = plain(row, dtype)
    specs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in args]
    both = jax.jit(jax.value_and_grad(total(row), argnums=differentiable(row)))
    exported = jax.export.export(both, platforms=("cpu", "cuda", "tpu"))(*specs)
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert "callback" not in exported.mlir_module()


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


def test_a_name_is_taken_once():
    with pytest.raises(ValueError, match=r"catalog: a name is taken \(got ops.log\)"):
        _catalog.add(CATALOG["ops.log"])
