"""The row states for XLA:CPU, which does not vectorise a reduction of several operands: plain sums in several passes.

XLA:CPU (jaxlib 0.10 to 0.12) fuses arithmetic, exp, min, max, iota and convert into a long reduction. A select, a
compare, a gather or a value with two users it writes out as a whole [N, V] array. So the terms below select by
arithmetic, and each sum reads its operands through its own barrier. On x86, in reductions of 4096 elements and more,
min and max drop a NaN in the first operand: whatever may be NaN goes second.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType

from jxent._core.dtypes import compute_dtype
from jxent._core.rows import state
from jxent._core.rows.state import SHARE, RowState, TargetState, Wanted
from jxent._core.shards import along, class_ids, entry_at, is_split
from jxent._core.xla import cpu_barrier

# Up to this many classes, along any axis, XLA:CPU unrolls a reduction of several operands: ids take 0.25 (7 classes) to 1.1
# (16) of the time of the sums, and beyond 1.7 to 2.5 (17 on the second axis, 18 on the last).
_FEW_CLASSES = 16
# Longer rows are summed in windows: XLA:CPU materialises the terms of rows beyond 32768, and windows round less.
_WINDOW, _SHORTEST_WINDOW = 8192, 4096
# float32 represents integers exactly up to here.
_EXACT_INTEGERS = 2**24
_UNIT = 1 / _EXACT_INTEGERS


class Operands(NamedTuple):
    """Inputs of the terms: [N, V] logits and distributions, [N] row_max, [V] weights, and scalars. For some terms also
    the [V] position of each class (its id times 2⁻²⁴) and the [N] position to exclude.
    """

    logits: Array
    q: Any
    row_max: Array
    w: Any
    one: Array
    huge: Array
    share: Array
    position: Any = None
    excluded: Any = None


def row_state(
    wanted: Wanted, axis: int, logits: Array, ids: Array | None, q: Array | None, w: Array | None
) -> tuple[RowState, Array | None]:
    """As `state.row_state`. If only the nll of an id is wanted, u may be off by a rounding of 1 + u in rows whose
    maximum is not at the id: the loss there shows nothing smaller.
    """
    num_classes = logits.shape[axis]
    if not isinstance(num_classes, int) or not _FEW_CLASSES < num_classes <= _EXACT_INTEGERS:
        return state.row_state(wanted, axis, logits, ids, q, w)
    dtype = compute_dtype(logits.dtype)
    entry: Any = None if ids is None else lax.optimization_barrier(entry_at(logits, ids, axis)).astype(dtype)
    if _can_cut_at_max(logits, axis):
        row_max, excess, top = _from_windows(logits, axis)
        sums = Sums(axis, logits, q, row_max, w)
    else:
        row_max, top = jnp.max(logits, axis).astype(dtype), None
        sums = Sums(axis, logits, q, row_max, w)
        if ids is None or wanted.top or wanted.dot:
            top = sums.top()
            excess = sums.of_all_but(top)
        else:
            excess = sums.of_all_but(ids, shared=shares_exp(wanted, axis, logits))
            excess = excess + jnp.where(ids < 0, -1, jnp.expm1(entry - row_max))
    targets = {
        name: TargetState(**{f: sums.of(_FIELDS[f], TARGETS[name]) for f in fields}, mass=sums.of(TARGETS[name]))
        for name, fields in wanted.targets
    }
    dot = sums.of(_exp_dot) if wanted.dot else None
    return RowState(targets, excess, dot, row_max, top if wanted.top else None), entry


def shares_exp(wanted: Wanted, axis: int, logits: Array) -> bool:
    """Whether to let XLA:CPU compute exp(d) once, for both the sum and the gradient. It is kept in the memory of the
    gradient until that is computed from it; with more sums or narrower logits it would need memory of its own.
    """
    num_classes, is_wide = logits.shape[axis], logits.dtype == compute_dtype(logits.dtype)
    return wanted == Wanted() and is_wide and isinstance(num_classes, int) and num_classes <= _WINDOW


def apart(wanted: Wanted, axis: int, rows: Any, logits: Array) -> tuple[Any, Array]:
    """The arguments of the tangents, behind a barrier unless `shares_exp`: otherwise XLA:CPU may keep an [N, V] array
    for both passes, such as a conversion or a broadcast row_max.
    """
    return (rows, logits) if shares_exp(wanted, axis, logits) else cpu_barrier((rows, logits))


class Sums:
    """Sums terms over the class axis, each from its own copy of the operands.

    The sums drop the class axis at once: XLA:CPU does not vectorise what follows on an [N, 1] array, which with few
    classes takes longer than the sums.
    """

    def __init__(self, axis: int, logits: Array, q: Array | None, row_max: Array, w: Array | None):
        dtype = row_max.dtype
        numbers = (jnp.array(number, dtype) for number in (1, jnp.finfo(dtype).max, SHARE))
        self.axis, self.operands = axis, Operands(logits, q, row_max, w, *numbers)

    def of(self, term: Callable[..., Array], *more: Any) -> Array:
        return self._reduced(term(self._next(), self.axis, *more), 0, lax.add, jnp.sum)

    def of_all_but(self, excluded: Array, shared: bool = False) -> Array:
        """exp(d) summed over all classes but the excluded one."""
        # XLA:CPU (jaxlib 0.10) gets windows of constant ids wrong. With this select they are not constant.
        excluded = jnp.where(jnp.isnan(self.operands.row_max), -1, excluded).astype(self.operands.one.dtype)
        places = {"position": self._positions(), "excluded": excluded * _UNIT}
        operands = self.operands._replace(**places) if shared else self._next(**places)
        return self._reduced(_exp_of_all_but(operands, self.axis), 0, lax.add, jnp.sum)

    def top(self) -> Array:
        terms = _position_at_max(self._next(position=self._positions()), self.axis)
        return (self._reduced(terms, jnp.inf, lax.min, jnp.min) * _EXACT_INTEGERS).astype(jnp.int32)

    def _positions(self) -> Array:
        return lax.iota(self.operands.one.dtype, self.operands.logits.shape[self.axis]) * _UNIT

    def _next(self, **places: Array) -> Operands:
        # Each barrier takes the previous one's output, so XLA cannot merge them. None takes the previous sum:
        # independent sums let XLA reduce all of them over the devices of a mesh at once.
        operands = lax.optimization_barrier(self.operands._replace(**places))
        self.operands = operands._replace(position=None, excluded=None)
        return operands

    def _reduced(self, terms: Array, start: float, step: Any, reduce: Callable[..., Array]) -> Array:
        """The final barrier keeps what follows (such as a mean) from absorbing the sum, which would undo the fusion."""
        if terms.shape[self.axis] > _WINDOW and _can_cut(terms, self.axis):
            terms = _windows(terms, self.axis, _window(terms.shape[self.axis]), start, step)
        return lax.optimization_barrier(reduce(terms, self.axis))


def _windows(terms: Array, axis: int, width: int, start: float, step: Any) -> Array:
    """Reduces windows of `width` classes; the last one takes what is left."""
    window, padding = [1] * terms.ndim, [(0, 0)] * terms.ndim
    window[axis], padding[axis] = width, (0, -terms.shape[axis] % width)
    reduced = lax.reduce_window(terms, jnp.array(start, terms.dtype), step, window, window, padding)
    return lax.optimization_barrier(reduced)


def _window(num_classes: int) -> int:
    """A width such that 2, 4, 8, … devices that share the classes split them between windows. Otherwise they would send
    each other pieces of windows, thousands of numbers per row.
    """
    width = num_classes
    while width % 2 == 0 and width >= 2 * _SHORTEST_WINDOW:
        width //= 2
    return width if width <= 4 * _WINDOW else _WINDOW


def _can_cut(x: Array, axis: int) -> bool:
    """Whether the devices share the windows evenly; a mesh with Explicit axes refuses uneven ones."""
    sharding, windows = jax.typeof(x).sharding, -(-x.shape[axis] // _window(x.shape[axis]))
    names = sharding.spec[axis] if is_split(x, axis) else ()
    names = names if isinstance(names, tuple) else (names,)
    return windows % math.prod(sharding.mesh.shape[name] for name in names) == 0


def _can_cut_at_max(logits: Array, axis: int) -> bool:
    """Whether rows are long and each device surely has whole ones. Under `jit(in_shardings=...)` the trace cannot tell,
    and devices that share the classes would send each other the window, or all of the logits.
    """
    mesh = jax.typeof(logits).sharding.mesh
    is_manual = not mesh.empty and all(kind == AxisType.Manual for kind in mesh.axis_types)
    return logits.shape[axis] > _WINDOW and (is_manual or _num_cpu_devices() == 1) and not is_split(logits, axis)


def _num_cpu_devices() -> int:
    try:
        return jax.device_count("cpu")
    except RuntimeError:  # JAX_PLATFORMS may exclude the CPU; nothing is compiled for it then.
        return 0


def _from_windows(logits: Array, axis: int) -> tuple[Array, Array, Array]:
    """m, u and i. Sums exp(d) over whole windows, except for the window of the maximum, where it skips the maximum.

    Cheaper than excluding one class everywhere: at 1024×32768 and 512×50257 it takes 0.75 of that time (0.65 … 0.85).
    """
    num_classes, dtype = logits.shape[axis], compute_dtype(logits.dtype)
    # Memory per row: two numbers per window, and the classes of one window. The total is least near √V.
    width = 1 << (math.isqrt(num_classes).bit_length() - 1)
    window_max = _windows(logits, axis, width, -jnp.inf, lax.max)
    row_max = lax.optimization_barrier(jnp.max(window_max, axis, keepdims=True))
    max_window = jnp.argmax(window_max == row_max, axis, keepdims=True).astype(jnp.int32)
    x, row_max = lax.optimization_barrier((logits, row_max.astype(dtype)))
    sums = _windows(jnp.exp(x.astype(dtype) - row_max), axis, width, 0, lax.add)
    # A select, because XLA:CPU (jaxlib 0.10) would fuse a product into the windows' sums and take four times as long.
    other_windows = jnp.sum(jnp.where(class_ids(sums.shape, axis) == max_window, 0, sums), axis)

    first = jnp.minimum(max_window * width, num_classes - width)
    near = _slices(logits, first, width, axis).astype(dtype)
    ids = first + class_ids(near.shape, axis)
    top = jnp.min(jnp.where(near == row_max, ids, num_classes), axis, keepdims=True)
    is_summed = (ids != top) & (ids >= max_window * width)
    exp_near = jnp.sum(jnp.where(is_summed, jnp.exp(near - row_max), 0), axis)
    excess = lax.optimization_barrier(other_windows) + lax.optimization_barrier(exp_near)
    return jnp.squeeze(row_max, axis), excess, jnp.squeeze(top, axis)


def _slices(x: Array, first: Array, width: int, axis: int) -> Array:
    """`width` entries of `x` along `axis` in each row, starting at that row's `first`."""
    row_axes = tuple(i for i in range(x.ndim) if i != axis)
    numbers = lax.GatherDimensionNumbers((axis,), (), (axis,), row_axes, tuple(range(len(row_axes))))
    sizes = tuple(width if i == axis else 1 for i in range(x.ndim))
    first = jnp.expand_dims(jnp.squeeze(first, axis), -1)
    # Read 16-bit floats as integers, or XLA:CPU converts all of a bfloat16 `x` beforehand.
    bits = lax.bitcast_convert_type(x, jnp.uint16) if jnp.finfo(x.dtype).bits == 16 else x
    near = lax.gather(bits, first, numbers, sizes, mode="promise_in_bounds")
    return lax.bitcast_convert_type(near, x.dtype) if near.dtype != x.dtype else near


