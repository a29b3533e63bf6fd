"""The losses whose plans are compared: jxent's, and what there is beside each, as its users would write it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

import jxent

SMOOTHING = 0.1
Z_LOSS = 1e-4
GAMMA = 2.0

Call = Callable[..., Array]
Shapes = list[tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Loss:
    """A loss, a mean over all rows.

    Attributes:
        arguments: their shapes and dtypes, of the shape and the dtype of a case.
        ours: jxent's call.
        peers: the others'; ratios are to the first.
        wrt: the arguments that are differentiated.
        axis: of the classes.
    """

    arguments: Callable[[tuple[int, ...], str], Shapes]
    ours: Call
    peers: Mapping[str, Call]
    wrt: tuple[int, ...] = (0,)

    def calls(self) -> dict[str, Call]:
        return {**self.peers, "jxent": self.ours}


def _ids(shape: tuple[int, ...], dtype: str, axis: int = -1) -> Shapes:
    rows = [n for i, n in enumerate(shape) if i != axis % len(shape)]
    return [(shape, dtype), (tuple(rows), "int32")]


def _distributions(shape: tuple[int, ...], dtype: str) -> Shapes:
    return [(shape, dtype), (shape, dtype)]


def _with_options(shape: tuple[int, ...], dtype: str) -> Shapes:
    return [*_ids(shape, dtype), (shape[-1:], "float32"), (shape[:-1], "bool")]


def _linear(shape: tuple[int, ...], dtype: str) -> Shapes:
    n, d, v = shape
    return [((n, d), dtype), ((d, v), dtype), ((n,), "int32")]


def _mean(loss: Callable[..., Any], **options: Any) -> Call:
    return partial(loss, reduction="mean", **options)


def _all_options(logits: Array, labels: Array, class_weight: Array, where: Array) -> Array:
    return jxent.softmax_cross_entropy(
        logits, labels, class_weight=class_weight, where=where, label_smoothing=SMOOTHING, reduction="mean"
    )


# optax gets logits cast to float32, since its loss of bfloat16 logits is rounded to bfloat16.
def _optax_ids(logits: Array, labels: Array, axis: int = -1) -> Array:
    logits = logits.astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels, axis=axis).mean()


def _optax_distributions(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), labels.astype(jnp.float32)).mean()


def _smooth(logits: Array, labels: Array) -> Array:
    return optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32), SMOOTHING)


def _optax_smoothing(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy(logits.astype(jnp.float32), _smooth(logits, labels)).mean()


def _optax_all_options(logits: Array, labels: Array, class_weight: Array, where: Array) -> Array:
    rows = optax.softmax_cross_entropy(logits.astype(jnp.float32), _smooth(logits, labels) * class_weight[None])
    return jnp.sum(jnp.where(where, rows, 0)) / jnp.sum(jnp.where(where, class_weight[labels], 0))


def _optax_focal(logits: Array, labels: Array) -> Array:
    """The paper's formula: optax has none for classes."""
    rows = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels)
    return jnp.mean((1 - jnp.exp(-rows)) ** GAMMA * rows)


def _optax_poly1(logits: Array, labels: Array) -> Array:
    one_hot = jax.nn.one_hot(labels, logits.shape[-1], dtype=jnp.float32)
    return optax.losses.poly_loss_cross_entropy(logits.astype(jnp.float32), one_hot).mean()


def _optax_z_loss(logits: Array, labels: Array) -> Array:
    logits = logits.astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels) + Z_LOSS * log_z**2)


def _optax_sigmoid(logits: Array, labels: Array) -> Array:
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), labels.astype(jnp.float32)).mean()


def _optax_sigmoid_focal(logits: Array, labels: Array) -> Array:
    return optax.sigmoid_focal_loss(logits.astype(jnp.float32), labels.astype(jnp.float32)).mean()


def _optax_linear(hidden: Array, kernel: Array, labels: Array) -> Array:
    return _optax_ids(hidden @ kernel, labels)


