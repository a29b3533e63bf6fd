"""The fused loss on meshes of four devices: the numbers of one device, and no more between devices than it takes."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from tests.linear_problems import Problem, fused, make_problem, materialised
from tests.test_linear import assert_tree_close
from tests.test_sharding import make_mesh
from tools.hlo import collectives

B, T, D, V, CHUNK = 4, 6, 6, 8, 4
KINDS = pytest.mark.parametrize("kind", ["ids", "soft"])
ROWS, CLASSES = P("data"), P("classes")
OF_ARGUMENTS = {
    "hidden": ROWS,
    "sample_weight": ROWS,
    "where": ROWS,
    "bias": CLASSES,
    "class_weight": CLASSES,
    "kernel": P(None, "classes"),
    "label_smoothing": P(),
    "z_loss": P(),
    "logit_scale": P(),
    "logit_softcap": P(),
}
SPLITS = {
    "rows": {"kernel": P(), "bias": P(), "class_weight": P(), "labels": ROWS},
    "classes": {"hidden": P(), "sample_weight": P(), "where": P()},
    "both": {},
    "width": {"kernel": P("classes"), "bias": P(), "class_weight": P(), "labels": ROWS},
    "width over the rows' axis": {"kernel": P("data"), "bias": P(), "class_weight": P(), "labels": ROWS},
}


def specs_of(split, kind):
    rows = SPLITS[split].get("hidden", ROWS)
    classes = "classes" if split in ("classes", "both") else None
    labels = rows if kind == "ids" else P(*(rows or (None,)), None, classes)
    return OF_ARGUMENTS | SPLITS[split] | {"labels": labels}


def on_mesh(mesh, specs, arrays):
    return {name: jax.device_put(array, NamedSharding(mesh, specs[name])) for name, array in arrays.items()}


def results(loss, arguments, fixed, **options):
    """The rows, the mean, and the mean's gradient by every argument."""
    mean = functools.partial(loss, reduction="mean", **fixed, **options)
    return loss(arguments, **fixed, **options), jax.value_and_grad(mean)(arguments)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
@pytest.mark.parametrize(
    ("split", "kind", "masked"),
    [
        *((split, "ids", False) for split in SPLITS),
        *((split, "ids", True) for split in ("rows", "both")),
        ("both", "soft", True),
    ],
)
def test_linear_on_a_mesh_is_that_on_one_device(rng, axis_type, split, kind, masked):
    problem = make_problem(rng, (B, T), D, V, kind, softcap=4.0, masked=masked, dtype=np.float32)
    specs = specs_of(split, kind)
    want = jax.jit(functools.partial(results, materialised))(problem.arguments, problem.fixed)
    placed = (on_mesh(make_mesh(axis_type), specs, part) for part in (problem.arguments, problem.fixed))
    got = jax.jit(functools.partial(results, fused, chunk_size=CHUNK))(*placed)
    assert_tree_close(jax.device_get(got), want, 5e-6)
    rows, (_, slopes) = got
    assert rows.sharding.is_equivalent_to(NamedSharding(make_mesh(axis_type), specs["sample_weight"]), rows.ndim)
    for name, slope in slopes.items():
        # Under Auto axes jax does not tell how a kernel is split, and XLA leaves the gradient of a gathered one whole.
        if not (split.startswith("width") and name == "kernel" and axis_type == AxisType.Auto):
            wanted = NamedSharding(make_mesh(axis_type), specs[name])
            assert slope.sharding.is_equivalent_to(wanted, slope.ndim), (name, slope.sharding)


def padded(problem):
    """One more class a device, of −inf; masked rows hold NaN."""
    where = problem.fixed["where"]

    def pad(name, a):
        if name in ("kernel", "bias", "class_weight") or (name == "labels" and a.ndim == 3):
            fill = {"kernel": 1, "bias": -np.inf, "class_weight": 5, "labels": 0}[name]
            return jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, 2)], constant_values=fill)
        return jnp.where(where[..., None], a, jnp.nan) if name == "hidden" else a

    return Problem({name: pad(name, a) for name, a in problem.arguments.items()}, problem.fixed, problem.cotangents)


