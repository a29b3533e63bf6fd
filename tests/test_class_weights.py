"""Counts of classes and what is made of them, against scikit-learn and the papers' formulas in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from jxent import class_weights
from jxent._core.counts import added
from tests.losses import assert_close

COUNTS = np.array([1, 0, 7, 100, 12345, 0, 3])
OCCURS = COUNTS > 0


def effective_number_weights(counts, beta):
    """The paper's, in float64, over the classes that occur."""
    occurs = counts > 0
    n = counts[occurs].astype(np.float64)
    weights = np.zeros(counts.shape)
    weights[occurs] = 1 / n if beta == 1 else (1 - beta) / -np.expm1(n * np.log1p(beta - 1)) if beta else 1
    return weights * occurs.sum() / weights.sum()


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int8])
@pytest.mark.parametrize("shape", [(), (0,), (60,), (4, 5, 3)])
def test_class_counts_is_bincount(shape, dtype, rng):
    labels = rng.integers(6, size=shape).astype(dtype)
    counts = jxent.class_counts(labels, 8)
    np.testing.assert_array_equal(counts, np.bincount(labels.ravel(), minlength=8))
    assert (counts.dtype, counts.weak_type) == (jnp.float32, False)


def test_class_counts_of_masked_labels(rng):
    labels, where = rng.integers(5, size=(6, 4)), rng.uniform(size=(6, 4)) < 0.5
    spoiled = np.where(where, labels, [-100, -1, 5, 2**31 - 1])
    want = np.bincount(labels[where], minlength=5)
    count = jax.jit(jxent.class_counts, static_argnums=1)
    np.testing.assert_array_equal(count(spoiled, 5, where=where), want)
    np.testing.assert_array_equal(jxent.class_counts(labels, 5, where=where[:, :1]).sum(), 4 * where[:, 0].sum())
    by_row = jax.vmap(lambda y, m: jxent.class_counts(y, 5, where=m))(spoiled, where)
    np.testing.assert_array_equal(by_row.sum(0), want)


@pytest.mark.parametrize("bad", [-1, 5, 2**40])
def test_class_counts_of_a_bad_label_are_nan(bad):
    """Never left out in silence, and never wrapped around."""
    labels = np.array([0, 1, bad, 4])
    assert np.isnan(jxent.class_counts(labels, 5)).all()
    counts = jxent.class_counts(labels, 5, where=labels != bad)
    np.testing.assert_array_equal(counts, [1, 1, 0, 0, 1])
    for weights in (jxent.balanced_class_weights, jxent.effective_number_weights, jxent.log_prior_adjustment):
        assert np.isnan(weights(jxent.class_counts(labels, 5))).all()


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
def test_class_counts_on_a_mesh(axis_type, rng):
    """A scatter over labels that are split along both of their axes; and of the parts, added up."""
    labels, where = rng.integers(5, size=(8, 4)), rng.uniform(size=(8, 4)) < 0.5
    mesh = jax.make_mesh((2, 2), ("data", "time"), axis_types=(axis_type,) * 2)
    placed = jax.device_put((labels, where), NamedSharding(mesh, P("data", "time")))

    def count(labels, where):
        return jxent.class_counts(labels, 5, where=where)

    def added(labels, where):
        return jax.lax.psum(count(labels, where), ("data", "time"))

    by_part = jax.shard_map(added, mesh=mesh, in_specs=P("data", "time"), out_specs=P())
    for run in (count, by_part):
        np.testing.assert_array_equal(jax.jit(run)(*placed), np.bincount(labels[where], minlength=5))


@pytest.mark.parametrize("rest", ["whole", "split"])
@pytest.mark.parametrize("manual", ["data", "time"])
def test_class_counts_in_a_shard_map_over_some_axes(rng, manual, rest):
    """The other axis of the mesh stays Explicit."""
    labels, where = rng.integers(5, size=(8, 4)), rng.uniform(size=(8, 4)) < 0.5
    mesh = jax.make_mesh((2, 2), ("data", "time"), axis_types=(AxisType.Explicit,) * 2)
    spec = P(*("data", "time") if rest == "split" else (axis if axis == manual else None for axis in ("data", "time")))
    placed = jax.device_put((labels, where), NamedSharding(mesh, spec))

    def added(labels, where):
        return jax.lax.psum(jxent.class_counts(labels, 5, where=where), manual)

    inside = P(*(axis if axis == manual else None for axis in ("data", "time")))
    with jax.set_mesh(mesh):
        counts = jax.jit(jax.shard_map(added, in_specs=inside, out_specs=P(), axis_names={manual}))(*placed)
    np.testing.assert_array_equal(counts, np.bincount(labels[where], minlength=5))


