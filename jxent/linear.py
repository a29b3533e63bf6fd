"""The multiclass loss from hidden states and a kernel, which never holds the logits."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, Unpack, overload

import jax
import jax.numpy as jnp
from jax import Array, lax

from jxent._core import arguments
from jxent._core.calls import naming_arguments
from jxent._core.dtypes import compute_dtype
from jxent._core.linear.inputs import check_inputs
from jxent._core.linear.meshes import placed, placement_of
from jxent._core.linear.records import Config, Evaluated, PerRow, Shared
from jxent._core.linear.rule import evaluate_linear
from jxent._core.signatures import ArrayLike, LinearOptions, Scalar, ToArray, ToMean
from jxent._core.targets import Given, SparseLabels, TargetOptions, check_targets, is_ids, make_targets
from jxent.reduction import Mean, reduce_rows, reduce_total, weighted
from jxent.softmax import CrossEntropyAux


@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    reduction: ToArray = "none",
    return_aux: Literal[False] = False,
    **options: Unpack[LinearOptions],
) -> Array: ...
@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    reduction: ToMean,
    return_aux: Literal[False] = False,
    **options: Unpack[LinearOptions],
) -> Mean: ...
@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    reduction: ToArray = "none",
    return_aux: Literal[True],
    **options: Unpack[LinearOptions],
) -> tuple[Array, CrossEntropyAux]: ...
@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    reduction: ToMean,
    return_aux: Literal[True],
    **options: Unpack[LinearOptions],
) -> tuple[Mean, CrossEntropyAux]: ...
@overload
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    reduction: str = "none",
    return_aux: bool = False,
    **options: Unpack[LinearOptions],
) -> Any: ...
@naming_arguments
def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike | SparseLabels,
    *,
    bias: ArrayLike | None = None,
    transpose_kernel: bool = False,
    class_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    label_smoothing: Scalar = 0.0,
    z_loss: Scalar = 0.0,
    logit_scale: Scalar | None = None,
    logit_softcap: Scalar | None = None,
    reduction: str = "none",
    vocab_axis_name: Any = None,
    return_aux: bool = False,
    chunk_size: int | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Any:
    """Cross entropy of a softmax over `hidden @ kernel`, which is never held whole.

    With N rows, D features, V classes, `logits = softcap(logit_scale * hidden @ kernel + bias)`, `p = softmax(logits)` and
    `q` the target distribution of a row, each row's loss is that of `softmax_cross_entropy`,

        −Σ_c w_c · q_c · log p_c  +  z_loss · log_z²,        log_z = log Σ_c exp(logits_c),

    with softcap(l) = cap · tanh(l / cap). The logits are made for a chunk of rows at a time. A reduced loss makes its
    gradient as it goes, when it is differentiated: three matmuls of N·D·V in all, the least there is. For "none" the
    backward pass makes the logits again, a fourth. Beside the arguments and their gradients it takes the logits of one
    chunk, and the gradients of `hidden` and `kernel` in float32.

    Args:
        hidden: `[..., D]`, any floating dtype, every axis but the last a row axis, of which there may be none. It alone
            sets the result dtype, `promote(hidden.dtype, float32)`, and the matmuls' operands have its dtype.
        kernel: `[D, V]`, floating. One of another dtype is cast to that of `hidden`; its gradient is still summed in the
            result dtype and cast once.
        labels: class ids, integers of the row shape; or a distribution per row, floating, `[..., V]`;
            or `SparseLabels`. Never broadcast.
            An id outside [0, V) in a row that counts makes its loss and gradient NaN.
        bias: `[V]`, added to the logits; −inf makes a class that does not exist (a padded column). Default: none.
        transpose_kernel: whether the kernel is `[V, D]`, as a tied embedding table is; it is then used as it lies.
        class_weight: `[V]`, the weight w_c of each class. Default: 1.
        sample_weight: the weight of each row; the row shape, or its rank with axes of size 1. Default: 1.
        where: bool, shaped like `sample_weight`. Rows that are False are exactly 0 in value and in every gradient,
            whatever they hold: NaN in `hidden` there reaches no gradient. They cost next to nothing where there are
            several chunks: the rows that count are taken first, and chunks without any are not run. On a mesh that splits
            the leading axis of the rows, no row is moved to another device: each takes its own that count, and as many
            chunks are run as the device with the most of them needs. Where jax knows of no mesh (`jax.typeof` tells), as
            under `jax.jit(in_shardings=...)`, rows are taken as if all devices there are had equal runs of them. A batch
            of masks under `jax.vmap` runs all chunks. Default: all rows count.
        ignore_index: a static integer; rows with this id are masked, as by `where`, and cost as little. Not for
            distributions.
        label_smoothing: ε in [0, 1], a number or a traced scalar (then unchecked): q ← (1−ε)·q + ε/V', with V' the
            number of logits above −inf in the row.
        z_loss: the factor of log_z², a number or a traced scalar. Class weights do not touch this term.
        logit_scale: a factor of `hidden @ kernel`, in the result dtype: the inverse of a temperature. A number or a traced
            scalar, which may be learned. Default: 1.
        logit_softcap: the cap, a positive number or a traced scalar (then unchecked); inf is none. Default: none.
        reduction: "none" for a loss per row, "sum", "mean" or "partial", as in `softmax_cross_entropy`.
        vocab_axis_name: inside `jax.shard_map`, the name (or a tuple of names) of the mesh axes that split the classes.
            `kernel`, `bias`, distributions and `class_weight` are then one device's part, device i holding the classes
            from i·V on; `hidden` is the same on all of them, and ids, V' and everything returned are of all devices.
            Pad the classes with a bias of −inf if need be. A kernel that was all-gathered over its classes goes without
            this: with it, log_z would be too high by the log of the number of devices, and nothing could tell. Default:
            each device has all classes. Under `jit` alone, arrays may be split in any way without this.
        return_aux: whether to return a `CrossEntropyAux` too, with `log_z` after the softcap. Its `log_z` is differentiable;
            under a reduction that costs a pass of its own (the logits are made again), under "none" nothing.
        chunk_size: rows per chunk; a static integer. Default: on a TPU 2048 and on a GPU 4096, so that the matmuls hide
            the gradient of the kernel, which is read and written once a chunk; fewer where their logits would take more
            than 2 GiB in the result dtype. On a CPU as many as have 64 MiB of logits, or a quarter of the kernel's
            gradient if that is more. (The devices of the mesh count, or else the default one, also for a program that
            is exported for another.) Of such sizes one that divides N if there is one, and smaller ones for masked rows.
            By the compiler's plan for a TPU 512 saves 1.1 GiB of 4.2 for 32768 rows of a bfloat16 kernel [4096, 128256].
            On a mesh with Auto axes that split the rows, take one that divides N and that the number of devices divides.
            The result does not depend on it beyond rounding.
        precision: of the matmuls, as in `jax.lax.dot_general`.

    Returns:
        As `softmax_cross_entropy`: the row shape for "none", a scalar for "sum" and "mean", a `Mean` for "partial", in
        the result dtype. With `return_aux`, a pair of this and a `CrossEntropyAux`.

    Raises:
        TypeError: a dtype or a kind of argument does not fit.
        ValueError: a shape or an option does not fit (a kernel of the wrong orientation, labels of shape (N, 1), a
            softcap that is not positive); or `vocab_axis_name` is no axis that splits `kernel`, or `check_vma` of the
            `shard_map` is off (gradients would be wrong).

    Gradients:
        By `hidden`, `kernel`, `bias`, distributions, `class_weight`, `sample_weight`, `label_smoothing`, `z_loss`,
        `logit_scale` and `logit_softcap`, each in its own dtype; what is not asked for is not computed. Reverse mode, to
        any order, and forward over reverse (`jax.hessian`); no forward mode by itself. The gradient of the logits is rounded to the
        dtype of `hidden` before its two matmuls, as in a model that holds bfloat16 logits; that of float16 is scaled to
        the range of its dtype, whatever the weights are, and only the results must lie in it. Exactly 0 in masked rows and
        at classes of −inf; NaN in rows with a bad id or a NaN, and by `kernel` if any row that counts is so. Under
        `jax.vmap` with one kernel, each entry of the batch keeps a gradient of it until they are added: give `hidden`
        leading axes instead.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jxent
        >>> hidden, kernel = jnp.array([[1.0, 2.0], [0.5, -1.0]]), jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
        >>> labels = jnp.array([1, -100])
        >>> loss_fn = lambda h, k: jxent.linear_softmax_cross_entropy(h, k, labels, ignore_index=-100, reduction="mean")
        >>> loss, (d_hidden, d_kernel) = jax.value_and_grad(loss_fn, (0, 1))(hidden, kernel)
        >>> print(f"{loss:.4f}", d_kernel.shape)
        0.4076 (2, 3)

    References:
        Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models" (the idea); Hsu et al. 2024, "Liger
        Kernel", section 3.2 (the gradient in the forward pass); Gemma Team 2024, "Gemma 2", section 2 (softcap).

    See also:
        `softmax_cross_entropy`, for logits that are at hand.
    """
    fn = "linear_softmax_cross_entropy"
    arguments.check_reduction(fn, reduction)
    arguments.check_flag(fn, "return_aux", return_aux)
    inputs = check_inputs(
        fn,
        hidden,
        kernel,
        bias=bias,
        transpose_kernel=transpose_kernel,
        logit_scale=logit_scale,
        logit_softcap=logit_softcap,
        vocab_axis_name=vocab_axis_name,
        chunk_size=chunk_size,
        precision=precision,
    )
    options, given = check_targets(
        fn,
        "hidden @ kernel",
        inputs.logits,
        labels,
        class_weight=class_weight,
        sample_weight=sample_weight,
        where=where,
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        axis=inputs.hidden.ndim - 1,
        vocab_axis_name=inputs.config.vocab_axis_name,
    )
    z_factor = arguments.as_hyper_parameter(fn, "z_loss", z_loss, compute_dtype(inputs.hidden.dtype))
    shared = inputs.shared._replace(smoothing=given.smoothing, z_loss=z_factor)
    config = inputs.config._replace(with_aux=return_aux, with_entropy=return_aux)
    result, evaluated = evaluated_linear(config, options, reduction, inputs.hidden, shared, given)
    if evaluated.aux is None or evaluated.entropy is None:
        return result
    return result, CrossEntropyAux(**evaluated.aux._asdict(), entropy=lax.stop_gradient(evaluated.entropy))


@partial(jax.jit, static_argnums=(0, 1, 2))
def evaluated_linear(
    config: Config,
    options: TargetOptions,
    reduction: str,
    hidden: Array,
    shared: Shared,
    given: Given,
    row_args: tuple[Array, ...] = (),
    teacher_hidden: Array | None = None,
) -> tuple[Any, Evaluated]:
    """The loss and what else is asked for, from arguments that have been checked.

    One compiled function for each set of options, shapes and dtypes, under an eager call too. K ids a row are not reduced.
    """
    transposed = config.transpose_kernel, config.teacher_transpose_kernel
    placement = placement_of(hidden, shared.kernel, transposed[0], is_ids(given.labels), transposed[1])
    constants = teacher_hidden, shared.teacher_kernel, shared.teacher_bias
    teacher_hidden, teacher_kernel, teacher_bias = lax.stop_gradient(constants)
    shared = shared._replace(teacher_kernel=teacher_kernel, teacher_bias=teacher_bias)
    targets = make_targets(options, shared.kernel.shape[int(not config.transpose_kernel)], placed(placement, given))
    rows = PerRow(
        hidden, targets.labels, targets.label_weight, targets.where, row_args, targets.entries, teacher_hidden
    )
    shared, sample_weight = shared._replace(class_weight=targets.class_weight), targets.sample_weight
    config = config._replace(no_class=targets.no_class, placement=placement)
    if reduction == "none":
        evaluated = evaluate_linear(config, rows, shared, None)
        if options.several and targets.entries is None:
            return evaluated.loss, evaluated
        return reduce_rows(evaluated.loss, None, sample_weight, rows.where, reduction), evaluated
    ones = jnp.ones(rows.hidden.shape[:-1], compute_dtype(rows.hidden.dtype))
    evaluated = evaluate_linear(config, rows, shared, weighted(ones, sample_weight, rows.where))
    weight = targets.known_mass if is_ids(rows.labels) else evaluated.mass
    return reduce_total(evaluated.loss, ones, weight, sample_weight, rows.where, reduction), evaluated
