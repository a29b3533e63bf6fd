"""Rows in chunks: how many rows one takes, and maps over the chunks of a batch that copy no more of it than a chunk.

Where chunks of C fill the N rows, chunk i of n holds the rows i, i+n, i+2n, …: in `[N, …]` seen as `[C, n, …]` those are one
slice, and a batch that is split over devices has an equal part of every chunk on each of them. Where chunks do not fill
N, they are runs of rows, and the remainder is one more, smaller chunk: a strided view would need a copy of all that it
covers.

Where rows are masked, the chunks take the rows that count first, by their numbers, and chunks without any are not run.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jxent._core.shards import varying_axes, zeros_of

# An accelerator reads and writes the float32 gradient of the kernel, 8·D·V bytes, once a chunk, and a chunk must be long
# enough to hide that behind its 2·C·D·V operations: C ≥ 4 · (operations a second) / (bytes a second), some 1000 rows on
# a TPU v5e, 1200 on an H100, 2200 on a v6e. For a v5e the compiler plans as much with 1024 as with 2048, more or less by
# the shape. On a GPU twice as many move a fifth fewer bytes, by the plan for 8192 × 4096 × 128256 on an H200.
_ROWS_ON_TPU, _ROWS_ON_GPU = 2048, 4096
# What the logits of one chunk may take on an accelerator.
_BYTES = 2 * 2**30
# On the CPU, as measured: so much, or a quarter of the kernel's gradient if that is more. So the logits are never what
# fills the memory, and wide kernels get the thousand rows or more that hide their gradient.
_BYTES_ON_CPU = 64 * 2**20
# Of a chunk whose rows have a symbolic number of bytes, or whose number is symbolic.
_FEW_ROWS = 512
# Into how many chunks masked rows are cut, of which half a one on average is run in vain; and the fewest rows that such a
# chunk has, lest what each costs shows.
_MASKED_CHUNKS, _FEWEST_MASKED_ROWS = 4, 1024
_MASKED_CHUNKS_ON_CPU, _FEWEST_MASKED_ROWS_ON_CPU = 16, 128


class ChunkPlan(NamedTuple):
    """`number` chunks of `size` rows each, and then one of `remainder` rows."""

    number: Any
    size: int
    remainder: int = 0


class Extent(NamedTuple):
    """What there is to cut.

    Attributes:
        num_rows: N, above 0; or symbolic, as while exporting.
        num_classes: V, and `depth` is D; either may be symbolic.
        itemsize: of the logits.
        num_devices: how many share the rows or the classes of a chunk.
        num_blocks: into how many equal runs the rows lie, of which each gives the same part of every chunk of masked rows.
        kind: of the device, as jax calls it.
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
        """Of a chunk, of which each device has a part."""
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
    """Chunks of `chunk_size` rows; or, for None, of what suits the device, cut so that they fill the rows if they can."""
    num_rows, size = extent.num_rows, chunk_size
    if size is None:
        fewest = -(-num_rows // extent.most_rows)
        # Chunks of less than half of what is allowed would cost more than the remainder does.
        number = next((n for n in range(fewest, 2 * fewest) if num_rows % n == 0), fewest)
        size = -(-num_rows // number)
    size = min(size, num_rows)
    return ChunkPlan(num_rows // size, size, num_rows % size)


def plan_counted(extent: Extent, chunk_size: int | None) -> ChunkPlan:
    """The same for rows that are taken by their number: the last of the chunks may lack some, and nothing remains. Each of
    the blocks gives as many rows to a chunk.
    """
    in_block, size = extent.num_rows // extent.num_blocks, chunk_size
    if size is None:
        size = extent.most_rows
        if isinstance(extent.num_rows, int):
            number, fewest = _MASKED_CHUNKS, _FEWEST_MASKED_ROWS
            if extent.is_on_cpu:
                number, fewest = _MASKED_CHUNKS_ON_CPU, _FEWEST_MASKED_ROWS_ON_CPU
            size = min(size, max(-(-extent.num_rows // number), extent.num_devices * fewest))
    own = -(-size // extent.num_blocks)
    number = -(-in_block // own)
    own = -(-in_block // number) if isinstance(in_block, int) else own
    return ChunkPlan(number, own * extent.num_blocks)


class Order(NamedTuple):
    """In which order the rows of each of the blocks are taken.

    Attributes:
        row: `[blocks, number · size / blocks]`, the numbers of rows within their block; of those that are not there, a number
            beyond.
        place: `[blocks, N / blocks]`, where in this order each row is.
        number: how many chunks have rows that count.
    """

    row: Array
    place: Array
    number: Array


def counted_first(where: Array, plan: ChunkPlan, num_blocks: int, is_shared: bool) -> Order:
    """The rows that count, and then the others, each as they lie.

    Devices that share the classes send each other something in each chunk: if `is_shared`, all run as many.
    """
    where = where.reshape(num_blocks, where.shape[0] // num_blocks)
    own = plan.size // num_blocks
    row = jnp.argsort(jnp.logical_not(where), axis=1, stable=True).astype(jnp.int32)
    place = jnp.argsort(row, axis=1).astype(jnp.int32)
    missing = plan.number * own - where.shape[1]
    row = jnp.pad(row, ((0, 0), (0, missing)), constant_values=jnp.iinfo(jnp.int32).max)
    number = (jnp.max(jnp.sum(where, 1, dtype=jnp.int32)) + (own - 1)) // own
    axes = tuple(sorted(varying_axes(number), key=str)) if is_shared else ()
    return Order(row, place, lax.pmax(number, axes) if axes else number)


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
    if plan.number == 1 and not plan.remainder:
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


def map_counted(f: Callable[[Any], tuple[Any, Any]], rows: Any, plan: ChunkPlan, order: Order) -> tuple[Any, Any]:
    """`map_chunks` in an `order`, of those chunks that have rows that count; where none does the results are 0.

    A bool among the `rows` is False of rows that are not there. Under `jax.vmap` over the order every chunk is run.
    """
    num_blocks, own = order.row.shape[0], plan.size // order.row.shape[0]
    rows = jax.tree.map(lambda a: a.reshape(*order.place.shape, *a.shape[1:]), rows)

    def of_block(a: Array, row: Array) -> Array:
        if a.dtype == jnp.bool_:
            return jnp.take(a, row, 0, mode="fill", fill_value=False)
        return jnp.take(a, row, 0, mode="clip")

    def run(i: Array) -> tuple[Any, Any]:
        row = lax.dynamic_slice_in_dim(order.row, i * own, own, 1)
        taken = jax.tree.map(lambda a: jax.vmap(of_block)(a, row), rows)
        per_row, terms = f(jax.tree.map(lambda a: a.reshape(plan.size, *a.shape[2:]), taken))
        return jax.tree.map(lambda a: a.reshape(num_blocks, own, *a.shape[1:]), per_row), terms

    of_none, no_terms = zeros_of(jax.eval_shape(run, jnp.int32(0)))

    # All of it, with the conditional: what that keeps for its branches would be kept of every chunk.
    @partial(jax.checkpoint, prevent_cse=False)
    def step(sums: Any, i: Array) -> tuple[Any, Any]:
        def added(sums: Any) -> tuple[Any, Any]:
            per_row, terms = run(i)
            return jax.tree.map(jnp.add, sums, terms), per_row

        return lax.cond(i < order.number, added, lambda sums: (sums, of_none), sums)

    sums, per_row = lax.scan(step, no_terms, jnp.arange(plan.number, dtype=jnp.int32))

    def in_place(a: Array) -> Array:
        a = jnp.moveaxis(a, 0, 1).reshape(num_blocks, plan.number * own, *a.shape[3:])
        a = jax.vmap(lambda a, place: jnp.take(a, place, 0, mode="clip"))(a, order.place)
        return a.reshape(math.prod(order.place.shape), *a.shape[2:])

    return jax.tree.map(in_place, per_row), sums
