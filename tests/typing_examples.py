"""Calls as users write them, with the types that a checker must find: pyright reads this file, test_typing runs it.

Each function yields a value and the class it must have at run time. Every `pyright: ignore` marks an error that pyright
must report: one that it does not is an error in itself.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Callable, Iterator
from typing import Any, Literal, assert_type

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

import jxent
from jxent import CrossEntropyAux, LogProbs, Mean

Example = Iterator[tuple[object, type]]
ROWS = [[2.0, 0.0], [0.0, 1.0]]
PROBS = [[0.75, 0.25], [0.5, 0.5]]


def reductions() -> Example:
    """What `reduction` says, the result is."""
    yield assert_type(jxent.softmax_cross_entropy(ROWS, [0, 1]), Array), Array
    yield assert_type(jxent.softmax_cross_entropy(ROWS, [0, 1], reduction="none"), Array), Array
    yield assert_type(jxent.softmax_cross_entropy(ROWS, [0, 1], reduction="sum"), Array), Array
    yield assert_type(jxent.softmax_cross_entropy(ROWS, [0, 1], reduction="mean"), Array), Array
    yield assert_type(jxent.softmax_cross_entropy(ROWS, [0, 1], reduction="partial"), Mean), Mean


def every_loss() -> Example:
    yield assert_type(jxent.linear_softmax_cross_entropy(ROWS, PROBS, [0, 1]), Array), Array
    yield assert_type(jxent.linear_softmax_cross_entropy(ROWS, PROBS, [0, 1], reduction="partial"), Mean), Mean
    yield assert_type(jxent.cross_entropy_from_probs(PROBS, [0, 1]), Array), Array
    yield assert_type(jxent.cross_entropy_from_probs(PROBS, [0, 1], reduction="partial"), Mean), Mean
    yield assert_type(jxent.cross_entropy_from_log_probs(ROWS, [0, 1]), Array), Array
    yield assert_type(jxent.cross_entropy_from_log_probs(ROWS, [0, 1], reduction="partial"), Mean), Mean
    yield assert_type(jxent.sigmoid_binary_cross_entropy(ROWS, PROBS), Array), Array
    yield assert_type(jxent.sigmoid_binary_cross_entropy(ROWS, PROBS, reduction="partial"), Mean), Mean
    yield assert_type(jxent.binary_cross_entropy_from_probs(PROBS, PROBS), Array), Array
    yield assert_type(jxent.binary_cross_entropy_from_probs(PROBS, PROBS, reduction="partial"), Mean), Mean


def variants() -> Example:
    yield assert_type(jxent.softmax_focal_loss(ROWS, [0, 1], gamma=1), Array), Array
    yield assert_type(jxent.softmax_focal_loss(ROWS, [0, 1], reduction="partial"), Mean), Mean
    yield assert_type(jxent.poly1_cross_entropy(ROWS, PROBS, epsilon=jnp.float32(1)), Array), Array
    yield assert_type(jxent.poly1_cross_entropy(ROWS, PROBS, reduction="partial"), Mean), Mean
    yield assert_type(jxent.sigmoid_focal_loss(ROWS, PROBS, alpha=[0.25, 0.5]), Array), Array
    yield assert_type(jxent.sigmoid_focal_loss(ROWS, PROBS, reduction="partial"), Mean), Mean


def aux() -> Example:
    rows, of_rows = assert_type(
        jxent.softmax_cross_entropy(ROWS, [0, 1], return_aux=True), tuple[Array, CrossEntropyAux]
    )
    mean, of_mean = assert_type(
        jxent.softmax_cross_entropy(ROWS, [0, 1], reduction="partial", return_aux=True), tuple[Mean, CrossEntropyAux]
    )
    yield from [(rows, Array), (of_rows, CrossEntropyAux), (mean, Mean), (of_mean.predicted, Array)]
    yield assert_type(jxent.softmax_cross_entropy(ROWS, [0, 1], return_aux=False), Array), Array
    fused, of_fused = assert_type(
        jxent.linear_softmax_cross_entropy(ROWS, ROWS, [0, 1], bias=[0.0, 1.0], chunk_size=1, return_aux=True),
        tuple[Array, CrossEntropyAux],
    )
    yield from [(fused, Array), (of_fused, CrossEntropyAux)]


def log_probs() -> Example:
    def row_loss(log_prob: Array, entropy: Array, advantage: Array) -> Array:
        return -advantage * log_prob - 0.01 * entropy

    yield assert_type(jxent.softmax_log_probs(ROWS, [0, 1]), Array), Array
    yield assert_type(jxent.softmax_log_probs(ROWS, [0, 1], return_entropy=True), LogProbs), LogProbs
    yield assert_type(jxent.linear_softmax_log_probs(ROWS, PROBS, [[0, 1], [1, 1]], chunk_size=1), Array), Array
    both = assert_type(jxent.linear_softmax_log_probs(ROWS, PROBS, [0, 1], return_entropy=True), LogProbs)
    yield from [(both, LogProbs), (both.entropy, Array)]
    yield assert_type(jxent.linear_softmax_loss(row_loss, ROWS, PROBS, [0, 1], [1.0, -1.0]), Array), Array
    total = jxent.linear_softmax_loss(row_loss, ROWS, PROBS, [0, 1], [1.0, -1.0], reduction="partial")
    yield assert_type(total, Mean), Mean


def teachers() -> Example:
    labels = jxent.SparseLabels(jnp.array([[0, 1], [1, 0]]), jnp.array(PROBS))
    yield assert_type(jxent.softmax_cross_entropy(ROWS, labels), Array), Array
    yield assert_type(jxent.linear_softmax_cross_entropy(ROWS, PROBS, labels, reduction="partial"), Mean), Mean
    yield assert_type(jxent.cross_entropy_from_probs(PROBS, labels), Array), Array
    yield assert_type(jxent.softmax_distillation(ROWS, PROBS, temperature=2, beta=0.5), Array), Array
    yield assert_type(jxent.softmax_distillation(ROWS, PROBS, reduction="partial"), Mean), Mean
    yield assert_type(jxent.linear_softmax_distillation(ROWS, PROBS, ROWS, PROBS, reduction="mean"), Array), Array


def options_known_at_run_time_only(reduction: str = "partial", return_aux: bool = True) -> Example:
    """A plain `str` or `bool` tells the checker nothing."""
    yield assert_type(jxent.softmax_cross_entropy(ROWS, [0, 1], reduction=reduction), Any), Mean
    yield assert_type(jxent.softmax_cross_entropy(ROWS, [0, 1], return_aux=return_aux), Any), tuple
    yield assert_type(jxent.sigmoid_binary_cross_entropy(ROWS, PROBS, reduction=reduction), Any), Mean


def wrapper(reduction: Literal["sum", "mean"] = "mean") -> Example:
    """A function of the user's own keeps the type with a Literal."""
    yield assert_type(jxent.softmax_cross_entropy(ROWS, [0, 1], reduction=reduction), Array), Array


