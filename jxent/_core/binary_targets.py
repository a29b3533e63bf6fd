"""The targets of a binary loss: labels, mask and weights, checked and in one form."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jxent._core import arguments
from jxent._core.dtypes import compute_dtype
from jxent._core.shards import aligned, resharded, split_of


class BinaryTargets(NamedTuple):
    """What a binary loss compares each element with. Weights are in the compute dtype, at the scores' rank.

    Attributes:
        labels: bool, integer or floating, shaped like the scores, uncast.
        pos_weight: broadcastable to the scores, or None.
        class_weight: broadcastable to the scores, or None.
        smoothing: a scalar, or None.
        sample_weight: shaped like the scores, or None.
        where: bool, shaped like the scores, or None for no mask.
        one: the number 1, as an operand: XLA:CPU would share an array of a constant between value and gradient.
    """

    labels: Array
    pos_weight: Array | None
    class_weight: Array | None
    smoothing: Array | None
    sample_weight: Array | None
    where: Array | None
    one: Array

    def harmless(self, dtype: Any) -> "BinaryTargets":
        """Labels in `dtype`, NaN for integers other than 0 and 1; masked elements are safe to multiply with."""
        return self._replace(
            labels=_numbers(self.masked(self.labels, 0), dtype),
            pos_weight=self.masked(self.pos_weight, 1),
            class_weight=self.masked(self.class_weight, 1),
            sample_weight=self.masked(self.sample_weight, 1),
        )

    def masked(self, values: Any, fill: int) -> Any:
        """`values`, with `fill` in masked elements; None stays None."""
        if values is None or self.where is None:
            return values
        return jnp.where(self.where, values, jnp.array(fill, values.dtype))

    def checked(self, loss: Array) -> Array:
        """`loss`, but NaN where a floating label is not a probability, and 0 in masked elements."""
        if jnp.issubdtype(self.labels.dtype, jnp.floating):
            loss = loss * _one_or_nan(self.masked(self.labels, 0).astype(loss.dtype), self.one)
        return self.masked(loss, 0)

    def row_weight(self) -> Array | None:
        """The weight of each element in a mean; None is 1. `pos_weight` is not part of it."""
        weights = [self.masked(w, 0) for w in (self.class_weight, self.sample_weight) if w is not None]
        if not weights:
            return None
        weight = weights[0] if len(weights) == 1 else weights[0] * weights[1]
        return jnp.broadcast_to(weight, self.labels.shape)


def split_like_elements(scores: Array, options: Any) -> Any:
    """Splits a pytree of scalars and of arrays at the rank of `scores` as a mesh with Explicit axes splits `scores`."""

    def split(x: Array) -> Array:
        if jnp.ndim(x) < scores.ndim:
            return x
        axes = zip(split_of(scores), x.shape, scores.shape, strict=True)
        return resharded(x, scores, tuple(entry if size == whole else None for entry, size, whole in axes))

    return jax.tree.map(split, options)


def _numbers(labels: Array, dtype: Any) -> Array:
    y = labels.astype(dtype)
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        return y
    return jnp.where((labels == 0) | (labels == 1), y, jnp.nan)


def as_probabilities(p: Array, one: Array) -> Array:
    """`p`, or NaN outside [0, 1], in value and derivative."""
    return p * _one_or_nan(p, one)


def _one_or_nan(p: Array, one: Array) -> Array:
    """1, or NaN where `p` is outside [0, 1]. Uses arithmetic on the CPU, where XLA would materialise a select, and a
    select on a GPU, where XLA would materialise the root and share it between value and gradient.
    """

    def by_arithmetic(p: Array, one: Array) -> Array:
        return one + 0 * one * jnp.sqrt((p + arguments.ROUNDING * one) * ((1 + arguments.ROUNDING) * one - p))

    def by_select(p: Array, one: Array) -> Array:
        return jnp.where((p >= -arguments.ROUNDING) & (p <= 1 + arguments.ROUNDING), one, jnp.nan)

    return lax.platform_dependent(*aligned((lax.stop_gradient(p), one)), cpu=by_arithmetic, default=by_select)


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
    """Checks all arguments of a binary loss other than its scores."""
    dtype = compute_dtype(scores.dtype)
    return BinaryTargets(
        labels=arguments.as_binary_labels(fn, scores_name, scores, labels),
        pos_weight=arguments.as_per_column(fn, "pos_weight", pos_weight, scores, dtype, scalar=True),
        class_weight=arguments.as_per_column(fn, "class_weight", class_weight, scores, dtype, scalar=False),
        smoothing=arguments.as_hyper_parameter(fn, "label_smoothing", label_smoothing, dtype, 0, 1),
        sample_weight=arguments.as_per_row(fn, "sample_weight", sample_weight, scores.shape, dtype),
        where=arguments.as_row_mask(fn, where, scores.shape),
        one=jnp.ones((), dtype),
    )
