"""Every public loss in one list, so that each property is tested on all of them."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import jxent
from tests import oracle

NUM_CLASSES = 5


@dataclass(frozen=True)
class Loss:
    """A public loss with labels of one kind.

    Attributes:
        name: of the function, and of the kind of labels.
        call: the function, `call(scores, labels, **options)`.
        oracle: its rows and row weights by the textbook, `oracle(scores, labels, **options)`.
        scores: makes scores, `scores(rng, rows)`, float64 NumPy, with the class axis last where there is one.
        labels: makes labels, `labels(rng, rows)`.
        is_binary: whether every element is a row.
    """

    name: str
    call: Callable[..., Any]
    oracle: Callable[..., Any]
    scores: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    labels: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]
    is_binary: bool

    def takes(self, option: str) -> bool:
        return option in inspect.signature(self.call).parameters

    @property
    def has_ids(self) -> bool:
        return self.name.endswith("ids")

    @property
    def has_float_labels(self) -> bool:
        return not self.has_ids

    def inputs(self, rng: np.random.Generator, rows: tuple[int, ...], dtype: Any = np.float32):
        """Scores and labels; for a binary loss NUM_CLASSES columns are the last axis of both."""
        labels = self.labels(rng, rows)
        return self.scores(rng, rows).astype(dtype), labels if self.has_ids else labels.astype(dtype)

    def rows(self, scores: np.ndarray) -> tuple[int, ...]:
        return scores.shape if self.is_binary else scores.shape[:-1]


def _logits(rng, rows):
    return 3 * rng.normal(size=(*rows, NUM_CLASSES))


def _probs(rng, rows):
    return rng.dirichlet(np.ones(NUM_CLASSES), rows)


def _log_probs(rng, rows):
    return np.log(_probs(rng, rows))


def _ids(rng, rows):
    return rng.integers(NUM_CLASSES, size=rows, dtype=np.int32)


def _unit(rng, rows):
    return rng.uniform(0.05, 0.95, size=(*rows, NUM_CLASSES))


def _bits(rng, rows):
    return rng.integers(2, size=(*rows, NUM_CLASSES)).astype(np.float64)


LOSSES = [
    Loss("softmax_cross_entropy-ids", jxent.softmax_cross_entropy, oracle.softmax_rows, _logits, _ids, False),
    Loss("softmax_cross_entropy-soft", jxent.softmax_cross_entropy, oracle.softmax_rows, _logits, _probs, False),
    Loss("cross_entropy_from_probs-ids", jxent.cross_entropy_from_probs, oracle.prob_rows, _probs, _ids, False),
    Loss("cross_entropy_from_probs-soft", jxent.cross_entropy_from_probs, oracle.prob_rows, _probs, _probs, False),
    Loss(
        "cross_entropy_from_log_probs-ids",
        jxent.cross_entropy_from_log_probs,
        oracle.log_prob_rows,
        _log_probs,
        _ids,
        False,
    ),
    Loss(
        "cross_entropy_from_log_probs-soft",
        jxent.cross_entropy_from_log_probs,
        oracle.log_prob_rows,
        _log_probs,
        _probs,
        False,
    ),
    Loss(
        "sigmoid_binary_cross_entropy-hard",
        jxent.sigmoid_binary_cross_entropy,
        oracle.sigmoid_elements,
        _logits,
        _bits,
        True,
    ),
    Loss(
        "sigmoid_binary_cross_entropy-soft",
        jxent.sigmoid_binary_cross_entropy,
        oracle.sigmoid_elements,
        _logits,
        _unit,
        True,
    ),
    Loss(
        "binary_cross_entropy_from_probs-soft",
        jxent.binary_cross_entropy_from_probs,
        oracle.prob_elements,
        _unit,
        _unit,
        True,
    ),
]
# Each is one of LOSSES with a step more between its rows and the reduction. Checks, targets, rows and reduction are the
# same functions, which the tests of LOSSES exercise; the tests that take these too are those that the new step may fail.
VARIANTS = [
    Loss("softmax_focal_loss-ids", jxent.softmax_focal_loss, oracle.softmax_focal_rows, _logits, _ids, False),
    Loss("softmax_focal_loss-soft", jxent.softmax_focal_loss, oracle.softmax_focal_rows, _logits, _probs, False),
    Loss("poly1_cross_entropy-ids", jxent.poly1_cross_entropy, oracle.poly1_rows, _logits, _ids, False),
    Loss("poly1_cross_entropy-soft", jxent.poly1_cross_entropy, oracle.poly1_rows, _logits, _probs, False),
    Loss("sigmoid_focal_loss-soft", jxent.sigmoid_focal_loss, oracle.sigmoid_focal_elements, _logits, _unit, True),
]
MULTICLASS = [loss for loss in LOSSES if not loss.is_binary]
BINARY = [loss for loss in LOSSES if loss.is_binary]

# Relative to the largest number compared.
TOLERANCE = {"float64": 1e-12, "float32": 3e-6, "bfloat16": 2e-2, "float16": 2e-3}


def assert_close(actual: Any, expected: Any, dtype: Any = np.float32, factor: float = 1.0) -> None:
    """Elementwise, within the tolerance of `dtype`, absolutely where the numbers are below 1."""
    tolerance = factor * TOLERANCE[np.dtype(dtype).name]
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=tolerance, atol=tolerance)


def by_name(losses: list[Loss]) -> dict[str, Any]:
    """Arguments of `pytest.mark.parametrize` after the name of the parameter."""
    return {"argvalues": losses, "ids": [loss.name for loss in losses]}
