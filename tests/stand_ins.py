"""What Keras 3 and torchvision document of their losses, in float64 NumPy and under their names."""

from functools import partial
from types import SimpleNamespace

import numpy as np

EPSILON = 1e-7  # keras.config.epsilon()


def _log_softmax(x, axis):
    x = x - x.max(axis, keepdims=True)
    return x - np.log(np.exp(x).sum(axis, keepdims=True))


def _log_probs(y_pred, from_logits, axis=-1):
    if from_logits:
        return _log_softmax(y_pred, axis)
    return np.log(np.clip(y_pred / y_pred.sum(axis, keepdims=True), EPSILON, 1 - EPSILON))


def _sparse_categorical(y_true, y_pred, *, from_logits=False, ignore_class=None):
    """Losses, and which of them count."""
    counted = np.ones(y_true.shape, bool) if ignore_class is None else y_true != ignore_class
    one_hot = np.eye(y_pred.shape[-1])[np.where(counted, y_true, 0)]
    return np.where(counted, -(one_hot * _log_probs(y_pred, from_logits)).sum(-1), 0), counted


def _categorical(y_true, y_pred, *, from_logits=False, label_smoothing=0.0):
    y_true = y_true * (1 - label_smoothing) + label_smoothing / y_true.shape[-1]
    losses = -(y_true * _log_probs(y_pred, from_logits)).sum(-1)
    return losses, np.ones(losses.shape, bool)


def _binary_elements(y_true, y_pred, from_logits):
    if from_logits:
        return y_true * np.logaddexp(0, -y_pred) + (1 - y_true) * np.logaddexp(0, y_pred)
    p = np.clip(y_pred, EPSILON, 1 - EPSILON)
    return -(y_true * np.log(p) + (1 - y_true) * np.log(1 - p))


def _binary(y_true, y_pred, *, from_logits=False, label_smoothing=0.0):
    y_true = y_true * (1 - label_smoothing) + label_smoothing / 2
    losses = _binary_elements(y_true, y_pred, from_logits).mean(-1)
    return losses, np.ones(losses.shape, bool)


def _binary_focal(y_true, y_pred, *, apply_class_balancing=False, alpha=0.25, gamma=2.0, from_logits=False):
    p = 1 / (1 + np.exp(-y_pred)) if from_logits else y_pred
    p_true = y_true * p + (1 - y_true) * (1 - p)
    losses = (1 - p_true) ** gamma * _binary_elements(y_true, p, False)
    if apply_class_balancing:
        losses = losses * (y_true * alpha + (1 - y_true) * (1 - alpha))
    losses = losses.mean(-1)
    return losses, np.ones(losses.shape, bool)


def _categorical_focal(y_true, y_pred, *, alpha=0.25, gamma=2.0, from_logits=False):
    log_p = _log_probs(y_pred, from_logits)
    losses = -(alpha * (1 - np.exp(log_p)) ** gamma * y_true * log_p).sum(-1)
    return losses, np.ones(losses.shape, bool)


class _KerasLoss:
    """One function: rows, then `reduction`, which by default divides by the number of unmasked rows."""

    def __init__(self, function, *, reduction="sum_over_batch_size", **options):
        self.function, self.reduction, self.options = function, reduction, options

    def __call__(self, y_true, y_pred, sample_weight=None):
        losses, counted = self.function(y_true, y_pred, **self.options)
        weight = counted * (1 if sample_weight is None else sample_weight)
        if self.reduction is None:
            return weight * losses
        divisor = {"sum_over_batch_size": counted.sum(), "mean_with_sample_weight": weight.sum(), "sum": 1}
        return (weight * losses).sum() / divisor[self.reduction]


keras = SimpleNamespace(
    losses=SimpleNamespace(
        SparseCategoricalCrossentropy=partial(_KerasLoss, _sparse_categorical),
        CategoricalCrossentropy=partial(_KerasLoss, _categorical),
        BinaryCrossentropy=partial(_KerasLoss, _binary),
        BinaryFocalCrossentropy=partial(_KerasLoss, _binary_focal),
        CategoricalFocalCrossentropy=partial(_KerasLoss, _categorical_focal),
    )
)


def _sigmoid_focal_loss(inputs, targets, alpha=0.25, gamma=2, reduction="none"):
    p = 1 / (1 + np.exp(-inputs))
    p_true = p * targets + (1 - p) * (1 - targets)
    losses = (1 - p_true) ** gamma * _binary_elements(targets, inputs, True)
    losses = losses if alpha < 0 else (alpha * targets + (1 - alpha) * (1 - targets)) * losses
    return {"none": losses, "sum": losses.sum(), "mean": losses.mean()}[reduction]


torchvision = SimpleNamespace(ops=SimpleNamespace(sigmoid_focal_loss=_sigmoid_focal_loss))
