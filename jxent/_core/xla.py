"""Barriers against fusion and sharing in XLA; `jax.lax.platform_dependent` picks them when the program is lowered."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jxent._core.shards import aligned


def cpu_barrier(arrays: Any) -> Any:
    """Returns `arrays` unchanged, and stops XLA:CPU from fusing or sharing across this point."""
    return _barrier(("cpu",), arrays)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _barrier(platforms: tuple[str, ...], arrays: Any) -> Any:
    barriers = dict.fromkeys(platforms, lax.optimization_barrier)
    # A barrier aligns its operands, and all branches must agree.
    return lax.platform_dependent(aligned(arrays), **barriers, default=_same)


# jax's own rule puts the tangents behind one barrier, which jax 0.12 cannot transpose if some of them are constants.
# Tangents need no barrier: only the primal passes must stay separate.
def _barrier_jvp(platforms: tuple[str, ...], primals: Any, tangents: Any) -> tuple[Any, Any]:
    (arrays,), (d_arrays,) = primals, tangents
    return _barrier(platforms, arrays), aligned(d_arrays)


_barrier.defjvp(_barrier_jvp)


def _same(arrays: Any) -> Any:
    return arrays


@jax.custom_jvp
def cpu_whole(x: Array) -> Array:
    """Returns `x` unchanged, and makes XLA:CPU compute it in one loop. XLA would otherwise fuse part of it into a sum
    (all but log1p and selects) and materialise the rest piece by piece.
    """
    return lax.platform_dependent(x, cpu=_behind_barrier, default=_same)


def _cpu_whole_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return cpu_whole(*primals), tangents[0]


cpu_whole.defjvp(_cpu_whole_jvp)


def _behind_barrier(x: Array) -> Array:
    return lax.optimization_barrier(jnp.where(x == 0, 0, x))


def remade(
    *platforms: str, value: Callable[..., Any] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a function of pytrees of arrays: reverse mode keeps its arguments, as under `jax.checkpoint`.

    On `platforms` the derivatives are computed separately from the value; elsewhere XLA may share common parts. Unlike
    the barriers of `jax.checkpoint`, these leave out the cotangent, which for the gradient of a mean would turn one
    number into an array. `value` is another way to compute the same value; it need not be differentiable.
    """

    def decorated(f: Callable[..., Any]) -> Callable[..., Any]:
        primal = jax.custom_jvp(f if value is None else value)

        def jvp(primals: Any, tangents: Any) -> tuple[Any, Any]:
            leaves, structure = jax.tree.flatten(primals)
            d_leaves = jax.tree.leaves(tangents)
            perturbed = tuple(i for i, d in enumerate(d_leaves) if not isinstance(d, SymbolicZero))
            d_perturbed = tuple(d_leaves[i] for i in perturbed)

            def tangent(leaves: Any, d_perturbed: Any) -> Any:
                constant = _barrier(platforms, leaves)

                def of_perturbed(*values: Array) -> Any:
                    arguments = list(constant)
                    for i, leaf in zip(perturbed, values, strict=True):
                        arguments[i] = leaf
                    return f(*jax.tree.unflatten(structure, arguments))

                return jax.jvp(of_perturbed, tuple(constant[i] for i in perturbed), d_perturbed)[1]

            return primal(*primals), jax.checkpoint(tangent, prevent_cse=False)(leaves, d_perturbed)

        primal.defjvp(jvp, symbolic_zeros=True)

        @wraps(f)
        def aligned_value(*arguments: Any) -> Any:
            return primal(*aligned(arguments))

        return aligned_value

    return decorated
