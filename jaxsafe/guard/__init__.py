"""Updates in, the next state out: a training step is a transaction.

It commits only if everything in it is finite. `run` drives it on the host and hands the
steps it rejected to `jaxsafe.diagnose`; `reexecute` runs one again, in other ways, to
tell the machine from the program. Adapters: `guard.nnx`, `guard.linen`.
"""

from jaxsafe._tree import select as select
from jaxsafe.guard._apply import apply_gradients as apply_gradients
from jaxsafe.guard._checkpoint import Checkpoints as Checkpoints
from jaxsafe.guard._events import Event as Event
from jaxsafe.guard._events import Halted as Halted
from jaxsafe.guard._ledger import Ledger as Ledger
from jaxsafe.guard._policy import Policy as Policy
from jaxsafe.guard._run import run as run
from jaxsafe.guard._transaction import Guarded as Guarded
from jaxsafe.guard._transaction import Transaction as Transaction
from jaxsafe.guard._transaction import transaction as transaction
from jaxsafe.guard._verdict import Rerun as Rerun
from jaxsafe.guard._verdict import Verdict as Verdict
from jaxsafe.guard._verdict import reexecute as reexecute

__all__ = [
    "Checkpoints",
    "Event",
    "Guarded",
    "Halted",
    "Ledger",
    "Policy",
    "Rerun",
    "Transaction",
    "Verdict",
    "apply_gradients",
    "reexecute",
    "run",
    "select",
    "transaction",
]