@pytest.mark.slow
@KINDS
def test_linear_vocab_axis_inside_and_outside_of_shard_map(rng, kind):
    problem = make_problem(rng, (B, T), D, V, kind, softcap=4.0, dtype=np.float32)
    wide = padded(problem)
    specs = specs_of("both", kind)
    of = {name: specs[name] for name in wide.arguments}, {name: specs[name] for name in wide.fixed}

    def mean(arguments, fixed):
        partial = fused(arguments, **fixed, reduction="partial", vocab_axis_name="classes", chunk_size=5)
        return partial.psum("data").value()

    def weighted_rows(arguments, fixed):
        rows, aux = fused(arguments, **fixed, vocab_axis_name="classes", chunk_size=5, return_aux=True)
        return jax.lax.psum(jnp.sum(rows * jnp.cos(jnp.arange(T))[None]), "data"), aux

    over_mesh = functools.partial(jax.shard_map, mesh=make_mesh(), in_specs=of)
    rows_specs = P(), jxent.CrossEntropyAux(ROWS, ROWS, ROWS, ROWS)

    @jax.jit
    def evaluate(arguments, fixed):
        inside = over_mesh(jax.value_and_grad(mean), out_specs=(P(), of[0]))(arguments, fixed)
        outside = jax.value_and_grad(over_mesh(mean, out_specs=P()))(arguments, fixed)
        of_rows = jax.value_and_grad(over_mesh(weighted_rows, out_specs=rows_specs), has_aux=True)(arguments, fixed)
        return inside, outside, of_rows

    def narrowed(name, slope):
        return slope[..., :V] if name in ("kernel", "bias", "class_weight") or slope.shape[-1:] == (V + 2,) else slope

    inside, outside, ((value, aux), slopes) = jax.device_get(evaluate(wide.arguments, wide.fixed))
    want = jax.value_and_grad(functools.partial(materialised, **problem.fixed, reduction="mean"))(problem.arguments)
    for got in (inside, outside):
        assert_tree_close((got[0], {name: narrowed(name, s) for name, s in got[1].items()}), want, 5e-6)
        np.testing.assert_array_equal(got[1]["hidden"][~problem.fixed["where"]], 0)
    weighed = jax.value_and_grad(lambda a: jnp.sum(materialised(a, **problem.fixed) * jnp.cos(jnp.arange(T))[None]))(
        problem.arguments
    )
    assert_tree_close((value, {name: narrowed(name, s) for name, s in slopes.items()}), weighed, 5e-6)
    on_one_device = fused(problem.arguments, **problem.fixed, return_aux=True)[1]
    assert_tree_close(aux, jxent.CrossEntropyAux(*on_one_device), 5e-6)


def test_linear_vocab_axis_that_does_not_split_the_kernel_is_refused(rng):
    problem = make_problem(rng, (B,), D, V, "ids", bare=True, dtype=np.float32)

    def over_mesh(specs, **options):
        call = functools.partial(fused, reduction="sum", vocab_axis_name="classes", labels=problem.fixed["labels"])
        return jax.shard_map(call, mesh=make_mesh(), in_specs=(specs,), out_specs=P(), **options)(problem.arguments)

    split = {"hidden": P(), "kernel": P(None, "classes")}
    with pytest.raises(ValueError, match=r"linear_softmax_cross_entropy: vocab_axis_name='classes'.*kernel.*check_vma"):
        over_mesh({"hidden": P(), "kernel": P()})
    with pytest.raises(ValueError, match="leave check_vma on"):
        over_mesh(split, check_vma=False)
    with pytest.raises(ValueError, match=r"linear_softmax_cross_entropy: hidden varies over vocab_axis_name"):
        over_mesh(split | {"hidden": P("classes")})


# One device holds n rows and c classes.
N, n, c = 64, 32, 500


def program(how, split, gradient=True, chunk_size=8):
    """The mean, or with its gradient by hidden and kernel, of 64 rows on 2·2 devices."""
    specs = specs_of(split, "ids")
    mesh = make_mesh(AxisType.Explicit if how == "Explicit" else AxisType.Auto)
    vocab = "classes" if split == "both" and how == "shard_map" else None

    def mean(hidden, kernel, labels):
        options = {"vocab_axis_name": vocab, "chunk_size": chunk_size}
        if how != "shard_map":
            return jxent.linear_softmax_cross_entropy(hidden, kernel, labels, reduction="mean", chunk_size=chunk_size)
        return (
            jxent.linear_softmax_cross_entropy(hidden, kernel, labels, reduction="partial", **options)
            .psum("data")
            .value()
        )

    of = tuple(specs[name] for name in ("hidden", "kernel", "labels"))
    if how == "shard_map":
        mean = jax.shard_map(mean, mesh=mesh, in_specs=of, out_specs=P())
    f = jax.value_and_grad(mean, (0, 1)) if gradient else mean
    shapes = ((N, D), jnp.float32), ((D, 2 * c), jnp.float32), ((N,), jnp.int32)
    structs = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for (shape, dtype), spec in zip(shapes, of, strict=True)
    ]
    return jax.jit(f).lower(*structs).compile()


def sizes(compiled, kind="all-reduce"):
    return sorted(size for collective in collectives(compiled) if collective.kind == kind for size in collective.sizes)


@pytest.mark.parametrize("how", ["Explicit", "shard_map"])
def test_linear_sends_what_it_must(how):
    # Over the classes of each row a maximum, and the sum of u, the number of devices that have the maximum, and the
    # entry at the id, in chunks of 8 rows (in a loop, which counts once), and the parts of d_hidden; over the rows d_kernel once, the two sums of the mean (of ids alone the weight is known).
    of_rows, of_both = program(how, "rows"), program(how, "both")
    for compiled in (of_rows, of_both):
        assert {collective.kind for collective in collectives(compiled)} == {"all-reduce"}
    assert [size for size in sizes(of_rows) if size > 1] == [D * 2 * c]
    assert [size for size in sizes(of_both) if size > 1] == [8, 3 * 8, n * D, D * c]
    assert [size for size in sizes(program(how, "both", gradient=False)) if size > 1] == [8, 3 * 8]


@pytest.mark.parametrize("how", ["Auto", "Explicit"])
@pytest.mark.parametrize("split", ["width", "width over the rows' axis"])
def test_linear_gathers_a_kernel_split_over_its_width_once(how, split):
    compiled = program(how, split)
    assert sizes(compiled, "all-gather") == [D * 2 * c]
    in_a_loop = re.findall(r"while/body[^\n]*all-gather|all-gather[^\n]*while/body", compiled.as_text())
    assert not in_a_loop


@pytest.mark.parametrize("split", ["rows", "both"])
def test_linear_under_auto_axes_gathers_nothing_and_each_device_takes_its_rows(split):
    # XLA:CPU adds d_kernel over the rows' axis for each chunk here, which a shard_map or Explicit axes do once.
    compiled = program("Auto", split)
    assert {collective.kind for collective in collectives(compiled)} == {"all-reduce"}
    classes = c if split == "both" else 2 * c
    # 8 rows of a chunk on two devices.
    products = re.findall(r"= f32\[(\d+),(\d+)\]\S* dot\(", compiled.as_text())
    assert (str(4), str(classes)) in products
    assert max(math.prod(map(int, shape)) for shape in products) <= max(4 * classes, D * classes)


@pytest.mark.parametrize("how", ["Explicit", "shard_map"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_linear_adds_the_kernels_gradient_over_the_devices_before_it_is_cast(rng, how, reduction):
    """The parts of two devices nearly cancel: rounded to bfloat16 before they are added, they would leave an error of a
    part's, which is far above that of the sum."""
    mesh = make_mesh(AxisType.Explicit if how == "Explicit" else AxisType.Auto)
    hidden = jnp.asarray(rng.normal(size=(8, D)), jnp.bfloat16)
    hidden = jnp.concatenate((hidden, -hidden * jnp.bfloat16(1 + 2**-6)))
    kernel, labels = jnp.asarray(rng.normal(size=(D, V)) / 8, jnp.bfloat16), jnp.zeros(16, jnp.int32)

    def total(hidden, kernel, labels):
        loss = jxent.linear_softmax_cross_entropy(hidden, kernel, labels, reduction=reduction, chunk_size=4)
        return jax.lax.psum(jnp.sum(loss), "data") if how == "shard_map" else jnp.sum(loss)

    specs = ROWS, P(), ROWS
    over_mesh = jax.shard_map(total, mesh=mesh, in_specs=specs, out_specs=P()) if how == "shard_map" else total
    placed = [jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip((hidden, kernel, labels), specs, strict=True)]
    program = jax.jit(jax.grad(over_mesh, 1)).trace(*placed)
    sent = re.findall(r":(\w+)\[6,8\]\S* = psum\w*\[", str(program.jaxpr))
    assert sent == ["f32"]
    got = program.lower().compile()(*placed)
    assert got.dtype == jnp.bfloat16
    one_device = jax.jit(
        jax.grad(lambda k: jnp.sum(jxent.linear_softmax_cross_entropy(hidden, k, labels, chunk_size=4)))
    )(kernel)
    np.testing.assert_allclose(np.float64(got), np.float64(one_device), rtol=2**-7, atol=1e-4)


def explicit_arrays(rng, specs, rows=(8,)):
    """Hidden states, a kernel and ids, on a mesh of two and two devices with Explicit axes."""
    mesh = make_mesh(AxisType.Explicit)
    arrays = rng.normal(size=(*rows, D)), rng.normal(size=(D, V)), rng.integers(V, size=rows)
    arrays = [jnp.asarray(a, np.float32 if a.dtype == np.float64 else np.int32) for a in arrays]
    placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arrays, specs, strict=True)]
    return mesh, arrays, placed


