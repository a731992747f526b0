"""Statistics that stream; cleaners merged, saved and mapped; rows that are bad."""

import json
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxsafe import clean, guard
from jaxsafe.clean import _moments, _select, _sketch

_OPTIONS = {"impute": "median", "scale": "robust", "outliers": "mad"}


def _data(seed=0, rows=900):
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((rows, 3)) * [1, 5, 1e-3] + [0, 1e5, 2]).astype(np.float32)
    x[rng.random(x.shape) < 0.1] = np.nan
    return x


def _same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, two in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(one, two)


@settings(max_examples=5, deadline=None)
@given(st.permutations(range(6)))
def test_order_of_chunks_does_not_matter_beyond_rounding(order):
    x = _data()
    chunks = np.split(x, 6)
    whole = clean.fit(x)
    state = clean.start(3)
    for i in order:
        state = clean.update(state, chunks[i])
    cleaner = clean.finish(state)
    for name in ("count", "minimum", "maximum"):
        np.testing.assert_array_equal(getattr(cleaner, name), getattr(whole, name))
    np.testing.assert_allclose(cleaner.mean, whole.mean, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(cleaner.std, whole.std, rtol=2e-7)
    merged = clean.fit(chunks[i] for i in order)
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-7, atol=1e-8)


def test_buckets_counted_on_the_host_are_those_of_the_device(monkeypatch):
    x = np.concatenate([_data(rows=2503), _data(1, rows=2503) * 1e30], axis=1)
    x[:8, 0] = [0.0, -0.0, 1e-40, -1e-40, np.inf, -np.inf, 3.4e38, -3.4e38]
    x[8:12, 1] = -999.0
    monkeypatch.setattr(_moments, "LARGE", 1)
    monkeypatch.setattr(_sketch, "_CACHED", 2000)
    cleaner = clean.fit(x, impute="median", quantiles="sketch", missing=(-999.0,))
    pivot, counts = cleaner.sketch
    names = [column.name for column in cleaner.columns]
    admit = _moments.Admission(names, (-999.0,), cleaner.options)
    empty = jnp.zeros((6, _sketch.BUCKETS), jnp.int32)
    expected = jax.jit(_select.sketch, static_argnums=3)(empty, x, pivot, admit)
    assert counts.dtype == expected.dtype
    np.testing.assert_array_equal(counts, expected)
    np.testing.assert_array_equal(counts.sum(axis=1), cleaner.count)


def test_streamed_quantiles_are_near_and_state_is_fit_for_scan():
    x = _data()
    exact = clean.fit(x, **_OPTIONS)

    def step(state, chunk):
        return clean.update(state, chunk), None

    chunks = jnp.asarray(x).reshape(3, 300, 3)
    state, _ = jax.jit(lambda s, c: jax.lax.scan(step, s, c))(
        clean.start(3, quantiles=True), chunks
    )
    cleaner = clean.finish(state, **_OPTIONS)
    spread = np.asarray(exact.std)
    assert (np.abs(cleaner.fill - exact.fill) < 0.02 * spread).all()
    np.testing.assert_allclose(cleaner.divisor, exact.divisor, rtol=0.04)


@pytest.mark.slow
def test_devices_agree_with_one_fit():
    x = _data(rows=800)
    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.asarray(devices), ("rows",))
    spec = jax.sharding.PartitionSpec

    def step(state, chunk):
        return clean.update(state, chunk, axis_name="rows")

    run = jax.shard_map(
        step, mesh=mesh, in_specs=(spec(), spec("rows")), out_specs=spec()
    )
    state = jax.jit(run)(clean.start(3, quantiles=True), x)
    one = clean.update(clean.start(3, quantiles=True), x)
    np.testing.assert_array_equal(state.number, one.number)
    np.testing.assert_allclose(state.mean, one.mean, rtol=1e-7)
    np.testing.assert_allclose(state.std, one.std, rtol=2e-7)
    np.testing.assert_array_equal(state.counts.sum(axis=1), one.counts.sum(axis=1))


def test_statistics_of_two_streams_are_joined():
    x = _data()
    a, b = (
        clean.update(clean.start(3, quantiles=True), part) for part in np.split(x, 2)
    )
    joined = clean.finish(jax.jit(clean.merge_statistics)(a, b), **_OPTIONS)
    exact = clean.fit(x, **_OPTIONS)
    np.testing.assert_allclose(joined.mean, exact.mean, rtol=1e-7, atol=1e-8)
    assert (np.abs(joined.fill - exact.fill) < 0.04 * np.asarray(exact.std)).all()


def test_rows_that_do_not_count_do_not_leak():
    x = _data()
    keep = np.arange(len(x)) % 3 > 0
    masked = clean.update(clean.start(3), np.where(keep[:, None], x, 1e30), where=keep)
    only = clean.fit(x[keep])
    np.testing.assert_array_equal(masked.number, only.count)
    np.testing.assert_allclose(masked.mean, only.mean, rtol=1e-7, atol=1e-8)
    np.testing.assert_allclose(masked.std, only.std, rtol=2e-7)


