"""Updates in, the next state out: a training step is a transaction.

It commits only if everything in it is finite. `run` drives it on the host and hands the
steps it rejected to `jaxsafe.diagnose`. Adapters: `guard.nnx`, `guard.linen`.
"""

from jaxsafe._tree import select as select
from jaxsafe.guard._apply import apply_gradients as apply_gradients
from jaxsafe.guard._checkpoint import Checkpoints as Checkpoints
from jaxsafe.guard._ledger import Ledger as Ledger
from jaxsafe.guard._policy import Policy as Policy
from jaxsafe.guard._run import Event as Event
from jaxsafe.guard._run import Halted as Halted
from jaxsafe.guard._run import run as run
from jaxsafe.guard._transaction import Guarded as Guarded
from jaxsafe.guard._transaction import Transaction as Transaction
from jaxsafe.guard._transaction import transaction as transaction

__all__ = [
    "Checkpoints",
    "Event",
    "Guarded",
    "Halted",
    "Ledger",
    "Policy",
    "Transaction",
    "apply_gradients",
    "run",
    "select",
    "transaction",
]
