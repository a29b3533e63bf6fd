"""optax, as its users write it: from ids, from one-hot labels, and after the logits were cast to float32; and PPO, for which
it has no loss, on the log-probabilities of all classes.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array

from benchmarks.cases import LABEL_SMOOTHING, Case, clipped
from benchmarks.contenders.jax_programs import Loss, jax_contender
from benchmarks.data import Data


def weighted_mean(rows: Array, d: Data) -> Array:
    """The mean of the rows that count, by the weights of their labels."""
    weight = jnp.where(d["where"], d["class_weight"][d["labels"]], 0)
    return jnp.where(d["where"], rows, 0).sum() / weight.sum()


def weighted_labels(d: Data, dtype: jnp.dtype) -> Array:
    """Smoothed one-hot labels, times the weights of their classes."""
    one_hot = jax.nn.one_hot(d["labels"], len(d["class_weight"]), dtype=dtype)
    return optax.smooth_labels(one_hot, LABEL_SMOOTHING) * d["class_weight"].astype(dtype)


def loss_from_logits(case: Case) -> Callable[[Array, Data], Array]:
    match case.kind:
        case "soft":
            return lambda logits, d: optax.softmax_cross_entropy(logits, d["labels"].astype(logits.dtype)).mean()
        case "multilabel":
            return lambda logits, d: optax.sigmoid_binary_cross_entropy(logits, d["labels"].astype(logits.dtype)).mean()
        case "weighted":
            return lambda logits, d: weighted_mean(
                optax.softmax_cross_entropy(logits, weighted_labels(d, logits.dtype)).astype(jnp.float32), d
            )
    return lambda logits, d: optax.softmax_cross_entropy_with_integer_labels(logits, d["labels"], axis=case.axis).mean()


def plain(case: Case) -> Loss:
    loss = loss_from_logits(case)
    if case.kind == "linear":
        return lambda d: loss(d["hidden"] @ d["kernel"], d)
    return lambda d: loss(d["logits"], d)


def upcast(case: Case) -> Loss:
    loss = loss_from_logits(case)
    if case.kind == "linear":
        return lambda d: loss(jnp.matmul(d["hidden"], d["kernel"], preferred_element_type=jnp.float32), d)
    return lambda d: loss(d["logits"].astype(jnp.float32), d)


def one_hot(case: Case) -> Loss:
    def loss(d: Data) -> Array:
        logits = d["logits"]
        labels = jax.nn.one_hot(d["labels"], case.num_classes, axis=case.axis, dtype=logits.dtype)
        return optax.softmax_cross_entropy(logits, labels, axis=case.axis).mean()

    return loss


def ppo(case: Case) -> Loss:
    def loss(d: Data) -> Array:
        log_p = jax.nn.log_softmax(jnp.matmul(d["hidden"], d["kernel"], preferred_element_type=jnp.float32))
        log_prob = jnp.take_along_axis(log_p, d["labels"][:, None], axis=1)[:, 0]
        return clipped(log_prob, -jnp.sum(jnp.exp(log_p) * log_p, axis=1), d["old_log_prob"], d["advantage"]).mean()

    return loss


CONTENDERS = [
    jax_contender("optax", plain),
    jax_contender("optax float32", upcast, applies=lambda case: case.dtype != "float32"),
    jax_contender("jax log_softmax", ppo, kinds=("ppo",)),
    jax_contender("optax one-hot", one_hot, kinds=("ids", "segmentation")),
]
