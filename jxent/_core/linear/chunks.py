"""Rows in chunks: how many rows a chunk takes, and maps over the chunks that copy no more of a batch than one chunk.

Where chunks of C fill the N rows, chunk i of n holds the rows i, i+n, i+2n, …: a slice of the `[N, …]` array seen as
`[C, n, …]`, and if the batch is split over devices, each device has an equal part of every chunk. Where chunks do not
fill N, they are runs of rows plus one smaller chunk: a strided view would need a copy of everything it covers.

With a mask, the chunks take the unmasked rows first, by index, and chunks without any are skipped.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jxent._core.shards import varying_axes, zeros_of

# An accelerator reads and writes the float32 gradient of the kernel, 8·D·V bytes, once per chunk. To hide that behind
# its 2·C·D·V operations a chunk needs C ≥ 4 · (operations per second) / (bytes per second): some 1000 rows on a TPU
# v5e, 1200 on an H100, 2200 on a v6e. For a v5e the compiler plans about as much with 1024 as with 2048, depending on
# the shape. On a GPU twice as many rows move a fifth fewer bytes, by the plan for 8192 × 4096 × 128256 on an H200.
_ROWS_ON_TPU, _ROWS_ON_GPU = 2048, 4096
# Limit on the logits of one chunk on an accelerator.
_BYTES = 2 * 2**30
# On the CPU, from measurements: this much, or a quarter of the kernel's gradient if that is more. So the logits never
# dominate the memory, and wide kernels get the thousand or more rows that hide their gradient.
_BYTES_ON_CPU = 64 * 2**20
# Rows of a chunk if the bytes per row, or the number of rows, are symbolic.
_FEW_ROWS = 512
# How many chunks to make of masked rows (on average half a chunk is wasted), and the fewest rows in such a chunk, so
# that the cost per chunk does not show.
_MASKED_CHUNKS, _FEWEST_MASKED_ROWS = 4, 1024
_MASKED_CHUNKS_ON_CPU, _FEWEST_MASKED_ROWS_ON_CPU = 16, 128


class ChunkPlan(NamedTuple):
    """`number` chunks of `size` rows each, then one of `remainder` rows."""

    number: Any
    size: int
    remainder: int = 0


class Extent(NamedTuple):
    """What to cut into chunks.

    Attributes:
        num_rows: N, above 0; may be symbolic, as during export.
        num_classes: V, and `depth` is D; either may be symbolic.
        itemsize: of the logits.
        num_devices: how many devices share the rows or the classes of a chunk.
        num_blocks: how many equal runs the rows form; each gives the same share of every chunk of masked rows.
        kind: jax's name for the device.
    """

    num_rows: Any
    num_classes: Any
    depth: Any
    itemsize: int
    num_devices: int
    num_blocks: int
    kind: str

    @property
    def is_on_cpu(self) -> bool:
        return self.kind == "cpu"

    @property
    def most_rows(self) -> int:
        """The most rows in a chunk, which the devices share."""
        if not (isinstance(self.num_classes, int) and isinstance(self.depth, int)):
            return _FEW_ROWS
        row_bytes = self.num_classes * self.itemsize
        if self.is_on_cpu:
            allowed = (
                self.num_devices * max(_BYTES_ON_CPU, row_bytes * self.depth // self.num_devices // 4) // row_bytes
            )
        else:
            hiding = _ROWS_ON_TPU if self.kind.startswith("TPU") else _ROWS_ON_GPU
            allowed = self.num_devices * min(hiding, _BYTES // row_bytes)
        return max(allowed if isinstance(self.num_rows, int) else min(allowed, _FEW_ROWS), 1)


def plan_chunks(extent: Extent, chunk_size: int | None) -> ChunkPlan:
    """Chunks of `chunk_size` rows; if None, of a size that suits the device and that fills the rows if possible."""
    num_rows, size = extent.num_rows, chunk_size
    if size is None:
        fewest = -(-num_rows // extent.most_rows)
        # Chunks below half of the allowed size would cost more than a remainder.
        number = next((n for n in range(fewest, 2 * fewest) if num_rows % n == 0), fewest)
        size = -(-num_rows // number)
    size = min(size, num_rows)
    return ChunkPlan(num_rows // size, size, num_rows % size)


def plan_unmasked(extent: Extent, chunk_size: int | None) -> ChunkPlan:
    """As `plan_chunks`, for rows taken by index: the last chunk may be short, there is no remainder, and each block
    gives equally many rows to a chunk.
    """
    in_block, size = extent.num_rows // extent.num_blocks, chunk_size
    if size is None:
        size = extent.most_rows
        if isinstance(extent.num_rows, int):
            number, fewest = _MASKED_CHUNKS, _FEWEST_MASKED_ROWS
            if extent.is_on_cpu:
                number, fewest = _MASKED_CHUNKS_ON_CPU, _FEWEST_MASKED_ROWS_ON_CPU
            size = min(size, max(-(-extent.num_rows // number), extent.num_devices * fewest))
    per_block = -(-size // extent.num_blocks)
    number = -(-in_block // per_block)
    per_block = -(-in_block // number) if isinstance(in_block, int) else per_block
    return ChunkPlan(number, per_block * extent.num_blocks)


class Order(NamedTuple):
    """The order in which the rows of each block are taken.

    Attributes:
        row: `[blocks, number · size / blocks]`, row indices within the block; out of range where there is no row.
        place: `[blocks, N / blocks]`, the position of each row in this order.
        number: how many chunks have unmasked rows.
    """

    row: Array
    place: Array
    number: Array


def unmasked_first(where: Array, plan: ChunkPlan, num_blocks: int, is_shared: bool) -> Order:
    """Orders the unmasked rows first, then the others; both keep their order.

    Devices that share the classes communicate in each chunk: with `is_shared`, all run equally many.
    """
    where = where.reshape(num_blocks, where.shape[0] // num_blocks)
    per_block = plan.size // num_blocks
    row = jnp.argsort(jnp.logical_not(where), axis=1, stable=True).astype(jnp.int32)
    place = jnp.argsort(row, axis=1).astype(jnp.int32)
    missing = plan.number * per_block - where.shape[1]
    row = jnp.pad(row, ((0, 0), (0, missing)), constant_values=jnp.iinfo(jnp.int32).max)
    number = (jnp.max(jnp.sum(where, 1, dtype=jnp.int32)) + (per_block - 1)) // per_block
    axes = tuple(sorted(varying_axes(number), key=str)) if is_shared else ()
    return Order(row, place, lax.pmax(number, axes) if axes else number)


def map_chunks(f: Callable[[Any], tuple[Any, Any]], arrays: Any, plan: ChunkPlan) -> tuple[Any, Any]:
    """Applies `f` to each chunk of `arrays`, a pytree of `[N, …]` arrays.

    Args:
        f: chunk → (arrays `[C, …]`, arrays to sum over the chunks). It runs under `jax.checkpoint`, and the sums are
            made outside of it, so reverse mode keeps only the index of a chunk.
        arrays: the pytree.
        plan: how to cut it.

    Returns:
        The first part for all rows, `[N, …]`, and the sums.
    """
    f = jax.checkpoint(f, prevent_cse=False)
    if plan.number == 1 and not plan.remainder:
        return f(arrays)

    strided = not plan.remainder
    if strided:
        arrays = jax.tree.map(lambda a: a.reshape(plan.size, plan.number, *a.shape[1:]), arrays)

    def chunk_at(i: Array) -> Any:
        if strided:
            return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, i, 1, keepdims=False), arrays)
        return jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, i * plan.size, plan.size), arrays)

    def step(sums: Any, i: Array) -> tuple[Any, Any]:
        outputs, terms = f(chunk_at(i))
        return jax.tree.map(jnp.add, sums, terms), outputs

    sums = zeros_of(jax.eval_shape(lambda: f(chunk_at(jnp.int32(0)))[1]))
    sums, outputs = lax.scan(step, sums, jnp.arange(plan.number, dtype=jnp.int32))
    if strided:
        outputs = jax.tree.map(lambda a: a.swapaxes(0, 1), outputs)
    outputs = jax.tree.map(lambda a: a.reshape(a.shape[0] * a.shape[1], *a.shape[2:]), outputs)
    if plan.remainder:
        last, terms = f(jax.tree.map(lambda a: a[plan.number * plan.size :], arrays))
        outputs = jax.tree.map(lambda a, b: jnp.concatenate((a, b)), outputs, last)
        sums = jax.tree.map(jnp.add, sums, terms)
    return outputs, sums


def map_unmasked(f: Callable[[Any], tuple[Any, Any]], arrays: Any, plan: ChunkPlan, order: Order) -> tuple[Any, Any]:
    """`map_chunks` in an `order`, over the chunks that have unmasked rows; the results of other chunks are 0.

    A bool array among `arrays` is False where there is no row. Under `jax.vmap` over the order every chunk is run.
    """
    num_blocks, per_block = order.row.shape[0], plan.size // order.row.shape[0]
    arrays = jax.tree.map(lambda a: a.reshape(*order.place.shape, *a.shape[1:]), arrays)

    def of_block(a: Array, row: Array) -> Array:
        if a.dtype == jnp.bool_:
            return jnp.take(a, row, 0, mode="fill", fill_value=False)
        return jnp.take(a, row, 0, mode="clip")

    def run(i: Array) -> tuple[Any, Any]:
        row = lax.dynamic_slice_in_dim(order.row, i * per_block, per_block, 1)
        taken = jax.tree.map(lambda a: jax.vmap(of_block)(a, row), arrays)
        outputs, terms = f(jax.tree.map(lambda a: a.reshape(plan.size, *a.shape[2:]), taken))
        return jax.tree.map(lambda a: a.reshape(num_blocks, per_block, *a.shape[1:]), outputs), terms

    of_none, no_terms = zeros_of(jax.eval_shape(run, jnp.int32(0)))

    # Includes the conditional: outside, it would keep residuals of its branches for every chunk.
    @partial(jax.checkpoint, prevent_cse=False)
    def step(sums: Any, i: Array) -> tuple[Any, Any]:
        def added(sums: Any) -> tuple[Any, Any]:
            outputs, terms = run(i)
            return jax.tree.map(jnp.add, sums, terms), outputs

        return lax.cond(i < order.number, added, lambda sums: (sums, of_none), sums)

    sums, outputs = lax.scan(step, no_terms, jnp.arange(plan.number, dtype=jnp.int32))

    def in_place(a: Array) -> Array:
        a = jnp.moveaxis(a, 0, 1).reshape(num_blocks, plan.number * per_block, *a.shape[3:])
        a = jax.vmap(lambda a, place: jnp.take(a, place, 0, mode="clip"))(a, order.place)
        return a.reshape(math.prod(order.place.shape), *a.shape[2:])

    return jax.tree.map(in_place, outputs), sums
