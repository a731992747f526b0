"""What an equation only hands on is not read again, and not lost either."""

import jax
import jax.numpy as jnp

from jaxsafe import _program
from jaxsafe.diagnose import first_nonfinite


def test_what_is_only_handed_on_is_found_without_being_read():
    def fn(x):
        return jnp.broadcast_to(-jnp.log(x), (3, 2)).T.sum()

    finding = first_nonfinite(fn, jnp.array([1.0, 0.0]))
    assert finding.primitive == "log"
    assert finding.chain[0].startswith("log -> inf")
    traced = _program.trace("test", fn, (jnp.ones(2),), {})
    watch = _program.Magnitudes(0)
    steps = list(traced.program.walk())
    read = [s.primitive for s in steps if watch.at_node(s.outputs[0])]
    assert read == ["log", "reduce_sum"]
    assert len(steps) == 5


def test_a_branch_that_is_not_taken_hands_nothing_on():
    def fn(x, taken):
        worst = 1 / x
        return jax.lax.cond(taken, lambda: -worst, lambda: jnp.ones(2) + 0 * x).sum()

    x = jnp.array([0.0, 1.0])
    assert first_nonfinite(fn, x, False) is None
    assert first_nonfinite(fn, x, True).primitive == "div"
