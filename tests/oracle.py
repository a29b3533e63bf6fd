"""The losses as the textbook writes them: slow, plain, and sharing no line with the package.

Every function returns rows and the weight of each row in a mean, before sample weights and masks; `reduce` does those.
By default in float64 NumPy; with `xp=jnp` in JAX and the dtype of the scores, to be differentiated.
"""

import numpy as np
from jax import lax


def softmax_rows(logits, labels, *, class_weight=None, label_smoothing=0.0, z_loss=0.0, axis=-1, xp=np):
    x = xp.moveaxis(_floats(xp, logits), axis, -1)
    with np.errstate(divide="ignore"):
        row_max = _row_max(xp, x)
        log_z = row_max + xp.log(xp.exp(x - row_max).sum(-1, keepdims=True))
    options = {"class_weight": class_weight, "label_smoothing": label_smoothing, "axis": axis, "xp": xp}
    rows, weight = log_prob_rows(xp.moveaxis(x - log_z, -1, axis), labels, **options)
    return rows + z_loss * log_z[..., 0] ** 2, weight


def log_prob_rows(log_probs, labels, *, class_weight=None, label_smoothing=0.0, axis=-1, xp=np):
    log_p = xp.moveaxis(_floats(xp, log_probs), axis, -1)
    num_classes = log_p.shape[-1]
    w = xp.ones(num_classes, log_p.dtype) if class_weight is None else _floats(xp, class_weight, log_p)
    w = w.reshape((1,) * (log_p.ndim - 1) + (num_classes,))
    q = distributions(labels, num_classes, axis, xp).astype(log_p.dtype)
    target, dead = w * smoothed(q, label_smoothing, log_p), log_p == -np.inf
    # Where a class of −inf has no part of the target, neither the loss nor its derivatives know of it.
    infinite = xp.where(dead & (target != 0), np.inf, 0.0).sum(-1).astype(log_p.dtype)
    return infinite - (target * xp.where(dead, 0, log_p)).sum(-1), (w * q).sum(-1)


def prob_rows(probs, labels, *, class_weight=None, label_smoothing=0.0, axis=-1, xp=np):
    with np.errstate(divide="ignore"):
        log_p = xp.maximum(xp.log(_floats(xp, probs)), -100)
    options = {"class_weight": class_weight, "label_smoothing": label_smoothing, "axis": axis, "xp": xp}
    return log_prob_rows(log_p, labels, **options)


def softmax_focal_rows(logits, labels, *, gamma=2.0, class_weight=None, axis=-1, xp=np):
    rows, weight = softmax_rows(logits, labels, class_weight=class_weight, axis=axis, xp=xp)
    return misses(logits, labels, axis=axis, xp=xp) ** gamma * rows, weight


def poly1_rows(logits, labels, *, epsilon=2.0, class_weight=None, label_smoothing=0.0, axis=-1, xp=np):
    options = {"label_smoothing": label_smoothing, "axis": axis, "xp": xp}
    rows, weight = softmax_rows(logits, labels, class_weight=class_weight, **options)
    return rows + epsilon * misses(logits, labels, **options), weight


def misses(logits, labels, *, label_smoothing=0.0, axis=-1, xp=np):
    """Σ_c q_c (1 − p_c)."""
    x = xp.moveaxis(_floats(xp, logits), axis, -1)
    e = xp.exp(x - _row_max(xp, x))
    q = smoothed(distributions(labels, x.shape[-1], axis, xp).astype(x.dtype), label_smoothing, x)
    return (q * (1 - e / e.sum(-1, keepdims=True))).sum(-1)


def smoothed(q, label_smoothing, scores):
    """Smoothing is shared by the classes that exist."""
    live = (scores > -np.inf).astype(scores.dtype)
    return (1 - label_smoothing) * q + label_smoothing * live / live.sum(-1, keepdims=True)


def distributions(labels, num_classes, axis=-1, xp=np):
    """Ids → one-hot, the class axis last; an id that is no class gives a row of zeros."""
    labels = xp.asarray(labels)
    if labels.dtype.kind in "iu":
        classes = xp.arange(num_classes).reshape((1,) * labels.ndim + (-1,))
        return (labels[..., None].astype(classes.dtype) == classes).astype(np.float32)
    return xp.moveaxis(labels, axis, -1)


def sigmoid_elements(logits, labels, *, pos_weight=1.0, class_weight=1.0, label_smoothing=0.0, xp=np):
    x = _floats(xp, logits)
    log_probs = -xp.logaddexp(0, -x), -xp.logaddexp(0, x)
    return _binary(*log_probs, labels, pos_weight, class_weight, label_smoothing, xp)


def sigmoid_focal_elements(logits, labels, *, alpha=None, gamma=2.0, xp=np):
    x = _floats(xp, logits)
    y = _floats(xp, labels, x)
    miss = y * xp.exp(-xp.logaddexp(0, x)) + (1 - y) * xp.exp(-xp.logaddexp(0, -x))
    rows, weight = sigmoid_elements(logits, labels, xp=xp)
    balance = 1 if alpha is None else alpha * y + (1 - alpha) * (1 - y)
    return balance * miss**gamma * rows, weight


def prob_elements(probs, labels, *, pos_weight=1.0, class_weight=1.0, label_smoothing=0.0, xp=np):
    p = _floats(xp, probs)
    with np.errstate(divide="ignore"):
        log_probs = xp.maximum(xp.log(p), -100), xp.maximum(xp.log1p(-p), -100)
    return _binary(*log_probs, labels, pos_weight, class_weight, label_smoothing, xp)


def _binary(log_p, log_1mp, labels, pos_weight, class_weight, label_smoothing, xp):
    y = _floats(xp, labels, log_p)
    y = (1 - label_smoothing) * y + label_smoothing / 2
    w, positive = (xp.broadcast_to(_floats(xp, a, log_p), y.shape) for a in (class_weight, pos_weight))
    return -w * (positive * y * log_p + (1 - y) * log_1mp), w


def _row_max(xp, x):
    """A constant: what is subtracted and added again has no derivative."""
    row_max = x.max(-1, keepdims=True)
    return row_max if xp is np else lax.stop_gradient(row_max)


def _floats(xp, array, like=None):
    dtype = np.float64 if xp is np else array.dtype if like is None else like.dtype
    return xp.asarray(array, dtype)


def reduce(rows, weight, *, sample_weight=None, where=None, reduction="none", xp=np):
    """Rows and their weights in a mean → what each reduction returns; "partial" as a pair."""
    s = xp.ones_like(rows) if sample_weight is None else xp.broadcast_to(xp.asarray(sample_weight), rows.shape)
    m = xp.ones_like(rows, bool) if where is None else xp.broadcast_to(xp.asarray(where), rows.shape)
    rows, weight = xp.where(m, s * rows, 0), xp.where(m, s * weight, 0)
    if reduction == "none":
        return rows
    total, weight = rows.sum(), weight.sum()
    mean = xp.where(weight == 0, 0, total) / xp.where(weight == 0, 1, weight)
    return {"sum": total, "partial": (total, weight), "mean": mean}[reduction]


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
