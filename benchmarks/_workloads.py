"""What is trained: pieces of work from 0.2 to 100 million parameters.

Each is a loss of (params, rest, batch) that gives back what is no parameter, such as
the statistics of BatchNorm. Where only the optimizer counts, the batch *is* the
gradient.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxsafe.diagnose import tap

Loss = Callable[[Any, Any, Any], tuple[jax.Array, Any]]


class Workload(NamedTuple):
    """One piece of work.

    Attributes:
      name: with its size.
      init: makes (params, rest, batch).
      loss: (params, rest, batch) -> (loss, rest); None if the batch is the gradient.
    """

    name: str
    init: Callable[[], tuple[Any, Any, Any]]
    loss: Loss | None

    def grad(self, params: Any, rest: Any, batch: Any) -> Any:
        """((loss, rest), gradients)."""
        if self.loss is None:
            loss, grads = batch
            return (loss, rest), grads
        return jax.value_and_grad(self.loss, has_aux=True)(params, rest, batch)


def _entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    hit = jnp.take_along_axis(logits, labels[..., None], -1)[..., 0]
    return (jax.nn.logsumexp(logits, -1) - hit).mean()


def _keys(count: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), count)


class _Mlp(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for _ in range(3):
            x = nn.relu(nn.Dense(512)(x))
        return nn.Dense(10)(x)


class _Cnn(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for width in (32, 64):
            x = nn.Conv(width, (3, 3), strides=(2, 2))(x)
            x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
        return nn.Dense(10)(x.mean((1, 2)))


def _tap(layer: int, name: str, x: jax.Array) -> jax.Array:
    return tap(f"{name}{layer}", x) if layer < 4 else x


class _Transformer(nn.Module):
    """Five activations of each of the first four layers are tapped."""

    layers: int = 4
    width: int = 256
    words: int = 4096

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(self.words, self.width)(tokens)
        mask = nn.make_causal_mask(tokens)
        for i in range(self.layers):
            mark = functools.partial(_tap, i)
            heads = nn.SelfAttention(num_heads=self.width // 64)
            x = mark("mixed", x + mark("heads", heads(nn.LayerNorm()(x), mask)))
            wide = mark("wide", nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
            hidden = mark("hidden", nn.gelu(wide))
            x = mark("out", x + nn.Dense(self.width)(hidden))
        return nn.Dense(self.words, use_bias=False)(nn.LayerNorm()(x))


def _flax(name: str, model: nn.Module, batch: Callable[[], Any]) -> Workload:
    def init() -> Any:
        x, y = batch()
        variables = jax.jit(model.init)(jax.random.key(1), x)
        rest = {k: v for k, v in variables.items() if k != "params"}
        return variables["params"], rest, (x, y)

    def loss(params: Any, rest: Any, batch: Any) -> tuple[jax.Array, Any]:
        x, y = batch
        logits, rest = model.apply({"params": params, **rest}, x, mutable=list(rest))
        return _entropy(logits, y), rest

    return Workload(name, init, loss)


def _vectors() -> tuple[jax.Array, jax.Array]:
    x, y = _keys(2)
    return jax.random.normal(x, (128, 512)), jax.random.randint(y, (128,), 0, 10)


def _images() -> tuple[jax.Array, jax.Array]:
    x, y = _keys(2)
    return jax.random.normal(x, (64, 32, 32, 3)), jax.random.randint(y, (64,), 0, 10)


def _texts(length: int) -> tuple[jax.Array, jax.Array]:
    x, y = _keys(2)
    shape = (8, length)
    return (
        jax.random.randint(x, shape, 0, 4096),
        jax.random.randint(y, shape, 0, 4096),
    )


def _given(name: str, leaves: int, shape: tuple[int, ...]) -> Workload:
    """Only the optimizer: the gradients are there already."""

    def init() -> tuple[Any, Any, Any]:
        names = [f"w{i:03}" for i in range(leaves)]
        keys = dict(zip(names, _keys(leaves), strict=True))
        params = {k: 0.02 * jax.random.normal(key, shape) for k, key in keys.items()}
        grads = {k: 0.1 * p for k, p in params.items()}
        return params, {}, (jnp.float32(1.0), grads)

    return Workload(name, init, None)


MLP = _flax("MLP 3 x 512", _Mlp(), _vectors)
CNN = _flax("CNN with BatchNorm", _Cnn(), _images)
TRANSFORMER = _flax(
    "transformer 4 x 256", _Transformer(), functools.partial(_texts, 64)
)
SMALL_LEAVES = _given("optimizer, 400 leaves of 560", 400, (560,))
LARGE_LEAVES = _given("optimizer, 40 M in 4 leaves", 4, (3200, 3125))
# For accelerators: what fills one.
LARGE_TRANSFORMER = _flax(
    "transformer 6 x 1024", _Transformer(6, 1024), functools.partial(_texts, 512)
)
HUGE_LEAVES = _given("optimizer, 100 M in 4 leaves", 4, (5000, 5000))

MODELS = (MLP, CNN, TRANSFORMER)
ALL = (*MODELS, SMALL_LEAVES, LARGE_LEAVES)
