"""The types in public signatures.

`reduction`, `return_aux` and `return_entropy` decide the type of a result, so every loss has overloads over them. The
other options are in a `TypedDict`, which keeps an overload at three lines instead of twenty. The implementation spells
them all out, because that is what `help()` and `inspect.signature` show; a test keeps the two in agreement.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, TypedDict

import jax

# Recursive, because Sequence[Any] would let a type checker accept strings.
Scalar: TypeAlias = jax.typing.ArrayLike
ArrayLike: TypeAlias = Scalar | Sequence["ArrayLike"]

# The values of `reduction` that return an array, and the one that returns a `Mean`.
ToArray: TypeAlias = Literal["none", "sum", "mean"]
ToMean: TypeAlias = Literal["partial"]


class RowOptions(TypedDict, total=False):
    """Options of every loss."""

    sample_weight: ArrayLike | None
    where: ArrayLike | None


class ClassOptions(RowOptions, total=False):
    """Options of every multiclass loss."""

    class_weight: ArrayLike | None
    ignore_index: int | None
    axis: int


class SoftmaxFocalOptions(ClassOptions, total=False):
    """Options of `softmax_focal_loss`."""

    gamma: Scalar


class MulticlassOptions(ClassOptions, total=False):
    """Options of the multiclass losses with label smoothing."""

    label_smoothing: Scalar


class SoftmaxOptions(MulticlassOptions, total=False):
    """Options of `softmax_cross_entropy`."""

    z_loss: Scalar
    vocab_axis_name: Any


class LogProbOptions(TypedDict, total=False):
    """Options of `softmax_log_probs`."""

    logit_scale: Scalar | None
    where: ArrayLike | None
    ignore_index: int | None
    axis: int
    vocab_axis_name: Any


class LinearLogProbOptions(TypedDict, total=False):
    """Options of `linear_softmax_log_probs`."""

    bias: ArrayLike | None
    transpose_kernel: bool
    logit_scale: Scalar | None
    logit_softcap: Scalar | None
    where: ArrayLike | None
    ignore_index: int | None
    vocab_axis_name: Any
    chunk_size: int | None
    precision: jax.lax.PrecisionLike


class LinearLossOptions(LinearLogProbOptions, total=False):
    """Options of `linear_softmax_loss`."""

    sample_weight: ArrayLike | None


class LinearOptions(LinearLossOptions, total=False):
    """Options of `linear_softmax_cross_entropy`."""

    class_weight: ArrayLike | None
    label_smoothing: Scalar
    z_loss: Scalar


class DistillationOptions(RowOptions, total=False):
    """Options of `softmax_distillation`."""

    temperature: Scalar | None
    beta: float
    axis: int
    vocab_axis_name: Any


class LinearDistillationOptions(RowOptions, total=False):
    """Options of `linear_softmax_distillation`."""

    bias: ArrayLike | None
    transpose_kernel: bool
    teacher_bias: ArrayLike | None
    teacher_transpose_kernel: bool
    temperature: Scalar | None
    beta: float
    vocab_axis_name: Any
    chunk_size: int | None
    precision: jax.lax.PrecisionLike


class Poly1Options(MulticlassOptions, total=False):
    """Options of `poly1_cross_entropy`."""

    epsilon: Scalar


class BinaryOptions(RowOptions, total=False):
    """Options of the binary cross entropies."""

    pos_weight: ArrayLike | None
    class_weight: ArrayLike | None
    label_smoothing: Scalar


class SigmoidFocalOptions(RowOptions, total=False):
    """Options of `sigmoid_focal_loss`."""

    alpha: ArrayLike | None
    gamma: Scalar
