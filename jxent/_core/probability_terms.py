"""Elementwise terms of the binary loss from probabilities."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jxent._core.binary_targets import BinaryTargets, as_probabilities
from jxent._core.rows.probabilities import LOWEST_LOG, clamped_log, lowest_divisor
from jxent._core.sigmoid_terms import harmless, scaled, smoothed
from jxent._core.xla import remade


@remade("cpu")
@jax.jit
def binary_probability_terms(probs: Array, targets: BinaryTargets) -> Array:
    """`−s·w·(pos_weight·y·log p + (1−y)·log(1−p))`, clamped, per element, with the arguments of `sigmoid_terms`."""
    p, t = harmless(probs, targets, fill=0.5)
    p = as_probabilities(p, t.one)
    weights = t.class_weight, t.sample_weight
    of_positive = scaled(smoothed(t.labels, t.smoothing)[0], t.pos_weight, *weights)
    of_negative = scaled(smoothed(1 - t.labels, t.smoothing)[0], *weights)
    loss = of_positive * clamped_log(p, lowest_divisor(of_positive, probs.dtype))
    loss = loss + of_negative * _clamped_log1m(p, lowest_divisor(of_negative, probs.dtype))
    return targets.checked(-loss)


@jax.custom_jvp
def _clamped_log1m(p: Array, lowest: Array | float) -> Array:
    """clamped_log(1 − p), without losing a small p to the subtraction."""
    return jnp.maximum(LOWEST_LOG, jnp.log1p(-jnp.minimum(1, p)))


def _clamped_log1m_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    p, lowest = primals
    return _clamped_log1m(p, lowest), -tangents[0] / jnp.maximum(lowest, 1 - p)


_clamped_log1m.defjvp(_clamped_log1m_jvp)
