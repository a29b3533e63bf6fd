"""Sparse distributions as labels, and a check that labels are valid."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.experimental import checkify

from jxent._core import arguments
from jxent._core.calls import naming_arguments
from jxent._core.counts import count
from jxent._core.signatures import ArrayLike
from jxent._core.targets import SparseLabels, checked_ids, not_ignored

_NUM_SHOWN = 5


@naming_arguments
def check_labels(labels: ArrayLike | SparseLabels, num_classes: int | None, *, ignore_index: int | None = None) -> None:
    """Raises if any label is outside [0, V), or outside [0, 1] for binary labels; the losses return NaN for those.

    Call it where the labels are concrete: in the data pipeline or on a first batch. There it runs in NumPy, waits for
    the labels and compiles nothing, even when called inside a traced function.

    On traced labels it is a `jax.experimental.checkify.check`: `jax.jit(checkify.checkify(step))` returns the error as
    a value beside the result. Tracing `step` without `checkify.checkify` raises JAX's own ValueError (the check was not
    functionalized), so call it only in functions that you checkify.

    Args:
        labels: class ids, integers of any shape; or binary labels, bool, integer or floating. Floating ones may exceed
            [0, 1] by 1e-3, for rounding; NaN is bad. For `SparseLabels` the ids are checked.
        num_classes: V, a static integer; None for binary labels.
        ignore_index: a static integer that is allowed too. Binary losses have no such argument: use `where` there.
            Default: none.

    Returns:
        None.

    Raises:
        TypeError: an argument has the wrong dtype or type (class ids that are not integers, a traced `num_classes`).
        ValueError: labels are out of range (the message says how many, which come first, and what is allowed); or
            `num_classes` is below 1; or traced labels are checked without checkify.

    Gradients:
        None.

    Example:
        >>> import jxent
        >>> jxent.check_labels([0, 9, -100], 10, ignore_index=-100)
        >>> jxent.check_labels([0, 10, 3, -1], 10)
        Traceback (most recent call last):
        ValueError: check_labels: 2 of 4 labels are outside [0, 10): labels[1] = 10, labels[3] = -1
        >>> jxent.check_labels([0.0, 0.9, 1.5], num_classes=None)
        Traceback (most recent call last):
        ValueError: check_labels: 1 of 3 labels are outside [0, 1]: labels[2] = 1.5

    References:
        `jax.experimental.checkify`.

    See also:
        `softmax_cross_entropy`, `sigmoid_binary_cross_entropy`, `class_counts`.
    """
    fn = "check_labels"
    if isinstance(labels, SparseLabels):
        labels = labels.ids
    num_classes = None if num_classes is None else arguments.as_num_classes(fn, num_classes)
    ignored = arguments.as_ignore_index(fn, ignore_index)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(labels)):
        array, ignored = arguments.as_labels(fn, "labels", labels, ignored)
        _check_dtype(fn, array.dtype, num_classes)
        _check_traced(array, num_classes, ignored)
    else:
        array = arguments.as_concrete(fn, "labels", labels)
        _check_dtype(fn, array.dtype, num_classes)
        _check_concrete(array, num_classes, ignored)


def _check_dtype(fn: str, dtype: Any, num_classes: int | None) -> None:
    if num_classes is None:
        arguments.check_binary_dtype(fn, "labels", dtype)
    else:
        arguments.check_ids_dtype(fn, "labels", dtype, "; for binary labels pass num_classes=None")


def _check_concrete(labels: np.ndarray, num_classes: int | None, ignored: int | None) -> None:
    is_bad = ~_are_binary(labels) if num_classes is None else (labels < 0) | (labels >= num_classes)
    if ignored is not None:
        is_bad &= labels != ignored
    positions = np.argwhere(is_bad)
    if len(positions) == 0:
        return
    places = [f"[{', '.join(map(str, position))}]" if labels.ndim else "" for position in positions[:_NUM_SHOWN]]
    bad = labels[is_bad]
    shown = ", ".join(f"labels{place} = {value!s}" for place, value in zip(places, bad, strict=False))
    more = ", …" if len(bad) > _NUM_SHOWN else ""
    message = f"{_complaint(len(bad), labels.size, num_classes, ignored)}: {shown}{more}"
    if ignored is None and np.all(bad == bad[0]) and len(bad) > 1:
        meant = f"where=labels != {bad[0]!s} in the loss" if num_classes is None else f"ignore_index={bad[0]}"
        message += f"; did you mean {meant}?"
    raise ValueError(message)


def _check_traced(labels: Array, num_classes: int | None, ignored: int | None) -> None:
    if labels.dtype == jnp.bool_:
        return
    is_bad = ~_are_binary(labels) if num_classes is None else checked_ids(labels, num_classes) < 0
    if jnp.issubdtype(labels.dtype, jnp.integer):
        limits, kept = jnp.iinfo(labels.dtype), not_ignored(labels, ignored)
    else:
        limits, kept = jnp.finfo(labels.dtype), None if ignored is None else labels != float(ignored)
    is_bad = is_bad if kept is None else is_bad & kept
    checkify.check(
        ~jnp.any(is_bad),
        _complaint("{count:.0f}", labels.size, num_classes, ignored) + ", ranging from {lowest} to {highest}",
        count=count(is_bad, tuple(range(is_bad.ndim)), jnp.float32),
        lowest=jnp.min(labels, initial=limits.max, where=is_bad),
        highest=jnp.max(labels, initial=limits.min, where=is_bad),
    )


def _are_binary(labels: Any) -> Any:
    """Whether each label is in [0, 1], allowing for rounding; NaN is not."""
    if not jnp.issubdtype(labels.dtype, jnp.floating):
        return (labels == 0) | (labels == 1)
    return (labels >= -arguments.ROUNDING) & (labels <= 1 + arguments.ROUNDING)


def _complaint(count: int | str, size: int, num_classes: int | None, ignored: int | None) -> str:
    allowed = "" if ignored is None else f" and not ignore_index={ignored}"
    interval = "[0, 1]" if num_classes is None else f"[0, {num_classes})"
    return f"check_labels: {count} of {size} labels are outside {interval}{allowed}"
