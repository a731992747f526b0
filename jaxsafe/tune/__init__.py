"""The rate that trains: a range test, a search, and advice from a run's telemetry.

It stands beside the report: it reads what runs leave behind, and runs what it is given.
"""

from jaxsafe.tune._advise import advise as advise
from jaxsafe.tune._curve import RangeTest as RangeTest
from jaxsafe.tune._curve import RatePoint as RatePoint
from jaxsafe.tune._hint import Advice as Advice
from jaxsafe.tune._hint import Hint as Hint
from jaxsafe.tune._range import lr_range_test as lr_range_test
from jaxsafe.tune._search import search as search
from jaxsafe.tune._sharpness import Sharpness as Sharpness
from jaxsafe.tune._sharpness import sharpness as sharpness
from jaxsafe.tune._space import Settings as Settings
from jaxsafe.tune._space import Space as Space
from jaxsafe.tune._study import Search as Search
from jaxsafe.tune._study import Trial as Trial

__all__ = [
    "Advice",
    "Hint",
    "RangeTest",
    "RatePoint",
    "Search",
    "Settings",
    "Sharpness",
    "Space",
    "Trial",
    "advise",
    "lr_range_test",
    "search",
    "sharpness",
]
