"""Frames of pandas, polars and arrow: the same columns, the same holes, one fit."""

import datetime
import sys
from decimal import Decimal

import jax
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from jaxsafe import clean

_COLUMNS = {
    "whole": [1, None, 3],
    "real": [1.5, None, float("inf")],
    "exact": [Decimal("1.5"), None, Decimal("2.5")],
    "text": ["a", None, "b"],
    "flag": [True, None, False],
    "label": ["y", "x", None],
    "empty": [None, None, None],
}
_ARROW = pa.table({**_COLUMNS, "label": pa.array(["y", "x", None]).dictionary_encode()})


class _Stream:
    """What shares no more than the interface of arrow."""

    def __init__(self, table):
        self._table = table

    def __arrow_c_stream__(self, requested_schema=None):
        return self._table.__arrow_c_stream__(requested_schema)


class _Interchange:
    """What shares no more than the older protocol of data frames."""

    def __init__(self, table):
        self._table = table

    def __dataframe__(self, nan_as_null=False, allow_copy=True):
        return self._table.__dataframe__(nan_as_null, allow_copy)


# The older protocol has no decimals, no column of nothing.
_PLAIN = _ARROW.set_column(2, "exact", pa.array([1.5, None, 2.5])).set_column(
    6, "empty", pa.array([None] * 3, pa.float64())
)
_FRAMES = {
    "polars": pl.DataFrame(_COLUMNS, schema_overrides={"label": pl.Categorical}),
    "polars enum": pl.DataFrame(
        _COLUMNS, schema_overrides={"label": pl.Enum(["y", "x", "z"])}
    ),
    "arrow": _ARROW,
    "arrow batch": _ARROW.to_batches()[0],
    "arrow chunks": pa.concat_tables([_ARROW[:1], _ARROW[1:]]),
    "arrow stream": _Stream(_ARROW),
    "interchange": _Interchange(_PLAIN),
    "columns of arrow": dict(zip(_ARROW.column_names, _ARROW.columns, strict=True)),
    "columns of polars": {name: pl.Series(v) for name, v in _COLUMNS.items()},
    "pandas": pd.DataFrame(_COLUMNS).astype({"label": "category"}),
    "pandas nullable": pd.DataFrame(
        {
            "whole": pd.array([1, None, 3], dtype="Int64"),
            "real": pd.array([1.5, None, float("inf")], dtype="Float64"),
            "exact": pd.array([1.5, None, 2.5], dtype="Float32"),
            "text": pd.array(["a", None, "b"], dtype="string"),
            "flag": pd.array([True, None, False], dtype="boolean"),
            "label": pd.Categorical(["y", "x", None]),
            "empty": pd.array([None] * 3, dtype="Int8"),
        }
    ),
    "pandas of arrow": _ARROW.to_pandas(types_mapper=pd.ArrowDtype),
}


@pytest.mark.parametrize("name", _FRAMES)
def test_every_frame_is_the_mapping_of_its_lists(name):
    frame = _FRAMES[name]
    expected = clean.fit(_COLUMNS)
    assert expected.features[:3] == ("whole", "real", "exact")
    assert {"text=(missing)", "flag=True", "label=x"} <= set(expected.features)
    cleaner = clean.fit(frame)
    assert cleaner.columns == expected.columns
    for ours, theirs in zip(*map(jax.tree.leaves, (cleaner, expected)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(
        clean.encode(expected, frame), clean.encode(expected, _COLUMNS)
    )
    audit = clean.audit(frame, expected)
    assert audit.columns == clean.audit(_COLUMNS, expected).columns
    np.testing.assert_array_equal(cleaner.as_map()(frame), expected.as_map()(_COLUMNS))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([7, None, 8, 7]).dictionary_encode(),
        pa.chunked_array([[7, None], [8, 7]]).dictionary_encode(),
        pd.Series([7, None, 8, 7], dtype="category"),
        pd.Series([7, None, 8, 7], dtype=pd.ArrowDtype(pa.int64())).astype(
            pd.ArrowDtype(pa.dictionary(pa.int32(), pa.int64()))
        ),
    ],
    ids=lambda c: type(c).__name__,
)
def test_numbers_in_a_dictionary_are_only_names(column):
    cleaner = clean.fit({"c": column})
    assert cleaner.features == ("c=7", "c=8", "c=(missing)")
    assert clean.encode(cleaner, {"c": column}).argmax(axis=1).tolist() == [0, 2, 1, 0]


@pytest.mark.parametrize(
    ("some", "none"),
    [
        (pa.array(["a", "b"]), pa.array([None, None], pa.string())),
        (pa.array(["a", "b"]), pa.array([None, None], pa.large_string())),
        (pl.Series(["a", "b"]), pl.Series([None, None], dtype=pl.String)),
        (pd.Series(["a", "b"]), pd.Series([None, None], dtype="str")),
        (pd.Series(["a", "b"]), pd.Series([None, None], dtype=pd.StringDtype())),
        (pd.Series(["a", "b"]), pd.Series([None, None], dtype="category")),
        (
            pd.Series(["a", "b"], dtype=pd.ArrowDtype(pa.string())),
            pd.Series([None, None], dtype=pd.ArrowDtype(pa.string())),
        ),
    ],
    ids=lambda c: str(getattr(c, "dtype", None) or c.type),
)
def test_a_chunk_without_a_single_text_is_one_of_text(some, none):
    chunks = [{"c": none}, {"c": some}]
    for part in (chunks, chunks[::-1]):
        for scale in ("standard", "robust"):  # merged, or kept and joined
            cleaner = clean.fit(part, scale=scale)
            assert cleaner.features == ("c=a", "c=b", "c=(missing)")
            np.testing.assert_array_equal(cleaner.count, [1, 1, 2])


def test_a_reader_of_batches_is_a_stream_of_chunks():
    twice = pa.concat_tables([_ARROW, _ARROW])
    cleaner, whole = clean.fit(twice.to_reader(3)), clean.fit(twice)
    assert cleaner.features == whole.features
    np.testing.assert_array_equal(cleaner.count, whole.count)
    np.testing.assert_array_equal(cleaner.mean, whole.mean)


@pytest.mark.parametrize("library", [pl.DataFrame, pa.table], ids=["polars", "arrow"])
def test_dates_are_refused(library):
    frame = library({"day": [datetime.date(2020, 1, 1)], "x": [1.0]})
    with pytest.raises(TypeError, match=r"^clean.fit: column 'day' must hold"):
        clean.fit(frame)


def test_two_columns_of_one_name_are_refused():
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    with pytest.raises(ValueError, match="two columns have the same name"):
        clean.fit(table)


@pytest.mark.parametrize("wrap", [_Stream, _Interchange])
def test_without_pyarrow_it_says_what_to_install(wrap, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"^clean.fit: .* pip install pyarrow"):
        clean.fit(wrap(_ARROW))


@pytest.mark.parametrize("function", [clean.fit, clean.audit])
def test_a_lazy_frame_is_to_be_collected(function):
    lazy = pl.LazyFrame({"x": [1.0]})
    message = r"a query that has not run \(got LazyFrame\)\. Pass data.collect\(\)"
    with pytest.raises(TypeError, match=message):
        function(lazy)
    with pytest.raises(TypeError, match=message):
        clean.fit([lazy, lazy])
