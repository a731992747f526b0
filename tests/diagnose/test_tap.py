"""Taps: nothing without a collector, and the truth with one, through everything."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxsafe import diagnose
from jaxsafe.diagnose import collect_taps, tap

W = jnp.asarray(np.linspace(-1.0, 1.0, 9, dtype=np.float32).reshape(3, 3))
X = jnp.asarray(np.linspace(0.2, 3.0, 6, dtype=np.float32).reshape(2, 3))


def check(info, *values):
    """`info` is what NumPy says about the values of all visits."""
    size = np.abs(np.concatenate([np.ravel(v) for v in values]))
    np.testing.assert_allclose(info.largest, size.max(), rtol=1e-6)
    np.testing.assert_allclose(info.smallest, size[size > 0].min(), rtol=1e-5)
    assert bool(info.finite) == np.isfinite(size).all()


def same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), a, b)


def busy(w, x, mark=lambda name, value: value):
    def layer(h, _):
        h = mark("hidden", jnp.tanh(h @ w) * 2.0)
        return jnp.sin(h), h.sum()

    h, sums = lax.scan(jax.checkpoint(layer), x, length=3)
    h = mark("relu", jax.nn.relu(h))
    h = lax.cond(
        h.sum() > -1, lambda h: mark("taken", h * 3), lambda h: mark("not", h), h
    )
    h = jax.vmap(jax.jit(lambda row: mark("row", row - 5.0) ** 2))(h)
    return jnp.sum(h) + sums.sum()


def hidden(w, x):
    out = []
    for _ in range(3):
        h = np.tanh(np.asarray(x) @ np.asarray(w)) * 2.0
        out.append(h)
        x = np.sin(h)
    return out


def compiled(fn, *args):
    """The optimised program, without the tables of files and lines."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    text = re.sub(r"(?s)\nFileNames\n.*?\n\n(?=%|ENTRY)", "\n", text)
    return re.sub(r", metadata=\{[^}]*\}", "", text)


def test_without_a_collector_the_program_is_the_same():
    step = jax.value_and_grad(lambda w, x: busy(w, x))
    marked = jax.value_and_grad(lambda w, x: busy(w, x, tap))
    assert str(jax.make_jaxpr(marked)(W, X)) == str(jax.make_jaxpr(step)(W, X))
    assert compiled(marked, W, X) == compiled(step, W, X)


def test_collecting_leaves_no_trace_in_functions_that_were_jitted():
    step = jax.jit(lambda w, x: busy(w, x, tap))
    step(W, X)
    _, taps = collect_taps(step)(W, X)
    assert set(taps) == {"hidden", "relu", "taken", "not", "row"}
    plain = jax.make_jaxpr(step)(W, X)
    assert "name[" not in str(plain)


@pytest.mark.parametrize(
    "make",
    [
        lambda f: collect_taps(f),
        lambda f: jax.jit(collect_taps(f)),
        lambda f: collect_taps(jax.jit(f)),
    ],
    ids=["eager", "jit", "inside"],
)
@pytest.mark.parametrize("derivative", [False, True])
def test_ranges_are_those_of_numpy(make, derivative):
    transform = jax.value_and_grad if derivative else lambda f: f
    out, taps = make(transform(lambda w, x: busy(w, x, tap)))(W, X)
    same(out, jax.jit(transform(busy))(W, X))
    layers = hidden(W, X)
    check(taps["hidden"], *layers)
    relu = np.maximum(np.sin(layers[-1]), 0)
    check(taps["relu"], relu)
    check(taps["taken"], relu * 3)
    check(taps["row"], relu * 3 - 5)
    assert [float(x) for x in taps["not"]] == [0.0, 0.0, 1.0]


def test_gradient_may_be_taken_outside():
    fn = collect_taps(lambda w, x: busy(w, x, tap))
    (_, taps), grads = jax.jit(jax.value_and_grad(fn, has_aux=True))(W, X)
    same(grads, jax.grad(busy)(W, X))
    check(taps["hidden"], *hidden(W, X))


def test_under_vmap_every_example_has_its_range():
    fn = collect_taps(lambda x: tap("square", x**2).sum())
    _, taps = jax.vmap(fn)(X)
    np.testing.assert_allclose(taps["square"].largest, np.max(X, 1) ** 2, rtol=1e-6)


