"""Every refusal says what is wrong, what it got and what to do."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest

from jaxsafe import clean

_TABLE = {"city": ["London", "Venice"], "rain": [2.5, 3.5]}
_ARRAY = np.asarray([[1.0, 2.0], [3.0, 4.0]], np.float32)


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        (_ARRAY.astype(complex), TypeError, r"real numbers, .* \(got complex128\)"),
        ({"a": [3.0, 1 + 2j]}, TypeError, r"column 'a' must .* \(got complex\)"),
        (
            {"day": pd.Series(pd.to_datetime(["2020-01-01T00:00Z"]))},
            TypeError,
            r"column 'day' must .* turn a date",
        ),
        (
            {"day": np.asarray(["2020-01-01"], "datetime64[D]")},
            TypeError,
            r"column 'day' must .* turn a date",
        ),
        (_ARRAY[:0], ValueError, r"data is empty \(got 0 rows, 2 columns\)"),
        ({"a": []}, ValueError, r"data is empty \(got 0 rows, 1 columns\)"),
        ({}, ValueError, r"data is empty \(got 0 rows, 0 columns\)"),
        (_ARRAY[0], ValueError, r"rows and columns \(got shape \(2,\)\)"),
        ({"a": _ARRAY}, ValueError, "column 'a' must be one-dimensional"),
        ({"a": [1.0], "b": [1.0, 2.0]}, ValueError, r"length \(got a: 1, b: 2\)"),
        ([[1.0, 2.0]], TypeError, r"a mapping of columns \(got list\)"),
        (
            pd.DataFrame(_ARRAY, columns=["a", "a"]),
            ValueError,
            r"same name \(got a, a\)",
        ),
    ],
)
@pytest.mark.parametrize("function", [clean.fit, clean.audit])
def test_data_that_is_no_table(function, data, kind, message):
    with pytest.raises(kind, match=rf"^clean.{function.__name__}: .*{message}"):
        function(data)


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        (
            {"impute": "average"},
            ValueError,
            r"'most_frequent', 'constant' \(got 'average'\)",
        ),
        ({"scale": "max"}, ValueError, r"'robust' or None \(got 'max'\)"),
        ({"outliers": "iqd"}, ValueError, r"'quantile' \(got 'iqd'\)"),
        ({"outliers": ("quantile", 0.5)}, ValueError, "q below 0.5"),
        ({"outlier_action": "drop"}, ValueError, "'clip', 'mask'"),
        ({"ranges": {"x0": (3, 1)}}, ValueError, "low <= high"),
        ({"ranges": (3, 1)}, TypeError, "must map names of columns"),
        ({"ranges": {"age": (0, 1)}}, ValueError, r"does not have \(got age\)"),
        ({"allowed": (1, 2)}, TypeError, r"allowed must map .*allowed=\{'grade'"),
        ({"allowed": {"x0": ()}}, ValueError, r"numbers for 'x0' \(got \(\)\)"),
        ({"allowed": {"x0": "ab"}}, ValueError, r"for 'x0' \(got 'ab'\)"),
        ({"allowed": {"x0": 5}}, ValueError, r"for 'x0' \(got 5\)"),
        ({"allowed": {"x0": (1, None)}}, ValueError, "a missing entry needs no"),
        ({"allowed": {"x0": (1, np.nan)}}, ValueError, "finite numbers for 'x0'"),
        ({"allowed": {"x0": ("a", 1)}}, ValueError, "'x0' holds numbers, but text"),
        ({"allowed": {"age": (0, 1)}}, ValueError, r"does not have \(got age\)"),
        ({"impute": {"age": "mean"}}, ValueError, r"does not have \(got age\)"),
        ({"categories": "hash"}, ValueError, r"'onehot', 'ordinal' \(got 'hash'\)"),
        ({"outliers": -3.0}, ValueError, r"outliers must be .* above 0 \(got -3.0\)"),
        ({"outliers": np.inf}, ValueError, "outliers must be a finite"),
        ({"fill_value": np.nan}, ValueError, r"fill_value must be finite .*got nan"),
        ({"fill_value": 1e300}, ValueError, "fill_value must be finite in float32"),
        ({"missing": "?"}, TypeError, r"missing must be a tuple of values \(got '\?'"),
        ({"missing": -999.0}, TypeError, "Put a single value into a tuple"),
    ],
)
def test_options_that_do_not_exist(options, kind, message):
    with pytest.raises(kind, match=f"^clean.fit: .*{message}"):
        clean.fit(_ARRAY, **options)


def test_categories_have_no_range():
    with pytest.raises(ValueError, match=r"'city' holds .* no range .*allowed={'city'"):
        clean.fit(_TABLE, ranges={"city": (0, 1)})


def test_traced_data_is_refused_on_the_host_side():
    with pytest.raises(TypeError, match=r"clean.fit: data must be concrete.*jit"):
        jax.jit(lambda x: clean.fit(x).mean)(_ARRAY)
    with pytest.raises(TypeError, match=r"clean.audit: data must be concrete"):
        jax.jit(lambda x: clean.audit({"a": x}).rows)(_ARRAY[0])


@pytest.mark.parametrize("function", [clean.encode, lambda c, d: clean.audit(d, c)])
@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ({"city": ["London"]}, ValueError, r"absent: rain; unknown: none"),
        (
            {"city": ["London"], "snow": [1.0]},
            ValueError,
            r"absent: rain; unknown: snow\)\. Pass the columns city, rain",
        ),
        ({**_TABLE, "day": [1, 2]}, ValueError, "absent: none; unknown: day"),
        (
            np.zeros((2, 3)),
            ValueError,
            r"the fitted data had 2 columns \(got 3\)",
        ),
        (
            {"city": ["London"], "rain": ["much"]},
            TypeError,
            r"column 'rain' must hold numbers \(got 'much'\)",
        ),
    ],
)
def test_columns_that_differ(function, data, kind, message):
    with pytest.raises(kind, match=message):
        function(clean.fit(_TABLE), data)


@pytest.mark.parametrize(
    ("array", "kind", "message"),
    [
        (np.asarray([["a", "b"]]), TypeError, r"real numbers \(got <U1\).*encode"),
        (np.asarray([["a", 1.0]], object), TypeError, r"\(got object\).*clean.encode"),
        (_ARRAY.astype(complex), TypeError, r"real numbers \(got complex128\)"),
        (pd.DataFrame(_ARRAY), TypeError, r"not a frame \(got DataFrame\).*encode"),
        (np.zeros((2, 3)), ValueError, r"the 2 fitted features \(got shape \(2, 3\)\)"),
        (np.float32(1.0), ValueError, r"the 2 fitted features \(got shape \(\)\)"),
    ],
)
def test_arrays_that_apply_refuses(array, kind, message):
    with pytest.raises(kind, match=f"^clean.apply: .*{message}"):
        clean.apply(clean.fit(_ARRAY), array)


@pytest.mark.parametrize("where", [np.ones(3, bool), np.ones(2), np.ones((2, 2), bool)])
def test_masks_that_apply_refuses(where):
    message = r"^clean.apply: where must be a bool array of shape \(2,\)"
    with pytest.raises(ValueError, match=message):
        clean.apply(clean.fit(_ARRAY), _ARRAY, where=where)


_TURNED = {"rain": [2.5, 3.5], "city": ["London", "Venice"]}


@pytest.mark.parametrize(
    ("a", "b", "options_of_a", "options_of_b", "message"),
    [
        (_ARRAY, _ARRAY, {}, {"scale": None}, "fitted with different options"),
        (_ARRAY, _ARRAY[:, :1], {}, {}, "different columns"),
        (_TABLE, _TURNED, {}, {}, "different columns .* in the same order"),
        ({"a": [1.0]}, {"a": ["x"]}, {}, {}, "different columns"),
    ],
)
def test_cleaners_that_cannot_be_merged(a, b, options_of_a, options_of_b, message):
    pair = clean.fit(a, **options_of_a), clean.fit(b, **options_of_b)
    with pytest.raises(ValueError, match=f"^clean.merge: .*{message}"):
        clean.merge(*pair)


def test_more_rows_than_int32_can_count_are_refused():
    half = clean.fit(_ARRAY)
    many = dataclasses.replace(half, count=np.full(2, 2**31 - 1, np.int32))
    with pytest.raises(ValueError, match=r"^clean.merge: more entries than an int32"):
        clean.merge(many, half)


def test_importing_loads_no_data_frame_library():
    code = (
        "import sys, jaxsafe.clean; "
        "print({'pandas', 'sklearn', 'polars', 'pyarrow'} & set(sys.modules))"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert out.stdout.strip() == "set()"
