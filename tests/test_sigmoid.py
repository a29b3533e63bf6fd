"""What holds for the binary losses alone; what they share with the others is in test_softmax."""

import jax
import jax.monitoring
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


LOGITS = pytest.mark.parametrize(
    "loss", [jxent.sigmoid_binary_cross_entropy, jxent.sigmoid_focal_loss], ids=lambda f: f.__name__
)
EVERY = [jxent.sigmoid_binary_cross_entropy, jxent.sigmoid_focal_loss, jxent.binary_cross_entropy_from_probs]


@pytest.mark.parametrize("bad", [-1.0, 255.0, 1.01, -0.002, np.nan, INF])
@pytest.mark.parametrize("loss", EVERY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__)
def test_float_label_that_is_no_probability_is_nan(loss, bad, dtype):
    """As the integers −1 and 255 are; 0 where masked."""
    scores, labels = np.full(3, 0.3, np.float32), jnp.array([bad, 0.25, bad], dtype)
    value = loss(scores, labels, where=[True, True, False])
    np.testing.assert_array_equal(np.isnan(value), [True, False, False])
    grads = jax.grad(lambda s, y: loss(s, y, where=[True, True, False]).sum(), (0, 1))(scores, labels)
    for gradient in grads:
        np.testing.assert_array_equal(np.isnan(gradient), [True, False, False])
        assert gradient[2] == 0


@pytest.mark.parametrize("loss", EVERY, ids=lambda f: f.__name__)
def test_rounding_of_a_float_label_is_no_fault(loss):
    near = np.array([-5e-4, 1 + 5e-4], np.float32)
    np.testing.assert_allclose(
        loss(np.full(2, 0.3, np.float32), near), loss(np.full(2, 0.3, np.float32), near.round()), rtol=2e-3
    )


# Coefficients of 0 beside an infinite term, as constants and traced.
ZEROS = {
    "class_weight": {"class_weight": np.zeros(2, np.float32)},
    "sample_weight": {"sample_weight": np.zeros((1, 2), np.float32)},
    "alpha": {"alpha": np.float32(0)},
}


@pytest.mark.parametrize("zero", ZEROS)
@LOGITS
@pytest.mark.parametrize("soft", [False, True])
def test_a_weight_of_zero_silences_an_infinite_term_in_value_and_every_gradient(loss, zero, soft):
    names = (
        {"class_weight", "sample_weight"} if loss is jxent.sigmoid_binary_cross_entropy else {"alpha", "sample_weight"}
    )
    if zero not in names:
        return
    # A positive label and α = 0; else also a negative one.
    logits = np.array([[-INF, INF]], np.float32)
    labels = np.array([[1, 1 if zero == "alpha" else 0]], np.float32 if soft else np.int32)

    def total(logits, weights, labels=labels):
        return loss(logits, labels, reduction="sum", **weights)

    for run in (total, jax.jit(total)):
        assert run(logits, ZEROS[zero]) == 0
        np.testing.assert_array_equal(jax.grad(run)(logits, ZEROS[zero]), [[0, 0]])
    if soft:
        assert np.isfinite(jax.grad(total, 2)(logits, ZEROS[zero], labels)).all()


def test_pos_weight_of_zero_silences_the_positive_term():
    def total(logits, pos_weight):
        return jxent.sigmoid_binary_cross_entropy(logits, [1], pos_weight=pos_weight, reduction="sum")

    logits = np.array([-INF], np.float32)
    assert total(logits, 0.0) == 0
    for weight in (np.float32(0), np.zeros(1, np.float32)):
        value, gradient = jax.jit(jax.value_and_grad(total))(logits, weight)
        assert value == 0
        np.testing.assert_array_equal(gradient, [0])


def test_smoothing_silences_only_where_it_is_nothing():
    logits = np.array([INF, -INF], np.float32)
    value = jxent.sigmoid_binary_cross_entropy(logits, [1, 0], label_smoothing=jnp.float32(0))
    np.testing.assert_array_equal(value, [0, 0])
    slope = jax.grad(lambda e: jxent.sigmoid_binary_cross_entropy(logits, [1, 0], label_smoothing=e).sum())
    assert slope(jnp.float32(0)) == 0
    np.testing.assert_array_equal(jxent.sigmoid_binary_cross_entropy(logits, [1, 0], label_smoothing=0.1), [INF, INF])


@pytest.mark.parametrize("loss", EVERY, ids=lambda f: f.__name__)
def test_second_eager_gradient_compiles_nothing(loss):
    scores, labels = np.full((3, 2), 0.3, np.float32), np.full((3, 2), 0.25, np.float32)
    options = {"where": np.ones((3, 2), bool), "sample_weight": np.ones((3, 2), np.float32), "reduction": "mean"}

    def step():
        return jax.block_until_ready(jax.value_and_grad(lambda s: loss(s, labels, **options))(scores))

    step()
    compiled = []

    def listen(event, duration_secs, **kwargs):
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        step()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []
