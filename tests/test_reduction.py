"""Mean, weighted_mean, and that parts add up to the whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jxent
from jxent.reduction import Mean
from tests.losses import assert_close


def test_mean_is_a_pytree_of_two_arrays():
    mean = jxent.softmax_cross_entropy(np.zeros((3, 4), np.float32), [0, 1, 2], reduction="partial")
    assert isinstance(mean, Mean)
    leaves, structure = jax.tree.flatten(mean)
    assert_close(leaves, [3 * np.log(4), 3])
    assert isinstance(jax.tree.unflatten(structure, leaves), Mean)
    doubled = jax.tree.map(lambda field: 2 * field, mean)
    assert_close(doubled.value(), np.log(4))


def test_mean_adds_field_by_field_and_from_zero():
    means = [Mean(jnp.float32(i), jnp.float32(2 * i)) for i in (1, 2, 3)]
    assert_close(jnp.stack(sum(means)), [6, 12])
    assert_close(jnp.stack(0 + means[0] + 0), [1, 2])
    assert isinstance(sum(means), Mean)


def test_mean_is_not_taken_for_an_array_by_numpy():
    """Whose operators come first: they would scale, or add, the weight too."""
    mean, start = Mean(jnp.float32(6), jnp.float32(4)), np.float32(0)
    assert_close(jnp.stack(sum([mean, mean], start)), [12, 8])
    assert isinstance(sum([mean], np.int64(0)), Mean)
    half, halves = np.float32(0.5), np.full(2, 0.5, np.float32)
    for wrong in (lambda: half * mean, lambda: mean * half, lambda: halves * mean, lambda: np.multiply(half, mean)):
        with pytest.raises(TypeError, match="Mean"):
            wrong()
    for wrong in (lambda: half + mean, lambda: halves + mean, lambda: mean + halves, lambda: np.add(mean, mean)):
        with pytest.raises(TypeError, match="Mean"):
            wrong()
    for wrong in (lambda: mean / half, lambda: half / mean, lambda: mean - half, lambda: half - mean):
        with pytest.raises(TypeError, match="Mean"):
            wrong()


def test_results_that_are_tuples_are_exported_and_read_back():
    """In and out; the names in the file are those of the package."""
    logits, labels = np.array([[2.0, 0.0], [0.0, 1.0]], np.float32), np.array([0, 0])

    def step(so_far, logits):
        mean, aux = jxent.softmax_cross_entropy(logits, labels, reduction="partial", return_aux=True)
        return so_far + mean, aux, jxent.softmax_log_probs(logits, labels, return_entropy=True)

    so_far = Mean(jnp.float32(1), jnp.float32(2))
    exported = jax.export.export(jax.jit(step))(so_far, jax.ShapeDtypeStruct(logits.shape, logits.dtype))
    data = exported.serialize()
    assert b"jxent.Mean" in data
    assert b"jxent.CrossEntropyAux" in data
    assert b"jxent.LogProbs" in data
    mean, aux, log_probs = jax.export.deserialize(data).call(so_far, logits)
    assert isinstance(mean, Mean)
    assert isinstance(aux, jxent.CrossEntropyAux)
    assert isinstance(log_probs, jxent.LogProbs)
    jax.tree.map(assert_close, (mean, aux, log_probs), step(so_far, logits))


def test_mean_value_of_nothing():
    mean = Mean(jnp.float32(0), jnp.float32(0))
    assert mean.value() == 0
    assert np.isnan(mean.value(empty=jnp.nan))
    total, weight = jax.grad(lambda m: m.value())(mean)
    assert (total, weight) == (0, 0)


def test_mean_value_gradient():
    mean = Mean(jnp.float32(6), jnp.float32(4))
    assert_close(jnp.stack(jax.grad(lambda m: m.value())(mean)), [1 / 4, -6 / 16])
    batch = jax.vmap(lambda m: m.value())(Mean(jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])))
    assert_close(batch, [0.5, 0])


def test_mean_psum_over_a_mapped_axis():
    parts = Mean(jnp.array([1.0, 2.0]), jnp.array([1.0, 3.0]))
    whole = jax.vmap(lambda m: m.psum("batch"), axis_name="batch")(parts)
    assert_close(jnp.stack(whole), [[3, 3], [4, 4]])


def test_mean_of_chunks_is_the_mean_of_the_whole_and_the_mean_of_means_is_not(rng):
    logits, labels = rng.normal(size=(12, 5)).astype(np.float32), rng.integers(5, size=12)
    labels[:4] = -100
    weight = rng.uniform(0.1, 3, 5).astype(np.float32)

    def loss(x, y, reduction):
        return jxent.softmax_cross_entropy(x, y, class_weight=weight, ignore_index=-100, reduction=reduction)

    whole = loss(logits, labels, "mean")
    chunks = [(slice(0, 5)), slice(5, 6), slice(6, 12)]
    parts = [loss(logits[c], labels[c], "partial") for c in chunks]
    assert_close(sum(parts).value(), whole)
    assert abs(np.mean([part.value() for part in parts]) - whole) > 0.01

    d_parts = [jax.grad(lambda x, c=c: loss(x, labels[c], "partial").total)(logits[c]) for c in chunks]
    d_whole = jax.grad(lambda x: loss(x, labels, "mean"))(logits)
    assert_close(np.concatenate(d_parts) / sum(parts).weight, d_whole)


@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 2), (2, 1, 0), ()])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_weighted_mean_is_numpy_average(axis, masked, weighted, rng):
    values = rng.normal(size=(2, 3, 4)).astype(np.float32)
    where = rng.uniform(size=values.shape) < 0.7 if masked else None
    weight = rng.uniform(0.5, 2, values.shape) if weighted else None
    m = np.ones(values.shape) if where is None else where
    s = m if weight is None else m * weight
    axes = None if axis is None else axis
    want = (s * values).sum(axes) / np.where(s.sum(axes) == 0, 1, s.sum(axes))
    assert_close(jxent.weighted_mean(values, where=where, sample_weight=weight, axis=axis), want)


def test_weighted_mean_of_masked_nan_is_clean():
    values, weight = np.array([1.0, np.nan, 3.0], np.float32), np.array([1.0, np.nan, 3.0], np.float32)
    where = np.array([True, False, True])
    value, grads = jax.value_and_grad(lambda v, s: jxent.weighted_mean(v, where=where, sample_weight=s), (0, 1))(
        values, weight
    )
    assert_close(value, 2.5)
    assert_close(grads[0], [0.25, 0, 0.75])
    assert_close(grads[1], [(1 - 2.5) / 4, 0, (3 - 2.5) / 4])


def test_weighted_mean_of_nothing():
    values = np.ones((2, 2), np.float32)
    where = np.array([[True, True], [False, False]])
    assert_close(jxent.weighted_mean(values, where=where, axis=1), [1, 0])
    assert_close(jxent.weighted_mean(values, where=where, axis=1, empty=-3.0), [1, -3])
    gradient = jax.grad(lambda v: jxent.weighted_mean(v, where=where, axis=1).sum())(values)
    assert_close(gradient, [[0.5, 0.5], [0, 0]])


@pytest.mark.parametrize("values", [[True, False, True, True], [1, 0, 1, 1]])
def test_weighted_mean_of_hits_is_float32(values):
    mean = jxent.weighted_mean(values)
    assert mean == 0.75
    assert mean.dtype == jnp.float32
    assert not mean.weak_type


def test_weighted_mean_counts_beyond_what_narrow_floats_can():
    count = 70_000
    for dtype in (jnp.bfloat16, jnp.float16):
        values = jnp.ones(count, dtype)
        mean = jxent.weighted_mean(values, where=np.arange(count) < 65_521)
        assert (mean, mean.dtype) == (1, jnp.float32)


def test_partial_counts_exactly_beyond_float32_ones():
    """A float32 sum of ones, one at a time, sticks at 2²⁴."""
    count = 2**24 + 4096
    mean = jax.eval_shape(lambda x: jxent.sigmoid_binary_cross_entropy(x, x, reduction="partial"), jnp.zeros(8))
    assert mean.weight.shape == ()
    where = jnp.ones(count, bool)
    result = jxent.sigmoid_binary_cross_entropy(jnp.zeros(count), where, where=where, reduction="partial")
    assert result.weight == count


@pytest.mark.parametrize("shape", [(65536, 32768), (65536, 65536)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_counts_are_right_beyond_int32(shape, masked):
    """Nothing of that size is held, and the rows, which nobody asks for, are not computed."""

    def weight(value):
        values = jnp.broadcast_to(value, shape)
        where = values > 0 if masked else None
        return jxent.sigmoid_binary_cross_entropy(values, values > 0, where=where, reduction="partial").weight

    assert jax.jit(weight)(1.0) == np.prod(shape, dtype=float)


@pytest.mark.parametrize("masked", [False, True])
def test_weighted_mean_is_right_beyond_int32(masked):
    def mean(value):
        values = jnp.broadcast_to(value, (65536, 32768))
        return jxent.weighted_mean(values, where=values > 0 if masked else None)

    np.testing.assert_allclose(jax.jit(mean)(1.0), 1, rtol=1e-3)


@pytest.mark.parametrize("reduction", ["partial", "mean"])
def test_without_mask_and_weights_nothing_is_counted(reduction):
    """The size is known; of a symbolic shape, it is computed from the sizes of the axes."""

    def loss(logits):
        return jxent.sigmoid_binary_cross_entropy(logits, logits, reduction=reduction)

    n, m = jax.export.symbolic_shape("n, m")
    exported = jax.export.export(jax.jit(loss))(jax.ShapeDtypeStruct((n, m), jnp.float32))
    assert exported.mlir_module().count("stablehlo.reduce") == 1
    logits = np.zeros((3, 5), np.float32)
    total, weight = jax.jit(lambda x: jxent.sigmoid_binary_cross_entropy(x, x, reduction="partial"))(logits)
    assert weight == 15
    want = total / weight if reduction == "mean" else (total, weight)
    assert_close(jnp.stack(jax.tree.leaves(exported.call(logits))), jnp.stack(jax.tree.leaves(want)))


def test_weights_that_are_sizes_add_up_over_devices():
    def psum(x):
        return jxent.sigmoid_binary_cross_entropy(x, x, reduction="partial").psum("data")

    x = np.zeros((8, 3), np.float32)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    by_device = jax.shard_map(psum, mesh=mesh, in_specs=P("data"), out_specs=P())
    assert jax.jit(by_device)(x).weight == 24
    np.testing.assert_array_equal(jax.vmap(psum, axis_name="data")(x.reshape(4, 2, 3)).weight, [24] * 4)
