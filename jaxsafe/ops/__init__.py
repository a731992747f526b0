"""Safe primitives: an array goes in, an array of the same dtype comes out.

Each is equal to its jax.numpy / jax.nn twin wherever that one is right, and finite
with finite derivatives where it is not; `losses` and `layers` are built on them.
"""

from jaxsafe.ops._log import log as log
from jaxsafe.ops._norm import norm as norm
from jaxsafe.ops._power import divide as divide
from jaxsafe.ops._power import sqrt as sqrt
from jaxsafe.ops._sigmoid import log_sigmoid as log_sigmoid
from jaxsafe.ops._sigmoid import sigmoid as sigmoid
from jaxsafe.ops._sigmoid import softplus as softplus
from jaxsafe.ops._softmax import log_softmax as log_softmax
from jaxsafe.ops._softmax import logsumexp as logsumexp
from jaxsafe.ops._softmax import softmax as softmax

__all__ = [
    "divide",
    "log",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "norm",
    "sigmoid",
    "softmax",
    "softplus",
    "sqrt",
]
