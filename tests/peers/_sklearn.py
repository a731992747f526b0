"""scikit-learn's transformers with our cleaner inside, where the interface allows.

Each is a subclass of theirs: it checks and learns as they do, so that the attributes
their tests read are there, and what `transform` returns comes from `clean`. Options we
do not have, sparse matrices and infinite input stay with theirs, and do not count.
"""

import numpy as np
import sklearn.impute
import sklearn.preprocessing
from scipy import sparse

from jaxsafe import clean


def _plain(x):
    """A dense float matrix of finite numbers and NaN, within float32."""
    if sparse.issparse(x) or hasattr(x, "columns"):
        return None
    x = np.asarray(x)
    fine = x.ndim == 2 and x.dtype.kind == "f" and x.size
    return x if fine and np.nanmax(np.abs(x), initial=0) < 1e30 else None


def _with_ours(theirs, options_of, called):
    class Ours(theirs):
        def fit(self, X, y=None, **extra):
            super().fit(X, y, **extra)
            self._learn(X, extra)
            return self

        def partial_fit(self, X, y=None, **extra):
            super().partial_fit(X, y, **extra)
            self.__dict__.pop("_ours", None)
            return self

        def _learn(self, X, extra):
            self.__dict__.pop("_ours", None)
            weighted = any(value is not None for value in extra.values())
            options = None if weighted else options_of(self)
            x = _plain(X)
            if x is None or options is None:
                return
            if np.isfinite(x).any(axis=0).all():
                self._ours = clean.fit(x, **options)

        def transform(self, X):
            expected = super().transform(X.copy() if hasattr(X, "copy") else X)
            x = _plain(X)
            if "_ours" not in self.__dict__ or x is None:
                return super().transform(X)
            called.add(theirs.__name__)
            out = np.asarray(clean.apply(self._ours, x.astype(np.float32)))
            if theirs.__name__ != "SimpleImputer":  # scalers keep NaN
                out = np.where(np.isnan(x), np.nan, out)
            out = out.astype(expected.dtype)
            if not getattr(self, "copy", True) and isinstance(X, np.ndarray):
                X[...] = out
                return X
            return out

    Ours.__name__ = Ours.__qualname__ = theirs.__name__
    # scikit-learn reads the parameters off the signature of the class's own __init__.
    Ours.__init__ = theirs.__init__
    return Ours


def _imputer(model):
    plain = isinstance(model.missing_values, float) and np.isnan(model.missing_values)
    known = ("mean", "median", "most_frequent", "constant")
    if not plain or model.strategy not in known or model.add_indicator:
        return None
    fill = 0.0 if model.fill_value is None else model.fill_value
    if not isinstance(fill, int | float) or not np.isfinite(fill):
        return None
    return {"impute": model.strategy, "fill_value": float(fill), "scale": None}


def _standard(model):
    return {"scale": "standard"} if model.with_mean and model.with_std else None


def _minmax(model):
    plain = tuple(model.feature_range) == (0, 1) and not model.clip
    return {"scale": "minmax"} if plain else None


def _robust(model):
    plain = model.with_centering and model.with_scaling and not model.unit_variance
    fits = plain and tuple(model.quantile_range) == (25.0, 75.0)
    return {"scale": "robust"} if fits else None


def replace(called):
    """Put ours into the modules that their tests import from."""
    rows = (
        (sklearn.impute, "SimpleImputer", _imputer),
        (sklearn.preprocessing, "StandardScaler", _standard),
        (sklearn.preprocessing, "MinMaxScaler", _minmax),
        (sklearn.preprocessing, "RobustScaler", _robust),
    )
    for module, name, options_of in rows:
        setattr(module, name, _with_ours(getattr(module, name), options_of, called))
