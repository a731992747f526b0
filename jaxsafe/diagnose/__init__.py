"""Diagnosis: a function that went non-finite goes in, a `Finding` comes out.

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
from jaxsafe.diagnose._replay import Replay as Replay
from jaxsafe.diagnose._replay import replay as replay

__all__ = [
    "CAUSES",
    "Attribution",
    "Cause",
    "CrossCheck",
    "Finding",
    "Output",
    "Replay",
    "Stats",
    "Trial",
    "attribute",
    "cross_check",
    "first_nonfinite",
    "replay",
    "save_bundle",
]
