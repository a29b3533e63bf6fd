"""What the devices of a mesh send each other, by the compiled program; compiled and never run.

Two devices share the rows and two the classes; R and C are what one device holds of each.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from tests.test_sharding import make_mesh
from tools.hlo import collectives

ROWS, CLASSES = 32, 1000
SPLIT = P("data", "classes")
SPECS = {"logits": SPLIT, "class_weight": P("classes"), "sample_weight": P("data"), "where": P("data")}
KINDS = pytest.mark.parametrize("kind", ["ids", "distributions"])
# Numbers a row sent over the classes forward: its maximum, and the sums. Of ids those are u and the label's logit; of
# distributions the top class, u, Σ t and Σ t·d. All options take Σ w, Σ w·d and the live classes on top, and for ids the
# label's weight. Under `shard_map` states are merged, which takes the number of devices at the maximum, not the top class.
NUMBERS = {("ids", False): 3, ("ids", True): 7, ("distributions", False): 5, ("distributions", True): 8}
MORE_TO_MERGE = {"ids": 1, "distributions": 0}
# The gradient needs Σ t below the maximum too, of distributions and of what smoothing mixes in.
MORE_FOR_GRADIENT = {("ids", False): 0, ("ids", True): 1, ("distributions", False): 1, ("distributions", True): 2}


def loss(arguments, reduction, with_options, **options):
    if with_options:
        weights = {name: arguments[name] for name in ("class_weight", "sample_weight", "where")}
        options |= weights | {"label_smoothing": 0.1, "z_loss": 0.1}
    return jxent.softmax_cross_entropy(arguments["logits"], arguments["labels"], reduction=reduction, **options)


def arguments_on(mesh, kind, num_classes=2 * CLASSES):
    shapes = {
        "logits": ((2 * ROWS, num_classes), jnp.bfloat16),
        "labels": ((2 * ROWS,), jnp.int32) if kind == "ids" else ((2 * ROWS, num_classes), jnp.bfloat16),
        "class_weight": ((num_classes,), jnp.float32),
        "sample_weight": ((2 * ROWS,), jnp.float32),
        "where": ((2 * ROWS,), jnp.bool_),
    }
    specs = SPECS | {"labels": P("data") if kind == "ids" else SPLIT}
    structs = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, specs[name]))
        for name, (shape, dtype) in shapes.items()
    }
    return structs, {name: specs[name] for name in shapes}


def programs(how, kind, with_options):
    """The rows, and the mean with its gradient by logits, compiled for the mesh."""
    mesh = make_mesh(AxisType.Explicit if how == "Explicit" else AxisType.Auto)
    structs, specs = arguments_on(mesh, kind)
    if how == "shard_map":
        over_mesh = functools.partial(jax.shard_map, mesh=mesh, in_specs=(specs,))
        inside = functools.partial(loss, with_options=with_options, vocab_axis_name="classes")
        rows = over_mesh(lambda arguments: inside(arguments, "none"), out_specs=P("data"))
        mean = over_mesh(lambda arguments: inside(arguments, "partial").psum("data").value(), out_specs=P())
    else:
        rows, mean = (functools.partial(loss, reduction=r, with_options=with_options) for r in ("none", "mean"))

    def mean_and_gradient(arguments):
        return jax.value_and_grad(lambda logits: mean(arguments | {"logits": logits}))(arguments["logits"])

    return [jax.jit(f).lower(structs).compile() for f in (rows, mean_and_gradient)]


@pytest.mark.parametrize("with_options", [False, True], ids=["plain", "all options"])
@KINDS
@pytest.mark.parametrize("how", ["Auto", "Explicit", "shard_map"])
def test_softmax_cross_entropy_sends_a_few_numbers_a_row(how, kind, with_options):
    rows, mean_and_gradient = (collectives(program) for program in programs(how, kind, with_options))
    for sent in (rows, mean_and_gradient):
        assert {collective.kind for collective in sent} == {"all-reduce"}
    assert len(rows) <= 4
    per_row = sum(sum(collective.sizes) for collective in rows) / ROWS
    assert per_row == NUMBERS[kind, with_options] + (MORE_TO_MERGE[kind] if how == "shard_map" else 0)
    # The mean adds its two sums over the data axis.
    of_rows = [size for collective in mean_and_gradient for size in collective.sizes if size > 2]
    assert sum(of_rows) / ROWS <= per_row + MORE_FOR_GRADIENT[kind, with_options]


@pytest.mark.parametrize("num_classes", [40_000, 50_000])
def test_rows_longer_than_a_window_stay_where_they_are(num_classes):
    """The pieces in which the CPU sums such rows are cut where the devices are."""
    structs, _ = arguments_on(make_mesh(), "ids", num_classes)
    program = jax.jit(functools.partial(loss, reduction="none", with_options=True)).lower(structs).compile()
    assert {collective.kind for collective in collectives(program)} == {"all-reduce"}
    # Numbers for each row, and one for each class.
    assert program.memory_analysis().temp_size_in_bytes < 4 * (100 * ROWS + num_classes // 2)


@pytest.mark.parametrize("num_classes", [8192, 40_000])
def test_no_logits_are_gathered_where_only_jit_knows_the_shardings(num_classes):
    structs, _ = arguments_on(make_mesh(), "ids", num_classes)
    shardings = {name: struct.sharding for name, struct in structs.items()}
    bare = {name: jax.ShapeDtypeStruct(struct.shape, struct.dtype) for name, struct in structs.items()}
    plain = functools.partial(loss, reduction="none", with_options=False)
    program = jax.jit(plain, in_shardings=(shardings,)).lower(bare).compile()
    assert {collective.kind for collective in collectives(program)} == {"all-reduce"}
    assert sum(sum(collective.sizes) for collective in collectives(program)) / ROWS == NUMBERS["ids", False]


def test_the_aux_of_a_vocab_axis_takes_two_numbers_a_row():
    """The predicted class and, for the entropy, Σ exp(d)·d."""
    structs, specs = arguments_on(make_mesh(), "ids")
    rows = functools.partial(loss, reduction="none", with_options=False, vocab_axis_name="classes")
    over_mesh = functools.partial(jax.shard_map, mesh=make_mesh(), in_specs=(specs,), out_specs=P("data"))
    plain, with_aux = (
        collectives(jax.jit(over_mesh(functools.partial(rows, return_aux=aux))).lower(structs).compile())
        for aux in (False, True)
    )
    assert {collective.kind for collective in with_aux} == {"all-reduce"}
    assert len(with_aux) == len(plain) + 1 <= 4
    assert sum(sum(c.sizes) for c in with_aux) == sum(sum(c.sizes) for c in plain) + 2 * ROWS
