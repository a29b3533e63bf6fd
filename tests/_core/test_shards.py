"""Inside a shard_map that splits the classes: every device gets the numbers of the whole rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from tests import oracle
from tests.losses import assert_close
from tests.test_sharding import make_mesh

NUM_ROWS, NUM_CLASSES, PADDED = 6, 7, 8
KINDS = pytest.mark.parametrize("kind", ["ids", "distributions"])
SPLIT = P("data", "classes")
SPECS = {
    "logits": SPLIT,
    "class_weight": P("classes"),
    "sample_weight": P("data"),
    "label_smoothing": P(),
    "z_loss": P(),
    "where": P("data"),
}


def problem(kind, rng):
    """All options on, classes padded with −inf: what a mean is differentiated by, and the rest."""
    padding = ((0, 0), (0, PADDED - NUM_CLASSES))
    logits, where = 3 * rng.normal(size=(NUM_ROWS, NUM_CLASSES)), np.array([1, 0, 1, 1, 1, 0], bool)
    logits[~where] = np.nan
    inputs = {
        "logits": np.pad(logits, padding, constant_values=-np.inf),
        "class_weight": np.pad(rng.uniform(0.5, 2, NUM_CLASSES), padding[1], constant_values=7),
        "sample_weight": rng.uniform(0.5, 2, NUM_ROWS),
        "label_smoothing": 0.2,
        "z_loss": 0.1,
    }
    fixed = {"where": where}
    if kind == "ids":
        fixed["labels"] = np.where(where, rng.integers(NUM_CLASSES, size=NUM_ROWS), 99)
    else:
        inputs["labels"] = np.pad(rng.dirichlet(np.ones(NUM_CLASSES), NUM_ROWS), padding)
    return {name: np.asarray(value, np.float32) for name, value in inputs.items()}, fixed


def specs_of(inputs, kind):
    specs = SPECS | {"labels": P("data") if kind == "ids" else SPLIT}
    return {name: specs[name] for name in inputs}


def loss(inputs, fixed, **options):
    arguments = {**inputs, **fixed, **options}
    return jxent.softmax_cross_entropy(arguments.pop("logits"), arguments.pop("labels"), **arguments)


def mean(inputs, fixed):
    return loss(inputs, fixed, reduction="mean")


def sharded_mean(inputs, fixed):
    return loss(inputs, fixed, reduction="partial", vocab_axis_name="classes").psum("data").value()


def mean_by_oracle(inputs, fixed):
    """The loss of the classes without the padding."""
    options = {name: np.asarray(value, np.float64) for name, value in inputs.items()} | fixed
    options["logits"] = np.where(options["where"][:, None], options["logits"], 0)[:, :NUM_CLASSES]
    options["class_weight"] = options["class_weight"][:NUM_CLASSES]
    labels = options.pop("labels")
    labels = labels if labels.ndim == 1 else labels[:, :NUM_CLASSES]
    sample_weight, where = options.pop("sample_weight"), options.pop("where")
    rows, weight = oracle.softmax_rows(options.pop("logits"), labels, **options)
    return oracle.reduce(rows, weight, sample_weight=sample_weight, where=where, reduction="mean")


@KINDS
def test_vocab_axis_mean_and_gradient_are_the_oracle_inside_and_outside(kind, rng):
    inputs, fixed = problem(kind, rng)
    specs = specs_of(inputs, kind), specs_of(fixed, kind)
    over_mesh = functools.partial(jax.shard_map, mesh=make_mesh(), in_specs=specs)
    inside = over_mesh(jax.value_and_grad(sharded_mean), out_specs=(P(), specs[0]))
    outside = jax.value_and_grad(over_mesh(sharded_mean, out_specs=P()))
    results = jax.jit(lambda *arguments: (inside(*arguments), outside(*arguments)))(inputs, fixed)

    wanted = mean_by_oracle(inputs, fixed)
    for value, gradient in jax.device_get(results):
        assert_close(value, wanted)
        for name, slope in gradient.items():
            is_split = inputs[name].shape[-1:] == (PADDED,)
            real = (..., slice(NUM_CLASSES)) if is_split else ()

            def along(values, name=name, real=real):
                changed = np.array(inputs[name], np.float64)
                changed[real] = values
                return mean_by_oracle({**inputs, name: changed}, fixed)

            assert_close(slope[real], oracle.numerical_gradient(along, inputs[name][real]), factor=3)
            if is_split and name != "labels":  # a target on a class that does not exist costs inf
                np.testing.assert_array_equal(slope[..., NUM_CLASSES:], 0)
        np.testing.assert_array_equal(gradient["logits"][~fixed["where"]], 0)


@pytest.mark.slow
@KINDS
def test_vocab_axis_forward_mode_and_second_order(kind, rng):
    inputs, fixed = problem(kind, rng)
    inputs["logits"] = np.nan_to_num(inputs["logits"], nan=0.5, neginf=-2.0)
    directions = jax.tree.map(lambda x: np.asarray(rng.normal(size=x.shape), np.float32), inputs)
    specs = specs_of(inputs, kind), specs_of(fixed, kind)

    def derivatives(f, inputs, directions, fixed):
        """The slope along a direction, the gradient's own along it, and that once more by reverse over reverse."""

        def gradient(inputs):
            return jax.grad(f)(inputs, fixed)

        def slope_by_reverse(inputs):
            return sum(
                jnp.sum(d * g) for d, g in zip(*map(jax.tree.leaves, (directions, gradient(inputs))), strict=True)
            )

        slope = jax.jvp(lambda inputs: f(inputs, fixed), (inputs,), (directions,))[1]
        return slope, jax.jvp(gradient, (inputs,), (directions,))[1], jax.grad(slope_by_reverse)(inputs)

    wanted = jax.jit(functools.partial(derivatives, mean))(inputs, directions, fixed)
    over_mesh = jax.shard_map(sharded_mean, mesh=make_mesh(), in_specs=specs, out_specs=P())
    actual = jax.jit(functools.partial(derivatives, over_mesh))(inputs, directions, fixed)
    jax.tree.map(functools.partial(assert_close, factor=10), jax.device_get(actual), jax.device_get(wanted))


