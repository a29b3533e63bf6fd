"""Labels → Targets: ids or a distribution per row, with the mask, the weights and the smoothing that go with them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jxent._core import arguments
from jxent._core.dtypes import compute_dtype
from jxent._core.shards import VocabAxis, num_classes_of_all, own_ids, resharded, split_of

NO_CLASS = -(2**31)


class Targets(NamedTuple):
    """What every row is compared with.

    Attributes:
        labels: int32 ids of the row shape (global ones where the classes are split over devices), −1 for a bad one and 0
            in masked rows; or a distribution, as it came.
        class_weight: `[V]` or None.
        label_weight: the class weight of each row's id (1 for a bad one), or None.
        smoothing: a scalar, or None for none.
        sample_weight: of the row shape, or None.
        where: bool of the row shape, `ignore_index` worked in; or None for all.
        axis: the class axis.
        vocab_axis_name: the axes of a `shard_map` that split the classes, or None.
        no_class: an int32 that no label equals, nor `ignore_index`: the prediction for rows that have none.
    """

    labels: Array
    class_weight: Array | None
    label_weight: Array | None
    smoothing: Array | None
    sample_weight: Array | None
    where: Array | None
    axis: int
    vocab_axis_name: VocabAxis = None
    no_class: int = NO_CLASS

    @property
    def are_ids(self) -> bool:
        return is_ids(self.labels)


class TargetOptions(NamedTuple):
    """What is known of targets when a program is traced.

    Attributes:
        axis: the class axis.
        ignored: the `ignore_index`, or None.
        vocab_axis_name: as in `Targets`.
        several: whether there are K ids a row.
    """

    axis: int
    ignored: int | None
    vocab_axis_name: VocabAxis
    several: bool = False


class Given(NamedTuple):
    """The checked arguments that targets are made of: in the compute dtype, but for the labels; a None is not given.

    Attributes:
        labels: integer ids of the row shape, or a distribution, as they came.
        class_weight: `[V]`.
        sample_weight: of the row shape.
        where: bool of the row shape.
        smoothing: a scalar.
    """

    labels: Array
    class_weight: Array | None
    sample_weight: Array | None
    where: Array | None
    smoothing: Array | None


def check_targets(
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
) -> tuple[TargetOptions, Given]:
    """Checks everything a multiclass loss takes beside its scores."""
    dtype = compute_dtype(scores.dtype)
    rows = arguments.row_shape(scores, axis)
    ignored = arguments.as_ignore_index(fn, ignore_index)
    labels, ignored = arguments.as_class_labels(fn, scores_name, scores, axis, labels, ignored)
    class_weight = arguments.as_per_class(fn, "class_weight", class_weight, scores.shape[axis], dtype)
    sample_weight = arguments.as_per_row(fn, "sample_weight", sample_weight, rows, dtype)
    where = arguments.as_row_mask(fn, where, rows)
    smoothing = arguments.as_hyper_parameter(fn, "label_smoothing", label_smoothing, dtype, 0, 1)

    of_rows = {"labels": labels} if is_ids(labels) else {}
    arguments.check_same_over(fn, vocab_axis_name, **of_rows, where=where, sample_weight=sample_weight)
    if ignored is not None and not is_ids(labels):
        raise ValueError(
            f"{fn}: ignore_index goes with class ids, but labels is a distribution ({labels.dtype.name}"
            f"{list(labels.shape)}); mask rows with where instead"
        )
    given = Given(labels, class_weight, sample_weight, where, smoothing)
    return TargetOptions(axis, ignored, vocab_axis_name), given


def check_ids(
    fn: str,
    scores_name: str,
    scores: Any,
    ids: Any,
    *,
    where: Any,
    ignore_index: Any,
    axis: int,
    vocab_axis_name: VocabAxis,
    sample_weight: Any = None,
    may_be_several: bool = False,
) -> tuple[TargetOptions, Given]:
    """As `check_targets`, for functions of class ids that have no weights of classes and no smoothing."""
    rows = arguments.row_shape(scores, axis)
    ids, ignored = arguments.as_labels(fn, "ids", ids, arguments.as_ignore_index(fn, ignore_index))
    arguments.check_ids_dtype(fn, "ids", ids.dtype)
    if ids.shape != rows and not (may_be_several and ids.shape[:-1] == rows and ids.ndim):
        several = f", or {(*rows, 'K')} for K ids a row" if may_be_several else ""
        raise ValueError(
            f"{fn}: ids has shape {ids.shape}; expected the row shape {rows}{several}, to go with {scores_name} of shape "
            f"{scores.shape}"
        )
    sample_weight = arguments.as_per_row(fn, "sample_weight", sample_weight, rows, compute_dtype(scores.dtype))
    where = arguments.as_row_mask(fn, where, rows)
    arguments.check_same_over(fn, vocab_axis_name, ids=ids, where=where, sample_weight=sample_weight)
    options = TargetOptions(axis, ignored, vocab_axis_name, ids.shape != rows)
    return options, Given(ids, None, sample_weight, where, None)


def split_like(scores: Array, axis: int, given: Given) -> Given:
    """On a mesh with Explicit axes, all that belongs to the rows and classes of `scores` split as these are."""
    entries = split_of(scores)
    rows = entries[:axis] + entries[axis + 1 :]
    labels, class_weight, sample_weight, where, smoothing = given
    return Given(
        resharded(labels, scores, rows + (None,) * (labels.ndim - len(rows)) if is_ids(labels) else entries),
        resharded(class_weight, scores, entries[axis : axis + 1]),
        resharded(sample_weight, scores, rows),
        resharded(where, scores, rows),
        smoothing,
    )


def make_targets(options: TargetOptions, num_classes: Any, given: Given) -> Targets:
    """Brings it all into one form. `num_classes` are those of a device."""
    axis, ignored, vocab_axis_name, several = options
    if several:
        return _make_several(options, num_classes, given)
    labels, class_weight, sample_weight, where, smoothing = given
    if not is_ids(labels):
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
    no_class = NO_CLASS + (ignored == NO_CLASS)
    return Targets(ids, class_weight, label_weight, smoothing, sample_weight, where, axis, vocab_axis_name, no_class)


def _make_several(options: TargetOptions, num_classes: Any, given: Given) -> Targets:
    """Of K ids a row: −1 for a bad one, −2 for the `ignore_index`."""
    axis, ignored, vocab_axis_name, _ = options
    ids = checked_ids(given.labels, num_classes_of_all(num_classes, vocab_axis_name))
    counted = counted_ids(given.labels, ignored)
    ids = ids if counted is None else jnp.where(counted, ids, -2)
    return Targets(ids, None, None, None, given.sample_weight, given.where, axis, vocab_axis_name)


def is_ids(labels: Array) -> bool:
    """Whether labels that passed the checks are class ids (else they are distributions)."""
    return jnp.issubdtype(labels.dtype, jnp.integer)


def counted_ids(labels: Array, ignored: int | None) -> Array | None:
    """Which labels are not to be ignored; None for all."""
    if ignored is None or not _holds(labels.dtype, ignored):
        return None
    return labels != jnp.array(ignored, labels.dtype)


def checked_ids(labels: Array, num_classes: Any) -> Array:
    """int32 ids, −1 where out of [0, num_classes): compared before the cast, so that none wraps into the range."""
    wide = labels if jnp.iinfo(labels.dtype).bits >= 32 else labels.astype(jnp.int32)
    bad = (wide < 0) | (wide >= jnp.asarray(num_classes, wide.dtype))
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
