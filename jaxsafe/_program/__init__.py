"""Programs as data: a Python function goes in, its graph of values comes out.

The one place that knows the internals of JAX; hands graphs and observed runs to
`jaxsafe.diagnose`.
"""

from jaxsafe._program._adapter import is_floating as is_floating
from jaxsafe._program._adapter import literal_kind as literal_kind
from jaxsafe._program._export import NotPortable as NotPortable
from jaxsafe._program._export import RawArray as RawArray
from jaxsafe._program._export import export as export
from jaxsafe._program._export import from_raw as from_raw
from jaxsafe._program._export import raw as raw
from jaxsafe._program._export import run_exported as run_exported
from jaxsafe._program._graph import Apply as Apply
from jaxsafe._program._graph import Branch as Branch
from jaxsafe._program._graph import Loop as Loop
from jaxsafe._program._graph import Node as Node
from jaxsafe._program._graph import Program as Program
from jaxsafe._program._graph import Shards as Shards
from jaxsafe._program._graph import Site as Site
from jaxsafe._program._graph import walk as walk
from jaxsafe._program._magnitude import INFINITY_BITS as INFINITY_BITS
from jaxsafe._program._magnitude import Magnitude as Magnitude
from jaxsafe._program._magnitude import Magnitudes as Magnitudes
from jaxsafe._program._magnitude import copied as copied
from jaxsafe._program._magnitude import peak as peak
from jaxsafe._program._marks import Marked as Marked
from jaxsafe._program._marks import mark as mark
from jaxsafe._program._marks import mark_of as mark_of
from jaxsafe._program._marks import trace_marked as trace_marked
from jaxsafe._program._observe import depth as depth
from jaxsafe._program._observe import evaluate as evaluate
from jaxsafe._program._observe import observe as observe
from jaxsafe._program._source import NOWHERE as NOWHERE
from jaxsafe._program._source import Frame as Frame
from jaxsafe._program._source import of_function as of_function
from jaxsafe._program._trace import Traced as Traced
from jaxsafe._program._trace import trace as trace

__all__ = [
    "INFINITY_BITS",
    "NOWHERE",
    "Apply",
    "Branch",
    "Frame",
    "Loop",
    "Magnitude",
    "Magnitudes",
    "Marked",
    "Node",
    "NotPortable",
    "Program",
    "RawArray",
    "Shards",
    "Site",
    "Traced",
    "copied",
    "depth",
    "evaluate",
    "export",
    "from_raw",
    "is_floating",
    "literal_kind",
    "mark",
    "mark_of",
    "observe",
    "of_function",
    "peak",
    "raw",
    "run_exported",
    "trace",
    "trace_marked",
    "walk",
]
