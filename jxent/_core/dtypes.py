"""The dtype of a result."""

from typing import Any

import jax.numpy as jnp


def compute_dtype(dtype: Any) -> Any:
    """float32 for narrower floating dtypes; others stay as they are."""
    return jnp.dtype(jnp.float32) if jnp.finfo(dtype).bits < 32 else jnp.dtype(dtype)
