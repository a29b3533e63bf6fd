"""Labels → Targets: ids or a distribution per row, with the mask, the weights and the smoothing that go with them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jxent._core import arguments
from jxent._core.dtypes import compute_dtype
from jxent._core.shards import VocabAxis, num_classes_of_all, own_ids


class Targets(NamedTuple):
    """What every row is compared with.

    Attributes:
        labels: int32 ids of the row shape (global ones where the classes are split over devices), −1 for a bad one and 0 in masked rows; or a distribution, as it came.
        class_weight: `[V]` or None.
        label_weight: the class weight of each row's id (1 for a bad one), or None.
        smoothing: a scalar, or None for none.
        sample_weight: of the row shape, or None.
        where: bool of the row shape, `ignore_index` worked in; or None for all.
        axis: the class axis.
        vocab_axis_name: the axes of a `shard_map` that split the classes, or None.
    """

    labels: Array
    class_weight: Array | None
    label_weight: Array | None
    smoothing: Array | None
    sample_weight: Array | None
    where: Array | None
    axis: int
    vocab_axis_name: VocabAxis = None

    @property
    def are_ids(self) -> bool:
        return is_ids(self.labels)

    def row_loss(self, label_loss: Array, spread_loss: Array | None, live_classes: Array | None) -> Array:
        """−Σ_c w_c q_c log p_c of each row: the label's loss (unweighted for ids) and, smoothed, the spread's mixed."""
        if self.label_weight is not None:
            label_loss = _scaled(self.label_weight, label_loss)
        return self.smoothed(label_loss, spread_loss, live_classes)

    def smoothed(self, of_label: Array, of_spread: Array | None, live_classes: Array | None) -> Array:
        """What is linear in the target, from that of the label and that of 1 in every live class."""
        if self.smoothing is None:
            return of_label
        assert of_spread is not None
        assert live_classes is not None
        share = self.smoothing / jnp.maximum(live_classes, 1)
        return _scaled(1 - self.smoothing, of_label) + share * of_spread

    def row_weight(self, mass: Array | None) -> Array | None:
        """What each row counts in a mean, sample_weight apart: w_y for ids, Σ_c w_c q_c (its `mass`) else; None is 1."""
        return self.label_weight if self.are_ids else mass


def make_targets(
    fn: str,
    scores_name: str,
    scores: Any,
    labels: Any,
    *,
    class_weight: Any,
    sample_weight: Any,
    where: Any,
    ignore_index: Any,
    label_smoothing: Any,
    axis: int,
    vocab_axis_name: VocabAxis = None,
) -> Targets:
    """Checks everything a multiclass loss takes beside its scores, and brings it into one form."""
    dtype = compute_dtype(scores.dtype)
    rows = arguments.row_shape(scores, axis)
    num_classes = scores.shape[axis]
    ignored = arguments.as_ignore_index(fn, ignore_index)
    labels, ignored = arguments.as_class_labels(fn, scores_name, scores, axis, labels, ignored)
    class_weight = arguments.as_per_class(fn, "class_weight", class_weight, num_classes, dtype)
    sample_weight = arguments.as_per_row(fn, "sample_weight", sample_weight, rows, dtype)
    where = arguments.as_row_mask(fn, where, rows)
    smoothing = arguments.as_hyper_parameter(fn, "label_smoothing", label_smoothing, dtype, 0, 1)

    of_rows = {"labels": labels} if is_ids(labels) else {}
    arguments.check_same_over(fn, vocab_axis_name, **of_rows, where=where, sample_weight=sample_weight)

    if not is_ids(labels):
        if ignored is not None:
            raise ValueError(
                f"{fn}: ignore_index goes with class ids, but labels is a distribution ({labels.dtype.name}"
                f"{list(labels.shape)}); mask rows with where instead"
            )
        return Targets(labels, class_weight, None, smoothing, sample_weight, where, axis, vocab_axis_name)
    counted = counted_ids(labels, ignored)
    if counted is not None:
        where = counted if where is None else where & counted
    ids = checked_ids(labels, num_classes_of_all(num_classes, vocab_axis_name))
    if where is not None:
        ids = jnp.where(where, ids, 0)
    label_weight = None
    if class_weight is not None:
        label_weight = jnp.where(ids < 0, 1, _at_ids(class_weight, ids, vocab_axis_name))
        if where is not None:
            label_weight = jnp.where(where, label_weight, 0)
    return Targets(ids, class_weight, label_weight, smoothing, sample_weight, where, axis, vocab_axis_name)


class BinaryTargets(NamedTuple):
    """What every element of a binary loss is compared with. Weights are in the compute dtype, at the scores' rank.

    Attributes:
        labels: bool, integer or floating, of the scores' shape, as they came.
        pos_weight: broadcastable to the scores, or None.
        class_weight: of the scores' shape and harmless where masked, or None.
        smoothing: a scalar, or None for none.
        sample_weight: of the scores' shape, or None.
        where: bool, of the scores' shape; or None for all.
    """

    labels: Array
    pos_weight: Array | None
    class_weight: Array | None
    smoothing: Array | None
    sample_weight: Array | None
    where: Array | None


def make_binary_targets(
    fn: str,
    scores_name: str,
    scores: Array,
    labels: Any,
    *,
    pos_weight: Any,
    class_weight: Any,
    sample_weight: Any,
    where: Any,
    label_smoothing: Any,
) -> BinaryTargets:
    """Checks everything a binary loss takes beside its scores, and brings it into one form."""
    dtype = compute_dtype(scores.dtype)
    labels = arguments.as_binary_labels(fn, scores_name, scores, labels)
    pos_weight = arguments.as_per_column(fn, "pos_weight", pos_weight, scores, dtype, scalar=True)
    class_weight = arguments.as_per_column(fn, "class_weight", class_weight, scores, dtype, scalar=False)
    sample_weight = arguments.as_per_row(fn, "sample_weight", sample_weight, scores.shape, dtype)
    where = arguments.as_row_mask(fn, where, scores.shape)
    smoothing = arguments.as_hyper_parameter(fn, "label_smoothing", label_smoothing, dtype, 0, 1)
    if class_weight is not None:
        class_weight = jnp.broadcast_to(class_weight, scores.shape)
        class_weight = class_weight if where is None else jnp.where(where, class_weight, 0)
    return BinaryTargets(labels, pos_weight, class_weight, smoothing, sample_weight, where)


def is_ids(labels: Array) -> bool:
    """Whether labels that passed the checks are class ids (else they are distributions)."""
    return jnp.issubdtype(labels.dtype, jnp.integer)


def counted_ids(labels: Array, ignored: int | None) -> Array | None:
    """Which labels are not to be ignored; None for all."""
    if ignored is None or not _holds(labels.dtype, ignored):
        return None
    return labels != jnp.array(ignored, labels.dtype)


def checked_ids(labels: Array, num_classes: int) -> Array:
    """int32 ids, −1 where out of [0, num_classes): compared in their own dtype, so that none wraps into the range."""
    bad = labels < 0
    if _holds(labels.dtype, num_classes):
        bad = bad | (labels >= jnp.array(num_classes, labels.dtype))
    return jnp.where(bad, -1, labels.astype(jnp.int32))


def _holds(dtype: Any, value: int) -> bool:
    return bool(jnp.iinfo(dtype).min <= value <= jnp.iinfo(dtype).max)


def _at_ids(class_weight: Array, ids: Array, vocab_axis_name: VocabAxis) -> Array:
    """`class_weight[ids]`; anything where the id is negative. On a mesh with Explicit axes it is split like the ids."""
    if vocab_axis_name is not None:
        own = own_ids(ids, class_weight.size, vocab_axis_name)
        return lax.psum(jnp.where(own < 0, 0, _at_ids(class_weight, own, None)), vocab_axis_name)
    sharding = jax.typeof(ids).sharding
    is_split = any(axes is not None for axes in (*sharding.spec, *jax.typeof(class_weight).sharding.spec))
    entries = class_weight.at[jnp.maximum(ids, 0)]
    return entries.get(mode="promise_in_bounds", out_sharding=sharding if is_split else None)


def _scaled(weight: Array, loss: Array) -> Array:
    """Weight · loss, where a weight of 0 also silences an infinite loss: −Σ w_c q_c log p_c has no such term then."""
    silenced = (weight == 0) & (loss == jnp.inf)
    return weight * jnp.where(silenced, 0, loss)
