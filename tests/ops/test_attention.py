"""dot_product_attention: masks that nothing gets through, options, extreme logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import ops

ATTEND = ops.dot_product_attention


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_what_is_masked_is_not_felt():
    # The batch: clean, then with NaN and with infinity where nothing may look.
    q, k, v = np.repeat(normal(3, 1, 3, 2, 2), 3, axis=1)
    # Query 2 sees nothing; key 1 is seen by query 1 only; key 2 by none.
    seen = jnp.asarray([[True, False, False], [True, True, False], [False] * 3])
    hidden = seen.at[:, 1:].set(False)
    for i, junk in enumerate([np.nan, np.inf], start=1):
        q[i, 2], k[i, 1:], v[i, 1:, :, 0] = junk, junk, junk

    @jax.jit
    def both(q, k, v):
        def total(q, k, v):
            return ATTEND(q, k, v, mask=hidden[None, None]).sum()

        slopes = jax.grad(total, (0, 1, 2))(q, k, v)
        return ATTEND(q, k, v, mask=seen[None, None]), slopes

    (clean, *dirty), slopes = both(q, k, v)
    assert not np.any(clean[2])
    for out in dirty:
        np.testing.assert_array_equal(out[::2], clean[::2])
        assert np.isnan(out[1]).all()
    for want, *got in slopes:
        np.testing.assert_array_equal(got, np.stack([want, want]))


def test_a_nan_that_is_seen_comes_out():
    # The batch: a NaN in the second query, key or value.
    x = np.repeat(normal(3, 1, 2, 1, 2), 3, axis=1)
    x[np.arange(3), np.arange(3), 1, 0, 0] = np.nan
    out = jax.jit(ATTEND)(*x)
    assert np.isnan(out[:, 1]).all()
    assert np.isfinite(out[0, 0]).all()
    assert np.isnan(out[1:, 0]).all()


def test_minus_infinity_in_the_bias_is_a_mask():
    q, k, v = normal(3, 1, 2, 1, 2)
    seen = jnp.asarray([[True, False], [False, False]])[None, None]
    bias = jnp.where(seen, 0, -jnp.inf)

    @jax.jit
    def both(*args):
        out, pull = jax.vjp(ATTEND, *args)
        return out, ATTEND(*args[:3], mask=seen), pull(2 * out)

    out, masked, slopes = both(q, k, v, bias)
    np.testing.assert_array_equal(out, masked)
    assert all(np.isfinite(s).all() for s in slopes)
    assert not np.any(slopes[0][:, 1])


def test_options_agree_with_jax():
    q = normal(2, 4, 4, 2)
    k, v = normal(2, 2, 5, 2, 2)
    options = {
        "bias": normal(1, 4, 4, 5),
        "mask": jnp.ones((1, 1, 4, 5), bool).at[..., 1].set(False),
        "is_causal": True,
        "scale": 0.3,
        "key_value_seq_lengths": jnp.asarray([3, 5], jnp.int32),
        "query_seq_lengths": jnp.asarray([4, 4], jnp.int32),
        "local_window_size": (3, 1),
    }
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        upstream = functools.partial(jax.nn.dot_product_attention, **options)
        want = jax.jit(upstream)(q, k, v)
    got = jax.jit(lambda q, k, v: ATTEND(q, k, v, **options))(q, k, v)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


def test_logits_beyond_the_range():
    q = jnp.asarray([[[1e19, 1e19]], [[-3e38, 1e19]]])
    k = jnp.asarray([[[1e19, -1e19]], [[3e38, 0.0]]])
    v = jnp.asarray([[[1.0, 2.0]], [[3.0, 4.0]]])
    seen = jnp.asarray([[True, True], [False, True]])[:, None, None]
    out = jax.jit(ATTEND)(*(jnp.stack([x, x]) for x in (q, k, v)), mask=seen)
    # Both logits of the second query are below the range: they tie there.
    np.testing.assert_array_equal(out[0], [[[3.0, 4.0]], [[2.0, 3.0]]])
    # A lone key gets all the weight, however far below the range its logit is.
    np.testing.assert_array_equal(out[1, 1], v[1])


def test_float16():
    q = jnp.full((1, 1, 1, 64), 100, jnp.float16)
    out = jax.jit(ATTEND)(q, q, q / 100)
    assert out.dtype == jnp.float16
    np.testing.assert_array_equal(np.asarray(out, float), 1)


def test_shapes_that_do_not_fit():
    x = jnp.ones((1, 2, 3, 2))
    with pytest.raises(
        ValueError, match=r"^ops.dot_product_attention: query .* not fit"
    ):
        ATTEND(x, x[:, :, :2], x[:, :, :2])
