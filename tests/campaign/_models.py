"""Three small models, in every width and framework that the campaign needs."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxsafe import losses, ops

POOL = 16  # batches, used round and round


def normal(seed, *shape, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# A multilayer perceptron that learns a function of four numbers.
def mlp_batches():
    x = normal(0, POOL, 8, 4)
    y = np.sin(x @ normal(1, 4, 1)) + 0.5 * x[..., :1]
    return jnp.asarray(x), jnp.asarray(y)


def mlp_params():
    return {
        "w1": jnp.asarray(normal(2, 4, 16, scale=0.5)),
        "b1": jnp.zeros(16),
        "w2": jnp.asarray(normal(3, 16, 1, scale=0.3)),
        "b2": jnp.zeros(1),
    }


def mlp_loss(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["w1"] + params["b1"])
    return jnp.mean((hidden @ params["w2"] + params["b2"] - y) ** 2)


# A convolution with BatchNorm that tells apart which half of an image is bright.
class Cnn(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.out = nnx.Linear(4 * 4, 2, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.conv(x)))
        x = x.reshape(x.shape[0], 2, 3, 2, 3, 4).mean((2, 4))
        return self.out(x.reshape(x.shape[0], -1))


def cnn_batches():
    rng = np.random.default_rng(4)
    labels = rng.integers(2, size=(POOL, 8))
    images = normal(5, POOL, 8, 6, 6, 1, scale=0.5)
    images[:, :, :3] += labels[..., None, None, None]
    return jnp.asarray(images), jnp.asarray(labels, jnp.int32)


def cnn_loss(model, images, labels):
    logits = model(images)
    return losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


# One block of a transformer that says which of eight directions comes first.
WIDTH, HEADS, LENGTH, CLASSES = 16, 2, 6, 8


def transformer_batches(dtype):
    rng = np.random.default_rng(6)
    labels = rng.integers(CLASSES, size=(POOL, 4))
    x = normal(7, POOL, 4, LENGTH, WIDTH, scale=0.5)
    x[:, :, 0, :CLASSES] += 2.0 * np.eye(CLASSES)[labels]
    return jnp.asarray(x, dtype), jnp.asarray(labels, jnp.int32)


def transformer_params(dtype):
    shapes = {
        "qkv": (WIDTH, 3 * WIDTH),
        "proj": (WIDTH, WIDTH),
        "up": (WIDTH, 2 * WIDTH),
        "down": (2 * WIDTH, WIDTH),
        "out": (WIDTH, CLASSES),
    }
    params = {
        name: jnp.asarray(normal(8 + i, *shape, scale=shape[0] ** -0.5), dtype)
        for i, (name, shape) in enumerate(shapes.items())
    }
    return params | {"g1": jnp.ones(WIDTH, dtype), "g2": jnp.ones(WIDTH, dtype)}


def transformer_loss(params, batch):
    x, labels = batch
    x = x + _attention(params, ops.standardize(x) * params["g1"])
    hidden = ops.gelu(ops.standardize(x) * params["g2"] @ params["up"])
    x = x + hidden @ params["down"]
    logits = (x.mean(1) @ params["out"]).astype(jnp.float32)
    return losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _attention(params, x):
    parts = jnp.split(x @ params["qkv"], 3, axis=-1)
    q, k, v = (z.reshape(*z.shape[:-1], HEADS, -1) for z in parts)
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (WIDTH // HEADS) ** -0.5
    mixed = jnp.einsum("bhqk,bkhd->bqhd", ops.softmax(scores), v)
    return mixed.reshape(x.shape) @ params["proj"]