def test_class_counts_beyond_float32_ones():
    """A float32 sum of ones, one at a time, sticks at 2²⁴."""
    count = 2**24 + 4096
    counts = jax.jit(lambda: jxent.class_counts(jnp.ones(count, jnp.uint8), 2))()
    np.testing.assert_array_equal(counts, [0, count])


@pytest.mark.parametrize("limit", [1, 10, 76, 77, 100])
def test_class_counts_of_more_labels_than_int32_counts(limit, rng):
    """With a lower limit in its place: parts of the labels are counted by themselves, and added up with a carry."""
    labels = rng.integers(-1, 6, size=(7, 11), dtype=np.int32)
    want = np.bincount(labels[(labels >= 0) & (labels < 5)], minlength=5)
    count = functools.partial(class_weights._histogram, num_classes=5, limit=limit)
    np.testing.assert_array_equal(jax.jit(count)(labels), want)
    np.testing.assert_array_equal(jax.vmap(count)(jnp.asarray(labels)).sum(0), want)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Explicit,))
    placed = jax.device_put(np.pad(labels, ((0, 1), (0, 0)), constant_values=5), NamedSharding(mesh, P("data")))
    np.testing.assert_array_equal(jax.jit(count)(placed), want)
    n, m = jax.export.symbolic_shape("n, m")
    exported = jax.export.export(jax.jit(count))(jax.ShapeDtypeStruct((n, m), labels.dtype))
    np.testing.assert_array_equal(exported.call(labels), want)


@pytest.mark.parametrize("limit", [1, 10, 76])
def test_class_counts_of_a_part_are_within_the_limit(limit, monkeypatch):
    """Were all labels of one class, too."""
    parts = []

    def kept(counts, axes, dtype):
        parts.append(counts)
        return added(counts, axes, dtype)

    monkeypatch.setattr(class_weights, "added", kept)
    counts = class_weights._histogram(jnp.full((7, 11), 2), 5, limit)
    np.testing.assert_array_equal(counts, [0, 0, 77, 0, 0])
    assert np.max(parts) <= limit
    assert np.sum(parts) == 77


def test_class_counts_of_too_many_classes_for_so_many_labels():
    with pytest.raises(ValueError, match=r"class_counts: labels of shape .* too many to be counted at once"):
        jax.eval_shape(lambda labels: jxent.class_counts(labels, 2**30), jax.ShapeDtypeStruct((2**16, 2**15), np.uint8))


def test_balanced_class_weights_are_those_of_scikit_learn(rng):
    pytest.importorskip("sklearn")
    from sklearn.utils.class_weight import compute_class_weight  # noqa: PLC0415

    labels = rng.choice([0, 2, 3, 6], size=200, p=[0.05, 0.6, 0.3, 0.05])
    weights = jxent.balanced_class_weights(jxent.class_counts(labels, 7))
    want = np.zeros(7)
    want[np.unique(labels)] = compute_class_weight("balanced", classes=np.unique(labels), y=labels)
    assert_close(weights, want)
    assert_close(np.asarray(weights)[labels].mean(), 1)


@pytest.mark.parametrize("beta", [0, 0.0, 0.9, 0.999, 1 - 1e-6, 1 - 1e-12, 1, 1.0])
def test_effective_number_weights_are_those_of_the_paper(beta):
    """All digits of a double near 1 count; of a traced number, those that float32 has."""
    weights = jxent.effective_number_weights(COUNTS, beta=beta)
    assert_close(weights, effective_number_weights(COUNTS, beta))
    assert_close(weights.sum(), OCCURS.sum())
    traced = jax.jit(lambda beta: jxent.effective_number_weights(COUNTS, beta=beta))(jnp.float32(beta))
    assert_close(traced, effective_number_weights(COUNTS, float(np.float32(beta))))


