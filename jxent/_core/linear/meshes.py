"""The fused loss under `jit` on a mesh: what to tell jax so that devices exchange no more than they need."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array, lax
from jax.sharding import NamedSharding, reshard
from jax.sharding import PartitionSpec as P

from jxent._core.shards import varying_axes


class Placement(NamedTuple):
    """How the arrays of one call are laid out on a mesh with Explicit axes.

    Attributes:
        mesh: the mesh; a `shard_map` around the call may have made some axes Manual.
        row_entries: the row entries of the PartitionSpec of `hidden`.
        class_axes: the axes that split V and no rows.
        transpose_kernel: whether the kernel is `[V, D]`.
        are_ids: whether labels have no class axis.
        teacher_transpose_kernel: as `transpose_kernel`.
    """

    mesh: Any
    row_entries: tuple[Any, ...]
    class_axes: tuple[Any, ...]
    transpose_kernel: bool
    are_ids: bool
    teacher_transpose_kernel: bool

    @property
    def split_axes(self) -> tuple[Any, ...]:
        return tuple(name for entry in self.row_entries for name in _names(entry)) + self.class_axes

    def specs(self, of: Any) -> Any:
        """The PartitionSpecs of a pytree, chosen by the field names of its named tuples; None stays None. An array in
        no such field has one entry per row.
        """
        if not isinstance(of, tuple):
            return self._spec("", of)
        names = getattr(of, "_fields", None)
        if names is None:
            return tuple(self.specs(part) for part in of)
        made: Any = type(of)
        fields = zip(names, of, strict=True)
        return made(*(self.specs(a) if isinstance(a, tuple) else self._spec(name, a) for name, a in fields))

    def _spec(self, name: str, of: Any) -> P | None:
        if of is None:
            return None
        row_entries, classes = self.row_entries, self.class_axes or None
        if name in ("kernel", "teacher_kernel"):
            transposed = self.transpose_kernel if name == "kernel" else self.teacher_transpose_kernel
            return P(classes, None) if transposed else P(None, classes)
        if name in ("hidden", "teacher_hidden"):
            return P(*row_entries, None)
        if name == "labels" and not self.are_ids:
            return P(*row_entries, classes)
        if name in ("bias", "class_weight", "teacher_bias"):
            return P(classes)
        scalars = "logit_scale", "logit_softcap", "smoothing", "z_loss", "inverse_temperature"
        return P() if name in scalars else P(*row_entries)


def placement_of(
    hidden: Array, kernel: Array, transpose_kernel: bool, are_ids: bool, teacher_transpose_kernel: bool
) -> Placement | None:
    """The placement if the mesh has Explicit axes, which tell at trace time how arrays are split; else None."""
    mesh = mesh_of(hidden, kernel)
    if not mesh.explicit_axes:
        return None
    row_entries = tuple(jax.typeof(hidden).sharding.spec[:-1])
    row_axes = [name for entry in row_entries for name in _names(entry)]
    class_entry = jax.typeof(kernel).sharding.spec[int(not transpose_kernel)]
    class_axes = tuple(name for name in _names(class_entry) if name not in row_axes)
    return Placement(mesh, row_entries, class_axes, transpose_kernel, are_ids, teacher_transpose_kernel)


def mesh_of(hidden: Array, kernel: Array) -> Any:
    """The mesh of the arrays, empty if jax knows of none."""
    mesh = jax.typeof(hidden).sharding.mesh
    return jax.typeof(kernel).sharding.mesh if mesh.empty else mesh


def placed(placement: Placement | None, arguments: Any) -> Any:
    """Splits the arguments like `hidden` and `kernel`. A kernel split over D, or over the axes of the rows, is gathered
    once.
    """
    if placement is None:
        return arguments
    return reshard(arguments, jax.tree.map(partial(NamedSharding, placement.mesh), placement.specs(arguments)))


def gathered(hidden: Array, kernel: Array, transpose_kernel: bool) -> Array:
    """Returns the kernel. If Auto axes may split its D, tells XLA to gather it once, before the loop over the chunks:
    otherwise XLA would add up the logits of each chunk over the devices.
    """
    mesh = mesh_of(hidden, kernel)
    if mesh.empty or mesh.explicit_axes or mesh.manual_axes:
        return kernel
    spec = P(P.UNCONSTRAINED, None) if transpose_kernel else P(None, P.UNCONSTRAINED)
    return lax.with_sharding_constraint(kernel, NamedSharding(mesh, spec))


def num_sharing(hidden: Array) -> int:
    """How many devices may share the rows and classes of these arrays if XLA decides how to split them."""
    mesh = jax.typeof(hidden).sharding.mesh
    return math.prod(mesh.shape[name] for name in mesh.auto_axes)


def num_blocks(hidden: Array, num_rows: int) -> int:
    """How many equal runs the rows may form over devices without jax knowing: over Auto axes of a mesh, or over all
    devices if jax knows of no mesh, as under `jit(in_shardings=...)`.
    """
    is_unknown = jax.typeof(hidden).sharding.mesh.empty
    num_devices = jax.device_count() if is_unknown else num_sharing(hidden)
    return math.gcd(num_rows, num_devices) if isinstance(num_rows, int) else 1


def device_kind(hidden: Array, kernel: Array) -> str:
    """The kind of the mesh's devices, or of the default device if jax knows of no mesh."""
    device = getattr(mesh_of(hidden, kernel), "abstract_device", None)
    if device is None:
        device = getattr(jax.config, "jax_default_device", None) or jax.devices()[0]
        device = jax.devices(device)[0] if isinstance(device, str) else device
    return device.device_kind


def on_devices(placement: Placement | None, f: Callable[..., Any], arguments: Any, results: Any) -> Any:
    """`f(*arguments)` in its own `shard_map`, where each device has its rows and classes: this adds the kernel's
    gradient over the devices once, where XLA by itself would do so for each chunk.

    Axes that split nothing are left to XLA, since `jax.vmap` may split its batch over them. jax does not differentiate
    through this (in 0.12 it cannot within another `shard_map`), except for second derivatives.

    Args:
        placement: of `arguments`; None for no `shard_map`.
        f: a function from pytrees of named tuples to one.
        arguments: as returned by `placed`.
        results: a pytree with the structure of the result, with None where that has None.
    """
    if placement is None:
        return f(*arguments)
    mesh, split, in_specs = placement.mesh, placement.split_axes, placement.specs(arguments)
    unsplit = tuple(name for name in mesh.explicit_axes if name not in split)
    out_specs = placement.specs(results)
    if split:
        # Without `mesh`, shard_map takes the mesh of the context, where `auto_axes` has changed the types of axes.
        of_mesh = {} if unsplit else {"mesh": mesh}
        f = jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, axis_names=frozenset(split), **of_mesh)
    if unsplit:
        shardings = jax.tree.map(partial(NamedSharding, mesh), out_specs)
        f = jax.sharding.auto_axes(f, axes=unsplit, out_sharding=shardings)
    return f(*arguments)


def added_up(gradient: Array, like: frozenset[Any], axes: tuple[Any, ...] | None = None) -> Array:
    """Sums the devices' parts of a gradient of an array that itself varies only over the axes `like`: over all other
    axes, or those in `axes`.
    """
    over = varying_axes(gradient) - like
    over = tuple(sorted(over if axes is None else over & frozenset(axes), key=str))
    return lax.psum(gradient, over) if over else gradient


def _names(entry: Any) -> tuple[Any, ...]:
    """The mesh axes of one entry of a PartitionSpec."""
    if entry is None:
        return ()
    return entry if isinstance(entry, tuple) else (entry,)
