"""Thirty NaN and Inf reports from public bug trackers, as runnable cases.

Formula and triggering numbers come from the cited thread, the code was written afresh.
`CASES` has them all; `base.Case` explains the fields.
"""

from tests.cases.base import Case as Case
from tests.cases.models import CASES as _MODELS
from tests.cases.numerics import CASES as _NUMERICS

CASES: tuple[Case, ...] = (*_MODELS, *_NUMERICS)

__all__ = ["CASES", "Case"]
