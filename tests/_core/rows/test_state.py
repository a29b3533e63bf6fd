"""The row state against the textbook, and its step against itself."""

from functools import reduce

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from jxent._core.rows import state
from jxent._core.rows.state import Wanted, merge, row_state
from tests._core.rows.states import EVERYTHING, NUM_CLASSES, assert_same_state, make_problem, textbook_state

whole_state = jax.jit(row_state, static_argnums=(0, 1))


def state_of(x, q=None, w=None, wanted=EVERYTHING):
    return whole_state(wanted, 1, x, None, q, w)[0]


def test_a_single_class_is_all_of_its_row():
    s = state_of(np.array([[3.0]], np.float32), np.array([[0.5]], np.float32), np.array([2.0], np.float32))
    assert (float(s.row_max[0]), float(s.excess[0]), float(s.dot[0]), int(s.top[0])) == (3, 0, 0, 0)
    assert [float(field[0]) for field in s.targets["label"]] == [0, 0, 0, 1]


@pytest.mark.parametrize("num_classes", [7, NUM_CLASSES])
def test_row_state_is_the_textbook_s(rng, num_classes):
    x, q, w = make_problem(rng, num_classes)
    assert_same_state(state_of(x, q, w), textbook_state(x, q, w))


@pytest.mark.parametrize("num_parts", [2, 5, NUM_CLASSES])
def test_any_parts_in_any_order_merge_to_the_state_of_the_whole(rng, num_parts):
    x, q, w = make_problem(rng, NUM_CLASSES)
    cuts = np.sort(rng.choice(np.arange(1, NUM_CLASSES), num_parts - 1, replace=False))
    parts = []
    for part in np.split(np.arange(NUM_CLASSES), cuts):
        of_part = state_of(x[:, part], q[:, part], w[part])
        parts.append(of_part._replace(top=of_part.top + part[0]))
    shuffled = [parts[i] for i in rng.permutation(num_parts)]
    assert_same_state(reduce(jax.jit(merge), shuffled), textbook_state(x, q, w), rtol=4e-6)


def test_merge_with_nothing_changes_nothing(rng):
    whole = state_of(*make_problem(rng, NUM_CLASSES))
    nothing = jax.tree.map(jnp.zeros_like, whole)
    nothing = nothing._replace(
        row_max=jnp.full_like(whole.row_max, -jnp.inf),
        excess=jnp.full_like(whole.excess, -1),
        top=jnp.full_like(whole.top, NUM_CLASSES),
    )
    assert_same_state(merge(whole, nothing), whole, rtol=0)
    assert_same_state(merge(nothing, whole), whole, rtol=0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_logit_is_seen_wherever_it_stands(bad):
    x = np.zeros((NUM_CLASSES, NUM_CLASSES), np.float32)
    np.fill_diagonal(x, bad)
    row_max = state_of(x, wanted=Wanted()).row_max
    np.testing.assert_array_equal(row_max, np.full(NUM_CLASSES, bad, np.float32))


@pytest.mark.parametrize(
    "x", [[20.0, 0, 0], [80.0, 0, -1], [0.0, 0, -100], [3.0, 2.9, -50], [1e4, 1e4 - 1, 0]], ids=str
)
def test_entropy_and_its_slope_keep_their_digits(x):
    x = np.array(x, np.float32)
    with mpmath.workdps(60):
        z = mpmath.fsum(mpmath.exp(mpmath.mpf(float(v))) for v in x)
        p = [mpmath.exp(mpmath.mpf(float(v))) / z for v in x]
        log_p = [mpmath.log(v) for v in p]
        entropy = -mpmath.fsum(a * b for a, b in zip(p, log_p, strict=True))
        slope = [-a * (b + entropy) for a, b in zip(p, log_p, strict=True)]
    s = state_of(x[None], wanted=Wanted(dot=True))
    d = x[None] - s.row_max[:, None]
    np.testing.assert_allclose(state.entropy(s.excess, s.dot), [float(entropy)], rtol=5e-7)
    actual = state.entropy_slope(d, s.excess[:, None], s.dot[:, None])
    np.testing.assert_allclose(actual, [[float(v) for v in slope]], rtol=1e-6, atol=1e-37)


def test_1_minus_p_keeps_its_digits():
    x = np.array([[30.0, 0, 0], [0, 0, 5], [1, 1, 1]], np.float32)
    s = state_of(x, wanted=Wanted())
    p = np.exp(x.astype(np.longdouble))
    others = p.sum(-1, keepdims=True) - p
    others[0, 0] = 2  # not left to a subtraction
    actual = state.miss(x - s.row_max[:, None], s.excess[:, None])
    np.testing.assert_allclose(
        np.asarray(actual, np.float64), (others / p.sum(-1, keepdims=True)).astype(float), rtol=3e-7
    )
