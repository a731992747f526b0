"""Gradients in, updates out: optax transformations that keep training finite.

Chain them like any other optax transformation. They hand on to `jaxsafe.guard`, which
makes the whole step a transaction.
"""

from jaxsafe.transforms._clip import ClipByGlobalNormState as ClipByGlobalNormState
from jaxsafe.transforms._clip import clip_by_global_norm as clip_by_global_norm
from jaxsafe.transforms._control import ControlState as ControlState
from jaxsafe.transforms._control import History as History
from jaxsafe.transforms._control import init_control as init_control
from jaxsafe.transforms._control import raise_if_halted as raise_if_halted
from jaxsafe.transforms._guarded import GuardedState as GuardedState
from jaxsafe.transforms._guarded import guarded as guarded
from jaxsafe.transforms._rate import AdaptLearningRateState as AdaptLearningRateState
from jaxsafe.transforms._rate import adapt_learning_rate as adapt_learning_rate

__all__ = [
    "AdaptLearningRateState",
    "ClipByGlobalNormState",
    "ControlState",
    "GuardedState",
    "History",
    "adapt_learning_rate",
    "clip_by_global_norm",
    "guarded",
    "init_control",
    "raise_if_halted",
]
