"""What one backend needs and the others do not; `jax.lax.platform_dependent` picks when the program is lowered."""

from typing import Any

from jax import lax

from jxent._core.shards import aligned


def cpu_barrier(arrays: Any) -> Any:
    """A pytree of arrays, unchanged. On the CPU, XLA will not fuse or share what lies on its two sides."""
    # A barrier aligns what passes it, and both branches must agree.
    return lax.platform_dependent(aligned(arrays), cpu=lax.optimization_barrier, default=_same)


def _same(arrays: Any) -> Any:
    return arrays
