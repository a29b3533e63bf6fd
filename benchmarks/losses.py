"""The losses that are compared: jxent's, and the alternatives to each, as their users would write them.

Every loss is a mean over all rows and a function of arrays in one order: logits or probabilities, or hidden states and
kernel; labels; then whatever else it needs.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
ENTROPY_BONUS = 0.01

Call = Callable[..., Array]
Shapes = list[tuple[tuple[int, ...], str]]


@dataclass(frozen=True)
class Loss:
    """A loss, a mean over all rows.

    Attributes:
        arguments: their shapes and dtypes, for the shape and dtype of a case.
        ours: jxent's call.
        peers: the others whose plans are compared; ratios are to the first.
        timed: the others, written in JAX, that `python -m benchmarks` runs.
        wrt: the leading arguments that are differentiated.
    """

    arguments: Callable[[tuple[int, ...], str], Shapes]
    ours: Call
    peers: Mapping[str, Call]
    timed: Mapping[str, Call] = field(default_factory=dict)
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


def _with_advantages(shape: tuple[int, ...], dtype: str) -> Shapes:
    return [*_linear(shape, dtype), (shape[:1], "float32"), (shape[:1], "float32")]


def _mean(loss: Callable[..., Any], **options: Any) -> Call:
    return partial(loss, reduction="mean", **options)


def _all_options(logits: Array, labels: Array, class_weight: Array, where: Array) -> Array:
    return jxent.softmax_cross_entropy(
        logits, labels, class_weight=class_weight, where=where, label_smoothing=SMOOTHING, reduction="mean"
    )


def fused(hidden: Array, kernel: Array, labels: Array, where: Array | None = None, **options: Any) -> Array:
    return jxent.linear_softmax_cross_entropy(hidden, kernel, labels, where=where, reduction="mean", **options)


def clipped(log_prob: Array, entropy: Array, old_log_prob: Array, advantage: Array) -> Array:
    """PPO's loss of each row."""
    ratio = jnp.exp(log_prob - old_log_prob)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage) - ENTROPY_BONUS * entropy


def _float32(call: Call) -> Call:
    """The same loss after casting its floating-point arguments to float32."""

    def upcast(*arrays: Array) -> Array:
        return call(*(a.astype(jnp.float32) if jnp.issubdtype(a.dtype, jnp.floating) else a for a in arrays))

    return upcast


def _one_hot(logits: Array, labels: Array, axis: int = -1) -> Array:
    return jax.nn.one_hot(labels, logits.shape[axis], dtype=logits.dtype, axis=axis)


def _smooth(logits: Array, labels: Array) -> Array:
    return optax.smooth_labels(_one_hot(logits, labels), SMOOTHING)


def _optax_ids(logits: Array, labels: Array, axis: int = -1) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels, axis=axis).mean()


def _optax_one_hot(logits: Array, labels: Array, axis: int = -1) -> Array:
    return optax.softmax_cross_entropy(logits, _one_hot(logits, labels, axis), axis=axis).mean()


def _optax_distributions(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy(logits, labels).mean()


def _optax_smoothing(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy(logits, _smooth(logits, labels)).mean()


def _with_all_options(cross_entropy: Call, logits: Array, labels: Array, class_weight: Array, where: Array) -> Array:
    """`cross_entropy` takes logits and distributions, and returns the loss of each row."""
    targets = _smooth(logits, labels) * class_weight.astype(logits.dtype)[None]
    rows = cross_entropy(logits, targets).astype(jnp.float32)
    return jnp.sum(jnp.where(where, rows, 0)) / jnp.sum(jnp.where(where, class_weight[labels], 0))


def _optax_focal(logits: Array, labels: Array) -> Array:
    """The paper's formula: optax has none for classes."""
    rows = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean((1 - jnp.exp(-rows)) ** GAMMA * rows)


def _optax_poly1(logits: Array, labels: Array) -> Array:
    return optax.losses.poly_loss_cross_entropy(logits, _one_hot(logits, labels)).mean()


def _optax_z_loss(logits: Array, labels: Array) -> Array:
    log_z = jax.nn.logsumexp(logits, axis=-1)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels) + Z_LOSS * log_z**2)


def _optax_sigmoid(logits: Array, labels: Array) -> Array:
    return optax.sigmoid_binary_cross_entropy(logits, labels).mean()


def _optax_sigmoid_focal(logits: Array, labels: Array) -> Array:
    return optax.sigmoid_focal_loss(logits, labels).mean()


def _optax_linear(
    hidden: Array, kernel: Array, labels: Array, where: Array | None = None, dtype: Any = None, product: Any = None
) -> Array:
    """On materialised logits: `product` is the dtype they are made in, `dtype` the one the loss gets."""
    logits = jnp.matmul(hidden, kernel, preferred_element_type=product)
    logits = logits if dtype is None else logits.astype(dtype)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(where=where)


def _log_softmax_ppo(hidden: Array, kernel: Array, labels: Array, old_log_prob: Array, advantage: Array) -> Array:
    log_p = jax.nn.log_softmax(jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32))
    log_prob = jnp.take_along_axis(log_p, labels[:, None], axis=1)[:, 0]
    return clipped(log_prob, -jnp.sum(jnp.exp(log_p) * log_p, axis=1), old_log_prob, advantage).mean()


