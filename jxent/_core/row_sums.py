"""The sums over the classes of a row, in the form that XLA:CPU computes without an [N, V] array of its own.

XLA:CPU (jaxlib 0.10 to 0.12) fuses arithmetic, exp, min, max, iota and convert into a long reduction, but not a
select, a compare, a gather or a value with two users: each of these makes it write the whole [N, V] array out. So the
terms below exclude classes by arithmetic, and on the CPU a barrier gives each sum a conversion, a subtraction and even
broadcast constants of its own. Where an array is small (`_FEW_CLASSES`, `_others_in_windows`) or has a use anyway
(`exp_but_at`), a select is the faster. TPU and GPU fuse any form, and get these without the barriers.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType

# XLA:CPU sums rows up to here inside one fused loop; longer ones it first writes out, unless they are cut in windows.
LONGEST_FUSED_ROW = 32768
_WINDOW, _SHORTEST_WINDOW = 8192, 4096
# From here on it is cheaper to sum a label's window twice than to exclude one class everywhere, if it need not be sent.
_LEAST_CUT_AROUND_LABEL = 8192
# With so few classes a select costs less than the arithmetic that stands in for it.
_FEW_CLASSES = 8
# float32 tells integers apart up to here.
_EXACT_FLOAT32_INTEGERS = 2**24
_UNIT = 1 / _EXACT_FLOAT32_INTEGERS


class Operands(NamedTuple):
    """What the terms of a row sum are made of: [N, V] logits, [N] row_max, labels of either kind, [V] or None.

    `exp_of_others` has the [V] `position` of each class too: its id · 2⁻²⁴.
    """

    logits: Array
    row_max: Array
    labels: Array
    class_weight: Array | None
    one: Array
    highest: Array
    position: Array | None = None


class RowSums:
    """Sums terms over the class axis.

    That axis goes, at once: XLA:CPU does not vectorise what follows on an [N, 1] array, which at few classes takes longer
    than the sums.
    """

    def __init__(
        self,
        axis: int,
        cpu: bool,
        logits: Array,
        row_max: Array,
        labels: Array,
        class_weight: Array | None,
    ):
        dtype = row_max.dtype
        constants = (jnp.array(c, dtype) for c in (1, jnp.finfo(dtype).max))
        self.axis, self.cpu = axis, cpu
        self.operands = Operands(logits, row_max, labels, class_weight, *constants)

    def of(self, term: Callable[[Operands, int], Array]) -> Array:
        self._part()
        return row_sum(term(self.operands, self.axis), self.axis, self.cpu)

    def of_others(self) -> Array:
        """`exp_of_others`, for labels that are ids."""
        o = self.operands
        if self.cpu and _can_cut_around_label(o.logits, self.axis):
            self._part()
            return _others_in_windows(self.operands, self.axis)
        if not self.cpu or _few(o, self.axis) or o.logits.shape[self.axis] > _EXACT_FLOAT32_INTEGERS:
            return self.of(_exp_selected)
        # Of a float iota within a sum, XLA:CPU (jaxlib 0.10) gives all windows of a single row the numbers of the first.
        self.operands = o._replace(position=lax.iota(o.row_max.dtype, o.logits.shape[self.axis]) * _UNIT)
        return self.of(exp_of_others)

    def _part(self) -> None:
        if self.cpu:
            # Barriers stand in a row, so that no two are alike and merged. They take no sum before theirs: the sums are
            # to stay independent, for XLA reduces such over the devices of a mesh all at once.
            self.operands = lax.optimization_barrier(self.operands)


def row_sum(terms: Array, axis: int, cpu: bool) -> Array:
    """On the CPU rows beyond `LONGEST_FUSED_ROW` are summed in windows: otherwise XLA:CPU writes `terms` out, in memory
    that even `memory_analysis()` does not show. The windowed sum does not fit a TPU's VMEM, which needs none of this.
    The last barrier keeps what follows (a mean, say) from swallowing the sum, which would undo the fusion.
    """
    if not cpu:
        return jnp.sum(terms, axis)
    if terms.shape[axis] > LONGEST_FUSED_ROW and _can_cut(terms, axis):
        terms = _window_sums(terms, axis, _window(terms.shape[axis]))
    return lax.optimization_barrier(jnp.sum(terms, axis))


def _window_sums(terms: Array, axis: int, width: int) -> Array:
    """Over `width` classes each; the last window has what is left."""
    window, padding = [1] * terms.ndim, [(0, 0)] * terms.ndim
    window[axis], padding[axis] = width, (0, -terms.shape[axis] % width)
    sums = lax.reduce_window(terms, jnp.zeros((), terms.dtype), lax.add, window, window, padding)
    return lax.optimization_barrier(sums)


def _window(num_classes: int) -> int:
    """A width such that 2, 4, 8, … devices that share the classes cut between windows: they would have to send each other
    pieces of windows otherwise, thousands of numbers a row.
    """
    width = num_classes
    while width % 2 == 0 and width >= 2 * _SHORTEST_WINDOW:
        width //= 2
    return width if width <= LONGEST_FUSED_ROW else _WINDOW


def _can_cut(x: Array, axis: int) -> bool:
    """A mesh with Explicit axes refuses windows that its devices do not share evenly."""
    sharding, windows = jax.typeof(x).sharding, -(-x.shape[axis] // _window(x.shape[axis]))
    names = sharding.spec[axis] if is_split(x, axis) else ()
    names = names if isinstance(names, tuple) else (names,)
    return windows % math.prod(sharding.mesh.shape[name] for name in names) == 0


def _can_cut_around_label(logits: Array, axis: int) -> bool:
    """Not where devices may share the classes, which no trace-time question tells under `jit(in_shardings=...)`: they would
    have to send each other the window, or all of the logits.
    """
    mesh = jax.typeof(logits).sharding.mesh
    is_manual = not mesh.empty and all(kind == AxisType.Manual for kind in mesh.axis_types)
    is_whole = (is_manual or _num_cpu_devices() == 1) and not is_split(logits, axis)
    return is_whole and logits.shape[axis] >= _LEAST_CUT_AROUND_LABEL


def _num_cpu_devices() -> int:
    try:
        return jax.device_count("cpu")
    except RuntimeError:  # JAX_PLATFORMS may leave the CPU out. Nothing is compiled for it then.
        return 0


def _others_in_windows(o: Operands, axis: int) -> Array:
    """exp(d) summed over the windows without the label and, in the label's own, over all other classes."""
    num_classes = o.logits.shape[axis]
    # Near the square root: a row takes memory for one number of each window, and for the classes of one window.
    width = 128 if num_classes < 2**14 else 256 if num_classes < 2**16 else 512
    y = jnp.expand_dims(o.labels, axis)
    own, is_known = y // width, y >= 0
    sums = _window_sums(jnp.exp(_d(o, axis)), axis, width)
    # Selected, since XLA:CPU (jaxlib 0.10) would fuse a product with the windows' own sums, and take four times as long.
    others = jnp.sum(jnp.where(class_ids(sums.shape, axis) == own, 0, sums), axis)
    first = jnp.minimum(jnp.where(is_known, own * width, 0), num_classes - width)
    near = _slices(o.logits, first, width, axis)
    ids = first + class_ids(near.shape, axis)
    exp_near = jnp.exp(near.astype(o.row_max.dtype) - jnp.expand_dims(o.row_max, axis))
    counts = is_known & (ids != y) & (ids >= own * width)
    others_near = jnp.sum(jnp.where(counts, exp_near, 0), axis)
    return lax.optimization_barrier(others) + lax.optimization_barrier(others_near)


