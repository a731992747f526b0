"""No false finding on programs that are healthy, harmless infinities included."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from jax import lax

from jaxsafe.diagnose import first_nonfinite

X = jnp.array([[1.0, 2.0, 3.0], [0.0, -1.0, 5.0]])
MASK = jnp.array([[True, False, True], [True, True, False]])
ONES = MASK.astype(jnp.float32)
NAN = X.at[0, 0].set(jnp.nan)
LABELS = jnp.array([0, 2])
QUERY = jax.random.normal(jax.random.key(0), (1, 4, 2, 8))
FLOOR = -jnp.inf


def summed(fn):
    return jax.value_and_grad(lambda x: jnp.sum(fn(x)))


def masked(x):
    return jnp.where(MASK, x, FLOOR)


def running_softmax(x):
    def body(carry, row):
        top, total = carry
        new = jnp.maximum(top, row.max())
        return (new, total * jnp.exp(top - new) + jnp.exp(row - new).sum()), None

    return lax.scan(body, (jnp.asarray(FLOOR), jnp.zeros(())), x)[0]


def least_of(x):
    def body(s):
        return s[0] + 1, jnp.minimum(s[1], x.sum())

    return lax.while_loop(lambda s: s[0] < 3, body, (0, jnp.asarray(jnp.inf)))[1]


def sorting_network(x):
    """Odd-even transposition of a row that is padded with infinity."""
    row = jnp.pad(x[0], (0, 1), constant_values=jnp.inf)
    for start in (0, 1, 0, 1):
        low, high = row[start:-1:2], row[start + 1 :: 2]
        row = row.at[start:-1:2].set(jnp.minimum(low, high))
        row = row.at[start + 1 :: 2].set(jnp.maximum(low, high))
    return row[:-1]


def adaptive_steps(x):
    """An ODE solver that rejects steps: what it rejects may have overflowed."""

    def body(state):
        t, y, dt = state
        slope = -y * jnp.exp(y * dt)
        once, twice = y + dt * slope, y + dt * (slope - (y + dt * slope)) / 2
        wrong = jnp.max(jnp.abs(once - twice)) / 1e-2
        good = wrong <= 1
        # A NaN is no good step either, and its factor must not be taken.
        factor = jnp.where(good, 1.5, jnp.where(wrong < jnp.inf, 0.9 / wrong, 0.1))
        t, y = jnp.where(good, t + dt, t), jnp.where(good, once, y)
        return t, y, dt * jnp.clip(factor, 0.1, 1.5)

    start = (jnp.zeros(()), x[0], jnp.asarray(1e3))
    return lax.while_loop(lambda s: s[0] < 0.5, body, start)[1]


def max_pool(x):
    return nn.max_pool(x[None, :, :, None], (2, 2), padding="SAME").sum()


HEALTHY = {
    "sorting network": (sorting_network, X),
    "rejected steps of a solver": (adaptive_steps, X),
    "pooling pads with -inf": (max_pool, X),
    "masked softmax": (summed(lambda x: jax.nn.softmax(masked(x)) ** 2), X),
    "softmax with where": (summed(lambda x: jax.nn.softmax(x, where=MASK) ** 2), X),
    "logsumexp of a mask": (summed(lambda x: jax.nn.logsumexp(masked(x), axis=-1)), X),
    "mask as an argument": (lambda x, m: jax.nn.softmax(x + m), X, masked(X * 0.0)),
    "mask built by log": (lambda x: jax.nn.softmax(x + jnp.log(ONES)), X),
    "discarded 1/0": (lambda x: jnp.where(x == 0.0, 0.0, 1.0 / x), X),
    "double where": (
        summed(lambda x: jnp.where(x > 0.0, jnp.log(jnp.where(x > 0.0, x, 1.0)), 0.0)),
        X,
    ),
    "nanmean": (summed(jnp.nanmean), NAN),
    "nanvar": (jnp.nanvar, NAN),
    "nanmedian": (jnp.nanmedian, NAN),
    "nan_to_num": (lambda x: jnp.nan_to_num(x / 0.0), X),
    "isnan": (lambda x: jnp.isnan(jnp.log(x)), X),
    "argmax of a mask": (lambda x: jnp.argmax(masked(x), axis=-1), X),
    "maximum from -inf": (lambda x: jnp.max(x, where=MASK, initial=FLOOR), X),
    "cummax": (lambda x: lax.cummax(masked(x), axis=1)[:, :1], X),
    "top_k of a mask": (lambda x: lax.top_k(masked(x), 2)[0], X),
    "returned mask": (lambda x: (x.sum(), masked(x)), X),
    "best value so far": (
        lambda best, x: jnp.minimum(best, x),
        jnp.full(3, jnp.inf),
        X[0],
    ),
    "unused best value": (lambda best, x: (best, x), jnp.asarray(jnp.inf), X),
    "clip to infinity": (lambda x: jnp.clip(x, -jnp.inf, jnp.inf), X),
    "logaddexp with -inf": (summed(lambda x: jnp.logaddexp(x, FLOOR)), X),
    "exp of -inf": (lambda x: jnp.exp(masked(x)), X),
    "sort puts NaN last": (lambda x: jnp.sort(x)[:2], jnp.array([1.0, jnp.nan, 0.0])),
    "quantile": (lambda x: jnp.quantile(x, jnp.asarray(0.3)), X),
    "xlogy at 0": (lambda x: jax.scipy.special.xlogy(x, jnp.abs(x)), X),
    "entr": (lambda x: jax.scipy.special.entr(jnp.abs(x)), X),
    "logcdf far out": (lambda x: jax.scipy.stats.norm.logcdf(x * 100.0), X),
    "attention with mask": (
        summed(lambda q: jax.nn.dot_product_attention(q, q, q, is_causal=True)),
        QUERY,
    ),
    "streaming softmax": (running_softmax, X),
    "least of a loop": (least_of, X),
    "branch not taken": (
        lambda x: lax.cond(x.sum() > 100.0, lambda x: x / 0.0, lambda x: x, x),
        X,
    ),
    "NaN dropped by a large max": (jnp.max, jnp.ones((64, 64)).at[3, 3].set(jnp.nan)),
    "cross-entropy": (
        summed(
            lambda x: optax.softmax_cross_entropy_with_integer_labels(x * 100.0, LABELS)
        ),
        X,
    ),
    "binary cross-entropy": (
        summed(lambda x: optax.sigmoid_binary_cross_entropy(x * 1000.0, ONES)),
        X,
    ),
    "kl divergence": (
        summed(lambda x: optax.losses.kl_divergence(jax.nn.log_softmax(x), ONES)),
        X,
    ),
    "huber loss": (summed(optax.huber_loss), X),
    "bfloat16 softmax": (
        summed(lambda x: jax.nn.softmax(x * 100)),
        X.astype(jnp.bfloat16),
    ),
    "float16 in range": (lambda x: x * 200 / 200, jnp.float16([300.0])),
    "float8 cast": (lambda x: x.astype(jnp.float8_e4m3fn).astype(jnp.float32), X),
    "complex": (lambda x: jnp.abs(jnp.fft.fft(x)), X),
    "random numbers": (lambda key: jax.random.normal(key, (3,)), jax.random.key(0)),
    "integers": (lambda i: i + 1, LABELS),
    "nothing": (jnp.sum, jnp.zeros((0, 3))),
    "no arguments": (lambda: jnp.ones(3),),
}


@pytest.mark.parametrize(
    "name",
    [
        # XLA on CPU alone drops it.
        pytest.param(name, marks=[pytest.mark.cpu] * ("dropped" in name))
        for name in HEALTHY
    ],
)
def test_healthy_program_gives_none(name):
    fn, *args = HEALTHY[name]
    assert first_nonfinite(fn, *args) is None


class _Model(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(3, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(nnx.relu(self.linear(x)))).sum()


def test_healthy_nnx_train_step():
    model = _Model(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.sgd(1e-3, momentum=0.9), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x):
        loss, grads = nnx.value_and_grad(lambda m: m(x))(model)
        optimizer.update(model, grads)
        return loss

    assert first_nonfinite(step, model, optimizer, X) is None


def test_healthy_linen_model():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.LayerNorm()(nn.Dense(4)(x))
            return nn.BatchNorm(use_running_average=False)(x).sum()

    net = Net()
    variables = net.init(jax.random.key(0), X)

    def loss(variables):
        return net.apply(variables, X, mutable=["batch_stats"])[0]

    assert first_nonfinite(jax.value_and_grad(loss), variables) is None


def test_healthy_adamw_step_with_donated_state():
    tx = optax.adamw(1e-3)
    params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}

    @jax.jit
    def step(params, state, x):
        def loss(p):
            return jnp.mean((x @ p["w"] + p["b"][None]) ** 2)

        grads = jax.grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    with jax.numpy_dtype_promotion("standard"):
        assert first_nonfinite(step, params, tx.init(params), X) is None
