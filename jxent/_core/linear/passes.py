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
    map_chunks,
    map_unmasked,
    plan_chunks,
    plan_unmasked,
    unmasked_first,
)
from jxent._core.linear.meshes import device_kind, num_blocks, num_sharing
from jxent._core.linear.products import chunk_rows, d_hidden_of, d_kernel_of, narrowed, products_of
from jxent._core.linear.records import Config, Cotangents, Evaluated, Gradients, PerRow, Shared, mapped
from jxent._core.shards import aligned
from jxent._core.targets import is_ids


def evaluate(config: Config, per_row: PerRow, shared: Shared) -> Evaluated:
    cut = _cut(config, per_row, shared, Cotangents())

    def of_chunk(chunk: tuple[PerRow, Cotangents]) -> tuple[Evaluated, tuple[()]]:
        per_row = chunk[0]
        return chunk_rows(config, products_of(config, per_row, cut.shared), per_row, cut.shared)[0], ()

    return _finished(config, cut, _map(of_chunk, cut)[0])


def differentiate(
    config: Config, per_row: PerRow, shared: Shared, cotangents: Cotangents, requested: Gradients
) -> tuple[Evaluated, Gradients]:
    """The evaluated rows, and the gradients of Σ cotangent·row in the compute dtype. `requested`: None to skip."""
    cut = _cut(config, per_row, shared, cotangents)

    def of_chunk(chunk: tuple[PerRow, Cotangents]) -> tuple[Any, Shared]:
        per_row, cotangents = chunk

        def of_products(products: Array, requested_rows: PerRow, requested_shared: Shared) -> Any:
            replaced = _replaced(requested_rows, per_row), _replaced(requested_shared, cut.shared)
            evaluated, log_z = chunk_rows(config, products, *replaced)
            return _with_cotangent(cotangents, (evaluated.loss, evaluated.entropy, log_z)), evaluated

        products = products_of(config, per_row, cut.shared)
        requested_rows = _requested_only(per_row._replace(hidden=None), requested.per_row, products.dtype)
        requested_shared = _requested_only(cut.shared._replace(kernel=None), requested.shared, products.dtype)
        _, pull, evaluated = jax.vjp(of_products, products, requested_rows, requested_shared, has_aux=True)
        d_products, d_rows, d_shared = pull(_with_cotangent(cotangents, cotangents))
        d_products, unit = narrowed(d_products, per_row.hidden.dtype)
        # Without the barrier XLA would compute it inside each of its two matmuls, on a TPU once for every tile.
        d_products = lax.optimization_barrier(d_products)
        if requested.per_row.hidden is not None:
            d_rows = d_rows._replace(hidden=d_hidden_of(config, d_products, unit, per_row, cut.shared))
        if requested.shared.kernel is not None:
            d_shared = d_shared._replace(kernel=d_kernel_of(config, d_products, unit, per_row))
        return (evaluated, d_rows), d_shared

    (evaluated, d_rows), d_shared = _map(of_chunk, cut)
    return _finished(config, cut, evaluated), Gradients(_in_shape(cut, d_rows), d_shared)


class _Cut(NamedTuple):
    """The rows, flattened to one axis, and how to cut them into chunks.

    Attributes:
        arrays: those with a row axis: arguments and cotangents.
        shared: what all rows share.
        plan: of the chunks.
        order: the order of the rows; None to keep theirs.
        shape: the original row shape.
    """

    arrays: tuple[PerRow, Cotangents]
    shared: Shared
    plan: ChunkPlan
    order: Order | None
    shape: tuple[int, ...]


