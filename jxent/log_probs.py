"""Log-probabilities and entropy of each row, and losses that are arbitrary functions of the two."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, Literal, NamedTuple, Unpack, overload

import jax
import jax.numpy as jnp
from jax import Array, export
from jax.core import Tracer

from jxent._core import arguments
from jxent._core.calls import naming_arguments
from jxent._core.dtypes import compute_dtype
from jxent._core.linear.inputs import check_inputs
from jxent._core.rows.losses import evaluate, log_probs_of_several
from jxent._core.signatures import (
    ArrayLike,
    LinearLogProbOptions,
    LinearLossOptions,
    LogProbOptions,
    Scalar,
    ToArray,
    ToMean,
)
from jxent._core.silence import scaled_logits
from jxent._core.targets import Given, TargetOptions, check_ids, make_targets, split_like
from jxent.linear import evaluated_linear
from jxent.reduction import Mean


@partial(export.register_namedtuple_serialization, serialized_name="jxent.LogProbs")
class LogProbs(NamedTuple):
    """The log-probability that a softmax gives an id, and the entropy of the row.

    A pytree of two arrays in the result dtype, both differentiable and 0 in masked rows.

    Attributes:
        log_prob: log p of the ids, shaped like the ids.
        entropy: −Σ_c p_c log p_c in nats, of the row shape.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> logits, ids = jnp.array([[0.0, 0.0], [30.0, 0.0]]), jnp.array([0, 0])
        >>> log_prob, entropy = jxent.softmax_log_probs(logits, ids, return_entropy=True)
        >>> print([f"{value:.3e}" for value in (*log_prob, *entropy)])
        ['-6.931e-01', '-9.358e-14', '6.931e-01', '2.901e-12']

    See also:
        `softmax_log_probs`, `linear_softmax_log_probs`.
    """

    log_prob: Array
    entropy: Array


@overload
def softmax_log_probs(
    logits: ArrayLike,
    ids: ArrayLike,
    *,
    return_entropy: Literal[False] = False,
    **options: Unpack[LogProbOptions],
) -> Array: ...
@overload
def softmax_log_probs(
    logits: ArrayLike,
    ids: ArrayLike,
    *,
    return_entropy: Literal[True],
    **options: Unpack[LogProbOptions],
) -> LogProbs: ...
@overload
def softmax_log_probs(
    logits: ArrayLike,
    ids: ArrayLike,
    *,
    return_entropy: bool = False,
    **options: Unpack[LogProbOptions],
) -> Any: ...
@naming_arguments
def softmax_log_probs(
    logits: ArrayLike,
    ids: ArrayLike,
    *,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    logit_scale: Scalar | None = None,
    axis: int = -1,
    vocab_axis_name: Any = None,
    return_entropy: bool = False,
) -> Any:
    """Log-probability of an id in each row of a softmax over logits, and optionally the row's entropy.

    With `p = softmax(logit_scale · logits)`: log p of the id, and −Σ_c p_c log p_c. Nothing in them cancels: in a
    confident row the log-probability, the entropy and the gradients of both keep their digits, where a plain
    log-softmax rounds them to 0.

    Args:
        logits: `[..., V, ...]` with V at `axis`, any floating dtype; every other axis is a row axis, and there may be
            none. Its dtype alone sets the result dtype, `promote(logits.dtype, float32)`.
        ids: integers of the row shape, or `[..., K]` for K ids per row; never broadcast. One outside [0, V) makes its
            log-probability and the gradient of its row NaN, unless the row is masked.
        where: bool, the row shape, or the same rank with axes of size 1. Rows where it is False are masked, as in
            `softmax_cross_entropy`. Default: no mask.
        ignore_index: a static integer; rows with this id are masked; with K ids per row, only that id gives 0. Default:
            none.
        logit_scale: a factor on the logits, in the result dtype: the inverse of the sampling temperature. A number or a
            traced scalar. Default: 1. On a CPU it makes a float32 copy of bfloat16 and float16 logits.
        axis: the class axis.
        vocab_axis_name: as in `softmax_cross_entropy`: inside `jax.shard_map`, the mesh axes that split the classes.
        return_entropy: whether to return a `LogProbs`, with the entropy.

    Returns:
        The log-probabilities, shaped like `ids`, in the result dtype; with `return_entropy`, a `LogProbs`.

    Raises:
        TypeError: an argument has the wrong dtype or type (ids that are not integers).
        ValueError: an argument has the wrong shape or value; or `vocab_axis_name` names no axis that splits `logits`,
            or the `shard_map` has `check_vma` off.

    Gradients:
        With respect to `logits` and `logit_scale`; forward and reverse mode, to any order. Exactly 0 in masked rows and
        at logits of −inf.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> logits, ids = jnp.array([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), jnp.array([0, 2])
        >>> print([f"{log_prob:.4f}" for log_prob in jxent.softmax_log_probs(logits, ids, logit_scale=1 / 0.7)])
        ['-0.3916', '-2.9659']

    References:
        Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (their use);
        `torch.distributions.Categorical`.

    See also:
        `linear_softmax_log_probs`, for hidden states and a kernel; `softmax_cross_entropy`, the negative of this.
    """
    fn = "softmax_log_probs"
    logits = arguments.as_scores(fn, "logits", logits)
    axis = arguments.as_class_axis(fn, "logits", logits, axis)
    vocab_axis_name = arguments.as_vocab_axis(fn, "logits", logits, vocab_axis_name)
    scale = arguments.as_logit_scale(fn, logit_scale, compute_dtype(logits.dtype))
    arguments.check_flag(fn, "return_entropy", return_entropy)
    options, given = check_ids(
        fn,
        "logits",
        logits,
        ids,
        where=where,
        ignore_index=ignore_index,
        axis=axis,
        vocab_axis_name=vocab_axis_name,
        may_be_several=True,
    )
    return _evaluated(options, return_entropy, logits, given, scale)


@partial(jax.jit, static_argnums=(0, 1))
def _evaluated(
    options: TargetOptions, return_entropy: bool, logits: Array, given: Given, scale: Array | None
) -> Array | LogProbs:
    targets = make_targets(options, logits.shape[options.axis], split_like(logits, options.axis, given))
    logits = scaled_logits(logits, scale)
    if options.several:
        log_prob, entropy = log_probs_of_several(logits, targets, return_entropy)
    else:
        rows = evaluate(logits, targets, entropy=return_entropy)
        log_prob, entropy = 0 - rows.nll, rows.entropy  # not −0 where masked
    return log_prob if entropy is None else LogProbs(log_prob, entropy)


@overload
def linear_softmax_log_probs(
    hidden: ArrayLike,
    kernel: ArrayLike,
    ids: ArrayLike,
    *,
    return_entropy: Literal[False] = False,
    **options: Unpack[LinearLogProbOptions],
) -> Array: ...
@overload
def linear_softmax_log_probs(
    hidden: ArrayLike,
    kernel: ArrayLike,
    ids: ArrayLike,
    *,
    return_entropy: Literal[True],
    **options: Unpack[LinearLogProbOptions],
) -> LogProbs: ...
@overload
def linear_softmax_log_probs(
    hidden: ArrayLike,
    kernel: ArrayLike,
    ids: ArrayLike,
    *,
    return_entropy: bool = False,
    **options: Unpack[LinearLogProbOptions],
) -> Any: ...
@naming_arguments
def linear_softmax_log_probs(
    hidden: ArrayLike,
    kernel: ArrayLike,
    ids: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    transpose_kernel: bool = False,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    logit_scale: Scalar | None = None,
    logit_softcap: Scalar | None = None,
    vocab_axis_name: Any = None,
    return_entropy: bool = False,
    chunk_size: int | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Any:
    """Log-probability of an id in each row of a softmax over `hidden @ kernel`, without ever holding all the logits.

    With `p = softmax(softcap(logit_scale · hidden @ kernel + bias))`: log p of the id, and optionally −Σ_c p_c log p_c.
    The logits are computed one chunk of rows at a time, and again in the backward pass: four matmuls in all. For a
    reduced loss of these values, `linear_softmax_loss` needs three.

    Args:
        hidden: `[..., D]`, any floating dtype, every axis but the last a row axis; as in
            `linear_softmax_cross_entropy`.
        kernel: `[D, V]`, floating.
        ids: integers of the row shape, or `[..., K]` for K ids per row; never broadcast. One outside [0, V) makes its
            log-probability and the gradient of its row NaN, unless the row is masked.
        bias: `[V]`, added to the logits; −inf removes a class. Default: none.
        transpose_kernel: whether the kernel is `[V, D]`, like a tied embedding table, which is then used without a
            copy.
        where: bool, the row shape, or the same rank with axes of size 1. Rows where it is False are masked and cost
            next to nothing, as in `linear_softmax_cross_entropy`. Default: no mask.
        ignore_index: a static integer; rows with this id are masked; with K ids per row, only that id gives 0. Default:
            none.
        logit_scale: a factor on `hidden @ kernel`, in the result dtype: the inverse of the sampling temperature. A
            number or a traced scalar. Default: 1.
        logit_softcap: the cap, a positive number or a traced scalar (unchecked); inf means no cap. Default: no cap.
        vocab_axis_name: as in `linear_softmax_cross_entropy`: inside `jax.shard_map`, the mesh axes that split the
            classes.
        return_entropy: whether to return a `LogProbs`, with the entropy.
        chunk_size: rows per chunk; a static integer. Default: as in `linear_softmax_cross_entropy`.
        precision: the precision of the matmuls, as in `jax.lax.dot_general`.

    Returns:
        The log-probabilities, shaped like `ids`, in `promote(hidden.dtype, float32)`; with `return_entropy`, a
        `LogProbs`.

    Raises:
        TypeError: an argument has the wrong dtype or type (ids that are not integers).
        ValueError: an argument has the wrong shape or value.

    Gradients:
        With respect to `hidden`, `kernel`, `bias`, `logit_scale` and `logit_softcap`, each in its argument's dtype.
        Reverse mode to any order, and forward over reverse. Exactly 0 in masked rows.

    Example:
        >>> import jax.numpy as jnp
        >>> import jxent
        >>> hidden, kernel = jnp.array([[1.0, 2.0], [0.5, -1.0]]), jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
        >>> log_prob, entropy = jxent.linear_softmax_log_probs(hidden, kernel, jnp.array([1, 2]), return_entropy=True)
        >>> print([f"{value:.4f}" for value in (*log_prob, *entropy)])
        ['-0.4076', '-0.2413', '0.8324', '0.6216']

    References:
        Schulman et al. 2017, "Proximal Policy Optimization Algorithms" (their use).

    See also:
        `linear_softmax_loss`, `softmax_log_probs`.
    """
    fn = "linear_softmax_log_probs"
    arguments.check_flag(fn, "return_entropy", return_entropy)
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
    options, given = check_ids(
        fn,
        "hidden @ kernel",
        inputs.logits,
        ids,
        where=where,
        ignore_index=ignore_index,
        axis=inputs.hidden.ndim - 1,
        vocab_axis_name=inputs.config.vocab_axis_name,
        may_be_several=True,
    )
    config = inputs.config._replace(with_entropy=return_entropy)
    loss, evaluated = evaluated_linear(config, options, "none", inputs.hidden, inputs.shared, given)
    log_prob = 0 - loss  # not −0 where masked
    return LogProbs(log_prob, evaluated.entropy) if return_entropy else log_prob


@overload
def linear_softmax_loss(
    row_loss: Callable[..., Array],
    hidden: ArrayLike,
    kernel: ArrayLike,
    ids: ArrayLike,
    *row_args: ArrayLike,
    reduction: ToArray = "mean",
    **options: Unpack[LinearLossOptions],
) -> Array: ...
@overload
def linear_softmax_loss(
    row_loss: Callable[..., Array],
    hidden: ArrayLike,
    kernel: ArrayLike,
    ids: ArrayLike,
    *row_args: ArrayLike,
    reduction: ToMean,
    **options: Unpack[LinearLossOptions],
) -> Mean: ...
@overload
def linear_softmax_loss(
    row_loss: Callable[..., Array],
    hidden: ArrayLike,
    kernel: ArrayLike,
    ids: ArrayLike,
    *row_args: ArrayLike,
    reduction: str = "mean",
    **options: Unpack[LinearLossOptions],
) -> Any: ...
@naming_arguments
def linear_softmax_loss(
    row_loss: Callable[..., Array],
    hidden: ArrayLike,
    kernel: ArrayLike,
    ids: ArrayLike,
    *row_args: ArrayLike,
    bias: ArrayLike | None = None,
    transpose_kernel: bool = False,
    sample_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    ignore_index: int | None = None,
    logit_scale: Scalar | None = None,
    logit_softcap: Scalar | None = None,
    reduction: str = "mean",
    vocab_axis_name: Any = None,
    chunk_size: int | None = None,
    precision: jax.lax.PrecisionLike = None,
) -> Any:
    """Any function of each row's log-probability and entropy, from hidden states, without the logits: PPO, GRPO, etc.

    With `p = softmax(softcap(logit_scale · hidden @ kernel + bias))`, the loss of a row is
    `row_loss(log p of its id, −Σ_c p_c log p_c, *its row_args)`. A reduced loss computes its gradient in the forward
    pass, while it has the logits of a chunk: three matmuls in all, where a loss of `linear_softmax_log_probs` takes
    four.

    Args:
        row_loss: a function of arrays `[C]`, log-probability and entropy in the result dtype, and of `row_args`
            `[C, …]`, to a floating array `[C]`, each entry a function of its own row only. It gets a chunk of rows per
            call, with zeros in masked rows. It may use `jax.lax.stop_gradient`. As under `jax.jit`, values that it
            closes over are read at trace time and get no gradient. Pass the same function object each time, so that
            eager calls compile once.
        hidden: `[..., D]`, any floating dtype, every axis but the last a row axis; as in
            `linear_softmax_cross_entropy`.
        kernel: `[D, V]`, floating.
        ids: integers of the row shape, never broadcast. One outside [0, V) makes the loss of its row NaN, unless the
            row is masked.
        *row_args: arrays whose leading axes are the row shape, never broadcast: the old policy's log-probabilities,
            advantages. Floating ones are cast to the result dtype.
        bias: `[V]`, added to the logits; −inf removes a class. Default: none.
        transpose_kernel: whether the kernel is `[V, D]`, like a tied embedding table, which is then used without a
            copy.
        sample_weight: the weight of each row: the row shape, or the same rank with axes of size 1. Default: 1.
        where: bool, shaped like `sample_weight`. Rows where it is False are masked and cost next to nothing, as in
            `linear_softmax_cross_entropy`. Default: no mask.
        ignore_index: a static integer; rows with this id are masked. Default: none.
        logit_scale: a factor on `hidden @ kernel`, in the result dtype: the inverse of the sampling temperature. A
            number or a traced scalar. Default: 1.
        logit_softcap: the cap, a positive number or a traced scalar (unchecked); inf means no cap. Default: no cap.
        reduction: "mean", "sum", "partial", or "none" for a loss per row, whose backward pass computes the logits
            again.
        vocab_axis_name: as in `linear_softmax_cross_entropy`: inside `jax.shard_map`, the mesh axes that split the
            classes.
        chunk_size: rows per chunk; a static integer. Default: as in `linear_softmax_cross_entropy`.
        precision: the precision of the matmuls, as in `jax.lax.dot_general`.

    Returns:
        With m and s the mask and the sample weight of a row: "mean" gives Σ m·s·loss / Σ m·s (0 if the denominator is
        exactly 0); "sum" the numerator; "partial" both sums, undivided, as a `Mean`; "none" m·s·loss, of the row shape.
        In `promote(hidden.dtype, float32)`.

    Raises:
        TypeError: an argument has the wrong dtype or type (`row_loss` returns no floating dtype).
        ValueError: an argument has the wrong shape or value (`row_loss` returns another shape than `[C]`, an array in
            `row_args` has another number of rows).

    Gradients:
        With respect to `hidden`, `kernel`, `bias`, floating `row_args`, `sample_weight`, `logit_scale` and
        `logit_softcap`, each in its argument's dtype. Reverse mode to any order, and forward over reverse.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import jxent
        >>> def ppo(log_prob, entropy, old_log_prob, advantage):
        ...     ratio = jnp.exp(log_prob - old_log_prob)
        ...     clipped = jnp.clip(ratio, 0.8, 1.2)
        ...     return -jnp.minimum(ratio * advantage, clipped * advantage) - 0.01 * entropy
        >>> hidden, kernel = jnp.array([[1.0, 2.0], [0.5, -1.0]]), jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]])
        >>> ids, advantage = jnp.array([1, 2]), jnp.array([1.0, -1.0])
        >>> old = jxent.linear_softmax_log_probs(hidden, kernel, ids)
        >>> loss_fn = lambda kernel: jxent.linear_softmax_loss(ppo, hidden, kernel, ids, old, advantage)
        >>> print(f"{loss_fn(kernel):.4f}", jax.grad(loss_fn)(kernel).shape)
        -0.0073 (2, 3)

    References:
        Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equation 7; Shao et al. 2024, "DeepSeekMath"
        (GRPO); Hsu et al. 2024, "Liger Kernel", section 3.2 (the gradient in the forward pass).

    See also:
        `linear_softmax_log_probs`, `linear_softmax_cross_entropy`.
    """
    fn = "linear_softmax_loss"
    if not (callable(row_loss) and isinstance(row_loss, Hashable)):
        raise TypeError(f"{fn}: row_loss must be a function, and hashable; got {type(row_loss).__name__}")
    arguments.check_reduction(fn, reduction)
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
    options, given = check_ids(
        fn,
        "hidden @ kernel",
        inputs.logits,
        ids,
        where=where,
        ignore_index=ignore_index,
        axis=inputs.hidden.ndim - 1,
        vocab_axis_name=inputs.config.vocab_axis_name,
        sample_weight=sample_weight,
    )
    row_shape, dtype = inputs.logits.shape[:-1], compute_dtype(inputs.hidden.dtype)
    row_args = tuple(_as_row_argument(fn, i, value, row_shape, dtype) for i, value in enumerate(row_args))
    _check_row_loss(fn, row_loss, row_args, len(row_shape), dtype)
    config = inputs.config._replace(row_loss=row_loss)
    return evaluated_linear(config, options, reduction, inputs.hidden, inputs.shared, given, row_args)[0]


def _as_row_argument(fn: str, i: int, value: Any, row_shape: tuple[int, ...], dtype: Any) -> Array:
    """Checks that the leading axes are the row shape; casts a floating array to the compute dtype."""
    name = f"row_args[{i}]"
    array = arguments.as_array(fn, name, value)
    if array.shape[: len(row_shape)] != row_shape:
        raise ValueError(
            f"{fn}: {name} has shape {array.shape}; expected one that begins with the row shape {row_shape}: one entry "
            "per row, never broadcast"
        )
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _check_row_loss(
    fn: str, row_loss: Callable[..., Any], row_args: tuple[Array, ...], num_row_axes: int, dtype: Any
) -> None:
    """Traces `row_loss` on three rows, a size that no other axis is likely to have."""
    num_rows = 3
    args = (jax.ShapeDtypeStruct((num_rows, *a.shape[num_row_axes:]), a.dtype) for a in row_args)
    per_row = jax.ShapeDtypeStruct((num_rows,), dtype)
    traced, result = jax.make_jaxpr(row_loss, return_shape=True)(per_row, per_row, *args)
    if any(isinstance(const, Tracer) for const in traced.consts):
        raise ValueError(
            f"{fn}: row_loss closes over a traced array, whose gradient would be lost; pass it as one of row_args, or "
            "for a number pass jnp.broadcast_to(number, ids.shape)"
        )
    shape = getattr(result, "shape", None)
    if shape != (num_rows,):
        got = f"shape {shape}" if shape is not None else type(result).__name__
        raise ValueError(
            f"{fn}: row_loss must return one number per row, shape ({num_rows},) for {num_rows} rows; got {got}; let "
            "`reduction` do the reducing"
        )
    if not jnp.issubdtype(result.dtype, jnp.floating):
        raise TypeError(f"{fn}: row_loss must return a floating dtype; got {result.dtype.name}")
