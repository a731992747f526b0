"""Profiles against NumPy: ranges, and what every format would lose."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax

from jaxsafe import diagnose
from jaxsafe.diagnose import profile
from jaxsafe.diagnose._range import FORMATS, Ranges, levels

CASTS = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e5m2": ml_dtypes.float8_e5m2,
}


def check(row, *values):
    """`row` is what NumPy says about the numbers of all iterations."""
    x = np.abs(np.concatenate([np.ravel(v) for v in values]))
    good = x[np.isfinite(x)]
    nonzero = good[good > 0]
    assert row.entries == x.size
    assert row.zeros == (x == 0).sum()
    assert row.nonfinite == x.size - good.size
    assert row.smallest == pytest.approx(nonzero.min(initial=np.inf), rel=1e-5)
    assert row.largest == pytest.approx(good.max(initial=0), rel=1e-5)
    for name, kind in CASTS.items():
        with np.errstate(over="ignore"):
            cast = good.astype(kind).astype(np.float32)
        assert row.overflow[name] == (~np.isfinite(cast)).sum(), name
        assert row.underflow[name] == ((cast == 0) & (good > 0)).sum(), name


def only(found, name, phase=None):
    (row,) = [
        r for r in found.rows if r.name == name and (phase is None or r.phase == phase)
    ]
    return row


def every_scale(count=4096):
    rng = np.random.default_rng(0)
    x = rng.normal(size=count) * 2.0 ** rng.uniform(-150, 129, count)
    with np.errstate(over="ignore"):
        x = x.astype(np.float32)
    x[:8] = [0.0, -0.0, np.nan, -np.nan, np.inf, -np.inf, 1e-45, 3.4e38]
    return x


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_an_argument_of_every_scale(dtype):
    with np.errstate(over="ignore"):
        x = every_scale().astype(dtype)
    found = profile(lambda x: x, jnp.asarray(x))
    row = only(found, "x")
    assert (row.dtype, row.phase, row.file) == (dtype, "input", "")
    wide = x.astype(np.float32)
    if dtype == "bfloat16":  # XLA on CPU flushes its subnormals when it widens them
        wide = np.where(np.abs(wide) < np.finfo(np.float32).tiny, 0, wide)
        x = np.asarray(x)
        if row.zeros != (wide == 0).sum():
            wide = x.astype(np.float32)
    check(row, wide)


@pytest.mark.parametrize("name", FORMATS)
def test_the_edges_of_a_format_are_where_the_cast_says(name):
    kept, beyond = levels((name,), "float32")[2:4]
    around = np.array([kept - 1, kept, beyond - 1, beyond], np.uint32).view(np.float32)
    with np.errstate(over="ignore"):
        cast = around.astype(CASTS[name]).astype(np.float32)
    assert [bool(c) for c in cast != 0][:2] == [False, True]
    assert np.isfinite(cast).tolist() == [True, True, True, False]
    # In float64 they lie between those two neighbours. (Its cast rounds twice.)
    edges = levels((name,), "float64")[2:4].view(np.float64)
    assert (around[::2] <= edges).all()
    assert (edges <= around[1::2]).all()


def test_float64_and_complex():
    z = np.asarray([3.0 - 1e10j, 0.25j], np.complex64)
    check(only(profile(lambda z: z, jnp.asarray(z)), "z"), z.real, z.imag)
    with jax.enable_x64(True):
        x = np.asarray([1e300, 1e-300, 1.0, 70000.0, 0.0])
        found = profile(lambda x, y: (x * 2.0, y * 2.0), jnp.asarray(x), np.float32(3))
        check(only(found, "x"), x)
        first, second = [r for r in found.rows if r.name == "mul"]
        check(first, x * 2)
        check(second, np.float32(6.0))


def test_counts_go_beyond_32_bits():
    watch = Ranges(lambda _: True, ())
    row = watch.reading(None, jnp.ones(3), ())
    large = row._replace(counts=row.counts.at[:, 0].set(np.uint32(2**32 - 1)))
    total = watch.merge(watch.merge(large, large), large)
    low, high = np.asarray(total.counts)[0]
    assert int(low) + (int(high) << 32) == 3 * (2**32 - 1)


def test_all_iterations_of_nested_loops_and_taken_branches_only():
    def f(x):
        def body(c, i):
            c = lax.fori_loop(0, 3, lambda _, c: c * 20.0, c)
            c = lax.cond(i == 1, lambda c: c / 8e6, lambda c: c - 0.5, c)
            return c, None

        return lax.scan(body, x, jnp.arange(2))[0]

    x = np.float32([1.0, 1e-7])
    found = profile(f, jnp.asarray(x))
    products, c = [], x
    for i in range(2):
        for _ in range(3):
            c = c * np.float32(20.0)
            products.append(c)
        c = c / np.float32(8e6) if i == 1 else c - np.float32(0.5)
    check(only(found, "mul"), *products)
    check(only(found, "div"), c)
    never = profile(lambda x: lax.cond(x > 0, jnp.sin, jnp.log, x), jnp.float32(1))
    assert [r.name for r in never.rows] == ["x", "sin"]


def test_forward_and_backward_are_told_apart():
    def loss(w, x):
        h = jnp.tanh(x @ w)
        return jnp.sum(h**2) * 1e-6

    w, x = np.full((3, 2), 0.25, np.float32), np.ones((4, 3), np.float32)
    found = profile(jax.value_and_grad(loss), jnp.asarray(w), jnp.asarray(x))
    check(only(found, "tanh"), np.tanh(x @ w))
    h = np.tanh(x @ w)
    slope = (1e-6 * 2 * h) * (1 - h**2)
    check(only(found, "dot_general", "forward"), x @ w)
    check(only(found, "dot_general", "backward"), x.T @ slope)
    lines = {(r.name, r.phase) for r in found.by("line")}
    line = only(found, "tanh").line
    assert {
        (f"test_profile.py:{line}", "forward"),
        (f"test_profile.py:{line}", "backward"),
        ("w", "input"),
    } <= lines
    # The gradient is at the end of float16 while the activations are far from it.
    forward = [r for r in found.by("line") if r.phase == "forward" and r.line == line]
    backward = [r for r in found.by("line") if r.phase == "backward" and r.line == line]
    assert forward[0].lost("float16") == 0
    assert backward[0].underflow["float8_e4m3fn"] > 0


def test_an_update_is_named_as_such():
    tx = optax.adam(1e-3)

    def step(w, state, x):
        grads = jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w)
        updates, state = tx.update(grads, state)
        by_hand = w - 0.5 * grads
        return optax.apply_updates(w, updates), by_hand

    w = jnp.ones(3)
    found = profile(step, w, tx.init(w), jnp.ones((2, 3)))
    phases = {r.name: r.phase for r in found.by("line")}
    assert "update" in phases.values()
    assert {r.phase for r in found.rows if r.name == "sqrt"} == {"update"}
    (line,) = {r.line for r in found.rows if "0.5 * grads" in r.source}
    assert {r.phase for r in found.rows if r.line == line} == {"update"}


@jax.custom_vjp
def doubled(x):
    return jnp.exp(x) * 2.0


doubled.defvjp(lambda x: (doubled(x), x), lambda x, g: (jnp.cos(x) * g,))


def test_through_custom_rules_remat_vmap_and_jit():
    def f(x):
        y = jax.checkpoint(jax.jit(lambda x: jnp.sin(x) * 3.0))(x)
        return doubled(jax.nn.relu(y)).sum()

    x = np.linspace(-1.0, 1.0, 6, dtype=np.float32).reshape(2, 3)
    found = profile(jax.vmap(jax.grad(f)), jnp.asarray(x))
    check(only(found, "exp"), np.exp(np.maximum(np.sin(x) * 3, 0)))
    assert only(found, "exp").phase == "forward"
    assert "cos" in {r.name for r in found.rows}


@pytest.mark.several_devices
def test_every_device_of_a_shard_map_counts():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")
    f = jax.shard_map(jnp.exp, mesh=mesh, in_specs=spec, out_specs=spec)
    row = only(profile(f, jnp.arange(4.0) * 5), "exp")
    check(row, np.exp(np.arange(4, dtype=np.float32) * 5))


def test_what_is_opaque_is_judged_by_its_results():
    def solve(b):
        return lax.custom_linear_solve(
            lambda x: x * 4.0, b, lambda _, b: b / 4.0, symmetric=True
        )

    x = np.float32([1e6, 0.0, 3.0])
    check(only(profile(solve, jnp.asarray(x)), "custom_linear_solve"), x / 4)


def test_several_results_of_one_equation_are_one_row():
    x = np.float32([[2.0, 1.0], [1.0, 2.0]])
    found = profile(lambda x: lax.linalg.qr(x, full_matrices=False), jnp.asarray(x))
    name = next(r.name for r in found.rows if r.phase != "input")
    rows = [r for r in found.rows if r.name == name]
    assert len(rows) == 1
    assert rows[0].entries > 4


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.Dense(4, name="body")(x) * 1e6).sum()


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.body, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        return self.head(self.body(x) * 1e6).sum()


def test_by_module():
    x = jnp.ones((5, 3))
    linen = LinenNet()
    params = linen.init(jax.random.key(0), x)
    net = NnxNet(nnx.Rngs(0))
    for found, top, kernel in (
        (profile(linen.apply, params, x), "LinenNet", params["params"]["body"]),
        (profile(lambda net, x: net(x), net, x), "NnxNet", net.body),
    ):
        rows = {row.name: row for row in found.by("module")}
        assert {f"{top}/body", f"{top}/head"} <= set(rows)
        weights = kernel["kernel"] if top == "LinenNet" else kernel.kernel[...]
        h = np.asarray(x) @ np.asarray(weights)
        body = rows[f"{top}/body"]
        assert body.largest == pytest.approx(np.abs(h).max(), rel=1e-5)
        assert body.entries == 2 * h.size  # the product, and the sum with the bias
        assert rows[f"{top}/head"].lost("float16") > 0.5


def test_a_row_carries_its_line():
    def f(x):
        return jnp.exp(x)  # here

    row = only(profile(f, jnp.ones(2)), "exp")
    assert row.source == "return jnp.exp(x)  # here"
    assert row.file == __file__
    assert row.function.endswith("f")


def test_summary_fits_the_terminal_and_names_the_worst():
    def f(x):
        for k in range(30):
            x = x * (1.0 if k != 28 else 1e-30)
        return jnp.exp(x * 0.0 + 20.0)

    found = profile(f, jnp.ones(7))
    for by in ("equation", "line", "module"):
        text = found.summary(by=by, most=9)
        assert max(map(len, text.splitlines())) <= 80
        assert text.startswith(repr(found))
    lines = found.summary(by="equation", most=9).splitlines()
    assert len(lines) == 1 + 1 + 9 + 1 + 1
    assert sum("exp" in line for line in lines) == 1
    assert "rows that lose less" in lines[-2]
    assert "+100%" in next(line for line in lines if line.startswith("exp"))


def test_json_and_errors():
    found = profile(jnp.exp, jnp.float32([0.0, 100.0]))
    record = json.loads(found.to_json())
    assert [row["name"] for row in record["rows"]][-1] == "exp"
    assert record["rows"][-1]["nonfinite"] == 1
    with pytest.raises(ValueError, match=r"^Profile.by: group must be one of"):
        found.by("file")
    with pytest.raises(ValueError, match=r"^Profile.summary: most must be"):
        found.summary(most=0)
    with pytest.raises(TypeError, match=r"^profile: argument x must be concrete"):
        jax.jit(lambda x: profile(jnp.exp, x))(jnp.ones(2))
    with pytest.raises(AttributeError):
        found.rows = ()
    assert isinstance(found, diagnose.Profile)
