"""Every loss on meshes of four devices, rows and classes split, gives the numbers of one device."""

import functools
import inspect

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from tests import oracle
from tests.losses import LOSSES, VARIANTS, assert_close

ALL = [*LOSSES, *VARIANTS]
NUM_ROWS, NUM_CLASSES = 8, 4
ON_BOTH_AXIS_TYPES = pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)


def make_mesh(axis_type=AxisType.Auto, shape=(2, 2), names=("data", "classes")):
    return jax.make_mesh(shape, names, axis_types=(axis_type,) * len(shape))


def takes(loss, option):
    return option in inspect.signature(loss.call).parameters


@functools.cache
def problems():
    """Each loss with all options: its differentiable arguments, and the rest. Masked rows hold NaN and bad ids."""
    rng = np.random.default_rng(0)
    inputs, fixed = {}, {}
    for loss in ALL:
        scores, labels = loss.inputs(rng, (NUM_ROWS,))
        scores = scores[:, :NUM_CLASSES]  # a split axis has to divide
        labels = labels % NUM_CLASSES if loss.has_ids else labels[:, :NUM_CLASSES]
        where = rng.random(loss.rows(scores)) < 0.8
        scores[~where] = np.nan
        labels[~where] = 99 if loss.has_ids else np.nan
        options = {
            "class_weight": rng.uniform(0.5, 2, NUM_CLASSES),
            "pos_weight": rng.uniform(0.5, 2, NUM_CLASSES),
            "sample_weight": rng.uniform(0.5, 2, where.shape),
            "label_smoothing": 0.1,
            "z_loss": 0.1,
        }
        options = {name: np.float32(value) for name, value in options.items() if takes(loss, name)}
        inputs[loss.name], fixed[loss.name] = {"scores": scores, **options}, {"where": where}
        (fixed if loss.has_ids else inputs)[loss.name]["labels"] = labels
    return inputs, fixed


def evaluate(inputs, fixed):
    """Rows, mean and the mean's gradient of every loss, in one program, since compiling takes the time."""
    results = {}
    for loss in ALL:

        def reduced(inputs, reduction, loss=loss):
            options = {**inputs, **fixed[loss.name]}
            return loss.call(options.pop("scores"), options.pop("labels"), **options, reduction=reduction)

        mean = functools.partial(reduced, reduction="mean")
        results[loss.name] = reduced(inputs[loss.name], "none"), *jax.value_and_grad(mean)(inputs[loss.name])
    return results


@functools.cache
def on_one_device():
    return jax.device_get(jax.jit(evaluate)(*problems()))


def placed(arrays, mesh, split):
    """NumPy → arrays on the mesh, rows and classes split by the two entries of `split`."""

    def place(array):
        # The row shape of a binary loss is that of the scores; what has NUM_CLASSES elements belongs to the classes.
        of_rank_1 = P(split[1]) if np.size(array) == NUM_CLASSES else P(split[0])
        spec = {0: P(), 1: of_rank_1, 2: P(*split)}[np.ndim(array)]
        return jax.device_put(array, NamedSharding(mesh, spec))

    return jax.tree.map(place, arrays)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("split", "axis_type"),
    [
        (("data", None), AxisType.Explicit),
        ((None, "classes"), AxisType.Auto),
        (("data", "classes"), AxisType.Auto),
        (("data", "classes"), AxisType.Explicit),
    ],
    ids=str,
)
def test_losses_on_a_mesh_are_those_on_one_device(axis_type, split):
    inputs, fixed = placed(problems(), make_mesh(axis_type), split)
    results = jax.jit(evaluate)(inputs, fixed)
    jax.tree.map(assert_close, jax.device_get(results), on_one_device())
    for loss in ALL:
        rows, _, gradient = results[loss.name]
        split_like_input = [
            gradient[name].sharding.is_equivalent_to(array.sharding, array.ndim)
            for name, array in inputs[loss.name].items()
            # Gathered at ids alone, class weights have a gradient that XLA leaves whole under Auto axes.
            if not (loss in VARIANTS and name == "class_weight" and axis_type == AxisType.Auto)
        ]
        assert all(split_like_input), (loss.name, jax.tree.map(lambda g: g.sharding, gradient))
        assert rows.sharding.is_equivalent_to(fixed[loss.name]["where"].sharding, rows.ndim)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_losses_take_arguments_split_in_any_way(seed):
    """Each by itself, unlike the scores: over either axis of the mesh, both, or none."""
    rng, mesh = np.random.default_rng(seed), make_mesh(AxisType.Explicit)

    def place(array):
        axes = rng.permutation(["data", "classes", None, None])[: np.ndim(array)]
        return jax.device_put(array, NamedSharding(mesh, P(*axes)))

    inputs, fixed = jax.tree.map(place, problems())
    jax.tree.map(assert_close, jax.device_get(jax.jit(evaluate)(inputs, fixed)), on_one_device())