NO_CLASS = -(2**31)


def special_rows():
    """Classes 0 to 3 are one device's, 4 to 7 the other's."""
    inf, nan = np.inf, np.nan
    rows = [
        # logits, label, predicted
        ([20, 0, 0, 0, 0, 0, 0, 0], 0, 0),
        ([0, 0, 0, 0, 0, 0, 0, 25], 7, 7),
        ([0, 0, 0, 9, 0, 9, 0, 0], 5, 3),
        ([1e8, 0, 0, 0, 1e8, 1e8, 0, 0], 4, 0),
        ([-40, 0, 0, 0, 30, 0, 0, 0], 0, 4),
        ([-inf, 1, 2, 3, -inf, -inf, -inf, -inf], 5, 3),
        ([-inf, -inf, -inf, -inf, 1, 2, -inf, -inf], 5, 5),
        ([1, 2, 3, 4, 5, 6, 7, 8], -1, 7),
        ([1, 2, 3, 4, 5, 6, 7, 8], 8, 7),
        ([1, 2, 3, 4, 5, 6, 7, nan], 1, NO_CLASS),
        ([nan, 2, 3, 4, 5, 6, 7, 8], 5, NO_CLASS),
        ([1, 2, 3, 4, 5, inf, 7, 8], 1, 5),
        ([-inf] * 8, 1, NO_CLASS),
        ([nan] * 8, 99, NO_CLASS),
    ]
    logits, labels, predicted = (np.array(column) for column in zip(*rows, strict=True))
    return logits.astype(np.float32), labels.astype(np.int32), predicted


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@KINDS
def test_vocab_axis_rows_of_every_sort_are_those_of_one_device(kind, dtype, rng):
    logits, ids, predicted = special_rows()
    where = np.arange(len(ids)) < len(ids) - 1
    labels = ids if kind == "ids" else jax.nn.one_hot(ids, 8, dtype=dtype)
    cotangent = jnp.asarray(rng.normal(size=ids.shape), jnp.float32)

    def everything(x, labels, where, cotangent, **options):
        def rows(x):
            return jxent.softmax_cross_entropy(x, labels, where=where, return_aux=True, **options)

        value, pullback, aux = jax.vjp(rows, x, has_aux=True)
        return value, pullback(cotangent)[0], aux

    arguments = jnp.asarray(logits, dtype), labels, where, cotangent
    classes = P(None, "classes")
    over_mesh = jax.shard_map(
        functools.partial(everything, vocab_axis_name="classes"),
        mesh=make_mesh(shape=(2,), names=("classes",)),
        in_specs=(classes, P() if kind == "ids" else classes, P(), P()),
        out_specs=(P(), classes, P()),
    )
    actual, wanted = (jax.device_get(jax.jit(f)(*arguments)) for f in (over_mesh, everything))
    np.testing.assert_array_equal(actual[2].predicted, predicted)
    for ours, one_device in zip(jax.tree.leaves(actual), jax.tree.leaves(wanted), strict=True):
        assert ours.dtype == one_device.dtype
        # Not absolutely: each digit of a confident row counts.
        tolerance = 1e-2 if ours.dtype == jnp.bfloat16 else 1e-6
        np.testing.assert_allclose(ours.astype(np.float64), one_device.astype(np.float64), rtol=tolerance)
    excess = [7 * np.exp(-20.0), 7 * np.exp(-25.0)]
    np.testing.assert_allclose(actual[0][:2], np.log1p(excess), rtol=1e-6)
    np.testing.assert_allclose(actual[1][[0, 1], [0, 7]], cotangent[:2] * np.expm1(-np.log1p(excess)), rtol=1e-2)