def test_in_a_training_loop_the_taps_are_watched():
    fn = collect_taps(lambda w: jnp.sum(tap("w", w.astype(jnp.float16))))
    _, shapes = jax.eval_shape(fn, W)

    def body(carry, _):
        w, state = carry
        _, taps = fn(w)
        return (w * 2, diagnose.watch(state, taps)), None

    carry = (W, diagnose.init_watch(shapes))
    (_, state), _ = jax.jit(lambda c: lax.scan(body, c, length=8))(carry)
    leaf = diagnose.headroom(state, shapes).soonest
    assert (leaf.path, leaf.dtype) == ("['w'].largest", "float16")
    assert leaf.overflow_step == 16  # 2**16 is the first power of 2 beyond 65504


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_said(bad):
    x = jnp.ones(5000).at[77].set(bad)
    out, taps = jax.jit(collect_taps(lambda x: tap("x", x)))(x)
    assert not bool(taps["x"].finite)
    np.testing.assert_array_equal(taps["x"].largest, bad)
    assert float(taps["x"].smallest) == 1.0
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize(
    "dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "complex64"]
)
def test_dtypes(dtype):
    x = jnp.asarray([0.0, 0.5, -3.0]).astype(dtype)
    _, taps = jax.jit(collect_taps(lambda x: tap("x", x)))(x)
    info = taps["x"]
    assert (float(info.largest), float(info.smallest)) == (3.0, 0.5)
    assert info.largest.dtype == jnp.finfo(dtype).dtype


@pytest.mark.parametrize(
    ("values", "want"),
    [
        ([0.0, -0.0], (0.0, 0.0, True)),
        ([np.nan, -np.inf, 0.0], (np.nan, 0.0, False)),
        ([-np.inf, 3.0], (np.inf, 3.0, False)),
        ([-np.nan, 3e38], (np.nan, 3e38, False)),
        ([0.0, -1e-45, 1e-40], (1e-40, 1e-45, True)),
        ([], (0.0, 0.0, True)),
    ],
)
def test_edges(values, want):
    x = jnp.asarray(np.float32(values))
    _, taps = jax.jit(collect_taps(lambda x: tap("x", x)))(x)
    # Through NumPy: on CPU an operation of XLA flushes what is subnormal.
    np.testing.assert_array_equal(np.asarray(taps["x"]), np.float32(want))


def test_a_tap_costs_one_reduction():
    text = jax.jit(collect_taps(lambda x: tap("x", x))).lower(X).as_text()
    assert len(re.findall(r"stablehlo\.reduce\b", text)) == 1


def test_float64_keeps_its_range():
    with jax.enable_x64(True):
        fn = collect_taps(lambda a, b: (tap("a", a), tap("b", b)))
        _, taps = fn(jnp.float64([1e300, 1e-300]), jnp.float32([2.0, 1e-3]))
        assert float(taps["a"].largest) == 1e300
        assert float(taps["a"].smallest) == 1e-300
        check(taps["b"], np.float32([2.0, 1e-3]))


def test_names_of_a_tree_and_results_that_are_no_arrays():
    def fn(x):
        h = tap("h", {"a": x, "b": [x * 2.0, jnp.arange(3)]})
        return h["b"][0], "a name", h["b"][1], 3

    out, taps = collect_taps(fn)(jnp.ones(2))
    assert set(taps) == {"h['a']", "h['b'][0]"}
    assert (out[1], out[3]) == ("a name", 3)
    same(out[::2], (jnp.full(2, 2.0), jnp.arange(3)))


def test_two_taps_of_one_name_are_one():
    fn = collect_taps(lambda x: tap("h", x) + tap("h", x * 8.0))
    _, taps = fn(jnp.float32([1.0, 3.0]))
    check(taps["h"], np.float32([1.0, 3.0, 8.0, 24.0]))


def test_while_loop_and_second_derivative():
    def fn(x):
        return lax.while_loop(
            lambda s: s < 50.0, lambda s: tap("s", s) * 2.0, tap("in", jnp.sin(x))
        )

    _, taps = jax.jit(collect_taps(fn))(jnp.float32(1.0))
    start = np.sin(np.float32(1.0))
    check(taps["s"], start * 2.0 ** np.arange(6))
    hessian = collect_taps(jax.hessian(lambda x: tap("s", jnp.sin(x)) ** 3))
    out, taps = hessian(jnp.float32(1.0))
    same(out, jax.hessian(lambda x: jnp.sin(x) ** 3)(jnp.float32(1.0)))
    check(taps["s"], start)


@jax.custom_vjp
def clipped(x):
    return tap("inside", x * 2.0)


clipped.defvjp(lambda x: (clipped(x), None), lambda _, g: (jnp.clip(g, -1, 1),))


def test_a_tap_in_a_function_with_its_own_derivative():
    def loss(x):
        return jnp.sum(clipped(x) * 9.0)

    grads, taps = collect_taps(jax.grad(loss))(jnp.ones(2))
    np.testing.assert_array_equal(grads, [1.0, 1.0])
    check(taps["inside"], np.float32([2.0]))
    with pytest.raises(NotImplementedError, match=r"collect_taps\(jax.value_and_grad"):
        jax.grad(collect_taps(loss), has_aux=True)(jnp.ones(2))


def test_derivatives_of_what_holds_no_tap_stay_as_they_are():
    @jax.custom_jvp
    def odd(x):
        return x * 2.0

    odd.defjvps(lambda g, ans, x: g * 100.0)
    fn = collect_taps(lambda x: tap("x", odd(x)))
    assert float(jax.grad(lambda x: fn(x)[0])(1.0)) == 100.0