@ON_BOTH_AXIS_TYPES
@pytest.mark.parametrize("num_classes", [40_000, 36_870])
def test_rows_longer_than_a_window_on_a_mesh(axis_type, num_classes, rng):
    """The CPU sums them piece by piece; of 36,870 = 2·18,435 there are two pieces for four devices."""
    logits = rng.normal(size=(2, num_classes)).astype(np.float32)
    labels = np.array([0, num_classes - 1])
    mesh = make_mesh(axis_type, (1, 2) if num_classes % 4 else (1, 4))
    split = jax.device_put(logits, NamedSharding(mesh, P("data", "classes")))
    rows = jax.jit(lambda x: jxent.softmax_cross_entropy(x, labels, label_smoothing=0.1))(split)
    assert_close(rows, oracle.softmax_rows(logits, labels, label_smoothing=0.1)[0])


@pytest.mark.slow
def test_losses_of_replicated_scores_and_split_labels():
    """Each device holds the one row of scores and a label of its own: a gradient is the sum over the devices."""
    scores, labels = {}, {}
    for loss in ALL:
        inputs, fixed = (part[loss.name] for part in problems())
        scores[loss.name] = np.nan_to_num(inputs["scores"][:1], nan=0.25)
        of_rows = fixed["labels"][:4] % NUM_CLASSES if loss.has_ids else np.nan_to_num(inputs["labels"][:4], nan=0.5)
        labels[loss.name] = of_rows

    def sum_of_means(scores, labels, data_axis=None):
        total = 0
        for loss in ALL:
            options = {"label_smoothing": 0.1} if takes(loss, "label_smoothing") else {}
            mean = loss.call(scores[loss.name], labels[loss.name], reduction="partial", **options)
            total += (mean if data_axis is None else mean.psum(data_axis)).value()
        return total

    over_mesh = functools.partial(jax.shard_map, mesh=make_mesh(shape=(4,), names=("data",)), in_specs=(P(), P("data")))
    sharded = functools.partial(sum_of_means, data_axis="data")
    outside = jax.value_and_grad(over_mesh(sharded, out_specs=P()))
    inside = over_mesh(jax.value_and_grad(sharded), out_specs=P())
    repeated = jax.tree.map(lambda row: np.repeat(row, 4, 0), scores)
    value, gradient = jax.device_get(jax.jit(jax.value_and_grad(sum_of_means))(repeated, labels))
    assert np.isfinite(value)
    wanted = value, jax.tree.map(lambda rows: rows.sum(0, keepdims=True), gradient)
    for actual in jax.jit(lambda *arguments: (inside(*arguments), outside(*arguments)))(scores, labels):
        jax.tree.map(assert_close, jax.device_get(actual), wanted)


def test_mean_psum_over_unequal_shards_is_the_mean_of_the_whole(rng):
    logits, labels = rng.normal(size=(8, 5)).astype(np.float32), rng.integers(5, size=8)
    labels[:3] = -100  # one device has no row at all
    mesh = make_mesh(shape=(4,), names=("data",))

    def loss(logits, labels, reduction):
        return jxent.softmax_cross_entropy(logits, labels, ignore_index=-100, reduction=reduction)

    def whole_mean(logits, labels):
        return loss(logits, labels, "partial").psum("data").value()

    over_mesh = functools.partial(jax.shard_map, mesh=mesh, in_specs=(P("data"), P("data")))
    inside = over_mesh(jax.value_and_grad(whole_mean), out_specs=(P(), P("data")))
    outside = jax.value_and_grad(over_mesh(whole_mean, out_specs=P()))
    wanted = jax.value_and_grad(lambda x: loss(x, labels, "mean"))(logits)
    rows, weight = oracle.softmax_rows(logits, np.maximum(labels, 0))
    assert_close(wanted[0], oracle.reduce(rows, weight, where=labels >= 0, reduction="mean"))
    for value_and_grad in (inside, outside):
        jax.tree.map(assert_close, jax.device_get(jax.jit(value_and_grad)(logits, labels)), wanted)

    mean_of_means = over_mesh(lambda *a: jax.lax.pmean(loss(*a, "mean"), "data"), out_specs=P())
    mean_of_means = jax.jit(mean_of_means)(logits, labels)
    assert abs(mean_of_means - wanted[0]) > 0.1


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_long_rows_on_an_explicit_mesh_of_one_device(rng):
    """As a sharded program is run to look for its faults."""
    mesh = jax.make_mesh((1,), ("classes",), axis_types=(AxisType.Explicit,))
    logits, labels = rng.normal(size=(4, 8192)).astype(np.float32), np.arange(4)
    with jax.set_mesh(mesh):
        split = jax.device_put(logits, NamedSharding(mesh, P(None, "classes")))
        loss = jax.jit(jxent.softmax_cross_entropy)(split, labels)
    np.testing.assert_allclose(loss, oracle.softmax_rows(logits, labels)[0], rtol=1e-6)
