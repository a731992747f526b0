"""The arguments of `clean.fit`, checked once and frozen.

All are hashable, because they are the static part of a cleaner: whoever jits a function
of one compiles it once for each set of options.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import jax.numpy as jnp

from jaxsafe import _errors, _floats
from jaxsafe._errors import error

Sentinels: TypeAlias = tuple[float | str, ...]
PerColumn: TypeAlias = tuple[tuple[str, Any], ...]

IMPUTES = ("zero", "mean", "median", "most_frequent", "constant")
SCALES = ("standard", "minmax", "robust")
# The limit of a rule that is given by its name alone.
RULES = {"std": 3.0, "iqr": 1.5, "mad": 3.5, "quantile": 0.01}
ACTIONS = ("clip", "mask")
_FUNCTION = "clean.fit"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of `fit`, as given there; what is per column as sorted pairs."""

    impute: str | PerColumn = "mean"
    fill_value: float | PerColumn = 0.0
    scale: str | None = "standard"
    outliers: tuple[str, float] | None = None
    outlier_action: str = "clip"
    ranges: tuple[tuple[str, tuple[float, float]], ...] = ()
    range_action: str = "mask"
    allowed: tuple[tuple[str, Sentinels], ...] = ()
    categories: str = "onehot"
    missing: Sentinels = ()
    indicator: bool = False
    quantiles: str = "exact"

    def impute_of(self, name: str) -> str:
        """What a missing entry of a column becomes."""
        if isinstance(self.impute, str):
            return self.impute
        return str(dict(self.impute).get(name, "mean"))

    def fill_value_of(self, name: str) -> float:
        """The constant of a column."""
        if isinstance(self.fill_value, float):
            return self.fill_value
        return float(dict(self.fill_value).get(name, 0.0))

    @property
    def imputes(self) -> set[str]:
        """Every strategy that is used; a column that is not named has its mean."""
        if isinstance(self.impute, str):
            return {self.impute}
        return {"mean", *(how for _, how in self.impute)}

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The quantiles that must be known."""
        found: set[float] = set()
        rule, limit = self.outliers or ("", 0.0)
        if "median" in self.imputes or rule == "mad":
            found.add(0.5)
        if self.scale == "robust":
            found |= {0.25, 0.5, 0.75}
        if rule == "iqr":
            found |= {0.25, 0.75}
        if rule == "quantile":
            found |= {limit, 1 - limit}
        return tuple(sorted(found))


def check(
    *,
    impute: Any,
    fill_value: Any,
    scale: Any,
    outliers: Any,
    outlier_action: Any,
    ranges: Any,
    range_action: Any,
    allowed: Any,
    categories: Any,
    missing: Any,
    indicator: Any,
    quantiles: Any,
) -> Options:
    """The options, or an error that names the argument that is wrong."""
    for action, name in (
        (outlier_action, "outlier_action"),
        (range_action, "range_action"),
    ):
        _errors.check_choice(_FUNCTION, name, action, ACTIONS)
    _errors.check_choice(_FUNCTION, "categories", categories, ("onehot", "ordinal"))
    _errors.check_choice(_FUNCTION, "quantiles", quantiles, ("exact", "sketch"))
    if scale is not None and scale not in SCALES:
        raise error(
            ValueError,
            _FUNCTION,
            f"scale must be one of {', '.join(map(repr, SCALES))} or None",
            repr(scale),
            "Check the spelling.",
        )
    return Options(
        impute=_per_column("impute", impute, _check_impute),
        fill_value=_per_column("fill_value", fill_value, _check_fill_value),
        scale=scale,
        outliers=_outliers(outliers),
        outlier_action=outlier_action,
        ranges=_ranges(ranges),
        range_action=range_action,
        allowed=_allowed(allowed),
        categories=categories,
        missing=_sentinels(missing),
        indicator=bool(indicator),
        quantiles=quantiles,
    )


def check_names(options: Options, names: Sequence[str]) -> None:
    """Raise ValueError if an option names a column that is not there."""
    for argument in ("impute", "fill_value", "ranges", "allowed"):
        value = getattr(options, argument)
        if not isinstance(value, tuple):
            continue
        unknown = [name for name, _ in value if name not in names]
        if unknown:
            raise error(
                ValueError,
                _FUNCTION,
                f"{argument} names columns that the data does not have",
                ", ".join(unknown),
                f"The columns are {', '.join(names)}.",
            )


def check_kinds(options: Options, kinds: Mapping[str, str]) -> None:
    """Raise ValueError if a rule is for another kind of column than it names."""
    named = options.impute if isinstance(options.impute, tuple) else ()
    for name, how in named:
        if kinds[name] == "category" and how != "most_frequent":
            raise error(
                ValueError,
                _FUNCTION,
                f"column {name!r} holds categories, which have no {how}",
                repr(how),
                "Use 'most_frequent', or leave it out: missing is then a category.",
            )
    for name, ends in options.ranges:
        if kinds[name] == "category":
            raise error(
                ValueError,
                _FUNCTION,
                f"column {name!r} holds categories, which have no range",
                ends,
                f"List what it may hold: allowed={{{name!r}: (...)}}.",
            )
    for name, values in options.allowed:
        if kinds[name] == "number" and any(isinstance(v, str) for v in values):
            raise error(
                ValueError,
                _FUNCTION,
                f"column {name!r} holds numbers, but text is allowed",
                repr(values),
                "List numbers.",
            )


def _per_column(argument: str, value: Any, checked: Any) -> Any:
    if not isinstance(value, Mapping):
        return checked(argument, value)
    return tuple(sorted((str(k), checked(argument, v)) for k, v in value.items()))


def _check_impute(argument: str, value: Any) -> str:
    _errors.check_choice(_FUNCTION, argument, value, IMPUTES)
    return str(value)


def _check_fill_value(argument: str, value: Any) -> float:
    if not abs(value) <= _floats.largest(jnp.float32):
        raise error(
            ValueError,
            _FUNCTION,
            f"{argument} must be finite in float32",
            value,
            "Pass an ordinary number.",
        )
    return float(value)


def _outliers(value: Any) -> tuple[str, float] | None:
    """(rule, limit): a bare number counts standard deviations."""
    if value is None:
        return None
    if isinstance(value, str):
        _errors.check_choice(_FUNCTION, "outliers", value, tuple(RULES))
        return value, RULES[value]
    rule, limit = value if isinstance(value, tuple) else ("std", value)
    _errors.check_choice(_FUNCTION, "the rule of outliers", rule, tuple(RULES))
    _errors.check_positive(_FUNCTION, "outliers", limit)
    if rule == "quantile" and not limit < 0.5:
        raise error(
            ValueError,
            _FUNCTION,
            "outliers=('quantile', q) must have q below 0.5",
            limit,
            "Pass the share to cut off at each end, such as 0.01.",
        )
    return rule, float(limit)


def _ranges(value: Any) -> tuple[tuple[str, tuple[float, float]], ...]:
    """(column, (low, high)) in order of names; an end that is open is the largest."""
    advice = "Write ranges={'age': (0, 120)}; None leaves an end open."
    largest = _floats.largest(jnp.float32)
    found = []
    for name, ends in _per_name("ranges", value, "(low, high)", advice):
        pair = tuple(ends) if isinstance(ends, Sequence) else ()
        low, high = pair if len(pair) == 2 else (1.0, 0.0)
        low = -largest if low is None else max(float(low), -largest)
        high = largest if high is None else min(float(high), largest)
        if not low <= high:
            raise error(
                ValueError,
                _FUNCTION,
                f"the range of {str(name)!r} must be (low, high) with low <= high",
                repr(ends),
                "Write (0, 120); None leaves an end open.",
            )
        found.append((str(name), (low, high)))
    return tuple(sorted(found))


def _allowed(value: Any) -> tuple[tuple[str, Sentinels], ...]:
    """(column, values) in order of names."""
    advice = "Write allowed={'grade': ('a', 'b', 'c')}."
    found = []
    what = "the values that they may hold"
    for name, values in _per_name("allowed", value, what, advice):
        listed = isinstance(values, Iterable) and not isinstance(values, str)
        known = tuple(values) if listed else ()
        if not known or not all(map(_can_stand, known)):
            raise error(
                ValueError,
                _FUNCTION,
                f"allowed must list texts, flags or finite numbers for {str(name)!r}",
                repr(values),
                "Write ('a', 'b', 'c'); a missing entry needs no permission.",
            )
        found.append((str(name), tuple(map(_allowed_value, known))))
    return tuple(sorted(found))


def _per_name(argument: str, value: Any, what: str, advice: str) -> Iterable[Any]:
    """(column, what it maps to) pairs; none of None."""
    if value is None:
        return ()
    if not isinstance(value, Mapping):
        raise error(
            TypeError,
            _FUNCTION,
            f"{argument} must map names of columns to {what}",
            repr(value),
            advice,
        )
    return value.items()


def _can_stand(value: Any) -> bool:
    if isinstance(value, str | bool):
        return True
    number = hasattr(value, "__float__")
    return number and bool(abs(value) <= _floats.largest(jnp.float32))


def _allowed_value(value: Any) -> float | str:
    # A flag is a category, known by its text.
    return str(value) if isinstance(value, str | bool) else float(value)


def _sentinels(missing: Any) -> Sentinels:
    if isinstance(missing, str) or not isinstance(missing, Sequence):
        raise error(
            TypeError,
            _FUNCTION,
            "missing must be a tuple of values",
            repr(missing),
            "Put a single value into a tuple, such as (-999.0,).",
        )
    known = tuple(v if isinstance(v, str) else float(v) for v in missing)
    # NaN and infinities are missing anyway; a NaN, equal to nothing, would also make
    # jit compile anew for every cleaner.
    largest = _floats.largest(jnp.float32)
    return tuple(v for v in known if isinstance(v, str) or abs(v) <= largest)
