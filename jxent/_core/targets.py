"""The targets of a multiclass loss: ids or a distribution per row, with mask, weights and smoothing, in one form."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, export, lax

from jxent._core import arguments
from jxent._core.dtypes import compute_dtype
from jxent._core.shards import VocabAxis, num_classes_of_all, own_ids, resharded, split_of

NO_CLASS = -(2**31)


@partial(export.register_namedtuple_serialization, serialized_name="jxent.SparseLabels")
class SparseLabels(NamedTuple):
    """A distribution per row that is 0 except at K classes, such as a teacher's most likely tokens.

    A pytree of two arrays. The multiclass losses take it as `labels` and give the same numbers as for the dense
    distribution, `jax.nn.one_hot(ids, V)` weighted and summed over K. No dense target is made. The gradient with
    respect to logits takes one extra array of their size, to which the K slopes of a row are added.

    Attributes:
        ids: class ids, integers `[..., K]`: the row shape plus one axis, always last, wherever the class axis of the
            scores is. A repeated id counts repeatedly. One outside [0, V) makes its row NaN whatever its weight, unless
            the row is masked; to pad, use any valid id with a weight of 0.
        weights: floating, shaped like `ids`: the probability of each. They need not sum to 1, and are differentiable.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> logits = jnp.array([[2.0, 1.0, 0.0, -1.0]])
        >>> labels = jxent.SparseLabels(jnp.array([[0, 2]]), jnp.array([[0.75, 0.25]]))
        >>> dense = jnp.array([[0.75, 0.0, 0.25, 0.0]])
        >>> for q in (labels, dense):
        ...     print(f"{jxent.softmax_cross_entropy(logits, q)[0]:.4f}")
        0.9402
        0.9402

    See also:
        `softmax_cross_entropy`, `linear_softmax_cross_entropy`.
    """

    ids: Any
    weights: Any


class Targets(NamedTuple):
    """What a loss compares each row with.

    Attributes:
        labels: int32 ids of the row shape (global ones if the classes are split over devices), −1 for a bad id and 0 in
            masked rows; or K ids per row, `[…, K]`; or a distribution, uncast.
        entries: the weights of a distribution with K ids, `[…, K]`, 0 in masked rows; or None.
        class_weight: `[V]` or None.
        label_weight: the class weight of each id (1 for a bad one), or None.
        smoothing: a scalar, or None.
        sample_weight: of the row shape, or None.
        where: bool of the row shape, including `ignore_index`; or None for no mask.
        axis: the class axis.
        vocab_axis_name: the axes of a `shard_map` that split the classes, or None.
        no_class: an int32 unequal to every label and to `ignore_index`: the prediction for rows that have none.
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
    entries: Array | None = None

    @property
    def are_ids(self) -> bool:
        """Whether labels are plain ids, one or several per row, and not a distribution."""
        return is_ids(self.labels) and self.entries is None

    @property
    def known_mass(self) -> Array | None:
        """The weight of each row in a mean, without its sample weight, as far as ids determine it; None is 1."""
        if self.entries is None:
            return self.label_weight
        return jnp.sum(self.entries if self.label_weight is None else self.entries * self.label_weight, -1)


class TargetOptions(NamedTuple):
    """The static options of targets.

    Attributes:
        axis: the class axis.
        ignored: the `ignore_index`, or None.
        vocab_axis_name: as in `Targets`.
        several: whether there are K ids per row.
    """

    axis: int
    ignored: int | None
    vocab_axis_name: VocabAxis
    several: bool = False


class Given(NamedTuple):
    """The checked arguments that targets are made from, in the compute dtype except the labels; None if not given.

    Attributes:
        labels: integer ids of the row shape, or a distribution, uncast.
        class_weight: `[V]`.
        sample_weight: of the row shape.
        where: bool of the row shape.
        smoothing: a scalar.
        entries: the weights of `SparseLabels`.
    """

    labels: Array
    class_weight: Array | None
    sample_weight: Array | None
    where: Array | None
    smoothing: Array | None
    entries: Array | None = None


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
    """Checks all arguments of a multiclass loss other than its scores."""
    dtype = compute_dtype(scores.dtype)
    row_shape = arguments.row_shape(scores, axis)
    ignored = arguments.as_ignore_index(fn, ignore_index)
    entries = None
    if isinstance(labels, SparseLabels):
        labels, entries = arguments.as_sparse_labels(fn, scores_name, scores, axis, *labels)
    else:
        labels, ignored = arguments.as_class_labels(fn, scores_name, scores, axis, labels, ignored)
    class_weight = arguments.as_per_class(fn, "class_weight", class_weight, scores.shape[axis], dtype)
    sample_weight = arguments.as_per_row(fn, "sample_weight", sample_weight, row_shape, dtype)
    where = arguments.as_row_mask(fn, where, row_shape)
    smoothing = arguments.as_hyper_parameter(fn, "label_smoothing", label_smoothing, dtype, 0, 1)

    of_rows = {"labels": labels} if is_ids(labels) else {}
    arguments.check_same_over(
        fn, vocab_axis_name, **of_rows, where=where, sample_weight=sample_weight, **{"labels.weights": entries}
    )
    if ignored is not None and not (is_ids(labels) and entries is None):
        came = f"{labels.dtype.name}{list(labels.shape)}" if entries is None else "SparseLabels"
        raise ValueError(
            f"{fn}: ignore_index goes with class ids, but labels is a distribution ({came}); mask rows with where "
            "instead"
        )
    given = Given(labels, class_weight, sample_weight, where, smoothing, entries)
    return TargetOptions(axis, ignored, vocab_axis_name, entries is not None), given


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
    """As `check_targets`, for functions of class ids without class weights and smoothing."""
    row_shape = arguments.row_shape(scores, axis)
    ids, ignored = arguments.as_labels(fn, "ids", ids, arguments.as_ignore_index(fn, ignore_index))
    arguments.check_ids_dtype(fn, "ids", ids.dtype)
    if ids.shape != row_shape and not (may_be_several and ids.shape[:-1] == row_shape and ids.ndim):
        several = f", or {(*row_shape, 'K')} for K ids per row" if may_be_several else ""
        raise ValueError(
            f"{fn}: ids has shape {ids.shape}; expected the row shape {row_shape}{several}, to go with {scores_name} "
            f"of shape {scores.shape}"
        )
    sample_weight = arguments.as_per_row(fn, "sample_weight", sample_weight, row_shape, compute_dtype(scores.dtype))
    where = arguments.as_row_mask(fn, where, row_shape)
    arguments.check_same_over(fn, vocab_axis_name, ids=ids, where=where, sample_weight=sample_weight)
    options = TargetOptions(axis, ignored, vocab_axis_name, ids.shape != row_shape)
    return options, Given(ids, None, sample_weight, where, None)


