"""The divergence of a student's softmax from a teacher's."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple, Unpack, overload

import jax
import jax.numpy as jnp
from jax import Array

from jxent._core import arguments
from jxent._core.calls import naming_arguments
from jxent._core.dtypes import compute_dtype
from jxent._core.linear.inputs import check_inputs, check_teacher
from jxent._core.rows.divergence import divergence
from jxent._core.shards import VocabAxis, resharded, split_of
from jxent._core.signatures import ArrayLike, DistillationOptions, LinearDistillationOptions, Scalar, ToArray, ToMean
from jxent._core.silence import silenced
from jxent._core.targets import Given, TargetOptions
from jxent.linear import evaluated_linear
from jxent.reduction import Mean, reduce_rows


@overload
def softmax_distillation(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    reduction: ToArray = "none",
    **options: Unpack[DistillationOptions],
) -> Array: ...
@overload
def softmax_distillation(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    reduction: ToMean,
    **options: Unpack[DistillationOptions],
) -> Mean: ...
@overload
def softmax_distillation(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    reduction: str = "none",
    **options: Unpack[DistillationOptions],
) -> Any: ...
@naming_arguments
def softmax_distillation(
    logits: ArrayLike,
    teacher_logits: ArrayLike,
    *,
    temperature: Scalar | None = None,
    beta: float = 0.0,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    axis: int = -1,
    reduction: str = "none",
    vocab_axis_name: Any = None,
) -> Any:
    """Divergence of a student's softmax from a teacher's, from the logits of both.

    With `s = softmax(logits / T)`, `t = softmax(teacher_logits / T)` and M = β·t + (1−β)·s, the loss of a row is

        β = 0: KL(t‖s) = Σ_c t_c log(t_c / s_c)        β = 1: KL(s‖t)        between: β·KL(t‖M) + (1−β)·KL(s‖M).

    Nothing in it cancels: it keeps its digits where the two nearly agree, and is 0 for equal logits. It is not
    multiplied by T², which would keep the size of the gradient as T grows: do that where you mix in hard labels.

    XLA holds float32 arrays of the logits' size for it: on a CPU one to three, on a GPU one for bfloat16 logits, on a TPU
    none.

    Args:
        logits: the student's, `[..., V, ...]` with V at `axis`, any floating dtype. Their dtype alone sets the result
            dtype, `promote(logits.dtype, float32)`.
        teacher_logits: the shape of `logits`, any floating dtype; treated as a constant.
        temperature: T, a positive number or a traced scalar (unchecked). Default: 1.
        beta: β in [0, 1], a static number.
        sample_weight: the weight of each row: the row shape, or the same rank with axes of size 1. Default: 1.
        where: bool, shaped like `sample_weight`; rows where it is False are masked, as in `softmax_cross_entropy`.
            Default: no mask.
        axis: the class axis.
        reduction: "none" for a loss per row, "sum", "mean" or "partial", as in `softmax_cross_entropy`.
        vocab_axis_name: as in `softmax_cross_entropy`: inside `jax.shard_map`, the mesh axes that split the classes.

    Returns:
        The row shape for "none", a scalar for "sum" and "mean", a `Mean` for "partial", in the result dtype. A logit of
        −inf marks a class that does not exist: one that neither has is ignored; if only the student lacks it, KL(t‖s)
        is inf, and if only the teacher lacks it, KL(s‖t) is.

    Raises:
        TypeError: an argument has the wrong dtype or type.
        ValueError: an argument has the wrong shape or value; or `vocab_axis_name` names no axis that splits `logits`,
            or the `shard_map` has `check_vma` off.

    Gradients:
        With respect to `logits`, `temperature` and `sample_weight`; forward and reverse mode, to any order. None with
        respect to `teacher_logits`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> student, teacher = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[2.0, 0.0, -1.0]])
        >>> for beta in (0.0, 0.5, 1.0):
        ...     print(beta, f"{jxent.softmax_distillation(student, teacher, temperature=2.0, beta=beta)[0]:.4f}")
        0.0 0.0742
        0.5 0.0192
        1.0 0.0811

    References:
        Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"; Agarwal et al. 2024, "On-Policy Distillation
        of Language Models" (the generalised Jensen-Shannon divergence).

    See also:
        `linear_softmax_distillation`, from hidden states; `SparseLabels`, for a teacher's K most likely classes.
    """
    fn = "softmax_distillation"
    logits = arguments.as_scores(fn, "logits", logits)
    teacher = arguments.as_scores(fn, "teacher_logits", teacher_logits)
    if teacher.shape != logits.shape:
        raise ValueError(f"{fn}: teacher_logits has shape {teacher.shape}; expected that of logits, {logits.shape}")
    axis = arguments.as_class_axis(fn, "logits", logits, axis)
    vocab_axis_name = arguments.as_vocab_axis(fn, "logits", logits, vocab_axis_name)
    if vocab_axis_name is not None:
        arguments.as_vocab_axis(fn, "teacher_logits", teacher, vocab_axis_name)
    dtype, rows = compute_dtype(logits.dtype), arguments.row_shape(logits, axis)
    inverse = arguments.as_inverse_temperature(fn, temperature, dtype)
    arguments.check_beta(fn, beta)
    arguments.check_reduction(fn, reduction)
    sample_weight = arguments.as_per_row(fn, "sample_weight", sample_weight, rows, dtype)
    where = arguments.as_row_mask(fn, where, rows)
    arguments.check_same_over(fn, vocab_axis_name, where=where, sample_weight=sample_weight)
    options = _Options(axis, float(beta), reduction, vocab_axis_name)
    return _evaluated(options, logits, teacher, inverse, sample_weight, where)


class _Options(NamedTuple):
    axis: int
    beta: float
    reduction: str
    vocab_axis_name: VocabAxis


@partial(jax.jit, static_argnums=0)
def _evaluated(
    options: _Options,
    logits: Array,
    teacher: Array,
    inverse_temperature: Array | None,
    sample_weight: Array | None,
    where: Array | None,
) -> Array | Mean:
    axis, beta, reduction, vocab_axis_name = options
    entries = split_of(logits)
    teacher = resharded(teacher, logits, entries)
    sample_weight, where = (resharded(a, logits, entries[:axis] + entries[axis + 1 :]) for a in (sample_weight, where))
    rows = divergence(axis, vocab_axis_name, beta, logits, teacher, inverse_temperature, where)
    return reduce_rows(silenced(rows, sample_weight), None, sample_weight, where, reduction)


@overload
def linear_softmax_distillation(
    hidden: ArrayLike,
    kernel: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    reduction: ToArray = "none",
    **options: Unpack[LinearDistillationOptions],
) -> Array: ...
@overload
def linear_softmax_distillation(
    hidden: ArrayLike,
    kernel: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    reduction: ToMean,
    **options: Unpack[LinearDistillationOptions],
) -> Mean: ...
@overload
def linear_softmax_distillation(
    hidden: ArrayLike,
    kernel: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    reduction: str = "none",
    **options: Unpack[LinearDistillationOptions],
) -> Any: ...
@naming_arguments
def linear_softmax_distillation(
    hidden: ArrayLike,
    kernel: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    transpose_kernel: bool = False,
    teacher_bias: ArrayLike | None = None,
    teacher_transpose_kernel: bool = False,
    temperature: Scalar | None = None,
    beta: float = 0.0,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: str = "none",
    vocab_axis_name: Any = None,
    chunk_size: int | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Any:
    """Divergence of a student's softmax from a teacher's, from the hidden states and kernels of both, without logits.

    With `logits = hidden @ kernel + bias`, and likewise for the teacher, the loss of a row is that of
    `softmax_distillation`. The logits of both are computed one chunk of rows at a time. A reduced loss computes its
    gradient in the forward pass: four matmuls in all, one of them the teacher's.

    Args:
        hidden: the student's, `[..., D]`, any floating dtype, every axis but the last a row axis; as in
            `linear_softmax_cross_entropy`. Its dtype alone sets the result dtype, `promote(hidden.dtype, float32)`.
        kernel: the student's, `[D, V]`, floating.
        teacher_hidden: `[..., E]` with the rows of `hidden`, any floating dtype and width; a constant.
        teacher_kernel: `[E, V]`, floating; a constant.
        bias: `[V]`, added to the student's logits; −inf removes a class. Default: none.
        transpose_kernel: whether the kernel is `[V, D]`.
        teacher_bias: `[V]`, added to the teacher's logits; a constant. Default: none.
        teacher_transpose_kernel: whether the teacher's kernel is `[V, E]`.
        temperature: T, a positive number or a traced scalar (unchecked). Default: 1.
        beta: β in [0, 1], a static number: 0 for KL(t‖s), 1 for KL(s‖t), between for the generalised Jensen-Shannon
            divergence.
        sample_weight: the weight of each row: the row shape, or the same rank with axes of size 1. Default: 1.
        where: bool, shaped like `sample_weight`. Rows where it is False are masked and cost next to nothing, as in
            `linear_softmax_cross_entropy`. Default: no mask.
        reduction: "none" for a loss per row, whose backward pass computes the logits again, "sum", "mean" or "partial".
        vocab_axis_name: as in `linear_softmax_cross_entropy`: inside `jax.shard_map`, the mesh axes that split the
            classes of both kernels.
        chunk_size: rows per chunk; a static integer. Default: as in `linear_softmax_cross_entropy`.
        precision: the precision of the matmuls, as in `jax.lax.dot_general`.

    Returns:
        As `softmax_distillation`: the row shape for "none", a scalar for "sum" and "mean", a `Mean` for "partial".

    Raises:
        TypeError: an argument has the wrong dtype or type.
        ValueError: an argument has the wrong shape or value (kernels of different V, hidden states of different rows).

    Gradients:
        With respect to `hidden`, `kernel`, `bias`, `temperature` and `sample_weight`, each in its argument's dtype, and
        not to the teacher's arguments. Reverse mode to any order, and forward over reverse.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jxent
        >>> hidden, kernel = jnp.array([[1.0, 2.0], [0.5, -1.0]]), jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
        >>> teacher_hidden, teacher_kernel = jnp.array([[1.0], [0.5]]), jnp.array([[2.0, 3.0, 0.0]])
        >>> loss_fn = lambda k: jxent.linear_softmax_distillation(
        ...     hidden, k, teacher_hidden, teacher_kernel, temperature=2.0, reduction="mean"
        ... )
        >>> loss, d_kernel = jax.value_and_grad(loss_fn)(kernel)
        >>> print(f"{loss:.4f}", d_kernel.shape)
        0.2068 (2, 3)

    References:
        As `softmax_distillation`; Hsu et al. 2024, "Liger Kernel" (the gradient in the forward pass).

    See also:
        `softmax_distillation`, `linear_softmax_cross_entropy`.
    """
    fn = "linear_softmax_distillation"
    arguments.check_beta(fn, beta)
    arguments.check_reduction(fn, reduction)
    inputs = check_inputs(
        fn,
        hidden,
        kernel,
        bias=bias,
        transpose_kernel=transpose_kernel,
        logit_scale=None,
        logit_softcap=None,
        vocab_axis_name=vocab_axis_name,
        chunk_size=chunk_size,
        precision=precision,
    )
    teacher = check_teacher(fn, inputs, teacher_hidden, teacher_kernel, teacher_bias, teacher_transpose_kernel)
    dtype, rows = compute_dtype(inputs.hidden.dtype), inputs.hidden.shape[:-1]
    sample_weight = arguments.as_per_row(fn, "sample_weight", sample_weight, rows, dtype)
    where = arguments.as_row_mask(fn, where, rows)
    vocab_axis_name = inputs.config.vocab_axis_name
    arguments.check_same_over(fn, vocab_axis_name, where=where, sample_weight=sample_weight)
    shared = inputs.shared._replace(
        inverse_temperature=arguments.as_inverse_temperature(fn, temperature, dtype),
        teacher_kernel=teacher.kernel,
        teacher_bias=teacher.bias,
    )
    config = inputs.config._replace(beta=float(beta), teacher_transpose_kernel=bool(teacher_transpose_kernel))
    # Ids that nobody looks at.
    ids = jnp.zeros_like(inputs.hidden[..., 0], jnp.int32)
    given = Given(ids, None, sample_weight, where, None)
    options = TargetOptions(len(rows), None, vocab_axis_name)
    return evaluated_linear(config, options, reduction, inputs.hidden, shared, given, (), teacher.hidden)[0]
