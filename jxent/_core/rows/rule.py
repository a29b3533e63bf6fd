"""Evaluates rows of logits, with one derivative rule in which nothing cancels."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero, zero_from_primal

from jxent._core.rows import cpu, state
from jxent._core.rows.state import TargetState, Wanted
from jxent._core.shards import VocabAxis, aligned, along, class_ids, own_ids, summed


class TargetRows(NamedTuple):
    """What follows from one target in each row; all but the mass may be None.

    Attributes:
        mass: T = Σ t.
        below: B = Σ t below the maximum if that has p > 1/2 (u < 1), else 0.
        loss: −Σ t log p.
        miss: Σ t·(1 − p).
    """

    mass: Array
    below: Any
    loss: Any
    miss: Any


class Rows(NamedTuple):
    """The evaluated rows: arrays of the row shape, in the compute dtype except `top`; 0 in masked rows except
    `row_max`.

    Attributes:
        row_max: m. A constant under differentiation, because it cancels in everything computed from it.
        excess: u.
        dot: e, or None.
        entropy: −Σ p log p, or None.
        nll: −log p of the id, or of the top class; or None.
        targets: by name.
        top: i, or None.
    """

    row_max: Array
    excess: Array
    dot: Any
    entropy: Any
    nll: Any
    targets: dict[str, TargetRows]
    top: Any


class Config(NamedTuple):
    """The static options. With `nll_of_top`, which needs i, the top class takes the place of the id."""

    axis: int
    wanted: Wanted
    vocab_axis_name: VocabAxis
    nll_of_top: bool = False


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def softmax_rows(
    config: Config, logits: Array, ids: Array | None, q: Array | None, w: Array | None, where: Array | None
) -> Rows:
    """Evaluates every row of `logits`.

    Args:
        config: the class axis, what to compute, and the axes of a `shard_map` that split the classes. `logits` varies
            over those axes, V is the number of classes on one device, ids are global, and the result is the same on
            each device.
        logits: floating, `[..., V, ...]`. Never copied whole to another dtype.
        ids: int32 of the row shape, where a negative id is a bad one (NaN loss and gradient); or None.
        q: a distribution, floating, shaped like `logits`; or None.
        w: class weights `[V]` in the compute dtype, which apply to the targets but not to the nll of an id; or None.
        where: bool of the row shape; rows where it is False are 0 in value and gradient, whatever they hold.
    """
    return _forward(config, logits, ids, q, w, where)


# The derivative rule, at constant m, for an id y and a target t:
#
#   ∂u/∂x_c = exp(d_c)     ∂nll/∂x_c = p_c − [c = y]     ∂loss/∂x_c = T·p_c − t_c     ∂loss/∂t_c = log1p(u) − d_c
#
# The two slopes in the middle cancel as p → 1: `state` has forms that do not. The rule calls `softmax_rows` for its
# primal, so it is itself differentiable to any order. The tangent map runs under `jax.checkpoint`: reverse mode keeps
# its inputs and the O(N) `rows`, and recomputes the [N, V] softmax in the backward pass. The sums over the classes are
# linear in a tangent, so the transpose is elementwise and sums nothing.
def _softmax_rows_jvp(config: Config, primals: Any, tangents: Any) -> tuple[Rows, Rows]:
    rows = softmax_rows(config, *primals)
    if config.nll_of_top:
        primals = primals[0], rows.top, *primals[2:]
    perturbed = (None if isinstance(tangents[i], SymbolicZero) else tangents[i] for i in (0, 2, 3))
    tangent_map = jax.checkpoint(partial(_tangents, config), prevent_cse=False)
    d_rows = tangent_map(rows._replace(top=None), *primals, *perturbed)
    return rows, d_rows._replace(top=None if rows.top is None else zero_from_primal(rows.top, symbolic_zeros=True))


softmax_rows.defjvp(_softmax_rows_jvp, symbolic_zeros=True)


@partial(jax.jit, static_argnums=0)
def _forward(
    config: Config, logits: Array, ids: Array | None, q: Array | None, w: Array | None, where: Array | None
) -> Rows:
    axis, wanted, vocab_axis_name, nll_of_top = config
    own: Any = None if ids is None else own_ids(ids, logits.shape[axis], vocab_axis_name)
    of_part: Any = lax.platform_dependent(
        *aligned((logits, own, q, w)),
        cpu=partial(cpu.row_state, wanted, axis),
        default=partial(state.row_state, wanted, axis),
    )
    part, entry = of_part
    if own is not None and vocab_axis_name is not None:
        entry = jnp.where(own < 0, 0, entry)
    whole, entry = state.merged_over(part, entry, logits.shape[axis], vocab_axis_name)
    targets, u, dot, m, top = whole
    u = jnp.where(jnp.isfinite(m), u, jnp.nan)  # a maximum of +inf, or no live class
    entropy = None if dot is None else state.entropy(u, dot)
    nll = jnp.log1p(u) if nll_of_top else None
    if ids is not None:
        nll = jnp.where(ids < 0, jnp.nan, jnp.log1p(u) - (entry - m))
    rows = Rows(m, u, dot, entropy, nll, {name: _target_rows(u, t) for name, t in targets.items()}, top)
    return rows if where is None else jax.tree.map(lambda field: jnp.where(where, field, 0), rows)._replace(row_max=m)


def _target_rows(u: Array, t: TargetState) -> TargetRows:
    below = None if t.below is None else jnp.where(u < 1, t.below, 0)
    loss = None if t.dot is None else state.target_loss(u, t)
    return TargetRows(t.mass, below, loss, None if t.missed is None else state.target_miss(u, t))


@partial(jax.jit, static_argnums=0)
def _tangents(
    config: Config,
    rows: Rows,
    logits: Array,
    ids: Array | None,
    q: Array | None,
    w: Array | None,
    where: Array | None,
    d_logits: Array | None,
    d_q: Array | None,
    d_w: Array | None,
) -> Rows:
    """The tangents of `rows`: linear in the last three arguments, where None stands for zero."""
    axis, wanted, vocab_axis_name, _ = config
    rows, logits = cpu.apart(wanted, axis, rows, logits)
    rows, mask = jax.tree.map(lambda field: jnp.expand_dims(field, axis), (rows, where))
    u = rows.excess
    masked, total = partial(_masked, mask, u.dtype), partial(_total, axis, jnp.zeros_like(u))
    # A masked row becomes one of dead classes with targets of 0, so that its slopes are exactly 0.
    x = masked(logits, -jnp.inf)
    d = masked(logits.astype(u.dtype) - rows.row_max, -jnp.inf)
    exp_d = _exp(logits.astype(u.dtype) - rows.row_max, mask)

    def targets_of(q: Array | None, w: Array | None) -> dict[str, Array]:
        q, w = None if q is None else masked(q), None if w is None else masked(along(w, x.ndim, axis))
        return state.dense_targets(wanted, x, q, w)

    v = None if d_logits is None else d_logits.astype(u.dtype)
    nll = dot = entropy = None
    if ids is not None:
        y = jnp.expand_dims(own_ids(ids, logits.shape[axis], vocab_axis_name), axis)
        known_u = jnp.where(jnp.expand_dims(ids < 0, axis), jnp.nan, u)
        nll = total(state.id_slope(exp_d, known_u, rows.nll, class_ids(d.shape, axis) == y), v)
    if rows.dot is not None:
        dot = total(jnp.where(d == -jnp.inf, 0, jnp.exp(d) * (1 + d)), v)
        entropy = total(state.entropy_slope(d, u, rows.dot), v)
    targets, d_targets = _jvp_by_some(targets_of, (q, w), (d_q, d_w))
    of_targets = {
        name: _target_tangents(total, d, u, rows.targets[name], t, v, d_targets and d_targets[name])
        for name, t in targets.items()
    }
    d_rows = Rows(jnp.zeros_like(u), total(exp_d, v), dot, entropy, nll, of_targets, None)
    return summed(jax.tree.map(lambda field: jnp.squeeze(field, axis), d_rows), vocab_axis_name)


def _masked(mask: Array | None, dtype: Any, values: Array, fill: float = 0) -> Array:
    values = values.astype(dtype)
    return values if mask is None else jnp.where(mask, values, fill)


def _total(axis: int, zero: Array, slope: Array, tangent: Array | None) -> Array:
    """Σ slope·tangent over the classes, whose axis stays; a tangent of None stands for zero."""
    return zero if tangent is None else jnp.sum(slope * tangent, axis, keepdims=True)


@jax.custom_jvp
def _exp(d: Array, mask: Array | None) -> Array:
    """exp(d), or 0 in masked rows. Selects after the exp, so that XLA:CPU can share it with the sum of u."""
    return jnp.exp(d) if mask is None else jnp.where(mask, jnp.exp(d), 0)


# This rule keeps the d of a masked row, which may be NaN, out of second derivatives.
def _exp_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    exp_d, (d_d, _) = _exp(*primals), tangents
    return exp_d, exp_d * d_d


_exp.defjvp(_exp_jvp)


def _target_tangents(
    total: Callable[[Array, Array | None], Array],
    d: Array,
    u: Array,
    rows: TargetRows,
    t: Array,
    v: Array | None,
    d_t: Array | None,
) -> TargetRows:
    """Tangents for one target `t`. `v`: tangent of the logits. `d_t`: tangent of the target."""
    loss = miss = None
    has_below = rows.below is not None
    below = jnp.where(u < 1, total((d < 0).astype(d.dtype), d_t), 0) if has_below else None
    if rows.loss is not None:
        loss = total(state.target_slope(d, u, rows.mass, rows.below, t), v)
        if d_t is not None:
            # 0 · log 0 = 0. Elsewhere −log 0 is inf; applied as two finite factors, so that a cotangent of 0 stays 0.
            is_dead, huge = d == -jnp.inf, jnp.finfo(d.dtype).max
            surprise = jnp.where(is_dead & (t == 0), 0, jnp.log1p(u) - jnp.maximum(d, -huge))
            loss = loss + total(surprise, jnp.where(is_dead & (t != 0), huge, 1) * d_t)
    if rows.miss is not None:
        slope = state.miss_slope(d, u, rows.mass, rows.below, rows.miss, t)
        miss = total(slope, v) + total(state.miss(d, u), d_t)
    return TargetRows(total(jnp.ones_like(d), d_t), below, loss, miss)


def _jvp_by_some(f: Callable[..., Any], primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    """`jax.jvp`, but a tangent may be None for zero; if all are None, so is the tangent of the result."""
    perturbed = [i for i, tangent in enumerate(tangents) if tangent is not None]
    if not perturbed:
        return f(*primals), None

    def of_perturbed(*values: Array) -> Any:
        return f(*(values[perturbed.index(i)] if i in perturbed else primal for i, primal in enumerate(primals)))

    return jax.jvp(of_perturbed, tuple(primals[i] for i in perturbed), tuple(tangents[i] for i in perturbed))
