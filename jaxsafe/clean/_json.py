"""A cleaner as JSON text and back, bit by bit.

A float32 is written as the shortest decimal that reads back as itself; counts, which
are mostly 0, as pairs of place and count.
"""

import dataclasses
import json
from typing import Any

import jax.numpy as jnp

from jaxsafe._errors import error
from jaxsafe.clean._cleaner import Cleaner, Column
from jaxsafe.clean._options import Options
from jaxsafe.clean._sketch import BUCKETS, Frequent, Sketch

_VERSION = 1
_STATIC = ("columns", "options", "sketch", "frequent")


def from_json(text: str) -> Cleaner:
    """Read a cleaner that `cleaner.to_json()` wrote; every array bit by bit the same.

    Args:
      text: the JSON text.

    Returns:
      A `Cleaner`.

    Raises:
      ValueError: the text is not that of a cleaner.

    >>> import numpy as np
    >>> from jaxsafe import clean
    >>> cleaner = clean.fit(np.array([[1.0], [3.0]]))
    >>> clean.from_json(cleaner.to_json()).mean
    Array([2.], dtype=float32)
    """
    try:
        content = json.loads(text)
        if content["version"] != _VERSION:
            raise KeyError(f"version {content['version']}")
        return _read(content)
    except (ValueError, TypeError, KeyError, AttributeError) as wrong:
        raise error(
            ValueError,
            "clean.from_json",
            "the text is no cleaner",
            repr(wrong),
            "Pass what cleaner.to_json() returned.",
        ) from wrong


def write(cleaner: Cleaner) -> str:
    """The text that `from_json` reads."""
    import numpy as np

    names = [f.name for f in dataclasses.fields(cleaner) if f.name not in _STATIC]
    arrays = {name: np.asarray(getattr(cleaner, name)).tolist() for name in names}
    content = {
        "version": _VERSION,
        "columns": [dataclasses.asdict(column) for column in cleaner.columns],
        "options": dataclasses.asdict(cleaner.options),
        "arrays": arrays,
        "sketch": _sparse(cleaner.sketch),
        "frequent": _sparse(cleaner.frequent),
    }
    return json.dumps(content, allow_nan=False)


def _sparse(counts: Any) -> Any:
    """[one value or list per column, [places, counts] per column]."""
    import numpy as np

    if counts is None:
        return None
    first, rows = (np.asarray(part) for part in counts)
    places = [np.flatnonzero(row) for row in rows]
    pairs = [[p.tolist(), row[p].tolist()] for p, row in zip(places, rows, strict=True)]
    return [first.tolist(), pairs]


def _dense(kind: Any, content: Any, width: int) -> Any:
    import numpy as np

    if content is None:
        return None
    first, pairs = content
    counts = np.zeros((len(pairs), width), np.int32)
    for row, (places, values) in zip(counts, pairs, strict=True):
        row[places] = values
    shape = (len(pairs),) if kind is Sketch else (len(pairs), width)
    return kind(jnp.asarray(np.asarray(first, np.float32).reshape(shape)),
                jnp.asarray(counts))  # fmt: skip


def _read(content: Any) -> Cleaner:
    import numpy as np

    from jaxsafe.clean._sketch import MOST

    arrays = {
        name: jnp.asarray(np.asarray(x, np.int32 if name == "count" else np.float32))
        for name, x in content["arrays"].items()
    }
    columns = tuple(
        Column(**{**column, "categories": tuple(column["categories"])})
        for column in content["columns"]
    )
    return Cleaner(
        **arrays,
        sketch=_dense(Sketch, content["sketch"], BUCKETS),
        frequent=_dense(Frequent, content["frequent"], MOST),
        columns=columns,
        options=Options(**{k: _tuples(v) for k, v in content["options"].items()}),
    )


def _tuples(value: Any) -> Any:
    """JSON knows lists only; options are hashable."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
