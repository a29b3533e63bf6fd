"""What holds for the losses from probabilities alone; what they share with the others is in test_softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from tests.losses import assert_close

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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5])
def test_probs_that_are_none_give_nan(bad):
    probs = np.array([[0.5, bad, 0.5], [0.5, 0.25, 0.25]], np.float32)
    value, pull = jax.vjp(lambda p: from_probs(p, [0, 0]), probs)
    np.testing.assert_array_equal(np.isnan(value), [True, False])
    assert np.isnan(pull(jnp.ones(2))[0][0]).any()
    assert_close(pull(jnp.ones(2))[0][1], [-2, 0, 0])
