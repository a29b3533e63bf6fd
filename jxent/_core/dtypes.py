"""Which dtype a result has."""

from typing import Any

import jax.numpy as jnp


def compute_dtype(dtype: Any) -> Any:
    """float32 for every narrower floating dtype, itself for the others."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)
