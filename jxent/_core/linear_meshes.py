"""The fused loss under `jit` on a mesh: what jax must be told so that devices send each other no more than they need."""

from functools import partial
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import NamedSharding, reshard
from jax.sharding import PartitionSpec as P

from jxent._core.linear_rows import Config, LinearAux, PerRow, Shared, evaluate_linear
from jxent._core.targets import is_ids


def evaluate_on_mesh(
    config: Config, rows: PerRow, shared: Shared, coefficient: Array | None
) -> tuple[Array, LinearAux | None]:
    """`evaluate_linear`, of arrays that may be split over a mesh."""
    hidden, kernel = jax.typeof(rows.hidden).sharding, jax.typeof(shared.kernel).sharding
    mesh = kernel.mesh if hidden.mesh.empty else hidden.mesh
    if mesh.explicit_axes:
        return _evaluate_split(config, mesh, rows, shared, coefficient)
    if mesh.auto_axes and not mesh.manual_axes:
        # Where the kernel is split over D it is gathered once, before the loop, not the logits of each chunk added up.
        spec = P(P.UNCONSTRAINED, None) if config.transpose_kernel else P(None, P.UNCONSTRAINED)
        shared = shared._replace(kernel=lax.with_sharding_constraint(shared.kernel, NamedSharding(mesh, spec)))
        config = config._replace(num_devices=mesh.size)
    return evaluate_linear(config, rows, shared, coefficient)


def _evaluate_split(
    config: Config, mesh: Any, rows: PerRow, shared: Shared, coefficient: Array | None
) -> tuple[Array, LinearAux | None]:
    """A mesh with Explicit axes says at trace time how arrays are split, and so each device takes its rows and its
    classes in a `shard_map`: it adds up the kernel's gradient over the devices once, where XLA by itself would do so for
    each chunk. A kernel split over D, or over the axes that split the rows, is gathered once.
    """
    row_entries = tuple(jax.typeof(rows.hidden).sharding.spec[:-1])
    row_axes = tuple(name for entry in row_entries for name in _names(entry))
    class_entry = jax.typeof(shared.kernel).sharding.spec[int(not config.transpose_kernel)]
    vocab = tuple(name for name in _names(class_entry) if name not in row_axes) or None

    per_row, per_class = P(*row_entries), P(vocab)
    specs = dict.fromkeys(PerRow._fields, per_row) | {name: P() for name in Shared._fields}
    specs |= {"hidden": P(*row_entries, None), "bias": per_class, "class_weight": per_class}
    specs["kernel"] = P(vocab, None) if config.transpose_kernel else P(None, vocab)
    if not is_ids(rows.labels):
        specs["labels"] = P(*row_entries, vocab)
    in_specs = _specs_of(rows, specs), _specs_of(shared, specs), None if coefficient is None else per_row
    out_specs = per_row if coefficient is None else P(), (per_row, per_row) if config.with_aux else None

    def evaluated(rows: PerRow, shared: Shared, coefficient: Array | None) -> tuple[Array, Any]:
        loss, aux = evaluate_linear(config._replace(vocab_axis_name=vocab), rows, shared, coefficient)
        loss = loss if coefficient is None else lax.psum(loss, row_axes)
        return loss, aux if aux is None else tuple(aux)

    @jax.jit
    def split(*arguments: Any) -> tuple[Array, Any]:
        shardings = jax.tree.map(partial(NamedSharding, mesh), in_specs)
        f = jax.shard_map(
            evaluated, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names=frozenset(mesh.explicit_axes)
        )
        return f(*reshard(arguments, shardings))

    loss, aux = split(rows, shared, coefficient)
    return loss, aux if aux is None else LinearAux(*aux)


def _names(entry: Any) -> tuple[Any, ...]:
    """The mesh axes of one entry of a PartitionSpec."""
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)


def _specs_of(arrays: Any, specs: dict[str, P]) -> Any:
    """The spec of each field, None where that is None."""
    return type(arrays)(*(None if a is None else specs[name] for name, a in arrays._asdict().items()))
