"""dot_product_attention: masks that nothing gets through, options, extreme logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import ops

ATTEND = ops.dot_product_attention


@pytest.mark.parametrize("junk", [np.nan, np.inf])
def test_what_is_masked_is_not_felt(junk, getkey):
    q, k, v = jax.random.normal(getkey(), (3, 1, 3, 2, 2))
    # Query 2 sees nothing; key 1 is seen by query 1 only; key 2 by none.
    seen = jnp.asarray([[True, False, False], [True, True, False], [False] * 3])
    hidden = seen.at[:, 1:].set(False)

    @jax.jit
    def both(q, k, v):
        def total(q, k, v):
            return ATTEND(q, k, v, mask=hidden[None, None]).sum()

        return ATTEND(q, k, v, mask=seen[None, None]), jax.grad(total, (0, 1, 2))(
            q, k, v
        )

    clean, slopes = both(q, k, v)
    dirty = both(
        q.at[:, 2].set(junk), k.at[:, 1:].set(junk), v.at[:, 1:, :, 0].set(junk)
    )
    np.testing.assert_array_equal(dirty[0][:, ::2], clean[:, ::2])
    assert np.isnan(dirty[0][:, 1]).all()
    assert not np.any(clean[:, 2])
    for got, want in zip(dirty[1], slopes, strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_nan_that_is_seen_comes_out(getkey):
    x = jax.random.normal(getkey(), (3, 1, 2, 1, 2))
    for i in range(3):
        q, k, v = x.at[i, 0, 1, 0, 0].set(jnp.nan)
        out = ATTEND(q, k, v)
        assert np.isnan(out[:, 1]).all()
        assert np.isnan(out[:, 0]).all() == (i > 0)


def test_minus_infinity_in_the_bias_is_a_mask(getkey):
    q, k, v = jax.random.normal(getkey(), (3, 1, 2, 1, 2))
    seen = jnp.asarray([[True, False], [False, False]])[None, None]
    bias = jnp.where(seen, 0, -jnp.inf)

    def total(q, k, v, bias):
        return jnp.sum(jnp.square(ATTEND(q, k, v, bias)))

    np.testing.assert_array_equal(ATTEND(q, k, v, bias), ATTEND(q, k, v, mask=seen))
    slopes = jax.jit(jax.grad(total, (0, 1, 2, 3)))(q, k, v, bias)
    assert all(np.isfinite(s).all() for s in slopes)
    assert not np.any(slopes[0][:, 1])


def test_options_agree_with_jax(getkey):
    q = jax.random.normal(getkey(), (2, 4, 4, 2))
    k, v = jax.random.normal(getkey(), (2, 2, 5, 2, 2))
    options = {
        "bias": jax.random.normal(getkey(), (1, 4, 4, 5)),
        "mask": jnp.ones((1, 1, 4, 5), bool).at[..., 1].set(False),
        "is_causal": True,
        "scale": 0.3,
        "key_value_seq_lengths": jnp.asarray([3, 5], jnp.int32),
        "query_seq_lengths": jnp.asarray([4, 4], jnp.int32),
        "local_window_size": (3, 1),
    }
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        want = jax.nn.dot_product_attention(q, k, v, **options)
    got = jax.jit(lambda q, k, v: ATTEND(q, k, v, **options))(q, k, v)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=1e-6)


def test_logits_beyond_the_range():
    q = jnp.asarray([[[1e19, 1e19]], [[-3e38, 1e19]]])
    k = jnp.asarray([[[1e19, -1e19]], [[3e38, 0.0]]])
    v = jnp.asarray([[[1.0, 2.0]], [[3.0, 4.0]]])
    out = jax.jit(ATTEND)(q, k, v)
    # Both logits of the second query are below the range: they tie there.
    np.testing.assert_array_equal(out, [[[3.0, 4.0]], [[2.0, 3.0]]])
    # A lone key gets all the weight, however far below the range its logit is.
    np.testing.assert_array_equal(ATTEND(q[1:], k[1:], v[1:]), v[1:])


def test_float16():
    q = jnp.full((1, 1, 1, 64), 100, jnp.float16)
    out = ATTEND(q, q, q / 100)
    assert out.dtype == jnp.float16
    np.testing.assert_array_equal(np.asarray(out, float), 1)


def test_shapes_that_do_not_fit():
    x = jnp.ones((1, 2, 3, 2))
    with pytest.raises(
        ValueError, match=r"^ops.dot_product_attention: query .* not fit"
    ):
        ATTEND(x, x[:, :, :2], x[:, :, :2])
