"""What a guarded step costs, as counts in its program: the same on every machine."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks import _counts
from jaxsafe import _gate, guard, transforms
from tests.lowering import count_conditionals, lower

pytestmark = pytest.mark.cpu

SIZE = 1 << 16
LEAVES = 4
BYTES = 4 * LEAVES * SIZE  # of the parameters


def state_of(tx, sharding=None):
    names = [f"w{i}" for i in range(LEAVES)]
    params = {k: jnp.full((SIZE // 256, 256), 0.5, jnp.float32) for k in names}
    if sharding is not None:
        params = jax.device_put(params, sharding)
    return params, tx.init(params), transforms.init_control(telemetry=16)


def step_with(tx):
    def step(carry, grads, loss):
        return guard.apply_gradients(tx, grads, *carry, value=loss, max_norm=1.0)

    return step


def plain_with(tx):
    def step(carry, grads, loss):
        params, opt = carry[:2]
        updates, opt = tx.update(grads, opt, params)
        return optax.apply_updates(params, updates), opt, carry[2]

    return step


def compiled(step, carry, grads):
    jitted = jax.jit(step, donate_argnums=0)
    return jitted.lower(carry, grads, jnp.float32(1)).compile()


@pytest.fixture(scope="module")
def counts():
    """The guarded step and the plain one, compiled for this machine's CPU."""
    tx = optax.adamw(1e-3)
    carry = state_of(tx)
    return [
        _counts.of(compiled(step(tx), carry, carry[0]))
        for step in (step_with, plain_with)
    ]


def test_every_buffer_of_the_state_is_written_in_place(counts):
    ours, plain = counts
    # XLA hands a few numbers through instead of writing them.
    assert abs(ours.alias - plain.alias) < 256
    assert abs((ours.argument - ours.alias) - (plain.argument - plain.alias)) < 256


def test_the_committed_path_moves_one_more_read_of_the_gradients():
    tx = optax.adamw(1e-3)
    carry = state_of(tx)
    text = compiled(step_with(tx), carry, carry[0]).as_text()
    shape = rf"f32\[{SIZE // 256},256\]"
    large = re.compile(rf"%[\w.-]+ = {shape}\S* (fusion|copy)\(.*?op_name=\"([^\"]*)\"")
    made = [match for match in map(large.search, text.splitlines()) if match]
    # The second pass at another scale is for the step whose norm over- or underflows.
    usual = [m for m in made if "reduce_precision" not in m[2]]
    assert [m[1] for m in usual].count("fusion") == 3 * LEAVES  # mu, nu and params
    assert "copy" not in [m[1] for m in usual]


def test_temporaries_are_those_of_the_rare_second_pass(counts):
    ours, plain = counts
    assert ours.temporary - plain.temporary <= BYTES + 4096


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_the_accelerator_program_never_blocks_the_host(platform):
    tx = optax.adamw(1e-3)
    carry = state_of(tx)
    text = lower(step_with(tx), platform, carry, carry[0], jnp.float32(1))
    assert count_conditionals(text) == 0
    assert "callback" not in text


def test_sharded_gradients_cost_one_all_reduce():
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("data",))
    tx = optax.adamw(1e-3)
    carry = state_of(tx, NamedSharding(mesh, P("data")))
    found = _counts.opcodes(compiled(step_with(tx), carry, carry[0]).as_text())
    reduces = found["all-reduce"] + found["all-reduce-start"]
    # One in use, and one in the second pass.
    assert reduces <= 2


def test_small_leaves_are_summed_together():
    names = [f"w{i:02}" for i in range(40)]
    grads = {k: jnp.full((30,), 0.5, jnp.float32) for k in names}
    text = jax.jit(_gate.judge).lower(grads).compile().as_text()
    entry = text[text.index("ENTRY") :]
    assert len(re.findall(r" = \S+ (fusion|call|reduce)\(", entry)) < 20


def test_control_state_costs_three_kernels():
    tx = optax.adamw(1e-3)
    carry = state_of(tx)
    text = compiled(step_with(tx), carry, carry[0]).as_text()
    entry = text[text.index("ENTRY") :]
    kernels = re.findall(r" = (\S+?)(?:\{\S*\})? (?:fusion|call|reduce)\(", entry)
    # Verdict and factors are single numbers, and so was all of the state once.
    assert sorted(k for k in kernels if k in ("s32[9]", "f32[3]", "f32[16,7]")) == [
        "f32[16,7]",
        "f32[3]",
        "s32[9]",
    ]
    assert len([k for k in kernels if k.endswith("[]")]) <= LEAVES + 8
