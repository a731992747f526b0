"""The most frequent number of a column that streams by: scikit-learn's, or an error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.impute import SimpleImputer

from jaxsafe import clean

_MODE = {"impute": "most_frequent", "scale": None}


def _data(seed=0, rows=600):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 9, (rows, 4)).astype(np.float32)
    x[:, 1] = -0.0 + x[:, 1] // 5  # few, often tied
    x[:, 2] = np.arange(rows) % 200 * np.float32(1e-3)  # all of them tied
    x[rng.random(x.shape) < 0.2] = np.nan
    x[:, 3] = np.nan
    return x


def _theirs(x):
    imputer = SimpleImputer(strategy="most_frequent", keep_empty_features=True)
    return imputer.fit(x).statistics_


def _streamed(chunks, **options):
    state = clean.start(chunks[0].shape[1], most_frequent=True)
    for chunk in chunks:
        state = clean.update(state, chunk)
    return clean.finish(state, **{**_MODE, **options})


@pytest.mark.parametrize("chunks", [7])
def test_it_is_that_of_scikit_learn_in_any_order(chunks):
    x = _data()
    parts = np.array_split(x, chunks)
    for order in (parts, parts[::-1]):
        cleaner = _streamed(order)
        np.testing.assert_array_equal(cleaner.fill, _theirs(x))
    np.testing.assert_array_equal(clean.apply(cleaner, x)[:, 3], 0)


def test_ties_go_to_the_smallest_number():
    x = np.asarray([[2.0, 0.0], [-3.0, -0.0], [2.0, 1.0], [-3.0, 1.0]], np.float32)
    cleaner = _streamed([x[:2], x[2:]])
    np.testing.assert_array_equal(cleaner.fill, [-3, 0])
    np.testing.assert_array_equal(cleaner.fill, _theirs(x))


def test_scan_merge_and_rows_that_do_not_count():
    x = _data()
    keep = np.arange(len(x)) % 3 > 0

    def step(state, chunk):
        return clean.update(state, chunk[0], where=chunk[1]), None

    def run(x, keep):
        chunks = x.reshape(3, -1, 4), keep.reshape(3, -1)
        return jax.lax.scan(step, clean.start(4, most_frequent=True), chunks)[0]

    a, b = (
        jax.jit(run)(*part) for part in ((x[:300], keep[:300]), (x[300:], keep[300:]))
    )
    joined = jax.jit(clean.merge_statistics)(a, b)
    np.testing.assert_array_equal(clean.finish(joined, **_MODE).fill, _theirs(x[keep]))
    one = clean.start(4, most_frequent=True)
    assert jax.tree.map(jnp.shape, joined) == jax.tree.map(jnp.shape, one)
    with pytest.raises(ValueError, match=r"^clean.merge_statistics: the two .* modes"):
        clean.merge_statistics(joined, clean.start(4))


@pytest.mark.slow
def test_devices_agree():
    x = _data(rows=800)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("rows",))
    spec = jax.sharding.PartitionSpec
    run = jax.shard_map(
        lambda s, c: clean.update(s, c, axis_name="rows"),
        mesh=mesh,
        in_specs=(spec(), spec("rows")),
        out_specs=spec(),
    )
    state = jax.jit(run)(clean.start(4, most_frequent=True), x)
    np.testing.assert_array_equal(clean.finish(state, **_MODE).fill, _theirs(x))


def _many(lead):
    """1,590 numbers, 7.5 among them `lead` times, the rest different; and few."""
    rng = np.random.default_rng(1)
    rest = np.arange(1590 - lead) / 8 + 100
    x = rng.permutation(np.concatenate([rest, np.full(lead, 7.5)])).astype(np.float32)
    return np.stack([x, x // 40], axis=1)


def _state(x):
    state = clean.start(2, most_frequent=True)
    for chunk in np.split(x, 5):
        state = clean.update(state, chunk)
    return state


def test_beyond_the_bound_it_is_right_or_an_error():
    x = _many(90)
    np.testing.assert_array_equal(clean.finish(_state(x), **_MODE).fill, _theirs(x))
    x = _many(4)
    state = _state(x)
    message = r"^clean.finish: of more than 256 .* \(got columns age\)\. Impute"
    with pytest.raises(ValueError, match=message):
        clean.finish(state, names=["age", "few"], **_MODE)
    # Another column than the one that asks may hold as many numbers as it likes.
    cleaner = clean.finish(state, impute={"x1": "most_frequent"})
    assert float(cleaner.fill[1]) == _theirs(x)[1]


def test_counts_are_within_the_stated_bound():
    x = np.floor(np.random.default_rng(2).exponential(90, (1590, 2)))
    modes = _state(x.astype(np.float32)).modes
    for column, values, counts, lost in zip(x.T, *map(np.asarray, modes), strict=True):
        assert 0 < lost <= len(x) / 257
        kept = {v: int(c) for v, c in zip(values, counts, strict=True) if c}
        for value, true in zip(*np.unique(column, return_counts=True), strict=True):
            assert kept.get(value, 0) <= true <= kept.get(value, 0) + lost


def test_what_was_not_counted_is_refused():
    state = clean.update(clean.start(1), np.ones((3, 1)))
    with pytest.raises(ValueError, match=r"^clean.finish: .*most_frequent=True"):
        clean.finish(state, impute="most_frequent")


def test_it_can_be_lowered_for_every_platform():
    def run(state, x):
        return clean.merge_statistics(clean.update(state, x), state)

    state = clean.start(2, most_frequent=True)
    exported = jax.export.export(jax.jit(run), platforms=("cpu", "cuda", "tpu"))
    assert exported(state, jnp.zeros((8, 2))).platforms == ("cpu", "cuda", "tpu")
