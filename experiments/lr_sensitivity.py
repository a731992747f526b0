"""How much the learning rate matters: `python -m experiments.lr_sensitivity`.

LR sensitivity as in Wortsman et al., Small-scale proxies for large-scale Transformer
training instabilities, 2023, https://arxiv.org/abs/2309.14322: the mean over rates of
min(final loss, initial loss), minus the lowest final loss. A character transformer
trains at seven rates side by side, in one vmapped scan for each way to protect AdamW,
without and with three stressors. Writes a table, the numbers and a picture. It is a
study of its own and no part of `python -m experiments`.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from experiments import _chars
from jaxsafe import transforms

STEPS, ROWS = 300, 8
RATES = tuple(float(f"{r:.2g}") for r in np.geomspace(3e-4, 3e-1, 7))
# An update of AdamW at a good rate is 1e-3 to 1e-2 of the weights of its unit.
LARGEST_UPDATE = 0.02
STRESSORS = ("none", "noise labels", "scaled batch", "NaN sample")
GUARDED = "jaxsafe guarded"
_COLOURS = ("tab:gray", "tab:olive", "tab:purple", "tab:orange", "tab:red", "tab:blue")


def _adamw(rate: Any) -> optax.GradientTransformation:
    return optax.adamw(rate, b2=0.95, weight_decay=1e-4)


def _guarded(rate: Any) -> optax.GradientTransformation:
    bounded = transforms.adaptive_grad_clip(LARGEST_UPDATE)
    return transforms.guarded(optax.chain(_adamw(rate), bounded), max_norm=1.0)


ARMS: dict[str, Callable[[Any], optax.GradientTransformation]] = {
    "AdamW": _adamw,
    "clip 1.0": lambda r: optax.chain(optax.clip_by_global_norm(1.0), _adamw(r)),
    "ZClip": lambda r: optax.chain(transforms.clip_spikes("zscore"), _adamw(r)),
    "AdaGC": lambda r: optax.chain(transforms.clip_spikes("per_leaf"), _adamw(r)),
    "apply_if_finite": lambda r: optax.apply_if_finite(_adamw(r), 5),
    GUARDED: _guarded,
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One arm under one stressor.

    Attributes:
      arm: how AdamW is protected.
      stressor: what happens to the batches.
      losses: on the test text at the end, one for each rate.
      initial: the same before training.
    """

    arm: str
    stressor: str
    losses: tuple[float, ...]
    initial: float

    @property
    def finite(self) -> int:
        """Rates that ended finite."""
        return int(np.isfinite(self.losses).sum())

    @property
    def best(self) -> float:
        """The lowest loss of all rates."""
        return float(np.min(self.bounded))

    @property
    def sensitivity(self) -> float:
        """Mean over rates of min(final, initial), minus the best of this arm.

        Infinite if no rate ended finite: all alike in failing is no robustness.
        """
        if not self.finite:
            return float("inf")
        return float(np.mean(self.bounded)) - self.best

    @property
    def bounded(self) -> np.ndarray:
        """The losses; the initial one where it is lower, or training ended in NaN."""
        ends = np.array(self.losses)
        return np.where(np.isfinite(ends), np.fmin(ends, self.initial), self.initial)


def study(*, quick: bool = False) -> list[Row]:
    """Train every arm under every stressor; `quick` is a tenth of the steps."""
    steps = STEPS // 10 if quick else STEPS
    text = _chars.text()
    params = _chars.init(text.size)
    rng = np.random.default_rng(0)
    x, y = _chars.windows(text.train, rng, steps, ROWS)
    test = _chars.windows(text.test, rng, 128)
    initial = float(_chars.losses_of(params, *test).mean())
    rows = []
    for arm, make in ARMS.items():
        program = _program(make, params, test, steps)
        for stressor in STRESSORS:
            start = time.perf_counter()
            ends = program(
                np.array(RATES, np.float32), _stressed(stressor, x, y, text.size)
            )
            final = tuple(float(end) for end in np.asarray(ends))
            row = Row(arm=arm, stressor=stressor, losses=final, initial=initial)
            rows.append(row)
            _say(row, time.perf_counter() - start)
    return rows