def _keras_rows(name: str, logits: Array, labels: Array, axis: int = -1) -> Array:
    ops = importlib.import_module("keras").ops
    return getattr(ops, name)(labels, jnp.moveaxis(logits, axis, -1), from_logits=True)


def _keras(name: str, logits: Array, labels: Array, axis: int = -1) -> Array:
    return _keras_rows(name, logits, labels, axis).mean()


def _tokamax(hidden: Array, kernel: Array, labels: Array) -> Array:
    tokamax = importlib.import_module("tokamax")
    # Silences the warning at every call that nothing was tuned: "chunked_xla" has nothing to tune.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return tokamax.linear_softmax_cross_entropy_loss(
        hidden, labels, kernel, reduction="mean", implementation="chunked_xla"
    )


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


def three_products(hidden: Array, kernel: Array, labels: Array | None = None) -> tuple[Array, Array]:
    """The logits and two products with them: no loss, but the least work that a loss with its gradient does."""
    logits = hidden @ kernel
    return logits @ kernel.T, hidden.T @ logits


def _beside_optax(arguments: Callable[..., Shapes], ours: Call, theirs: Call, **timed: Call) -> Loss:
    """Plans compare with optax on float32 logits, since its loss of bfloat16 logits is rounded to bfloat16."""
    timed = {"optax": theirs, "optax float32": _float32(theirs), **timed}
    return Loss(arguments, ours, {"optax": _float32(theirs)}, timed)


def _ids_along(axis: int) -> Loss:
    sparse, one_hot = partial(_keras, "sparse_categorical_crossentropy", axis=axis), partial(_optax_one_hot, axis=axis)
    return _beside_optax(
        partial(_ids, axis=axis),
        _mean(jxent.softmax_cross_entropy, axis=axis),
        partial(_optax_ids, axis=axis),
        **{"optax one-hot": one_hot, "keras": sparse},
    )


THREE_PRODUCTS = "three products"
LOSSES = {
    "ids": _ids_along(-1),
    "distributions": _beside_optax(
        _distributions,
        _mean(jxent.softmax_cross_entropy),
        _optax_distributions,
        keras=partial(_keras, "categorical_crossentropy"),
    ),
    "smoothing": _beside_optax(_ids, _mean(jxent.softmax_cross_entropy, label_smoothing=SMOOTHING), _optax_smoothing),
    "weights, smoothing, mask": _beside_optax(
        _with_options,
        _all_options,
        partial(_with_all_options, optax.softmax_cross_entropy),
        keras=partial(_with_all_options, partial(_keras_rows, "categorical_crossentropy")),
    ),
    "focal": _beside_optax(_ids, _mean(jxent.softmax_focal_loss, gamma=GAMMA), _optax_focal),
    "poly-1": _beside_optax(_ids, _mean(jxent.poly1_cross_entropy), _optax_poly1),
    "z-loss": _beside_optax(_ids, _mean(jxent.softmax_cross_entropy, z_loss=Z_LOSS), _optax_z_loss),
    "segmentation, classes second": _ids_along(1),
    "segmentation, classes last": _ids_along(-1),
    "sigmoid": _beside_optax(
        _distributions,
        _mean(jxent.sigmoid_binary_cross_entropy),
        _optax_sigmoid,
        keras=partial(_keras, "binary_crossentropy"),
    ),
    "sigmoid focal": _beside_optax(_distributions, _mean(jxent.sigmoid_focal_loss), _optax_sigmoid_focal),
    "binary, of probabilities": Loss(
        _distributions, _mean(jxent.binary_cross_entropy_from_probs), {"formula": _binary_formula}
    ),
    "ids, of probabilities": Loss(_ids, _mean(jxent.cross_entropy_from_probs), {"gather": _probs_ids}),
    "ids, of log-probabilities": Loss(
        _ids, _mean(jxent.cross_entropy_from_log_probs), {"gather": _log_probs_ids}, {"jax gather": _log_probs_ids}
    ),
    "distributions, of probabilities": Loss(
        _distributions, _mean(jxent.cross_entropy_from_probs), {"formula": _probs_distributions}
    ),
    "distributions, of log-probabilities": Loss(
        _distributions, _mean(jxent.cross_entropy_from_log_probs), {"formula": _log_probs_distributions}
    ),
    "fused": Loss(
        _linear,
        fused,
        {THREE_PRODUCTS: three_products, "optax": partial(_optax_linear, dtype=jnp.float32), "tokamax": _tokamax},
        {
            "optax": _optax_linear,
            "optax float32": partial(_optax_linear, product=jnp.float32),
            "tokamax chunked_xla": _tokamax,
        },
        wrt=(0, 1),
    ),
    "ppo": Loss(
        _with_advantages,
        partial(jxent.linear_softmax_loss, clipped),
        {"log_softmax": _log_softmax_ppo},
        {"jax log_softmax": _log_softmax_ppo},
        wrt=(0, 1),
    ),
}
