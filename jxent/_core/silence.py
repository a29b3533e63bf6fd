"""0 · inf in a loss: a coefficient of exactly 0 takes an infinite term out of it."""

from functools import reduce

import jax.numpy as jnp
from jax import Array


def silenced(term: Array, *coefficients: Array | float | None) -> Array:
    """`term`, and 0 where it is infinite and one of the coefficients that multiply it is 0; NaN stays NaN.

    Apply it before the product. Selected away there, an infinity meets neither the coefficient in the value nor a
    cotangent of 0 on the way back. It does not matter whether a coefficient is a constant or traced; None stands for 1.

    Args:
        term: floating.
        coefficients: broadcastable to `term` at equal rank, or scalars.
    """
    zeros = [coefficient == 0 for coefficient in coefficients if coefficient is not None]
    if not zeros:
        return term
    return jnp.where(reduce(jnp.logical_or, zeros) & jnp.isinf(term), 0, term)