def _slices(x: Array, first: Array, width: int, axis: int) -> Array:
    """`width` entries of `x` along `axis` in each row, from that row's `first` on."""
    rows = tuple(i for i in range(x.ndim) if i != axis)
    numbers = lax.GatherDimensionNumbers((axis,), (), (axis,), rows, tuple(range(len(rows))))
    sizes = tuple(width if i == axis else 1 for i in range(x.ndim))
    first = jnp.expand_dims(jnp.squeeze(first, axis), -1)
    # Two bytes as an integer, or XLA:CPU converts all of a bfloat16 `x` beforehand.
    bits = lax.bitcast_convert_type(x, jnp.uint16) if jnp.finfo(x.dtype).bits == 16 else x
    near = lax.gather(bits, first, numbers, sizes, mode="promise_in_bounds")
    return lax.bitcast_convert_type(near, x.dtype) if near.dtype != x.dtype else near


def is_split(x: Array, axis: int) -> bool:
    """Whether Explicit mesh axes split `axis`; of Auto ones no trace-time question tells."""
    spec = jax.typeof(x).sharding.spec
    return axis < len(spec) and spec[axis] is not None


def below_max(o: Operands, axis: int) -> Array:
    """1 where d < 0, else 0: −sign(d), in half of the time. NaN stays NaN."""
    if _few(o, axis):
        d = _d(o, axis)
        return jnp.where(d < 0, 1, d)
    return jnp.minimum((jnp.expand_dims(o.row_max, axis) - o.logits.astype(o.row_max.dtype)) * o.highest, o.one)


def exp_below_max(o: Operands, axis: int) -> Array:
    if _few(o, axis):
        d = _d(o, axis)
        return jnp.where(d < 0, jnp.exp(d), d)
    return jnp.exp(_d(o, axis)) * below_max(o, axis)


