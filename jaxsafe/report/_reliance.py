"""What jaxsafe itself rests on: if one of these fails here, it cannot be trusted here.

Each is asked through the calls that the package makes, compiled, on this backend.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsafe import _gate, _tree, diagnose, guard, ops
from jaxsafe.report._backend import LARGE, compiled, filled, with_nan


class Reliance(NamedTuple):
    """One thing that has to hold.

    Attributes:
      name: what has to hold.
      ask: returns (it holds, what was seen).
    """

    name: str
    ask: Callable[[], tuple[bool, str]]


def _detection() -> tuple[bool, str]:
    missed, count = [], 0
    look = jax.jit(_tree.all_finite)
    for dtype in ("float32", "bfloat16", "float16"):
        for value in (np.nan, np.inf):
            for place in (0, LARGE // 2, LARGE - 1):
                x = filled(LARGE, 1.0, dtype)
                x[place] = value
                count += 1
                if look(x):
                    missed.append(f"{value} at {place} of {dtype}")
    alarm = not look(filled(LARGE, 1.0))
    if alarm:
        return False, "finite numbers are taken for bad ones"
    return not missed, f"{count - len(missed)} of {count} seen"


def _gradients() -> tuple[bool, str]:
    look = jax.jit(lambda g: (_gate.judge(g).ok, _gate.judge(g).norm))
    bad, _ = look({"w": with_nan(LARGE)})
    good, norm = look({"w": filled(2, 1e20)})
    right = abs(float(norm) / (2**0.5 * 1e20) - 1) < 1e-5
    return bool(good) and not bad and right, f"the norm of [1e20, 1e20] is {norm:.6g}"


def _selection() -> tuple[bool, str]:
    old = np.arange(LARGE, dtype=np.float32)
    pick = jax.jit(lambda ok, n, o: _tree.select(ok, n * jnp.nan, o))
    same = bool((np.asarray(pick(False, old, old)) == old).all())
    return same, f"the old values {'are' if same else 'are not'} bitwise the same"


def _rollback() -> tuple[bool, str]:
    def train_step(state: Any, x: jax.Array) -> Any:
        new = {"w": state["w"] - x.mean(), "n": state["n"] + 1}
        return new, new["w"].sum()

    step = guard.transaction(train_step)
    start = {"w": jnp.arange(1000.0), "n": jnp.asarray(0)}
    before = jax.tree.map(np.asarray, start)
    carry, _ = jax.jit(step, donate_argnums=0)(step.init(start), with_nan(LARGE))
    kept = all(
        np.array_equal(before[name], np.asarray(carry.state[name])) for name in before
    )
    rejected = int(carry.control.rejected)
    return kept and rejected == 1, f"{rejected} of 1 rejected"


def _diagnosis() -> tuple[bool, str]:
    x = filled(LARGE, 1.0)
    x[LARGE // 2] = 0.0
    finding = diagnose.first_nonfinite(lambda x: jnp.sqrt(jnp.log(x)).sum(), x)
    named = finding.primitive if finding else "nothing"
    return named == "log", f"sum(sqrt(log(0))): {named} is named"


def _propagation() -> tuple[bool, str]:
    x = with_nan(LARGE)
    ways: dict[str, Callable[..., Any]] = {
        "softmax": ops.softmax,
        "logsumexp": ops.logsumexp,
        "norm": ops.norm,
        "std": ops.std,
    }
    lost = [n for n, fn in ways.items() if not np.isnan(compiled(fn, x)).any()]
    return not lost, f"lost in {', '.join(lost)}" if lost else f"in {', '.join(ways)}"


def _floors() -> tuple[bool, str]:
    low = np.array([0.0, 1e-40], np.float32)
    ways: dict[str, Callable[..., Any]] = {
        "log": ops.log,
        "rsqrt": ops.rsqrt,
        "reciprocal": ops.reciprocal,
        "gradient of sqrt": jax.grad(lambda x: ops.sqrt(x).sum()),
        "gradient of norm": jax.grad(lambda x: ops.norm(x * 0)),
    }
    bad = [n for n, fn in ways.items() if not np.isfinite(compiled(fn, low)).all()]
    if bad:
        return False, f"not finite: {', '.join(bad)}"
    return True, f"{', '.join(ways)} are finite at 0 and at 1e-40"


def _as_written() -> tuple[bool, str]:
    # The pair that rewriting breaks, behind a barrier; and a mean at large offset.
    def halves(x: jax.Array) -> jax.Array:
        return jnp.add(*lax.optimization_barrier((x * 0.5, x * 0.5)))

    kept = bool(np.isfinite(compiled(halves, filled(8, 2e38))).all())
    x = (1e4 + np.arange(4.0)).astype(np.float32)
    wanted = (np.arange(4.0) - 1.5) / np.arange(4.0).std()
    seen = compiled(lambda x: ops.standardize(x, epsilon=0.0), x)
    right = bool(np.allclose(seen, wanted, rtol=1e-5))
    return kept and right, f"standardize([1e4, 1e4 + 1, ...])[0] is {seen[0]:.6g}"


RELIANCES = (
    Reliance("one NaN or Inf in 100,000 is seen", _detection),
    Reliance("the gate sees a bad gradient and the norm does not overflow", _gradients),
    Reliance("select lets no NaN through", _selection),
    Reliance("a rejected, donated step leaves the state as it was", _rollback),
    Reliance("diagnose names the equation", _diagnosis),
    Reliance("ops hand a NaN on, also where they use a maximum", _propagation),
    Reliance("ops are finite at their edges", _floors),
    Reliance("pinned arithmetic is computed as written", _as_written),
)