def _binary_formula(probs: Array, labels: Array) -> Array:
    probs, labels = probs.astype(jnp.float32), labels.astype(jnp.float32)
    return -jnp.mean(labels * jnp.log(probs) + (1 - labels) * jnp.log1p(-probs))


def _gather(entries: Array, labels: Array) -> Array:
    return jnp.take_along_axis(entries, labels[:, None], 1).astype(jnp.float32)


def _log_probs_ids(log_probs: Array, labels: Array) -> Array:
    return -jnp.mean(_gather(log_probs, labels))


def _probs_ids(probs: Array, labels: Array) -> Array:
    return -jnp.mean(jnp.log(_gather(probs, labels)))


def _log_probs_distributions(log_probs: Array, labels: Array) -> Array:
    return -jnp.mean(jnp.sum(labels.astype(jnp.float32) * log_probs.astype(jnp.float32), 1))


def _probs_distributions(probs: Array, labels: Array) -> Array:
    return _log_probs_distributions(jnp.log(probs.astype(jnp.float32)), labels)


def _three_products(hidden: Array, kernel: Array, labels: Array) -> tuple[Array, Array]:
    """The logits, and two products with them: no loss, the least that one with its gradient does."""
    logits = hidden @ kernel
    return logits @ kernel.T, hidden.T @ logits


def _tokamax(hidden: Array, kernel: Array, labels: Array) -> Array:
    tokamax = importlib.import_module("tokamax")
    return tokamax.linear_softmax_cross_entropy_loss(
        hidden, labels, kernel, reduction="mean", implementation="chunked_xla"
    )


THREE_PRODUCTS = "three products"
LOSSES = {
    "ids": Loss(_ids, _mean(jxent.softmax_cross_entropy), {"optax": _optax_ids}),
    "distributions": Loss(_distributions, _mean(jxent.softmax_cross_entropy), {"optax": _optax_distributions}),
    "smoothing": Loss(_ids, _mean(jxent.softmax_cross_entropy, label_smoothing=SMOOTHING), {"optax": _optax_smoothing}),
    "weights, smoothing, mask": Loss(_with_options, _all_options, {"optax": _optax_all_options}),
    "focal": Loss(_ids, _mean(jxent.softmax_focal_loss, gamma=GAMMA), {"optax": _optax_focal}),
    "poly-1": Loss(_ids, _mean(jxent.poly1_cross_entropy), {"optax": _optax_poly1}),
    "z-loss": Loss(_ids, _mean(jxent.softmax_cross_entropy, z_loss=Z_LOSS), {"optax": _optax_z_loss}),
    "segmentation, classes second": Loss(
        partial(_ids, axis=1), _mean(jxent.softmax_cross_entropy, axis=1), {"optax": partial(_optax_ids, axis=1)}
    ),
    "segmentation, classes last": Loss(_ids, _mean(jxent.softmax_cross_entropy), {"optax": _optax_ids}),
    "sigmoid": Loss(_distributions, _mean(jxent.sigmoid_binary_cross_entropy), {"optax": _optax_sigmoid}),
    "sigmoid focal": Loss(_distributions, _mean(jxent.sigmoid_focal_loss), {"optax": _optax_sigmoid_focal}),
    "binary, of probabilities": Loss(
        _distributions, _mean(jxent.binary_cross_entropy_from_probs), {"formula": _binary_formula}
    ),
    "ids, of probabilities": Loss(_ids, _mean(jxent.cross_entropy_from_probs), {"gather": _probs_ids}),
    "ids, of log-probabilities": Loss(_ids, _mean(jxent.cross_entropy_from_log_probs), {"gather": _log_probs_ids}),
    "distributions, of probabilities": Loss(
        _distributions, _mean(jxent.cross_entropy_from_probs), {"formula": _probs_distributions}
    ),
    "distributions, of log-probabilities": Loss(
        _distributions, _mean(jxent.cross_entropy_from_log_probs), {"formula": _log_probs_distributions}
    ),
    "fused": Loss(
        _linear,
        _mean(jxent.linear_softmax_cross_entropy),
        {THREE_PRODUCTS: _three_products, "optax": _optax_linear, "tokamax": _tokamax},
        wrt=(0, 1),
    ),
}
