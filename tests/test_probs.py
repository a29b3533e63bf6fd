"""What holds for the losses from probabilities alone; what they share with the others is in test_softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from tests.losses import assert_close
from tests.pairs import all_pairs

from_probs = jxent.cross_entropy_from_probs
from_log_probs = jxent.cross_entropy_from_log_probs
binary = jxent.binary_cross_entropy_from_probs


@pytest.mark.parametrize("soft", [False, True])
def test_probs_of_zero_cost_100_and_still_push(soft):
    probs = np.array([[0.0, 1.0], [1e-13, 1.0], [0.5, 0.5]], np.float32)
    labels = np.eye(2, dtype=np.float32)[[0, 0, 0]] if soft else np.zeros(3, np.int32)
    value, pull = jax.vjp(lambda p: from_probs(p, labels), probs)
    assert_close(value, [100, -np.log(1e-13), np.log(2)])
    np.testing.assert_allclose(pull(jnp.ones(3))[0], [[-1e12, 0], [-1e12, 0], [-2, 0]], rtol=1e-6)


def test_binary_probs_of_zero_and_one_cost_100_and_still_push():
    probs, labels = np.array([0.0, 1.0, 0.0, 1.0], np.float32), np.array([1, 0, 0, 1])
    value, pull = jax.vjp(lambda p: binary(p, labels), probs)
    assert_close(value, [100, 100, 0, 0])
    np.testing.assert_allclose(pull(jnp.ones(4))[0], [-1e12, 1e12, 1, -1], rtol=1e-6)


@pytest.mark.parametrize("loss", [binary, from_probs])
def test_float16_gradients_are_clipped_to_what_it_holds(loss):
    probs = np.array([0.0], np.float16)
    labels = np.array(1) if loss is binary else np.array(0)
    gradient = jax.grad(lambda p: loss(p[0] if loss is binary else p, labels))(probs)
    assert gradient.dtype == jnp.float16
    np.testing.assert_array_equal(gradient, [-65504])


def test_probs_are_never_renormalised():
    probs = np.array([[0.2, 0.2], [2.0, 0.5]], np.float32)
    assert_close(from_probs(probs, [0, 0]), -np.log([0.2, 2.0]))
    assert_close(from_log_probs(np.array([[1.0, -1.0]], np.float32), [0]), [-1])


def test_small_binary_probs_keep_their_digits():
    p = np.float32(1e-10)
    np.testing.assert_allclose(binary(p, 0), 1e-10, rtol=1e-6)


def test_smoothing_of_probs_counts_every_class_and_of_log_probs_the_live_ones():
    probs = np.array([[0.5, 0.5, 0.0]], np.float32)
    assert_close(from_probs(probs, [0], label_smoothing=0.3), [0.9 * np.log(2) + 0.1 * 100])
    with np.errstate(divide="ignore"):
        assert_close(from_log_probs(np.log(probs), [0], label_smoothing=0.3), [np.log(2)])


def test_log_probs_gradient_is_minus_the_target(rng):
    log_probs = np.log(rng.dirichlet(np.ones(4), 3)).astype(np.float32)
    soft, weight = rng.dirichlet(np.ones(4), 3).astype(np.float32), np.array([1.0, 2, 3, 4], np.float32)
    d_log_probs, d_soft = jax.grad(lambda lp, q: from_log_probs(lp, q, class_weight=weight, reduction="sum"), (0, 1))(
        log_probs, soft
    )
    assert_close(d_log_probs, -weight[None] * soft)
    assert_close(d_soft, -weight[None] * log_probs)


def test_log_probs_label_on_a_masked_class_is_inf():
    log_probs = np.array([[0.0, -np.inf], [0.0, -np.inf]], np.float32)
    for labels in (np.array([0, 1]), np.eye(2, dtype=np.float32)):
        value, pull = jax.vjp(lambda lp, labels=labels: from_log_probs(lp, labels), log_probs)
        np.testing.assert_array_equal(value, [0, np.inf])
        np.testing.assert_array_equal(pull(jnp.ones(2))[0], [[-1, 0], [0, -1]])


MULTICLASS = pytest.mark.parametrize("loss", [from_probs, from_log_probs], ids=lambda f: f.__name__)
# Numbers that are no probability, and no log-probability.
BAD = {from_probs: [np.nan, np.inf, -0.5, -0.002], from_log_probs: [np.nan, np.inf]}
EACH_BAD = pytest.mark.parametrize(
    ("loss", "bad"),
    [pytest.param(loss, value, id=f"{loss.__name__}-{value}") for loss, values in BAD.items() for value in values],
)


def rows_and_gradient(loss, scores, labels, **options):
    """The result of each row, eager and compiled alike."""
    value, gradient = (f(lambda s: loss(s, labels, **options)) for f in (lambda f: f, per_row_gradient))
    np.testing.assert_allclose(value(scores), jax.jit(value)(scores), rtol=1e-6)
    np.testing.assert_allclose(gradient(scores), jax.jit(gradient)(scores), rtol=1e-6)
    return np.asarray(value(scores)), np.asarray(gradient(scores))


def per_row_gradient(f):
    return jax.grad(lambda scores: f(scores).sum())


@EACH_BAD
def test_ids_read_one_entry_and_nothing_else(loss, bad):
    scores = np.array([[0.5, bad, 0.5], [0.5, bad, 0.5]], np.float32)
    scores[:, 0] = 0.5 if loss is from_probs else np.log(0.5)
    value, gradient = rows_and_gradient(loss, scores, np.array([0, 1]))
    assert_close(value[0], np.log(2))
    np.testing.assert_allclose(gradient[0], [-2 if loss is from_probs else -1, 0, 0], rtol=1e-6)
    assert np.isnan(value[1])
    np.testing.assert_array_equal(np.isnan(gradient[1]), [False, True, False])


@EACH_BAD
@pytest.mark.parametrize(
    ("num_classes", "options"),
    [(3, {}), (9000, {}), (9000, {"label_smoothing": 0.1}), (3, {"class_weight": [1.0, 2.0, 3.0]})],
)
def test_what_is_no_probability_is_nan_in_loss_and_gradient(loss, bad, options, num_classes):
    rest = np.full((2, num_classes - 3), 0.25, np.float32)
    scores = np.concatenate([np.array([[0.5, bad, 0.25], [0.5, 0.25, 0.25]], np.float32), rest], 1)
    if "class_weight" in options:
        options = {"class_weight": np.ones(num_classes, np.float32)}
    for labels in (np.eye(num_classes, dtype=np.float32)[[0, 0]], np.eye(num_classes, dtype=np.float32)[[1, 1]]):
        value, gradient = rows_and_gradient(loss, scores, labels, **options)
        np.testing.assert_array_equal(np.isnan(value), [True, False])
        np.testing.assert_array_equal(np.isnan(gradient).any(1), [True, False])
    if "label_smoothing" in options:
        value, gradient = rows_and_gradient(loss, scores, np.array([0, 0]), **options)
        np.testing.assert_array_equal(np.isnan(value), [True, False])
        np.testing.assert_array_equal(np.isnan(gradient).any(1), [True, False])


@EACH_BAD
@pytest.mark.parametrize("kind", ["ids", "distributions"])
@pytest.mark.parametrize("smoothing", [0, 0.1])
def test_masked_rows_are_zero_whatever_they_hold(loss, bad, kind, smoothing):
    scores, sample_weight = np.full((2, 3), bad, np.float32), np.array([np.nan, 1], np.float32)
    scores[1] = 0.25
    labels = np.array([-7, 1]) if kind == "ids" else np.full((2, 3), [[bad], [1 / 3]], np.float32)
    options = {"where": np.array([False, True]), "sample_weight": sample_weight, "label_smoothing": smoothing}
    value, gradient = rows_and_gradient(loss, scores, labels, **options)
    np.testing.assert_array_equal(value[0], 0)
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.isfinite(gradient[1]).all()
    assert value[1] != 0


@MULTICLASS
def test_bad_id_is_nan_in_the_whole_row(loss):
    value, gradient = rows_and_gradient(loss, np.full((3, 4), 0.25, np.float32), np.array([-1, 4, 0]))
    np.testing.assert_array_equal(np.isnan(value), [True, True, False])
    np.testing.assert_array_equal(np.isnan(gradient), np.tile([[True], [True], [False]], 4))


def test_log_probs_with_no_live_class():
    scores = np.full((1, 3), -np.inf, np.float32)
    for labels in (np.array([1]), np.eye(3, dtype=np.float32)[[1]]):
        value, gradient = rows_and_gradient(from_log_probs, scores, labels)
        assert value == np.inf
        np.testing.assert_array_equal(gradient, [[0, -1, 0]])
        value, gradient = rows_and_gradient(from_log_probs, scores, labels, label_smoothing=0.1)
        assert np.isnan(value).all()
        assert np.isnan(gradient).any()


def test_rounding_below_zero_is_zero():
    probs = np.array([[-1e-4, 1.0], [-0.0, 1.0]], np.float32)
    for labels in (np.array([0, 0]), np.eye(2, dtype=np.float32)[[0, 0]]):
        value, gradient = rows_and_gradient(from_probs, probs, labels)
        assert_close(value, [100, 100])
        np.testing.assert_allclose(gradient, [[-1e12, 0], [-1e12, 0]], rtol=1e-6)
    value, gradient = rows_and_gradient(binary, np.array([-1e-4, 1 + 1e-4], np.float32), np.array([1, 0]))
    assert_close(value, [100, 100])
    np.testing.assert_allclose(gradient, [-1e12, 1e12], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, -0.5, 1.5])
def test_binary_probability_that_is_none_is_nan_in_loss_and_gradient(bad):
    for label in (0.0, 1.0, 0.5):
        value, gradient = rows_and_gradient(binary, np.array([bad, 0.5], np.float32), np.full(2, label, np.float32))
        np.testing.assert_array_equal(np.isnan(value), [True, False])
        np.testing.assert_array_equal(np.isnan(gradient), [True, False])


WEIGHTS = [{}, {"class_weight": 4.0}, {"sample_weight": 1e6}, {"label_smoothing": 0.5, "class_weight": 16.0}]


@pytest.mark.parametrize("kind", ["ids", "distributions"])
@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_float16_gradients_are_finite_whatever_the_weights(kind, weights, reduction):
    """The cap comes after them: 1e12·w is beyond float16, and 0 times it is 0."""
    probs = np.array([[0, 1], [0, 1], [0.5, 0.5]], np.float16)
    options = dict(weights)
    if "class_weight" in options:
        options["class_weight"] = np.array([1.0, 0.5]) * options["class_weight"]
    if "sample_weight" in options:
        options["sample_weight"] = np.array([1.0, 0.0, 1.0]) * options["sample_weight"]
    labels = np.array([0, 0, 0]) if kind == "ids" else np.eye(2, dtype=np.float32)[[0, 0, 0]]
    gradient = jax.grad(lambda p: from_probs(p, labels, reduction=reduction, **options))(probs)
    assert gradient.dtype == jnp.float16
    assert np.isfinite(gradient).all()
    if reduction == "sum":
        # A smoothed class has two slopes, each capped at one half of what float16 holds.
        np.testing.assert_array_equal(gradient[0, 0], -65504)
    assert gradient[1, 0] == 0 if "sample_weight" in options else gradient[1, 0] < -100


@pytest.mark.parametrize("weights", [{"pos_weight": 4.0}, {"class_weight": [3.0]}, {"sample_weight": [[1e6]]}], ids=str)
def test_float16_gradients_of_the_binary_loss_are_finite_whatever_the_weights(weights):
    gradient = jax.grad(lambda p: binary(p, [[1]], reduction="sum", **weights))(np.zeros((1, 1), np.float16))
    np.testing.assert_array_equal(gradient, [[-65504]])
    zero = {name: np.zeros(np.shape(weight)) for name, weight in weights.items()}
    gradient = jax.grad(lambda p: binary(p, [[1]], reduction="sum", **zero))(np.zeros((1, 1), np.float16))
    np.testing.assert_array_equal(gradient, [[0]])


def test_wider_gradients_are_not_capped():
    for dtype in (jnp.bfloat16, jnp.float32):
        gradient = jax.grad(lambda p: from_probs(p, 0, class_weight=[8.0, 1.0]))(jnp.array([0, 1], dtype))
        np.testing.assert_allclose(np.asarray(gradient, np.float32), [-8e12, 0], rtol=1e-2)


@pytest.mark.parametrize("smoothing", [0, 1e-3, jnp.float32(0)], ids=["static 0", "1e-3", "traced 0"])
@pytest.mark.parametrize("num_classes", [5, 40, 9000])
def test_log_probs_of_the_lowest_number_do_not_overflow(smoothing, num_classes):
    lowest = np.finfo(np.float32).min
    scores = np.full((1, num_classes), lowest, np.float32)
    scores[:, :3] = np.log([0.5, 0.25, 0.25])
    exact = -(1 - float(smoothing)) * np.log(0.5) - float(smoothing) * np.mean(np.float64(scores))
    for labels in (np.array([0]), np.eye(num_classes, dtype=np.float32)[[0]]):
        value, gradient = rows_and_gradient(from_log_probs, scores, labels, label_smoothing=smoothing)
        np.testing.assert_allclose(value, [exact], rtol=1e-5)
        np.testing.assert_allclose(gradient.sum(), -1, rtol=1e-5)


@pytest.mark.parametrize("soft", [False, True])
def test_a_weight_of_zero_silences_a_label_on_a_dead_class(soft):
    log_probs, weight = np.array([[0.0, -np.inf]], np.float32), np.array([1.0, 0.0], np.float32)
    labels = np.eye(2, dtype=np.float32)[[1]] if soft else np.array([1])

    def loss(log_probs, weight, row_weight):
        return from_log_probs(log_probs, labels, class_weight=weight, sample_weight=row_weight, reduction="sum")

    for w, row in ((weight, np.ones(1, np.float32)), (np.ones(2, np.float32), np.zeros(1, np.float32))):
        value, grads = jax.value_and_grad(loss, (0, 1, 2))(log_probs, w, row)
        assert value == 0
        assert not np.isnan(np.concatenate([np.ravel(g) for g in grads[:1]])).any()
        np.testing.assert_array_equal(grads[0], 0)
    assert from_log_probs(log_probs, labels, label_smoothing=1.0) == 0
    gradient = jax.grad(lambda w: from_log_probs(log_probs, labels, class_weight=w, label_smoothing=1.0).sum())(weight)
    np.testing.assert_array_equal(gradient, [0, 0])


@MULTICLASS
@pytest.mark.parametrize(
    *all_pairs(dtype=[jnp.float32, jnp.bfloat16, jnp.float16], num_classes=[20, 1000, 9000], options=["plain", "all"])
)
def test_distributions_equal_float64(loss, dtype, num_classes, options, rng):
    n = 6
    probs = jnp.asarray(rng.dirichlet(np.ones(num_classes), n), dtype)
    scores = probs if loss is from_probs else jnp.log(jnp.maximum(probs, 1e-7))
    q, w = (
        rng.dirichlet(np.ones(num_classes), n).astype(np.float32),
        rng.uniform(0.5, 2, num_classes).astype(np.float32),
    )
    where, s = rng.uniform(size=n) < 0.7, rng.uniform(0.5, 2, n).astype(np.float32)
    chosen = {"class_weight": w, "where": where, "sample_weight": s, "label_smoothing": 0.1} if options == "all" else {}
    x = np.asarray(scores, np.float64)
    with np.errstate(divide="ignore"):
        log_p = np.maximum(np.log(x), -100) if loss is from_probs else x
    smoothed = 0.9 * q.astype(np.float64) + 0.1 / num_classes if chosen else q.astype(np.float64)
    exact = -np.sum((w if chosen else 1) * smoothed * log_p, 1) * (s * where if chosen else 1)
    np.testing.assert_allclose(loss(scores, q, **chosen), exact, rtol=3e-6, atol=1e-6)
    gradient = jax.grad(lambda x: loss(x, q, reduction="sum", **chosen))(scores)
    slope = 1 / np.maximum(x, 1e-12) if loss is from_probs else 1
    exact = -(w if chosen else 1) * smoothed * slope * ((s * where)[:, None] if chosen else 1)
    assert gradient.dtype == dtype
    tolerance = {"float32": 1e-6, "bfloat16": 5e-3, "float16": 1e-3}[jnp.dtype(dtype).name]
    expected = np.clip(exact, -65504, 65504) if dtype == jnp.float16 else exact
    # A smoothed class of float16 may be capped sooner.
    is_free = np.abs(expected) < 65504 / 2
    np.testing.assert_allclose(np.asarray(gradient, np.float64)[is_free], expected[is_free], rtol=tolerance, atol=1e-6)
