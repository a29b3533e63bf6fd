"""−Σ t log p of each row's targets t, from probabilities or log-probabilities; `rule` does the same from logits.

Log-probabilities are logits whose log_z is 0, and their live classes are those above −inf. For probabilities all
classes are live, and the logarithm is clamped:

    clamped_log(p) = max(log p, −100),        slope 1 / max(p, 1e-12)

It is finite, and keeps a gradient at p = 0, so training can recover. For an id without smoothing only one entry of the
row is read.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jxent._core.arguments import ROUNDING, row_shape
from jxent._core.dtypes import compute_dtype
from jxent._core.rows.cpu import TARGETS, Operands, Sums, target_dot
from jxent._core.rows.losses import entry_rows
from jxent._core.rows.rule import Rows, TargetRows
from jxent._core.rows.state import SHARE, TargetState, Wanted, dense_targets
from jxent._core.shards import along, class_ids, entries_at, entry_at
from jxent._core.sigmoid_terms import scaled
from jxent._core.silence import weighed_log
from jxent._core.targets import Targets, is_ids
from jxent._core.xla import remade

LOWEST_LOG = -100.0
_LOWEST_PROB = 1e-12


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Config:
    axis: int
    are_probs: bool
    wanted: Wanted


def probability_rows(scores: Array, targets: Targets, *, are_probs: bool) -> Rows:
    """Evaluates what `losses.row_loss` and `losses.row_mass` need."""
    labels, axis, smoothing, where = targets.labels, targets.axis, targets.smoothing, targets.where
    of_label, of_spread = [targets.label_weight if targets.are_ids else None], []
    wanted = {} if is_ids(labels) else {"label": ("dot",)}
    if smoothing is not None:
        wanted |= {"spread": ("dot",)} | ({} if targets.class_weight is None else {"live": ()})
        # The class of an id gets both slopes, one after the other, and their sum must not overflow either.
        both = 2 if targets.are_ids else 1
        of_label.append(both * (1 - smoothing))
        of_spread.append(both * smoothing / (scores.shape[axis] * SHARE))
    ones = jnp.ones(row_shape(scores, axis), compute_dtype(scores.dtype))
    weights = {
        name: lax.stop_gradient(_masked(scaled(ones, targets.sample_weight, *factors), where))
        for name, factors in (("label", of_label), ("spread", of_spread))
    }
    nll = _nll(axis, are_probs, scores, labels, where, weights["label"]) if targets.are_ids else None
    q, of_targets = None if is_ids(labels) else labels, {}
    if wanted:
        config = _Config(axis, are_probs, Wanted(tuple(wanted.items())))
        of_targets = _target_rows(config, scores, q, targets.class_weight, where, weights)
    if targets.entries is not None:
        log_probs = _log_probs_at(scores, targets, targets.entries, weights["label"], are_probs)
        of_targets = of_targets | entry_rows(log_probs, targets)
    if "spread" in of_targets:
        is_good = of_targets.get("live", of_targets["spread"]).mass != 0
        is_good = is_good if where is None else is_good | ~where
        loss = of_targets["spread"].loss * jnp.where(is_good, ones, jnp.nan)
        of_targets["spread"] = of_targets["spread"]._replace(loss=loss)
    unknown: Any = None
    return Rows(unknown, unknown, None, None, nll, of_targets, None)


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def _nll(axis: int, are_probs: bool, scores: Array, ids: Array, where: Array | None, weight: Array) -> Array:
    entry = _entry(scores, ids, axis).astype(weight.dtype)
    entry = entry if where is None else jnp.where(where, entry, 1)
    entry = _checked(entry, are_probs)
    return _masked(-clamped_log(entry, lowest_divisor(weight, scores.dtype)) if are_probs else -entry, where)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _entry(x: Array, ids: Array, axis: int) -> Array:
    """`x` at the ids, of the row shape; NaN for a negative id."""
    return jnp.where(ids < 0, jnp.nan, entry_at(x, ids, axis))


# Selects by comparing ids, so that the transpose writes the gradient once. A gather would transpose to a scatter, which
# a mesh with a split class axis refuses. A bad id has no entry, so its NaN slope goes to the whole row.
def _entry_jvp(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, ids), (d_x, _) = primals, tangents
    y = jnp.expand_dims(ids, axis)
    d_entry = jnp.sum(jnp.where((class_ids(x.shape, axis) == y) | (y < 0), d_x, 0), axis, dtype=x.dtype)
    return _entry(x, ids, axis), d_entry


_entry.defjvp(_entry_jvp)


def _log_probs_at(scores: Array, targets: Targets, entries: Array, weight: Array, are_probs: bool) -> Array:
    """Log p at K ids per row, `[…, K]`."""
    where = None if targets.where is None else targets.where[..., None]
    entry = _entries(scores, targets.labels, targets.axis).astype(weight.dtype)
    entry = _checked(entry if where is None else jnp.where(where, entry, 1), are_probs)
    if not are_probs:
        return _masked(entry, where)
    # An id may occur K times, and its slopes add up.
    coefficient = entry.shape[-1] * jnp.abs(entries if targets.label_weight is None else entries * targets.label_weight)
    lowest = lowest_divisor(jnp.max(coefficient, -1, keepdims=True) * weight[..., None], scores.dtype)
    return _masked(clamped_log(entry, lowest), where)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _entries(x: Array, ids: Array, axis: int) -> Array:
    """`x` at K ids per row, `[…, K]`; NaN for a negative id."""
    return jnp.where(ids < 0, jnp.nan, entries_at(x, ids, axis))


# A bad id has no entry, so its NaN slope goes to the whole row.
def _entries_jvp(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, ids), (d_x, _) = primals, tangents
    poison = jnp.where(jnp.any(ids < 0, -1), jnp.nan, 0).astype(x.dtype)
    return _entries(x, ids, axis), entries_at(d_x, ids, axis) + (poison * jnp.sum(d_x, axis, dtype=x.dtype))[..., None]


_entries.defjvp(_entries_jvp)


def _target_values(
    config: _Config, scores: Array, q: Array | None, w: Array | None, where: Array | None, _: Any
) -> dict[str, TargetRows]:
    """As `_target_rows`, but on the CPU from the sums in `cpu`, because XLA:CPU would materialise selected arrays."""

    def on_cpu(scores: Array, q: Array | None, w: Array | None) -> dict[str, TargetState]:
        row_max = jnp.zeros(row_shape(scores, config.axis), compute_dtype(scores.dtype))
        sums, dot = Sums(config.axis, scores, q, row_max, w), _clamped_dot if config.are_probs else target_dot
        return {
            name: TargetState(dot=sums.of(dot, TARGETS[name]) if fields else None, mass=sums.of(TARGETS[name]))
            for name, fields in config.wanted.targets
        }

    plain = partial(_states, config, where=None, weights=None)
    can_sum = isinstance(scores.shape[config.axis], int)
    return _rows_of(lax.platform_dependent(scores, q, w, cpu=on_cpu if can_sum else plain, default=plain), where)


def _clamped_dot(o: Operands, axis: int, target: Any) -> Array:
    """Uses multiples of `one`, because XLA:CPU would make arrays of constants to share between two sums."""
    p, zero = o.logits.astype(o.one.dtype), 0 * o.one
    known = jnp.maximum(jnp.minimum(zero, p + ROUNDING * o.one), p)  # below 0 only by more than rounding
    return target(o, axis) * (jnp.maximum(LOWEST_LOG * o.one, jnp.log(known)) + zero * p)


@remade("cpu", value=jax.jit(_target_values))
def _target_rows(
    config: _Config, scores: Array, q: Array | None, w: Array | None, where: Array | None, weights: dict[str, Array]
) -> dict[str, TargetRows]:
    """The wanted targets of every row; `weights` are the factors on them, for `lowest_divisor`. The other arguments are
    as in `rule.softmax_rows`.
    """
    return _rows_of(_states(config, scores, q, w, where, weights), where)


def _rows_of(states: dict[str, TargetState], where: Array | None) -> dict[str, TargetRows]:
    rows = {name: TargetRows(t.mass, None, None if t.dot is None else -t.dot, None) for name, t in states.items()}
    return jax.tree.map(lambda field: _masked(field, where), rows)


def _states(
    config: _Config, scores: Array, q: Array | None, w: Array | None, where: Array | None, weights: Any
) -> dict[str, TargetState]:
    axis, mask = config.axis, None if where is None else jnp.expand_dims(where, config.axis)

    def harmless(values: Array, fill: float = 0) -> Array:
        values = values.astype(compute_dtype(scores.dtype))
        return values if mask is None else jnp.where(mask, values, fill)

    x = _checked(harmless(scores, 1), config.are_probs)
    q, w = None if q is None else harmless(q), None if w is None else harmless(along(w, x.ndim, axis))

    targets = dense_targets(config.wanted, lax.stop_gradient(x), q, w)
    dotted, log_p = [name for name, fields in config.wanted.targets if fields], x
    if config.are_probs:
        coefficients = [targets[name] * jnp.expand_dims(weights[name], axis) for name in dotted] if weights else []
        log_p = clamped_log(x, lowest_divisor(sum(coefficients), scores.dtype))
    return {
        name: TargetState(dot=jnp.sum(weighed_log(t, log_p), axis) if name in dotted else None, mass=jnp.sum(t, axis))
        for name, t in targets.items()
    }


def _checked(x: Array, are_probs: bool) -> Array:
    """`x`, or NaN where it is not a probability or the logarithm of one, in value and derivative."""
    poison = jnp.sqrt(x + ROUNDING) if are_probs else jnp.maximum(jnp.finfo(x.dtype).min, x)
    return x * (1 + 0 * lax.stop_gradient(poison))


def _masked(per_row: Array, where: Array | None) -> Array:
    return per_row if where is None else jnp.where(where, per_row, 0)


def lowest_divisor(coefficient: Array | int, dtype: Any) -> Array | float:
    """The p below which the slope of clamped_log is constant, so that the slope times `coefficient` does not overflow
    `dtype`.
    """
    largest = float(jnp.finfo(dtype).max)
    if largest * _LOWEST_PROB > 1:
        return _LOWEST_PROB
    return jnp.maximum(_LOWEST_PROB, lax.stop_gradient(jnp.abs(coefficient)) / largest)


@jax.custom_jvp
def clamped_log(p: Array, lowest: Array | float) -> Array:
    """max(log p, −100), with the slope 1 / max(p, lowest)."""
    return jnp.maximum(LOWEST_LOG, jnp.log(jnp.maximum(0, p)))


def _clamped_log_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    p, lowest = primals
    return clamped_log(p, lowest), tangents[0] / jnp.maximum(lowest, p)


clamped_log.defjvp(_clamped_log_jvp)
