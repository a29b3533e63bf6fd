"""Rows of logits → what a loss needs to know about each row, with a derivative rule that cancels nowhere.

For one row `x` of V logits let `m = max x`, `d = x - m` and `u = Σ_c exp(d_c) - 1`, so that

    log_z = m + log1p(u)            p_c = exp(d_c) / (1 + u)

The whole accuracy of this library rests on `u` being *formed*, never subtracted: the peers compute `Σ exp(d)`, where a
confident row's `1 + 4e-9` rounds to `1`, and lose the loss of exactly the rows that are learned best.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jxent._core.dtypes import compute_dtype
from jxent._core.platform import cpu_barrier
from jxent._core.row_sums import (
    LONGEST_FUSED_ROW,
    RowSums,
    along,
    below_max,
    class_ids,
    entry_at,
    exp_below_max,
    exp_but_at,
    live,
    live_weight,
    live_weight_below_max,
    live_weight_dot_d,
    row_sum,
    target,
    target_below_max,
    target_dot_d,
    target_on_dead,
)
from jxent._core.shards import VocabAxis, aligned, highest, own_ids, summed
from jxent._core.targets import Targets, is_ids


class TargetRows(NamedTuple):
    """What a target `t` makes of each row. `mass` and `others` are None where the target is an id.

    Attributes:
        loss: `-Σ_c t_c log p_c`.
        mass: `T = Σ_c t_c`.
        others: `Σ_c t_c` over the classes below the row's maximum where that has p > 1/2 (u < 1), else 0. (That it is
            selected also keeps XLA:CPU from fusing its sum with the [N, V] arrays that need it.)
    """

    loss: Array
    mass: Array | None
    others: Array | None


class Rows(NamedTuple):
    """What is known of each row. Every field has the row shape and the compute dtype, and is 0 in a masked row.

    Attributes:
        label: for the labels as the target: ids unweighted, distributions `t_c = w_c q_c`.
        spread: for `t_c = w_c` in the live classes (those above −inf), which label smoothing mixes in; or None.
        live_classes: how many those are, or None. A constant under differentiation.
        row_max: `m`. A constant under differentiation: it cancels in whatever is computed from it.
        excess: `u`.
    """

    label: TargetRows
    spread: TargetRows | None
    live_classes: Array | None
    row_max: Array
    excess: Array

    @property
    def log_z(self) -> Array:
        return self.row_max + jnp.log1p(self.excess)


def softmax_rows(
    logits: Array,
    labels: Array,
    class_weight: Array | None,
    where: Array | None,
    axis: int,
    smooth: bool,
    vocab_axis_name: VocabAxis = None,
) -> Rows:
    """Evaluates every row of `logits` along `axis`.

    Args:
        logits: floating, `[..., V, ...]` with V at `axis`. Never copied whole to another dtype.
        labels: int32 ids of the row shape, where a negative id is a bad one (NaN loss and gradient), or a floating
            distribution with the shape of `logits`.
        class_weight: `[V]` in the compute dtype, folded into distributions and into the spread. The loss of an id is
            left unweighted, since there the weight is one number a row.
        where: bool of the row shape; rows that are False are 0 in value and gradient whatever they hold.
        axis: the class axis, not negative.
        smooth: whether to fill `spread` and `live_classes`.
        vocab_axis_name: the axes of a `shard_map` that split the classes, over which `logits` varies; V is then what
            one device holds, and ids and the result are of the whole, the same on all devices.
    """
    arrays = aligned((logits, labels, class_weight, where), apart_from=vocab_axis_name)
    return _softmax_rows(*arrays, axis, smooth, vocab_axis_name, False)


@partial(jax.custom_jvp, nondiff_argnums=(4, 5, 6, 7))
def _softmax_rows(
    logits: Array,
    labels: Array,
    class_weight: Array | None,
    where: Array | None,
    axis: int,
    smooth: bool,
    vocab_axis_name: VocabAxis,
    differentiated: bool,
) -> Rows:
    return _forward(axis, smooth, vocab_axis_name, differentiated, logits, labels, class_weight, where)


# The derivative rule. With t the target and T = Σ_c t_c, differentiating T·log1p(u) − Σ t_c d_c at constant m:
#
#   ∂loss/∂x_c = T·p_c − t_c,   ∂loss/∂t_c = log1p(u) − d_c,   ∂u/∂x_c = exp(d_c)
#
# T·p − t cancels where p → 1, which is why `_label_slope` and `target_slope` write that element differently. The rule
# calls `_softmax_rows` for its primal, so it is itself differentiable to any order, and the tangent map runs under
# `jax.checkpoint`: reverse mode keeps its inputs and the O(N) `rows`, and remakes the [N, V] softmax on the way back
# (but see `_keeps_exp`).
# All that it sums over the classes is linear in a tangent, so that its transpose is elementwise and sums nothing.
def _softmax_rows_jvp(
    axis: int, smooth: bool, vocab_axis_name: VocabAxis, differentiated: bool, primals: Any, tangents: Any
) -> tuple[Rows, Rows]:
    rows = _softmax_rows(*primals, axis, smooth, vocab_axis_name, True)
    d_logits, d_labels, d_class_weight, _ = (None if isinstance(t, SymbolicZero) else t for t in tangents)
    tangent_map = jax.checkpoint(partial(row_tangents, axis, vocab_axis_name), prevent_cse=False)
    return rows, tangent_map(rows, *primals, d_logits, d_labels, d_class_weight)


_softmax_rows.defjvp(_softmax_rows_jvp, symbolic_zeros=True)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _forward(
    axis: int,
    smooth: bool,
    vocab_axis_name: VocabAxis,
    differentiated: bool,
    logits: Array,
    labels: Array,
    class_weight: Array | None,
    where: Array | None,
) -> Rows:
    row_max = highest(jnp.max(logits, axis).astype(compute_dtype(logits.dtype)), vocab_axis_name)
    own = own_ids(labels, logits.shape[axis], vocab_axis_name) if is_ids(labels) else labels
    sums, of_slope = lax.platform_dependent(
        *aligned((logits, row_max, own, class_weight, where)),
        cpu=partial(_class_sums, axis, smooth, True, differentiated),
        default=partial(_class_sums, axis, smooth, False, False),
    )
    # Two all-reduces, so that what only a derivative needs is dropped where there is none.
    sums = summed(sums, vocab_axis_name) | summed(of_slope, vocab_axis_name)
    rows = _rows(row_max, sums, labels < 0 if is_ids(labels) else None)
    if where is None:
        return rows
    return jax.tree.map(lambda field: jnp.where(where, field, 0), rows)


def _class_sums(
    axis: int,
    smooth: bool,
    cpu: bool,
    differentiated: bool,
    logits: Array,
    row_max: Array,
    labels: Array,
    class_weight: Array | None,
    where: Array | None,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """What `_rows` needs to have summed over the classes: for the losses, and for their derivatives alone."""
    others = None
    if differentiated and _keeps_exp(axis, smooth, logits, row_max, labels):
        others = _kept_sum_of_others(axis, logits, row_max, labels, where)
    elif cpu:
        logits, row_max = lax.optimization_barrier((logits, row_max))
    sums = RowSums(axis, cpu, logits, row_max, labels, class_weight)
    if is_ids(labels):
        d_label = entry_at(logits, labels, axis, cpu).astype(row_max.dtype) - row_max
        others = sums.of_others() if others is None else others
        result, of_slope = {"d_label": jnp.where(labels < 0, 0, d_label), "others": others}, {}
    else:
        # The number of maxima, whose exp(0) = 1 the sum leaves out. The select keeps XLA:CPU (jaxlib 0.10) from fusing the
        # two sums, for which it writes out what they have in common.
        num_below = sums.of(below_max)
        num_maxima = jnp.where(num_below >= 0, logits.shape[axis] - num_below, jnp.nan)
        result = {"num_maxima": num_maxima, "others": sums.of(exp_below_max)}
        result |= {"mass": sums.of(target), "dot_d": sums.of(target_dot_d), "on_dead": sums.of(target_on_dead)}
        of_slope = {"below_max": sums.of(target_below_max)}
    if smooth:
        result["live"] = sums.of(live)
        if class_weight is not None:
            result["live_weight"] = sums.of(live_weight)
        result["live_dot_d"] = sums.of(live_weight_dot_d)
        of_slope["live_below_max"] = sums.of(live_weight_below_max)
    return result, of_slope


def _keeps_exp(axis: int, smooth: bool, logits: Array, row_max: Array, labels: Array) -> bool:
    """Whether XLA:CPU is to keep the exp(d) that a row sums for its gradient: the memory of the logits' gradient, where that
    is an array of the program, holds it meanwhile, being of the same dtype. With more sums, or narrower logits, it would
    take [N, V] of its own; and over longer rows it saves no time.
    """
    is_short = logits.shape[axis] <= LONGEST_FUSED_ROW
    return is_ids(labels) and not smooth and logits.dtype == row_max.dtype and is_short


def _kept_sum_of_others(axis: int, logits: Array, row_max: Array, labels: Array, where: Array | None) -> Array:
    """`RowSums.of_others` out of the very array that `_label_slope` computes, so that XLA:CPU computes it once."""
    if where is not None:
        row_max = jnp.where(where, row_max, 0)
    d = _counted(logits, where, axis) - jnp.expand_dims(row_max, axis)
    return row_sum(exp_but_at(jnp.expand_dims(labels, axis), d, axis), axis, cpu=True)


def _counted(x: Array, where: Array | None, axis: int) -> Array:
    """A masked row is one whose classes are all dead."""
    return x if where is None else jnp.where(jnp.expand_dims(where, axis), x, -jnp.inf)


def _rows(row_max: Array, sums: dict[str, Array], is_bad: Array | None) -> Rows:
    """`is_bad` marks the bad ids; it is None for distributions."""
    if is_bad is not None:
        # Where the label is bad nothing is excluded, and expm1(−inf) = −1 leaves log_z right.
        excess = sums["others"] + jnp.where(is_bad, -1, jnp.expm1(sums["d_label"]))
        label = TargetRows(jnp.log1p(excess) - jnp.where(is_bad, jnp.nan, sums["d_label"]), None, None)
    else:
        excess = (sums["num_maxima"] - 1) + sums["others"]
        loss = sums["mass"] * jnp.log1p(excess) - sums["dot_d"]
        loss = jnp.where((sums["on_dead"] > 0) & (excess >= 0), jnp.inf, loss)
        label = TargetRows(loss, sums["mass"], jnp.where(excess < 1, sums["below_max"], 0))

    spread = None
    if "live" in sums:
        mass = sums.get("live_weight", sums["live"])
        loss = mass * jnp.log1p(excess) - sums["live_dot_d"]
        spread = TargetRows(loss, mass, jnp.where(excess < 1, sums["live_below_max"], 0))
    return Rows(label, spread, sums.get("live"), row_max, excess)


@partial(jax.jit, static_argnums=(0, 1))
def row_tangents(
    axis: int,
    vocab_axis_name: VocabAxis,
    rows: Rows,
    logits: Array,
    labels: Array,
    class_weight: Array | None,
    where: Array | None,
    d_logits: Array | None,
    d_labels: Array | None,
    d_class_weight: Array | None,
) -> Rows:
    """The tangents of `rows`: linear in the `d_` arguments, of which None stands for zero."""
    constant = jnp.zeros_like(rows.row_max)
    keeps_exp = _keeps_exp(axis, rows.spread is not None, logits, rows.row_max, labels)
    if not keeps_exp:
        # Else XLA:CPU computes one [N, V] array (a conversion, a broadcast row_max) for both passes to share.
        rows, logits = cpu_barrier((rows, logits))
    rows = jax.tree.map(lambda field: jnp.expand_dims(field, axis), rows)
    dtype, zero = rows.row_max.dtype, jnp.zeros_like(rows.row_max)
    # The target of a masked row is 0, too: every slope below is then exactly 0.
    x = _counted(logits.astype(dtype), where, axis)
    w, d_w = (None if c is None else along(c, x.ndim, axis) for c in (class_weight, d_class_weight))
    if where is not None:
        where = jnp.expand_dims(where, axis)
        w = None if w is None else jnp.where(where, w, 0)
    d = x - rows.row_max
    is_dead = d == -jnp.inf
    v = None if d_logits is None else d_logits.astype(dtype)

    if is_ids(labels):
        label = TargetRows(zero, None, None)
        if v is not None:
            slope = _label_slope(d, rows, labels, keeps_exp, axis, vocab_axis_name)
            label = label._replace(loss=jnp.sum(slope * v, axis, keepdims=True))
    else:
        t, d_t = _distribution(labels, w, d_labels, d_w, where, dtype)
        label = _target_tangents(axis, d, rows, rows.label, t, is_dead & (t == 0), v, d_t)

    spread = None
    if rows.spread is not None:
        t = jnp.where(is_dead, 0, jnp.ones_like(d) if w is None else w)
        d_t = None if d_w is None else jnp.where(is_dead, 0, d_w)
        spread = _target_tangents(axis, d, rows, rows.spread, t, is_dead, v, d_t)
    excess = zero
    if v is not None:
        exp = jnp.exp(d)
        if keeps_exp:
            exp = _exp_of_kept(d, rows, labels, where, axis, vocab_axis_name)
        excess = jnp.sum(exp * v, axis, keepdims=True)
    label, spread, excess = summed(_squeezed((label, spread, excess), axis), vocab_axis_name)
    return Rows(label, spread, None if spread is None else constant, constant, excess)


def _distribution(
    labels: Array, w: Array | None, d_labels: Array | None, d_w: Array | None, where: Array | None, dtype: Any
) -> tuple[Array, Array | None]:
    """The target t = w·q and its tangent, both 0 in masked rows."""

    def counted(values: Array) -> Array:
        return values.astype(dtype) if where is None else jnp.where(where, values.astype(dtype), 0)

    q = counted(labels)
    parts = []
    if d_labels is not None:
        parts.append(counted(d_labels) if w is None else counted(d_labels) * w)
    if d_w is not None:
        parts.append(q * d_w)
    return q if w is None else q * w, sum(parts[1:], parts[0]) if parts else None


def _target_tangents(
    axis: int, d: Array, rows: Rows, target: TargetRows, t: Array, uncounted: Array, v: Array | None, d_t: Array | None
) -> TargetRows:
    """Of one target: `v` is the tangent of the logits, `d_t` of `t`, and `uncounted` the classes where 0·log 0 = 0."""
    loss = mass = others = jnp.zeros_like(rows.row_max)
    total = partial(jnp.sum, axis=axis, keepdims=True)
    if v is not None:
        loss = total(target_slope(d, rows, target, t) * v)
    if d_t is not None:
        surprise = jnp.where(uncounted, 0, jnp.log1p(rows.excess) - jnp.where(uncounted, 0, d))
        loss = loss + total(surprise * d_t)
        mass, others = total(d_t), jnp.where(rows.excess < 1, -total(jnp.sign(d) * d_t), 0)
    return TargetRows(loss, mass, others)


def _label_slope(d: Array, rows: Rows, labels: Array, keeps_exp: bool, axis: int, vocab_axis_name: VocabAxis) -> Array:
    """∂loss/∂x for ids: p_c, and p_y − 1 = expm1(−loss) at the label; NaN all along the row of a bad id."""
    y = jnp.expand_dims(own_ids(labels, d.shape[axis], vocab_axis_name), axis)
    scale = jnp.where(jnp.expand_dims(labels < 0, axis), jnp.nan, 1 / (1 + rows.excess))
    exp = exp_but_at(y, d, axis) if keeps_exp else jnp.exp(d)
    return jnp.where(class_ids(d.shape, axis) == y, jnp.expm1(-rows.label.loss), exp * scale)


def _exp_of_kept(
    d: Array, rows: Rows, labels: Array, where: Array | None, axis: int, vocab_axis_name: VocabAxis
) -> Array:
    """exp(d), out of the array that `_label_slope` has: with another one XLA:CPU would keep both."""
    y = jnp.expand_dims(own_ids(labels, d.shape[axis], vocab_axis_name), axis)
    at_label = jnp.exp(-rows.label.loss) * (1 + rows.excess)
    at_label = at_label if where is None else jnp.where(where, at_label, 0)
    return jnp.where(class_ids(d.shape, axis) == y, at_label, exp_but_at(y, d, axis))


def target_slope(d: Array, rows: Rows, target: TargetRows, t: Array) -> Array:
    """∂loss/∂x for a target: T·p_c − t_c, rewritten as Σ_{c≠r} t_c − T·(1 − p_r) at a maximum r with p_r > 1/2.

    There t_r may be near T·p_r; with a smaller p_r it is the rewritten form that cancels. 1 − p_r is (u − expm1(d_r)) / (1 + u): the last term is 0 in value, as d_r is, but not under differentiation.
    """
    assert target.mass is not None
    assert target.others is not None
    is_top = (d == 0) & (rows.excess < 1)
    complement = (rows.excess - jnp.expm1(jnp.where(is_top, d, 0))) / (1 + rows.excess)
    p = jnp.exp(d) / (1 + rows.excess)
    return jnp.where(is_top, target.others - target.mass * complement, target.mass * p - t)


def _squeezed(rows: Any, axis: int) -> Any:
    return jax.tree.map(lambda field: jnp.squeeze(field, axis), rows)


def row_losses(logits: Array, targets: Targets, z_loss: Array | None) -> tuple[Array, Rows]:
    """The loss of each row, before sample weights, and what is known of the row."""
    labels, class_weight, where, axis = targets.labels, targets.class_weight, targets.where, targets.axis
    smooth = targets.smoothing is not None
    rows = softmax_rows(logits, labels, class_weight, where, axis, smooth, targets.vocab_axis_name)
    spread_loss = None if rows.spread is None else rows.spread.loss
    loss = targets.row_loss(rows.label.loss, spread_loss, rows.live_classes)
    if z_loss is not None:
        loss = loss + z_loss * jnp.square(rows.log_z)
    return loss, rows


def predicted_ids(logits: Array, rows: Rows, targets: Targets) -> Array:
    """The class with the highest logit of each row, the lowest such id on ties; −1 where masked, NaN or all dead."""
    x, axis, vocab_axis_name = lax.stop_gradient(logits), targets.axis, targets.vocab_axis_name
    # Else XLA:CPU makes the argmax and the maximum share one float32 copy of narrower logits.
    predicted = jnp.argmax(cpu_barrier(x), axis).astype(jnp.int32)
    if vocab_axis_name is not None:
        own_max = jnp.max(x, axis).astype(rows.row_max.dtype)
        first = lax.axis_index(vocab_axis_name) * x.shape[axis]
        candidate = jnp.where(own_max == rows.row_max, first + predicted, jnp.iinfo(jnp.int32).max)
        # The maximum over devices need not tell of a NaN.
        predicted = lax.pmin(jnp.where(jnp.isnan(own_max), -1, candidate), vocab_axis_name)
    known = rows.row_max > -jnp.inf
    return jnp.where(known if targets.where is None else known & targets.where, predicted, -1)


def label_nll(logits: Array, rows: Rows, targets: Targets) -> Array:
    """−Σ_c q_c log p_c of each row: of distributions `rows` knows it with the class weights only."""
    if targets.are_ids or targets.class_weight is None:
        return rows.label.loss
    unweighted = targets._replace(class_weight=None, smoothing=None)
    return row_losses(logits, unweighted, None)[1].label.loss
