"""0 · inf in a loss: a coefficient of exactly 0 removes an infinite term, and −inf gives a coefficient no gradient."""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero


def silenced(term: Array, *coefficients: Array | float | None) -> Array:
    """`term`, but 0 where it is infinite and one of the coefficients that multiply it is 0; NaN stays NaN.

    Apply it before the product: then an infinity meets neither the coefficient in the value nor a cotangent of 0 in the
    backward pass. Constant and traced coefficients behave alike; None stands for 1.

    Args:
        term: floating.
        coefficients: broadcastable to `term` at equal rank, or scalars.
    """
    zeros = [coefficient == 0 for coefficient in coefficients if coefficient is not None]
    if not zeros:
        return term
    return jnp.where(reduce(jnp.logical_or, zeros) & jnp.isinf(term), 0, term)


def scaled_logits(logits: Array, scale: Array | None) -> Array:
    """The product, in the dtype of the scale. −inf stays −inf and gives the scale no gradient."""
    if scale is None:
        return logits
    is_dead = logits == -jnp.inf
    return jnp.where(is_dead, -jnp.inf, scale * jnp.where(is_dead, 0, logits).astype(scale.dtype))


@jax.custom_jvp
def weighed_log(t: Array, log_p: Array) -> Array:
    """A target's entry times a log-probability, with 0 · log 0 = 0."""
    return t * jnp.where((t == 0) & (log_p == -jnp.inf), 0, log_p)


# The slope with respect to t is log 0 where t is not 0; applied as two finite factors, so that a cotangent of 0 stays
# 0.
def _weighed_log_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (t, log_p), (d_t, d_log_p) = primals, tangents
    d_product = jnp.zeros_like(t) if isinstance(d_log_p, SymbolicZero) else t * d_log_p
    if not isinstance(d_t, SymbolicZero):
        is_dead, huge = log_p == -jnp.inf, jnp.finfo(log_p.dtype).max
        finite = jnp.where(is_dead & (t == 0), 0, jnp.maximum(log_p, -huge))
        d_product = d_product + finite * (jnp.where(is_dead & (t != 0), huge, 1) * d_t)
    return weighed_log(t, log_p), d_product


weighed_log.defjvp(_weighed_log_jvp, symbolic_zeros=True)
