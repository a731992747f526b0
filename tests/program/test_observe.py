"""Graphs and observed runs, against numpy and against a plain run of the function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxsafe import _program
from jaxsafe._program import Loop, Magnitudes
from jaxsafe._program._magnitude import magnitudes


def magnitude_bits(x):
    return magnitudes([x])[0]


def float_of(bits):
    return float(np.asarray(bits, np.uint32).view(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn"])
@pytest.mark.parametrize("shape", [(), (3,), (64, 64)])
def test_magnitude_is_the_largest_absolute_value(dtype, shape):
    x = jax.random.normal(jax.random.key(1), shape).astype(dtype)
    expected = np.abs(np.asarray(x, np.float64)).max()
    assert float_of(jax.jit(magnitude_bits)(x)) == expected


@pytest.mark.parametrize("size", [1, 4096, 100_000])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
def test_magnitude_keeps_what_a_float_maximum_drops(size, bad):
    x = jnp.ones(size).at[size // 2].set(bad)
    peak = float_of(jax.jit(magnitude_bits)(x))
    assert np.isnan(peak) if np.isnan(bad) else peak == np.inf


def test_values_that_are_read_together_are_read_as_one_by_one():
    rng = np.random.default_rng(0)
    dtypes = ["float32", "float16", "bfloat16", "float8_e4m3fn", "complex64"]
    shapes = [(), (5,), (3, 2), (0, 4), (64, 64)]
    values = [
        jnp.asarray(rng.normal(size=shape), dtype)
        for _ in range(4)
        for dtype in dtypes
        for shape in shapes
    ]
    values[4] = values[4].at[5, 6].set(np.nan)
    values[29] = values[29].at[5, 6].set(np.inf)
    bad = {4, 29}
    for most in (1, 3, 32):
        found = [
            float_of(x)
            for x in jax.jit(magnitudes, static_argnames="most")(values, most=most)
        ]
        for i, (x, peak) in enumerate(zip(values, found, strict=True)):
            wide = np.asarray(x).astype(np.complex128)
            parts = [*np.abs(wide.real).ravel(), *np.abs(wide.imag).ravel(), 0.0]
            expected = np.max(parts)
            assert (i in bad) == (not np.isfinite(peak))
            np.testing.assert_equal(peak, np.float32(expected))


def test_magnitude_of_nan_and_infinity_together_is_nan():
    assert np.isnan(float_of(magnitude_bits(jnp.array([jnp.inf, jnp.nan]))))


def test_magnitude_of_float64_and_complex():
    with jax.enable_x64(True):
        large = jnp.array([1e300, -2.0], jnp.float64)
        assert float_of(magnitude_bits(large)) == np.finfo(np.float32).max
        assert float_of(magnitude_bits(large * 1e10)) == np.inf
    z = jnp.array([1.0 - 3.0j])
    assert float_of(magnitude_bits(z)) == 3.0
    assert float_of(magnitude_bits(jnp.zeros((0,)))) == 0.0


def observed(fn, *args):
    traced = _program.trace("test", fn, args, {})
    watch = Magnitudes(_program.depth(traced.program))
    keys, rows = _program.observe(traced.program, traced.values, watch)
    return traced.program, {node.index: i for i, node in enumerate(keys)}, rows


def busy(x):
    """Every kind of sub-program in one function."""

    def body(c, row):
        c = lax.cond(c.sum() > 3.0, jnp.sin, jnp.cos, c)
        c = lax.fori_loop(0, 2, lambda i, c: c * 1.5 + row, c)
        return c, jnp.tanh(c).sum()

    c, ys = lax.scan(body, jnp.ones(3), x)
    n = lax.while_loop(lambda s: s < 5.0, lambda s: s + 1.5, ys.sum())
    return jax.checkpoint(jnp.sin)(c).sum() + jax.nn.relu(n) + jax.nn.softmax(c)[0]


def test_observed_run_computes_what_a_plain_run_computes():
    x = jnp.arange(12.0).reshape(4, 3) / 7.0
    expected = jax.jit(jax.value_and_grad(busy_forward))(x)
    program, index, rows = observed(jax.value_and_grad(busy_forward), x)
    peaks = np.asarray(rows.peak).view(np.float32)
    for node, value in zip(program.outputs, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            peaks[index[node.index]], np.abs(np.asarray(value)).max(), rtol=2e-6
        )


def busy_forward(x):
    # A while loop of unknown length has no reverse-mode derivative.
    return busy(lax.stop_gradient(x)) + jnp.sum(lax.cumsum(x) ** 2)


def test_first_bad_turn_of_nested_loops():
    def f(x):
        def outer(c, i):
            inner = lax.fori_loop(
                0, 3, lambda j, s: s + 1.0 / (i - j - 1.0 + 0.0 * s), c
            )
            return c, inner

        return lax.scan(outer, x, jnp.array([0.0, 0.0, 3.0]))[1]

    program, index, rows = observed(f, jnp.zeros(()))
    (division,) = (s for s in program.walk() if s.primitive == "div")
    (node,) = division.outputs
    assert len(node.loops) == 2
    # i - j - 1 is 0 for i = 3, j = 2: the last turn of both.
    assert rows.inf_at[index[node.index]].tolist() == [1, 2, 2]
    assert rows.nan_at[index[node.index]].tolist() == [0, 0, 0]


def test_rows_of_a_branch_that_is_not_taken_stay_empty():
    def f(x):
        return lax.cond(x > 0.0, lambda x: x * 2.0, lambda x: x / 0.0, x)

    program, index, rows = observed(f, jnp.ones(()))
    by_name = {
        s.primitive: index[s.outputs[0].index]
        for s in program.walk()
        if s.outputs[0].watched
    }
    peaks = np.asarray(rows.peak).view(np.float32)
    assert (peaks[by_name["mul"]], peaks[by_name["div"]]) == (2.0, 0.0)
    assert not rows.inf_at.any()


def test_execution_order_and_parents():
    def f(x):
        return lax.scan(lambda c, x: (c + x, c * 2.0), x[0], x)

    program = _program.trace("test", f, (jnp.ones(3),), {}).program
    (loop,) = (step for step in program.steps if isinstance(step, Loop))
    (carry,) = loop.carry
    assert carry.parents == [loop.init[0], loop.results[0]]
    assert loop.slices[0].parents == program.arguments
    assert loop.start < carry.index < loop.results[0].index < loop.outputs[0].index
    assert [node.kind for node in program.outputs] == ["joined", "joined"]
