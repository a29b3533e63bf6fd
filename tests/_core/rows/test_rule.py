"""The derivatives of what no loss asks for by itself yet: entropy and Σ exp(d)·d, against the textbook in extended precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxent._core.rows.rule import Config, softmax_rows
from jxent._core.rows.state import Wanted


def make_rows(rng, num_classes):
    """Random, confident, and with dead classes."""
    x = (3 * rng.normal(size=(4, num_classes))).astype(np.float32)
    x[1, 2] += 60
    x[2, ::2] = -np.inf
    return x


def by_entropy_and_dot(x, cotangent, where=None):
    def total(x):
        rows = softmax_rows(Config(1, Wanted(dot=True), None), x, None, None, None, where)
        return jnp.sum(cotangent[0] * rows.entropy) + jnp.sum(cotangent[1] * rows.dot)

    return total(x), jax.grad(total)(x), jax.jvp(total, (x,), (jnp.ones_like(x),))[1]


def textbook(x, cotangent):
    """The total, and its slope with the maximum m held constant in Σ exp(d)·d, as the rule has it."""
    x = x.astype(np.longdouble)
    live = x > -np.inf
    d = np.where(live, x - x.max(-1, keepdims=True), 0)
    exp_d = np.where(live, np.exp(d), 0)
    z = exp_d.sum(-1, keepdims=True)
    log_p, p = d - np.log(z), exp_d / z
    entropy = -(p * log_p).sum(-1)
    slope = -p * (log_p + entropy[:, None])
    total = (cotangent[0] * entropy + cotangent[1] * (exp_d * d).sum(-1)).sum()
    return total, cotangent[0][:, None] * slope + cotangent[1][:, None] * exp_d * (1 + d)


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize("num_classes", [7, 40, 10_000])
def test_entropy_and_dot_have_the_textbooks_slopes(rng, num_classes):
    x, cotangent = make_rows(rng, num_classes), rng.normal(size=(2, 4)).astype(np.float32)
    value, gradient, along_ones = jax.jit(by_entropy_and_dot)(x, cotangent)
    wanted, slope = textbook(x, cotangent)
    np.testing.assert_allclose(value, float(wanted), rtol=2e-5)
    np.testing.assert_allclose(np.asarray(gradient, np.float64), slope.astype(float), rtol=2e-4, atol=1e-9)
    np.testing.assert_allclose(along_ones, float(slope.sum()), rtol=2e-4, atol=1e-4)


@pytest.mark.parametrize("num_classes", [7, 40])
def test_masked_rows_have_no_entropy_whatever_they_hold(rng, num_classes):
    x, cotangent = make_rows(rng, num_classes), rng.normal(size=(2, 4)).astype(np.float32)
    x[3] = np.nan
    where = np.array([True, True, True, False])
    value, gradient, _ = jax.jit(by_entropy_and_dot)(x, cotangent, where)
    wanted, slope = textbook(x[:3], cotangent[:, :3])
    np.testing.assert_allclose(value, float(wanted), rtol=2e-5)
    np.testing.assert_allclose(np.asarray(gradient[:3], np.float64), slope.astype(float), rtol=2e-4, atol=1e-9)
    np.testing.assert_array_equal(gradient[3], 0)
