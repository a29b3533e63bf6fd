"""Where XLA is not to fuse or share; `jax.lax.platform_dependent` picks when the program is lowered."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jxent._core.shards import aligned


def cpu_barrier(arrays: Any) -> Any:
    """A pytree of arrays, unchanged. On the CPU, XLA will not fuse or share what lies on its two sides."""
    return _barrier(("cpu",), arrays)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _barrier(platforms: tuple[str, ...], arrays: Any) -> Any:
    barriers = dict.fromkeys(platforms, lax.optimization_barrier)
    # A barrier aligns what passes it, and all branches must agree.
    return lax.platform_dependent(aligned(arrays), **barriers, default=_same)


# jax's own rule puts the tangents behind one barrier, which jax 0.12 cannot transpose where some of them are constants.
# Tangents need none: what is to stay apart are the primal passes.
def _barrier_jvp(platforms: tuple[str, ...], primals: Any, tangents: Any) -> tuple[Any, Any]:
    (arrays,), (d_arrays,) = primals, tangents
    return _barrier(platforms, arrays), aligned(d_arrays)


_barrier.defjvp(_barrier_jvp)


def _same(arrays: Any) -> Any:
    return arrays


@jax.custom_jvp
def cpu_whole(x: Array) -> Array:
    """`x`, unchanged, which XLA:CPU is to make in one loop: else a sum of it takes in what it can of that (neither log1p
    nor a select), and what remains is written out part by part.
    """
    return lax.platform_dependent(x, cpu=_selected, default=_same)


def _cpu_whole_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return cpu_whole(*primals), tangents[0]


cpu_whole.defjvp(_cpu_whole_jvp)


def _selected(x: Array) -> Array:
    return lax.optimization_barrier(jnp.where(x == 0, 0, x))


def remade(*platforms: str) -> Callable[[Callable[..., Array]], Callable[..., Array]]:
    """Decorates an elementwise function of arrays and Nones: reverse mode keeps its arguments, as under `jax.checkpoint`.

    On `platforms` the derivatives are made apart from the value; elsewhere XLA may share what they have in common. The
    barriers of `jax.checkpoint` hold the cotangent too, which makes an array of the one number that it is where a mean is
    differentiated.
    """

    def decorated(f: Callable[..., Array]) -> Callable[..., Array]:
        value = jax.custom_jvp(f)

        def jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
            moving = [i for i, t in enumerate(tangents) if not (t is None or isinstance(t, SymbolicZero))]

            def tangent(primals: Any, d_moving: Any) -> Array:
                arguments = list(_barrier(platforms, primals))

                def of_moving(*values: Array) -> Array:
                    for i, argument in zip(moving, values, strict=True):
                        arguments[i] = argument
                    return f(*arguments)

                return jax.jvp(of_moving, tuple(arguments[i] for i in moving), d_moving)[1]

            d_moving = tuple(tangents[i] for i in moving)
            return value(*primals), jax.checkpoint(tangent, prevent_cse=False)(primals, d_moving)

        value.defjvp(jvp, symbolic_zeros=True)

        @wraps(f)
        def aligned_value(*arguments: Array | None) -> Array:
            return value(*aligned(arguments))

        return aligned_value

    return decorated
