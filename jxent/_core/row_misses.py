"""Rows of logits → their miss s = Σ_c q_c · (1 − p_c), with a derivative rule that cancels nowhere.

    id y             1 − p_y = −expm1(−loss)
    distribution     1 − p_c = (u + (1 − exp(d_c))) / (1 + u)        d and u as in `softmax_rows`

At a maximum the second is u / (1 + u), and elsewhere u ≥ exp(d_c): nothing of either is lost to a subtraction.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

from jxent._core.platform import cpu_barrier
from jxent._core.row_sums import RowSums, target_hit, target_hit_below_max, target_missed
from jxent._core.shards import aligned
from jxent._core.softmax_rows import Rows, TargetRows, row_tangents, softmax_rows, target_slope
from jxent._core.targets import Targets


class _Misses(NamedTuple):
    """Of a distribution; each of the row shape.

    Attributes:
        miss: `Σ_c q_c · (1 − p_c)`.
        hit: `Σ_c q_c · p_c`.
        hit_below: the part of `hit` from the classes below the row's maximum, where u < 1; else 0.
    """

    miss: Array
    hit: Array
    hit_below: Array


def row_losses_and_misses(logits: Array, targets: Targets) -> tuple[Array, Array, Rows]:
    """The loss and the miss of each row, smoothed as the target is, and what is known of the row."""
    smooth = targets.smoothing is not None
    x, labels, class_weight, where = aligned((logits, targets.labels, targets.class_weight, targets.where))
    if targets.are_ids:
        rows = softmax_rows(x, labels, class_weight, where, targets.axis, smooth)
        miss = _miss_of_id(rows.label.loss)
    else:
        rows, misses = _rows_and_misses(x, labels, class_weight, where, targets.axis, smooth)
        miss = misses.miss
    spread_loss = spread_miss = None
    if rows.spread is not None:
        assert rows.live_classes is not None
        # Over the live classes p sums to 1.
        spread_loss, spread_miss = rows.spread.loss, jnp.maximum(rows.live_classes - 1, 0)
    loss = targets.row_loss(rows.label.loss, spread_loss, rows.live_classes)
    return loss, targets.smoothed(miss, spread_miss, rows.live_classes), rows


@jax.custom_jvp
def _miss_of_id(loss: Array) -> Array:
    return -jnp.expm1(-loss)


# jax's own rule is 1 + expm1(−loss), which is 0 from a loss of 17 on in float32.
def _miss_of_id_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (loss,), (d_loss,) = primals, tangents
    return _miss_of_id(loss), jnp.exp(-loss) * d_loss


_miss_of_id.defjvp(_miss_of_id_jvp)


@partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _rows_and_misses(
    logits: Array, labels: Array, class_weight: Array | None, where: Array | None, axis: int, smooth: bool
) -> tuple[Rows, _Misses]:
    rows = softmax_rows(logits, labels, class_weight, where, axis, smooth)
    misses = lax.platform_dependent(
        rows, logits, labels, cpu=partial(_evaluate, axis, True), default=partial(_evaluate, axis, False)
    )
    return rows, misses if where is None else jax.tree.map(lambda field: jnp.where(where, field, 0), misses)


# One rule for both, so that narrow logits get the sum of both gradients, rounded once. As in `softmax_rows`, what is
# summed over the classes is linear in a tangent, and the rest is kept: hence `hit` and `hit_below`.
def _rows_and_misses_jvp(axis: int, smooth: bool, primals: Any, tangents: Any) -> tuple[Any, Any]:
    primals_out = _rows_and_misses(*primals, axis, smooth)
    d_logits, d_labels, d_class_weight, _ = (None if isinstance(t, SymbolicZero) else t for t in tangents)
    tangent_map = jax.checkpoint(partial(_tangents, axis), prevent_cse=False)
    return primals_out, tangent_map(*primals_out, *primals, d_logits, d_labels, d_class_weight)


_rows_and_misses.defjvp(_rows_and_misses_jvp, symbolic_zeros=True)


@partial(jax.jit, static_argnums=(0, 1))
def _evaluate(axis: int, cpu: bool, rows: Rows, logits: Array, labels: Array) -> _Misses:
    excess, sums = rows.excess, RowSums(axis, cpu, logits, rows.row_max, labels, None)
    miss, hit, hit_below = sums.of(partial(target_missed, excess)), sums.of(target_hit), sums.of(target_hit_below_max)
    # As that of `hit_below`, the selection of `hit` keeps XLA:CPU (jaxlib 0.10) from fusing its sum with [N, V] arrays.
    misses = _Misses(miss, jnp.where(excess >= 0, hit, jnp.nan), jnp.where(excess < 1, hit_below, 0))
    return jax.tree.map(lambda field: field / (1 + excess), misses)


@partial(jax.jit, static_argnums=0)
def _tangents(
    axis: int,
    rows: Rows,
    misses: _Misses,
    logits: Array,
    labels: Array,
    class_weight: Array | None,
    where: Array | None,
    d_logits: Array | None,
    d_labels: Array | None,
    d_class_weight: Array | None,
) -> tuple[Rows, _Misses]:
    dtype = rows.excess.dtype
    v, d_q = (None if d is None else d.astype(dtype) for d in (d_logits, d_labels))
    d_rows = row_tangents(axis, None, rows, logits, labels, class_weight, where, v, d_q, d_class_weight)
    return d_rows, _miss_tangents(axis, misses, rows, logits, labels, where, v, d_q)


def _miss_tangents(
    axis: int,
    misses: _Misses,
    rows: Rows,
    logits: Array,
    labels: Array,
    where: Array | None,
    v: Array | None,
    d_q: Array | None,
) -> _Misses:
    """∂miss/∂x_k = p_k · Σ_c q_c p_c − q_k p_k: what `target_slope` makes of a target t = q·p. And ∂miss/∂q_c = 1 − p_c."""
    misses, rows, logits, labels = cpu_barrier((misses, rows, logits, labels))
    misses, rows, mask = jax.tree.map(lambda field: jnp.expand_dims(field, axis), (misses, rows, where))

    def counted(values: Array, fill: float = 0) -> Array:
        values = values.astype(rows.excess.dtype)
        return values if mask is None else jnp.where(mask, values, fill)

    miss = hit = hit_below = jnp.zeros_like(rows.excess)
    total = partial(jnp.sum, axis=axis, keepdims=True)
    # As in `softmax_rows`, a masked row is one of dead classes and a target of 0.
    d = counted(logits, -jnp.inf) - rows.row_max
    p = jnp.exp(d) / (1 + rows.excess)
    below = jnp.where(rows.excess < 1, -jnp.sign(d), 0)
    if v is not None:
        t = counted(labels) * p
        miss = total(target_slope(d, rows, TargetRows(miss, misses.hit, misses.hit_below), t) * v)
        hit, hit_below = -miss, total((below * t - misses.hit_below * p) * v)
    if d_q is not None:
        d_q = counted(d_q)
        miss = miss + total((rows.excess + (1 - jnp.exp(d))) / (1 + rows.excess) * d_q)
        hit, hit_below = hit + total(p * d_q), hit_below + total(below * p * d_q)
    return jax.tree.map(lambda field: jnp.squeeze(field, axis), _Misses(miss, hit, hit_below))
