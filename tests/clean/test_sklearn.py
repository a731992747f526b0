"""The scikit-learn transformer: their checks, a pipeline, a frame with text."""

import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

from jaxsafe import clean
from jaxsafe.clean.sklearn import TableCleaner


@pytest.mark.slow
def test_check_estimator_passes():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says which checks it skips
        results = check_estimator(TableCleaner(), on_fail=None)
    bad = [r for r in results if r["status"] not in ("passed", "skipped")]
    assert bad == []
    assert len(results) > 30


_SOME = {"check_fit2d_1sample", "check_n_features_in", "check_transformer_general"}


@pytest.mark.parametrize(
    "check",
    [
        c
        for _, c in estimator_checks_generator(TableCleaner())
        if c.func.__name__ in _SOME
    ],
    ids=lambda c: c.func.__name__,
)
def test_a_few_of_their_checks(check):
    check(TableCleaner())


def test_a_frame_in_a_pipeline():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"size": rng.standard_normal(90), "kind": list("abc") * 30})
    y = (frame["size"] > 0).to_numpy()
    frame.loc[::7, "size"] = np.nan
    model = make_pipeline(TableCleaner(indicator=True), LogisticRegression())
    assert model.fit(frame, y).score(frame, y) > 0.8
    names = model[:-1].get_feature_names_out().tolist()
    assert names == ["size", "kind=a", "kind=b", "kind=c", "size (missing)"]
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["kind", "size"]].rename(columns={"size": "length"}))


def test_it_is_the_cleaner():
    x = np.asarray([[1.0, np.nan], [2.0, 5.0], [4.0, 6.0]])
    ours = TableCleaner(scale="robust", impute="median").fit(x)
    cleaner = clean.fit(x, scale="robust", impute="median")
    expected = clean.apply(cleaner, x.astype(np.float32))
    np.testing.assert_allclose(ours.transform(x), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="2 features"):
        ours.transform(x[:, :1])
