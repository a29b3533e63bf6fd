"""The loss of each row, before its sample weight, and its metrics, from logits and targets."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jxent._core.rows import state
from jxent._core.rows.rule import Config, Rows, TargetRows, softmax_rows
from jxent._core.rows.state import SHARE, Wanted
from jxent._core.shards import entries_at, own_ids
from jxent._core.silence import silenced, weighed_log
from jxent._core.targets import Targets


def evaluate(logits: Array, targets: Targets, *, miss: bool = False, aux: bool = False, entropy: bool = False) -> Rows:
    """Evaluates what the functions below need: `miss` for `row_miss`, `aux` for `row_nll` and `row_predicted`."""
    wanted = _wanted(targets, miss, aux)._replace(dot=entropy)
    if targets.entries is not None:
        return _of_entries(logits, targets, wanted)
    config = Config(targets.axis, wanted, targets.vocab_axis_name)
    ids, q = (targets.labels, None) if targets.are_ids else (None, targets.labels)
    w = None if targets.are_ids and targets.smoothing is None else targets.class_weight
    return softmax_rows(config, logits, ids, q, w, targets.where)


def log_probs_of_several(logits: Array, targets: Targets, entropy: bool) -> tuple[Array, Array | None]:
    """Log p of K ids per row, `[…, K]`, and optionally the entropy. An id of −1 is a bad one, −2 an ignored one."""
    config = Config(targets.axis, Wanted(top=True, dot=entropy), targets.vocab_axis_name, nll_of_top=True)
    rows = softmax_rows(config, logits, None, None, None, targets.where)
    return _log_probs_at(rows, logits, targets), rows.entropy


def _of_entries(logits: Array, targets: Targets, wanted: Wanted) -> Rows:
    """Evaluates rows whose label is a distribution of K entries."""
    config = Config(targets.axis, wanted._replace(top=True), targets.vocab_axis_name, nll_of_top=True)
    w = None if targets.smoothing is None else targets.class_weight
    rows = softmax_rows(config, logits, None, None, w, targets.where)
    return rows._replace(targets=rows.targets | entry_rows(_log_probs_at(rows, logits, targets), targets))


def entry_rows(log_prob: Array, targets: Targets) -> dict[str, TargetRows]:
    """The targets "label" and "plain" from log p at the ids, `[…, K]`."""
    entries, weight = targets.entries, targets.label_weight
    assert entries is not None

    def target_rows(t: Array) -> TargetRows:
        miss = jnp.sum(t * _miss_of_id(-log_prob), -1)
        return TargetRows(jnp.sum(t, -1), None, -jnp.sum(weighed_log(t, log_prob), -1), miss)

    return {"label": target_rows(entries if weight is None else weight * entries), "plain": target_rows(entries)}


def _log_probs_at(rows: Rows, logits: Array, targets: Targets) -> Array:
    """Log p at the ids: −nll for the top class, whose slope does not cancel, and x − m − log1p(u), at constant m, for
    others.
    """
    axis, vocab_axis_name, where = targets.axis, targets.vocab_axis_name, targets.where
    own = own_ids(targets.labels, logits.shape[axis], vocab_axis_name)
    entry = entries_at(logits, own, axis).astype(rows.excess.dtype)
    if vocab_axis_name is not None:
        entry = lax.psum(jnp.where(own < 0, 0, entry), vocab_axis_name)
    row_max, log_sum, nll, top = (
        jnp.expand_dims(a, -1) for a in (rows.row_max, jnp.log1p(rows.excess), rows.nll, rows.top)
    )
    log_prob = jnp.where(targets.labels == top, -nll, entry - row_max - log_sum)
    # A factor, because a selected NaN has no gradient.
    log_prob = jnp.where(targets.labels == -1, jnp.nan, 1) * log_prob
    is_kept = targets.labels > -2
    is_kept = is_kept if where is None else is_kept & jnp.expand_dims(where, -1)
    return jnp.where(is_kept, log_prob, 0)


def _wanted(targets: Targets, miss: bool, aux: bool) -> Wanted:
    """Without class weights, "label" also serves as "plain", and "spread" counts the live classes."""
    wanted: dict[str, tuple[str, ...]] = {}
    is_weighted = targets.class_weight is not None
    if not (targets.are_ids or targets.entries is not None):
        plain = ("missed",) * miss + ("below", "dot") * (miss or aux)
        wanted = {"label": ("below", "dot"), "plain": plain} if is_weighted else {"label": plain or ("below", "dot")}
    if targets.smoothing is not None:
        wanted |= {"spread": ("below", "dot")} | ({"live": ()} if is_weighted else {})
    return Wanted(tuple((name, fields) for name, fields in wanted.items() if fields or name == "live"), top=aux)


def row_loss(rows: Rows, targets: Targets, z_loss: Array | None = None) -> Array:
    """−Σ_c w_c q_c log p_c + z_loss · log_z², with q smoothed."""
    smoothing, sample_weight = targets.smoothing, targets.sample_weight
    label_weight = targets.label_weight if targets.are_ids else None
    rest: Any = None if smoothing is None else 1 - smoothing
    loss = silenced(rows.nll if targets.are_ids else rows.targets["label"].loss, label_weight, rest, sample_weight)
    if label_weight is not None:
        loss = label_weight * loss
    if smoothing is not None:
        spread = rows.targets["spread"].loss / _live_share(rows)
        loss = rest * loss + smoothing * silenced(spread, smoothing, sample_weight)
    if z_loss is not None:
        loss = loss + z_loss * silenced(jnp.square(row_log_z(rows, targets)), z_loss, sample_weight)
    return loss


def row_log_z(rows: Rows, targets: Targets) -> Array:
    """Log Σ exp of the logits; 0 in masked rows."""
    log_z = state.log_z(rows.row_max, rows.excess)
    return log_z if targets.where is None else jnp.where(targets.where, log_z, 0)


def row_miss(rows: Rows, targets: Targets) -> Array:
    """Σ_c q_c (1 − p_c), with q smoothed."""
    miss = _miss_of_id(rows.nll) if targets.are_ids else _plain(rows, targets).miss
    if targets.smoothing is None:
        return miss
    return (1 - targets.smoothing) * miss + targets.smoothing * (1 - SHARE / _live_share(rows))


def row_predicted(rows: Rows, targets: Targets) -> Array:
    """The lowest class with the highest logit; `targets.no_class` for rows that are masked, NaN or all dead."""
    assert rows.top is not None
    is_known = ~jnp.isnan(rows.excess) | (rows.row_max == jnp.inf)
    is_known = is_known if targets.where is None else is_known & targets.where
    return jnp.where(is_known, rows.top, targets.no_class)


def row_nll(rows: Rows, targets: Targets) -> Array:
    """−Σ_c q_c log p_c, without weights and smoothing. A metric, not differentiated."""
    return jax.lax.stop_gradient(rows.nll if targets.are_ids else _plain(rows, targets).loss)


def row_mass(rows: Rows, targets: Targets) -> Array | None:
    """The weight of each row in a mean, without its sample weight: w_y for ids, else Σ_c w_c q_c. None is 1."""
    return targets.label_weight if targets.are_ids else rows.targets["label"].mass


def _plain(rows: Rows, targets: Targets) -> Any:
    return rows.targets["label" if targets.class_weight is None else "plain"]


def _live_share(rows: Rows) -> Array:
    """The number of live classes times `SHARE`; `SHARE` itself if the row is masked."""
    live = rows.targets.get("live", rows.targets["spread"]).mass
    return jnp.maximum(live, SHARE)


@jax.custom_jvp
def _miss_of_id(nll: Array) -> Array:
    return -jnp.expm1(-nll)


# jax's own rule is 1 + expm1(−nll), which in float32 is 0 for losses of 17 and more.
def _miss_of_id_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (nll,), (d_nll,) = primals, tangents
    return _miss_of_id(nll), jnp.exp(-nll) * d_nll


_miss_of_id.defjvp(_miss_of_id_jvp)