def test_a_rematerialised_backward_pass_is_not_opened():
    def loss(x):
        return jax.checkpoint(lambda x: jnp.sin(tap("h", jnp.exp(x))))(x)

    collected = jax.make_jaxpr(collect_taps(jax.value_and_grad(loss)))(1.0)
    assert str(collected).count("differentiated=True") == 1
    _, taps = collect_taps(jax.grad(loss))(jnp.float32(1.0))
    check(taps["h"], np.exp(np.float32(1.0)))


def shard_mapped(fn):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")
    return jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec)


@pytest.mark.several_devices
def test_shard_map():
    x = jnp.arange(4.0)

    def body(x):
        return lax.fori_loop(0, 2, lambda _, x: tap("h", x * 2.0), x)

    _, taps = jax.jit(collect_taps(shard_mapped(body)))(x)
    check(taps["h"], np.arange(4) * 2.0, np.arange(4) * 4.0)


def scanned(x):
    return lax.scan(lambda c, _: (tap("h", c * 2.0), None), x, length=2)[0]


def looped(x):
    return lax.while_loop(lambda c: c.sum() < 0.0, lambda c: tap("h", c), 2.0 * x)


def chosen(x):
    return lax.cond(x.sum() > 2, lambda x: tap("h", x), lambda x: -x, x)


@pytest.mark.parametrize(
    ("body", "visits"),
    [
        (scanned, [[0.0, 2.0, 0.0, 4.0], [4.0, 6.0, 8.0, 12.0]]),
        (looped, [[], []]),
        (chosen, [[], [2.0, 3.0]]),
        (lambda x: tap("h", lax.psum(x, "d")), [[2.0, 4.0], [2.0, 4.0]]),
        (jax.value_and_grad(lambda x: jnp.sum(scanned(x))), None),
    ],
)
@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.several_devices
def test_inside_shard_map_every_device_has_its_own(body, visits, check_vma):
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")

    def each(x):
        _, taps = collect_taps(body)(x)
        return jax.tree.map(lambda t: t[None], taps)

    mapped = jax.shard_map(
        each, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=check_vma
    )
    taps = jax.jit(mapped)(jnp.arange(4.0))
    visits = visits or [[0.0, 2.0, 0.0, 4.0], [4.0, 6.0, 8.0, 12.0]]
    for device, values in enumerate(visits):
        info = jax.tree.map(lambda t, i=device: t[i], taps["h"])
        if values:
            check(info, values)
        else:  # not reached
            assert (float(info.largest), bool(info.finite)) == (0.0, True)


def test_error_for_a_tap_where_nobody_can_look():
    def solve(b):
        return lax.custom_linear_solve(
            lambda x: tap("h", x * 2.0), b, lambda _, b: b / 2.0, symmetric=True
        )

    message = r"^collect_taps: tap 'h' stands inside custom_linear_solve"
    with pytest.raises(NotImplementedError, match=message):
        collect_taps(solve)(X)
    np.testing.assert_array_equal(solve(X), X / 2)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x):
        return tap("out", nn.relu(nn.Dense(4)(x)))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return LinenBlock()(nn.remat(LinenBlock)()(x)).sum()


def test_linen_puts_the_module_before_the_name():
    net = LinenNet()
    params = net.init(jax.random.key(0), X)
    step = jax.jit(collect_taps(jax.value_and_grad(net.apply)))
    (loss, _), taps = step(params, X)
    same(loss, net.apply(params, X))
    names = sorted(taps)
    assert len(names) == 2
    assert all(name.startswith("LinenNet/") for name in names)
    h = np.asarray(X)
    for block in ("CheckpointLinenBlock_0", "LinenBlock_0"):
        dense = params["params"][block]["Dense_0"]
        h = np.maximum(h @ np.asarray(dense["kernel"]) + np.asarray(dense["bias"]), 0)
        (name,) = [n for n in names if n.split("/")[-2] == block]
        check(taps[name], h)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return tap("out", nnx.relu(self.linear(x)))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first, self.second = NnxBlock(rngs), NnxBlock(rngs)

    def __call__(self, x):
        return self.second(self.first(x))


def test_nnx_puts_the_module_before_the_name():
    net = NnxNet(nnx.Rngs(0))

    def loss(net, x):
        return net(x).sum()

    (value, _), taps = collect_taps(nnx.value_and_grad(loss))(net, X)
    same(value, loss(net, X))
    assert sorted(taps) == ["NnxNet/first/out", "NnxNet/second/out"]
    h = np.asarray(X)
    for name in ("first", "second"):
        linear = getattr(net, name).linear
        h = np.maximum(h @ np.asarray(linear.kernel[...]) + linear.bias[...], 0)
        check(taps[f"NnxNet/{name}/out"], h)


@pytest.mark.parametrize("name", ["", None, 3])
def test_error_for_a_name(name):
    with pytest.raises(TypeError, match=r"^tap: name must be a string"):
        tap(name, X)
