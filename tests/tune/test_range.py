"""The range test against runs in plain NumPy, one rate after the other."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsafe import guard, transforms, tune

SCALES = np.array([1.0, 10.0])
STEPS = 60
# Gradient descent on sum(s w**2) / 2 diverges beyond 2 / 10.
EDGE = 0.2


def loss_fn(w, x):
    return jnp.sum(SCALES * (w * x) ** 2) / 2


def descend(w, x, *, rate):
    loss, slope = jax.value_and_grad(loss_fn)(w, x)
    return w - rate * slope, loss


def by_hand(rate, xs, *, limit=np.inf):
    """Losses of plain descent in float64, and the step at which it left `limit`."""
    w, losses = np.ones(2), []
    for k, x in enumerate(xs):
        losses.append(np.sum(SCALES * (w * x) ** 2) / 2)
        if losses[-1] > limit * losses[0]:
            return losses, k
        w = w - rate * SCALES * w * x**2
    return losses, None


@pytest.fixture(scope="module")
def xs():
    return np.random.default_rng(0).uniform(0.9, 1.0, STEPS).astype(np.float32)


@pytest.fixture(scope="module")
def result(xs):
    return tune.lr_range_test(
        descend, jnp.ones(2), list(xs), low=1e-3, high=1e4, count=16
    )


class TestSideBySide:
    def test_every_rate_is_the_run_it_stands_for(self, result, xs):
        assert len(result.points) == 16
        for point in result.points:
            losses, ended = by_hand(point.rate, xs, limit=4.0)
            assert point.diverged_at == ended
            seen = np.array(point.losses)
            np.testing.assert_allclose(seen[: len(losses)], losses, rtol=2e-3, atol=0)
            assert np.isnan(seen[len(losses) :]).all()

    def test_the_rate_0_is_the_untrained_model(self, result, xs):
        wanted = np.mean(np.sum(SCALES) * xs[-10:].astype(np.float64) ** 2 / 2)
        assert result.untrained == pytest.approx(wanted, rel=1e-5)

    def test_the_largest_stable_rate_is_below_the_edge_and_the_next_above(self, result):
        rates = [point.rate for point in result.points]
        k = rates.index(result.largest_stable)
        # The inputs are a little below 1, so the edge is a little above 0.2.
        assert rates[k] < EDGE / 0.9**2
        assert rates[k + 1] > EDGE
        assert set(result.diverged) == set(rates[k + 1 :])

    def test_the_suggested_rate_trains_as_well_as_the_best(self, result):
        ends = {p.rate: p.loss for p in result.points if p.diverged_at is None}
        gain = result.untrained - min(ends.values())
        assert result.untrained - ends[result.suggested] >= 0.95 * gain
        lower = [r for r in ends if r < result.suggested]
        assert all(result.untrained - ends[r] < 0.95 * gain for r in lower)

    def test_it_says_so(self, result):
        text = result.summary()
        assert all(len(line) <= 80 for line in text.splitlines())
        assert "diverged at step 1" in text
        assert "largest stable" in text
        plain = json.loads(result.to_json())
        assert plain["points"][-1]["loss"] is None
        assert plain["suggested"] == result.suggested


def test_a_lane_that_is_nan_leaves_the_others_bit_for_bit(xs):
    def step(w, x, *, rate):
        new, loss = descend(w, x, rate=rate)
        return jnp.where(rate > 0.05, jnp.nan, new), loss

    def test_of(step):
        return tune.lr_range_test(step, jnp.ones(2), list(xs), low=1e-3, high=0.15)

    broken, whole = test_of(step), test_of(descend)
    for bad, good in zip(broken.points, whole.points, strict=True):
        if bad.rate > 0.05:
            assert bad.diverged_at == 0
        else:
            assert bad == good


def test_a_rate_inside_the_state_is_set_there(xs, result):
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=1.0)

    def step(state, x):
        w, opt = state
        loss, slope = jax.value_and_grad(loss_fn)(w, x)
        updates, opt = tx.update(slope, opt)
        return (optax.apply_updates(w, updates), opt), {"loss": loss}

    state = (jnp.ones(2), tx.init(jnp.ones(2)))
    again = tune.lr_range_test(step, state, list(xs), low=1e-3, high=1e4)
    for one, other in zip(again.points, result.points, strict=True):
        assert one.diverged_at == other.diverged_at
        assert one.loss == pytest.approx(other.loss, rel=1e-3, nan_ok=True)


def test_a_guarded_step_is_not_ended_by_one_bad_batch(xs):
    def step(state, x, *, rate):
        w, opt = state
        tx = transforms.guarded(optax.sgd(rate), max_norm=None, backoff=1.0)
        loss, slope = jax.value_and_grad(loss_fn)(w, x)
        updates, opt = tx.update(slope, opt, w, value=loss)
        return (optax.apply_updates(w, updates), opt), loss

    batches = [*xs[:20], np.float32(np.nan), *xs[20:]]
    tx = transforms.guarded(optax.sgd(0.1))
    state = (jnp.ones(2), tx.init(jnp.ones(2)))
    result = tune.lr_range_test(step, state, batches, low=1e-3, high=1e-2, count=4)
    for point in result.points:
        assert point.diverged_at is None
        losses, _ = by_hand(point.rate, xs)
        seen = np.array(point.losses)
        assert np.isnan(seen[20])
        np.testing.assert_allclose(np.delete(seen, 20), losses, rtol=1e-4)


def test_a_step_that_is_a_transaction_can_be_tested(xs):
    def train_step(state, x, rate):
        return descend(state, x, rate=rate)

    step = guard.transaction(train_step)

    def with_rate(carry, x, *, rate):
        return step(carry, x, rate)

    result = tune.lr_range_test(
        with_rate, step.init(jnp.ones(2)), list(xs), low=1e-3, high=0.1, count=3
    )
    losses, _ = by_hand(result.points[0].rate, xs)
    np.testing.assert_allclose(result.points[0].losses, losses, rtol=1e-4)


def test_a_loss_that_stays_nan_under_a_guard_has_diverged():
    def step(w, x, *, rate):
        loss = jnp.where((w < 0.5) & (rate > 0.01), jnp.nan, w)
        return jnp.where(jnp.isfinite(loss), w - rate, w), loss

    result = tune.lr_range_test(
        step, jnp.ones(()), [0.0] * 100, low=1e-4, high=0.1, count=2
    )
    assert result.points[0].diverged_at is None
    # 1, 0.9, ..., 0.5 (above it by rounding), 0.4
    assert result.points[1].diverged_at in (5, 6, 7)


class TestGrowing:
    def test_it_ends_where_the_growing_run_ends(self, xs):
        result = tune.lr_range_test(
            descend, jnp.ones(2), list(xs), low=1e-3, high=1e4, growing=True
        )
        rates = np.geomspace(1e-3, 1e4, STEPS)
        w, losses = np.ones(2), []
        for rate, x in zip(rates, xs, strict=True):
            losses.append(np.sum(SCALES * (w * x) ** 2) / 2)
            w = w - rate * SCALES * w * x**2
        ended = int(np.argmax(np.array(losses) > 4 * losses[0]))
        assert result.growing
        assert min(result.diverged.values()) == ended
        assert result.largest_stable < rates[ended]
        best = min(
            (p for p in result.points if np.isfinite(p.loss)), key=lambda p: p.loss
        )
        assert result.suggested == pytest.approx(best.rate / 10)
        assert len(result.points) == STEPS - 1
        assert "suggested" in repr(result)


class TestNothingToSuggest:
    def test_if_every_rate_diverges(self, xs):
        result = tune.lr_range_test(descend, jnp.ones(2), list(xs), low=10.0, high=1e3)
        assert result.largest_stable is None
        assert result.suggested is None
        assert "lower low" in result.summary()

    def test_if_no_rate_lowers_the_loss(self, xs):
        def climb(w, x, *, rate):
            return descend(w, x, rate=-rate)

        result = tune.lr_range_test(climb, jnp.ones(2), list(xs), low=1e-7, high=1e-6)
        assert result.suggested is None
        assert "none lowers" in repr(result)


class TestPlot:
    @pytest.mark.parametrize("growing", [False, True])
    def test_it_writes_a_picture(self, tmp_path, xs, growing):
        bend = tune.sharpness(loss_fn, jnp.ones(2), jnp.ones(()))
        result = tune.lr_range_test(
            descend, jnp.ones(2), list(xs), growing=growing, sharpness=bend
        )
        path = result.plot(tmp_path / "rates.svg")
        assert "<svg" in path.read_text("utf-8")
        assert "sharpness 10" in result.summary()

    def test_it_draws_on_axes(self, result):
        from matplotlib.figure import Figure

        axes = Figure().add_subplot()
        assert result.plot(axes) is axes
        shown = {line.get_label(): line for line in axes.lines}
        assert sorted(shown["diverged"].get_xdata()) == sorted(result.diverged)
        ends = [p.loss for p in result.points if p.diverged_at is None]
        assert list(shown["loss"].get_ydata()) == ends

    def test_without_matplotlib_it_says_what_to_install(self, result, monkeypatch):
        import sys

        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
        with pytest.raises(ImportError, match=r"jaxsafe\[report\]"):
            result.plot("rates.svg")


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"low": 0.0}, "low must be"),
            ({"high": float("inf")}, "high must be"),
            ({"low": 1.0, "high": 0.5}, "below high"),
            ({"count": 1}, "count must be"),
            ({"limit": 1.0}, "above 1"),
        ],
    )
    def test_bad_options(self, options, said):
        with pytest.raises(ValueError, match=said):
            tune.lr_range_test(descend, jnp.ones(2), [1.0, 1.0], **options)

    def test_one_batch_is_too_few(self):
        with pytest.raises(ValueError, match="two batches"):
            tune.lr_range_test(descend, jnp.ones(2), [1.0])

    def test_no_rate_to_set(self):
        with pytest.raises(ValueError, match="inject_hyperparams"):
            tune.lr_range_test(lambda w, x: (w, x), jnp.ones(2), [1.0, 1.0])

    def test_a_rate_that_changes_nothing(self):
        with pytest.raises(ValueError, match="changes nothing"):
            tune.lr_range_test(lambda w, x, rate: (w, x), jnp.ones(2), [1.0, 1.0])

    def test_a_loss_that_is_nan_from_the_beginning(self):
        with pytest.raises(ValueError, match="before any training"):
            tune.lr_range_test(descend, jnp.ones(2), [np.nan, 1.0])

    def test_a_step_without_a_loss(self):
        with pytest.raises(ValueError, match="loss in it"):
            tune.lr_range_test(
                lambda w, x, rate: (w, {"cost": x}), jnp.ones(2), [1.0, 1.0]
            )
