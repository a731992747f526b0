"""The 79 published GRIST bugs (Yan et al., FSE 2021), which come to sixteen patterns.

Inputs as published: mild (|z| <= 4), big (<= 500) and huge (<= 5e5) logits of both
signs, batch 4 x 4, one-hot labels. The line that a person has to change is marked.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe.diagnose import first_nonfinite

RNG = np.random.default_rng(0)
SIGNS = RNG.uniform(-1, 1, (4, 4)).astype(np.float32)
MILD, BIG, HUGE = (jnp.asarray(SIGNS * size) for size in (4, 500, 5e5))
Y = jnp.eye(4)


def ce(z, y):
    p = jax.nn.softmax(z)
    log_p = jnp.log(p)  # root
    return -jnp.sum(y * log_p)


def ceb(z, y):
    p = jax.nn.softmax(z)
    log_p = jnp.log(p)  # root
    log_q = jnp.log(1 - p)  # root
    return -jnp.mean(y * log_p + (1 - y) * log_q)


def bce(z, y):
    p = jax.nn.sigmoid(z)
    log_p = jnp.log(p)  # root
    log_q = jnp.log(1 - p)  # root
    return -jnp.mean(y * log_p + (1 - y) * log_q)


def bce_raw(z, y):
    p = 1 / (1 + jnp.exp(-z))
    log_p = jnp.log(p)  # root
    log_q = jnp.log(1 - p)  # root
    return -jnp.mean(y * log_p + (1 - y) * log_q)


def gan(z, y):
    d = jax.nn.sigmoid(z)
    f = jax.nn.sigmoid(z[::-1])
    log_d = jnp.log(d)  # root
    return -jnp.mean(log_d + jnp.log(1 - f + 1e-8)) + 0 * y.sum()


def smx_a(z, y):
    total = jnp.sum(jnp.exp(z), -1, keepdims=True)  # root
    p = jnp.exp(jnp.clip(z, -87, 87)) / total
    return -jnp.sum(y * jnp.log(jnp.clip(p, 1e-6, 1)))


def smx_c(z, y):
    power = jnp.exp(z)  # root
    p = power / jnp.sum(power, -1, keepdims=True)
    return -jnp.sum(y * jnp.log(p))


def smx_16b(z, y):
    power = jnp.exp(z)  # root
    p = power / jnp.sum(power, -1, keepdims=True)
    return -jnp.sum(y * jnp.log(jnp.abs(p)))


def smx_16c(z, y):
    power = jnp.exp(z)  # root
    p = power / jnp.sum(power, -1, keepdims=True)
    return -jnp.sum(y * jnp.log(jnp.abs(p) + 1e-6))


def unet(z, y):
    power = jnp.exp(z)  # root
    p = power / jnp.sum(power, -1, keepdims=True)
    return jnp.mean(jnp.sum((p - y) ** 2, -1))


def rbm(z, y):
    power = jnp.exp(z)  # root
    return jnp.sum(jnp.log(power + 1)) + 0 * y.sum()


def vae_a(z, y):
    p = jax.nn.sigmoid(z)
    log_p = jnp.log(p + 1e-10)
    log_q = jnp.log(1e-10 + 1 - p)  # root
    return -jnp.sum(y * log_p + (1 - y) * log_q)


def vae_b(z, y):
    power = jnp.exp(jnp.clip(z, -100, 87))
    root = jnp.sqrt(power)  # root
    return jnp.sum(root * y)


def kl4(z, y):
    log_z = jnp.log(z)  # root
    return -0.5 * jnp.mean(jnp.sum(1 + z - y**2 - log_z, -1))


def pyg13(z, y):
    log_z = jnp.log(z)  # root
    return jnp.sum(log_z / jnp.sum(log_z) * y)


def div28(z, y):
    s = jnp.sum(jnp.abs(z) * 0)
    return jnp.sum(y / s)  # root


# Pattern, what to give it, the primitive that goes wrong, with gradient or without.
PATTERNS = {
    "CE": (ce, BIG, "log", False),
    "CEB": (ceb, BIG, "log", False),
    "BCE": (bce, BIG, "log", False),
    "BCE_raw": (bce_raw, BIG, "log", False),
    "GAN": (gan, BIG, "log", False),
    "SMX_a": (smx_a, BIG, "exp", True),
    "SMX_c": (smx_c, BIG, "exp", False),
    "SMX_16b": (smx_16b, BIG, "exp", False),
    "SMX_16c": (smx_16c, BIG, "exp", False),
    "UNET": (unet, BIG, "exp", False),
    "RBM": (rbm, BIG, "exp", False),
    "VAEa": (vae_a, HUGE, "log", False),
    "VAEb": (vae_b, HUGE, "div", True),  # 0.5 / sqrt(0), the slope of the root
    "KL4": (kl4, MILD, "log", False),
    "PYG13": (pyg13, MILD, "log", False),
    "DIV28": (div28, MILD, "div", False),
}


def roots(fn):
    lines, first = inspect.getsourcelines(fn)
    return {first + i for i, line in enumerate(lines) if line.rstrip().endswith("root")}


# A CPU makes 0 of the subnormal exp(-100), a GPU keeps it, and its root has a slope.
_ON_CPU = {"VAEb"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.cpu] * (name in _ON_CPU))
        for name in PATTERNS
    ],
)
def test_pattern(name):
    fn, z, primitive, backward = PATTERNS[name]
    whole = jax.value_and_grad(fn)
    value, grad = whole(z, Y)
    if backward:
        assert not np.isfinite(np.asarray(grad)).all()
    finding = first_nonfinite(whole if backward else fn, z, Y)
    assert finding is not None, (value, grad)
    assert finding.primitive == primitive
    assert finding.line in roots(fn)


def test_all_sixteen_are_there():
    assert len(PATTERNS) == 16