def test_log_prior_adjustment_is_the_log_of_the_prior():
    want = np.full(COUNTS.shape, -np.inf)
    want[OCCURS] = np.log(COUNTS[OCCURS] / COUNTS.sum())
    adjust = jax.jit(lambda tau: jxent.log_prior_adjustment(COUNTS, tau=tau))
    assert_close(jxent.log_prior_adjustment(COUNTS), want)
    for tau in (0.5, np.float32(2)):
        assert_close(jxent.log_prior_adjustment(COUNTS, tau=tau), tau * want)
        assert_close(adjust(tau), tau * want)
    for zero in (0, jnp.float32(0)):
        np.testing.assert_array_equal(jxent.log_prior_adjustment(COUNTS, tau=zero), 0)
    np.testing.assert_array_equal(adjust(0.0), 0)


def test_log_prior_adjustment_masks_absent_classes_in_a_loss(rng):
    logits, counts = rng.normal(size=(5, 3)).astype(np.float32), np.array([3, 0, 2])
    adjusted = logits + jxent.log_prior_adjustment(counts)[None]
    fewer = logits[:, [0, 2]] + np.log([3 / 5, 2 / 5])
    want = jxent.softmax_cross_entropy(fewer.astype(np.float32), [0, 1, 0, 1, 0])
    assert_close(jxent.softmax_cross_entropy(adjusted, [0, 2, 0, 2, 0]), want)


def test_weights_have_derivatives_by_counts_and_hyper_parameters(x64):
    """Central differences; no NaN from a class that does not occur."""

    def everything(counts, beta, tau):
        return jnp.stack(
            [
                jxent.balanced_class_weights(counts),
                jxent.effective_number_weights(counts, beta=beta),
                # The −inf of what does not occur stays as it is.
                jnp.where(counts > 0, jxent.log_prior_adjustment(counts, tau=tau), 0),
            ]
        )

    counts, step = np.array([5.0, 0, 2, 30]), 1e-6
    inputs = (counts, 0.9, 1.5)
    run = jax.jit(everything)
    reverse, forward = jax.jit(lambda *x: [jac(everything, (0, 1, 2))(*x) for jac in (jax.jacrev, jax.jacfwd)])(*inputs)
    for got in (reverse, forward):
        for i in np.flatnonzero(counts):
            up = run(counts + step * (np.arange(4) == i), *inputs[1:])
            down = run(counts - step * (np.arange(4) == i), *inputs[1:])
            np.testing.assert_allclose(got[0][..., i], (up - down) / (2 * step), rtol=1e-6, atol=1e-8)
        np.testing.assert_array_equal(got[0][:, 1], 0)
        by_beta = run(counts, 0.9 + step, 1.5) - run(counts, 0.9 - step, 1.5)
        np.testing.assert_allclose(got[1], by_beta / (2 * step), rtol=1e-6, atol=1e-8)
        by_tau = run(counts, 0.9, 1.5 + step) - run(counts, 0.9, 1.5 - step)
        np.testing.assert_allclose(got[2], by_tau / (2 * step), rtol=1e-6, atol=1e-8)
    ends = jax.jit(jax.vmap(jax.jacfwd(everything, (1, 2)), (None, 0, 0)))(counts, jnp.array([0.0, 1]), jnp.zeros(2))
    assert np.isfinite(ends[0]).all()
    assert np.isfinite(ends[1]).all()


@pytest.mark.parametrize("dtype", [np.int32, jnp.bfloat16])
def test_weights_are_float32_at_least(dtype):
    counts = jnp.asarray([1, 0, 7, 100], dtype)
    for weights in (jxent.balanced_class_weights, jxent.effective_number_weights, jxent.log_prior_adjustment):
        assert (weights(counts).dtype, weights(counts).weak_type) == (jnp.float32, False)
        assert_close(weights(counts), weights([1, 0, 7, 100]))


def test_weights_of_no_counts_at_all():
    """Every class is one that never occurs."""
    for weights in (jxent.balanced_class_weights, jxent.effective_number_weights, jxent.log_prior_adjustment):
        value, gradient = jax.value_and_grad(lambda counts, weights=weights: weights(counts)[0])(jnp.zeros(3))
        assert value == (-np.inf if weights is jxent.log_prior_adjustment else 0)
        np.testing.assert_array_equal(gradient, 0)
