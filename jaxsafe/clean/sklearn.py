"""The cleaner as a scikit-learn transformer, for those who live in pipelines.

The only module of this room that imports scikit-learn; `import jaxsafe` does not.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from jaxsafe.clean._cleaner import Cleaner
from jaxsafe.clean._fit import fit as _fit
from jaxsafe.clean._loader import Map

__all__ = ["TableCleaner"]


class TableCleaner(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """`clean.fit`, `encode` and `apply` behind `fit` and `transform`.

    Args are those of `clean.fit`. Data frames keep their columns, text included; an
    array must be numeric. What comes out is float32 and finite.

    Attributes:
      cleaner_: the fitted `Cleaner`.

    >>> import numpy as np
    >>> from jaxsafe.clean.sklearn import TableCleaner
    >>> TableCleaner().fit_transform(np.array([[1.0], [np.nan], [3.0]]))
    array([[-1.],
           [ 0.],
           [ 1.]], dtype=float32)
    """

    def __init__(
        self,
        *,
        impute: str | Mapping[str, str] = "mean",
        fill_value: float | Mapping[str, float] = 0.0,
        scale: str | None = "standard",
        outliers: float | str | tuple[str, float] | None = None,
        outlier_action: str = "clip",
        ranges: Mapping[str, tuple[float | None, float | None]] | None = None,
        range_action: str = "mask",
        allowed: Mapping[str, Sequence[float | str]] | None = None,
        categories: str = "onehot",
        missing: Sequence[float | str] = (),
        indicator: bool = False,
        quantiles: str = "exact",
    ) -> None:
        self.impute = impute
        self.fill_value = fill_value
        self.scale = scale
        self.outliers = outliers
        self.outlier_action = outlier_action
        self.ranges = ranges
        self.range_action = range_action
        self.allowed = allowed
        self.categories = categories
        self.missing = missing
        self.indicator = indicator
        self.quantiles = quantiles

    def fit(self, X: Any, y: Any = None) -> "TableCleaner":  # noqa: ARG002
        """Learn from X [rows, columns]; `y` is not looked at."""
        data = self._checked(X, reset=True)
        self.cleaner_: Cleaner = _fit(data, **self.get_params(deep=False))
        self._map = Map(self.cleaner_)
        return self

    def transform(self, X: Any) -> Any:
        """float32 [rows, output features], finite."""
        check_is_fitted(self)
        return self._map(self._checked(X, reset=False))

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Names of what `transform` returns."""
        check_is_fitted(self)
        names = super().get_feature_names_out(input_features)
        fitted = [column.name for column in self.cleaner_.columns]
        known = dict(zip(fitted, names, strict=True))
        owners = [known[fitted[i]] for i in self.cleaner_.owners]
        pairs = zip(self.cleaner_.owners, self.cleaner_.features, owners, strict=True)
        found = [owner + name.removeprefix(fitted[i]) for i, name, owner in pairs]
        extra = self.cleaner_.output_features[len(found) :]
        return np.asarray([*found, *extra], object)

    def _checked(self, X: Any, *, reset: bool) -> Any:
        """What scikit-learn wants to be refused is refused in its own words."""
        if hasattr(X, "columns"):
            validate_data(self, X, reset=reset, skip_check_array=True)
            return X
        array: Any = validate_data(
            self, X, reset=reset, dtype="numeric", ensure_all_finite=False
        )
        return array

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags
