"""A character transformer of 0.11 M parameters, and text that ships with CPython.

Pre-norm blocks without biases, as in the runs of Wortsman et al., 2023,
https://arxiv.org/abs/2309.14322, at a size at which seven of them train side by side on
two cores.
"""

import pydoc_data.topics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxsafe import losses

WIDTH, DEPTH, HEADS, LENGTH = 64, 2, 2, 32


class Text(NamedTuple):
    """Characters as numbers.

    Attributes:
      train: int32[n], the first nine tenths.
      test: int32[m], the rest.
      size: how many different characters there are.
    """

    train: np.ndarray
    test: np.ndarray
    size: int


def text() -> Text:
    """The help topics of Python."""
    topics = pydoc_data.topics.topics
    joined = "\n".join(topics[name] for name in sorted(topics))
    raw = np.frombuffer(joined.encode("ascii", "replace"), np.uint8)
    values, codes = np.unique(raw, return_inverse=True)
    codes = codes.astype(np.int32)
    cut = len(codes) * 9 // 10
    return Text(codes[:cut], codes[cut:], len(values))


def windows(
    codes: np.ndarray, rng: np.random.Generator, *shape: int
) -> tuple[np.ndarray, np.ndarray]:
    """Random stretches of text, and the same one character on, [*shape, LENGTH]."""
    starts = rng.integers(0, len(codes) - LENGTH - 1, shape)
    pieces = codes[starts[..., None] + np.arange(LENGTH + 1)]
    return pieces[..., :-1], pieces[..., 1:]


def init(size: int, *, seed: int = 0) -> dict[str, Any]:
    """The parameters."""
    keys = iter(jax.random.split(jax.random.key(seed), 3 + 4 * DEPTH))

    def weights(rows: int, columns: int) -> jax.Array:
        return jax.random.normal(next(keys), (rows, columns)) * rows**-0.5

    blocks = [
        {
            "attend": jnp.ones(WIDTH),
            "qkv": weights(WIDTH, 3 * WIDTH),
            "out": weights(WIDTH, WIDTH),
            "think": jnp.ones(WIDTH),
            "up": weights(WIDTH, 4 * WIDTH),
            "down": weights(4 * WIDTH, WIDTH),
        }
        for _ in range(DEPTH)
    ]
    return {
        "tokens": jax.random.normal(next(keys), (size, WIDTH)) * 0.5,
        "places": jax.random.normal(next(keys), (LENGTH, WIDTH)) * 0.5,
        "blocks": blocks,
        "scale": jnp.ones(WIDTH),
        "head": weights(WIDTH, size),
    }


def losses_of(params: Any, x: Any, y: Any) -> jax.Array:
    """float32[rows]: cross-entropy of the next character, a mean for each row."""
    scores = _scores(params, x)
    each = losses.softmax_cross_entropy_with_integer_labels(scores, y)
    return each.mean(-1)


def _scores(params: Any, x: jax.Array) -> jax.Array:
    h = params["tokens"][x] + params["places"]
    past = jnp.tril(jnp.ones((LENGTH, LENGTH), bool))
    for block in params["blocks"]:
        parts = _normalized(h, block["attend"]) @ block["qkv"]
        parts = parts.reshape(*h.shape[:-1], 3, HEADS, WIDTH // HEADS)
        q, k, v = (parts[..., i, :, :] for i in range(3))
        near = jnp.einsum("bqhd,bkhd->bhqk", q, k) * (WIDTH // HEADS) ** -0.5
        weight = jax.nn.softmax(jnp.where(past, near, -1e30), axis=-1)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weight, v).reshape(h.shape)
        h = h + mixed @ block["out"]
        h = (
            h
            + jax.nn.gelu(_normalized(h, block["think"]) @ block["up"]) @ block["down"]
        )
    return _normalized(h, params["scale"]) @ params["head"]


def _normalized(h: jax.Array, scale: jax.Array) -> jax.Array:
    h = h - h.mean(-1, keepdims=True)
    return scale * h * jax.lax.rsqrt((h * h).mean(-1, keepdims=True) + 1e-5)