def split_like(scores: Array, axis: int, given: Given) -> Given:
    """Splits everything along the rows and classes of `scores` as a mesh with Explicit axes splits `scores`."""
    entries = split_of(scores)
    row_entries = entries[:axis] + entries[axis + 1 :]
    labels, class_weight, sample_weight, where, smoothing, shares = given
    id_entries = row_entries + (None,) * (labels.ndim - len(row_entries))
    return Given(
        resharded(labels, scores, id_entries if is_ids(labels) else entries),
        resharded(class_weight, scores, entries[axis : axis + 1]),
        resharded(sample_weight, scores, row_entries),
        resharded(where, scores, row_entries),
        smoothing,
        resharded(shares, scores, (*row_entries, None)),
    )


def make_targets(options: TargetOptions, num_classes: Any, given: Given) -> Targets:
    """Makes targets from checked arguments. `num_classes` are those of one device."""
    axis, ignored, vocab_axis_name, several = options
    if several:
        return _make_several(options, num_classes, given)
    labels, class_weight, sample_weight, where, smoothing, _ = given
    if not is_ids(labels):
        return Targets(labels, class_weight, None, smoothing, sample_weight, where, axis, vocab_axis_name)
    kept = not_ignored(labels, ignored)
    if kept is not None:
        where = kept if where is None else where & kept
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
    """Targets with K ids per row: −1 for a bad id, −2 for the `ignore_index`."""
    axis, ignored, vocab_axis_name, _ = options
    _, class_weight, sample_weight, where, smoothing, entries = given
    ids = checked_ids(given.labels, num_classes_of_all(num_classes, vocab_axis_name))
    kept = not_ignored(given.labels, ignored)
    ids = ids if kept is None else jnp.where(kept, ids, -2)
    label_weight = None
    if class_weight is not None:
        label_weight = jnp.where(ids < 0, 1, _at_ids(class_weight, ids, vocab_axis_name))
    if entries is not None and where is not None:
        ids, entries = jnp.where(where[..., None], ids, 0), jnp.where(where[..., None], entries, 0)
    return Targets(
        ids,
        class_weight,
        label_weight,
        smoothing,
        sample_weight,
        where,
        axis,
        vocab_axis_name,
        entries=entries,
    )


def is_ids(labels: Array) -> bool:
    """Whether checked labels are class ids (otherwise they are distributions)."""
    return jnp.issubdtype(labels.dtype, jnp.integer)


def not_ignored(labels: Array, ignored: int | None) -> Array | None:
    """Which labels are not ignored; None for all."""
    if ignored is None or not _holds(labels.dtype, ignored):
        return None
    return labels != jnp.array(ignored, labels.dtype)


def checked_ids(labels: Array, num_classes: Any) -> Array:
    """int32 ids, −1 if outside [0, num_classes). Compares before the cast, so that no id wraps into the range."""
    wide = labels if jnp.iinfo(labels.dtype).bits >= 32 else labels.astype(jnp.int32)
    bad = (wide < 0) | (wide >= jnp.asarray(num_classes, wide.dtype))
    return jnp.where(bad, -1, labels.astype(jnp.int32))


def _holds(dtype: Any, value: int) -> bool:
    return bool(jnp.iinfo(dtype).min <= value <= jnp.iinfo(dtype).max)


def _at_ids(class_weight: Array, ids: Array, vocab_axis_name: VocabAxis) -> Array:
    """`class_weight[ids]`, arbitrary for negative ids. On a mesh with Explicit axes it is split like the ids."""
    if vocab_axis_name is not None:
        own = own_ids(ids, class_weight.size, vocab_axis_name)
        return lax.psum(jnp.where(own < 0, 0, _at_ids(class_weight, own, None)), vocab_axis_name)
    sharding = jax.typeof(ids).sharding
    is_split = any(axes is not None for axes in (*sharding.spec, *jax.typeof(class_weight).sharding.spec))
    entries = class_weight.at[jnp.maximum(ids, 0)]
    return entries.get(mode="promise_in_bounds", out_sharding=sharding if is_split else None)
