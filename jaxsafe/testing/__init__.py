"""Fault injection for your own tests: does your training step survive this?

    fault = testing.fault("nan", place="gradients", step=7)
    grads = testing.inject(fault, grads, place="gradients", step=step)

A fault is a handful of integers, so that it can be traced: thousands of them, drawn by
`random_fault`, run in one compiled program.
"""

from jaxsafe.testing._fault import FAULT_KINDS as FAULT_KINDS
from jaxsafe.testing._fault import FAULT_PLACES as FAULT_PLACES
from jaxsafe.testing._fault import Fault as Fault
from jaxsafe.testing._fault import fault as fault
from jaxsafe.testing._fault import random_fault as random_fault
from jaxsafe.testing._inject import faulty as faulty
from jaxsafe.testing._inject import inject as inject

__all__ = [
    "FAULT_KINDS",
    "FAULT_PLACES",
    "Fault",
    "fault",
    "faulty",
    "inject",
    "random_fault",
]
