"""What a fit remembers: one frozen record, a pytree of a few numbers per feature.

Columns are what the data has, features are what the model gets: a numeric column is
one feature, a one-hot column several. Everything that a device needs is an array of
shape [features]; names, categories and options are static, so that strings stay on the
host and a jitted function is compiled once per set of columns, not once per fit.

Mean and standard deviation are float32 pairs `high + low`: one float32 cannot hold the
mean of a column around 1e6 whose spread is 1 to better than 0.03 of that spread.
"""

import dataclasses
from typing import Any

import jax

from jaxsafe import _text
from jaxsafe.clean._options import Options
from jaxsafe.clean._sketch import Frequent, Sketch
from jaxsafe.clean._table import Kind

MISSING = "(missing)"


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the data.

    Attributes:
      name: as in the data.
      kind: "number" or "category".
      categories: the texts seen, sorted.
      had_missing: a category was missing in the fitted data; of a number with
        `indicator=True`, an entry was.
      fill: the category that a missing one becomes, the most frequent if asked for.
      numbered: the categories are numbers, and sorted as such.
    """

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()
    had_missing: bool = False
    fill: str | None = None
    numbered: bool = False

    def features(self, encoding: str) -> tuple[str, ...]:
        """Names of the features this column becomes."""
        if self.kind == "number" or encoding == "ordinal":
            return (self.name,)
        own = self.had_missing and self.fill is None
        labels = self.categories + ((MISSING,) if own else ())
        return tuple(f"{self.name}={label}" for label in labels)


def _static() -> dict[str, bool]:
    return {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Cleaner:
    """What `clean.fit` found; hand it to `clean.encode`, `apply`, `audit` and `merge`.

    A pytree: pass it into a jitted function as an argument, or close over it. Arrays
    have shape [features]; a category's features have mean 0 and deviation 1, which
    leaves them as they are.

    Attributes:
      count: int32, observed entries; the rows of a category, for a one-hot feature
        those in it.
      mean: float32, mean of the observed entries; `fill_value` if there were none.
      mean_low: float32, what `mean` lost by rounding.
      std: float32, population standard deviation; 0 for a constant column.
      std_low: float32, what `std` lost by rounding.
      minimum: float32, smallest observed entry.
      maximum: float32, largest observed entry.
      fill: float32, what a missing entry becomes, before scaling.
      filled: float32, the same after scaling.
      center: float32, what scaling subtracts.
      center_low: float32, what `center` lost by rounding.
      unit: float32, a power of two that scaling multiplies by, so that nothing
        overflows.
      divisor: float32, what scaling then divides by, never 0.
      inverse: float32, 1 / `divisor`.
      inverse_low: float32, what `inverse` lost by rounding.
      lower: float32, outliers lie below this, after scaling.
      upper: float32, or above this.
      sketch: histograms that quantiles are merged by, if options need quantiles.
      frequent: the most frequent numbers, if an option needs them.
      columns: the columns of the data, static.
      options: the arguments of `fit`, static.

    >>> from jaxsafe import clean
    >>> clean.fit({"city": ["Rome", "Oslo"], "rain": [2.5, None]}).features
    ('city=Oslo', 'city=Rome', 'rain')
    """

    count: jax.Array
    mean: jax.Array
    mean_low: jax.Array
    std: jax.Array
    std_low: jax.Array
    minimum: jax.Array
    maximum: jax.Array
    fill: jax.Array
    filled: jax.Array
    center: jax.Array
    center_low: jax.Array
    unit: jax.Array
    divisor: jax.Array
    inverse: jax.Array
    inverse_low: jax.Array
    lower: jax.Array
    upper: jax.Array
    sketch: Sketch | None = None
    frequent: Frequent | None = None
    columns: tuple[Column, ...] = dataclasses.field(metadata=_static())
    options: Options = dataclasses.field(metadata=_static())

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what comes out of `encode`, one per number."""
        style = self.options.categories
        return tuple(name for c in self.columns for name in c.features(style))

    @property
    def output_features(self) -> tuple[str, ...]:
        """Names of what comes out of `apply`: `features`, then the indicators."""
        flags = (f"{self.columns[i].name} {MISSING}" for i in self.indicated_columns)
        return (*self.features, *flags)

    @property
    def is_number(self) -> tuple[bool, ...]:
        """Per feature: does it come from a numeric column."""
        style = self.options.categories
        return tuple(
            c.kind == "number" for c in self.columns for _ in c.features(style)
        )

    @property
    def owners(self) -> tuple[int, ...]:
        """Per feature: the position of its column."""
        style = self.options.categories
        return tuple(i for i, c in enumerate(self.columns) for _ in c.features(style))

    @property
    def indicated_columns(self) -> tuple[int, ...]:
        """Positions of the columns that have an indicator, none without the option."""
        if not self.options.indicator:
            return ()
        pairs = enumerate(self.columns)
        return tuple(i for i, c in pairs if c.kind == "number" and c.had_missing)

    def to_json(self) -> str:
        """The cleaner as JSON text, bit by bit; read it with `clean.from_json`."""
        from jaxsafe.clean import _json

        return _json.write(self)

    def as_map(self) -> Any:
        """A plain function from a raw batch to a clean one, for any data loader.

        It can be pickled, takes whatever `clean.encode` takes, and works in NumPy, so
        that a forked worker process never starts a device.

        >>> import numpy as np
        >>> from jaxsafe import clean
        >>> clean_up = clean.fit(np.array([[1.0], [3.0]])).as_map()
        >>> clean_up(np.array([[np.nan], [3.0]]))
        array([[0.],
               [1.]], dtype=float32)
        """
        from jaxsafe.clean import _loader

        return _loader.Map(self)

    def __repr__(self) -> str:
        options = self.options
        rule, limit = options.outliers or ("", 0.0)
        shown = limit if rule == "std" else (rule, limit)
        outliers = f", outliers={shown}" if options.outliers else ""
        impute = options.impute
        if not isinstance(impute, str):
            impute = ", ".join(sorted(options.imputes))
        return (
            f"Cleaner({len(self.columns)} columns -> {len(self.output_features)} "
            f"features, impute={impute!r}, scale={options.scale!r}{outliers})"
        )

    def summary(self) -> str:
        """A table of what was fitted, one line per feature, within 80 columns."""
        fills = [self.columns[owner].fill for owner in self.owners]
        rows = [
            (
                name,
                str(int(self.count[i])),
                f"{float(self.mean[i]):.5g}" if number else "",
                f"{float(self.std[i]):.5g}" if number else "",
                f"{float(self.fill[i]):.5g}" if number else fills[i] or "",
            )
            for i, (name, number) in enumerate(
                zip(self.features, self.is_number, strict=True)
            )
        ]
        header = ("feature", "observed", "mean", "std", "missing becomes")
        title = f"{len(self.columns)} columns become {len(rows)} features"
        return f"{title}\n{_text.table(header, rows)}"