def arrays_of_every_kind() -> Example:
    """Lists, tuples, NumPy and jax arrays, scalars; and all of them as options."""
    labels, mask = np.array([0, 1]), [True, False]
    yield assert_type(jxent.softmax_cross_entropy(np.array(ROWS), labels), Array), Array
    yield assert_type(jxent.softmax_cross_entropy(jnp.array(ROWS), ((0.5, 0.5), (1.0, 0.0))), Array), Array
    yield assert_type(jxent.softmax_cross_entropy([jnp.ones(2), np.zeros(2)], [np.int32(0), 1]), Array), Array
    yield (
        assert_type(
            jxent.softmax_cross_entropy(
                ROWS,
                labels,
                class_weight=[1, 2.0],
                sample_weight=np.ones(2),
                where=mask,
                ignore_index=-100,
                label_smoothing=np.float32(0.1),
                z_loss=jnp.float32(1e-4),
                axis=-1,
            ),
            Array,
        ),
        Array,
    )
    yield assert_type(jxent.sigmoid_binary_cross_entropy(2.0, True, pos_weight=3), Array), Array
    yield assert_type(jxent.weighted_mean([1, 0, 1], where=[True, True, False], axis=0, empty=np.nan), Array), Array


def means() -> Example:
    part = jxent.softmax_cross_entropy(ROWS, [0, 1], reduction="partial")
    yield assert_type(part + part, Mean), Mean
    yield assert_type(part.value(empty=1), Array), Array
    yield assert_type((part + part).total, Array), Array


def helpers() -> Example:
    counts = jxent.class_counts([0, 1, 1], 2, where=np.array([True, True, False]))
    yield assert_type(counts, Array), Array
    yield assert_type(jxent.balanced_class_weights([3, 1]), Array), Array
    yield assert_type(jxent.effective_number_weights(counts, beta=0.9), Array), Array
    yield assert_type(jxent.log_prior_adjustment(np.array([3, 1]), tau=jnp.float32(1)), Array), Array
    yield assert_type(jxent.check_labels([0, 1], 2, ignore_index=-100), None), type(None)


def transformed() -> Example:
    def loss_fn(logits: Array, labels: Array) -> Array:
        return jxent.softmax_cross_entropy(logits, labels, reduction="mean")

    loss, gradient = jax.jit(jax.value_and_grad(loss_fn))(jnp.array(ROWS), jnp.array([0, 1]))
    yield from [(loss, Array), (gradient, Array)]


def mistakes() -> list[Callable[[], object]]:
    """What a checker refuses, the library refuses too."""
    call, partial = jxent.softmax_cross_entropy, jxent.softmax_cross_entropy(ROWS, [0, 1], reduction="partial")
    return [
        lambda: call(ROWS),  # pyright: ignore[reportCallIssue]
        lambda: call(ROWS, [0, 1], "mean"),  # pyright: ignore[reportCallIssue]
        lambda: call(ROWS, [0, 1], weight=[1, 2]),  # pyright: ignore[reportCallIssue]
        lambda: call(ROWS, [0, 1], reduction=None),  # pyright: ignore[reportCallIssue, reportArgumentType]
        lambda: call(ROWS, [0, 1], return_aux="yes"),  # pyright: ignore[reportCallIssue, reportArgumentType]
        lambda: call(ROWS, [0, 1], ignore_index=0.5),  # pyright: ignore[reportCallIssue, reportArgumentType]
        lambda: call(ROWS, ["cat", "dog"]),  # pyright: ignore[reportCallIssue, reportArgumentType]
        lambda: partial / 2,  # pyright: ignore[reportOperatorIssue]
    ]
