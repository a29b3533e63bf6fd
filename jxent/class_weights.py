"""Class counts, and what they give: weights for `class_weight`, or an adjustment of the logits."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec

from jxent._core import arguments
from jxent._core.calls import naming_arguments
from jxent._core.counts import INT32_MAX, added, count
from jxent._core.signatures import ArrayLike, Scalar
from jxent._core.targets import checked_ids


@naming_arguments
def class_counts(labels: ArrayLike, num_classes: int, *, where: ArrayLike | None = None) -> Array:
    """Counts the labels of each class.

    Counts add up over batches and devices: sum them, or `jax.lax.psum` them, before turning them into weights.

    Args:
        labels: class ids, integers of any shape. An unmasked id outside [0, V) makes every count NaN, so that corrupt
            data or a forgotten mask shows, as in the losses.
        num_classes: V, a static integer.
        where: bool, the shape of `labels`, or the same rank with axes of size 1. Labels where it is False are left out,
            whatever they hold: `where=labels != -100`. Default: no mask.

    Returns:
        `[V]`, float32: counted in integers, so exact up to 2²⁴, and rounded once beyond.

    Raises:
        TypeError: an argument has the wrong dtype or type (labels that are not integers, a traced `num_classes`).
        ValueError: a shape does not fit, or `num_classes` is below 1.

    Gradients:
        None: the labels are integers.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> labels = jnp.array([0, 2, 2, -100])
        >>> print(jxent.class_counts(labels, 3, where=labels != -100))
        [1. 0. 2.]

    References:
        `numpy.bincount`.

    See also:
        `balanced_class_weights`, `effective_number_weights`, `log_prior_adjustment`, `check_labels`.
    """
    fn = "class_counts"
    ids = arguments.as_ids(fn, "labels", labels)
    num_classes = arguments.as_num_classes(fn, num_classes)
    where = arguments.as_row_mask(fn, where, ids.shape)

    return _counts(ids, num_classes, where)


@naming_arguments
def balanced_class_weights(counts: ArrayLike) -> Array:
    """Class weights that give every class that occurs the same total weight.

    With n_c of n labels in class c, and C the number of classes that occur: `n / (C · n_c)`, or 0 if n_c is 0.

    Args:
        counts: `[V]`, how often each class occurs; floating or integer, as `class_counts` gives them.

    Returns:
        `[V]`, in `promote(counts.dtype, float32)` (float32 for integers). Over all labels their mean is 1.

    Raises:
        TypeError: `counts` is not numeric.
        ValueError: `counts` is not of rank 1.

    Gradients:
        With respect to floating `counts`, in forward and reverse mode, to any order. The weight of a class that does
        not occur is constant.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> counts = jnp.array([6.0, 2.0, 0.0])
        >>> print(counts * jxent.balanced_class_weights(counts))
        [4. 4. 0.]

    References:
        `sklearn.utils.class_weight.compute_class_weight("balanced")`; King and Zeng 2001, "Logistic Regression in Rare
        Events Data".

    See also:
        `class_counts`, `effective_number_weights`.
    """
    counts = arguments.as_counts("balanced_class_weights", "counts", counts)
    occurs, safe, num_occurring = _occurring(counts)
    return jnp.where(occurs, jnp.sum(counts) / (num_occurring * safe), 0)


@naming_arguments
def effective_number_weights(counts: ArrayLike, *, beta: Scalar = 0.999) -> Array:
    """Class weights from the effective number of samples: between equal and balanced weights.

    `(1 − β) / (1 − β^n_c)` for a class that occurs n_c times and 0 for one that does not, scaled so that they sum to C,
    the number of classes that occur. At β = 0 all are 1; at β = 1 they are proportional to 1 / n_c.

    Args:
        counts: `[V]`, how often each class occurs; floating or integer, as `class_counts` gives them.
        beta: β in [0, 1], a number or a traced scalar (unchecked). A Python number is evaluated in double precision,
            because 1 − β loses most of its digits in float32 when β is near 1.

    Returns:
        `[V]`, in `promote(counts.dtype, float32)` (float32 for integers).

    Raises:
        TypeError: `counts` or `beta` is not numeric.
        ValueError: `counts` is not of rank 1, or `beta` is not a scalar or not in [0, 1].

    Gradients:
        With respect to floating `counts`, and to `beta` strictly between 0 and 1; forward and reverse mode, to any
        order. The weight of a class that does not occur is constant.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> weights = jxent.effective_number_weights(jnp.array([10_000, 100, 0]), beta=0.999)
        >>> print([f"{weight:.3f}" for weight in weights])
        ['0.174', '1.826', '0.000']

    References:
        Cui et al. 2019, "Class-Balanced Loss Based on Effective Number of Samples", section 4.

    See also:
        `class_counts`, `balanced_class_weights`.
    """
    fn = "effective_number_weights"
    counts = arguments.as_counts(fn, "counts", counts)
    log_beta = _log_of_beta(fn, beta, counts.dtype)
    occurs, safe, num_occurring = _occurring(counts)

    # 1 − βⁿ; as β → 1 this is n, up to a factor that cancels in the scaling below.
    effective = jnp.where(log_beta == 0, safe, -jnp.expm1(safe * log_beta))
    weights = jnp.where(occurs, 1 / effective, 0)
    return weights * (num_occurring / _or_1(jnp.sum(weights)))


@naming_arguments
def log_prior_adjustment(counts: ArrayLike, *, tau: Scalar = 1.0) -> Array:
    """Adjustment to add to the logits in training, so that they need not learn class frequencies.

    `τ · log(n_c / n)`: train with `logits + log_prior_adjustment(counts)` and predict from the plain logits; or train
    on the plain logits and predict from `logits - log_prior_adjustment(counts)`.

    Args:
        counts: `[V]`, how often each class occurs; floating or integer, as `class_counts` gives them.
        tau: τ ≥ 0, a number or a traced scalar (unchecked).

    Returns:
        `[V]`, in `promote(counts.dtype, float32)` (float32 for integers). A class that never occurs gets −inf, which
        masks it in a loss (0 if τ is 0).

    Raises:
        TypeError: `counts` or `tau` is not numeric.
        ValueError: `counts` is not of rank 1, or `tau` is not a scalar or is negative.

    Gradients:
        With respect to floating `counts` and `tau`, in forward and reverse mode, to any order. The entry of a class
        that does not occur is constant.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> print([f"{prior:.3f}" for prior in jxent.log_prior_adjustment(jnp.array([6, 2, 0]))])
        ['-0.288', '-1.386', '-inf']

    References:
        Menon et al. 2021, "Long-tail learning via logit adjustment"; Ren et al. 2020, "Balanced Meta-Softmax for
        Long-Tailed Visual Recognition" (τ = 1).

    See also:
        `class_counts`, `softmax_cross_entropy`.
    """
    fn = "log_prior_adjustment"
    counts = arguments.as_counts(fn, "counts", counts)
    arguments.check_range(fn, "tau", tau, 0, math.inf)
    factor = arguments.as_scalar(fn, "tau", tau, counts.dtype)
    occurs, safe, _ = _occurring(counts)
    absent = jnp.where(factor > 0, -jnp.inf, jnp.where(factor == 0, 0, jnp.inf))
    return jnp.where(occurs, factor * jnp.log(safe / _or_1(jnp.sum(counts))), absent)


def _occurring(counts: Array) -> tuple[Array, Array, Array]:
    """Which classes occur; the counts, with 1 for 0; and how many occur (at least 1). A NaN count occurs."""
    occurs = counts != 0
    return occurs, _or_1(counts), _or_1(count(occurs, (0,), counts.dtype))


def _or_1(values: Array) -> Array:
    """Replaces 0 by 1, for a divisor whose quotient is not used there."""
    return jnp.where(values == 0, 1, values)


def _log_of_beta(fn: str, beta: Any, dtype: Any) -> Array:
    arguments.check_range(fn, "beta", beta, 0, 1)
    if arguments.is_number(beta):
        return jnp.asarray(math.log(beta) if beta else -math.inf, dtype)
    scalar = arguments.as_scalar(fn, "beta", beta, dtype)
    is_zero = scalar == 0
    return jnp.where(is_zero, -jnp.inf, jnp.log(jnp.where(is_zero, 1, scalar)))


@partial(jax.jit, static_argnums=1)
def _counts(ids: Array, num_classes: int, where: Array | None) -> Array:
    ids = checked_ids(ids, num_classes)
    ids = ids if where is None else jnp.where(where, ids, num_classes)
    counts = _histogram(ids, num_classes)
    return jnp.where(jnp.any(ids < 0), jnp.nan, counts)


def _histogram(ids: Array, num_classes: int, limit: int = INT32_MAX) -> Array:
    """float32 counts of the ids in [0, num_classes). `limit` is the most an int32 can count."""
    mesh = jax.typeof(ids).sharding.mesh
    if not mesh.explicit_axes:
        return _scattered(ids, num_classes, limit)
    # jax cannot scatter along a split Explicit axis, so let the partitioner do it. Only the Explicit axes: the others
    # may belong to a `shard_map` around the call.
    scattered = partial(_scattered, num_classes=num_classes, limit=limit)
    whole = NamedSharding(mesh, PartitionSpec())
    partitioned: Any = jax.sharding.auto_axes(scattered, axes=mesh.explicit_axes, out_sharding=whole)
    return partitioned(ids)


def _scattered(ids: Array, num_classes: int, limit: int) -> Array:
    num_parts: Any = ids.size // limit + 1
    if isinstance(num_parts, int) and num_parts == 1:
        # A negative index would wrap around.
        bins = jnp.where(ids < 0, num_classes, ids)
        return jnp.zeros(num_classes, jnp.int32).at[bins].add(1, mode="drop").astype(jnp.float32)
    num_bins = num_parts * num_classes
    if isinstance(num_bins, int) and num_bins > INT32_MAX:
        raise ValueError(
            f"class_counts: labels of shape {ids.shape} are too many to be counted at once with "
            f"num_classes={num_classes}; count them in parts and add the counts"
        )
    # Part i takes every num_parts-th label from the i-th on, so that none exceeds the limit.
    part = jnp.arange(ids.size, dtype=jnp.uint32) % jnp.asarray(num_parts, jnp.uint32)
    ids = ids.ravel()
    bins = part.astype(jnp.int32) * num_classes + ids
    bins = jnp.where((ids < 0) | (ids >= num_classes), jnp.asarray(num_bins, jnp.int32), bins)
    counts = jnp.zeros(num_bins, jnp.int32).at[bins].add(1, mode="drop")
    return added(counts.reshape(num_parts, num_classes), (0,), jnp.float32)
