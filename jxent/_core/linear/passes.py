"""Passes over the rows of one device, chunk by chunk: evaluation, and the gradients for given cotangents."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jxent._core.dtypes import compute_dtype
from jxent._core.linear.chunks import (
    ChunkPlan,
    Extent,
    Order,
    counted_first,
    map_chunks,
    map_counted,
    plan_chunks,
    plan_counted,
)
from jxent._core.linear.meshes import device_kind, num_blocks, num_sharing
from jxent._core.linear.products import chunk_rows, d_hidden_of, d_kernel_of, narrowed, products_of
from jxent._core.linear.records import Config, Cotangents, Evaluated, Gradients, PerRow, Shared, mapped
from jxent._core.shards import aligned
from jxent._core.targets import is_ids


def evaluate(config: Config, rows: PerRow, shared: Shared) -> Evaluated:
    cut = _cut(config, rows, shared, Cotangents())

    def of_chunk(chunk: tuple[PerRow, Cotangents]) -> tuple[Evaluated, tuple[()]]:
        rows = chunk[0]
        return chunk_rows(config, products_of(config, rows, cut.shared), rows, cut.shared)[0], ()

    return _finished(config, cut, _map(of_chunk, cut)[0])


def differentiate(
    config: Config, rows: PerRow, shared: Shared, cotangents: Cotangents, wanted: Gradients
) -> tuple[Evaluated, Gradients]:
    """The evaluated rows, and the gradients of Σ cotangent·row in the compute dtype. `wanted`: None to skip."""
    cut = _cut(config, rows, shared, cotangents)

    def of_chunk(chunk: tuple[PerRow, Cotangents]) -> tuple[Any, Shared]:
        rows, cotangents = chunk

        def of_products(products: Array, wanted_rows: PerRow, wanted_shared: Shared) -> Any:
            merged = _merged(wanted_rows, rows), _merged(wanted_shared, cut.shared)
            evaluated, log_z = chunk_rows(config, products, *merged)
            return _given(cotangents, (evaluated.loss, evaluated.entropy, log_z)), evaluated

        products = products_of(config, rows, cut.shared)
        wanted_rows = _selected(rows._replace(hidden=None), wanted.rows, products.dtype)
        wanted_shared = _selected(cut.shared._replace(kernel=None), wanted.shared, products.dtype)
        _, pull, evaluated = jax.vjp(of_products, products, wanted_rows, wanted_shared, has_aux=True)
        d_products, d_rows, d_shared = pull(_given(cotangents, cotangents))
        d_products, unit = narrowed(d_products, rows.hidden.dtype)
        # Without the barrier XLA would compute it inside each of its two matmuls, on a TPU once for every tile.
        d_products = lax.optimization_barrier(d_products)
        if wanted.rows.hidden is not None:
            d_rows = d_rows._replace(hidden=d_hidden_of(config, d_products, unit, rows, cut.shared))
        if wanted.shared.kernel is not None:
            d_shared = d_shared._replace(kernel=d_kernel_of(config, d_products, unit, rows))
        return (evaluated, d_rows), d_shared

    (evaluated, d_rows), d_shared = _map(of_chunk, cut)
    return _finished(config, cut, evaluated), Gradients(_in_shape(cut, d_rows), d_shared)


class _Cut(NamedTuple):
    """The rows, flattened to one axis, and how to cut them into chunks.

    Attributes:
        rows: the arrays with a row axis: arguments and cotangents.
        shared: what all rows share.
        plan: of the chunks.
        order: the order of the rows; None to keep theirs.
        shape: the original row shape.
    """

    rows: tuple[PerRow, Cotangents]
    shared: Shared
    plan: ChunkPlan
    order: Order | None
    shape: tuple[int, ...]


def _cut(config: Config, rows: PerRow, shared: Shared, cotangents: Cotangents) -> _Cut:
    shape = rows.hidden.shape[:-1]
    num_rows = math.prod(shape)
    kind = device_kind(rows.hidden, shared.kernel)
    # The last chunk may be short if the number of rows is symbolic. And on the CPU jaxlib 0.10 converts a whole
    # bfloat16 array before a loop, but not before a conditional.
    is_converted = kind == "cpu" and rows.labels.dtype == jnp.bfloat16
    if rows.where is None and (is_converted or not isinstance(num_rows, int)):
        rows = rows._replace(where=jnp.ones_like(rows.hidden[..., 0], jnp.bool_))
    rows, shared, cotangents = _aligned(config, rows, shared, cotangents)
    rows, cotangents = jax.tree.map(lambda a: a.reshape(num_rows, *a.shape[len(shape) :]), (rows, cotangents))
    extent, order = _extent(config, rows, shared, kind), None
    plan = plan_chunks(extent, config.chunk_size) if rows.where is None else plan_counted(extent, config.chunk_size)
    if rows.where is not None and not (isinstance(plan.number, int) and plan.number == 1):
        order = counted_first(rows.where, plan, extent.num_blocks, config.vocab_axis_name is not None)
    return _Cut((rows, cotangents), shared, plan, order, shape)


def _extent(config: Config, rows: PerRow, shared: Shared, kind: str) -> Extent:
    depth, num_classes = (shared.kernel.shape[i ^ config.transpose_kernel] for i in (0, 1))
    return Extent(
        num_rows=rows.hidden.shape[0],
        num_classes=num_classes if config.beta is None else 2 * num_classes,  # the teacher's, too
        depth=depth,
        itemsize=compute_dtype(rows.hidden.dtype).itemsize,
        num_devices=num_sharing(rows.hidden),
        num_blocks=num_blocks(rows.hidden, rows.hidden.shape[0]),
        kind=kind,
    )


def _map(f: Any, cut: _Cut) -> tuple[Any, Any]:
    if cut.order is None:
        return map_chunks(f, cut.rows, cut.plan)
    return map_counted(f, cut.rows, cut.plan, cut.order)


def _finished(config: Config, cut: _Cut, evaluated: Evaluated) -> Evaluated:
    where = cut.rows[0].where
    if where is not None and evaluated.aux is not None:
        predicted = jnp.where(where, evaluated.aux.predicted, config.no_class)
        evaluated = evaluated._replace(aux=evaluated.aux._replace(predicted=predicted))
    return _in_shape(cut, evaluated)


def _in_shape(cut: _Cut, of_rows: Any) -> Any:
    return jax.tree.map(lambda a: a.reshape(*cut.shape, *a.shape[1:]), of_rows)


def _aligned(config: Config, rows: PerRow, shared: Shared, cotangents: Cotangents) -> tuple[PerRow, Shared, Cotangents]:
    """Makes each argument vary over the axes of a `shard_map` that its gradient varies over. If that happened inside
    the loop, the gradient would be added over the devices for each chunk.

    Arrays that meet the classes get a part of their gradient from each device that holds some classes; those that
    belong to whole rows get all of it.
    """
    rows, shared, cotangents = aligned((rows, shared, cotangents), apart_from=config.vocab_axis_name)
    beside_classes = {
        "rows": {"hidden": rows.hidden} | ({} if is_ids(rows.labels) else {"labels": rows.labels}),
        "shared": {
            name: getattr(shared, name) for name in ("kernel", "bias", "logit_scale", "logit_softcap", "class_weight")
        },
    }
    beside_classes = aligned(beside_classes)
    rows, shared = rows._replace(**beside_classes["rows"]), shared._replace(**beside_classes["shared"])
    return rows, shared, cotangents


def _given(cotangents: Cotangents, values: Any) -> tuple[Any, ...]:
    """The values that have a cotangent."""
    return tuple(value for value, cotangent in zip(values, cotangents, strict=True) if cotangent is not None)


def _selected(arrays: Any, wanted: Any, dtype: Any) -> Any:
    """The wanted arrays in the compute dtype, so that their cotangents have it too; None for the others."""
    return mapped(lambda _, a: None if a is None else a.astype(dtype), wanted, arrays)


def _merged(some: Any, arrays: Any) -> Any:
    def of(a: Any, b: Any) -> Any:
        return tuple(map(of, a, b)) if isinstance(b, tuple) else b if a is None else a

    return type(arrays)(*map(of, some, arrays))
