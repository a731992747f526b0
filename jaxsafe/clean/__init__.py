"""Raw data in, finite and comparable numbers out, before the first step sees them.

Goes in: arrays, data frames, columns. Comes out: a batch without holes, for `layers`.
"""

from jaxsafe.clean._apply import apply as apply
from jaxsafe.clean._audit import Audit as Audit
from jaxsafe.clean._audit import ColumnAudit as ColumnAudit
from jaxsafe.clean._audit import audit as audit
from jaxsafe.clean._cleaner import Cleaner as Cleaner
from jaxsafe.clean._encode import encode as encode
from jaxsafe.clean._fit import fit as fit
from jaxsafe.clean._gate import Gated as Gated
from jaxsafe.clean._gate import gate as gate
from jaxsafe.clean._gate import note as note
from jaxsafe.clean._json import from_json as from_json
from jaxsafe.clean._merge import merge as merge
from jaxsafe.clean._stream import Statistics as Statistics
from jaxsafe.clean._stream import finish as finish
from jaxsafe.clean._stream import merge_statistics as merge_statistics
from jaxsafe.clean._stream import start as start
from jaxsafe.clean._stream import update as update

__all__ = [
    "Audit",
    "Cleaner",
    "ColumnAudit",
    "Gated",
    "Statistics",
    "apply",
    "audit",
    "encode",
    "finish",
    "fit",
    "from_json",
    "gate",
    "merge",
    "merge_statistics",
    "note",
    "start",
    "update",
]
