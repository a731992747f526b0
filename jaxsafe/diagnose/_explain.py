"""Why: from the root equation and its numbers to a row of the causes table.

The rules stand in one list and are asked in order, from the specific to the general;
the first that answers decides. Each looks at the numbers of the run and at the few
equations around the root. An equation that no rule knows gets the careful answer, with
a low confidence: lists of suspects rot.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxsafe._causes import CAUSES
from jaxsafe._program import Loop, Node
from jaxsafe.diagnose import _evidence as look
from jaxsafe.diagnose._evidence import Evidence

_LINALG = frozenset(
    {
        "cholesky",
        "custom_linear_solve",
        "eig",
        "eigh",
        "geqrf",
        "householder_product",
        "lu",
        "qr",
        "schur",
        "svd",
        "triangular_solve",
        "tridiagonal",
        "tridiagonal_solve",
    }
)
_EXPONENTIALS = frozenset({"exp", "exp2", "expm1", "cosh", "sinh"})
_PROBABILITIES = frozenset({"logistic", "exp", "erf", "erfc", "tanh"})
_LOGARITHMS = frozenset({"log", "log1p", "log2"})
_ROOTS = frozenset({"sqrt", "rsqrt", "cbrt", "pow"})
_POWERS = frozenset({"integer_pow", "pow", "rsqrt"})
_BOUNDED = frozenset({"acos", "asin", "acosh", "atanh", "erf_inv", "digamma"})
_GROWING = look.PRODUCTS | look.SUMS | {"sub", "div", "pow", "reduce_prod", "cumprod"}
_LINEAR = frozenset({"dot_general", "conv_general_dilated"})
_OUTLIER = 1e15
_GROWN = 1e6
# Computing steps between a layer and the sum of a loss behind it.
_LAYER = 16
_SPREAD = 1e-6
# What a remedy of the table is called for a primitive, where the names differ.
_REMEDY_NAMES = {
    "acos": "arccos",
    "asin": "arccos",
    "div": "divide",
    "rem": "divide",
    "log1p": "log",
    "log2": "log",
}


class Verdict(NamedTuple):
    """A cause, and how sure it is."""

    cause: str
    confidence: float


Rule = Callable[[Evidence], Verdict | None]

INPUT = Verdict("input_data", 0.95)


def explain(evidence: Evidence) -> Verdict:
    """Name the cause of a fault."""
    answers = (rule(evidence) for rule in _RULES)
    fallback = Verdict("overflow" if evidence.overflowed else "domain", 0.3)
    return next((answer for answer in answers if answer is not None), fallback)


def remedies(cause: str, function: str) -> tuple[str, ...]:
    """The remedies of a cause; those that replace `function` come first."""
    name = f"ops.{_REMEDY_NAMES.get(function, function)}("
    return tuple(sorted(CAUSES[cause].remedies, key=lambda text: name not in text))


def _nan_literal(e: Evidence) -> Verdict | None:
    """The program itself says NaN: an empty mean, or an index that is out of range."""
    if look.bad_label(e):
        return Verdict("input_data", 0.9)
    if e.primitive == "gather" and not e.overflowed:
        return Verdict("input_data", 0.7)
    if not any(event.key in e.run.fixed for event in e.run.before(e.root)):
        return None
    return Verdict("mask" if e.primitive == "select_n" else "domain", 0.6)


def _training_loop(e: Evidence) -> Verdict | None:
    looped = e.phase == "update" and any(e.root.turns)
    return Verdict("learning_rate", 0.8) if looped else None


def _linalg(e: Evidence) -> Verdict | None:
    inside = _LINALG.intersection((e.primitive, *e.step.site.calls))
    return Verdict("linalg", 0.9) if inside else None


def _half_precision(e: Evidence) -> Verdict | None:
    if not e.is_half:
        return None
    if e.overflowed and not e.has_zero(1):
        return Verdict("precision", 0.9)
    return Verdict("precision", 0.8) if _epsilon_vanished(e) else None


def _epsilon_vanished(e: Evidence) -> bool:
    """A zero denominator of the form `something + eps` whose eps is 0 in this dtype."""
    if e.primitive not in _POWERS | {"div"} or not (e.has_zero(1) or e.has_zero(0)):
        return False
    additions = (
        s for s in look.near(e.step.inputs[-1], within=2) if s.primitive == "add"
    )
    return any(
        float(node.literal) == 0
        for step in additions
        for node in step.inputs
        if node.kind == "literal"
    )


def _narrowing(e: Evidence) -> Verdict | None:
    """A cast or a rounding to fewer bits overflowed."""
    casts = ("convert_element_type", "reduce_precision")
    narrowed = e.overflowed and e.primitive in casts
    return Verdict("precision", 0.9) if narrowed else None


def _infinity_minus_infinity(e: Evidence) -> Verdict | None:
    """A NaN from infinities that somebody put there: masks, or a logit of +inf."""
    if e.overflowed:
        return None
    sources = look.intended_sources(e)
    if "positive" in sources:
        return Verdict("activation", 0.6)
    return Verdict("mask", 0.85) if sources else None


def _where_trap(e: Evidence) -> Verdict | None:
    if e.phase != "backward":
        return None
    trapped = look.is_masked_cotangent(e) or look.is_discarded(e)
    return Verdict("mask", 0.85) if trapped else None


def _update_overflow(e: Evidence) -> Verdict | None:
    """An update that overflows although every gradient is finite."""
    grown = e.phase == "update" and e.overflowed
    return Verdict("gradient", 0.8) if grown else None


def _cancellation(e: Evidence) -> Verdict | None:
    """A root of something negative: the difference of two sums of products."""
    if e.primitive not in _ROOTS | _LOGARITHMS or not e.has_negative():
        return None
    depth = abs(e.operands[0].minimum)
    for step in look.near(e.step.inputs[0], within=3):
        if step.primitive not in ("sub", "add"):
            continue
        large = all(e.run.peaks.get(n.index, 0.0) > 4 * depth for n in step.inputs)
        if large and all(
            look.comes_from(n, look.PRODUCTS, within=4) for n in step.inputs
        ):
            return Verdict("cancellation", 0.85)
    return None


def _sentinel(e: Evidence) -> Verdict | None:
    """An argument with an entry that is out of all proportion to the others."""
    if not e.overflowed or e.primitive not in _GROWING:
        return None
    for node, stats in zip(e.step.inputs, e.operands, strict=False):
        plain = look.MOVES | {"sub", "add", "neg"}
        direct = all(s.primitive in plain for s in look.near(node, within=3))
        low, high = sorted((abs(stats.minimum), abs(stats.maximum)))
        if direct and high > _OUTLIER and low < _SPREAD * high and stats.size > 1:
            return Verdict("input_data", 0.75)
    return None


def _grown_weights(e: Evidence) -> Verdict | None:
    """A weight that has left every sensible range: earlier steps overshot."""
    if e.primitive not in _GROWING:
        return None
    layers = [e.step]
    for node in e.step.inputs:
        layers += look.near(node, within=_LAYER)
    grown = any(
        node.kind == "argument" and len(node.aval.shape) > 1 and _is_grown(e, node)
        for layer in layers
        if layer.primitive in _LINEAR
        for node in layer.inputs
    )
    return Verdict("learning_rate", 0.7) if grown else None


def _is_grown(e: Evidence, node: Node) -> bool:
    peak = e.run.peaks.get(node.index, 0.0)
    return bool(_GROWN < peak < float("inf"))


def _exponential(e: Evidence) -> Verdict | None:
    """A hand-written softmax, sigmoid or softplus, or an exp that stands alone."""
    if not e.overflowed or e.primitive not in _EXPONENTIALS:
        return None
    after = look.used_by(e, look.SUMS | look.MOVES | {"neg"})
    closed = not after.isdisjoint(_LOGARITHMS | {"div", "reciprocal"})
    return Verdict("activation" if closed else "overflow", 0.85)


def _norm_overflow(e: Evidence) -> Verdict | None:
    if not e.overflowed or e.primitive not in look.PRODUCTS | {"reduce_sum"}:
        return None
    after = look.used_by(e, look.SUMS | look.MOVES | {"div"})
    return None if after.isdisjoint({"sqrt", "rsqrt"}) else Verdict("norm", 0.85)


def _zero_divisor(e: Evidence) -> Verdict | None:
    if e.primitive not in ("div", "rem") or not e.has_zero(1):
        return None
    below = e.step.inputs[1]
    if e.phase == "backward":
        return _infinite_slope(below)
    return _empty_denominator(e, below)


def _infinite_slope(below: Node) -> Verdict:
    """A factor of the derivative: 0.5 / sqrt(x), 1 / x, y / (x**2 + y**2)."""
    if look.made_by(below) == "sqrt":
        return Verdict("norm" if look.is_length(below) else "gradient", 0.8)
    if look.comes_from(below, _PROBABILITIES):
        return Verdict("loss", 0.7)
    return Verdict("domain", 0.6)


def _empty_denominator(e: Evidence, below: Node) -> Verdict:
    """A division by a norm, a count or a sum that came out as 0."""
    if look.is_length(below):
        loops = [at for at in e.root.node.loops if isinstance(at, Loop)]
        iterated = loops and look.comes_from(below, {"dot_general"})
        return Verdict("linalg" if iterated else "norm", 0.75)
    source = look.origin(below).step
    factors = source.inputs if source and source.primitive == "mul" else []
    if factors and all(look.is_length(node) for node in factors):
        return Verdict("loss", 0.7)
    if look.is_count(below):
        return Verdict("mask", 0.7)
    if look.comes_from(below, {"exp"}, within=3):
        return Verdict("activation", 0.7)
    return Verdict("domain", 0.6)


def _infinite_power(e: Evidence) -> Verdict | None:
    """x**-n, rsqrt and pow at 0."""
    if e.primitive not in _POWERS or not e.has_zero(0):
        return None
    base = e.step.inputs[0]
    if look.is_sum_of_squares(base) or look.is_length(base):
        return Verdict("norm", 0.7)
    return Verdict("gradient" if e.phase == "backward" else "domain", 0.6)


def _logarithm(e: Evidence) -> Verdict | None:
    """The logarithm of a probability that rounded to 0, or of any other number."""
    if e.primitive not in _LOGARITHMS:
        return None
    below = e.has_negative() and e.primitive != "log1p"
    saturated = look.comes_from(e.step.inputs[0], _PROBABILITIES)
    return Verdict("loss" if saturated and not below else "domain", 0.85)


def _outside_domain(e: Evidence) -> Verdict | None:
    known = e.primitive in _BOUNDED | _ROOTS and not e.overflowed
    return Verdict("domain", 0.8) if known else None


def _overflow(e: Evidence) -> Verdict | None:
    # A sum of finite numbers is a NaN if two of its partial sums are inf and -inf.
    if e.primitive not in (_GROWING if e.overflowed else look.SUMS):
        return None
    return Verdict("gradient" if e.phase == "backward" else "overflow", 0.7)


_RULES: tuple[Rule, ...] = (
    _nan_literal,
    _training_loop,
    _linalg,
    _half_precision,
    _narrowing,
    _infinity_minus_infinity,
    _where_trap,
    _update_overflow,
    _cancellation,
    _sentinel,
    _grown_weights,
    _exponential,
    _norm_overflow,
    _zero_divisor,
    _infinite_power,
    _logarithm,
    _outside_domain,
    _overflow,
)