def exp_of_others(o: Operands, axis: int) -> Array:
    """exp(d), and 0 at the label."""
    assert o.position is not None
    position = along(o.position, o.logits.ndim, axis)
    # At most 1, and so is its square, which rounds up to 1 but where it is 0.
    distance = position - jnp.expand_dims(o.labels.astype(position.dtype) * _UNIT, axis)
    return jnp.exp(_d(o, axis)) * jnp.ceil(distance * distance)


def _exp_selected(o: Operands, axis: int) -> Array:
    return exp_but_at(jnp.expand_dims(o.labels, axis), _d(o, axis), axis)


def exp_but_at(y: Array, d: Array, axis: int) -> Array:
    """exp(d), and 0 at the ids `y`."""
    return jnp.where(class_ids(d.shape, axis) == y, 0, jnp.exp(d))


def target(o: Operands, axis: int) -> Array:
    q = o.labels.astype(o.row_max.dtype)
    return q if o.class_weight is None else q * along(o.class_weight, q.ndim, axis)


def target_below_max(o: Operands, axis: int) -> Array:
    return target(o, axis) * below_max(o, axis)


def target_dot_d(o: Operands, axis: int) -> Array:
    """0·log 0 = 0 takes a finite d; where a target does rest on a dead class, `target_on_dead` tells."""
    return target(o, axis) * _finite_d(o, axis)


def target_on_dead(o: Operands, axis: int) -> Array:
    return jnp.abs(target(o, axis)) * _dead(o, axis)


def target_missed(excess: Array, o: Operands, axis: int) -> Array:
    """(1 + u) · q · (1 − p), with u as `excess`: at a maximum q · u."""
    return target(o, axis) * (jnp.expand_dims(excess, axis) + (o.one - jnp.exp(_d(o, axis))))


def target_hit(o: Operands, axis: int) -> Array:
    """(1 + u) · q · p."""
    return target(o, axis) * jnp.exp(_d(o, axis))


def target_hit_below_max(o: Operands, axis: int) -> Array:
    return target_hit(o, axis) * below_max(o, axis)


def live(o: Operands, axis: int) -> Array:
    """1 where a logit is above −inf, else 0 (or NaN, as `_dead`)."""
    return o.one - _dead(o, axis)


def _dead(o: Operands, axis: int) -> Array:
    """1 where a logit is −inf, else 0 (or NaN where it is NaN or +inf, and with it all that is made of the row)."""
    x = o.logits.astype(o.row_max.dtype)
    if _few(o, axis):
        return jnp.where(x == -jnp.inf, o.one, 0)
    return jnp.minimum(jnp.maximum(x, -o.highest) - x, o.one)


def live_weight(o: Operands, axis: int) -> Array:
    return live(o, axis) if o.class_weight is None else live(o, axis) * along(o.class_weight, o.logits.ndim, axis)


def live_weight_below_max(o: Operands, axis: int) -> Array:
    return live_weight(o, axis) * below_max(o, axis)


def live_weight_dot_d(o: Operands, axis: int) -> Array:
    return live_weight(o, axis) * _finite_d(o, axis)


def _few(o: Operands, axis: int) -> bool:
    return o.logits.shape[axis] <= _FEW_CLASSES


def _d(o: Operands, axis: int) -> Array:
    return o.logits.astype(o.row_max.dtype) - jnp.expand_dims(o.row_max, axis)


def _finite_d(o: Operands, axis: int) -> Array:
    return jnp.maximum(_d(o, axis), -o.highest)


def class_ids(shape: tuple[int, ...], axis: int) -> Array:
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def along(per_class: Array, ndim: int, axis: int) -> Array:
    """`[V]` → `[1, …, V, …, 1]` with V at `axis`."""
    return lax.expand_dims(per_class, [i for i in range(ndim) if i != axis])


def entry_at(x: Array, y: Array, axis: int, cpu: bool) -> Array:
    """`x` at the ids `y` of the row shape; anything where the id is negative.

    A mesh with Explicit axes refuses to gather along a split class axis, so there the entry is selected instead. The
    barrier stops XLA:CPU from converting all of a bfloat16 `x` before the gather, instead of one number a row after it.
    """
    y = jnp.expand_dims(y, axis)
    if is_split(x, axis):
        return jnp.sum(jnp.where(class_ids(x.shape, axis) == y, x, 0), axis, dtype=x.dtype)
    entry = jnp.take_along_axis(x, jnp.maximum(y, 0), axis, mode="promise_in_bounds").squeeze(axis)
    return lax.optimization_barrier(entry) if cpu else entry