def _cut(config: Config, per_row: PerRow, shared: Shared, cotangents: Cotangents) -> _Cut:
    shape = per_row.hidden.shape[:-1]
    num_rows = math.prod(shape)
    kind = device_kind(per_row.hidden, shared.kernel)
    # The last chunk may be short if the number of rows is symbolic. And on the CPU jaxlib 0.10 converts a whole
    # bfloat16 array before a loop, but not before a conditional.
    is_converted = kind == "cpu" and per_row.labels.dtype == jnp.bfloat16
    if per_row.where is None and (is_converted or not isinstance(num_rows, int)):
        per_row = per_row._replace(where=jnp.ones_like(per_row.hidden[..., 0], jnp.bool_))
    per_row, shared, cotangents = _aligned(config, per_row, shared, cotangents)
    per_row, cotangents = jax.tree.map(lambda a: a.reshape(num_rows, *a.shape[len(shape) :]), (per_row, cotangents))
    extent, order = _extent(config, per_row, shared, kind), None
    plan = plan_chunks(extent, config.chunk_size) if per_row.where is None else plan_unmasked(extent, config.chunk_size)
    if per_row.where is not None and not (isinstance(plan.number, int) and plan.number == 1):
        order = unmasked_first(per_row.where, plan, extent.num_blocks, config.vocab_axis_name is not None)
    return _Cut((per_row, cotangents), shared, plan, order, shape)


def _extent(config: Config, per_row: PerRow, shared: Shared, kind: str) -> Extent:
    depth, num_classes = (shared.kernel.shape[i ^ config.transpose_kernel] for i in (0, 1))
    return Extent(
        num_rows=per_row.hidden.shape[0],
        num_classes=num_classes if config.beta is None else 2 * num_classes,  # the teacher's, too
        depth=depth,
        itemsize=compute_dtype(per_row.hidden.dtype).itemsize,
        num_devices=num_sharing(per_row.hidden),
        num_blocks=num_blocks(per_row.hidden, per_row.hidden.shape[0]),
        kind=kind,
    )


def _map(f: Any, cut: _Cut) -> tuple[Any, Any]:
    if cut.order is None:
        return map_chunks(f, cut.arrays, cut.plan)
    return map_unmasked(f, cut.arrays, cut.plan, cut.order)


def _finished(config: Config, cut: _Cut, evaluated: Evaluated) -> Evaluated:
    where = cut.arrays[0].where
    if where is not None and evaluated.aux is not None:
        predicted = jnp.where(where, evaluated.aux.predicted, config.no_class)
        evaluated = evaluated._replace(aux=evaluated.aux._replace(predicted=predicted))
    return _in_shape(cut, evaluated)


def _in_shape(cut: _Cut, arrays: Any) -> Any:
    return jax.tree.map(lambda a: a.reshape(*cut.shape, *a.shape[1:]), arrays)


def _aligned(
    config: Config, per_row: PerRow, shared: Shared, cotangents: Cotangents
) -> tuple[PerRow, Shared, Cotangents]:
    """Makes each argument vary over the axes of a `shard_map` that its gradient varies over. If that happened inside
    the loop, the gradient would be added over the devices for each chunk.

    Arrays that meet the classes get a part of their gradient from each device that holds some classes; those that
    belong to whole rows get all of it.
    """
    per_row, shared, cotangents = aligned((per_row, shared, cotangents), apart_from=config.vocab_axis_name)
    beside_classes = {
        "rows": {"hidden": per_row.hidden} | ({} if is_ids(per_row.labels) else {"labels": per_row.labels}),
        "shared": {
            name: getattr(shared, name) for name in ("kernel", "bias", "logit_scale", "logit_softcap", "class_weight")
        },
    }
    beside_classes = aligned(beside_classes)
    per_row, shared = per_row._replace(**beside_classes["rows"]), shared._replace(**beside_classes["shared"])
    return per_row, shared, cotangents


def _with_cotangent(cotangents: Cotangents, values: Any) -> tuple[Any, ...]:
    """The values that have a cotangent."""
    return tuple(value for value, cotangent in zip(values, cotangents, strict=True) if cotangent is not None)


def _requested_only(arrays: Any, requested: Any, dtype: Any) -> Any:
    """The wanted arrays in the compute dtype, so that their cotangents have it too; None for the others."""
    return mapped(lambda _, a: None if a is None else a.astype(dtype), requested, arrays)


def _replaced(some: Any, arrays: Any) -> Any:
    def pick(a: Any, b: Any) -> Any:
        return tuple(map(pick, a, b)) if isinstance(b, tuple) else b if a is None else a

    return type(arrays)(*map(pick, some, arrays))
