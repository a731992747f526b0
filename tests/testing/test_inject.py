"""Faults strike the entry they name, everything else stays bit by bit."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from jaxsafe import testing, transforms

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]
EXPONENT = {"float32": (23, 8), "bfloat16": (7, 8), "float16": (10, 5)}


def tree(dtype):
    a = np.linspace(-2, 3, 6).reshape(2, 3)
    return {
        "a": jnp.asarray(a, dtype),
        "n": jnp.arange(3),
        "b": jnp.asarray([0.5, 1.5], dtype),
    }


def as_bits(x):
    x = np.asarray(x)
    return x.view(f"uint{8 * x.dtype.itemsize}")


def leaf_bits(tree):
    return {name: as_bits(x).copy() for name, x in tree.items()}


def oracle(kind, bits, bit, dtype):
    """The bits of one struck entry, from the IEEE layout."""
    mantissa, exponent = EXPONENT[jnp.dtype(dtype).name]
    ones = (2**exponent - 1) << mantissa
    sign = 1 << (mantissa + exponent)
    if kind == "inf":
        return ones
    if kind == "-inf":
        return ones | sign
    if kind == "bit_flip":
        return int(bits) ^ (1 << (mantissa + bit % exponent))
    if kind == "zero":
        return 0
    return (int(bits) & ~ones) | 1  # denormal


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", testing.FAULT_KINDS)
def test_one_fault(kind, dtype):
    strike = jax.jit(testing.inject)
    for leaf, entry, bit in [(0, 4, 0), (1, 1, 3), (2, 10, 9), (7, 3, 7)]:
        before = tree(dtype)
        fault = testing.fault(kind, leaf=leaf, entry=entry, bit=bit)
        after = strike(fault, before)
        assert {k: v.dtype for k, v in after.items()} == {
            k: v.dtype for k, v in before.items()
        }
        old, new = leaf_bits(before), leaf_bits(after)
        np.testing.assert_array_equal(old.pop("n"), new.pop("n"))
        if kind in ("zero", "denormal"):
            for name, bits in old.items():
                want = [oracle(kind, b, bit, dtype) for b in bits.ravel()]
                assert new[name].ravel().tolist() == want
            continue
        name = "ab"[leaf % 2]  # leaves in order: a, b (n is no target)
        at = entry % old[name].size
        value = np.asarray(after[name]).ravel()[at]
        if kind == "nan":
            assert np.isnan(value)
        elif kind == "huge":
            assert np.isfinite(value)
            assert float(value) > 4000
        else:
            assert new[name].ravel()[at] == oracle(
                kind, old[name].ravel()[at], bit, dtype
            )
        new[name].ravel()[at] = old[name].ravel()[at]
        for each in "ab":
            np.testing.assert_array_equal(new[each], old[each])


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_numbers_are_finite_and_their_squares_are_not(dtype):
    for bit in range(8):
        x = testing.inject(testing.fault("huge", bit=bit), jnp.ones(1, dtype))
        assert np.isfinite(float(x[0]))
        assert float(x[0]) ** 2 > float(jnp.finfo(dtype).max)


def test_only_where_every_coordinate_fits():
    fault = testing.fault("nan", place="loss", step=3, micro_batch=1, device=2)
    here = {"place": "loss", "step": 3, "micro_batch": 1, "device": 2}

    def struck(**coordinates):
        return bool(jnp.isnan(testing.inject(fault, jnp.ones(()), **coordinates)))

    assert struck()
    assert struck(**here)
    elsewhere = {"place": "updates", "step": 2, "micro_batch": 0, "device": 0}
    for name, value in elsewhere.items():
        assert struck(**{name: here[name]})
        assert not struck(**{**here, name: value})


def test_what_is_not_struck_keeps_even_its_nan_payload():
    bits = np.array([0x7FC12345, 0x80000000, 0x00000001], np.uint32)
    x = jnp.asarray(bits.view(np.float32))
    same = testing.inject(testing.fault("zero", step=1), x, step=0)
    np.testing.assert_array_equal(as_bits(same), bits)


def test_complex_float8_and_float64_leaves():
    z = testing.inject(testing.fault("inf"), jnp.asarray([1 + 2j], jnp.complex64))
    assert np.isinf(np.asarray(z).real[0])
    assert np.asarray(z).imag[0] == 2
    x = jnp.asarray([1.0, 2.0], jnp.float8_e4m3fn)
    flipped = testing.inject(testing.fault("bit_flip", bit=3), x)
    assert as_bits(flipped)[0] == as_bits(x)[0] ^ 0x40
    nan = testing.inject(testing.fault("inf", entry=1), x)
    assert np.isnan(np.asarray(nan).astype(ml_dtypes.bfloat16)[1])
    with jax.enable_x64(True):
        wide = testing.inject(testing.fault("bit_flip", bit=10), jnp.ones(1))
        assert wide.dtype == jnp.float64
        assert as_bits(wide)[0] == as_bits(np.ones(1))[0] ^ np.uint64(1 << 62)


def test_thousands_in_one_program():
    keys = jax.random.split(jax.random.key(1), 5000)
    faults = jax.vmap(
        lambda key: testing.random_fault(key, steps=10, micro_batches=4, devices=8)
    )(keys)
    for name, most in [("kind", 7), ("place", 6), ("step", 10), ("device", 8)]:
        counts = np.bincount(np.asarray(getattr(faults, name)), minlength=most)
        assert len(counts) == most
        assert counts.min() > 0.7 * 5000 / most
    before = {"a": jnp.ones((3, 4)), "b": jnp.ones(5, jnp.bfloat16)}

    def body(count, fault):
        after = testing.inject(fault, before)
        changed = sum(jnp.sum(after[k] != before[k]) for k in before)
        return count.at[fault.kind, changed].add(1), None

    seen, _ = jax.jit(lambda f: jax.lax.scan(body, jnp.zeros((7, 18), int), f))(faults)
    seen = np.asarray(seen)
    assert seen.sum() == 5000
    assert set(np.flatnonzero(seen[:5].sum(0))) == {1}  # one entry, and it did change
    assert set(np.flatnonzero(seen[5:].sum(0))) == {17}  # all of them


def test_under_vmap_and_grad():
    kinds = [testing.fault(kind) for kind in ("nan", "zero", "inf")]
    faults = jax.tree.map(lambda *x: jnp.stack(x), *kinds)
    out = jax.vmap(testing.inject, (0, None))(faults, jnp.ones(2))
    np.testing.assert_array_equal(out, [[np.nan, 1], [0, 0], [np.inf, 1]])
    grad = jax.grad(lambda x: testing.inject(kinds[2], x).sum())(jnp.ones(2))
    np.testing.assert_array_equal(grad, [0, 1])


def test_faulty_strikes_updates_at_its_step_only():
    tx = transforms.guarded(testing.faulty(optax.sgd(0.5)), backoff=1.0)
    fault = testing.fault("inf", place="updates", step=1, entry=1)
    state = tx.init(jnp.ones(2))
    seen = []
    for step in range(3):
        _, state = tx.update(jnp.full(2, 0.1), state, fault=fault, step=step)
        seen.append(bool(state.control.ok))
    assert seen == [True, False, True]
    plain = testing.faulty(optax.sgd(0.5))
    updates, _ = plain.update(jnp.ones(2), plain.init(jnp.ones(2)))
    np.testing.assert_array_equal(updates, [-0.5, -0.5])


@pytest.mark.parametrize(
    ("call", "kind", "says"),
    [
        (lambda: testing.fault("nam"), ValueError, "fault: kind must be one of"),
        (lambda: testing.fault("nan", place="x"), ValueError, "fault: place must be"),
        (
            lambda: testing.random_fault(jax.random.key(0), steps=0),
            ValueError,
            "random_fault: steps must be an integer",
        ),
        (
            lambda: testing.random_fault(jax.random.key(0), kinds=()),
            ValueError,
            "random_fault: kinds must be a list of names",
        ),
        (
            lambda: testing.random_fault(jax.random.key(0), places="loss"),
            ValueError,
            "random_fault: places must be a list of names",
        ),
        (lambda: testing.inject("nan", 1.0), TypeError, "inject: fault must be"),
        (
            lambda: testing.inject(testing.fault("nan"), {"n": 1}),
            ValueError,
            "inject: there is nothing to strike",
        ),
        (
            lambda: testing.inject(testing.fault("nan"), 1.0, place="w"),
            ValueError,
            "inject: place must be one of",
        ),
    ],
)
def test_errors(call, kind, says):
    with pytest.raises(kind, match=says):
        call()
