"""The loss and its gradients by NumPy in float64, and how far a contender is from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from benchmarks.cases import ENTROPY_BONUS, LABEL_SMOOTHING, Case
from benchmarks.data import Data

# Of the logits, and of the products of a linear case's three axes, that are worked out in float64.
MOST_LOGITS, MOST_PRODUCTS = 2**27, 2**35
BLOCK = 2**20  # logits at a time and thread: float64 blocks that stay in cache

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Truth:
    loss: float
    gradients: Arrays


def checked_rows(case: Case) -> int:
    """How many entries of the first axis are compared: all of them, if that takes seconds."""
    n, rest = case.shape[0], int(np.prod(case.shape[1:]))
    return max(1, min(n, (MOST_PRODUCTS if case.is_linear else MOST_LOGITS) // rest))


def find_truth(case: Case, data: Data) -> Truth:
    arrays = {name: np.asarray(array) for name, array in data.items()}
    if case.is_linear:
        return _linear(arrays, _ppo if case.kind == "ppo" else _cross_entropy)
    if case.kind == "multilabel":
        return _multilabel(arrays)
    return _softmax(case, arrays)


def _rows_last(array: np.ndarray, axis: int) -> np.ndarray:
    """As [rows, classes]."""
    return np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def _softmax(case: Case, arrays: Arrays) -> Truth:
    logits = _rows_last(arrays["logits"], case.axis)
    labels = arrays["labels"].reshape(-1) if case.kind != "soft" else _rows_last(arrays["labels"], case.axis)
    where = arrays.get("where", np.ones(len(logits), bool))
    weight = arrays.get("class_weight", np.ones(logits.shape[1])).astype(np.float64)
    smoothing = LABEL_SMOOTHING if case.kind == "weighted" else 0.0
    total = float(len(logits)) if case.kind != "weighted" else float(weight[labels[where]].sum())
    gradient = np.empty(logits.shape)

    def block(rows: slice) -> float:
        x, own = logits[rows].astype(np.float64), labels[rows]
        scale = where[rows, None] / total
        log_z, p = _log_z_and_softmax(x)
        if own.ndim == 1:
            target = np.full(x.shape, smoothing / x.shape[1])
            target[np.arange(len(x)), own] += 1 - smoothing
        else:
            target = own.astype(np.float64)
        target *= weight
        mass = target.sum(axis=1, keepdims=True)
        gradient[rows] = scale * (mass * p - target)
        return float((scale * (mass * log_z - (target * x).sum(axis=1, keepdims=True))).sum())

    loss = sum(_in_threads(block, _blocks(logits)))
    if case.axis == 1:
        rows_first = gradient.reshape(*case.row_shape, case.num_classes)
        gradient = np.moveaxis(rows_first, -1, 1)
    return Truth(loss, {"logits": gradient})


def _log_z_and_softmax(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    top = x.max(axis=1, keepdims=True)
    p = np.exp(x - top)
    z = p.sum(axis=1, keepdims=True)
    p /= z
    return top + np.log(z), p


def _multilabel(arrays: Arrays) -> Truth:
    logits, labels = arrays["logits"], arrays["labels"]
    gradient = np.empty(logits.shape)

    def block(rows: slice) -> float:
        x, y = logits[rows].astype(np.float64), labels[rows].astype(np.float64)
        gradient[rows] = (1 / (1 + np.exp(-x)) - y) / logits.size
        return float((np.logaddexp(0, x) - y * x).sum())

    return Truth(sum(_in_threads(block, _blocks(logits))) / logits.size, {"logits": gradient})


def _linear(arrays: Arrays, row_loss: Callable) -> Truth:
    hidden, kernel = (arrays[name].astype(np.float64) for name in ("hidden", "kernel"))
    labels, n = arrays["labels"], len(hidden)
    loss, d_hidden, d_kernel = 0.0, np.empty(hidden.shape), np.zeros(kernel.shape)
    step = max(1, 8 * BLOCK // kernel.shape[1])
    for start in range(0, n, step):  # the matrix products have threads of their own
        rows = slice(start, start + step)
        logits, own = hidden[rows] @ kernel, labels[rows]
        log_z, p = _log_z_and_softmax(logits)
        at_label = np.arange(len(own)), own
        entropy = (p * (log_z - logits)).sum(axis=1)
        part = {name: arrays[name][rows].astype(np.float64) for name in ("old_log_prob", "advantage") if name in arrays}
        losses, by_log_prob, by_entropy = row_loss(logits[at_label] - log_z[:, 0], entropy, **part)
        loss += float(losses.sum()) / n
        d_logits = p * (by_entropy * (log_z - logits - entropy[:, None]) - by_log_prob)
        d_logits[at_label] += by_log_prob[:, 0]
        d_logits /= n
        d_hidden[rows] = d_logits @ kernel.T
        d_kernel += hidden[rows].T @ d_logits
    return Truth(loss, {"hidden": d_hidden, "kernel": d_kernel})


def _cross_entropy(log_prob: np.ndarray, entropy: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The loss of each row, and its derivatives, `[rows, 1]` or 0."""
    return -log_prob, np.full((len(log_prob), 1), -1.0), 0.0


def _ppo(
    log_prob: np.ndarray, entropy: np.ndarray, old_log_prob: np.ndarray, advantage: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    ratio = np.exp(log_prob - old_log_prob)
    plain, cut = ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage
    slope = -np.where((plain <= cut), plain, 0)
    return -np.minimum(plain, cut) - ENTROPY_BONUS * entropy, slope[:, None], -ENTROPY_BONUS


def loss_error(loss: float, truth: Truth) -> float:
    """Relative."""
    return abs(loss - truth.loss) / abs(truth.loss)


def gradient_error(gradients: Arrays, truth: Truth) -> float | None:
    """‖difference‖ / ‖truth‖, in the Euclidean norm; that of the worst argument; None without gradients."""
    return max((_distance(gradient, truth.gradients[name]) for name, gradient in gradients.items()), default=None)


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
    if found.shape != wanted.shape:
        raise ValueError(f"a gradient of shape {found.shape} instead of {wanted.shape}")

    def block(rows: slice) -> np.ndarray:
        difference = found[rows].astype(np.float64) - wanted[rows]
        return np.array([np.vdot(difference, difference), np.vdot(wanted[rows], wanted[rows])])

    difference, norm = np.sum(_in_threads(block, _blocks(wanted)), axis=0)
    return float(np.sqrt(difference / norm))


def _blocks(array: np.ndarray) -> list[slice]:
    """Of the first axis."""
    step = max(1, BLOCK // int(np.prod(array.shape[1:])))
    return [slice(start, start + step) for start in range(0, len(array), step)]


def _in_threads(function: Callable, blocks: Iterable[slice]) -> list:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, blocks))
