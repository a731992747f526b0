"""Every loss beside optax's, and the fused linear cross-entropy beside its parts."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks import ops
from benchmarks._case import Case, Program
from jaxsafe import losses as ours

_TOKENS, _WIDTH, _WORDS = 4096, 512, 32_000
_PLAIN = "matmul + optax"


class _Setting(NamedTuple):
    """A form of linear cross-entropy and how much it holds at a time."""

    loss: Callable[..., jax.Array]
    chunk_size: int


_PER_TOKEN = {
    f"jaxsafe, {n} classes at a time": _Setting(ours.linear_softmax_cross_entropy, n)
    for n in (1024, 512)
}
_MEAN = {
    f"jaxsafe, mean, {n} tokens at a time": _Setting(
        ours.linear_softmax_cross_entropy_mean, n
    )
    for n in (512, 128)
}
_SETTINGS = _PER_TOKEN | _MEAN
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
    fused = {
        name: functools.partial(_program, sizes, setting)
        for name, setting in _SETTINGS.items()
    }
    return Case(
        name="linear + cross-entropy, {} x {} x {}, gradient".format(*sizes),
        contenders={_PLAIN: functools.partial(_program, sizes), **fused},
        baseline=_PLAIN,
        **bars,
    )


def _program(sizes: tuple[int, int, int], setting: _Setting | None = None) -> Program:
    tokens, width, words = sizes
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (tokens, width))
    kernel = jax.random.normal(keys[1], (width, words)) * width**-0.5
    labels = jax.random.randint(keys[2], (tokens,), 0, words)

    def plain(hidden: Any, kernel: Any, labels: Any) -> jax.Array:
        logits = hidden @ kernel
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def fused(hidden: Any, kernel: Any, labels: Any) -> jax.Array:
        assert setting is not None
        loss = setting.loss(hidden, kernel, labels, chunk_size=setting.chunk_size)
        return jnp.mean(loss)

    loss = plain if setting is None else fused
    return Program(jax.value_and_grad(loss, (0, 1)), (hidden, kernel, labels))
