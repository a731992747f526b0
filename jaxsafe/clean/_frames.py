"""Frames of any library, known only by what they share; none of them is imported.

pandas, polars and a dict of lists share `.columns` and `frame[name]`; tables and record
batches of arrow call the first `.column_names`. Whatever else hands out its data by
`__arrow_c_stream__`, or the older `__dataframe__`, is read by pyarrow, which is
imported only then.
"""

from collections.abc import Mapping
from typing import Any

from jaxsafe._errors import error

# What numpy, pandas, polars and arrow call them.
_TEXTS = {
    "str",
    "string",
    "String",
    "large_string",
    "string_view",
    "bool",
    "boolean",
    "Boolean",
}


def is_frame(data: Any) -> bool:
    """Whether `data` has columns with names."""
    # To ask a lazy frame for its columns would run a part of its query.
    known = isinstance(data, Mapping) or _is_lazy(data) or hasattr(data, "columns")
    return known or _is_stream(data) or hasattr(data, "__dataframe__")


def opened(function: str, data: Any) -> tuple[list[Any], Any]:
    """(keys of the columns, what holds them by these keys)."""
    if isinstance(data, Mapping):
        return list(data), data
    if _is_lazy(data):
        raise error(
            TypeError,
            function,
            "data is a query that has not run",
            type(data).__name__,
            "Pass data.collect(), kept for all calls: each would run the query anew.",
        )
    if not hasattr(data, "columns"):
        data = _by_pyarrow(function, data)
    # In arrow, `columns` are the values.
    return list(getattr(data, "column_names", data.columns)), data


def is_category(values: Any) -> bool:
    """Whether a column says that its numbers are only names."""
    kind = getattr(values, "dtype", None) or getattr(values, "type", None)
    named = getattr(kind, "name", None) == "category"
    return named or str(kind).startswith("dictionary<")


def is_text(values: Any) -> bool:
    """Whether a column is of text or flags by its type, even if all are missing."""
    kind = getattr(values, "dtype", None) or getattr(values, "type", None)
    return str(kind).partition("[")[0] in _TEXTS


def entries(values: Any) -> Any:
    """The entries of a column of categories, as objects; missing is None or its kin."""
    import numpy as np

    # To numpy, arrow gives a missing entry of a dictionary another's value.
    as_list = getattr(values, "to_pylist", None)
    return np.asarray(as_list() if as_list else values, object)


def _is_stream(data: Any) -> bool:
    # A single column streams as well, and an array has no names.
    single = hasattr(data, "dtype") or hasattr(data, "type")
    return hasattr(data, "__arrow_c_stream__") and not single


def _is_lazy(data: Any) -> bool:
    return type(data).__name__ == "LazyFrame"


def _by_pyarrow(function: str, data: Any) -> Any:
    try:
        import pyarrow
        from pyarrow import interchange
    except ImportError as missing:
        raise error(
            ImportError,
            function,
            "a table known by __arrow_c_stream__ or __dataframe__ only is read by "
            "pyarrow",
            type(data).__name__,
            "pip install pyarrow, or pass a mapping of columns.",
        ) from missing
    if _is_stream(data):
        return pyarrow.table(data)
    return interchange.from_dataframe(data)
