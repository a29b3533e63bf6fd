"""Counting: exact as far as the result's dtype represents integers (2²⁴ in float32), and rounded once beyond.

A float32 sum of ones can get stuck at 2²⁴, and an int32 sum wraps at 2³¹. So count in int32 over axes that are short
enough, and add these partial counts as pairs of numbers, where the low one carries over into the high one.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

INT32_MAX = 2**31 - 1
_LOW_BITS = 24


def size_of(shape: Sequence[Any], dtype: Any) -> Array:
    """The number of elements; dimensions may be symbolic."""
    known = math.prod(size for size in shape if isinstance(size, int))
    symbolic = (jnp.asarray(size, dtype) for size in shape if not isinstance(size, int))
    return math.prod(symbolic, start=jnp.asarray(known, dtype))


def count(mask: Array, axes: Sequence[int], dtype: Any, limit: int = INT32_MAX) -> Array:
    """Counts the True entries over the axes. `limit` is the most an int32 can count."""
    first, size = [], 1
    for axis in reversed(axes):
        length: Any = mask.shape[axis]
        if isinstance(length, int) and size * length <= limit:
            first.append(axis)
            size *= length
    if len(first) == len(axes):
        return jnp.sum(mask, first, dtype=jnp.int32).astype(dtype)
    return added(jnp.sum(mask, first, dtype=jnp.int32, keepdims=True), axes, dtype)


def added(counts: Array, axes: Sequence[int], dtype: Any) -> Array:
    """The sum of int32 counts over the axes."""
    halves = counts & (2**_LOW_BITS - 1), counts >> _LOW_BITS
    low, high = lax.reduce(halves, (np.int32(0), np.int32(0)), _with_carry, axes)
    return high.astype(dtype) * 2**_LOW_BITS + low.astype(dtype)


def _with_carry(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    low = a[0] + b[0]
    return low & (2**_LOW_BITS - 1), a[1] + b[1] + (low >> _LOW_BITS)
