"""Under `shard_map`, with JAX's check of what varies over which devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxsafe import ops, transforms
from jaxsafe._catalog import CATALOG
from jaxsafe._varying import alike, cond

pytestmark = pytest.mark.several_devices

# optax's recursion starts from what varies nowhere.
REFUSED = {"losses.ctc_loss", "losses.ctc_loss_with_forward_probs"}


def sharded(function, **specs):
    """`function` on four devices."""
    specs = {"in_specs": P("data"), "out_specs": P("data")} | specs
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    return jax.shard_map(function, mesh=mesh, **specs)


def first_arguments(row):
    """Arguments of float32 and labels that the row takes."""
    if row.sample is not None:
        args = next(iter(row.sample(np.random.default_rng(0))))
    else:
        shape = (3,) if row.kind == "entrywise" else (2, 3)
        args = [np.full(shape, 0.5)] * len(row.domain)
        args += [np.zeros(2, np.int32)] * (row.kind == "labelled")
    args = map(np.asarray, args)
    return [a.astype(np.float32) if a.dtype == np.float64 else a for a in args]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CATALOG.keys() - REFUSED))
def test_every_safe_function(name):
    row = CATALOG[name]
    args = first_arguments(row)
    floating = [i for i, a in enumerate(args) if a.dtype == np.float32]

    def total(fixed, *changed):
        full = list(fixed)
        for i, x in zip(floating, changed, strict=True):
            full[i] = x
        parts = jax.tree.leaves(row.function(*full))
        return sum(jnp.sum(x.astype(jnp.float32)) for x in parts)

    def on_a_device(over, *args):
        args = [x[0] if i in over else x for i, x in enumerate(args)]
        slopes = jax.grad(total, tuple(range(1, 1 + len(floating))))(
            args, *(args[i] for i in floating)
        )
        return alike((args, slopes))[1][0][None]

    everywhere = tuple(range(len(args)))
    for over in {everywhere, *((i,) for i in everywhere)}:
        stacked = [np.stack([a] * 4) if i in over else a for i, a in enumerate(args)]
        specs = tuple(P("data") if i in over else P() for i in everywhere)
        step = sharded(functools.partial(on_a_device, over), in_specs=specs)
        jax.jit(step).lower(*stacked)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_optax_refuses(name):
    (logits,) = first_arguments(CATALOG[name])

    def step(logits):
        return alike((logits, CATALOG[name].function(logits[0])))[1]

    logits = jnp.stack([logits] * 4)
    with pytest.raises(TypeError, match="manual axis types"):
        sharded(step)(logits)
    sharded(step, check_vma=False)(logits)


def test_the_norm_of_each_device():
    x = jnp.arange(1.0, 9.0).reshape(4, 2) * 1e30
    norms = sharded(lambda x: ops.global_norm({"w": x, "b": jnp.ones(3)})[None])(x)
    np.testing.assert_allclose(norms, np.linalg.norm(np.asarray(x, float), axis=1))


@pytest.mark.parametrize(
    "tx",
    [
        transforms.clip_by_global_norm(1.0),
        transforms.clip_by_block_norm(1.0),
        transforms.skip_nonfinite(optax.adam(0.1)),
        transforms.guarded(optax.adam(0.1), max_norm=1.0, axis_name="data"),
        transforms.accumulate(optax.adam(0.1), 2),
    ],
    ids=["norm", "block", "skip", "guarded", "accumulate"],
)
def test_transforms_of_gradients_that_differ(tx):
    grads = jnp.arange(8.0).reshape(4, 2)

    def step(grads):
        grads = {"w": grads[0], "b": jnp.ones(3)}
        return alike((grads, tx.update(grads, tx.init(grads), grads)[0]))[1]["w"][None]

    jax.jit(sharded(step)).lower(grads)


def test_branches_that_vary_over_different_devices():
    def step(x):
        x = x[0]
        here = cond(x > 1, lambda: x, lambda: jnp.zeros(()))
        there = cond(jnp.asarray(True), lambda: jnp.ones(()), lambda: x)
        chosen = cond(x > 1, lambda: jnp.ones(()), lambda: jnp.zeros(()))
        return jnp.stack([here, there, chosen])[None]

    got = sharded(step)(jnp.arange(4.0))
    np.testing.assert_array_equal(got[:, 0], [0, 0, 2, 3])
    np.testing.assert_array_equal(got[:, 1], 1)
    np.testing.assert_array_equal(got[:, 2], [0, 0, 1, 1])
