"""What the adapters of scikit-learn's transformers share: tables, and a refusal."""

import numpy as np
from scipy import sparse


class Declined(Exception):
    """Ours has no such option, or takes no such data; the message says which."""


def number_table(x):
    """A dense matrix of finite numbers and NaN, within float32."""
    if sparse.issparse(x):
        raise Declined("a sparse matrix")
    if hasattr(x, "columns"):
        raise Declined("a frame, which comes out as an array here")
    x = np.asarray(x)
    if x.ndim != 2 or x.dtype.kind not in "fiu" or not x.size:
        raise Declined("not a matrix of numbers")
    if not float(np.nanmax(np.abs(x), initial=0)) < 1e30:
        raise Declined("numbers beyond float32")
    return x


def category_table(x):
    """{position: categorical column}, and whether a column holds None and NaN both."""
    import pandas as pd

    if hasattr(x, "columns"):
        columns = [x.iloc[:, i].to_numpy(object) for i in range(x.shape[1])]
    else:
        columns = list(np.asarray(x, object).T)
    for column in columns:
        kinds = {type(v) for v in column if v is None or v != v}
        if len(kinds) > 1:
            raise Declined("None and NaN as two categories; both are missing to us")
        if any(isinstance(v, bytes) for v in column):
            raise Declined("bytes, which are text to us")
    return {
        str(i): pd.Series(pd.Categorical(column)) for i, column in enumerate(columns)
    }