@KINDS
def test_vocab_axis_beside_one_that_splits_the_rows_has_an_aux_and_a_gradient(kind, rng):
    logits = rng.normal(size=(4, 8)).astype(np.float32)
    labels = rng.integers(8, size=4) if kind == "ids" else rng.dirichlet(np.ones(8), 4).astype(np.float32)

    def total(logits, labels, **options):
        loss, aux = jxent.softmax_cross_entropy(logits, labels, reduction="sum", return_aux=True, **options)
        return loss + jnp.sum(aux.log_z**2), aux

    def inside(logits, labels):
        loss, aux = total(logits, labels, vocab_axis_name="classes")
        return jax.lax.psum(loss, "data"), aux

    both = P("data", "classes")
    over_mesh = jax.shard_map(
        inside,
        mesh=make_mesh(),
        in_specs=(both, P("data") if kind == "ids" else both),
        out_specs=(P(), jxent.CrossEntropyAux(*[P("data")] * 4)),
    )
    got, want = (jax.jit(jax.value_and_grad(f, has_aux=True))(logits, labels) for f in (over_mesh, total))
    jax.tree.map(assert_close, jax.device_get(got), jax.device_get(want))


def test_vocab_axis_over_two_axes_of_an_explicit_mesh(rng):
    logits, labels = rng.normal(size=(5, PADDED)).astype(np.float32), rng.integers(PADDED, size=5)
    class_weight = rng.uniform(0.5, 2, PADDED).astype(np.float32)
    names = ("classes", "data")

    def rows(logits, class_weight, **options):
        return jxent.softmax_cross_entropy(
            logits, labels, class_weight=class_weight, label_smoothing=0.1, return_aux=True, **options
        )

    sharded = functools.partial(rows, vocab_axis_name=names)
    mesh = make_mesh(AxisType.Explicit)
    split = [
        jax.device_put(x, NamedSharding(mesh, spec)) for x, spec in ((logits, P(None, names)), (class_weight, P(names)))
    ]
    actual = jax.device_get(jax.jit(jax.shard_map(sharded, mesh=mesh, out_specs=P()))(*split))
    jax.tree.map(assert_close, actual, jax.device_get(jax.jit(rows)(logits, class_weight)))
    assert_close(actual[0], oracle.softmax_rows(logits, labels, class_weight=class_weight, label_smoothing=0.1)[0])


# How a call differs from a right one → what its message says.
REFUSED = {
    "no such axis": (
        {"vocab_axis_name": "words"},
        r"vocab_axis_name='words', but there is no mapped axis 'words' here",
    ),
    "no axis": ({"vocab_axis_name": ()}, r"vocab_axis_name must be a name, a tuple of names or None; got \(\)"),
    "classes not split": ({"logits": P("data")}, r"logits does not vary over \['classes'\]: either its in_specs"),
    "one of two axes": ({"logits": P(None, "classes"), "vocab_axis_name": ("data", "classes")}, r"over \['data'\]"),
    "check_vma off": ({"check_vma": False}, "leave check_vma on"),
    "labels split": ({"labels": P("classes")}, "labels varies over vocab_axis_name=.* jax.lax.pmax"),
    "mask split": ({"where": P("classes")}, "where varies over vocab_axis_name=.* jax.lax.pmax"),
    "sample weights split": (
        {"sample_weight": P("classes")},
        "sample_weight varies over vocab_axis_name=.* jax.lax.pmax",
    ),
    "class weights not split": ({"class_weight": P()}, r"class_weight has shape \(8,\); expected \(4,\)"),
}


@pytest.mark.parametrize("difference", REFUSED)
def test_vocab_axis_that_cannot_be_right_is_refused(difference):
    changed, message = REFUSED[difference]
    arguments = {
        "logits": np.zeros((4, PADDED), np.float32),
        "labels": np.zeros(4, np.int32),
        "where": np.ones(4, bool),
        "sample_weight": np.ones(4, np.float32),
        "class_weight": np.ones(PADDED, np.float32),
    }
    specs = {name: changed.get(name, (SPECS | {"labels": P("data")})[name]) for name in arguments}
    over_mesh = jax.shard_map(
        lambda arguments: loss(arguments, {}, vocab_axis_name=changed.get("vocab_axis_name", "classes")),
        mesh=make_mesh(),
        in_specs=(specs,),
        out_specs=P("data"),
        check_vma=changed.get("check_vma", True),
    )
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(over_mesh, arguments)


def test_vocab_axis_outside_of_a_shard_map_is_refused():
    with pytest.raises(ValueError, match=r"no mapped axis 'classes' here; it names an axis of a jax.shard_map"):
        jxent.softmax_cross_entropy([[0.0, 1.0]], [0], vocab_axis_name="classes")
