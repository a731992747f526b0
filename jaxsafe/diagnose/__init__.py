"""Diagnosis: a function that went non-finite goes in, a `Finding` comes out.

And before it does: `watch` for the trend, `tap` for activations, `profile` for formats.

Reads programs through `jaxsafe._program`; hands findings to `guard` and `report`.
"""

from jaxsafe._causes import CAUSES as CAUSES
from jaxsafe._causes import Cause as Cause
from jaxsafe.diagnose._attribute import Attribution as Attribution
from jaxsafe.diagnose._attribute import Trial as Trial
from jaxsafe.diagnose._attribute import attribute as attribute
from jaxsafe.diagnose._bundle import Output as Output
from jaxsafe.diagnose._bundle import save_bundle as save_bundle
from jaxsafe.diagnose._cross_check import CrossCheck as CrossCheck
from jaxsafe.diagnose._cross_check import cross_check as cross_check
from jaxsafe.diagnose._diagnose import first_nonfinite as first_nonfinite
from jaxsafe.diagnose._finding import Finding as Finding
from jaxsafe.diagnose._finding import Stats as Stats
from jaxsafe.diagnose._headroom import Headroom as Headroom
from jaxsafe.diagnose._headroom import LeafHeadroom as LeafHeadroom
from jaxsafe.diagnose._profile import profile as profile
from jaxsafe.diagnose._replay import Replay as Replay
from jaxsafe.diagnose._replay import replay as replay
from jaxsafe.diagnose._table import Profile as Profile
from jaxsafe.diagnose._table import Range as Range
from jaxsafe.diagnose._tap import TapInfo as TapInfo
from jaxsafe.diagnose._tap import collect_taps as collect_taps
from jaxsafe.diagnose._tap import tap as tap
from jaxsafe.diagnose._watch import WatchState as WatchState
from jaxsafe.diagnose._watch import headroom as headroom
from jaxsafe.diagnose._watch import init_watch as init_watch
from jaxsafe.diagnose._watch import watch as watch

__all__ = [
    "CAUSES",
    "Attribution",
    "Cause",
    "CrossCheck",
    "Finding",
    "Headroom",
    "LeafHeadroom",
    "Output",
    "Profile",
    "Range",
    "Replay",
    "Stats",
    "TapInfo",
    "Trial",
    "WatchState",
    "attribute",
    "collect_taps",
    "cross_check",
    "first_nonfinite",
    "headroom",
    "init_watch",
    "profile",
    "replay",
    "save_bundle",
    "tap",
    "watch",
]
