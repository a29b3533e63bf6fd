"""Checks of the arguments that all fused functions share, and of a teacher's."""

from typing import Any, NamedTuple

import jax
from jax import Array

from jxent._core import arguments
from jxent._core.dtypes import compute_dtype
from jxent._core.linear.records import Config, Shared


class Inputs(NamedTuple):
    """`logits` has the shape and dtype of the logits, which are never made."""

    config: Config
    hidden: Array
    shared: Shared
    logits: jax.ShapeDtypeStruct


def check_inputs(
    fn: str,
    hidden: Any,
    kernel: Any,
    *,
    bias: Any,
    transpose_kernel: Any,
    logit_scale: Any,
    logit_softcap: Any,
    vocab_axis_name: Any,
    chunk_size: Any,
    precision: Any,
) -> Inputs:
    hidden = arguments.as_scores(fn, "hidden", hidden)
    arguments.check_flag(fn, "transpose_kernel", transpose_kernel)
    kernel, num_classes = arguments.as_kernel(fn, kernel, hidden, transpose_kernel)
    vocab_axis_name = arguments.as_vocab_axis(fn, "kernel", kernel, vocab_axis_name)
    arguments.check_same_over(fn, vocab_axis_name, hidden=hidden)
    dtype = compute_dtype(hidden.dtype)
    bias = arguments.as_per_class(fn, "bias", bias, num_classes, dtype)
    scale = arguments.as_logit_scale(fn, logit_scale, dtype)
    cap = arguments.as_softcap(fn, logit_softcap, dtype)
    chunk_size = arguments.as_chunk_size(fn, chunk_size)
    arguments.check_precision(fn, precision)
    return Inputs(
        Config(chunk_size, transpose_kernel, precision, vocab_axis_name),
        hidden,
        Shared(kernel, bias, scale, cap, None, None, None),
        jax.ShapeDtypeStruct((*hidden.shape[:-1], num_classes), hidden.dtype),
    )


class Teacher(NamedTuple):
    hidden: Array
    kernel: Array
    bias: Array | None


def check_teacher(fn: str, student: Inputs, hidden: Any, kernel: Any, bias: Any, transpose_kernel: Any) -> Teacher:
    hidden = arguments.as_scores(fn, "teacher_hidden", hidden)
    arguments.check_flag(fn, "teacher_transpose_kernel", transpose_kernel)
    kernel, num_classes = arguments.as_kernel(fn, kernel, hidden, transpose_kernel, "teacher_")
    if hidden.shape[:-1] != student.hidden.shape[:-1]:
        raise ValueError(
            f"{fn}: teacher_hidden has shape {hidden.shape}; expected the rows of hidden, "
            f"{(*student.hidden.shape[:-1], 'E')}"
        )
    if num_classes != student.logits.shape[-1]:
        raise ValueError(
            f"{fn}: teacher_kernel has {num_classes} classes, but kernel has {student.logits.shape[-1]}; expected the "
            "same"
        )
    vocab_axis_name = student.config.vocab_axis_name
    if vocab_axis_name is not None:
        arguments.as_vocab_axis(fn, "teacher_kernel", kernel, vocab_axis_name)
    arguments.check_same_over(fn, vocab_axis_name, teacher_hidden=hidden)
    bias = arguments.as_per_class(fn, "teacher_bias", bias, num_classes, compute_dtype(hidden.dtype))
    return Teacher(hidden, kernel, bias)
