"""The models: small enough to train in seconds, real enough to break."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx


class MLP(nnx.Module):
    """Two layers.

    Args:
      features: inputs per row.
      classes: scores per row.
      hidden: width of the hidden layer.
      activation: between the layers.
      head: on top of the scores; None hands out the scores themselves.
      dtype: to compute in.
      param_dtype: to keep the weights in.
      seed: of the initial weights.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        hidden: int = 64,
        activation: Callable[[jax.Array], jax.Array] = nnx.relu,
        head: Callable[[jax.Array], jax.Array] | None = None,
        dtype: Any = jnp.float32,
        param_dtype: Any = jnp.float32,
        seed: int = 0,
    ) -> None:
        layer = functools.partial(
            nnx.Linear, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(seed)
        )
        self.first = layer(features, hidden)
        self.last = layer(hidden, classes)
        self.activation = activation
        self.head = head

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scores[rows, classes] of x[rows, features]."""
        scores = self.last(self.activation(self.first(x)))
        return scores if self.head is None else self.head(scores)


class PixelRNN(nnx.Module):
    """Reads an image a few pixels at a time; recurrent weights start as the identity.

    Le, Jaitly, Hinton, A simple way to initialize recurrent networks of rectified
    linear units, 2015, https://arxiv.org/abs/1504.00941

    Args:
      classes: scores per row.
      pixels: how many are read at once.
      hidden: width of the state.
      seed: of the initial weights.
    """

    def __init__(
        self, classes: int, *, pixels: int = 1, hidden: int = 64, seed: int = 0
    ) -> None:
        rngs = nnx.Rngs(seed)
        self.pixels = pixels
        self.read = nnx.Linear(pixels, hidden, rngs=rngs)
        self.recur = nnx.Param(jnp.eye(hidden))
        self.last = nnx.Linear(hidden, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Scores[rows, classes] of images x[rows, steps * pixels]."""

        def tick(state: jax.Array, pixels: jax.Array) -> tuple[jax.Array, None]:
            return nnx.relu(self.read(pixels) + state @ self.recur), None

        start = jnp.zeros((x.shape[0], self.recur.shape[0]))
        ticks = x.reshape(x.shape[0], -1, self.pixels).swapaxes(0, 1)
        state, _ = jax.lax.scan(tick, start, ticks)
        return self.last(state)
