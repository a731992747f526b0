"""A finding on the page: its lines, its chain drawn, its ranges as pictures."""

import dataclasses
import importlib.util
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsafe import diagnose, report
from jaxsafe.report import _scale
from tests.report._html import Reader

CODE = """import jax.numpy as jnp


def softmax(x):
    power = jnp.exp(x)  # <b>
    return power / power.sum()


def other(x):
    return x
"""


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "some_model.py"
    path.write_text(CODE)
    spec = importlib.util.spec_from_file_location("some_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module, path


def card_of(finding):
    html = report.page("t", [report.Section("s", [finding])])
    Reader(html)
    return html


def boxes(html):
    """The text of each box of the chain, in order."""
    chain = re.search(r'<ol class="chain">(.*?)</ol>', html, flags=re.DOTALL)[1]
    items = re.findall(r"<li>(.*?)</li>", chain, flags=re.DOTALL)
    # An arrow leads into every box but the first.
    assert ["<svg" in item for item in items] == [False] + [True] * (len(items) - 1)
    return [" ".join(Reader(item).text) for item in items]


def marked(html):
    return [" ".join(Reader(m).text) for m in re.findall("<mark>.*?</mark>", html)]


def test_chain_from_infinity_to_nan(model):
    module, _ = model
    finding = diagnose.first_nonfinite(module.softmax, jnp.array([1.0, 100.0]))
    html = card_of(finding)
    went_in, born, turns, out = boxes(html)
    assert went_in == "went in exp x: 1 to 100"
    assert "born here exp → Inf some_model.py:5 power = jnp.exp(x)  # <b>" in born
    assert "turns into NaN div → NaN some_model.py:6 return power" in turns
    assert out.startswith("comes out NaN")
    first, second = marked(html)
    assert re.match(r" *5 +power = jnp.exp\(x\)  # <b>", first)
    assert re.match(r" *6 +return power", second)
    assert "def softmax(x):" in html  # what stands around


def test_a_file_that_has_changed_is_not_quoted(model):
    module, path = model
    finding = diagnose.first_nonfinite(module.softmax, jnp.array([1.0, 100.0]))
    path.write_text("# secret\n" * 20)
    html = card_of(finding)
    assert "secret" not in html
    assert "power = jnp.exp(x)" in html
    assert marked(html) == []


def test_an_input_has_no_operands_and_an_infinity_no_second_step():
    finding = diagnose.first_nonfinite(jnp.sum, jnp.array([1.0, jnp.nan]))
    assert [box.split(" ")[0] for box in boxes(card_of(finding))] == ["born", "comes"]
    finding = diagnose.first_nonfinite(jnp.exp, jnp.array([1.0, 100.0]))
    assert boxes(card_of(finding))[-1].startswith("comes out Inf")


def test_a_chain_in_other_words_is_kept():
    finding = diagnose.first_nonfinite(jnp.exp, jnp.array([1.0, 100.0]))
    other = dataclasses.replace(
        finding, chain=("a word", "b -> c", "", "x -> nan at ?")
    )
    text = " ".join(boxes(card_of(other)))
    assert all(word in text for word in ("a word", "b -> c", "x → NaN ?"))


@pytest.mark.several_devices
def test_the_device_is_named():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:2]), ("rows",))
    rows = jax.sharding.PartitionSpec("rows")
    fn = jax.shard_map(jnp.log, mesh=mesh, in_specs=rows, out_specs=rows)
    finding = diagnose.first_nonfinite(fn, jnp.array([1.0, -1.0]))
    assert "device 1 of the mesh" in card_of(finding)


def stats(low, high, **counts):
    given = {"num_nan": 0, "num_inf": 0, "num_zero": 0, "first_index": None, **counts}
    return diagnose.Stats(
        name="x", shape=(4,), dtype="float32", minimum=low, maximum=high, **given
    )


def bars(html):
    found = re.findall(r'class="bar" style="left: ([\d.]+)%; width: ([\d.]+)%"', html)
    return [(float(left), float(width)) for left, width in found]


def test_positions_on_the_scale():
    scale = _scale._NARROW
    for at, value in ((0, -1e40), (50, 0.0), (100, 1e40), (50, 1e-46), (75, 1e-3)):
        assert _scale.position(value, scale) == pytest.approx(at)
    values = [-3e38, -1.0, -1e-40, 0.0, 1e-40, 1e-5, 7.0, 3e38]
    places = [_scale.position(v, scale) for v in values]
    assert places == sorted(places)
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("low", "high"),
    [(-1.0, 1e6), (0.0, 0.0), (3e38, 3.4e38), (-1e-44, 1e-44), (-1e300, 1e-310)],
)
def test_every_bar_lies_on_its_track(low, high):
    ((left, width),) = bars(_scale.pictures([stats(low, high)]))
    assert width > 0
    assert -0.01 <= left <= left + width <= 100.01


def test_a_bar_that_leaves_the_band_of_float16():
    html = _scale.pictures([stats(1.0, 1e5), stats(1.0, 1e4)])
    (left, width), (_, inside) = bars(html)
    band = re.findall(r'float16" style="left: ([\d.]+)%; width: ([\d.]+)%', html)[1]
    end = sum(map(float, band))
    assert left + width > end > left + inside


def test_only_bad_entries_draw_no_bar():
    html = _scale.pictures([stats(math.nan, math.nan, num_nan=3, num_inf=1)])
    assert bars(html) == []
    assert "3 NaN" in html
    assert "1 Inf" in html
