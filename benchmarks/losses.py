"""Every loss beside optax's, and the fused linear cross-entropy beside its parts."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import ops
from benchmarks._case import Case, Program
from jaxsafe import losses as ours

_TOKENS, _WIDTH, _WORDS = 4096, 512, 32_000
_PLAIN = "matmul + optax"


def _plain(hidden: Any, kernel: Any, labels: Any) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(hidden @ kernel, labels)


_PER_TOKEN = {
    f"jaxsafe, {n} classes at a time": functools.partial(
        ours.linear_softmax_cross_entropy, chunk_size=n
    )
    for n in (1024, 512)
}
_MEAN = {
    f"jaxsafe, mean, {n} tokens at a time": functools.partial(
        ours.linear_softmax_cross_entropy_mean, chunk_size=n
    )
    for n in (512, 128)
}
_FORMS = {_PLAIN: _plain} | _PER_TOKEN | _MEAN
# Memory is drawn against them.
_VOCABULARIES = (2048, 8192, 32_768)


def cases(*, quick: bool) -> Iterator[Case]:
    """Functions of `jaxsafe.losses`; then both forms of the fused one."""
    yield from ops.room("losses.", quick=quick)
    for words in _VOCABULARIES[: 1 if quick else None]:
        yield _linear((512, 256, words))
    if not quick:
        yield _linear(
            (_TOKENS, _WIDTH, _WORDS),
            bars=dict(zip(_MEAN, (1.12, 1.45), strict=True)),
            memory_bars=dict(zip(_MEAN, (0.13, 0.03), strict=True)),
        )


def _linear(sizes: tuple[int, int, int], **bars: dict[str, float]) -> Case:
    return Case(
        name="linear + cross-entropy, {} x {} x {}, gradient".format(*sizes),
        contenders={
            name: functools.partial(_program, sizes, loss)
            for name, loss in _FORMS.items()
        },
        baseline=_PLAIN,
        **bars,
    )


def _program(sizes: tuple[int, int, int], loss: Callable[..., jax.Array]) -> Program:
    tokens, width, words = sizes
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (tokens, width))
    kernel = jax.random.normal(keys[1], (width, words)) * width**-0.5
    labels = jax.random.randint(keys[2], (tokens,), 0, words)

    def mean(hidden: Any, kernel: Any, labels: Any) -> jax.Array:
        return jnp.mean(loss(hidden, kernel, labels))

    return Program(jax.value_and_grad(mean, (0, 1)), (hidden, kernel, labels))