def _d(o: Operands, axis: int) -> Array:
    return o.logits.astype(o.row_max.dtype) - jnp.expand_dims(o.row_max, axis)


def _below_max(o: Operands, axis: int) -> Array:
    """1 where d < 0, else 0. Computes −sign(d) in half the time. NaN stays NaN."""
    return jnp.minimum(o.one, (jnp.expand_dims(o.row_max, axis) - o.logits.astype(o.row_max.dtype)) * o.huge)


def _position_at_max(o: Operands, axis: int) -> Array:
    """The position at the maximum, which may be +inf; below the maximum, a number above 1."""
    finite = o._replace(
        logits=jnp.minimum(o.logits.astype(o.row_max.dtype), o.huge), row_max=jnp.minimum(o.row_max, o.huge)
    )
    return along(o.position, o.logits.ndim, axis) + _below_max(finite, axis)


def _exp_of_all_but(o: Operands, axis: int) -> Array:
    """exp(d), or 0 at the excluded id."""
    # The square of the distance is at most 1, so its ceiling is 1, or 0 at the excluded id.
    distance = along(o.position, o.logits.ndim, axis) - jnp.expand_dims(o.excluded, axis)
    return jnp.exp(_d(o, axis)) * jnp.ceil(distance * distance)


def _exp_dot(o: Operands, axis: int) -> Array:
    """exp(d)·d; 0 at −inf, as for every float32 d below −104."""
    d = _d(o, axis)
    return jnp.exp(d) * jnp.maximum(-o.huge, d)


