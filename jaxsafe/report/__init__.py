"""Records go in, text for a terminal or one self-contained HTML page comes out.

The last room of the house: it reads findings and curves, and hands them to people.
"""

from jaxsafe.report._audit import audit as audit
from jaxsafe.report._blocks import Block as Block
from jaxsafe.report._blocks import Plot as Plot
from jaxsafe.report._blocks import Pre as Pre
from jaxsafe.report._blocks import Section as Section
from jaxsafe.report._blocks import Series as Series
from jaxsafe.report._blocks import Table as Table
from jaxsafe.report._blocks import Text as Text
from jaxsafe.report._page import page as page
from jaxsafe.report._page import write as write
from jaxsafe.report._selftest import Check as Check
from jaxsafe.report._selftest import Selftest as Selftest
from jaxsafe.report._selftest import selftest as selftest
from jaxsafe.report._show import show as show

__all__ = [
    "Block",
    "Check",
    "Plot",
    "Pre",
    "Section",
    "Selftest",
    "Series",
    "Table",
    "Text",
    "audit",
    "page",
    "selftest",
    "show",
    "write",
]
