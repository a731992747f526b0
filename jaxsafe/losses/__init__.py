"""Losses: predictions and labels go in, one loss per example comes out, unreduced.

optax's names and argument order; finite, accurate and with a live gradient for every
confident prediction. The gradients go on to `transforms`.
"""

from jaxsafe.losses._bound import bound as bound
from jaxsafe.losses._cross_entropy import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,  # noqa: E501
)
from jaxsafe.losses._pointwise import huber_loss as huber_loss
from jaxsafe.losses._pointwise import (
    sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy,
)

__all__ = [
    "bound",
    "huber_loss",
    "sigmoid_binary_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
]