def assert_value_and_gradient_are_those_of_one_device(mesh, over_mesh, one_device, placed, arrays):
    with jax.set_mesh(mesh):
        got = jax.jit(jax.value_and_grad(over_mesh, (0, 1)))(*placed)
    assert_tree_close(jax.device_get(got), jax.value_and_grad(one_device, (0, 1))(*arrays), 5e-6)


@pytest.mark.parametrize("reduction", ["mean", "partial", "none"])
@pytest.mark.parametrize("rows", [None, "data"], ids=["rows whole", "rows split"])
def test_linear_vocab_axis_beside_an_explicit_one(rng, rows, reduction):
    """The `shard_map` is over `classes` alone; `data` stays Explicit, and is no business of `vocab_axis_name`."""
    mesh, arrays, placed = explicit_arrays(rng, (P(rows), P(None, "classes"), P(rows)))
    cotangent = jnp.cos(jnp.arange(8.0))

    def loss(hidden, kernel, labels, **options):
        loss = jxent.linear_softmax_cross_entropy(hidden, kernel, labels, reduction=reduction, chunk_size=3, **options)
        return jnp.sum(loss * cotangent) if reduction == "none" else loss.value() if reduction == "partial" else loss

    over_classes = jax.shard_map(
        functools.partial(loss, vocab_axis_name="classes"),
        in_specs=(P(), P(None, "classes"), P()),
        out_specs=P(),
        axis_names={"classes"},
    )
    assert_value_and_gradient_are_those_of_one_device(mesh, over_classes, loss, placed, arrays)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("gradient", ["outside", "inside"])
@pytest.mark.parametrize("classes", [None, "classes"], ids=["classes whole", "classes split"])
def test_linear_in_a_shard_map_over_rows_with_classes_explicit(rng, classes, gradient, reduction):
    mesh, arrays, placed = explicit_arrays(rng, (ROWS, P(None, classes), ROWS))

    def total(hidden, kernel, labels):
        loss = jxent.linear_softmax_cross_entropy(hidden, kernel, labels, reduction=reduction, chunk_size=2)
        return jnp.sum(loss * loss)

    def of_devices(hidden, kernel, labels):
        loss = jxent.linear_softmax_cross_entropy(hidden, kernel, labels, reduction="none", chunk_size=2)
        return jax.lax.psum(jnp.sum(loss * loss), "data")

    if reduction == "sum":
        of_devices = lambda *a: jax.lax.psum(  # noqa: E731
            jxent.linear_softmax_cross_entropy(*a, reduction="sum", chunk_size=2), "data"
        )
        total = functools.partial(jxent.linear_softmax_cross_entropy, reduction="sum")
    over_rows = functools.partial(jax.shard_map, mesh=mesh, in_specs=(ROWS, P(), ROWS), axis_names={"data"})
    if gradient == "outside":
        f = over_rows(of_devices, out_specs=P())
        assert_value_and_gradient_are_those_of_one_device(mesh, f, total, placed, arrays)
        return
    f = over_rows(jax.value_and_grad(of_devices, (0, 1)), out_specs=(P(), (ROWS, P())))
    with jax.set_mesh(mesh):
        got = jax.jit(f)(*placed)
    assert_tree_close(jax.device_get(got), jax.value_and_grad(total, (0, 1))(*arrays), 5e-6)


