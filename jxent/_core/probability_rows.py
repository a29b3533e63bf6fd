"""Rows of probabilities or log-probabilities → their losses, and the clamped logarithm that the former take.

    clamped_log(p) = max(log p, −100),        slope 1 / max(p, 1e-12)

finite everywhere and still pushing at p = 0, where the slope of the value is 0: a model that has come to p = 0 for the
right class must get out again. All else is linear and needs no rule; reverse mode keeps the arguments and O(N) numbers.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jxent._core.dtypes import compute_dtype
from jxent._core.platform import remade
from jxent._core.row_sums import along, class_ids, entry_at
from jxent._core.sigmoid_terms import masked_elements, smoothed
from jxent._core.targets import is_ids

_LOWEST_LOG = -100.0
_LOWEST_PROB = 1e-12


class ProbabilityRows(NamedTuple):
    """What is known of each row, as in `softmax_rows.Rows`; 0 in masked rows.

    Attributes:
        label_loss: ids `−log p_y`, distributions `−Σ_c w_c q_c log p_c`.
        mass: `Σ_c w_c q_c`, or None for ids.
        spread_loss: `−Σ_{c live} w_c log p_c`, or None.
        live_classes: the number of classes with `log p` above −inf, or None.
    """

    label_loss: Array
    mass: Array | None
    spread_loss: Array | None
    live_classes: Array | None


# With a barrier before what is remade: without, XLA:GPU keeps one [N, V] array of it for both passes.
@partial(jax.checkpoint, static_argnums=(4, 5, 6))
@partial(jax.jit, static_argnums=(4, 5, 6))
def _probability_rows(
    scores: Array,
    labels: Array,
    class_weight: Array | None,
    where: Array | None,
    axis: int,
    are_probs: bool,
    smooth: bool,
) -> ProbabilityRows:
    dtype = compute_dtype(scores.dtype)
    log = partial(clamped_log, slope_limit=float(jnp.finfo(scores.dtype).max)) if are_probs else jnp.asarray
    total = partial(jnp.sum, axis=axis)
    row_where = None if where is None else jnp.expand_dims(where, axis)
    w = None if class_weight is None else along(class_weight, scores.ndim, axis)
    # A row with NaN, +inf, no live class or a negative probability is NaN, and so is its gradient.
    row_max = jnp.max(jax.lax.stop_gradient(scores).astype(dtype), axis, keepdims=True)
    valid = jnp.isfinite(row_max)
    if are_probs:
        valid = valid & (jnp.min(jax.lax.stop_gradient(scores).astype(dtype), axis, keepdims=True) >= 0)
    sign = jnp.where(valid if row_where is None else valid | ~row_where, jnp.array(-1, dtype), jnp.nan)

    def log_probs() -> Array:
        p = scores.astype(dtype)
        return log(p if row_where is None else jnp.where(row_where, p, 1))

    mass = spread_loss = live_classes = None
    if is_ids(labels):
        entry = label_entry(scores, labels, axis).astype(dtype)
        entry = entry if where is None else jnp.where(where, entry, 1)
        label_loss = jnp.squeeze(sign, axis) * log(entry)
    else:
        q = labels.astype(dtype)
        t = q if row_where is None else jnp.where(row_where, q, 0)
        t = t if w is None else t * w
        mass = total(t)
        log_p = log_probs()
        label_loss = total(sign * (t * jnp.where((log_p == -jnp.inf) & (t == 0), 0, log_p)))
    if smooth:
        log_p = log_probs()
        live = log_p > -jnp.inf
        spread = jnp.where(live, log_p, 0)
        spread_loss = total(sign * (spread if w is None else spread * w))
        live_classes = total(live.astype(dtype))
    rows = ProbabilityRows(label_loss, mass, spread_loss, live_classes)
    return rows if where is None else jax.tree.map(lambda field: jnp.where(where, field, 0), rows)


def probability_rows(
    scores: Array,
    labels: Array,
    class_weight: Array | None,
    where: Array | None,
    *,
    axis: int,
    are_probs: bool,
    smooth: bool,
) -> ProbabilityRows:
    """Evaluates every row along `axis`; the arguments are those of `softmax_rows`."""
    return _probability_rows(scores, labels, class_weight, where, axis, are_probs, smooth)


@remade("cpu")
@jax.jit
def binary_probability_terms(
    probs: Array, labels: Array, pos_weight: Array | None, smoothing: Array | None, where: Array | None
) -> Array:
    """`−(pos_weight·y·log p + (1−y)·log(1−p))`, clamped, for each element; the arguments are those of `sigmoid_terms`."""
    slope_limit = float(jnp.finfo(probs.dtype).max)
    p, y, pos_weight = masked_elements(probs, labels, pos_weight, where, fill=0.5)
    y = smoothed(y, smoothing)
    positive = y if pos_weight is None else pos_weight * y
    loss = -(positive * clamped_log(p, slope_limit) + (1 - y) * clamped_log1m(p, slope_limit))
    return loss if where is None else jnp.where(where, loss, 0)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def clamped_log(p: Array, slope_limit: float) -> Array:
    return jnp.maximum(jnp.log(p), _LOWEST_LOG)


def _clamped_log_jvp(slope_limit: float, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (p,), (d_p,) = primals, tangents
    return clamped_log(p, slope_limit), jnp.minimum(1 / jnp.maximum(p, _LOWEST_PROB), slope_limit) * d_p


clamped_log.defjvp(_clamped_log_jvp)


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def clamped_log1m(p: Array, slope_limit: float) -> Array:
    """clamped_log(1 − p), without losing a small p to the subtraction."""
    return jnp.maximum(jnp.log1p(-p), _LOWEST_LOG)


def _clamped_log1m_jvp(slope_limit: float, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (p,), (d_p,) = primals, tangents
    return clamped_log1m(p, slope_limit), -jnp.minimum(1 / jnp.maximum(1 - p, _LOWEST_PROB), slope_limit) * d_p


clamped_log1m.defjvp(_clamped_log1m_jvp)


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def label_entry(x: Array, y: Array, axis: int) -> Array:
    """`x` at the ids `y` of the row shape, NaN at a negative one."""
    return jnp.where(y < 0, jnp.nan, entry_at(x, y, axis, cpu=False))


# Selects by comparing ids, whose transpose writes each gradient once; a gather's would be a scatter, which no mesh with
# a split class axis can do. A bad id has no entry, so its NaN must be put into the whole row.
def _label_entry_jvp(axis: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, y), (d_x, _) = primals, tangents
    along_y = jnp.expand_dims(y, axis)
    is_label = jnp.where(along_y < 0, jnp.nan, (class_ids(x.shape, axis) == along_y).astype(x.dtype))
    return label_entry(x, y, axis), jnp.sum(is_label * d_x, axis)


label_entry.defjvp(_label_entry_jvp)
