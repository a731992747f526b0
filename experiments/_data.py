"""Real data that ships inside packages: penguins, digits; and three cities."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from palmerpenguins import load_penguins
from sklearn.datasets import load_digits

SPECIES = ("Adelie", "Chinstrap", "Gentoo")
MEASUREMENTS = ["bill_length_mm", "bill_depth_mm", "flipper_length_mm", "body_mass_g"]


class Split(NamedTuple):
    """Inputs and labels for training and for the test.

    Attributes:
      x_train: rows to train on.
      y_train: int32 labels.
      x_test: rows to judge by.
      y_test: int32 labels.
    """

    x_train: Any
    y_train: np.ndarray
    x_test: Any
    y_test: np.ndarray


def penguins(columns: list[str] | None = None) -> Split:
    """Palmer penguins: tell the species. 344 rows, 19 cells of them are missing.

    Source: Gorman, Williams, Fraser, PLoS ONE 9(3): e90081, 2014; CC0.
    """
    table = load_penguins()
    labels = table["species"].map(SPECIES.index).to_numpy(np.int32)
    table = table[columns or ["island", *MEASUREMENTS, "sex"]]
    train, test = _shuffled(len(table))
    return Split(table.iloc[train], labels[train], table.iloc[test], labels[test])


def digits(*, brightest: float = 16.0) -> Split:
    """Handwritten digits: 1,797 images of 8 x 8 pixels, shades from 0 to `brightest`.

    Images usually come with 8 bits, 0 to 255; forgetting to scale them down is what
    makes scores large.
    """
    data = load_digits()
    x = (data.data * (brightest / 16.0)).astype(np.float32)
    y = data.target.astype(np.int32)
    train, test = _shuffled(len(x))
    return Split(x[train], y[train], x[test], y[test])


def as_numbers(table: pd.DataFrame) -> np.ndarray:
    """What a notebook does: categories to codes, the holes left in."""
    columns = []
    for name in table.columns:
        values = table[name]
        if values.dtype.kind != "f":
            codes = values.astype("category").cat.codes.astype(np.float32)
            values = codes.where(values.notna())
        columns.append(values.to_numpy(np.float32))
    return np.stack(columns, axis=1)


def cities() -> pd.DataFrame:
    """Three rows, of which the second and third poison every sum."""
    return pd.DataFrame(
        {
            "city": ["London", "Venice", "Prague"],
            "rain": [2.5, np.nan, 4.6],
            "wind": [7.9, 8.9, np.nan],
        }
    )


def batches(
    x: np.ndarray, y: np.ndarray, *, steps: int, size: int = 64, seed: int = 0
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`steps` random batches of `size` rows; the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        rows = rng.choice(len(x), size, replace=False)
        yield x[rows], y[rows]


def _shuffled(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers for training (four fifths) and for the test."""
    order = np.random.default_rng(0).permutation(count)
    cut = count * 4 // 5
    return order[:cut], order[cut:]
