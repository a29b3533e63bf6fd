"""Counts: exact in float32 up to 2²⁴ and rounded once beyond, by the limit of int32 and by smaller ones in its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jxent._core.counts import added, count, size_of

LIMITS = [1, 4, 5, 23, 24, 119, 120]
HUGE = [(65536, 32768), (2**20, 2**12, 2**5), (65536, 65536)]


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("axes", [(0, 1, 2), (1,), (2, 0), ()], ids=str)
def test_count_is_the_sum(axes, limit, rng):
    """Whichever axes are summed in int32, and whichever with a carry."""
    mask = rng.uniform(size=(4, 5, 6)) < 0.6
    got = jax.jit(lambda mask: count(mask, axes, jnp.float32, limit))(mask)
    np.testing.assert_array_equal(got, mask.sum(axes))
    assert (got.dtype, got.weak_type) == (jnp.float32, False)
    by_row = jax.vmap(lambda mask: count(mask, (0, 1), jnp.float32, limit))(mask)
    np.testing.assert_array_equal(by_row, mask.sum((1, 2)))


@pytest.mark.parametrize("shape", HUGE, ids=str)
def test_count_and_size_of_more_than_int32_holds(shape):
    """Counts a broadcast value, without memory of that size."""
    axes = tuple(range(len(shape)))
    counted = jax.jit(lambda value: count(jnp.broadcast_to(value, shape), axes, jnp.float32)).lower(True).compile()
    assert counted(True) == np.float32(np.prod(shape, dtype=float))
    assert counted(False) == 0
    assert size_of(shape, jnp.float32) == counted(True)
    assert counted.memory_analysis().temp_size_in_bytes < 2**23


def test_count_beyond_exact_floats_is_rounded_once():
    """2²⁴ + 1 lies between two numbers of float32, and 3·2³⁰ + 129 above the middle of two."""
    for counts in ([2**24 - 1, 1], [2**24, 1], [2**24, 3], [2**30, 2**30, 2**30 + 129], [2**31 - 1] * 1001):
        want = np.float32(sum(counts))
        assert added(jnp.array(counts, jnp.int32), (0,), jnp.float32) == want


def test_count_in_float64(x64):
    counts = jnp.array([2**31 - 1] * 1001, jnp.int32)
    assert added(counts, (0,), jnp.float64) == 1001 * (2**31 - 1)
    assert size_of((2**40, 3), jnp.float64) == 3 * 2**40


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
@pytest.mark.parametrize("limit", [4, 2**31 - 1])
def test_count_on_a_mesh(axis_type, limit, rng):
    """Under `jit` the global size decides; of what is summed with a carry, devices send their parts."""
    mask = rng.uniform(size=(8, 4)) < 0.5
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(axis_type,) * 2)

    def counts(mask):
        return [count(mask, axes, jnp.float32, limit) for axes in ((0,), (1,), (0, 1))]

    def psum_of_parts(mask):
        return jax.lax.psum(count(mask, (0, 1), jnp.float32, limit), ("a", "b"))

    for spec in (P("a", "b"), P(None, "a"), P(("a", "b"))):
        placed = jax.device_put(mask, NamedSharding(mesh, spec))
        jax.tree.map(np.testing.assert_array_equal, jax.jit(counts)(placed), [mask.sum(0), mask.sum(1), mask.sum()])
    placed = jax.device_put(mask, NamedSharding(mesh, P("a", "b")))
    of_parts = jax.jit(jax.shard_map(psum_of_parts, mesh=mesh, in_specs=P("a", "b"), out_specs=P()))
    np.testing.assert_array_equal(of_parts(placed), mask.sum())


def test_count_and_size_of_symbolic_shapes(rng):
    n, m = jax.export.symbolic_shape("n, m")

    def counts(mask):
        return count(mask, (0, 1, 2), jnp.float32), count(mask, (1,), jnp.float32), size_of(mask.shape, jnp.float32)

    exported = jax.export.export(jax.jit(counts))(jax.ShapeDtypeStruct((n, m, 3), jnp.bool_))
    for shape in ((4, 5, 3), (1, 7, 3)):
        mask = rng.uniform(size=shape) < 0.5
        total, by_row, size = exported.call(mask)
        np.testing.assert_array_equal([total, size], [mask.sum(), mask.size])
        np.testing.assert_array_equal(by_row, mask.sum(1))