def _program(
    make: Callable[[Any], optax.GradientTransformation],
    params: Any,
    test: tuple[np.ndarray, np.ndarray],
    steps: int,
) -> Any:
    """(rates, batches) -> final test losses; all rates in one scan."""
    shape = optax.warmup_cosine_decay_schedule(0.0, 1.0, steps // 10, steps)

    def loss(params: Any, x: jax.Array, y: jax.Array, weight: jax.Array) -> jax.Array:
        return (_chars.losses_of(params, x, y) * weight).mean()

    def train(rate: jax.Array, batches: Any) -> jax.Array:
        tx = optax.with_extra_args_support(make(lambda step: rate * shape(step)))

        def step(carry: Any, batch: Any) -> tuple[Any, None]:
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params, *batch)
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), None

        (end, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        return _chars.losses_of(end, *test).mean()

    return jax.jit(jax.vmap(train, in_axes=(0, None)))


def _stressed(kind: str, x: np.ndarray, y: np.ndarray, size: int) -> Any:
    """Inputs, labels and weights[steps, rows] of the rows' losses."""
    steps, rows = x.shape[:2]
    labels, weights = y.copy(), np.ones((steps, rows), np.float32)
    if kind == "noise labels":
        every = max(1, min(200, 2 * steps // 3))
        rng = np.random.default_rng(1)
        for k in range(every - 1, steps, every):
            labels[k] = rng.integers(0, size, labels[k].shape)
    elif kind == "scaled batch":
        # Tokens cannot be scaled, and layer norms would undo it: the loss is.
        weights[steps // 3] = 1e4
    elif kind == "NaN sample":
        weights[steps // 2, rows // 2] = np.nan
    return x, labels, weights


def _say(row: Row, seconds: float) -> None:
    ends = " ".join(f"{loss:6.3f}" for loss in row.losses)
    print(
        f"{row.arm:16} {row.stressor:13} {ends}  sensitivity {row.sensitivity:.3f} "
        f"({seconds:.0f} s)",
        flush=True,
    )


def ranking(rows: Sequence[Row]) -> list[tuple[str, float]]:
    """Arms by their sensitivity, the mean over stressors, the lowest first."""
    means = {
        arm: float(np.mean([r.sensitivity for r in rows if r.arm == arm]))
        for arm in dict.fromkeys(r.arm for r in rows)
    }
    return sorted(means.items(), key=lambda pair: pair[1])


def excess(rows: Sequence[Row], arm: str) -> float:
    """Mean over rates and stressors of what an arm lies above the best of all arms.

    A stressor may lower the sensitivity of an arm by spoiling its best rate; not this.
    """
    gaps = []
    for row in rows:
        if row.arm == arm:
            best = min(r.best for r in rows if r.stressor == row.stressor)
            gaps.append(float(np.mean(row.bounded)) - best)
    return float(np.mean(gaps))


def bars(rows: Sequence[Row]) -> dict[str, Any]:
    """Whether the guarded chain is always finite, and loses nothing to plain AdamW.

    Compared where AdamW ends finite, without a stressor.
    """
    ours = [r for r in rows if r.arm == GUARDED]
    (guarded,) = (r for r in ours if r.stressor == "none")
    (plain,) = (r for r in rows if r.arm == "AdamW" and r.stressor == "none")
    both = zip(guarded.losses, plain.losses, strict=True)
    return {
        "always_finite": all(r.finite == len(r.losses) for r in ours),
        "worst_ratio": max(g / p for g, p in both if np.isfinite(p)),
        "lowest_sensitivity": ranking(rows)[0][0] == GUARDED,
    }


def markdown(rows: Sequence[Row], *, seconds: float, steps: int) -> str:
    """The page: ranking, bars, all numbers."""
    met = bars(rows)
    lines = [
        "# LR sensitivity",
        "",
        "Mean over rates of min(final loss, initial loss), minus the lowest final loss",
        "(Wortsman et al., https://arxiv.org/abs/2309.14322); infinite if no rate is",
        "finite. Last column: against the lowest of all arms. Character transformer of",
        f"0.11 M parameters on Python's help topics, {steps} steps, final test loss.",
        "Written by `python -m experiments.lr_sensitivity` in "
        f"{seconds / 60:.1f} minutes, jax {jax.__version__}.",
        "",
        "![final loss over learning rate](lr_sensitivity.svg)",
        "",
        f"| arm | {' | '.join(STRESSORS)} | mean | above the best of all arms |",
        "|---" * (len(STRESSORS) + 3) + "|",
    ]
    for arm, mean in ranking(rows):
        of = {r.stressor: f"{r.sensitivity:.3f}" for r in rows if r.arm == arm}
        cells = " | ".join(of[s] for s in STRESSORS)
        lines.append(f"| {arm} | {cells} | {mean:.3f} | {excess(rows, arm):.3f} |")
    lines += [
        "",
        f"The guarded chain, `guarded(chain(adamw, adaptive_grad_clip({LARGEST_UPDATE}"
        ")))`, bounds what one update may change of each unit's weights.",
        "Finite at every rate and stressor: "
        f"{'yes' if met['always_finite'] else 'no'}. "
        "Largest loss over that of plain AdamW, where that ends finite, without a "
        f"stressor: {met['worst_ratio']:.4f} (bar 1.005). Lowest sensitivity of all: "
        f"{'yes' if met['lowest_sensitivity'] else 'no'}.",
        "",
        f"| arm | stressor | {' | '.join(f'{r:g}' for r in RATES)} | best | finite |",
        "|---" * (len(RATES) + 4) + "|",
    ]
    for row in rows:
        ends = " | ".join(f"{loss:.3f}" for loss in row.losses)
        lines.append(
            f"| {row.arm} | {row.stressor} | {ends} | {row.best:.3f} | "
            f"{row.finite} of {len(row.losses)} |"
        )
    return "\n".join(lines) + "\n"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Final loss over rate, one panel for each stressor."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels: Any = figure.subplots(1, len(STRESSORS), sharey=True)
    for axes, stressor in zip(panels, STRESSORS, strict=True):
        lost = []
        for colour, arm in zip(_COLOURS, ARMS, strict=True):
            (row,) = (r for r in rows if (r.arm, r.stressor) == (arm, stressor))
            ends = np.where(np.isfinite(row.losses), row.losses, np.nan)
            axes.plot(RATES, ends, "o-", color=colour, label=arm, markersize=3)
            if row.finite < len(row.losses):
                lost.append(f"{arm}: finite at {row.finite} of {len(row.losses)}")
        axes.text(
            0.04, 0.96, "\n".join(lost), transform=axes.transAxes,
            va="top", fontsize="x-small",
        )  # fmt: skip
        axes.set_xscale("log")
        axes.set_title(stressor)
        axes.set_xlabel("learning rate")
    panels[0].set_ylabel("test loss at the end")
    low, high = panels[0].get_ylim()
    high = min(high, rows[0].initial)
    panels[0].set_ylim(low, high + 0.25 * (high - low))  # room for words
    panels[0].legend(fontsize="x-small", ncols=2, loc="upper left")
    figure.savefig(path, metadata={"Date": None})


def _plain(row: Row) -> dict[str, Any]:
    """As JSON knows it: a number that is not finite is None."""

    def number(x: float) -> float | None:
        return x if np.isfinite(x) else None

    return dataclasses.asdict(row) | {
        "losses": [number(x) for x in row.losses],
        "sensitivity": number(row.sensitivity),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study and write its files; return 0 if the bars are met, else 1."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.lr_sensitivity", description=__doc__
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("experiments"),
        help="folder for lr_sensitivity.md, .json and .svg (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    start = time.perf_counter()
    rows = study(quick=args.quick)
    seconds = time.perf_counter() - start
    steps = STEPS // 10 if args.quick else STEPS
    page = markdown(rows, seconds=seconds, steps=steps)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "lr_sensitivity.md").write_text(page, "utf-8")
    plain = [_plain(row) for row in rows]
    told = {"rates": RATES, "steps": steps, "rows": plain}
    text = json.dumps(told, allow_nan=False, indent=1)
    (args.out / "lr_sensitivity.json").write_text(text + "\n", "utf-8")
    plot(rows, args.out / "lr_sensitivity.svg")
    met = bars(rows)
    for arm, mean in ranking(rows):
        print(f"{arm:16} {mean:.3f}")
    print(f"{met} ({seconds:.0f} s)")
    return 0 if met["always_finite"] and met["worst_ratio"] <= 1.005 else 1


if __name__ == "__main__":
    sys.exit(main())
