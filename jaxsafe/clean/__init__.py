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
from jaxsafe.clean._merge import merge as merge

__all__ = [
    "Audit",
    "Cleaner",
    "ColumnAudit",
    "apply",
    "audit",
    "encode",
    "fit",
    "merge",
]
