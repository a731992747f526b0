"""Losses: predictions and labels go in, one loss per example comes out, unreduced.

optax's names and argument order; finite, accurate and with a live gradient for every
confident prediction. The gradients go on to `transforms`.
"""

from jaxsafe.losses._bound import bound as bound
from jaxsafe.losses._contrastive import info_nce as info_nce
from jaxsafe.losses._contrastive import ntxent as ntxent
from jaxsafe.losses._cosine import cosine_distance as cosine_distance
from jaxsafe.losses._cosine import cosine_similarity as cosine_similarity
from jaxsafe.losses._cross_entropy import (
    softmax_cross_entropy_with_integer_labels as softmax_cross_entropy_with_integer_labels,  # noqa: E501
)
from jaxsafe.losses._ctc import ctc_loss as ctc_loss
from jaxsafe.losses._ctc import (
    ctc_loss_with_forward_probs as ctc_loss_with_forward_probs,
)
from jaxsafe.losses._divergence import convex_kl_divergence as convex_kl_divergence
from jaxsafe.losses._divergence import (
    generalized_kl_divergence as generalized_kl_divergence,
)
from jaxsafe.losses._divergence import kl_divergence as kl_divergence
from jaxsafe.losses._divergence import (
    kl_divergence_with_log_targets as kl_divergence_with_log_targets,
)
from jaxsafe.losses._fenchel_young import (
    make_fenchel_young_loss as make_fenchel_young_loss,
)
from jaxsafe.losses._focal import poly_loss_cross_entropy as poly_loss_cross_entropy
from jaxsafe.losses._focal import sigmoid_focal_loss as sigmoid_focal_loss
from jaxsafe.losses._hinge import hinge_loss as hinge_loss
from jaxsafe.losses._hinge import multiclass_hinge_loss as multiclass_hinge_loss
from jaxsafe.losses._hinge import (
    multiclass_perceptron_loss as multiclass_perceptron_loss,
)
from jaxsafe.losses._hinge import perceptron_loss as perceptron_loss
from jaxsafe.losses._likelihood import gaussian_nll_loss as gaussian_nll_loss
from jaxsafe.losses._likelihood import poisson_nll_loss as poisson_nll_loss
from jaxsafe.losses._likelihood import student_t_nll_loss as student_t_nll_loss
from jaxsafe.losses._linear_cross_entropy import (
    linear_softmax_cross_entropy as linear_softmax_cross_entropy,
)
from jaxsafe.losses._linear_cross_entropy_mean import (
    linear_softmax_cross_entropy_mean as linear_softmax_cross_entropy_mean,
)
from jaxsafe.losses._mean import masked_mean as masked_mean
from jaxsafe.losses._pointwise import huber_loss as huber_loss
from jaxsafe.losses._pointwise import (
    sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy,
)
from jaxsafe.losses._ranking import ranking_softmax_loss as ranking_softmax_loss
from jaxsafe.losses._regression import l2_loss as l2_loss
from jaxsafe.losses._regression import log_cosh as log_cosh
from jaxsafe.losses._regression import squared_error as squared_error
from jaxsafe.losses._segmentation import binary_dice_loss as binary_dice_loss
from jaxsafe.losses._segmentation import dice_loss as dice_loss
from jaxsafe.losses._segmentation import (
    multiclass_generalized_dice_loss as multiclass_generalized_dice_loss,
)
from jaxsafe.losses._smoothing import smooth_labels as smooth_labels
from jaxsafe.losses._soft_cross_entropy import (
    safe_softmax_cross_entropy as safe_softmax_cross_entropy,
)
from jaxsafe.losses._soft_cross_entropy import (
    softmax_cross_entropy as softmax_cross_entropy,
)
from jaxsafe.losses._sparsemax import (
    multiclass_sparsemax_loss as multiclass_sparsemax_loss,
)
from jaxsafe.losses._sparsemax import sparsemax_loss as sparsemax_loss
from jaxsafe.losses._triplet import triplet_margin_loss as triplet_margin_loss

__all__ = [
    "binary_dice_loss",
    "bound",
    "convex_kl_divergence",
    "cosine_distance",
    "cosine_similarity",
    "ctc_loss",
    "ctc_loss_with_forward_probs",
    "dice_loss",
    "gaussian_nll_loss",
    "generalized_kl_divergence",
    "hinge_loss",
    "huber_loss",
    "info_nce",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "l2_loss",
    "linear_softmax_cross_entropy",
    "linear_softmax_cross_entropy_mean",
    "log_cosh",
    "make_fenchel_young_loss",
    "masked_mean",
    "multiclass_generalized_dice_loss",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
    "ntxent",
    "perceptron_loss",
    "poisson_nll_loss",
    "poly_loss_cross_entropy",
    "ranking_softmax_loss",
    "safe_softmax_cross_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_focal_loss",
    "smooth_labels",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "sparsemax_loss",
    "squared_error",
    "student_t_nll_loss",
    "triplet_margin_loss",
]