@pytest.mark.parametrize("options", [_OPTIONS, {"impute": "most_frequent"}], ids=str)
def test_merged_medians_and_modes(options):
    x = np.round(_data() * np.float32(4)) / np.float32(4)
    merged = clean.merge(clean.fit(x[:300], **options), clean.fit(x[300:], **options))
    whole = clean.fit(x, **options)
    if options is _OPTIONS:
        close = np.abs(merged.fill - whole.fill) <= 0.05 * np.asarray(whole.std) + 0.01
        assert close.all()
    else:
        np.testing.assert_array_equal(merged.fill, whole.fill)


def test_chunks_that_fit_give_the_exact_median():
    x = _data()
    whole = clean.fit(x, **_OPTIONS)
    for chunks in (iter(np.split(x, 4)), np.split(x, 2)):
        _same(clean.fit(chunks, **_OPTIONS), whole)
    with pytest.raises(ValueError, match=r"^clean.fit: there are no chunks"):
        clean.fit(iter(()))


_TABLE = {
    "city": ["London", None, "Venice", "London"],
    "rain": [2.5, -999.0, 4.5, np.nan],
    "age": [20, 31, 150, 20],
}
_ALL = {
    "impute": {"rain": "median", "age": "most_frequent"},
    "fill_value": {"rain": 1.0},
    "scale": "robust",
    "outliers": ("iqr", 2.0),
    "ranges": {"age": (0, 120)},
    "missing": (-999.0,),
    "indicator": True,
}


@pytest.mark.parametrize("options", [{}, _ALL], ids=["plain", "all"])
def test_saved_and_loaded_bit_by_bit(options, tmp_path):
    cleaner = clean.fit(_TABLE, **options)
    loaded = clean.from_json(cleaner.to_json())
    _same(loaded, cleaner)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "cleaner", cleaner)
        checkpointer.wait_until_finished()
        _same(checkpointer.restore(tmp_path / "cleaner", loaded), cleaner)
    served = clean.apply(loaded, clean.encode(loaded, _TABLE))
    np.testing.assert_array_equal(
        served, clean.apply(cleaner, clean.encode(cleaner, _TABLE))
    )
    for text in ("", "{}", json.dumps({"version": 2})):
        with pytest.raises(ValueError, match=r"^clean.from_json: the text is no"):
            clean.from_json(text)


@pytest.mark.parametrize("options", [{}, _ALL, {"outliers": 2.0}], ids=str)
def test_the_map_of_a_loader_is_apply(options):
    cleaner = clean.fit(_TABLE, **options)
    mapped = pickle.loads(pickle.dumps(cleaner.as_map()))
    expected = clean.apply(cleaner, clean.encode(cleaner, _TABLE))
    for table in (_TABLE, pd.DataFrame(_TABLE)):
        out = mapped(table)
        assert isinstance(out, np.ndarray)
        np.testing.assert_allclose(out, expected, rtol=2e-7, atol=1e-7)


def test_a_map_starts_no_device():
    cleaner = clean.fit(np.asarray([[1.0], [3.0]]))
    code = (
        "import pickle, sys\n"
        "run = pickle.load(sys.stdin.buffer)\n"
        "import numpy as np\n"
        "print(run(np.array([[np.nan], [3.0]])).tolist())\n"
        "import jax\n"
        "jax.config.update('jax_platforms', 'no such platform')\n"
        "print(run(np.array([[1.0]])).tolist())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(cleaner.as_map()),
        capture_output=True,
        check=True,
    )
    assert done.stdout.decode().split() == ["[[0.0],", "[1.0]]", "[[-1.0]]"]


def test_bad_rows_have_no_weight_and_reach_the_ledger(tmp_path):
    x = np.ones((6, 2), np.float32)
    x[1, 0], x[4, 1] = np.nan, np.inf
    batch = {"x": x, "y": np.arange(6)}
    ids = np.asarray([10, 11, 12, 13, 14, 15])

    @jax.jit
    def step(batch):
        gated = clean.gate(batch, ids=ids, most=3)
        loss, grad = jax.value_and_grad(lambda w: (gated.batch["x"] @ w).sum())(
            jnp.ones(2)
        )
        return gated, loss, grad

    gated, loss, grad = step(batch)
    assert gated.weight.tolist() == [1, 0, 1, 1, 0, 1]
    assert gated.ids.tolist() == [11, 14, -1]
    assert int(gated.bad) == 2
    assert float(loss) == 8
    assert grad.tolist() == [4, 4]
    assert gated.batch["y"].tolist() == [0, 0, 2, 3, 0, 5]
    rows = guard.Ledger(tmp_path / "rows.json")
    assert clean.note(rows, gated.ids, reason="not finite") == 2
    assert clean.note(rows, gated.ids, reason="again") == 0
    assert dict(guard.Ledger(tmp_path / "rows.json")) == {
        11: "not finite",
        14: "not finite",
    }


def test_a_cleaner_knows_more_bad_rows():
    cleaner = clean.fit(
        np.asarray([[1.0, 5.0], [3.0, 6.0]], np.float32),
        missing=(-999.0,),
        ranges={"x1": (0, 10)},
    )
    x = np.asarray([[1, 5], [-999, 5], [2, 11], [np.nan, 1], [9, 9]], np.float32)
    gated = jax.jit(clean.gate)(x, cleaner)
    assert gated.weight.tolist() == [1, 0, 0, 0, 1]
    with pytest.raises(ValueError, match=r"^clean.gate: the last axis"):
        clean.gate(x[:, :1], cleaner)
    with pytest.raises(ValueError, match="share their first axis"):
        clean.gate((x, x[:2]))
