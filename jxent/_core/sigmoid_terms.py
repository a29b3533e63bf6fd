"""Elementwise terms of the binary losses from logits, with derivatives that cancel nowhere.

softplus(x) = log(1 + exp(x)) = max(x, 0) + log1p(exp(−|x|)),   softplus' = σ,   σ'(x) = σ(x)·σ(−x)
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from jxent._core.dtypes import compute_dtype
from jxent._core.platform import cpu_whole, remade


@remade("cpu")
@jax.jit
def sigmoid_terms(
    logits: Array, labels: Array, pos_weight: Array | None, smoothing: Array | None, where: Array | None
) -> Array:
    """`pos_weight·y·softplus(−x) + (1−y)·softplus(x)` for each element, in the compute dtype of `logits`.

    Reverse mode keeps the arguments and remakes the rest.

    Args:
        logits: floating, any shape.
        labels: bool, integer or floating, the shape of `logits`. An integer other than 0 and 1 gives NaN.
        pos_weight: in the compute dtype, broadcastable to `logits` at equal rank; or None for 1.
        smoothing: a scalar ε: y ← (1−ε)·y + ε/2; or None.
        where: bool, the shape of `logits`; elements that are False are 0 in value and gradient.
    """
    x, y, pos_weight = masked_elements(logits, labels, pos_weight, where)
    y = smoothed(y, smoothing)
    positive = y if pos_weight is None else pos_weight * y
    loss = product(positive, softplus(-x)) + product(1 - y, softplus(x))
    return cpu_whole(loss if where is None else jnp.where(where, loss, 0))


def masked_elements(
    scores: Array, labels: Array, pos_weight: Array | None, where: Array | None, fill: float = 0
) -> tuple[Array, Array, Array | None]:
    """All in the compute dtype, and harmless where masked, so that nothing there meets a product."""
    dtype = compute_dtype(scores.dtype)
    x, y = scores.astype(dtype), labels.astype(dtype)
    if jnp.issubdtype(labels.dtype, jnp.integer):
        y = jnp.where((labels == 0) | (labels == 1), y, jnp.nan)
    if where is None:
        return x, y, pos_weight
    if pos_weight is not None:
        pos_weight = jnp.where(where, pos_weight, 1)
    return jnp.where(where, x, fill), jnp.where(where, y, 0), pos_weight


def smoothed(y: Array, smoothing: Array | None) -> Array:
    return y if smoothing is None else (1 - smoothing) * y + smoothing / 2


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


# jax's own rule is σ·(1 − σ), which is 0 from x = 17 on in float32.
def _sigmoid_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x,), (d_x,) = primals, tangents
    return sigmoid(x), sigmoid(x) * sigmoid(-x) * d_x


sigmoid.defjvp(_sigmoid_jvp)


@jax.custom_jvp
def product(coefficient: Array, term: Array) -> Array:
    """Coefficient · term, with 0 · inf = 0."""
    return coefficient * jnp.where(coefficient == 0, 0, term)


# The derivative by the coefficient is the term, infinite or not; the other one meets no infinity, softplus' being σ.
def _product_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (coefficient, term), (d_coefficient, d_term) = primals, tangents
    tangent = jnp.zeros_like(term)
    if not isinstance(d_coefficient, SymbolicZero):
        tangent = tangent + d_coefficient * term
    if not isinstance(d_term, SymbolicZero):
        tangent = tangent + coefficient * d_term
    return product(coefficient, term), tangent


product.defjvp(_product_jvp, symbolic_zeros=True)
