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
    """What a loss computed for each row on the way.

    A pytree of four arrays of the row shape, whatever the reduction.

    Attributes:
        log_z: the log of the softmax's normaliser, in the result dtype; differentiable; 0 in masked rows.
        predicted: int32, the class with the highest logit, the lowest such id on ties. Rows that are masked, hold NaN
            or have no logit above −inf get −2³¹, which equals no label (−2³¹ + 1 if `ignore_index` is −2³¹).
        nll: −log p of the label's distribution, without smoothing, weights or z-loss, in the result dtype: the exp of
            its mean is the perplexity. 0 in masked rows. A metric: like `predicted`, it has no gradient.
        entropy: −Σ_c p_c log p_c in nats, in the result dtype; 0 in masked rows. A metric without a gradient;
            `softmax_log_probs` returns a differentiable one.

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

    Nothing in it cancels: the loss and the gradient of a confident row keep their digits down to 1e-38, where a plain
    logsumexp gives 0. A logit of −inf marks a class that does not exist: its probability and gradient are 0.

    Args:
        logits: `[..., V, ...]` with V at `axis`, any floating dtype; every other axis is a row axis, and there may be
            none. Its dtype alone sets the result dtype, `promote(logits.dtype, float32)`. bfloat16 and float16 logits
            are not copied whole to float32 (but XLA on the CPU does so with float16 before any sum and with both in
            forward mode, and may with at most eight classes).
        labels: class ids, integers of the row shape; or a distribution per row, floating, with the shape of `logits`;
            or `SparseLabels`. Never broadcast. An id outside [0, V) makes the loss and gradient of its row NaN, unless
            the row is masked. Distributions are neither normalised nor checked.
        class_weight: `[V]`, the weight w_c of each class. Default: 1.
        sample_weight: the weight of each row: the row shape, or the same rank with axes of size 1. Default: 1.
        where: bool, shaped like `sample_weight`. Rows where it is False are masked: exactly 0 in value and in every
            gradient, whatever they hold. A sample weight of 0 does not promise that (0·NaN is NaN). Default: no mask.
        ignore_index: a static integer; rows with this id are masked. Not for distributions. Default: none.
        label_smoothing: ε in [0, 1], a number or a traced scalar (unchecked): q ← (1−ε)·q + ε/V', where V' counts the
            logits above −inf in the row.
        z_loss: the factor of log_z², a number or a traced scalar. Class weights do not apply to this term.
        axis: the class axis.
        reduction: "none" for a loss per row, "sum", "mean" or "partial" (see Returns).
        vocab_axis_name: inside `jax.shard_map`, the name (or a tuple of names) of the mesh axes that split the classes.
            `logits`, distributions and `class_weight` are then one device's part, where device i holds the classes from
            i·V on; ids, V' and all results are global. Pad the classes with logits of −inf if need be. Omit this for
            logits that were all-gathered: each device's copy would count as separate classes, log_z would be too high
            by the log of the number of devices, and nothing could detect it. Rows that other axes split stay local: add
            them up with `Mean.psum`. Default: each device has all classes. Under `jit` alone, arrays may be split in
            any way without this.
        return_aux: whether to also return a `CrossEntropyAux`.

    Returns:
        With m and s the mask and the sample weight of a row: "none" gives m·s·loss, of the row shape; "sum" the sum of
        these; "mean" the sum divided by Σ m·s·v (0 if the weights sum to exactly 0), where v is the class weight of the
        id, or Σ_c w_c q_c for a distribution; "partial" both sums, undivided, as a `Mean`. All in the result dtype.
        With `return_aux`, a pair of this and a `CrossEntropyAux`.

    Raises:
        TypeError: an argument has the wrong dtype or type (integer logits, bool labels, a float mask, a traced
            `ignore_index`).
        ValueError: an argument has the wrong shape or value (labels of shape (N, 1), one-hot integers, an unknown
            `reduction`, smoothing outside [0, 1], `ignore_index` with distributions); or `vocab_axis_name` names no
            axis that splits `logits`, or the `shard_map` has `check_vma` off (gradients would be wrong).

    Gradients:
        With respect to `logits`, distributions, `class_weight`, `sample_weight`, `label_smoothing` and `z_loss`, each
        in its argument's dtype; forward and reverse mode, to any order. Reverse mode keeps the arguments and O(rows)
        numbers. Exactly 0 in masked rows and at logits of −inf; `p − onehot` (finite) where the loss is inf because the
        label's logit is −inf; NaN in rows with a bad id, a NaN, a +inf or no logit above −inf. The float16 gradient of
        a mean underflows when V is in the tens of thousands, as in any library: scale the loss.

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
    """Focal loss of a softmax over logits: cross entropy that gives less weight to rows that are already right.

    With V classes, `p = softmax(logits)` and `q` the target distribution of a row, each row's loss is

        s^γ · −Σ_c w_c · q_c · log p_c,        s = Σ_c q_c · (1 − p_c),

    so for an id y: w_y · (1 − p_y)^γ · −log p_y. Class weights do not enter s.

    Args:
        logits: `[..., V, ...]` with V at `axis`, any floating dtype; as in `softmax_cross_entropy`.
        labels: class ids, integers of the row shape; or a distribution per row, floating, with the shape of `logits`;
            or `SparseLabels`. Never broadcast; bad ids as in `softmax_cross_entropy`.
        gamma: γ ≥ 0, a number or a traced scalar (unchecked); 0 is cross entropy.
        class_weight: `[V]`, the weight w_c of each class (the α of the paper). Default: 1.
        sample_weight: the weight of each row: the row shape, or the same rank with axes of size 1. Default: 1.
        where: bool, shaped like `sample_weight`; rows where it is False are masked, as in `softmax_cross_entropy`.
            Default: no mask.
        ignore_index: a static integer; rows with this id are masked. Not for distributions. Default: none.
        axis: the class axis.
        reduction: "none" for a loss per row, "sum", "mean" or "partial", as in `softmax_cross_entropy`.

    Returns:
        As `softmax_cross_entropy`: the row shape for "none", a scalar for "sum" and "mean", a `Mean` for "partial", in
        the result dtype. A mean divides by the class weights of the labels; the factor s^γ is not a weight.

    Raises:
        TypeError: an argument has the wrong dtype or type.
        ValueError: an argument has the wrong shape or value (a negative `gamma`).

    Gradients:
        With respect to `logits`, distributions, `class_weight`, `sample_weight` and `gamma`, each in its argument's
        dtype; forward and reverse mode, to any order. Finite for every γ ≥ 0 and all finite logits, even where the loss
        is 0; exactly 0 in masked rows and at logits of −inf; where the loss is inf or NaN, as in
        `softmax_cross_entropy`.

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
    """Poly-1 loss of a softmax over logits: cross entropy with its first polynomial coefficient shifted by ε.

    With V classes, `p = softmax(logits)` and `q` the target distribution of a row, each row's loss is

        −Σ_c w_c · q_c · log p_c  +  ε · Σ_c q_c · (1 − p_c).

    Args:
        logits: `[..., V, ...]` with V at `axis`, any floating dtype; as in `softmax_cross_entropy`.
        labels: class ids, integers of the row shape; or a distribution per row, floating, with the shape of `logits`;
            or `SparseLabels`. Never broadcast; bad ids as in `softmax_cross_entropy`.
        epsilon: ε, a number or a traced scalar; 0 is cross entropy. Above −1 the loss always falls as p rises.
        class_weight: `[V]`, the weight w_c of each class; it does not apply to the second term. Default: 1.
        sample_weight: the weight of each row: the row shape, or the same rank with axes of size 1. Default: 1.
        where: bool, shaped like `sample_weight`; rows where it is False are masked, as in `softmax_cross_entropy`.
            Default: no mask.
        ignore_index: a static integer; rows with this id are masked. Not for distributions. Default: none.
        label_smoothing: in [0, 1], a number or a traced scalar; smooths q in both terms, as in `softmax_cross_entropy`.
        axis: the class axis.
        reduction: "none" for a loss per row, "sum", "mean" or "partial", as in `softmax_cross_entropy`.

    Returns:
        As `softmax_cross_entropy`: the row shape for "none", a scalar for "sum" and "mean", a `Mean` for "partial", in
        the result dtype.

    Raises:
        TypeError: an argument has the wrong dtype or type.
        ValueError: an argument has the wrong shape or value.

    Gradients:
        With respect to `logits`, distributions, `class_weight`, `sample_weight`, `epsilon` and `label_smoothing`, each
        in its argument's dtype; forward and reverse mode, to any order. Exactly 0 in masked rows and at logits of −inf;
        where the loss is inf or NaN, as in `softmax_cross_entropy`.

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
    """The static options of a loss."""

    targets: TargetOptions
    form: Literal["cross entropy", "focal", "poly1"]
    reduction: str
    return_aux: bool = False


@partial(jax.jit, static_argnums=0)
def _evaluated(
    options: _Options, logits: Array, given: Given, factor: Array | None
) -> tuple[Array | Mean, CrossEntropyAux | None]:
    """The losses of this module, from checked arguments. `factor` is that of log_z², γ or ε; None is 0.

    Jitted, so an eager call runs one compiled function per set of options, shapes and dtypes.
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
