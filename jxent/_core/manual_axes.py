"""Inside `shard_map`: over which mesh axes a value varies, and making values vary alike.

With `check_vma` on, jax knows this of every value, and gives a value that is made to vary the transpose that it needs:
its cotangents are added over the axis. Outside `shard_map`, and with `check_vma` off, nothing varies and nothing is done.
"""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


def varying_axes(*trees: Any) -> frozenset[Any]:
    """The axes over which any array of these pytrees varies."""
    leaves = jax.tree.leaves(trees)
    return frozenset().union(*(_varying(jax.typeof(leaf)) for leaf in leaves))


def as_varying(tree: Any, axes: Iterable[Any]) -> Any:
    """Every array of the pytree, made to vary over these axes too."""

    def cast(a: Array) -> Array:
        missing = tuple(sorted(set(axes) - varying_axes(a), key=str))
        return lax.pcast(a, missing, to="varying") if missing else a

    return jax.tree.map(cast, tree)


def zeros_of(structs: Any) -> Any:
    """Zeros of the shapes, dtypes and varying axes of the results of `jax.eval_shape`."""
    return jax.tree.map(lambda s: as_varying(jnp.zeros(s.shape, s.dtype), _varying(s)), structs)


def _varying(aval: Any) -> frozenset[Any]:
    manual = aval.manual_axis_type
    return frozenset() if manual is None else manual.varying
