"""loss · miss^γ, where the miss `s` is the probability that a prediction gives to everything but its target.

Written directly, its derivatives are 0 · inf wherever s or the loss is 0 or the loss is inf. Here they are finite for
every γ ≥ 0, to any order: (s^γ)' = γ · s^γ · (s' / s), where s' vanishes with s, so that s' / s is of order 1; it is
taken as 0 at s = 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from jxent._core.binary_targets import BinaryTargets
from jxent._core.sigmoid_terms import (
    Coefficient,
    harmless,
    label_term,
    scaled,
    sigmoid,
    smoothed,
    softplus,
)
from jxent._core.silence import silenced
from jxent._core.xla import cpu_whole, remade


def modulated(loss: Array, miss: Array, gamma: Array) -> Array:
    """`loss · miss^gamma`, but `loss` where that is inf."""
    # An infinite loss has s = 1 if the target is one class, and no finite derivative with respect to s if it is
    # several.
    is_infinite = loss == jnp.inf
    return jnp.where(is_infinite, loss, _power(miss, gamma) * jnp.where(is_infinite, 0, loss))


# Without `remade`, XLA:GPU materialises what value and gradient share, up to three float32 arrays.
@remade("cpu", "cuda", "rocm")
@jax.jit
def sigmoid_focal_terms(logits: Array, targets: BinaryTargets, alpha: Array | None, gamma: Array | None) -> Array:
    """s·α_y · miss^γ · (y·softplus(−x) + (1−y)·softplus(x)) for each element, with the sample weight s,
    miss = (1−y)·σ(x) + y·σ(−x) and α_y = α·y + (1−α)·(1−y).

    `alpha`, or None, is shaped like `targets.pos_weight`, which is ignored here, as are class weights and smoothing.
    """
    x, t = harmless(logits, targets)
    y, alpha = t.labels, t.masked(alpha, 1)
    miss = (1 - y) * sigmoid(x) + y * sigmoid(-x)
    factors = (
        t.sample_weight,
        None if alpha is None else _balance(y, alpha)[0],
        None if gamma is None else _power(miss, gamma),
    )
    loss = label_term(smoothed, y, None, silenced(softplus(-x), *factors))
    loss = loss + label_term(smoothed, 1 - y, None, silenced(softplus(x), *factors))
    if gamma is not None:
        loss = modulated(loss, miss, gamma)
    if alpha is not None:
        loss = label_term(_balance, y, alpha, loss)
    return cpu_whole(targets.checked(scaled(loss, t.sample_weight)))


def _balance(y: Array, alpha: Array | None) -> Coefficient:
    """α·y + (1−α)·(1−y), and its derivatives with respect to y and α."""
    assert alpha is not None
    return alpha * y + (1 - alpha) * (1 - y), 2 * alpha - 1, 2 * y - 1


@jax.custom_jvp
def _power(base: Array, exponent: Array) -> Array:
    return base**exponent


def _power_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (base, exponent), (d_base, d_exponent) = primals, tangents
    power, tangent = _power(base, exponent), jnp.zeros_like(base)
    if not isinstance(d_base, SymbolicZero):
        tangent = tangent + exponent * (power * (_reciprocal(base) * d_base))
    if not isinstance(d_exponent, SymbolicZero):
        tangent = tangent + power * jnp.log(jnp.where(base == 0, 1, base)) * d_exponent
    return power, tangent


_power.defjvp(_power_jvp, symbolic_zeros=True)


@jax.custom_jvp
def _reciprocal(x: Array) -> Array:
    """1 / x, or 0 at 0."""
    is_zero = x == 0
    return jnp.where(is_zero, 0, 1 / jnp.where(is_zero, 1, x))


# Not d_x / x²: the square underflows long before the quotient does.
def _reciprocal_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x,), (d_x,) = primals, tangents
    return _reciprocal(x), -_reciprocal(x) * (_reciprocal(x) * d_x)


_reciprocal.defjvp(_reciprocal_jvp)
