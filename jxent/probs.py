"""Multiclass and binary losses from probabilities and log-probabilities, for models that output them.

Prefer the losses from logits where you have logits: a float32 probability near 1 has already lost its digits.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Unpack, overload

import jax
from jax import Array

from jxent._core import arguments
from jxent._core.binary_targets import make_binary_targets
from jxent._core.calls import naming_arguments
from jxent._core.probability_terms import binary_probability_terms
from jxent._core.rows.losses import row_loss, row_mass
from jxent._core.rows.probabilities import probability_rows
from jxent._core.signatures import ArrayLike, BinaryOptions, MulticlassOptions, Scalar, ToArray, ToMean
from jxent._core.targets import Given, SparseLabels, TargetOptions, check_targets, make_targets, split_like
from jxent.reduction import Mean, reduce_elements, reduce_rows


@overload
def cross_entropy_from_probs(
    probs: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    reduction: ToArray = "none",
    **options: Unpack[MulticlassOptions],
) -> Array: ...
@overload
def cross_entropy_from_probs(
    probs: ArrayLike, labels: ArrayLike | SparseLabels, *, reduction: ToMean, **options: Unpack[MulticlassOptions]
) -> Mean: ...
@overload
def cross_entropy_from_probs(
    probs: ArrayLike, labels: ArrayLike | SparseLabels, *, reduction: str, **options: Unpack[MulticlassOptions]
) -> Any: ...
@naming_arguments
def cross_entropy_from_probs(
    probs: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: Scalar = 0.0,
    axis: int = -1,
    reduction: str = "none",
) -> Any:
    """Cross entropy of class probabilities against class ids or distributions.

    With V classes and `q` the target distribution of a row, each row's loss is

        −Σ_c w_c · q_c · max(log p_c, −100).

    Probabilities are used as given: not renormalised, and not checked to be at most 1. For class ids without smoothing,
    only the entry at the id is read.

    Args:
        probs: `[..., V, ...]` with V at `axis`, any floating dtype, such as the output of a softmax. Its dtype alone
            sets the result dtype, `promote(probs.dtype, float32)`. A probability of 0 does not mask its class.
        labels: class ids, integers of the row shape; or a distribution per row, floating, with the shape of `probs`;
            or `SparseLabels`. Never broadcast; bad ids as in `softmax_cross_entropy`.
        class_weight: `[V]`, the weight w_c of each class. Default: 1.
        sample_weight: the weight of each row: the row shape, or the same rank with axes of size 1. Default: 1.
        where: bool, shaped like `sample_weight`; rows where it is False are masked, as in `softmax_cross_entropy`.
            Default: no mask.
        ignore_index: a static integer; rows with this id are masked. Not for distributions. Default: none.
        label_smoothing: ε in [0, 1], a number or a traced scalar (unchecked): q ← (1−ε)·q + ε/V.
        axis: the class axis.
        reduction: "none" for a loss per row, "sum", "mean" or "partial", as in `softmax_cross_entropy`.

    Returns:
        As `softmax_cross_entropy`: the row shape for "none", a scalar for "sum" and "mean", a `Mean` for "partial", in
        the result dtype.

    Raises:
        TypeError: an argument has the wrong dtype or type.
        ValueError: an argument has the wrong shape or value.

    Gradients:
        With respect to `probs`, distributions, weights and `label_smoothing`, each in its argument's dtype; forward and
        reverse mode, to any order; exactly 0 in masked rows. With respect to a probability it is −w·q / max(p, 1e-12),
        at most 65504 with all weights applied for float16: finite everywhere and nonzero at p = 0, so below 1e-12 it
        deliberately differs from the slope of the value. NaN, like the row's loss, where an entry that is read is NaN,
        +inf or negative by more than rounding (1e-3).

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> probs = jnp.array([[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]])
        >>> print(jxent.cross_entropy_from_probs(probs, jnp.array([1, 0])))
        [  1.3862944 100.       ]

    References:
        `torch.nn.functional.binary_cross_entropy` (the clamp at −100 and the gradient at 1e-12);
        `keras.losses.SparseCategoricalCrossentropy(from_logits=False)`.

    See also:
        `softmax_cross_entropy`, the better choice for training a model that ends in a softmax.
    """
    fn = "cross_entropy_from_probs"
    probs = arguments.as_scores(fn, "probs", probs)
    axis = arguments.as_class_axis(fn, "probs", probs, axis)
    arguments.check_reduction(fn, reduction)
    options, given = check_targets(
        fn,
        "probs",
        probs,
        labels,
        class_weight=class_weight,
        sample_weight=sample_weight,
        where=where,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        axis=axis,
    )
    return _evaluated(options, True, reduction, probs, given)


@overload
def cross_entropy_from_log_probs(
    log_probs: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    reduction: ToArray = "none",
    **options: Unpack[MulticlassOptions],
) -> Array: ...
@overload
def cross_entropy_from_log_probs(
    log_probs: ArrayLike, labels: ArrayLike | SparseLabels, *, reduction: ToMean, **options: Unpack[MulticlassOptions]
) -> Mean: ...
@overload
def cross_entropy_from_log_probs(
    log_probs: ArrayLike, labels: ArrayLike | SparseLabels, *, reduction: str, **options: Unpack[MulticlassOptions]
) -> Any: ...
@naming_arguments
def cross_entropy_from_log_probs(
    log_probs: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: Scalar = 0.0,
    axis: int = -1,
    reduction: str = "none",
) -> Any:
    """Cross entropy of log-probabilities against class ids or distributions: the negative log-likelihood.

    With V classes and `q` the target distribution of a row, each row's loss is

        −Σ_c w_c · q_c · log_probs_c,        0 · log 0 = 0.

    Log-probabilities are used as given, not renormalised. An entry of −inf marks a class that does not exist.

    Args:
        log_probs: `[..., V, ...]` with V at `axis`, any floating dtype, such as the output of a log-softmax. Its dtype
            alone sets the result dtype, `promote(log_probs.dtype, float32)`.
        labels: class ids, integers of the row shape; or a distribution per row, floating, with the shape of
            `log_probs`; or `SparseLabels`. Never broadcast; bad ids as in `softmax_cross_entropy`.
        class_weight: `[V]`, the weight w_c of each class. Default: 1.
        sample_weight: the weight of each row: the row shape, or the same rank with axes of size 1. Default: 1.
        where: bool, shaped like `sample_weight`; rows where it is False are masked, as in `softmax_cross_entropy`.
            Default: no mask.
        ignore_index: a static integer; rows with this id are masked. Not for distributions. Default: none.
        label_smoothing: ε in [0, 1], a number or a traced scalar (unchecked): q ← (1−ε)·q + ε/V', where V' counts the
            log-probabilities above −inf in the row.
        axis: the class axis.
        reduction: "none" for a loss per row, "sum", "mean" or "partial", as in `softmax_cross_entropy`.

    Returns:
        As `softmax_cross_entropy`: the row shape for "none", a scalar for "sum" and "mean", a `Mean` for "partial", in
        the result dtype.

    Raises:
        TypeError: an argument has the wrong dtype or type.
        ValueError: an argument has the wrong shape or value.

    Gradients:
        With respect to `log_probs` (−w·q), distributions, weights and `label_smoothing`, each in its argument's dtype;
        forward and reverse mode, to any order; exactly 0 in masked rows. NaN where an entry that is read is NaN or
        +inf, and under smoothing in rows with nothing above −inf. For class ids without smoothing, only the entry at
        the id is read.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jxent
        >>> log_probs = jax.nn.log_softmax(jnp.array([[2.0, 0.0], [0.0, 1.0]]))
        >>> print(jxent.cross_entropy_from_log_probs(log_probs, jnp.array([0, 0]), reduction="sum"))
        1.4401897

    References:
        `torch.nn.functional.nll_loss`.

    See also:
        `softmax_cross_entropy`, `cross_entropy_from_probs`.
    """
    fn = "cross_entropy_from_log_probs"
    log_probs = arguments.as_scores(fn, "log_probs", log_probs)
    axis = arguments.as_class_axis(fn, "log_probs", log_probs, axis)
    arguments.check_reduction(fn, reduction)
    options, given = check_targets(
        fn,
        "log_probs",
        log_probs,
        labels,
        class_weight=class_weight,
        sample_weight=sample_weight,
        where=where,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        axis=axis,
    )
    return _evaluated(options, False, reduction, log_probs, given)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _evaluated(options: TargetOptions, are_probs: bool, reduction: str, scores: Array, given: Given) -> Array | Mean:
    """The multiclass losses of this module, from checked arguments."""
    targets = make_targets(options, scores.shape[options.axis], split_like(scores, options.axis, given))
    rows = probability_rows(scores, targets, are_probs=are_probs)
    return reduce_rows(
        row_loss(rows, targets), row_mass(rows, targets), targets.sample_weight, targets.where, reduction
    )


@overload
def binary_cross_entropy_from_probs(
    probs: ArrayLike, labels: ArrayLike, *, reduction: ToArray = "none", **options: Unpack[BinaryOptions]
) -> Array: ...
@overload
def binary_cross_entropy_from_probs(
    probs: ArrayLike, labels: ArrayLike, *, reduction: ToMean, **options: Unpack[BinaryOptions]
) -> Mean: ...
@overload
def binary_cross_entropy_from_probs(
    probs: ArrayLike, labels: ArrayLike, *, reduction: str, **options: Unpack[BinaryOptions]
) -> Any: ...
@naming_arguments
def binary_cross_entropy_from_probs(
    probs: ArrayLike,
    labels: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    label_smoothing: Scalar = 0.0,
    reduction: str = "none",
) -> Any:
    """Binary cross entropy of probabilities, where every element is a separate yes-or-no decision.

    With `p` a probability and `y` its label, each element's loss is

        −w_k · (pos_weight · y · max(log p, −100) + (1 − y) · max(log(1 − p), −100)).

    A probability or a label outside [0, 1] by more than rounding (1e-3) gives NaN, in value and gradient.

    Args:
        probs: any shape, rank 0 included, any floating dtype. Its dtype alone sets the result dtype,
            `promote(probs.dtype, float32)`.
        labels: the shape of `probs`, never broadcast; bool, integer or floating (a probability).
        pos_weight: the weight of a positive label relative to a negative one: a scalar, or `[K]` for the columns of the
            last axis. Default: 1.
        class_weight: `[K]`, the weight w_k of each column of the last axis. It is not [w_neg, w_pos]: that is
            `pos_weight`. Default: 1.
        sample_weight: the weight of each element: the shape of `probs`, or the same rank with axes of size 1. Default:
            1.
        where: bool, shaped like `sample_weight`. Elements where it is False are masked: exactly 0 in value and in every
            gradient, whatever they hold. Default: no mask.
        label_smoothing: ε in [0, 1], a number or a traced scalar (unchecked): y ← (1−ε)·y + ε/2.
        reduction: "none" for a loss per element, "sum", "mean" or "partial", as in `sigmoid_binary_cross_entropy`.

    Returns:
        As `sigmoid_binary_cross_entropy`: the shape of `probs` for "none", a scalar for "sum" and "mean", a `Mean` for
        "partial", in the result dtype.

    Raises:
        TypeError: an argument has the wrong dtype or type.
        ValueError: an argument has the wrong shape or value.

    Gradients:
        With respect to `probs`, floating labels and every weight and hyper-parameter, each in its argument's dtype;
        forward and reverse mode, to any order; exactly 0 at masked elements. The slopes of log p and log(1 − p) are
        1/max(p, 1e-12) and −1/max(1 − p, 1e-12), at most 65504 with all weights applied for float16: finite everywhere,
        and nonzero at p = 0 and p = 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> print(jxent.binary_cross_entropy_from_probs(jnp.array([0.9, 0.0]), jnp.array([True, True])))
        [  0.10536055 100.        ]

    References:
        `torch.nn.functional.binary_cross_entropy` (whose mean divides by the number of elements instead).

    See also:
        `sigmoid_binary_cross_entropy`, the better choice for training a model that ends in a sigmoid.
    """
    fn = "binary_cross_entropy_from_probs"
    probs = arguments.as_scores(fn, "probs", probs)
    arguments.check_reduction(fn, reduction)

    targets = make_binary_targets(
        fn,
        "probs",
        probs,
        labels,
        pos_weight=pos_weight,
        class_weight=class_weight,
        sample_weight=sample_weight,
        where=where,
        label_smoothing=label_smoothing,
    )
    return reduce_elements(binary_probability_terms, reduction, probs, targets)
