"""A fit over chunks that are read one after the other.

Moments and categories are merged chunk by chunk. Where options need quantiles, chunks
are kept while they hold no more than `KEPT` numbers together, so that the quantiles are
exact when the data fits; beyond that they are merged through their counts.
"""

from collections.abc import Callable, Iterable
from typing import Any

from jaxsafe._errors import error
from jaxsafe.clean import _frames, _merge, _table
from jaxsafe.clean._cleaner import Cleaner
from jaxsafe.clean._options import Options
from jaxsafe.clean._table import Table

KEPT = 2**26


def are_chunks(data: Any) -> bool:
    """Whether `data` is an iterator, or a list or tuple of tables."""
    if hasattr(data, "__next__"):
        return True
    return (
        isinstance(data, list | tuple) and len(data) > 0 and all(map(_is_table, data))
    )


def _is_table(data: Any) -> bool:
    return _frames.is_frame(data) or getattr(data, "ndim", 0) == 2


def fit(
    chunks: Iterable[Any],
    options: Options,
    fit_table: Callable[[Table, Options], Cleaner],
) -> Cleaner:
    """One cleaner for all chunks."""
    exact = options.quantiles == "exact" and (
        bool(options.probabilities) or "most_frequent" in options.imputes
    )
    kept: list[Table] = []
    found: Cleaner | None = None
    for chunk in chunks:
        table = _table.read("clean.fit", chunk)
        if exact:
            kept.append(table)
            if sum(t.rows * len(t.names) for t in kept) <= KEPT:
                continue
            exact = False
        for part in kept or [table]:
            new = fit_table(part, options)
            found = new if found is None else _merge.merge(found, new)
        kept = []
    if kept:
        return fit_table(_table.concatenate("clean.fit", kept), options)
    if found is None:
        raise error(
            ValueError,
            "clean.fit",
            "there are no chunks",
            "an empty iterator",
            "Pass a fresh iterator; one that was read once is empty.",
        )
    return found
