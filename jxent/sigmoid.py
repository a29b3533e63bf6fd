"""Binary and multi-label losses from logits."""

from __future__ import annotations

from typing import Any, Unpack, overload

from jax import Array

from jxent._core import arguments
from jxent._core.binary_targets import make_binary_targets
from jxent._core.calls import naming_arguments
from jxent._core.dtypes import compute_dtype
from jxent._core.focal_terms import sigmoid_focal_terms
from jxent._core.sigmoid_terms import sigmoid_terms
from jxent._core.signatures import ArrayLike, BinaryOptions, Scalar, SigmoidFocalOptions, ToArray, ToMean
from jxent.reduction import Mean, reduce_elements


@overload
def sigmoid_binary_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, reduction: ToArray = "none", **options: Unpack[BinaryOptions]
) -> Array: ...
@overload
def sigmoid_binary_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, reduction: ToMean, **options: Unpack[BinaryOptions]
) -> Mean: ...
@overload
def sigmoid_binary_cross_entropy(
    logits: ArrayLike, labels: ArrayLike, *, reduction: str, **options: Unpack[BinaryOptions]
) -> Any: ...
@naming_arguments
def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    pos_weight: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    label_smoothing: Scalar = 0.0,
    reduction: str = "none",
) -> Any:
    """Binary cross entropy of a sigmoid over logits, where every element is a separate yes-or-no decision.

    With `x` a logit and `y` its label, each element's loss is

        w_k · (pos_weight · y · softplus(−x) + (1 − y) · softplus(x)),        softplus(x) = log(1 + exp(x)),

    where a term is 0 if its coefficient is 0, so that a logit of ±inf on the right side costs 0.

    Args:
        logits: any shape, rank 0 included, any floating dtype: one decision per example `[N]`, multi-label `[N, K]`,
            per pixel `[B, H, W]`. Its dtype alone sets the result dtype, `promote(logits.dtype, float32)`.
        labels: the shape of `logits`, never broadcast; bool, integer or floating (a probability). An integer other
            than 0 and 1 makes its loss and gradient NaN, unless the element is masked.
        pos_weight: the weight of a positive label relative to a negative one: a scalar, or `[K]` for the columns of the
            last axis. Default: 1.
        class_weight: `[K]`, the weight w_k of each column of the last axis. It is not [w_neg, w_pos]: that is
            `pos_weight`. Default: 1.
        sample_weight: the weight of each element: the shape of `logits`, or the same rank with axes of size 1.
            Default: 1.
        where: bool, shaped like `sample_weight`. Elements where it is False (missing labels) are masked: exactly 0 in
            value and in every gradient, whatever they hold. Default: no mask.
        label_smoothing: ε in [0, 1], a number or a traced scalar (unchecked): y ← (1−ε)·y + ε/2.
        reduction: "none" for a loss per element, "sum", "mean" or "partial" (see Returns).

    Returns:
        With m and s the mask and the sample weight of an element: "none" gives m·s·loss, of the shape of `logits`;
        "sum" the sum of these; "mean" the sum divided by Σ m·s·w_k (0 if that is exactly 0); "partial" both sums,
        undivided, as a `Mean`. All in the result dtype.

    Raises:
        TypeError: an argument has the wrong dtype or type (integer logits, a float mask).
        ValueError: an argument has the wrong shape or value (labels (N,) with logits (N, 1), an unknown `reduction`).

    Gradients:
        With respect to `logits`, floating labels and every weight and hyper-parameter, each in its argument's dtype;
        forward and reverse mode, to any order. Exactly 0 at masked elements; finite at logits of ±inf; NaN where the
        logit is NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> logits = jnp.array([[30.0, -1.0], [0.0, 2.0]])
        >>> loss = jxent.sigmoid_binary_cross_entropy(logits, jnp.array([[1, 0], [1, 1]]))
        >>> print([f"{element:.3e}" for element in loss.ravel()])
        ['9.358e-14', '3.133e-01', '6.931e-01', '1.269e-01']

    References:
        `torch.nn.functional.binary_cross_entropy_with_logits` (whose mean divides by the number of elements instead);
        `optax.sigmoid_binary_cross_entropy`.

    See also:
        `binary_cross_entropy_from_probs`, `softmax_cross_entropy`.
    """
    fn = "sigmoid_binary_cross_entropy"
    logits = arguments.as_scores(fn, "logits", logits)
    arguments.check_reduction(fn, reduction)

    targets = make_binary_targets(
        fn,
        "logits",
        logits,
        labels,
        pos_weight=pos_weight,
        class_weight=class_weight,
        sample_weight=sample_weight,
        where=where,
        label_smoothing=label_smoothing,
    )
    return reduce_elements(sigmoid_terms, reduction, logits, targets)