@pytest.mark.parametrize("rows", [None, "classes"], ids=["rows whole", "rows split"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_vmap_over_a_batch_that_explicit_axes_split(rng, reduction, rows):
    batch = P("data", rows)
    mesh, arrays, placed = explicit_arrays(rng, (batch, P(), batch), rows=(4, 6))

    def total(hidden, kernel, labels):
        def loss(hidden, labels):
            return jnp.sum(
                jxent.linear_softmax_cross_entropy(hidden, kernel, labels, reduction=reduction, chunk_size=2) ** 2
            )

        return jnp.sum(jax.vmap(loss)(hidden, labels))

    assert_value_and_gradient_are_those_of_one_device(mesh, total, total, placed, arrays)


@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_linear_row_arguments_split_unlike_hidden(rng, reduction):
    """Each its own way, and `hidden` not at all: they are sent where `hidden` is."""
    problem = make_problem(rng, (B, T), D, V, "soft", softcap=4.0, dtype=np.float32)
    mesh = make_mesh(AxisType.Explicit)
    specs = dict.fromkeys([*problem.arguments, *problem.fixed], P())
    specs |= {"labels": P("data"), "sample_weight": P("classes"), "where": P("data"), "class_weight": P("data")}

    def total(loss, arguments, fixed):
        return jnp.sum(problem.cotangents[reduction] * loss(arguments, **fixed, reduction=reduction))

    placed = (on_mesh(mesh, specs, part) for part in (problem.arguments, problem.fixed))
    with jax.set_mesh(mesh):
        got = jax.jit(jax.value_and_grad(functools.partial(total, fused)))(*placed)
    want = jax.value_and_grad(functools.partial(total, materialised))(problem.arguments, problem.fixed)
    assert_tree_close(jax.device_get(got), want, 5e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_linear_takes_arguments_split_in_any_way(rng, kind, seed):
    """Each by itself, unlike hidden states and kernel: over either axis of the mesh, both, or none."""
    n, d, v = 8, 6, 4
    arrays = {
        "hidden": rng.normal(size=(n, d)),
        "kernel": rng.normal(size=(d, v)),
        "class_weight": rng.uniform(0.5, 2, v),
        "sample_weight": rng.uniform(0.5, 2, n),
    }
    arrays = {name: np.float32(a) for name, a in arrays.items()}
    labels = rng.integers(v, size=n) if kind == "ids" else np.float32(rng.dirichlet(np.ones(v), size=n))
    fixed = {"labels": labels, "where": rng.random(n) < 0.7}
    options = {"label_smoothing": 0.1} | ({"ignore_index": 1} if kind == "ids" else {})

    def mean(arrays, fixed):
        return jxent.linear_softmax_cross_entropy(**arrays, **fixed, **options, reduction="mean")

    mesh, order = make_mesh(AxisType.Explicit), np.random.default_rng(seed)

    def place(array):
        axes = order.permutation(["data", "classes", None, None])[: np.ndim(array)]
        return jax.device_put(array, NamedSharding(mesh, P(*axes)))

    value_and_grad = jax.jit(jax.value_and_grad(mean))
    wanted = jax.device_get(value_and_grad(arrays, fixed))
    actual = jax.device_get(value_and_grad(*jax.tree.map(place, (arrays, fixed))))
    assert_tree_close(actual, wanted, 5e-6)


@pytest.mark.parametrize("reduction", ["mean", "partial"])
@pytest.mark.parametrize("split", ["hidden", "kernel"])
def test_linear_distributions_that_are_alike_on_all_devices(rng, split, reduction):
    """In a `shard_map` in which the labels vary over fewer axes than what they are compared with."""
    hidden, kernel = (
        jnp.asarray(rng.normal(size=(8, 4)), np.float32),
        jnp.asarray(rng.normal(size=(2, 4, 5)), np.float32),
    )
    labels = jnp.asarray(rng.dirichlet(np.ones(5), 4), np.float32)

    def mean(hidden, kernel, labels):
        loss = jxent.linear_softmax_cross_entropy(hidden, kernel[0], labels, reduction=reduction, chunk_size=2)
        return jax.lax.pmean(loss if reduction == "mean" else loss.value(), "data")

    specs = {"hidden": (ROWS, P()), "kernel": (P(), ROWS)}[split]
    over_mesh = jax.shard_map(mean, mesh=make_mesh(), in_specs=(*specs, P()), out_specs=P())

    def one_by_one(hidden, kernel, labels):
        halves = {
            "hidden": [(hidden[:4], kernel), (hidden[4:], kernel)],
            "kernel": [(hidden[:4], k[None]) for k in kernel],
        }
        losses = [jxent.linear_softmax_cross_entropy(h, k[0], labels, reduction="mean") for h, k in halves[split]]
        return sum(losses) / 2

    if split == "kernel":
        hidden = hidden[:4]
    arguments = hidden, kernel, labels
    got, want = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(*arguments) for f in (over_mesh, one_by_one))
    assert_tree_close(jax.device_get(got), jax.device_get(want), 5e-6)
