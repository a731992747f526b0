"""An audit as a section of a page: the table, a small histogram in each row."""

from jaxsafe.clean import Audit
from jaxsafe.report._blocks import Section, Table, Text


def audit(record: Audit, *, title: str = "Data") -> Section:
    """A section of `report.page` from what `clean.audit` found.

    Args:
      record: of one batch, or the sum of several.
      title: heading of the section.

    Returns:
      A `Section` with one row per column; the histogram of a numeric column spans the
      fitted mean -+ 4 deviations, or its own ends without a cleaner.

    Raises:
      ValueError: an empty title.

    >>> import numpy as np
    >>> from jaxsafe import clean, report
    >>> found = clean.audit(np.array([[1.0, np.nan], [2.0, 3.0]]))
    >>> len(report.audit(found).blocks[1].rows)
    2
    """
    headers = (
        "column",
        "histogram",
        "missing",
        "infinite",
        "sentinel",
        "unseen",
        "forbidden",
        "outside",
        "shift",
        "spread",
    )
    rows = [
        (
            column.name,
            f"{column.sparkline} constant" if column.constant else column.sparkline,
            column.missing,
            column.positive_infinite + column.negative_infinite,
            column.sentinel,
            column.unseen,
            column.forbidden,
            column.out_of_range,
            round(column.shift, 3) + 0.0,  # no minus in front of a 0
            round(column.spread, 3),
        )
        for column in record.columns
    ]
    said = (
        f"{record!r}. Outside: out of the allowed range. Shift is the distance of the "
        "mean from the fitted one in fitted deviations, spread the deviation as a "
        "multiple of the fitted one."
    )
    return Section(title, [Text(said), Table(headers, rows)])