@overload
def sigmoid_focal_loss(
    logits: ArrayLike, labels: ArrayLike, *, reduction: ToArray = "none", **options: Unpack[SigmoidFocalOptions]
) -> Array: ...
@overload
def sigmoid_focal_loss(
    logits: ArrayLike, labels: ArrayLike, *, reduction: ToMean, **options: Unpack[SigmoidFocalOptions]
) -> Mean: ...
@overload
def sigmoid_focal_loss(
    logits: ArrayLike, labels: ArrayLike, *, reduction: str, **options: Unpack[SigmoidFocalOptions]
) -> Any: ...
@naming_arguments
def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike | None = None,
    gamma: Scalar = 2.0,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: str = "none",
) -> Any:
    """Focal loss of a sigmoid over logits: binary cross entropy that gives less weight to what is already right.

    With `x` a logit, `y` its label and `p = σ(x)`, each element's loss is

        (α·y + (1−α)·(1−y)) · s^γ · −(y·log p + (1−y)·log(1−p)),        s = y·(1−p) + (1−y)·p,

    so for y = 1: α · (1−p)^γ · −log p. Without `alpha` the first factor is 1.

    Args:
        logits: any shape, rank 0 included, any floating dtype. Its dtype alone sets the result dtype,
            `promote(logits.dtype, float32)`.
        labels: the shape of `logits`, never broadcast; bool, integer or floating (a probability). An integer other
            than 0 and 1 makes its loss and gradient NaN, unless the element is masked.
        alpha: α in [0, 1], the weight of a positive label; a negative one weighs 1 − α. A scalar, or `[K]` for the
            columns of the last axis; may be traced (an array is not checked). Default: both weigh 1.
        gamma: γ ≥ 0, a number or a traced scalar (unchecked); 0 is binary cross entropy.
        sample_weight: the weight of each element: the shape of `logits`, or the same rank with axes of size 1.
            Default: 1.
        where: bool, shaped like `sample_weight`; elements where it is False (missing labels) are masked, as in
            `sigmoid_binary_cross_entropy`. Default: no mask.
        reduction: "none" for a loss per element, "sum", "mean" or "partial" (see Returns).

    Returns:
        With m and s the mask and the sample weight of an element: "none" gives m·s·loss, of the shape of `logits`;
        "sum" the sum of these; "mean" the sum divided by Σ m·s (0 if that is exactly 0), where neither `alpha` nor the
        focal factor is a weight; "partial" both sums, undivided, as a `Mean`. All in the result dtype.

    Raises:
        TypeError: an argument has the wrong dtype or type (integer logits, a float mask).
        ValueError: an argument has the wrong shape or value (a negative `gamma`, `alpha` outside [0, 1]).

    Gradients:
        With respect to `logits`, floating labels, `alpha`, `gamma` and `sample_weight`, each in its argument's dtype;
        forward and reverse mode, to any order. Finite for every γ ≥ 0 and every logit, ±inf included; exactly 0 at
        masked elements; NaN where the logit is NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> logits, labels = jnp.array([3.0, -3.0, 0.0]), jnp.array([1, 1, 0])
        >>> loss = jxent.sigmoid_focal_loss(logits, labels, alpha=0.25)
        >>> print([f"{element:.6f}" for element in loss])
        ['0.000027', '0.691570', '0.129965']

    References:
        Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3; `optax.losses.sigmoid_focal_loss`
        (for labels between 0 and 1 too). Detectors divide the sum by the number of positive labels.

    See also:
        `softmax_focal_loss`, `sigmoid_binary_cross_entropy`.
    """
    fn = "sigmoid_focal_loss"
    logits = arguments.as_scores(fn, "logits", logits)
    exponent = arguments.as_hyper_parameter(fn, "gamma", gamma, compute_dtype(logits.dtype), 0)
    arguments.check_range(fn, "alpha", alpha, 0, 1)
    arguments.check_reduction(fn, reduction)

    targets = make_binary_targets(
        fn,
        "logits",
        logits,
        labels,
        pos_weight=None,
        class_weight=None,
        sample_weight=sample_weight,
        where=where,
        label_smoothing=0.0,
    )
    balance = arguments.as_per_column(fn, "alpha", alpha, logits, compute_dtype(logits.dtype), scalar=True)
    return reduce_elements(sigmoid_focal_terms, reduction, logits, targets, balance, exponent)
