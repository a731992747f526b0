"""scikit-learn's encoders with `clean.encode` inside."""

import numpy as np
from scipy import sparse

from jaxsafe import clean
from tests.peers._shared import Declined, category_table


class _Encoder:
    _style = ""

    def _learn(self, X, extra):  # noqa: ARG002
        if not isinstance(self.categories, str):
            raise Declined("categories that are given, not found")
        if self.min_frequency is not None or self.max_categories is not None:
            raise Declined("rare categories joined to one")
        self._check_options()
        return clean.fit(category_table(X), categories=self._style)

    def _check_options(self):
        """Raise `Declined` for an option of this encoder only."""


class OneHot(_Encoder):
    """Columns of 0 and 1."""

    _style = "onehot"

    def _check_options(self):
        if self.drop is not None:
            raise Declined("drop: no category is left out")

    def _convert(self, cleaner, X, expected):
        out = clean.encode(cleaner, category_table(X))
        out = np.asarray(clean.apply(cleaner, out)).astype(expected.dtype)
        return type(expected)(out) if sparse.issparse(expected) else out


class Ordinal(_Encoder):
    """Positions; of n categories, n is missing and n + 1 unknown."""

    _style = "ordinal"

    def _convert(self, cleaner, X, expected):
        code = clean.encode(cleaner, category_table(X))
        code = np.asarray(clean.apply(cleaner, code))
        out = code.astype(np.float64)
        unknown = self.unknown_value
        for i, column in enumerate(cleaner.columns):
            n = len(column.categories)
            missing = self.encoded_missing_value if column.had_missing else unknown
            out[code[:, i] == n, i] = missing
            out[code[:, i] == n + 1, i] = unknown
        return out.astype(expected.dtype)
