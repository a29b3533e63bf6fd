"""Rows in chunks: how many rows one takes, and a map over the chunks of a batch that copies none of its arrays.

The N rows make `n` chunks of `C`. Where C·n = N, chunk i holds the rows i, i+n, i+2n, …: in `[N, …]` seen as `[C, n, …]`
those are one slice, and a batch that is split over devices has an equal part of every chunk on each of them. Where
chunks do not fill N, they are runs of rows, and the remainder is one more, smaller chunk: a strided view would need a
copy of all that it covers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jxent._core.shards import zeros_of

# What the logits of one chunk may take on a device, in the dtype they are computed in; or a quarter of the kernel's
# gradient, if that is more: so a chunk is never what fills the memory, and wide kernels, whose gradient is read and
# written once a chunk, get the thousand rows or more that hide this behind the matmuls.
_CHUNK_BYTES = 64 * 2**20
# Of a chunk that has to be filled with padding, and of one whose rows have a symbolic number of bytes.
_FEW_ROWS = 512


class ChunkPlan(NamedTuple):
    """`number` chunks of `size` rows each, and then one of `remainder` rows."""

    number: int
    size: int
    remainder: int


def chunk_rows_allowed(num_classes: int, depth: int, itemsize: int, num_devices: int) -> int:
    """The most rows that a chunk takes by default, of which each device has a part.

    Args:
        num_classes: V, which may be symbolic, as D may.
        depth: D.
        itemsize: of the logits.
        num_devices: how many share the rows or the classes.
    """
    if not (isinstance(num_classes, int) and isinstance(depth, int)):
        return _FEW_ROWS
    row_bytes = num_classes * itemsize
    budget = num_devices * max(_CHUNK_BYTES, row_bytes * depth // num_devices // 4)
    return max(budget // row_bytes, 1)


def plan_chunks(num_rows: int, chunk_rows: int, is_fixed: bool) -> ChunkPlan:
    """Chunks of `chunk_rows`; or, where that is not fixed, of no more, cut so that they fill the rows if they can.

    Args:
        num_rows: N, above 0; or symbolic, as while exporting, and then a multiple of the chunks (see `padding`).
        chunk_rows: positive.
        is_fixed: whether it is what the caller wants.
    """
    if not isinstance(num_rows, int):
        size = chunk_rows if is_fixed else min(chunk_rows, _FEW_ROWS)
        return ChunkPlan(num_rows // size, size, 0)
    if not is_fixed:
        fewest = -(-num_rows // chunk_rows)
        # Chunks of less than half of what is allowed would cost more than the remainder does.
        count = next((n for n in range(fewest, 2 * fewest) if num_rows % n == 0), fewest)
        chunk_rows = -(-num_rows // count)
    size = min(chunk_rows, num_rows)
    return ChunkPlan(num_rows // size, size, num_rows % size)


def padding(num_rows: Any, chunk_rows: int, is_fixed: bool) -> Any:
    """How many rows to add, so that chunks fill them: of a symbolic number of rows there can be no remainder."""
    if isinstance(num_rows, int):
        return 0
    size = plan_chunks(num_rows, chunk_rows, is_fixed).size
    return -(-num_rows // size) * size - num_rows


def map_chunks(f: Callable[[Any], tuple[Any, Any]], rows: Any, plan: ChunkPlan) -> tuple[Any, Any]:
    """Applies `f` to each chunk of `rows`, a pytree of `[N, …]` arrays.

    Args:
        f: chunk → (arrays `[C, …]`, arrays to sum over the chunks). It runs under `jax.checkpoint`, and the sums are
            made outside of it: so what reverse mode keeps of a chunk is its number.
        rows: the pytree.
        plan: how to cut it.

    Returns:
        The first part for all rows, `[N, …]`, and the sums.
    """
    f = jax.checkpoint(f, prevent_cse=False)
    if isinstance(plan.number, int) and plan.number == 1 and not plan.remainder:
        return f(rows)

    strided = not plan.remainder
    if strided:
        rows = jax.tree.map(lambda a: a.reshape(plan.size, plan.number, *a.shape[1:]), rows)

    def chunk_at(i: Array) -> Any:
        if strided:
            return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, 1, keepdims=False), rows)
        return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i * plan.size, plan.size), rows)

    def step(sums: Any, i: Array) -> tuple[Any, Any]:
        per_row, terms = f(chunk_at(i))
        return jax.tree.map(jnp.add, sums, terms), per_row

    sums = zeros_of(jax.eval_shape(lambda: f(chunk_at(jnp.int32(0)))[1]))
    sums, per_row = lax.scan(step, sums, jnp.arange(plan.number, dtype=jnp.int32))
    if strided:
        per_row = jax.tree.map(lambda a: a.swapaxes(0, 1), per_row)
    per_row = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), per_row)
    if plan.remainder:
        last, terms = f(jax.tree.map(lambda a: a[plan.number * plan.size :], rows))
        per_row = jax.tree.map(lambda a, b: jnp.concatenate((a, b)), per_row, last)
        sums = jax.tree.map(jnp.add, sums, terms)
    return per_row, sums
