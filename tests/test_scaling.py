"""docs/scaling.md: its tables are what its formulas give, and its messages are those of compiled programs."""

from collections import Counter
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from tests.markdown import run_examples
from tools.hlo import collectives

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
NUM_CLASSES, WIDTH, ROWS_PER_DEVICE = 512, 48, 16


@pytest.fixture(scope="module")
def page():
    return run_examples(PAGE)


def partial_loss(hidden, kernel, labels):
    return jxent.linear_softmax_cross_entropy(hidden, kernel, labels, reduction="partial", vocab_axis_name="vocab")


def program(data, vocab, fsdp):
    """The mean and its gradient, compiled for a mesh of this split; the rows are split over both of its first axes."""
    mesh = jax.make_mesh((data // fsdp, fsdp, vocab), ("replica", "fsdp", "vocab"), axis_types=(AxisType.Auto,) * 3)
    rows = P(("replica", "fsdp"))
    specs = rows, P("fsdp", "vocab"), rows

    def mean(hidden, kernel, labels):
        # Before it is gathered, so that its gradient is scattered before the replicas add theirs.
        kernel = lax.pcast(kernel, "replica", to="varying")
        kernel = lax.all_gather(kernel, "fsdp", axis=0, tiled=True)
        return partial_loss(hidden, kernel, labels).psum(("replica", "fsdp")).value()

    num_rows = ROWS_PER_DEVICE * data * vocab
    shapes = (num_rows, WIDTH), (WIDTH, NUM_CLASSES), (num_rows,)
    arguments = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in zip(shapes, (jnp.float32, jnp.float32, jnp.int32), specs, strict=True)
    ]
    over_mesh = jax.shard_map(mean, mesh=mesh, in_specs=specs, out_specs=P())
    return jax.jit(jax.value_and_grad(over_mesh, (0, 1))).lower(*arguments).compile()


@pytest.mark.parametrize("split", [(2, 2, 1), (1, 4, 1), (2, 2, 2), (4, 1, 2), (4, 1, 4)], ids=str)
def test_scaling_messages_are_those_of_the_compiled_program(page, split):
    """In float32: the CPU sums narrower numbers in float32 too."""
    data, vocab, fsdp = split
    wanted, sent = Counter(), Counter()
    for _, kind, devices, num_bytes in page["messages"](ROWS_PER_DEVICE, NUM_CLASSES, WIDTH, data, vocab, fsdp, b=4):
        wanted[kind, devices] += num_bytes
    for collective in collectives(program(data, vocab, fsdp)):
        # A device keeps one part of what is reduced and scattered.
        parts = collective.devices if collective.kind == "reduce-scatter" else 1
        sent[collective.kind, collective.devices] += parts * collective.num_bytes
    # The mean adds its two sums over both axes of the rows.
    sent["all-reduce", data] -= 2 * 4 * (data > 1)
    assert +sent == wanted
