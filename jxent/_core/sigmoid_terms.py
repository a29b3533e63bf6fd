"""Elementwise terms of the binary losses from logits, with derivatives in which nothing cancels.

softplus(x) = log(1 + exp(x)) = max(x, 0) + log1p(exp(−|x|)),   softplus' = σ,   σ'(x) = σ(x)·σ(−x)
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from jxent._core.binary_targets import BinaryTargets
from jxent._core.dtypes import compute_dtype
from jxent._core.silence import silenced
from jxent._core.xla import cpu_whole, remade


@remade("cpu")
@jax.jit
def sigmoid_terms(logits: Array, targets: BinaryTargets) -> Array:
    """`s·w·(pos_weight·y·softplus(−x) + (1−y)·softplus(x))` for each element, in the compute dtype of `logits`.

    Reverse mode keeps the arguments and recomputes the rest.

    Args:
        logits: floating, any shape.
        targets: y, to be smoothed, and the weights: s is the sample weight, w the class weight. Masked elements are 0
            in value and gradient.
    """
    x, t = harmless(logits, targets)
    weights = t.class_weight, t.sample_weight
    positive = silenced(softplus(-x), t.pos_weight, *weights)
    negative = silenced(softplus(x), *weights)
    loss = scaled(label_term(smoothed, t.labels, t.smoothing, positive), t.pos_weight)
    loss = loss + label_term(smoothed, 1 - t.labels, t.smoothing, negative)
    return cpu_whole(targets.checked(scaled(loss, *weights)))


def harmless(scores: Array, targets: BinaryTargets, fill: float = 0) -> tuple[Array, BinaryTargets]:
    """Casts to the compute dtype, and replaces masked scores by `fill`, so that they cannot affect a product."""
    x = scores.astype(compute_dtype(scores.dtype))
    return (x if targets.where is None else jnp.where(targets.where, x, fill)), targets.harmless(x.dtype)


def scaled(term: Array, *weights: Array | None) -> Array:
    """`term` times the weights; None is 1."""
    for weight in weights:
        term = term if weight is None else weight * term
    return term


@jax.custom_jvp
def softplus(x: Array) -> Array:
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def _softplus_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x,), (d_x,) = primals, tangents
    return softplus(x), sigmoid(x) * d_x


softplus.defjvp(_softplus_jvp)


@jax.custom_jvp
def sigmoid(x: Array) -> Array:
    return jax.lax.logistic(x)


# jax's own rule, σ·(1 − σ), is 0 in float32 from x = 17 on.
def _sigmoid_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x,), (d_x,) = primals, tangents
    return sigmoid(x), sigmoid(x) * sigmoid(-x) * d_x


sigmoid.defjvp(_sigmoid_jvp)


Coefficient = tuple[Array, Array | float, Array | float]


def smoothed(y: Array, smoothing: Array | None) -> Coefficient:
    """(1−ε)·y + ε/2, and its derivatives with respect to y and ε."""
    if smoothing is None:
        return y, 1.0, 0.0
    return (1 - smoothing) * y + smoothing / 2, 1 - smoothing, 0.5 - y


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def label_term(
    coefficient: Callable[[Array, Array | None], Coefficient], y: Array, factor: Array | None, term: Array
) -> Array:
    """coefficient(y, factor) · term, with 0 · inf = 0."""
    c, _, _ = coefficient(y, factor)
    return c * silenced(term, c)


# The derivative with respect to y is that of the coefficient times the term, even if the term is infinite. It meets no
# other infinity, because the derivative of softplus is σ.
def _label_term_jvp(
    coefficient: Callable[[Array, Array | None], Coefficient], primals: Any, tangents: Any
) -> tuple[Array, Array]:
    (y, factor, term), (d_y, d_factor, d_term) = primals, tangents
    c, by_y, by_factor = coefficient(y, factor)
    tangent = jnp.zeros_like(term)
    if not isinstance(d_y, SymbolicZero):
        tangent = tangent + by_y * silenced(term, by_y) * d_y
    if not (d_factor is None or isinstance(d_factor, SymbolicZero)):
        tangent = tangent + by_factor * silenced(term, by_factor, factor) * d_factor
    if not isinstance(d_term, SymbolicZero):
        tangent = tangent + c * d_term
    return label_term(coefficient, y, factor, term), tangent


label_term.defjvp(_label_term_jvp, symbolic_zeros=True)
