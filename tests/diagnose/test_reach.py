"""Lines are found through what JAX builds programs of: the less common parts."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxsafe.diagnose import first_nonfinite
from tests.cases.base import marked_line

# Each takes seconds to compile.
pytestmark = pytest.mark.slow

X = jnp.array([1.0, 2.0, 3.0])


def products(x):
    return lax.associative_scan(lambda a, b: a * b, x * 1e15)  # root


def factor(x):
    a = jnp.diag(x).at[0, 0].set(-1.0)
    return jnp.linalg.cholesky(a).sum()  # root


def solved(x):
    a = jnp.ones((3, 3))
    return jnp.linalg.solve(a, x)  # root


def inverse(x):
    return jnp.linalg.inv(jnp.zeros((3, 3)) * x).sum()  # root


def distance(x):
    return jnp.sum(jnp.abs(x - x[0]) ** 1.5)  # root


def spectrum(x):
    return jnp.abs(jnp.fft.fft(x * 1e38)).sum()  # root


def complex_power(x):
    z = x.astype(jnp.complex64) * 1e20j
    return jnp.real(z * z).sum()  # root


def eighth(x):
    wide = (1e4 * x).astype(jnp.float8_e4m3fn)  # root
    return wide.astype(jnp.float32).sum()


def brain(x):
    y = x.astype(jnp.bfloat16)
    return jnp.exp(y * 100).sum()  # root


def sorted_rows(x):
    return jnp.sort(jnp.log(x - 1.0)).sum()  # root


def looked_up(x):
    table = jnp.zeros((4,)).at[jnp.arange(3)].add(1 / (x - 1.0))  # root
    return table.sum()


FORWARD = {
    products: ("mul",),
    factor: ("cholesky",),
    solved: ("lu", "triangular_solve", "div", "custom_linear_solve"),
    inverse: ("lu", "triangular_solve", "div", "custom_linear_solve"),
    spectrum: ("fft",),
    complex_power: ("mul",),
    eighth: ("convert_element_type",),
    brain: ("exp",),
    sorted_rows: ("log",),
    looked_up: ("div",),
}


@pytest.mark.parametrize("fn", FORWARD, ids=lambda fn: fn.__name__)
def test_forward(fn):
    finding = first_nonfinite(jax.jit(jax.checkpoint(fn)), X)
    assert finding is not None
    assert finding.line == marked_line(fn)
    assert finding.primitive in FORWARD[fn]
    assert finding.phase == "forward"


def test_gradient_of_a_gradient():
    # |x|**1.5 has a slope at 0, and no second derivative.
    assert first_nonfinite(jax.grad(distance), X) is None
    finding = first_nonfinite(jax.hessian(distance), X)
    assert (finding.line, finding.phase) == (marked_line(distance), "backward")


def test_vmap_of_a_gradient_names_the_example():
    def length(x):
        return jnp.sqrt(jnp.sum(x * x))  # root

    rows = jnp.ones((5, 3)).at[3].set(0.0)
    finding = first_nonfinite(jax.vmap(jax.grad(length)), rows)
    assert finding.line == marked_line(length)
    assert (finding.phase, finding.result.first_index) == ("backward", (3,))
