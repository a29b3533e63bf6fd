"""Multiclass losses from logits."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, NamedTuple, Unpack, overload

import jax
from jax import Array, export, lax

from jxent._core import arguments
from jxent._core.calls import naming_arguments
from jxent._core.dtypes import compute_dtype
from jxent._core.focal_terms import modulated
from jxent._core.rows.losses import evaluate, row_log_z, row_loss, row_mass, row_miss, row_nll, row_predicted
from jxent._core.signatures import ArrayLike, Poly1Options, Scalar, SoftmaxFocalOptions, SoftmaxOptions, ToArray, ToMean
from jxent._core.targets import Given, SparseLabels, TargetOptions, check_targets, make_targets, split_like
from jxent.reduction import Mean, reduce_rows


@partial(export.register_namedtuple_serialization, serialized_name="jxent.CrossEntropyAux")
class CrossEntropyAux(NamedTuple):
    """What a loss learned about each row on the way.

    A pytree of four arrays of the row shape, under every reduction.

    Attributes:
        log_z: the log of the softmax's normaliser, in the result dtype, differentiable; 0 in masked rows.
        predicted: int32, the class with the highest logit, the lowest such id on ties; where the row is masked, holds
            NaN or has no logit above −inf, −2³¹, which equals no label (−2³¹ + 1 if `ignore_index` is −2³¹).
        nll: −log p of the label's distribution in the result dtype, whatever smoothing, weights and z-loss are: the exp of
            its mean is the perplexity. 0 in masked rows. For metrics only, cut off from differentiation as `predicted` is.
        entropy: −Σ_c p_c log p_c in nats and the result dtype, 0 in masked rows; for metrics only, as `nll` is.
            `softmax_log_probs` has one with a gradient.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> logits, labels = jnp.array([[2.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
        >>> loss, aux = jxent.softmax_cross_entropy(logits, labels, reduction="mean", return_aux=True)
        >>> print(aux.predicted == labels)
        [ True False]

    See also:
        `softmax_cross_entropy`.
    """

    log_z: Array
    predicted: Array
    nll: Array
    entropy: Array


@overload
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    reduction: ToArray = "none",
    return_aux: Literal[False] = False,
    **options: Unpack[SoftmaxOptions],
) -> Array: ...
@overload
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    reduction: ToMean,
    return_aux: Literal[False] = False,
    **options: Unpack[SoftmaxOptions],
) -> Mean: ...
@overload
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    reduction: ToArray = "none",
    return_aux: Literal[True],
    **options: Unpack[SoftmaxOptions],
) -> tuple[Array, CrossEntropyAux]: ...
@overload
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    reduction: ToMean,
    return_aux: Literal[True],
    **options: Unpack[SoftmaxOptions],
) -> tuple[Mean, CrossEntropyAux]: ...
@overload
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    reduction: str = "none",
    return_aux: bool = False,
    **options: Unpack[SoftmaxOptions],
) -> Any: ...
@naming_arguments
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: Scalar = 0.0,
    z_loss: Scalar = 0.0,
    axis: int = -1,
    reduction: str = "none",
    vocab_axis_name: Any = None,
    return_aux: bool = False,
) -> Any:
    """Cross entropy of a softmax over logits, against class ids or distributions.

    With V classes, `p = softmax(logits)` and `q` the target distribution of a row, each row's loss is

        −Σ_c w_c · q_c · log p_c  +  z_loss · log_z²,        log_z = log Σ_c exp(logits_c).

    It is formed without cancellation: the loss and the gradient of a confident row keep their digits down to 1e-38,
    where a plain logsumexp gives 0. A logit of −inf is a class that does not exist: its probability and gradient are 0.

    Args:
        logits: `[..., V, ...]` with V at `axis`, any floating dtype; every other axis is a row axis, and there may be
            none. It alone sets the result dtype, `promote(logits.dtype, float32)`; bfloat16 and float16 logits are
            not copied whole to float32 (but XLA on the CPU does so with float16 before any sum, and may with at most
            eight classes).
        labels: class ids, integers of the row shape; or a distribution per row, floating, with the shape of `logits`;
            or `SparseLabels`. Never broadcast. An id outside [0, V) in a row that counts makes its loss and gradient NaN. Distributions
            are neither normalised nor checked.
        class_weight: `[V]`, the weight w_c of each class. Default: 1.
        sample_weight: the weight of each row; the row shape, or its rank with axes of size 1. Default: 1.
        where: bool, shaped like `sample_weight`. Rows that are False are exactly 0 in value and in every gradient,
            whatever they hold; a sample weight of 0 does not promise that (0·NaN is NaN). Default: all rows count.
        ignore_index: a static integer; rows with this id are masked, as by `where`. Not for distributions.
        label_smoothing: ε in [0, 1], a number or a traced scalar (then unchecked): q ← (1−ε)·q + ε/V', with V' the
            number of logits above −inf in the row.
        z_loss: the factor of log_z², a number or a traced scalar. Class weights do not touch this term.
        axis: the class axis.
        reduction: "none" for a loss per row, "sum", "mean" or "partial" (see Returns).
        vocab_axis_name: inside `jax.shard_map`, the name (or a tuple of names) of the mesh axes that split the classes.
            `logits`, distributions and `class_weight` are then one device's part, device i holding the classes from
            i·V on; ids, V' and everything returned are of all devices. Pad the classes with logits of −inf if need be.
            Logits that were all-gathered go without this: with it, each device's copy would count as classes of its
            own, log_z be too high by the log of the number of devices, and nothing could tell.
            Rows that other axes split are this device's alone: add them up by `Mean.psum`. Default: each device has all
            classes. Under `jit` alone, arrays may be split in any way without this.
        return_aux: whether to return a `CrossEntropyAux` too.

    Returns:
        By `reduction`, with m, s, the mask and the sample weight of a row: "none" the row shape, m·s·loss; "sum" their
        sum; "mean" that divided by Σ m·s·v, where v is the class weight of the id, or Σ_c w_c q_c of the distribution
        (0 where the sum of weights is exactly 0); "partial" the undivided pair, a `Mean`. All in the result dtype. With
        `return_aux`, a pair of this and a `CrossEntropyAux`.

    Raises:
        TypeError: a dtype or a kind of argument does not fit (integer logits, bool labels, a float mask, a traced
            `ignore_index`).
        ValueError: a shape or an option does not fit (labels of shape (N, 1), one-hot integers, an unknown
            `reduction`, smoothing outside [0, 1], `ignore_index` with distributions); or `vocab_axis_name` is no axis
            that splits `logits`, or `check_vma` of the `shard_map` is off (gradients would be wrong).

    Gradients:
        By `logits`, distributions, `class_weight`, `sample_weight`, `label_smoothing` and `z_loss`, each in its own
        dtype, in both directions and any order. Reverse mode keeps the arguments and O(rows) numbers. Exactly 0 in
        masked rows and at logits of −inf; `p − onehot` (finite) where the loss is inf because the label's logit is
        −inf; NaN in rows with a bad id, a NaN, a +inf or no logit above −inf. float16 gradients of a mean underflow
        at V of some ten thousands, as everybody's do: scale the loss.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jxent
        >>> logits = jnp.array([[20.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
        >>> labels = jnp.array([0, -100])
        >>> loss = jxent.softmax_cross_entropy(logits, labels, ignore_index=-100)
        >>> print([f"{row:.3e}" for row in loss])
        ['4.122e-09', '0.000e+00']
        >>> grad = jax.grad(lambda x: jxent.softmax_cross_entropy(x, labels, ignore_index=-100, reduction="mean"))
        >>> print([f"{element:.3e}" for element in grad(logits)[0]])
        ['-4.122e-09', '2.061e-09', '2.061e-09']

    References:
        `torch.nn.functional.cross_entropy` (mean over the weights of the labels, ε/V smoothing);
        `optax.softmax_cross_entropy_with_integer_labels`; Szegedy et al. 2016, "Rethinking the Inception
        Architecture", section 7 (label smoothing); Chowdhery et al. 2022, "PaLM", section 5 (z-loss).

    See also:
        `cross_entropy_from_log_probs`, `sigmoid_binary_cross_entropy`, `Mean`.
    """
    fn = "softmax_cross_entropy"
    logits = arguments.as_scores(fn, "logits", logits)
    axis = arguments.as_class_axis(fn, "logits", logits, axis)
    vocab_axis_name = arguments.as_vocab_axis(fn, "logits", logits, vocab_axis_name)
    z_factor = arguments.as_hyper_parameter(fn, "z_loss", z_loss, compute_dtype(logits.dtype))
    arguments.check_reduction(fn, reduction)
    arguments.check_flag(fn, "return_aux", return_aux)

    options, given = check_targets(
        fn,
        "logits",
        logits,
        labels,
        class_weight=class_weight,
        sample_weight=sample_weight,
        where=where,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        axis=axis,
        vocab_axis_name=vocab_axis_name,
    )
    result, aux = _evaluated(_Options(options, "cross entropy", reduction, return_aux), logits, given, z_factor)
    return result if aux is None else (result, aux)


@overload
def softmax_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    reduction: ToArray = "none",
    **options: Unpack[SoftmaxFocalOptions],
) -> Array: ...
@overload
def softmax_focal_loss(
    logits: ArrayLike, labels: ArrayLike | SparseLabels, *, reduction: ToMean, **options: Unpack[SoftmaxFocalOptions]
) -> Mean: ...
@overload
def softmax_focal_loss(
    logits: ArrayLike, labels: ArrayLike | SparseLabels, *, reduction: str, **options: Unpack[SoftmaxFocalOptions]
) -> Any: ...
@naming_arguments
def softmax_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    gamma: Scalar = 2.0,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    axis: int = -1,
    reduction: str = "none",
) -> Any:
    """Focal loss of a softmax over logits: cross entropy that pays less heed to the rows that are right already.

    With V classes, `p = softmax(logits)` and `q` the target distribution of a row, each row's loss is

        s^γ · −Σ_c w_c · q_c · log p_c,        s = Σ_c q_c · (1 − p_c),

    so for an id y: w_y · (1 − p_y)^γ · −log p_y. Class weights are no part of s.

    Args:
        logits: `[..., V, ...]` with V at `axis`, any floating dtype; as in `softmax_cross_entropy`.
        labels: class ids, integers of the row shape; or a distribution per row, floating, with the shape of `logits`;
            or `SparseLabels`. Never broadcast. An id outside [0, V) in a row that counts makes its loss and gradient NaN.
        gamma: γ, at least 0, a number or a traced scalar (then unchecked); 0 is cross entropy.
        class_weight: `[V]`, the weight w_c of each class (the α of the paper). Default: 1.
        sample_weight: the weight of each row; the row shape, or its rank with axes of size 1. Default: 1.
        where: bool, shaped like `sample_weight`. Rows that are False are exactly 0 in value and in every gradient,
            whatever they hold. Default: all rows count.
        ignore_index: a static integer; rows with this id are masked, as by `where`. Not for distributions.
        axis: the class axis.
        reduction: "none" for a loss per row, "sum", "mean" or "partial", as in `softmax_cross_entropy`.

    Returns:
        As `softmax_cross_entropy`: the row shape for "none", a scalar for "sum" and "mean", a `Mean` for "partial", in
        the result dtype. A mean divides by the class weights of the labels; the factor s^γ is no weight.

    Raises:
        TypeError: a dtype or a kind of argument does not fit.
        ValueError: a shape or an option does not fit (a negative `gamma`).

    Gradients:
        By `logits`, distributions, `class_weight`, `sample_weight` and `gamma`, each in its own dtype, in both
        directions and any order. Finite for every γ ≥ 0 and whatever finite logits, loss 0 included; exactly 0 in
        masked rows and at logits of −inf; as those of `softmax_cross_entropy` where the loss is inf or NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> logits = jnp.array([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
        >>> loss = jxent.softmax_focal_loss(logits, jnp.array([0, 0]))
        >>> print([f"{row:.6f}" for row in loss])
        ['0.000045', '3.894618']

    References:
        Lin et al. 2017, "Focal Loss for Dense Object Detection", section 3.

    See also:
        `sigmoid_focal_loss`, `poly1_cross_entropy`, `softmax_cross_entropy`.
    """
    fn = "softmax_focal_loss"
    logits = arguments.as_scores(fn, "logits", logits)
    axis = arguments.as_class_axis(fn, "logits", logits, axis)
    exponent = arguments.as_hyper_parameter(fn, "gamma", gamma, compute_dtype(logits.dtype), 0)
    arguments.check_reduction(fn, reduction)

    options, given = check_targets(
        fn,
        "logits",
        logits,
        labels,
        class_weight=class_weight,
        sample_weight=sample_weight,
        where=where,
        ignore_index=ignore_index,
        label_smoothing=0.0,
        axis=axis,
    )
    return _evaluated(_Options(options, "focal", reduction), logits, given, exponent)[0]


@overload
def poly1_cross_entropy(
    logits: ArrayLike, labels: ArrayLike | SparseLabels, *, reduction: ToArray = "none", **options: Unpack[Poly1Options]
) -> Array: ...
@overload
def poly1_cross_entropy(
    logits: ArrayLike, labels: ArrayLike | SparseLabels, *, reduction: ToMean, **options: Unpack[Poly1Options]
) -> Mean: ...
@overload
def poly1_cross_entropy(
    logits: ArrayLike, labels: ArrayLike | SparseLabels, *, reduction: str, **options: Unpack[Poly1Options]
) -> Any: ...
@naming_arguments
def poly1_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    epsilon: Scalar = 2.0,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: Scalar = 0.0,
    axis: int = -1,
    reduction: str = "none",
) -> Any:
    """Poly-1 loss of a softmax over logits: cross entropy whose first polynomial coefficient is moved by ε.

    With V classes, `p = softmax(logits)` and `q` the target distribution of a row, each row's loss is

        −Σ_c w_c · q_c · log p_c  +  ε · Σ_c q_c · (1 − p_c).

    Args:
        logits: `[..., V, ...]` with V at `axis`, any floating dtype; as in `softmax_cross_entropy`.
        labels: class ids, integers of the row shape; or a distribution per row, floating, with the shape of `logits`;
            or `SparseLabels`. Never broadcast. An id outside [0, V) in a row that counts makes its loss and gradient NaN.
        epsilon: ε, a number or a traced scalar; 0 is cross entropy. Above −1 the loss falls wherever p rises.
        class_weight: `[V]`, the weight w_c of each class. It does not touch the second term. Default: 1.
        sample_weight: the weight of each row; the row shape, or its rank with axes of size 1. Default: 1.
        where: bool, shaped like `sample_weight`. Rows that are False are exactly 0 in value and in every gradient,
            whatever they hold. Default: all rows count.
        ignore_index: a static integer; rows with this id are masked, as by `where`. Not for distributions.
        label_smoothing: in [0, 1], a number or a traced scalar; smooths q in both terms, as in `softmax_cross_entropy`.
        axis: the class axis.
        reduction: "none" for a loss per row, "sum", "mean" or "partial", as in `softmax_cross_entropy`.

    Returns:
        As `softmax_cross_entropy`: the row shape for "none", a scalar for "sum" and "mean", a `Mean` for "partial", in
        the result dtype.

    Raises:
        TypeError: a dtype or a kind of argument does not fit.
        ValueError: a shape or an option does not fit.

    Gradients:
        By `logits`, distributions, `class_weight`, `sample_weight`, `epsilon` and `label_smoothing`, each in its own
        dtype, in both directions and any order. Exactly 0 in masked rows and at logits of −inf; as those of
        `softmax_cross_entropy` where the loss is inf or NaN.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> logits = jnp.array([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
        >>> loss = jxent.poly1_cross_entropy(logits, jnp.array([0, 0]))
        >>> print([f"{row:.6f}" for row in loss])
        ['0.106650', '6.000639']

    References:
        Leng et al. 2022, "PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions", section 4;
        `optax.losses.poly_loss_cross_entropy`.

    See also:
        `softmax_focal_loss`, `softmax_cross_entropy`.
    """
    fn = "poly1_cross_entropy"
    logits = arguments.as_scores(fn, "logits", logits)
    axis = arguments.as_class_axis(fn, "logits", logits, axis)
    factor = arguments.as_hyper_parameter(fn, "epsilon", epsilon, compute_dtype(logits.dtype))
    arguments.check_reduction(fn, reduction)

    options, given = check_targets(
        fn,
        "logits",
        logits,
        labels,
        class_weight=class_weight,
        sample_weight=sample_weight,
        where=where,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        axis=axis,
    )
    return _evaluated(_Options(options, "poly1", reduction), logits, given, factor)[0]


class _Options(NamedTuple):
    """What is known when a loss is compiled."""

    targets: TargetOptions
    form: Literal["cross entropy", "focal", "poly1"]
    reduction: str
    return_aux: bool = False


@partial(jax.jit, static_argnums=0)
def _evaluated(
    options: _Options, logits: Array, given: Given, factor: Array | None
) -> tuple[Array | Mean, CrossEntropyAux | None]:
    """The losses of this module, from arguments that have been checked. `factor` is that of log_z², γ or ε; None is 0.

    One compiled function for each set of options, shapes and dtypes, under an eager call too.
    """
    axis = options.targets.axis
    targets = make_targets(options.targets, logits.shape[axis], split_like(logits, axis, given))
    z_loss, of_miss = (factor, None) if options.form == "cross entropy" else (None, factor)
    rows = evaluate(logits, targets, miss=of_miss is not None, aux=options.return_aux, entropy=options.return_aux)
    loss = row_loss(rows, targets, z_loss)
    if of_miss is not None:
        miss = row_miss(rows, targets)
        loss = modulated(loss, miss, of_miss) if options.form == "focal" else loss + of_miss * miss
    result = reduce_rows(loss, row_mass(rows, targets), targets.sample_weight, targets.where, options.reduction)
    if not options.return_aux:
        return result, None
    log_z, predicted, nll = row_log_z(rows, targets), row_predicted(rows, targets), row_nll(rows, targets)
    return result, CrossEntropyAux(log_z, predicted, nll, lax.stop_gradient(rows.entropy))
