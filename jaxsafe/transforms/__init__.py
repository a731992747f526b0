"""Gradients in, updates out: optax transformations that keep training finite.

Chain them like any other optax transformation. They hand on to `jaxsafe.guard`, which
makes the whole step a transaction.
"""

from jaxsafe.transforms._accumulate import AccumulateState as AccumulateState
from jaxsafe.transforms._accumulate import accumulate as accumulate
from jaxsafe.transforms._adaptive_grad_clip import (
    AdaptiveGradClipState as AdaptiveGradClipState,
)
from jaxsafe.transforms._adaptive_grad_clip import (
    adaptive_grad_clip as adaptive_grad_clip,
)
from jaxsafe.transforms._clip import ClipByGlobalNormState as ClipByGlobalNormState
from jaxsafe.transforms._clip import ClipState as ClipState
from jaxsafe.transforms._clip import clip as clip
from jaxsafe.transforms._clip import clip_by_global_norm as clip_by_global_norm
from jaxsafe.transforms._clip_blocks import ClipByBlockNormState as ClipByBlockNormState
from jaxsafe.transforms._clip_blocks import clip_by_block_norm as clip_by_block_norm
from jaxsafe.transforms._control import raise_if_halted as raise_if_halted
from jaxsafe.transforms._finite import NonfiniteReport as NonfiniteReport
from jaxsafe.transforms._finite import SkipNonfiniteState as SkipNonfiniteState
from jaxsafe.transforms._finite import ZeroNonfiniteState as ZeroNonfiniteState
from jaxsafe.transforms._finite import nonfinite_report as nonfinite_report
from jaxsafe.transforms._finite import skip_nonfinite as skip_nonfinite
from jaxsafe.transforms._finite import zero_nonfinite as zero_nonfinite
from jaxsafe.transforms._guarded import GuardedState as GuardedState
from jaxsafe.transforms._guarded import guarded as guarded
from jaxsafe.transforms._heal import StateAudit as StateAudit
from jaxsafe.transforms._heal import audit_state as audit_state
from jaxsafe.transforms._heal import heal_state as heal_state
from jaxsafe.transforms._loss_scale import (
    DynamicLossScaleState as DynamicLossScaleState,
)
from jaxsafe.transforms._loss_scale import dynamic_loss_scale as dynamic_loss_scale
from jaxsafe.transforms._loss_scale import value_and_grad as value_and_grad
from jaxsafe.transforms._per_example import PerExampleClipState as PerExampleClipState
from jaxsafe.transforms._per_example import per_example_clip as per_example_clip
from jaxsafe.transforms._precision import in_float32 as in_float32
from jaxsafe.transforms._rate import AdaptLearningRateState as AdaptLearningRateState
from jaxsafe.transforms._rate import adapt_learning_rate as adapt_learning_rate
from jaxsafe.transforms._spikes import ClipSpikesState as ClipSpikesState
from jaxsafe.transforms._spikes import clip_spikes as clip_spikes
from jaxsafe.transforms._state import ControlState as ControlState
from jaxsafe.transforms._state import History as History
from jaxsafe.transforms._state import init_control as init_control
from jaxsafe.transforms._telemetry import TelemetryState as TelemetryState
from jaxsafe.transforms._telemetry import read_history as read_history
from jaxsafe.transforms._telemetry import telemetry as telemetry

__all__ = [
    "AccumulateState",
    "AdaptLearningRateState",
    "AdaptiveGradClipState",
    "ClipByBlockNormState",
    "ClipByGlobalNormState",
    "ClipSpikesState",
    "ClipState",
    "ControlState",
    "DynamicLossScaleState",
    "GuardedState",
    "History",
    "NonfiniteReport",
    "PerExampleClipState",
    "SkipNonfiniteState",
    "StateAudit",
    "TelemetryState",
    "ZeroNonfiniteState",
    "accumulate",
    "adapt_learning_rate",
    "adaptive_grad_clip",
    "audit_state",
    "clip",
    "clip_by_block_norm",
    "clip_by_global_norm",
    "clip_spikes",
    "dynamic_loss_scale",
    "guarded",
    "heal_state",
    "in_float32",
    "init_control",
    "nonfinite_report",
    "per_example_clip",
    "raise_if_halted",
    "read_history",
    "skip_nonfinite",
    "telemetry",
    "value_and_grad",
    "zero_nonfinite",
]
