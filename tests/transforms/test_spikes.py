"""clip_spikes against plain transcriptions of the two papers' rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import transforms
from jaxsafe.transforms import _zscore


def zclip(norms, threshold=2.5, decay=0.97, warmup=25, eps=1e-6):
    """ZClip (2504.02507, algorithm 1 with reciprocal clipping): clipped norms."""
    out, first, mean, var = [], [], None, None
    for norm in norms:
        if mean is None:
            out.append(norm)
            first.append(norm)
            if len(first) == warmup:
                mean, var = np.mean(first), np.var(first)
            continue
        std = np.sqrt(var)
        z = (norm - mean) / (std + eps)
        if z > threshold:
            norm = mean + threshold * std / (z / threshold)
        out.append(norm)
        mean = decay * mean + (1 - decay) * norm
        var = decay * var + (1 - decay) * (norm - mean) ** 2
    return np.asarray(out)


def adagc(grads, relative=1.05, absolute=1.0, decay=0.98, warmup=100):
    """AdaGC (2502.11034, algorithm 1), without Adam: clipped gradients."""
    out, usual = [], None
    for step, leaves in enumerate(grads):
        norms = [np.linalg.norm(g) for g in leaves]
        if step < warmup:
            factor = min(absolute / np.sqrt(np.sum(np.square(norms))), 1.0)
            factors = [factor] * len(leaves)
        else:
            pairs = zip(usual, norms, strict=True)
            factors = [min(relative * u / n, 1.0) for u, n in pairs]
        clipped = [g * f for g, f in zip(leaves, factors, strict=True)]
        new = [np.linalg.norm(g) for g in clipped]
        if usual is None:
            usual = new
        elif step < warmup:
            usual = [min(u, n) for u, n in zip(usual, new, strict=True)]
        else:
            pairs = zip(usual, new, strict=True)
            usual = [decay * u + (1 - decay) * n for u, n in pairs]
        out.append(clipped)
    return out


def run(tx, grads):
    def step(state, g):
        updates, state = tx.update(g, state)
        return state, (updates, state.spike_clipped)

    first = jax.tree.map(lambda x: x[0], grads)
    return jax.lax.scan(step, tx.init(first), grads)


def norms_with_spikes(rng, count=120):
    norms = 1 + 0.1 * rng.normal(size=count) + np.linspace(0, 0.5, count)
    norms[[40, 70, 71, 100]] = 5.0, 1e3, 2.5, 1e6
    return norms


def test_zscore_is_zclip():
    rng = np.random.default_rng(0)
    norms = norms_with_spikes(rng)
    tx = transforms.clip_spikes(max_norm=None)
    state, (updates, clipped) = run(tx, jnp.asarray(norms, jnp.float32)[:, None])
    want = zclip(norms)
    np.testing.assert_allclose(np.asarray(updates)[:, 0], want, rtol=2e-5)
    np.testing.assert_array_equal(clipped, want < norms)
    assert int(state.spike_count) == (want < norms).sum() >= 4


def test_per_leaf_is_adagc():
    rng = np.random.default_rng(1)
    sizes = 1 + 0.2 * rng.normal(size=(150, 2))
    sizes[120] *= 50.0
    sizes[130, 1] *= 1e4
    directions = [rng.normal(size=(150, n)) for n in (3, 5)]
    grads = [
        d / np.linalg.norm(d, axis=1, keepdims=True) * sizes[:, i : i + 1]
        for i, d in enumerate(directions)
    ]
    tx = transforms.clip_spikes("per_leaf")
    _, (updates, _) = run(tx, [jnp.asarray(g, jnp.float32) for g in grads])
    want = adagc(list(zip(*grads, strict=True)))
    for i in range(2):
        ours = np.asarray(updates[i])
        np.testing.assert_allclose(ours, [w[i] for w in want], rtol=3e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["zscore", "per_leaf"])
def test_non_finite_gradients_teach_nothing(kind):
    rng = np.random.default_rng(2)
    norms = norms_with_spikes(rng)
    bad = np.concatenate([[np.nan], norms[:30], [np.inf, np.nan], norms[30:]])
    tx = transforms.clip_spikes(kind, warmup_steps=20)
    _, (with_bad, _) = run(tx, jnp.asarray(bad, jnp.float32)[:, None])
    _, (without, _) = run(tx, jnp.asarray(norms, jnp.float32)[:, None])
    kept = np.isfinite(bad)
    np.testing.assert_array_equal(np.asarray(with_bad)[kept], without)
    assert not np.isfinite(np.asarray(with_bad)[~kept]).any()


@pytest.mark.parametrize("kind", ["zscore", "per_leaf"])
def test_a_spike_in_the_warm_up_is_clipped_and_forgotten(kind):
    norms = np.ones(200)
    norms[3], norms[150] = 1e30, 1e4
    tx = transforms.clip_spikes(kind, warmup_steps=25)
    _, (updates, clipped) = run(tx, jnp.asarray(norms, jnp.float32)[:, None])
    assert np.asarray(updates).max() <= 1.06
    assert bool(clipped[150])  # the first did not make everything else look small


def test_a_leaf_without_gradient_can_start_later():
    grads = np.zeros((60, 1), np.float32)
    grads[50:] = 0.5
    tx = transforms.clip_spikes("per_leaf", warmup_steps=10)
    _, (updates, _) = run(tx, [jnp.asarray(grads), jnp.ones((60, 1))])
    np.testing.assert_allclose(np.asarray(updates[0])[50:], 0.5, rtol=1e-6)


def test_statistics_neither_overflow_nor_mix_up_huge_norms():
    tx = transforms.clip_spikes(max_norm=None, warmup_steps=4)
    norms = np.asarray([1e30, 1.1e30, 0.9e30, 1e30, 1e30, 3e38, 1e30])
    state, (updates, clipped) = run(tx, jnp.asarray(norms, jnp.float32)[:, None])
    assert np.isfinite(jax.tree.leaves(state.spike_statistics)[1])
    np.testing.assert_array_equal(clipped, [0, 0, 0, 0, 0, 1, 0])
    assert float(updates[5, 0]) < 1.2e30


def test_start_of_statistics_is_that_of_numpy():
    first = np.random.default_rng(3).uniform(1, 2, 25).astype(np.float32)
    mean, std = _zscore._start(jnp.asarray(first))
    np.testing.assert_allclose(mean, first.mean(), 1e-6)
    np.testing.assert_allclose(std, first.std(), 1e-5)


def test_constant_norms_are_no_spikes():
    tx = transforms.clip_spikes(max_norm=None, warmup_steps=5)
    _, (updates, clipped) = run(tx, jnp.ones((40, 1)))
    assert not np.asarray(clipped).any()
    np.testing.assert_array_equal(updates, np.ones((40, 1)))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kind": "median"}, "kind must be one of"),
        ({"threshold": 0.0}, "threshold must be a finite number above 0"),
        ({"decay": 1.5}, "decay must lie in"),
        ({"warmup_steps": 0}, "warmup_steps must be an integer"),
        ({"max_norm": -1.0}, "max_norm must be a finite number above 0"),
    ],
)
def test_refuses(options, says):
    with pytest.raises(ValueError, match=f"clip_spikes: {says}"):
        transforms.clip_spikes(**options)
