"""How rows are cut into chunks, and which of the chunks are run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jxent._core.linear.chunks import (
    ChunkPlan,
    Extent,
    map_unmasked,
    plan_chunks,
    plan_unmasked,
    unmasked_first,
)


def extent(num_rows=8192, num_classes=128256, depth=4096, *, itemsize=4, num_devices=1, num_blocks=1, kind="cpu"):
    return Extent(num_rows, num_classes, depth, itemsize, num_devices, num_blocks, kind)


@pytest.mark.parametrize(
    ("kind", "rows", "want"),
    [
        # 64 MiB of logits, or a quarter of the kernel's gradient: 1024 of 4096 features.
        ("cpu", 8192, ChunkPlan(8, 1024)),
        ("TPU v5 lite", 8192, ChunkPlan(4, 2048)),
        ("TPU v6 lite", 32768, ChunkPlan(16, 2048)),
        ("NVIDIA H200", 8192, ChunkPlan(2, 4096)),
        ("NVIDIA H200", 4096, ChunkPlan(1, 4096)),
        # An unknown one is taken for a GPU. 5 chunks divide the rows, 4 do not.
        ("another accelerator", 15005, ChunkPlan(5, 3001)),
        # No number of chunks below twice the fewest divides a prime: the last is smaller.
        ("TPU v6 lite", 8191, ChunkPlan(3, 2048, 2047)),
        ("TPU v6 lite", 1, ChunkPlan(1, 1)),
    ],
)
def test_chunks_of_the_default_size(kind, rows, want):
    assert plan_chunks(extent(rows, kind=kind), None) == want


@pytest.mark.parametrize("kind", ["TPU v6 lite", "NVIDIA H200"])
def test_the_logits_of_a_chunk_have_a_budget_on_accelerators(kind):
    plan = plan_chunks(extent(2**16, 2**20, 8192, kind=kind), None)
    assert plan.size * 2**20 * 4 == 2**31
    # One row may take more than all of it.
    assert plan_chunks(extent(4, 2**30, 8192, kind=kind), None) == ChunkPlan(4, 1)


def test_devices_that_share_a_chunk_take_as_many_rows_each():
    assert plan_chunks(extent(32768, num_devices=4, kind="TPU v6 lite"), None) == ChunkPlan(4, 8192)


@pytest.mark.parametrize("kind", ["cpu", "TPU v6 lite"])
def test_chunk_size_overrules(kind):
    assert plan_chunks(extent(100, kind=kind), 30) == ChunkPlan(3, 30, 10)
    assert plan_chunks(extent(100, kind=kind), 1000) == ChunkPlan(1, 100)
    assert plan_unmasked(extent(100, kind=kind), 30) == ChunkPlan(4, 25)
    assert plan_unmasked(extent(100, num_blocks=4, kind=kind), 30) == ChunkPlan(4, 4 * 7)


def test_a_symbolic_number_of_rows_keeps_to_what_the_logits_may_take():
    n, v = jax.export.symbolic_shape("n, v")
    assert extent(n, 128256, 64).most_rows == 130  # of 64 MiB
    assert extent(n, 2**22, 64, kind="TPU v6 lite").most_rows == 128  # of 2 GiB
    assert extent(n, 1000, 64).most_rows == extent(4096, v, 64).most_rows == 512


def test_masked_rows_are_cut_finer():
    assert plan_unmasked(extent(4096, 30000, 384), None) == ChunkPlan(16, 256)
    assert plan_unmasked(extent(8192, kind="TPU v6 lite"), None) == ChunkPlan(4, 2048)
    # No finer than is worth it.
    assert plan_unmasked(extent(512, 30000, 384), None) == ChunkPlan(4, 128)
    assert plan_unmasked(extent(100, 30000, 384), None) == ChunkPlan(1, 100)
    assert plan_unmasked(extent(2048, kind="TPU v6 lite"), None) == ChunkPlan(2, 1024)


@pytest.mark.parametrize("num_blocks", [1, 2, 4])
@pytest.mark.parametrize("size", [4, 8, 12, 24])
@pytest.mark.parametrize("mask", ["random", "none", "all", "one", "block"])
def test_only_chunks_with_rows_that_count_are_run(rng, mask, size, num_blocks):
    n = 24
    where = {
        "random": rng.random(n) < 0.4,
        "none": np.zeros(n, bool),
        "all": np.ones(n, bool),
        "one": np.arange(n) == 17,
        "block": np.arange(n) < 7,
    }[mask]
    x = jnp.arange(1.0, n + 1)
    plan = plan_unmasked(extent(n, num_blocks=num_blocks), size)
    ran = []

    def f(chunk):
        x, where = chunk
        jax.debug.callback(lambda where: ran.append(int(where.sum())), where)
        counted = jnp.where(where, x, 0)
        return 10 * counted, counted.sum()

    @jax.jit
    def mapped(x, where):
        return map_unmasked(f, (x, where), plan, unmasked_first(where, plan, num_blocks, is_shared=False))

    per_row, total = mapped(x, where)
    jax.effects_barrier()
    np.testing.assert_array_equal(per_row, np.where(where, 10 * x, 0))
    assert total == np.where(where, x, 0).sum()
    # As many as the block with the most such rows has.
    most, own = where.reshape(num_blocks, -1).sum(1).max(), plan.size // num_blocks
    assert len(ran) == -(-most // own)
    assert sum(ran) == where.sum()