def _dead(o: Operands, axis: int) -> Array:
    """1 where a logit is −inf, else 0; NaN where it is NaN or +inf, which makes the whole row NaN."""
    x = o.logits.astype(o.row_max.dtype)
    return jnp.minimum(o.one, jnp.maximum(-o.huge, x) - x)


def _live(o: Operands, axis: int) -> Array:
    return (o.one - _dead(o, axis)) * o.share


def _spread(o: Operands, axis: int) -> Array:
    return _live(o, axis) if o.w is None else _live(o, axis) * along(o.w, o.logits.ndim, axis)


def _plain(o: Operands, axis: int) -> Array:
    return o.q.astype(o.row_max.dtype)


def _label(o: Operands, axis: int) -> Array:
    return _plain(o, axis) if o.w is None else _plain(o, axis) * along(o.w, o.logits.ndim, axis)


TARGETS = {"label": _label, "plain": _plain, "spread": _spread, "live": _live}


def target_dot(o: Operands, axis: int, target: Callable[..., Array]) -> Array:
    """t·d, with 0 · log 0 = 0: clamps −inf to a finite number, and makes t·d infinite there for a label t ≠ 0."""
    dot = target(o, axis) * jnp.maximum(-o.huge, _d(o, axis))
    return dot * (o.one + o.huge * _dead(o, axis)) if target in (_label, _plain) else dot


def _below(o: Operands, axis: int, target: Callable[..., Array]) -> Array:
    return target(o, axis) * _below_max(o, axis)


def _missed(o: Operands, axis: int, target: Callable[..., Array]) -> Array:
    return target(o, axis) * (o.one - jnp.exp(_d(o, axis)))


_FIELDS = {"dot": target_dot, "below": _below, "missed": _missed}
