"""The losses as the textbook writes them, in float64 NumPy: slow, plain, and sharing no line with the package.

Every function returns rows and the weight of each row in a mean, before sample weights and masks; `reduce` does those.
"""

import numpy as np


def softmax_rows(logits, labels, *, class_weight=None, label_smoothing=0.0, z_loss=0.0, axis=-1):
    x = np.moveaxis(np.asarray(logits, np.float64), axis, -1)
    with np.errstate(divide="ignore"):
        row_max = x.max(-1, keepdims=True)
        log_z = row_max + np.log(np.exp(x - row_max).sum(-1, keepdims=True))
    rows, weight = log_prob_rows(
        np.moveaxis(x - log_z, -1, axis), labels, class_weight=class_weight, label_smoothing=label_smoothing, axis=axis
    )
    return rows + z_loss * log_z[..., 0] ** 2, weight


def log_prob_rows(log_probs, labels, *, class_weight=None, label_smoothing=0.0, axis=-1):
    log_p = np.moveaxis(np.asarray(log_probs, np.float64), axis, -1)
    num_classes = log_p.shape[-1]
    w = np.ones(num_classes) if class_weight is None else np.asarray(class_weight, np.float64)
    q = distributions(labels, num_classes, axis)
    live = log_p > -np.inf
    smooth = (1 - label_smoothing) * q + label_smoothing * live / live.sum(-1, keepdims=True)
    target = w * smooth
    with np.errstate(invalid="ignore"):
        terms = np.where(target == 0, 0, target * log_p)
    return -terms.sum(-1), (w * q).sum(-1)


def prob_rows(probs, labels, *, class_weight=None, label_smoothing=0.0, axis=-1):
    with np.errstate(divide="ignore"):
        log_p = np.maximum(np.log(np.asarray(probs, np.float64)), -100)
    return log_prob_rows(log_p, labels, class_weight=class_weight, label_smoothing=label_smoothing, axis=axis)


def softmax_focal_rows(logits, labels, *, gamma=2.0, class_weight=None, axis=-1):
    rows, weight = softmax_rows(logits, labels, class_weight=class_weight, axis=axis)
    return misses(logits, labels, axis=axis) ** gamma * rows, weight


def poly1_rows(logits, labels, *, epsilon=2.0, class_weight=None, label_smoothing=0.0, axis=-1):
    rows, weight = softmax_rows(logits, labels, class_weight=class_weight, label_smoothing=label_smoothing, axis=axis)
    return rows + epsilon * misses(logits, labels, label_smoothing=label_smoothing, axis=axis), weight


def misses(logits, labels, *, label_smoothing=0.0, axis=-1):
    """Σ_c q_c (1 − p_c)."""
    x = np.moveaxis(np.asarray(logits, np.float64), axis, -1)
    e = np.exp(x - x.max(-1, keepdims=True))
    p, live = e / e.sum(-1, keepdims=True), x > -np.inf
    q = (1 - label_smoothing) * distributions(labels, x.shape[-1], axis)
    q = q + label_smoothing * live / live.sum(-1, keepdims=True)
    return (q * (1 - p)).sum(-1)


def distributions(labels, num_classes, axis=-1):
    """Ids → one-hot, the class axis last; an id that is no class gives a row of zeros."""
    labels = np.asarray(labels)
    if labels.dtype.kind in "iu":
        return (labels[..., None] == np.arange(num_classes)).astype(np.float64)
    return np.moveaxis(labels.astype(np.float64), axis, -1)


def sigmoid_elements(logits, labels, *, pos_weight=1.0, class_weight=1.0, label_smoothing=0.0):
    x = np.asarray(logits, np.float64)
    return _binary(-np.logaddexp(0, -x), -np.logaddexp(0, x), labels, pos_weight, class_weight, label_smoothing)


def sigmoid_focal_elements(logits, labels, *, alpha=None, gamma=2.0):
    y = np.asarray(labels, np.float64)
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    rows, weight = sigmoid_elements(logits, labels)
    balance = 1 if alpha is None else alpha * y + (1 - alpha) * (1 - y)
    return balance * (y * (1 - p) + (1 - y) * p) ** gamma * rows, weight


def prob_elements(probs, labels, *, pos_weight=1.0, class_weight=1.0, label_smoothing=0.0):
    p = np.asarray(probs, np.float64)
    with np.errstate(divide="ignore"):
        log_p, log_1mp = np.maximum(np.log(p), -100), np.maximum(np.log1p(-p), -100)
    return _binary(log_p, log_1mp, labels, pos_weight, class_weight, label_smoothing)


def _binary(log_p, log_1mp, labels, pos_weight, class_weight, label_smoothing):
    y = np.asarray(labels, np.float64)
    y = (1 - label_smoothing) * y + label_smoothing / 2
    w = np.broadcast_to(np.asarray(class_weight, np.float64), y.shape)
    return -w * (np.asarray(pos_weight, np.float64) * y * log_p + (1 - y) * log_1mp), w


def reduce(rows, weight, *, sample_weight=None, where=None, reduction="none"):
    """Rows and their weights in a mean → what each reduction returns; "partial" as a pair."""
    s = np.ones(rows.shape) if sample_weight is None else np.broadcast_to(np.asarray(sample_weight), rows.shape)
    m = np.ones(rows.shape, bool) if where is None else np.broadcast_to(np.asarray(where), rows.shape)
    rows, weight = np.where(m, s * rows, 0), np.where(m, s * weight, 0)
    if reduction == "none":
        return rows
    if reduction == "sum":
        return rows.sum()
    if reduction == "partial":
        return rows.sum(), weight.sum()
    return rows.sum() / weight.sum() if weight.sum() else np.float64(0)


def numerical_gradient(f, x, step=1e-6):
    """Central differences of a float64 scalar function, one element at a time."""
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (f(up) - f(down)) / (2 * step)
    return gradient
