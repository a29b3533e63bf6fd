"""The contract: what XLA:CPU is made to compute, by other sums, are the plain states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxent._core.rows import cpu, state
from jxent._core.rows.state import RowState, Wanted
from tests._core.rows.states import EVERYTHING, assert_same_state, make_problem, textbook_state

# Reduced in one pass; by arithmetic; in windows; and, on one device, cut around the maximum.
SIZES = pytest.mark.parametrize("num_classes", [7, 40, 10_000, 33_000])
DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
pytestmark = pytest.mark.usefixtures("devices")

on_the_cpu = jax.jit(cpu.row_state, static_argnums=(0, 1))
plain = jax.jit(state.row_state, static_argnums=(0, 1))


def select_below(s: RowState) -> RowState:
    """B is of use, and made alike, where the maximum has p > 1/2."""
    targets = {
        name: t._replace(below=None if t.below is None else np.where(s.excess < 1, t.below, 0))
        for name, t in s.targets.items()
    }
    return s._replace(targets=targets)


@SIZES
@DTYPES
def test_states_with_every_target_are_the_plain_ones(rng, num_classes, dtype):
    x, q, w = make_problem(rng, num_classes, dtype)
    true = select_below(textbook_state(x, q, w))
    actual, _ = on_the_cpu(EVERYTHING, 1, x, None, q, w)
    assert_same_state(select_below(actual), true, rtol=1e-5)
    if num_classes <= 40:  # as XLA:CPU reduces it, class by class, the plain state of long rows rounds too often
        assert_same_state(select_below(plain(EVERYTHING, 1, x, None, q, w)[0]), true, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(("num_classes", "is_one"), [(2, True), (16, True), (17, False), (21, False), (10_000, False)])
def test_one_reduction_is_for_the_few_classes_that_xla_unrolls(axis, num_classes, is_one):
    """Segmentation with 21 classes took 3 times optax's time in one reduction."""
    shape = [3, 3, 3]
    shape[axis] = num_classes
    ids = jnp.zeros((3, 3), jnp.int32)
    jaxpr = jax.make_jaxpr(lambda x: cpu.row_state(Wanted(), axis, x, ids, None, None))(jnp.zeros(shape))
    of_several = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "reduce"]
    assert len(of_several) == is_one


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("num_classes", [7, 40, 10_000])
def test_states_along_every_axis(rng, axis, num_classes):
    x, q, w = make_problem(rng, num_classes)
    true = textbook_state(x, q, w)
    split = [np.moveaxis(a.reshape(4, -1, num_classes), 2, axis) for a in (x, q)]
    actual, _ = on_the_cpu(EVERYTHING, axis, split[0], None, split[1], w)
    flat = jax.tree.map(np.ravel, actual)
    assert_same_state(select_below(flat), select_below(true), rtol=1e-5)


@SIZES
@DTYPES
def test_ids_have_the_plain_state_where_they_are_at_the_maximum_and_its_log_everywhere(rng, num_classes, dtype):
    x, q, w = make_problem(rng, num_classes, dtype)
    true = textbook_state(x, q, w)
    log = np.log1p(true.excess).astype(np.float64)
    places = {
        "at the maximum": true.top,
        "beside it": (true.top + 1) % num_classes,
        "anywhere": rng.integers(num_classes, size=len(x)),
        "nowhere": np.full(len(x), -1),
    }
    for where, ids in places.items():
        actual, entry = on_the_cpu(Wanted(), 1, x, ids.astype(np.int32), None, None)
        if where != "nowhere":
            np.testing.assert_array_equal(entry, np.take_along_axis(x, ids[:, None], 1)[:, 0].astype(np.float32), where)
        np.testing.assert_array_equal(actual.row_max, true.row_max.astype(np.float32), where)
        atol = 1e-36 if where == "at the maximum" else 2e-7
        excess = np.asarray(actual.excess, np.float64)
        np.testing.assert_allclose(np.log1p(excess), log, rtol=1e-5, atol=atol, err_msg=where)


@SIZES
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_bad_rows_are_bad_in_both(rng, num_classes, bad):
    """A NaN or a +inf, or nothing above −inf: what is made of these states is NaN, and the top class of a +inf is known."""
    x = rng.normal(size=(4, num_classes)).astype(np.float32)
    x[[0, 1, 2], [0, num_classes // 2, num_classes - 1]] = bad
    x[:3] = bad if np.isneginf(bad) else x[:3]
    states = [f(Wanted(top=True), 1, x, None, None, None)[0] for f in (on_the_cpu, plain)]
    for s in states:
        # XLA:CPU's maximum drops a NaN, the sum does not.
        assert not np.isfinite(s.excess[:3]).any() or np.isinf(s.row_max[:3]).all()
        assert s.row_max[3] == x[3].max()
        np.testing.assert_allclose(s.excess[3], np.exp(x[3] - x[3].max()).astype(np.float64).sum() - 1, rtol=1e-4)
        if np.isposinf(bad):
            np.testing.assert_array_equal(s.top, x.argmax(-1))


def test_a_target_on_a_dead_class_costs_infinity_and_a_target_of_0_nothing():
    x = np.tile(np.array([[-np.inf, 0, 1, 2]], np.float32), (4, 10))
    q = np.zeros((4, 40), np.float32)
    q[range(4), [0, 1, 4, 3]] = [1, 1, 1e-30, 0]
    for f in (on_the_cpu, plain):
        s, _ = f(Wanted((("label", ("dot",)),)), 1, x, None, q, None)
        np.testing.assert_array_equal(s.targets["label"].dot, [-np.inf, -2, -np.inf, 0])
