"""What a backend makes of programs that say otherwise: one small experiment per row.

Every experiment is compiled, with its numbers as arguments, so that nothing is folded
away beforehand. It answers whether the machine does what the program says, and what it
does. The words beside it are for whoever trains on this machine.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LARGE = 100_000
_SIZES = (64, 1000, 4096, LARGE)
_DTYPES = ("float32", "bfloat16", "float16")
_CASTS = (
    ("float16", 1e6),
    ("bfloat16", 3.4e38),
    ("float8_e4m3fn", 1e6),
    ("float8_e5m2", 1e6),
)


class Experiment(NamedTuple):
    """One question to the machine.

    Attributes:
      name: what is asked.
      ask: returns (as the program says, what was seen).
      means: what it means for a user where it is not as the program says.
      remedy: what jaxsafe does about it.
    """

    name: str
    ask: Callable[[], tuple[bool, str]]
    means: str
    remedy: str


def filled(size: int, value: float, dtype: str = "float32") -> np.ndarray:
    """`size` times `value`, on the host, so that only the compiled code computes."""
    return np.full(size, value, jnp.dtype(dtype))


def with_nan(size: int, dtype: str = "float32") -> np.ndarray:
    """Ones, with one NaN in the middle."""
    x = filled(size, 1.0, dtype)
    x[size // 2] = np.nan
    return x


def compiled(fn: Callable[..., Any], *args: Any) -> np.ndarray:
    """`fn(*args)` under jit, widened so that numpy can compare it."""
    result = np.asarray(jax.jit(fn)(*args))
    return result.astype(np.float64) if result.dtype.kind in "fV" else result


def _maxima() -> tuple[bool, str]:
    lost = []
    for dtype in _DTYPES:
        for name, fn in (("max", jnp.max), ("min", jnp.min)):
            sizes = _SIZES if dtype == "float32" else (LARGE,)
            gone = [n for n in sizes if not np.isnan(compiled(fn, with_nan(n, dtype)))]
            if gone:
                lost.append(f"{dtype} {name} ({min(gone):,} entries and more)")
    if not lost:
        return True, f"kept in {', '.join(_DTYPES)}, up to {LARGE:,} entries"
    return False, f"dropped in {', '.join(lost)}"


def _relu_sum() -> tuple[bool, str]:
    seen = compiled(lambda x: jax.nn.relu(x).sum(), with_nan(LARGE))
    return bool(np.isnan(seen)), f"relu(x).sum() of {LARGE:,} entries is {seen:g}"


def _sorting() -> tuple[bool, str]:
    x = with_nan(LARGE)
    last = compiled(jnp.sort, x)[-1]
    where = int(compiled(jnp.argmax, x))
    median = compiled(jnp.median, x)
    ok = bool(np.isnan(last) and np.isnan(median)) and where == LARGE // 2
    return ok, f"sort puts it last ({last:g}), argmax finds it, median is {median:g}"


def _entrywise() -> tuple[bool, str]:
    x = with_nan(8)
    ways = {
        "maximum": lambda x: jnp.maximum(x, 0),
        "minimum": lambda x: jnp.minimum(x, 2),
        "clip": lambda x: jnp.clip(x, 0, 1),
        "relu": jax.nn.relu,
        "x * 0": lambda x: x * 0,
    }
    lost = [n for n, fn in ways.items() if not np.isnan(compiled(fn, x)).any()]
    if lost:
        return False, f"dropped by {', '.join(lost)}"
    return True, f"kept by {', '.join(ways)}"


def _subnormals(into: bool) -> tuple[bool, str]:
    """Whether a subnormal comes in (scaled up) or out (a normal one halved) as 0."""
    zero: list[str] = []
    kept: list[str] = []
    for dtype in _DTYPES:
        tiny = float(jnp.finfo(dtype).smallest_normal)
        scale = 1024.0 if into else 0.5
        x = filled(8, tiny / 2 if into else tiny, dtype)
        y = compiled(lambda x, s: x * s, x, np.asarray(scale, x.dtype))
        (kept if y.all() else zero).append(dtype)
    parts = [f"0 in {', '.join(zero)}"] if zero else []
    parts += [f"kept in {', '.join(kept)}"] if kept else []
    return not zero, "; ".join(parts)


def _halves() -> tuple[bool, str]:
    x = filled(8, 2e38)
    seen = compiled(lambda x, y: x * 0.5 + y * 0.5, x, x)[0]
    return bool(np.isfinite(seen)), f"x * 0.5 + x * 0.5 with x = 2e38 is {seen:g}"


def _add_subtract() -> tuple[bool, str]:
    seen = compiled(lambda x: (x + 1e10) - 1e10, filled(8, 1.0))[0]
    return bool(seen == 0), f"(x + 1e10) - 1e10 with x = 1 is {seen:g} in float32"


def _reciprocal() -> tuple[bool, str]:
    seen = compiled(lambda x, s: x / s, filled(8, 2e38), np.float32(1e38))[0]
    return bool(seen == 2), f"2e38 / 1e38 is {seen:g} for an array and a scalar"


def _fused() -> tuple[bool, str]:
    a, rounded = 1 + 2.0**-12, 1 + 2.0**-11
    seen = compiled(lambda a, c: a * a - c, filled(8, a), filled(8, rounded))[0]
    return bool(seen == 0), f"a * a - round(a * a) is {seen:.2g} in float32"


def _mask() -> tuple[bool, str]:
    x, keep = filled(8, np.inf), filled(8, -1.0)
    seen = compiled(lambda x, y: x * (y > 0), x, keep)[0]
    return bool(np.isnan(seen)), f"inf * (y > 0) with y = -1 is {seen:g}"


def _excess() -> tuple[bool, str]:
    half = compiled(lambda x: (x * 300) / 300, filled(8, 300.0, "float16"))[0]
    # A sum that bfloat16 rounds away; both numbers are arguments.
    x, y = filled(8, 2.0**-10, "bfloat16"), filled(8, 1.0, "bfloat16")
    rest = compiled(lambda x, y: (x + y) - y, x, y)[0]
    seen = f"(x * 300) / 300 with float16 x = 300 is {half:g}"
    if rest:
        seen += f"; bfloat16 (x + 1) - 1 with x = {2.0**-10:.2g} is {rest:.2g}"
    return bool(np.isinf(half) and rest == 0), seen


def _casts() -> tuple[bool, str]:
    results, ok = [], True
    for dtype, value in _CASTS:
        x = filled(8, value)
        with np.errstate(all="ignore"):
            wanted = x.astype(jnp.dtype(dtype)).astype(np.float64)
        seen = compiled(lambda x, d=dtype: x.astype(d), x)
        ok &= bool(np.array_equal(seen, wanted, equal_nan=True))
        results.append(f"{value:g} is {seen[0]:g} in {dtype}")
    return ok, ", ".join(results)


def _integers() -> tuple[bool, str]:
    x = np.array([np.nan, np.inf, -np.inf], np.float32)
    nan, up, down = compiled(lambda x: x.astype(jnp.int32), x)
    return False, f"NaN is {nan} in int32, Inf is {up}, -Inf is {down}"


def _matmul() -> tuple[bool, str]:
    x = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    wanted = x.astype(np.float64) @ x
    wrong = compiled(jnp.matmul, x, x) - wanted
    size = float(np.sqrt((wrong**2).mean() / (wanted**2).mean()))
    kind = "float32" if size < 1e-5 else "TF32" if size < 1e-3 else "bfloat16"
    return kind == "float32", f"relative error {size:.1e}, that of {kind} products"


def _repeatable() -> tuple[bool, str]:
    random = np.random.default_rng(0)
    x = random.standard_normal(LARGE).astype(np.float32)
    index = random.integers(0, 16, LARGE)
    fn = jax.jit(lambda x, i: (jnp.zeros(16).at[i].add(x), x.sum()))
    runs = {tuple(np.asarray(part).tobytes() for part in fn(x, index)) for _ in "1234"}
    words = "the same bits" if len(runs) == 1 else f"{len(runs)} different results"
    return len(runs) == 1, f"sums and scatter-adds gave {words} in 4 runs"


EXPERIMENTS = (
    Experiment(
        "NaN in max and min",
        _maxima,
        "jnp.max(x) may be finite although x holds a NaN, and so may min, max(abs(x)) "
        "and a norm of order inf: no check for NaN may rest on them. On CPU, "
        "XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=-reduce brings it back.",
        "decides by isfinite and sums; its softmax, norm and clips pass the NaN on.",
    ),
    Experiment(
        "NaN in relu and sum",
        _relu_sum,
        "a sum behind a relu may hide the NaN of the activation: the loss looks good.",
        "looks at gradients and state too; their NaN does not pass through a relu.",
    ),
    Experiment(
        "NaN in sort, argmax, median",
        _sorting,
        "a NaN may vanish in a ranking, a quantile or a median.",
        "uses none of them to decide.",
    ),
    Experiment(
        "NaN entry by entry",
        _entrywise,
        "clipping turns a NaN into a number, and nobody will see it again.",
        "its clips hide no NaN unless told to.",
    ),
    Experiment(
        "Subnormals that come in",
        lambda: _subnormals(True),
        "a number below 1.2e-38 counts as 0: its log is -inf, 1 / x is inf, and an "
        "epsilon of 1e-40 is none.",
        "its floors are the smallest normal number of the dtype.",
    ),
    Experiment(
        "Subnormals that come out",
        lambda: _subnormals(False),
        "a product or a difference below 1.2e-38 is 0, so a != b does not promise that "
        "a - b is not 0.",
        "scales by powers of two before it squares or subtracts what may be small.",
    ),
    Experiment(
        "x * 0.5 + y * 0.5",
        _halves,
        "the compiler adds before it halves: a mean of large numbers overflows, though "
        "op by op it does not.",
        "keeps its own arithmetic as written; guard.reexecute and diagnose run what "
        "was compiled.",
    ),
    Experiment(
        "(x + c) - c",
        _add_subtract,
        "rounding tricks and compensated sums (Kahan) are simplified away.",
        "pins each step of its exact arithmetic.",
    ),
    Experiment(
        "array / scalar",
        _reciprocal,
        "the compiler multiplies by 1 / scalar, which is 0 for a scalar above 8.5e37.",
        "divides by powers of two where a divisor may be large.",
    ),
    Experiment(
        "a * b - c",
        _fused,
        "product and difference are fused and rounded once: x * x - y may be a little "
        "below 0 where two roundings give 0, and its square root is then NaN.",
        "its var, std and norm cannot fall below 0.",
    ),
    Experiment(
        "inf * mask",
        _mask,
        "the compiler selects instead of multiplying: an Inf under a mask shows as NaN "
        "only op by op, or on another machine.",
        "never masks by multiplying; diagnose looks at the compiled program.",
    ),
    Experiment(
        "Half precision between operations",
        _excess,
        "inside one fused loop float16 and bfloat16 may stay wide, so an overflow "
        "shows in one program and not in the next.",
        "computes half precision in float32 and rounds once.",
    ),
    Experiment(
        "Casts beyond the range",
        _casts,
        "a number too large for the format gets another value than IEEE says.",
        "ops.saturate_cast ends at the largest number, and keeps NaN.",
    ),
    Experiment(
        "NaN and Inf as integers",
        _integers,
        "a NaN index or label becomes a legal one, without a word.",
        "clean.audit counts them before the cast.",
    ),
    Experiment(
        "Matrix products of float32",
        _matmul,
        "products keep 8 to 11 bits: differences of nearly equal ones lose everything. "
        'jax.default_matmul_precision("highest") keeps all 24.',
        "asks for the highest precision inside its linear algebra and cosines.",
    ),
    Experiment(
        "The same program twice",
        _repeatable,
        "a fault at the edge of the range may not come back when it is run again.",
        "guard.reexecute says whether the bits were the same.",
    ),
)
