"""Cross entropy for JAX: accurate on every row, complete, lean, and a good fit for JAX."""

from jxent import torch_compat as torch_compat
from jxent.class_weights import balanced_class_weights as balanced_class_weights
from jxent.class_weights import class_counts as class_counts
from jxent.class_weights import effective_number_weights as effective_number_weights
from jxent.class_weights import log_prior_adjustment as log_prior_adjustment
from jxent.distillation import linear_softmax_distillation as linear_softmax_distillation
from jxent.distillation import softmax_distillation as softmax_distillation
from jxent.labels import SparseLabels as SparseLabels
from jxent.labels import check_labels as check_labels
from jxent.linear import linear_softmax_cross_entropy as linear_softmax_cross_entropy
from jxent.log_probs import LogProbs as LogProbs
from jxent.log_probs import linear_softmax_log_probs as linear_softmax_log_probs
from jxent.log_probs import linear_softmax_loss as linear_softmax_loss
from jxent.log_probs import softmax_log_probs as softmax_log_probs
from jxent.probs import binary_cross_entropy_from_probs as binary_cross_entropy_from_probs
from jxent.probs import cross_entropy_from_log_probs as cross_entropy_from_log_probs
from jxent.probs import cross_entropy_from_probs as cross_entropy_from_probs
from jxent.reduction import Mean as Mean
from jxent.reduction import weighted_mean as weighted_mean
from jxent.sigmoid import sigmoid_binary_cross_entropy as sigmoid_binary_cross_entropy
from jxent.sigmoid import sigmoid_focal_loss as sigmoid_focal_loss
from jxent.softmax import CrossEntropyAux as CrossEntropyAux
from jxent.softmax import poly1_cross_entropy as poly1_cross_entropy
from jxent.softmax import softmax_cross_entropy as softmax_cross_entropy
from jxent.softmax import softmax_focal_loss as softmax_focal_loss

__version__ = "0.2.0"
