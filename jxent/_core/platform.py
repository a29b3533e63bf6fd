"""What one backend needs and the others do not; `jax.lax.platform_dependent` picks when the program is lowered."""

from typing import Any

import jax
from jax import lax

from jxent._core.shards import aligned


@jax.custom_jvp
def cpu_barrier(arrays: Any) -> Any:
    """A pytree of arrays, unchanged. On the CPU, XLA will not fuse or share what lies on its two sides."""
    # A barrier aligns what passes it, and both branches must agree.
    return lax.platform_dependent(aligned(arrays), cpu=lax.optimization_barrier, default=_same)


# jax's own rule puts the tangents behind one barrier, which jax 0.12 cannot transpose where some of them are constants.
# Tangents need none: what is to stay apart are the primal passes.
def _cpu_barrier_jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
    (arrays,), (d_arrays,) = primals, tangents
    return cpu_barrier(arrays), aligned(d_arrays)


cpu_barrier.defjvp(_cpu_barrier_jvp)


def _same(arrays: Any) -> Any:
    return arrays
