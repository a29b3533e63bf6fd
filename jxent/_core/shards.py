"""Classes split over axes of a `shard_map`: which ids a device owns, and what the devices exchange.

`vocab_axis_name` is always a tuple of axis names, or None if the classes are not split; then these functions do
nothing. `jax.shard_map` tracks over which mesh axes an array varies
(https://docs.jax.dev/en/latest/notebooks/shard_map.html). A sum over an axis no longer varies over it and transposes to
a broadcast, which makes gradients right whether they are taken inside or outside.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import NamedSharding, PartitionSpec, reshard

VocabAxis = tuple[Any, ...] | None


def varying_axes(x: Array) -> frozenset[Any]:
    """The manual mesh axes over which `x` varies: none outside of `shard_map` or with its `check_vma=False`."""
    return jax.typeof(x).manual_axis_type.varying


def aligned(arrays: Any, apart_from: VocabAxis = None) -> Any:
    """A pytree of arrays, unchanged, but each varies over every axis that any one varies over, except `apart_from`."""
    union = frozenset().union(*(varying_axes(x) for x in jax.tree.leaves(arrays))) - frozenset(apart_from or ())

    def widened(x: Array) -> Array:
        missing = tuple(sorted(union - varying_axes(x), key=str))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(widened, arrays)


def num_classes_of_all(num_classes: int, vocab_axis_name: VocabAxis) -> int:
    return num_classes if vocab_axis_name is None else num_classes * lax.axis_size(vocab_axis_name)


def own_ids(ids: Array, num_classes: int, vocab_axis_name: VocabAxis) -> Array:
    """Global ids → ids among this device's classes; −1 for ids of other devices and for bad (negative) ids."""
    if vocab_axis_name is None:
        return ids
    first = lax.axis_index(vocab_axis_name) * num_classes
    return jnp.where((ids >= first) & (ids < first + num_classes), ids - first, -1)


def summed(arrays: Any, vocab_axis_name: VocabAxis) -> Any:
    """Sums each array of a pytree over the devices, in one all-reduce; all must have one shape and dtype."""
    leaves, structure = jax.tree.flatten(arrays)
    if vocab_axis_name is None or not leaves:
        return arrays
    return jax.tree.unflatten(structure, list(lax.psum(jnp.stack(leaves), vocab_axis_name)))


def class_ids(shape: tuple[int, ...], axis: int) -> Array:
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def along(per_class: Array, ndim: int, axis: int) -> Array:
    """`[V]` → `[1, …, V, …, 1]` with V at `axis`."""
    return lax.expand_dims(per_class, [i for i in range(ndim) if i != axis])


def split_of(x: Array) -> tuple[Any, ...]:
    """The Explicit mesh axes that split each axis; Auto axes are unknown at trace time."""
    spec = jax.typeof(x).sharding.spec
    return (*spec, *[None] * (x.ndim - len(spec)))


def is_split(x: Array, axis: int) -> bool:
    return split_of(x)[axis] is not None


def resharded(x: Any, like: Array, entries: tuple[Any, ...]) -> Any:
    """Splits an array (or None) by these entries of a PartitionSpec, if the mesh of `like` has Explicit axes."""
    mesh = jax.typeof(like).sharding.mesh
    if x is None or mesh.empty or not mesh.explicit_axes:
        return x
    wanted = NamedSharding(mesh, PartitionSpec(*entries))
    return x if jax.typeof(x).sharding == wanted else reshard(x, wanted)


def entry_at(x: Array, y: Array, axis: int) -> Array:
    """`x` at the ids `y` of the row shape; anything where the id is negative.

    A mesh with Explicit axes refuses to gather along a split class axis, so there the entry is selected instead.
    """
    y = jnp.expand_dims(y, axis)
    if is_split(x, axis):
        return jnp.sum(jnp.where(class_ids(x.shape, axis) == y, x, 0), axis, dtype=x.dtype)
    return jnp.take_along_axis(x, jnp.maximum(y, 0), axis, mode="promise_in_bounds").squeeze(axis)


def entries_at(x: Array, ids: Array, axis: int) -> Array:
    """`entry_at` for K ids a row, `[…, K]`."""
    if is_split(x, axis):
        return jnp.moveaxis(lax.map(lambda y: entry_at(x, y, axis), jnp.moveaxis(ids, -1, 0)), 0, -1)
    at_axis = jnp.maximum(jnp.moveaxis(ids, -1, axis), 0)
    return jnp.moveaxis(jnp.take_along_axis(x, at_axis, axis, mode="promise_in_bounds"), axis, -1)


def zeros_of(structs: Any) -> Any:
    """Zeros of the shapes and dtypes of the results of `jax.eval_shape`, varying over the same axes."""

    def zeros(struct: Any) -> Array:
        varying = struct.manual_axis_type.varying if struct.manual_axis_type is not None else ()
        zero = jnp.zeros(struct.shape, struct.dtype)
        return lax.pcast(zero, tuple(sorted(varying, key=str)), to="varying") if varying else zero

    return jax.tree.map(zeros, structs)
