"""scikit-learn's transformers with our cleaner inside, where the interface allows.

Each is a subclass of theirs: it checks and learns as they do, so that the attributes
their tests read are there, and what `transform` returns comes from `clean`. What we do
not have stays with theirs, does not count, and is noted by its reason.
"""

import numpy as np
import sklearn.impute
import sklearn.preprocessing

from jaxsafe import clean
from tests.peers import _encoders
from tests.peers._shared import Declined, number_table


class _Cleaned:
    """What `fit` learns and `transform` returns for numbers."""

    def _learn(self, X, extra):
        if any(value is not None for value in extra.values()):
            raise Declined("weights of rows")
        cleaner = clean.fit(number_table(X), **self._options())
        if not np.asarray(cleaner.count).all():
            raise Declined("a column that is wholly missing")
        return cleaner

    def _convert(self, cleaner, X, expected):
        x = number_table(X)
        out = np.asarray(clean.apply(cleaner, x.astype(np.float32)))
        if not isinstance(self, _Imputer):  # scalers keep NaN
            out = np.where(np.isnan(x), np.nan, out)
        return out.astype(expected.dtype)


class _Imputer(_Cleaned):
    def _options(self):
        marker = self.missing_values
        if not isinstance(marker, int | float) or np.isinf(marker):
            raise Declined("a marker of what is missing that is not a number")
        if self.strategy not in ("mean", "median", "most_frequent", "constant"):
            raise Declined("strategy is a function")
        if self.add_indicator:
            raise Declined("add_indicator: ours is an option of clean.fit")
        fill = 0.0 if self.fill_value is None else self.fill_value
        if not isinstance(fill, int | float) or not np.isfinite(fill):
            raise Declined("a fill_value that is not a finite number")
        return {
            "impute": self.strategy,
            "fill_value": float(fill),
            "scale": None,
            "missing": () if np.isnan(marker) else (float(marker),),
        }


class _Standard(_Cleaned):
    def _options(self):
        if not (self.with_mean and self.with_std):
            raise Declined("only one half of scaling")
        return {"scale": "standard"}


class _MinMax(_Cleaned):
    def _options(self):
        if tuple(self.feature_range) != (0, 1) or self.clip:
            raise Declined("a range other than 0 to 1, or clipped to it")
        return {"scale": "minmax"}


class _Robust(_Cleaned):
    def _options(self):
        if not (self.with_centering and self.with_scaling) or self.unit_variance:
            raise Declined("only one half of scaling")
        if tuple(self.quantile_range) != (25.0, 75.0):
            raise Declined("quantiles other than the quartiles")
        return {"scale": "robust"}


def _with_ours(theirs, ours, called, declined):
    class Ours(ours, theirs):
        def fit(self, X, y=None, **extra):
            super().fit(X, y, **extra)
            self.__dict__.pop("_ours", None)
            try:
                self._ours = self._learn(X, extra)
            except Declined as reason:
                declined.add(f"{theirs.__name__}: {reason}")
            return self

        def transform(self, X, **extra):
            given = X.copy() if hasattr(X, "copy") else X
            if "_ours" not in self.__dict__:
                return super().transform(X, **extra)
            expected = super().transform(given, **extra)
            if hasattr(expected, "to_numpy"):  # a frame, by set_output
                expected = expected.to_numpy()
            try:
                out = self._convert(self._ours, X, expected)
            except Declined as reason:
                declined.add(f"{theirs.__name__}: {reason}")
                return super().transform(X, **extra)
            called.add(theirs.__name__)
            copy = extra.get("copy")
            in_place = not (getattr(self, "copy", True) if copy is None else copy)
            if in_place and isinstance(X, np.ndarray):
                X[...] = out
                return X
            return out

    if hasattr(theirs, "partial_fit"):

        def partial_fit(self, *args, **extra):
            theirs.partial_fit(self, *args, **extra)
            self.__dict__.pop("_ours", None)
            return self

        Ours.partial_fit = partial_fit
    Ours.__name__ = Ours.__qualname__ = theirs.__name__
    # scikit-learn reads the parameters off the signature of the class's own __init__.
    Ours.__init__ = theirs.__init__
    return Ours


def replace(called, declined):
    """Put ours into the modules that their tests import from."""
    rows = (
        (sklearn.impute, "SimpleImputer", _Imputer),
        (sklearn.preprocessing, "StandardScaler", _Standard),
        (sklearn.preprocessing, "MinMaxScaler", _MinMax),
        (sklearn.preprocessing, "RobustScaler", _Robust),
        (sklearn.preprocessing, "OneHotEncoder", _encoders.OneHot),
        (sklearn.preprocessing, "OrdinalEncoder", _encoders.Ordinal),
    )
    for module, name, ours in rows:
        theirs = getattr(module, name)
        setattr(module, name, _with_ours(theirs, ours, called, declined))
