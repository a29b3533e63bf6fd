"""What holds for the binary losses alone; what they share with the others is in test_softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jxent
from tests import oracle
from tests.losses import BINARY, assert_close, by_name

INF = np.inf


@pytest.mark.parametrize("shape", [(6,), (6, 4), (2, 3, 4)])
@pytest.mark.parametrize("labels_dtype", [np.bool_, np.int32, np.uint8, np.float32])
def test_sigmoid_matches_optax(shape, labels_dtype, rng):
    logits = rng.normal(size=shape).astype(np.float32)
    labels = rng.integers(2, size=shape).astype(labels_dtype)
    want = optax.sigmoid_binary_cross_entropy(logits, labels.astype(np.float32))
    assert_close(jxent.sigmoid_binary_cross_entropy(logits, labels), want)


@pytest.mark.parametrize("pos_weight", [3.0, np.array([0.5, 1.0, 2.0])], ids=["scalar", "columns"])
@pytest.mark.parametrize("loss", **by_name(BINARY))
def test_pos_weight_and_class_weight(loss, pos_weight, rng):
    scores, labels = loss.scores(rng, (4,))[:, :3], loss.labels(rng, (4,))[:, :3]
    options = {"pos_weight": pos_weight, "class_weight": np.array([1.0, 2.0, 4.0]), "label_smoothing": 0.2}
    rows, weight = loss.oracle(scores, labels, **options)
    for reduction in ("none", "sum", "mean"):
        got = loss.call(scores.astype(np.float32), labels.astype(np.float32), reduction=reduction, **options)
        assert_close(got, oracle.reduce(rows, weight, reduction=reduction))
    # pos_weight is never in the denominator, class_weight is.
    got = loss.call(scores.astype(np.float32), labels.astype(np.float32), reduction="partial", **options)
    assert got.weight == 4 * 7


def test_infinite_logits_are_right_in_every_direction():
    """Certain and right costs 0; certain and wrong costs inf, and still has a finite gradient by the logit."""
    logits, labels = np.array([INF, -INF, INF, -INF], np.float32), np.array([1.0, 0.0, 0.0, 1.0], np.float32)
    for run in (jxent.sigmoid_binary_cross_entropy, jax.jit(jxent.sigmoid_binary_cross_entropy)):
        value, pull = jax.vjp(run, logits, labels)
        np.testing.assert_array_equal(value, [0, 0, INF, INF])
        d_logits, d_labels = pull(jnp.ones(4))
        np.testing.assert_array_equal(d_logits, [0, 0, 1, -1])
        np.testing.assert_array_equal(d_labels, [-INF, INF, -INF, INF])
        _, tangent = jax.jvp(lambda x, run=run: run(x, labels), (logits,), (np.ones(4, np.float32),))
        np.testing.assert_array_equal(tangent, [0, 0, 1, -1])


@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("logit", [20.0, -20.0])
def test_second_derivative_of_a_confident_logit(logit, label):
    """σ·(1 − σ) with 1 − σ computed by subtraction is 0 here."""
    second = jax.grad(jax.grad(lambda x: jxent.sigmoid_binary_cross_entropy(x, label)))(np.float32(logit))
    np.testing.assert_allclose(second, np.exp(-20.0) / (1 + np.exp(-20.0)) ** 2, rtol=1e-6)


@pytest.mark.parametrize("loss", **by_name(BINARY))
def test_gradients_by_every_input(loss, rng, x64):
    scores, labels = loss.inputs(rng, (3,), np.float64)
    where = np.ones(scores.shape, bool)
    where[1, 2] = False
    inputs = {
        "scores": scores,
        "labels": labels,
        "pos_weight": rng.uniform(0.5, 2, 5),
        "class_weight": rng.uniform(0.5, 2, 5),
        "sample_weight": rng.uniform(0.5, 2, scores.shape),
        "label_smoothing": np.float64(0.1),
    }

    def ours(inputs):
        rest = {name: value for name, value in inputs.items() if name not in ("scores", "labels")}
        return loss.call(inputs["scores"], inputs["labels"], where=where, reduction="mean", **rest)

    def theirs(name, value):
        changed = inputs | {name: value}
        weight = changed.pop("sample_weight")
        rows = loss.oracle(changed.pop("scores"), changed.pop("labels"), **changed)
        return oracle.reduce(*rows, sample_weight=weight, where=where, reduction="mean")

    grads = jax.grad(ours)({name: jnp.asarray(value) for name, value in inputs.items()})
    for name, gradient in grads.items():
        want = oracle.numerical_gradient(lambda value, name=name: theirs(name, value), inputs[name])
        np.testing.assert_allclose(gradient, want, rtol=1e-7, atol=1e-8, err_msg=name)
