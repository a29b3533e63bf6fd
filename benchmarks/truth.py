"""The loss and its gradients by textbook formulas in float64, and how far a contender is from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from benchmarks.cases import Case, Data
from benchmarks.losses import SMOOTHING, clipped

# The most logits, and for linear cases the largest product of the three axes, computed in float64.
MOST_LOGITS, MOST_PRODUCTS = 2**27, 2**35
BLOCK = 2**22  # logits at a time

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Truth:
    loss: float
    gradients: Arrays


def checked_rows(case: Case) -> int:
    """How many entries of the first axis are compared: all of them, unless that takes more than seconds."""
    n, rest = case.shape[0], int(np.prod(case.shape[1:]))
    return max(1, min(n, (MOST_PRODUCTS if case.is_linear else MOST_LOGITS) // rest))


def find_truth(case: Case, data: Data) -> Truth:
    """In blocks of rows, on the CPU."""
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        arrays = {name: np.asarray(a) for name, a in data.items()}
        whole = {name: arrays.pop(name) for name in ("kernel", "class_weight") if name in arrays}
        weight = _weights(case, {**arrays, **whole}).sum()
        step = max(1, BLOCK // (case.num_classes if case.is_linear else int(np.prod(case.shape[1:]))))
        loss, parts = 0.0, []
        of_block = jax.jit(jax.value_and_grad(partial(_total, case)))
        for start in range(0, case.shape[0], step):
            rows = {name: a[start : start + step] for name, a in arrays.items()}
            exact = {name: _float64(a) for name, a in {**rows, **whole}.items()}
            by = {name: exact.pop(name) for name in case.differentiated}
            value, gradients = of_block(by, exact)
            loss += float(value)
            parts.append({name: np.asarray(g) / weight for name, g in gradients.items()})
    join = {name: sum if name in whole else np.concatenate for name in case.differentiated}
    return Truth(loss / float(weight), {name: join[name]([p[name] for p in parts]) for name in join})


def _float64(array: np.ndarray) -> np.ndarray:
    return array if array.dtype in (np.int32, np.bool_) else array.astype(np.float64)


def _weights(case: Case, arrays: Arrays) -> np.ndarray:
    """What the mean divides by, row by row."""
    if case.kind == "multilabel":
        return np.ones(case.shape)
    weight = arrays["class_weight"].astype(np.float64)[arrays["labels"]] if case.kind == "weighted" else 1.0
    return weight * arrays.get("where", np.ones(case.row_shape))


def _total(case: Case, by: dict[str, Array], rest: dict[str, Array]) -> Array:
    """The sum of the losses of some rows."""
    labels, axis = rest["labels"], case.axis
    x = by["hidden"] @ by["kernel"] if case.is_linear else by["logits"]
    if case.kind == "multilabel":
        return jnp.sum(jnp.logaddexp(0.0, x) - labels * x)
    log_p = x if case.kind == "log-probs" else x - jax.nn.logsumexp(x, axis=axis, keepdims=True)
    if case.kind == "soft":
        return -jnp.sum(labels * log_p)
    if case.kind == "weighted":
        target = (
            jax.nn.one_hot(labels, case.num_classes, dtype=x.dtype) * (1 - SMOOTHING) + SMOOTHING / case.num_classes
        )
        rows = -jnp.sum(target * rest["class_weight"][None] * log_p, axis=axis)
    else:
        log_prob = jnp.squeeze(jnp.take_along_axis(log_p, jnp.expand_dims(labels, axis), axis), axis)
        rows = -log_prob
    if case.kind == "ppo":
        rows = clipped(log_prob, -jnp.sum(jnp.exp(log_p) * log_p, axis), rest["old_log_prob"], rest["advantage"])
    return jnp.sum(jnp.where(rest["where"], rows, 0.0) if "where" in rest else rows)


def loss_error(loss: float, truth: Truth) -> float:
    """Relative error."""
    return abs(loss - truth.loss) / abs(truth.loss)


def gradient_error(gradients: Arrays, truth: Truth) -> float | None:
    """‖difference‖ / ‖truth‖, Euclidean, of the worst argument; None without gradients."""
    return max((_distance(found, truth.gradients[name]) for name, found in gradients.items()), default=None)


def _distance(found: np.ndarray, wanted: np.ndarray) -> float:
    if found.shape != wanted.shape:
        raise ValueError(f"a gradient of shape {found.shape} instead of {wanted.shape}")
    difference = found.astype(np.float64)
    difference -= wanted
    return float(np.linalg.norm(difference) / np.linalg.norm(wanted))
