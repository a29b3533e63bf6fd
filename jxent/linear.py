"""The multiclass loss from hidden states and a kernel, without holding the logits."""

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
from jxent._core.silence import silenced
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
    """Cross entropy of a softmax over `hidden @ kernel`, without ever holding all the logits.

    With N rows, D features, V classes, `logits = softcap(logit_scale * hidden @ kernel + bias)`, `p = softmax(logits)`
    and `q` the target distribution of a row, each row's loss is that of `softmax_cross_entropy`,

        −Σ_c w_c · q_c · log p_c  +  z_loss · log_z²,        log_z = log Σ_c exp(logits_c),

    with softcap(l) = cap · tanh(l / cap). The logits are computed one chunk of rows at a time. When a reduced loss is
    differentiated, its gradient is computed in the same pass: three matmuls of N·D·V in all, the minimum. For "none"
    the backward pass computes the logits again, a fourth matmul. Beyond the arguments and their gradients, it needs
    memory for the logits of one chunk, and for the gradients of `hidden` and `kernel` in float32.

    Args:
        hidden: `[..., D]`, any floating dtype; every axis but the last is a row axis, and there may be none. Its dtype
            alone sets the result dtype, `promote(hidden.dtype, float32)`, and is the dtype of the matmuls' operands.
        kernel: `[D, V]`, floating. A kernel of another dtype is cast to that of `hidden`; its gradient is still summed
            in the result dtype and cast once.
        labels: class ids, integers of the row shape; or a distribution per row, floating, `[..., V]`; or
            `SparseLabels`. Never broadcast; bad ids as in `softmax_cross_entropy`.
        bias: `[V]`, added to the logits; −inf removes a class (a padded column). Default: none.
        transpose_kernel: whether the kernel is `[V, D]`, like a tied embedding table, which is then used without a
            copy.
        class_weight: `[V]`, the weight w_c of each class. Default: 1.
        sample_weight: the weight of each row: the row shape, or the same rank with axes of size 1. Default: 1.
        where: bool, shaped like `sample_weight`. Rows where it is False are masked: exactly 0 in value and in every
            gradient, whatever they hold; a NaN in `hidden` there reaches no gradient. If there are several chunks,
            masked rows cost next to nothing: the unmasked rows go first, and chunks without any are skipped. On a mesh
            that splits the leading axis of the rows, no row moves to another device: each device sorts its own, and all
            run as many chunks as the one with the most unmasked rows needs. Where jax knows of no mesh (see
            `jax.typeof`), as under `jax.jit(in_shardings=...)`, rows are sorted as if all existing devices held equal
            runs of them. A batch of masks under `jax.vmap` runs all chunks. Default: no mask.
        ignore_index: a static integer; rows with this id are masked, and cost as little. Not for distributions.
            Default: none.
        label_smoothing: ε in [0, 1], a number or a traced scalar (unchecked): q ← (1−ε)·q + ε/V', where V' counts the
            logits above −inf in the row.
        z_loss: the factor of log_z², a number or a traced scalar. Class weights do not apply to this term.
        logit_scale: a factor on `hidden @ kernel`, in the result dtype: the inverse of a temperature. A number or a
            traced scalar, which may be learned. Default: 1.
        logit_softcap: the cap, a positive number or a traced scalar (unchecked); inf means no cap. Default: no cap.
        reduction: "none" for a loss per row, "sum", "mean" or "partial", as in `softmax_cross_entropy`.
        vocab_axis_name: inside `jax.shard_map`, the name (or a tuple of names) of the mesh axes that split the classes.
            `kernel`, `bias`, distributions and `class_weight` are then one device's part, where device i holds the
            classes from i·V on; `hidden` is the same on all of them, and ids, V' and all results are global. Pad the
            classes with a bias of −inf if need be. Omit this for a kernel that was all-gathered over its classes: log_z
            would be too high by the log of the number of devices, and nothing could detect it. Default: each device has
            all classes. Under `jit` alone, arrays may be split in any way without this.
        return_aux: whether to also return a `CrossEntropyAux`, with `log_z` after the softcap. Differentiating that
            `log_z` costs an extra pass under a reduction (the logits are computed again), and nothing under "none".
        chunk_size: rows per chunk; a static integer. Default: 2048 on a TPU and 4096 on a GPU, so that the matmuls hide
            the gradient of the kernel, which is read and written once per chunk; fewer if their logits would take more
            than 2 GiB in the result dtype. On a CPU, as many as have 64 MiB of logits, or a quarter of the kernel's
            gradient if that is more. (The devices of the mesh decide, or else the default device, even for a program
            that is exported for another.) Among such sizes it prefers one that divides N; with masked rows, chunks are
            smaller. By the compiler's plan for a TPU, 512 saves 1.1 GiB of 4.2 for 32768 rows of a bfloat16 kernel
            [4096, 128256]. On a mesh with Auto axes that split the rows, choose a divisor of N that is a multiple of
            the number of devices. The result depends on it only by rounding.
        precision: the precision of the matmuls, as in `jax.lax.dot_general`.

    Returns:
        As `softmax_cross_entropy`: the row shape for "none", a scalar for "sum" and "mean", a `Mean` for "partial", in
        the result dtype. With `return_aux`, a pair of this and a `CrossEntropyAux`.

    Raises:
        TypeError: an argument has the wrong dtype or type.
        ValueError: an argument has the wrong shape or value (a kernel of the wrong orientation, labels of shape (N, 1),
            a softcap that is not positive); or `vocab_axis_name` names no axis that splits `kernel`, or the `shard_map`
            has `check_vma` off (gradients would be wrong).

    Gradients:
        With respect to `hidden`, `kernel`, `bias`, distributions, `class_weight`, `sample_weight`, `label_smoothing`,
        `z_loss`, `logit_scale` and `logit_softcap`, each in its argument's dtype; what is not requested is not
        computed. Reverse mode to any order, and forward over reverse (`jax.hessian`), but not forward mode alone. The
        gradient of the logits is rounded to the dtype of `hidden` before its two matmuls, as in a model that holds
        bfloat16 logits; in float16 it is scaled into the range of the dtype, whatever the weights are, and only the
        results must fit in it. Exactly 0 in masked rows and at classes of −inf; NaN in rows with a bad id or a NaN, and
        the gradient of `kernel` is NaN if any unmasked row is like that. Under `jax.vmap` with one kernel, each entry
        of the batch keeps its own kernel gradient until they are added: give `hidden` leading axes instead.

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
        `softmax_cross_entropy`, for logits you already have.
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
    """The loss and the requested extras, from checked arguments. With K ids per row nothing is reduced.

    Jitted, so an eager call runs one compiled function per set of options, shapes and dtypes.
    """
    transposed = config.transpose_kernel, config.teacher_transpose_kernel
    placement = placement_of(hidden, shared.kernel, transposed[0], is_ids(given.labels), transposed[1])
    constants = teacher_hidden, shared.teacher_kernel, shared.teacher_bias
    teacher_hidden, teacher_kernel, teacher_bias = lax.stop_gradient(constants)
    shared = shared._replace(teacher_kernel=teacher_kernel, teacher_bias=teacher_bias)
    targets = make_targets(options, shared.kernel.shape[int(not config.transpose_kernel)], placed(placement, given))
    per_row = PerRow(
        hidden, targets.labels, targets.label_weight, targets.where, row_args, targets.entries, teacher_hidden
    )
    shared, sample_weight = shared._replace(class_weight=targets.class_weight), targets.sample_weight
    config = config._replace(no_class=targets.no_class, placement=placement)
    if reduction == "none":
        evaluated = evaluate_linear(config, per_row, shared, None)
        if options.several and targets.entries is None:
            return evaluated.loss, evaluated
        loss = silenced(evaluated.loss, sample_weight)
        return reduce_rows(loss, None, sample_weight, per_row.where, reduction), evaluated
    ones = jnp.ones(per_row.hidden.shape[:-1], compute_dtype(per_row.hidden.dtype))
    evaluated = evaluate_linear(config, per_row, shared, weighted(ones, sample_weight, per_row.where))
    weight = targets.known_mass if is_ids(per_row.labels) else evaluated.mass
    return reduce_total(evaluated.loss, ones, weight, sample_weight, per_row.where, reduction), evaluated
