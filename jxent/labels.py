"""Are these labels what the losses take them for?"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.experimental import checkify

from jxent._core import arguments
from jxent._core.signatures import ArrayLike
from jxent._core.targets import checked_ids, counted_ids

_NUM_SHOWN = 5


def check_labels(labels: ArrayLike, num_classes: int, *, ignore_index: int | None = None) -> None:
    """Raises if any class id is outside [0, V): what the losses answer with NaN, where they see it.

    Call it where the labels are concrete, in the data pipeline or on a first batch. There it is plain NumPy: it waits
    for the labels, and compiles nothing. An array that is concrete is so inside a traced function too.

    On traced labels it is a `jax.experimental.checkify.check`: in `jax.jit(checkify.checkify(step))` the error comes
    back as a value beside the result. Tracing `step` without `checkify.checkify` raises JAX's own ValueError, that a
    check was not functionalized; so leave it out of what is not meant for it.

    Args:
        labels: class ids, integers of any shape.
        num_classes: V, a static integer.
        ignore_index: a static integer that is allowed too.

    Returns:
        None.

    Raises:
        TypeError: a dtype or a kind of argument does not fit (labels that are no integers, a traced `num_classes`).
        ValueError: labels are out of range: the message says how many, which are the first, and what is allowed; or
            `num_classes` is below 1; or, on traced labels, there is no checkify around.

    Gradients:
        None.

    Example:
        >>> import jxent
        >>> jxent.check_labels([0, 9, -100], 10, ignore_index=-100)
        >>> jxent.check_labels([0, 10, 3, -1], 10)
        Traceback (most recent call last):
        ValueError: check_labels: 2 of 4 labels are outside [0, 10): labels[1] = 10, labels[3] = -1

    References:
        `jax.experimental.checkify`.

    See also:
        `softmax_cross_entropy`, `class_counts`.
    """
    fn = "check_labels"
    num_classes = arguments.as_num_classes(fn, num_classes)
    ignored = arguments.as_ignore_index(fn, ignore_index)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(labels)):
        _check_traced(arguments.as_ids(fn, "labels", labels, ignored), num_classes, ignored)
    else:
        _check_concrete(arguments.as_concrete_ids(fn, "labels", labels), num_classes, ignored)


def _check_concrete(ids: np.ndarray, num_classes: int, ignored: int | None) -> None:
    is_bad = (ids < 0) | (ids >= num_classes)
    if ignored is not None:
        is_bad &= ids != ignored
    positions = np.argwhere(is_bad)
    if len(positions) == 0:
        return
    places = [f"[{', '.join(map(str, position))}]" if ids.ndim else "" for position in positions[:_NUM_SHOWN]]
    bad = ids[is_bad]
    shown = ", ".join(f"labels{place} = {value}" for place, value in zip(places, bad, strict=False))
    more = ", …" if len(bad) > _NUM_SHOWN else ""
    message = f"{_complaint(len(bad), ids.size, num_classes, ignored)}: {shown}{more}"
    if ignored is None and np.all(bad == bad[0]) and len(bad) > 1:
        message += f"; did you mean ignore_index={bad[0]}?"
    raise ValueError(message)


def _check_traced(ids: Array, num_classes: int, ignored: int | None) -> None:
    is_bad, counted = checked_ids(ids, num_classes) < 0, counted_ids(ids, ignored)
    is_bad = is_bad if counted is None else is_bad & counted
    limits = jnp.iinfo(ids.dtype)
    checkify.check(
        ~jnp.any(is_bad),
        _complaint("{count}", ids.size, num_classes, ignored) + ": they go from {lowest} to {highest}",
        count=jnp.sum(is_bad, dtype=jnp.int32),
        lowest=jnp.min(ids, initial=limits.max, where=is_bad),
        highest=jnp.max(ids, initial=limits.min, where=is_bad),
    )


def _complaint(count: int | str, size: int, num_classes: int, ignored: int | None) -> str:
    allowed = "" if ignored is None else f" and not ignore_index={ignored}"
    return f"check_labels: {count} of {size} labels are outside [0, {num_classes}){allowed}"
