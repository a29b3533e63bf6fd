"""The sums over the classes of a row, in the form that XLA:CPU computes without an [N, V] array of its own.

XLA:CPU (jaxlib 0.10 to 0.12) fuses arithmetic, exp, min, max, iota and convert into a long reduction, but not a
select, a compare, a gather or a value with two users: each of these makes it write the whole [N, V] array out. So the
terms below exclude classes by arithmetic, and on the CPU a barrier gives each sum a conversion, a subtraction and even
broadcast constants of its own. (Two exceptions pay: `shares_exp`, and `_FEW_CLASSES`.) TPU and GPU fuse any form, and get
these without the barriers.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

# XLA:CPU sums rows up to here inside one fused loop; longer ones it first writes out, unless they are cut in windows.
_LONGEST_FUSED_ROW = 32768
_WINDOW, _SHORTEST_WINDOW = 8192, 4096
# With so few classes a select costs less than the arithmetic that stands in for it.
_FEW_CLASSES = 8
# float32 tells integers apart up to here.
_EXACT_FLOAT32_INTEGERS = 2**24


class Operands(NamedTuple):
    """What the terms of a row sum are made of: [N, V] logits, [N] row_max, labels of either kind, [V] or None."""

    logits: Array
    row_max: Array
    labels: Array
    class_weight: Array | None
    half: Array
    one: Array
    highest: Array


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
        shared: bool = False,
    ):
        """With `shared`, the only sum is left free to share what it is made of with the gradient."""
        dtype = row_max.dtype
        constants = (jnp.array(c, dtype) for c in (0.5, 1, jnp.finfo(dtype).max))
        self.axis, self.cpu, self.shared = axis, cpu, shared
        self.operands = Operands(logits, row_max, labels, class_weight, *constants)

    def of(self, term: Callable[[Operands, int], Array]) -> Array:
        if self.cpu and not self.shared:
            # Barriers stand in a row, so that no two are alike and merged. They take no sum before theirs: the sums are
            # to stay independent, for XLA reduces such over the devices of a mesh all at once.
            self.operands = lax.optimization_barrier(self.operands)
        return _row_sum(term(self.operands, self.axis), self.axis, self.cpu)


def _row_sum(terms: Array, axis: int, cpu: bool) -> Array:
    """On the CPU rows beyond `_LONGEST_FUSED_ROW` are summed in windows: otherwise XLA:CPU writes `terms` out, in memory
    that even `memory_analysis()` does not show. The windowed sum does not fit a TPU's VMEM, which needs none of this.
    The last barrier keeps what follows (a mean, say) from swallowing the sum, which would undo the fusion.
    """
    if not cpu:
        return jnp.sum(terms, axis)
    if terms.shape[axis] > _LONGEST_FUSED_ROW and _can_cut(terms, axis):
        window = tuple(_window(n) if i == axis else 1 for i, n in enumerate(terms.shape))
        terms = lax.reduce_window(terms, jnp.zeros((), terms.dtype), lax.add, window, window, "SAME")
        terms = lax.optimization_barrier(terms)
    return lax.optimization_barrier(jnp.sum(terms, axis))


def shares_exp(logits: Array, row_max: Array, axis: int) -> bool:
    """Whether XLA:CPU may keep exp(d) from the sum of a row for its gradient: the memory of that gradient, of the same
    dtype, holds it meanwhile. Longer rows and narrower logits would take [N, V] of their own.
    """
    return logits.dtype == row_max.dtype and _FEW_CLASSES < logits.shape[axis] <= _LONGEST_FUSED_ROW


def _window(num_classes: int) -> int:
    """A width such that 2, 4, 8, … devices that share the classes cut between windows: they would have to send each other
    pieces of windows otherwise, thousands of numbers a row.
    """
    width = num_classes
    while width % 2 == 0 and width >= 2 * _SHORTEST_WINDOW:
        width //= 2
    return width if width <= _LONGEST_FUSED_ROW else _WINDOW


def _can_cut(x: Array, axis: int) -> bool:
    """A mesh with Explicit axes refuses windows that its devices do not share evenly."""
    sharding, windows = jax.typeof(x).sharding, -(-x.shape[axis] // _window(x.shape[axis]))
    names = sharding.spec[axis] if is_split(x, axis) else ()
    names = names if isinstance(names, tuple) else (names,)
    return windows % math.prod(sharding.mesh.shape[name] for name in names) == 0


def is_split(x: Array, axis: int) -> bool:
    """Whether Explicit mesh axes split `axis`; of Auto ones no trace-time question tells."""
    spec = jax.typeof(x).sharding.spec
    return axis < len(spec) and spec[axis] is not None


def below_max(o: Operands, axis: int) -> Array:
    """1 where d < 0, else 0: −sign(d), in half of the time. NaN stays NaN."""
    return jnp.minimum((jnp.expand_dims(o.row_max, axis) - o.logits.astype(o.row_max.dtype)) * o.highest, o.one)


def exp_below_max(o: Operands, axis: int) -> Array:
    return jnp.exp(_d(o, axis)) * below_max(o, axis)


def exp_of_others(o: Operands, axis: int) -> Array:
    """exp(d), and 0 at the label."""
    y = jnp.expand_dims(o.labels, axis)
    if not _FEW_CLASSES < o.logits.shape[axis] <= _EXACT_FLOAT32_INTEGERS:
        return jnp.where(class_ids(o.logits.shape, axis) == y, 0, jnp.exp(_d(o, axis)))
    iota = lax.broadcasted_iota(o.row_max.dtype, o.logits.shape, axis)
    return jnp.exp(_d(o, axis)) * jnp.minimum(jnp.abs(iota - y.astype(iota.dtype)), o.one)


def target(o: Operands, axis: int) -> Array:
    q = o.labels.astype(o.row_max.dtype)
    return q if o.class_weight is None else q * along(o.class_weight, q.ndim, axis)


def target_below_max(o: Operands, axis: int) -> Array:
    return target(o, axis) * below_max(o, axis)


def target_dot_d(o: Operands, axis: int) -> Array:
    """0·log 0 = 0 takes a finite d; where a target does rest on a dead class, `target_on_dead` tells."""
    return target(o, axis) * _finite_d(o, axis)


def target_on_dead(o: Operands, axis: int) -> Array:
    return jnp.abs(target(o, axis)) * (o.one - live(o, axis))


def target_missed(excess: Array, o: Operands, axis: int) -> Array:
    """(1 + u) · q · (1 − p), with u as `excess`: at a maximum q · u."""
    return target(o, axis) * (jnp.expand_dims(excess, axis) + (o.one - jnp.exp(_d(o, axis))))


def target_hit(o: Operands, axis: int) -> Array:
    """(1 + u) · q · p."""
    return target(o, axis) * jnp.exp(_d(o, axis))


def target_hit_below_max(o: Operands, axis: int) -> Array:
    return target_hit(o, axis) * below_max(o, axis)


def live(o: Operands, axis: int) -> Array:
    """1 where a logit is above −inf, else 0. Halving keeps the lowest finite number live."""
    x = o.logits.astype(o.row_max.dtype)
    return jnp.minimum(jnp.maximum(o.half * x, -o.highest) + o.highest, o.one)


def live_weight(o: Operands, axis: int) -> Array:
    return live(o, axis) if o.class_weight is None else live(o, axis) * along(o.class_weight, o.logits.ndim, axis)


def live_weight_below_max(o: Operands, axis: int) -> Array:
    return live_weight(o, axis) * below_max(o, axis)


def live_weight_dot_d(o: Operands, axis: int) -> Array:
    return live_weight(o, axis) * _finite_d(o, axis)


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
