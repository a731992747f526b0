"""What a fit remembers: one frozen record, a pytree of a few numbers per feature.

Columns are what the data has, features are what the model gets: a numeric column is
one feature, a one-hot column several. Everything that a device needs is an array of
shape [features]; names, categories and options are static, so that strings stay on the
host and a jitted function is compiled once per set of columns, not once per fit.

Mean and standard deviation are float32 pairs `high + low`: one float32 cannot hold the
mean of a column around 1e6 whose spread is 1 to better than 0.03 of that spread.
"""

import dataclasses

import jax

from jaxsafe import _text
from jaxsafe.clean._table import Kind, Sentinels


@dataclasses.dataclass(frozen=True)
class Options:
    """The arguments of `fit`, as given there."""

    impute: str
    fill_value: float
    scale: str | None
    outliers: float | None
    categories: str
    missing: Sentinels


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the data.

    Attributes:
      name: as in the data.
      kind: "number" or "category".
      categories: the texts seen, sorted.
      had_missing: a category was missing in the fitted data.
    """

    name: str
    kind: Kind
    categories: tuple[str, ...] = ()
    had_missing: bool = False

    def features(self, encoding: str) -> tuple[str, ...]:
        """Names of the features this column becomes."""
        if self.kind == "number" or encoding == "ordinal":
            return (self.name,)
        labels = self.categories + (("(missing)",) if self.had_missing else ())
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
      count: int32, observed entries; all rows for a category.
      mean: float32, mean of the observed entries; `fill_value` if there were none.
      mean_low: float32, what `mean` lost by rounding.
      std: float32, population standard deviation; 0 for a constant column.
      std_low: float32, what `std` lost by rounding.
      minimum: float32, smallest observed entry.
      maximum: float32, largest observed entry.
      fill: float32, what a missing entry becomes, before scaling.
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
    columns: tuple[Column, ...] = dataclasses.field(metadata=_static())
    options: Options = dataclasses.field(metadata=_static())

    @property
    def features(self) -> tuple[str, ...]:
        """Names of what comes out of `encode` and `apply`, one per number."""
        style = self.options.categories
        return tuple(name for c in self.columns for name in c.features(style))

    @property
    def is_number(self) -> tuple[bool, ...]:
        """Per feature: does it come from a numeric column."""
        style = self.options.categories
        return tuple(
            c.kind == "number" for c in self.columns for _ in c.features(style)
        )

    def __repr__(self) -> str:
        options = self.options
        outliers = "" if options.outliers is None else f", outliers={options.outliers}"
        return (
            f"Cleaner({len(self.columns)} columns -> {len(self.features)} features, "
            f"impute={options.impute!r}, scale={options.scale!r}{outliers})"
        )

    def summary(self) -> str:
        """A table of what was fitted, one line per feature, within 80 columns."""
        rows = [
            (
                name,
                str(int(self.count[i])),
                f"{float(self.mean[i]):.5g}" if number else "",
                f"{float(self.std[i]):.5g}" if number else "",
                f"{float(self.fill[i]):.5g}" if number else "",
            )
            for i, (name, number) in enumerate(
                zip(self.features, self.is_number, strict=True)
            )
        ]
        header = ("feature", "observed", "mean", "std", "missing becomes")
        title = f"{len(self.columns)} columns become {len(rows)} features"
        return f"{title}\n{_text.table(header, rows)}"
