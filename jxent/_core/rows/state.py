"""The state of a row: a few numbers, to which one associative step reduces its logits in one pass.

A row, or any part of one, is described by its maximum `m` and, with `d = x − m ≤ 0`, by

    u = Σ exp(d) − 1, formed without the maximum's own 1        e = Σ exp(d)·d        i = the lowest id at the maximum
    for each target t:    T = Σ t    D = Σ t·d    B = Σ t below the maximum    C = Σ t·(1 − exp(d))

This library is accurate because `u` is formed and never subtracted: for a confident row, Σ exp(d) = 1 + 4e-9 rounds to
1, which loses the loss of exactly those rows that were learned best. `merge` combines two parts, and nothing in it
cancels. The same step reduces the classes of a row and merges the parts that devices hold.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jxent._core.dtypes import compute_dtype
from jxent._core.shards import VocabAxis, along, entry_at, summed

# Each live class counts this much in `spread` and `live`, so that a sum of V times `finfo.min` does not overflow before
# it becomes a mean.
SHARE = 2.0**-24


class TargetState(NamedTuple):
    """C, B, D and T of a target; a field is None if not wanted."""

    missed: Any = None
    below: Any = None
    dot: Any = None
    mass: Any = None


# The fields are in the order of the reduction's operands. With the targets after m and u, the compiler for TPU v5e
# (libtpu 0.0.44) cuts bfloat16 rows of some vocabularies into slivers, at 60 times the cycles.
class RowState(NamedTuple):
    """The targets by name, u, e, m and i; a field is None if not wanted."""

    targets: dict[str, TargetState]
    excess: Any
    dot: Any
    row_max: Any
    top: Any


class Wanted(NamedTuple):
    """What to compute for a row: the targets, each with its fields besides the mass, and whether to compute i and e."""

    targets: tuple[tuple[str, tuple[str, ...]], ...] = ()
    top: bool = False
    dot: bool = False


def dense_targets(wanted: Wanted, x: Array, q: Array | None, w: Array | None) -> dict[str, Array]:
    """The wanted targets, shaped like `x`: label t = w·q, plain t = q, spread t = w and live t = 1, the last two over
    the live classes (those above −inf). `w` broadcasts against `x`; None is 1.
    """
    is_live, one = x > -jnp.inf, jnp.full_like(x, SHARE)
    targets = {"live": jnp.where(is_live, one, 0), "spread": jnp.where(is_live, one if w is None else one * w, 0)}
    if q is not None:
        targets |= {"plain": q, "label": q if w is None else q * w}
    return {name: targets[name] for name, _ in wanted.targets}


def row_state(
    wanted: Wanted, axis: int, logits: Array, ids: Array | None, q: Array | None, w: Array | None
) -> tuple[RowState, Array | None]:
    """The state of each row, and the logit at its id (arbitrary if the id is negative): one reduction over the classes.

    Everything is computed and returned in `compute_dtype(logits.dtype)`; `q` has the shape of `logits`, `w` is `[V]`.
    """
    x, zero = logits.astype(compute_dtype(logits.dtype)), jnp.zeros(logits.shape, compute_dtype(logits.dtype))
    q, w = None if q is None else q.astype(x.dtype), None if w is None else along(w, x.ndim, axis)
    targets = dense_targets(wanted, x, q, w)
    classes = RowState(
        targets={
            name: TargetState(**dict.fromkeys(fields, zero), mass=targets[name]) for name, fields in wanted.targets
        },
        excess=zero,
        dot=zero if wanted.dot else None,
        row_max=x,
        top=lax.broadcasted_iota(jnp.int32, x.shape, axis) if wanted.top else None,
    )
    nothing = jax.tree.map(lambda field: jnp.zeros((), field.dtype), classes)
    nothing = nothing._replace(row_max=jnp.array(-jnp.inf, x.dtype), excess=jnp.array(-1, x.dtype))
    entry = None if ids is None else entry_at(logits, ids, axis).astype(x.dtype)
    return lax.reduce(classes, nothing, merge, (axis,)), entry


def merge(a: RowState, b: RowState) -> RowState:
    """Combines two parts: the one with the higher maximum as it is, the other rescaled to that maximum."""
    first = a.row_max >= b.row_max
    hi: RowState = jax.tree.map(partial(jnp.where, first), a, b)
    lo: RowState = jax.tree.map(partial(jnp.where, first), b, a)
    # For two −inf the difference would be NaN, but they are equal. A NaN maximum makes the gap and all the rest NaN.
    equal = hi.row_max == lo.row_max
    targets, excess, dot = jax.tree.map(jnp.add, hi[:3], lowered(lo, jnp.where(equal, 0, hi.row_max - lo.row_max)))
    top = None if hi.top is None else jnp.where(equal, jnp.minimum(hi.top, lo.top), hi.top)
    return RowState(targets, excess, dot, jnp.maximum(a.row_max, b.row_max), top)


def lowered(part: RowState, gap: Array) -> tuple[Any, ...]:
    """The targets, 1 + u and e of a part, rescaled to a maximum that is `gap` ≥ 0 above its own."""
    scale, total = jnp.exp(-gap), 1 + part.excess

    def rescaled(t: TargetState) -> TargetState:
        missed = None if t.missed is None else scale * t.missed - jnp.expm1(-gap) * t.mass
        below = None if t.below is None else jnp.where(gap > 0, t.mass, t.below)
        dot = None if t.dot is None else t.dot - jnp.where(t.mass == 0, 0, gap * t.mass)  # 0 · log 0 = 0
        return TargetState(missed, below, dot, t.mass)

    dot = None if part.dot is None else jnp.where(scale == 0, 0, scale * (part.dot - gap * total))
    return {name: rescaled(t) for name, t in part.targets.items()}, scale * total, dot


def merged_over(
    state: RowState, entry: Array | None, num_classes: Any, axis_name: VocabAxis
) -> tuple[RowState, Array | None]:
    """Merges the states of the parts of each row that the devices of `axis_name` hold. Also sums `entry`, the logit at
    the id, which is 0 on devices that do not have that class.
    """
    if axis_name is None:
        return state, entry
    row_max = lax.pmax(state.row_max, axis_name)
    holds_max = state.row_max == row_max
    seen = lowered(state, jnp.where(holds_max, 0, row_max - state.row_max))
    sums = jax.tree.map(partial(jnp.where, holds_max), state[:3], seen)
    # B gets its own sum, so that XLA can drop it when no derivative is taken.
    below = summed({name: t.below for name, t in sums[0].items()}, axis_name)
    sums = {name: t._replace(below=None) for name, t in sums[0].items()}, *sums[1:]
    (targets, excess, dot), num_holding, entry = summed((sums, holds_max.astype(row_max.dtype), entry), axis_name)
    targets = {name: t._replace(below=below[name]) for name, t in targets.items()}
    top = state.top
    if top is not None:
        global_top = lax.axis_index(axis_name) * num_classes + top
        top = lax.pmin(jnp.where(holds_max, global_top, jnp.iinfo(jnp.int32).max), axis_name)
    return RowState(targets, excess + (num_holding - 1), dot, row_max, top), entry


# What follows from a state. The slopes are derivatives with respect to the logit of one class: `d` and `t` belong to
# that class, the other arguments to its row.


def log_z(row_max: Array, excess: Array) -> Array:
    return row_max + jnp.log1p(excess)


def entropy(excess: Array, dot: Array) -> Array:
    """−Σ p log p: a sum of two terms, neither negative."""
    return jnp.log1p(excess) - dot / (1 + excess)


def entropy_slope(d: Array, excess: Array, dot: Array) -> Array:
    """p·(ē − d) with ē = e / (1 + u), the mean of d; and 0 · log 0 = 0."""
    is_dead = d == -jnp.inf
    return jnp.where(is_dead, 0, prob(d, excess) * (dot / (1 + excess) - jnp.where(is_dead, 0, d)))


def target_loss(excess: Array, t: TargetState) -> Array:
    """−Σ t log p."""
    return t.mass * jnp.log1p(excess) - t.dot


def target_miss(excess: Array, t: TargetState) -> Array:
    """Σ t·(1 − p)."""
    return (excess * t.mass + t.missed) / (1 + excess)


def prob(d: Array, excess: Array) -> Array:
    return jnp.exp(d) / (1 + excess)


def miss(d: Array, excess: Array) -> Array:
    """1 − p: u / (1 + u) at a maximum. Elsewhere u ≥ exp(d), so this subtracts no nearly equal numbers."""
    return (excess - jnp.expm1(d)) / (1 + excess)


def id_slope(exp_d: Array, excess: Array, nll: Array, is_id: Array) -> Array:
    """Slope of −log p of one class: p, or p − 1 at that class."""
    return jnp.where(is_id, jnp.expm1(-nll), exp_d / (1 + excess))


def target_slope(d: Array, excess: Array, mass: Array, below: Array, t: Array) -> Array:
    """Slope of −Σ t log p: T·p − t, or B − T·(1 − p) at a maximum with p > 1/2, where t may be close to T·p. With a
    smaller p the second form would cancel.
    """
    is_top = (d == 0) & (excess < 1)
    return jnp.where(is_top, below - mass * miss(d, excess), mass * prob(d, excess) - t)


def miss_slope(d: Array, excess: Array, mass: Array, below: Array, missed: Array, t: Array) -> Array:
    """Slope of s = Σ t·(1 − p): p·Σ t·p − t·p. This is `target_slope` of the target t·p, with T = T − s and, at the top
    class, B = B − (s − t·(1 − p)).
    """
    hit_below = below - (missed - (mass - below) * miss(d, excess))
    return target_slope(d, excess, mass - missed, hit_below, t * prob(d, excess))
