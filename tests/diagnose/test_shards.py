"""Inside shard_map: line, device, collectives, loops, both passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxsafe.diagnose import first_nonfinite

ROWS, NONE = PartitionSpec("rows"), PartitionSpec()
X = jnp.ones((8, 3))


pytestmark = pytest.mark.several_devices


@pytest.fixture
def mesh():
    return Mesh(np.asarray(jax.devices()[:4]), ("rows",))


def test_names_line_and_device(mesh):
    def body(x):
        y = jnp.log(x)
        return lax.psum(y.sum(), "rows")

    fn = jax.shard_map(body, mesh=mesh, in_specs=ROWS, out_specs=NONE)
    finding = first_nonfinite(jax.jit(fn), X.at[5, 1].set(-1.0))
    assert finding.source == "y = jnp.log(x)"
    assert (finding.primitive, finding.device) == ("log", 2)  # rows 4 and 5
    assert finding.result.first_index == (1, 1)
    assert "device 2 of the mesh" in finding.summary()
    assert first_nonfinite(jax.jit(fn), X) is None


def test_a_collective_is_not_blamed_for_another_device(mesh):
    # Device 0 gets the NaN from device 3, before its own place in any order.
    def body(x):
        whole = lax.all_gather(jnp.sqrt(x), "rows", tiled=True)
        return whole.sum(keepdims=True)

    fn = jax.shard_map(body, mesh=mesh, in_specs=ROWS, out_specs=ROWS)
    finding = first_nonfinite(fn, X[:, 0].at[7].set(-1.0))
    assert (finding.primitive, finding.device) == ("sqrt", 3)


def test_loops_inside(mesh):
    def body(x):
        def step(c, _):
            c = c * c
            return c, None

        return lax.scan(step, x, None, 8)[0]

    fn = jax.shard_map(body, mesh=mesh, in_specs=ROWS, out_specs=ROWS)
    finding = first_nonfinite(fn, X[:, 0].at[3].set(1e10))
    assert finding.source == "c = c * c"
    assert (finding.device, finding.iteration) == (1, (1,))


def test_branches_inside(mesh):
    def body(x):
        return lax.cond(x.sum() > 2, lambda x: jnp.log(x - 2), lambda x: x, x)

    fn = jax.shard_map(body, mesh=mesh, in_specs=ROWS, out_specs=ROWS)
    finding = first_nonfinite(fn, X[:, 0].at[2].set(5.0))
    assert (finding.primitive, finding.device) == ("log", 1)
    assert finding.branch is not None


def test_backward(mesh):
    def loss(x):
        fn = jax.shard_map(
            lambda x: lax.psum(jnp.sqrt(x).sum(), "rows"),
            mesh=mesh, in_specs=ROWS, out_specs=NONE,
        )  # fmt: skip
        return fn(x)

    finding = first_nonfinite(jax.value_and_grad(loss), X.at[6, 0].set(0.0))
    assert (finding.phase, finding.device) == ("backward", 3)
    assert "jnp.sqrt" in finding.source


def test_a_shard_map_in_a_loop(mesh):
    def step(c, _):
        fn = jax.shard_map(lambda c: c * 1e10, mesh=mesh, in_specs=ROWS, out_specs=ROWS)
        return fn(c), None

    finding = first_nonfinite(lambda c: lax.scan(step, c, None, 6)[0], X[:, 0])
    assert (finding.primitive, finding.iteration, finding.device) == ("mul", (3,), 0)


def test_only_some_axes_are_manual():
    mesh = Mesh(np.asarray(jax.devices()[:4]).reshape(2, 2), ("rows", "auto"))
    fn = jax.shard_map(
        lambda x: jnp.log(x), mesh=mesh, in_specs=ROWS, out_specs=ROWS,
        axis_names={"rows"},
    )  # fmt: skip
    finding = first_nonfinite(jax.jit(fn), X.at[7, 0].set(0.0))
    assert (finding.primitive, finding.device) == ("log", 1)


def test_without_the_check_of_types(mesh):
    fn = jax.shard_map(
        lambda x: lax.psum(jnp.log(x), "rows"),
        mesh=mesh, in_specs=ROWS, out_specs=NONE, check_vma=False,
    )  # fmt: skip
    finding = first_nonfinite(fn, X.at[1, 0].set(0.0))
    assert (finding.primitive, finding.device) == ("log", 0)
