"""Divergences of a student from a teacher, against the textbook in float64, scipy, and themselves without the logits."""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr

import jxent
from tests.test_linear import assert_tree_close
from tests.test_sharding import make_mesh

N, V, D, E = 10, 8, 5, 6
BETAS = pytest.mark.parametrize("beta", [0, 0.1, 0.5, 0.9, 1])
SOME_BETAS = pytest.mark.parametrize("beta", [0, 0.3, 1])
WHERE = np.arange(N) % 3 != 1
INF = np.inf


def textbook(student, teacher, temperature=1.0, beta=0.0):
    """The divergence of each row; classes at −inf in both are left out."""
    s, t = (jax.nn.log_softmax(x / temperature) for x in (student, jax.lax.stop_gradient(teacher)))

    def kl(p, q):
        return jnp.sum(jnp.exp(p) * (p - q), -1)

    if beta in (0, 1):
        return kl(s, t) if beta else kl(t, s)
    m = jnp.logaddexp(jnp.log(beta) + t, jnp.log1p(-beta) + s)
    return beta * kl(t, m) + (1 - beta) * kl(s, m)


@pytest.fixture
def logits(rng):
    return jnp.asarray(2 * rng.normal(size=(N, V))), jnp.asarray(2 * rng.normal(size=(N, V)))


@pytest.mark.parametrize(("beta", "axis"), [(0, 1), (0.1, 1), (0.5, 0), (0.5, 1), (0.9, 1), (1, 1)])
def test_distillation_is_the_textbooks_in_every_derivative(x64, logits, beta, axis):
    cotangent = jnp.cos(jnp.arange(N))

    def ours(student, teacher, temperature):
        student, teacher = (student, teacher) if axis else (student.T, teacher.T)
        rows = jxent.softmax_distillation(student, teacher, temperature=temperature, beta=beta, axis=axis)
        return jnp.vdot(cotangent, rows)

    def plain(student, teacher, temperature):
        return jnp.vdot(cotangent, textbook(student, teacher, temperature, beta))

    got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(*logits, 2.5) for f in (ours, plain))
    assert_tree_close(got, want, 1e-12)
    np.testing.assert_array_equal(got[1][1], 0)
    along = jnp.sin(logits[0]), jnp.zeros_like(logits[1]), 0.0
    got, want = (jax.jit(lambda *a, f=f: jax.jvp(f, a, along))(*logits, 2.5) for f in (ours, plain))
    assert_tree_close(got, want, 1e-12)
    got, want = (jax.jit(jax.hessian(f))(*logits, 2.5) for f in (ours, plain))
    assert_tree_close(got, want, 1e-11)


@BETAS
def test_distillation_by_the_temperature(x64, logits, beta):
    """The slopes from the student's part and the teacher's, by finite differences: the textbook's teacher is a constant."""

    def total(temperature):
        return jxent.softmax_distillation(*logits, temperature=temperature, beta=beta, reduction="sum")

    h = 1e-5
    np.testing.assert_allclose(jax.grad(total)(2.5), (total(2.5 + h) - total(2.5 - h)) / (2 * h), rtol=1e-8)


def test_distillation_agrees_with_scipy(rng):
    student, teacher = (rng.normal(size=(N, V)).astype(np.float32) for _ in range(2))
    s, t = (np.asarray(jax.nn.softmax(x), np.float64) for x in (student, teacher))
    rows = functools.partial(jxent.softmax_distillation, student, teacher)
    np.testing.assert_allclose(rows(), rel_entr(t, s).sum(1), rtol=1e-5)
    np.testing.assert_allclose(rows(beta=1), rel_entr(s, t).sum(1), rtol=1e-5)
    np.testing.assert_allclose(rows(beta=0.5), jensenshannon(s, t, axis=1) ** 2, rtol=1e-5)


@BETAS
@pytest.mark.parametrize("gap", [1e-5, 1e-4, 1e-3, 1e-2, 1, 20])
def test_distillation_keeps_its_digits(rng, beta, gap):
    """Down to divergences of 1e-10, where Σ t·(log t − log s) in float32 has none."""
    student = (3 * rng.normal(size=40)).astype(np.float32)
    teacher = (student + gap * rng.normal(size=40)).astype(np.float32)
    with mpmath.workdps(50):
        s, t = ([mpmath.exp(mpmath.mpf(float(x))) for x in row] for row in (student, teacher))
        s, t = ([x / mpmath.fsum(row) for x in row] for row in (s, t))
        kl = lambda p, q: mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True))  # noqa: E731
        b = mpmath.mpf(beta)
        m = [b * y + (1 - b) * x for x, y in zip(s, t, strict=True)]
        truth = {0: lambda: kl(t, s), 1: lambda: kl(s, t)}.get(beta, lambda: b * kl(t, m) + (1 - b) * kl(s, m))()
    value = jxent.softmax_distillation(student, teacher, beta=beta)
    assert abs(float(value) / truth - 1) < (2e-4 if gap < 1e-4 else 2e-5)


@BETAS
def test_distillation_of_equal_logits_is_nothing(rng, beta):
    logits = jnp.asarray(5 * rng.normal(size=(4, 1000)), jnp.float32)
    value, slope = jax.value_and_grad(lambda x: jxent.softmax_distillation(x, logits, beta=beta).sum())(logits)
    assert abs(value) <= 1e-7
    assert np.abs(slope).max() <= 1e-7
    with_shift = jxent.softmax_distillation(logits + 8, logits, beta=beta)
    assert np.abs(with_shift).max() <= 1e-7


@SOME_BETAS
@pytest.mark.parametrize("temperature", [None, 2.0])
@pytest.mark.parametrize("gap", [1e-5, 1e-2])
def test_distillation_gradient_keeps_its_digits(rng, gap, temperature, beta):
    """With many classes, the rounding of log z would show in every slope."""
    teacher = np.float32(2 * rng.normal(size=(2, 32000)))
    student = teacher + np.float32(gap * rng.normal(size=teacher.shape))

    def total(student, teacher):
        return jnp.sum(jxent.softmax_distillation(student, teacher, beta=beta, temperature=temperature))

    got = jax.grad(total)(student, teacher)
    with jax.enable_x64(True):
        want = jax.grad(lambda s, t: jnp.sum(textbook(s, t, temperature or 1.0, beta)))(
            *map(np.float64, (student, teacher))
        )
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6 * np.abs(want).max())


@SOME_BETAS
@pytest.mark.parametrize("shift", [0, 40])  # slopes of the infinite row overflow when multiplied by large logits
def test_distillation_infinite_rows_of_weight_0_are_nothing(shift, beta):
    student, teacher = jnp.array([[3, -INF, 5], [1, 2, 0.5]]), jnp.array([[3, 2, -INF], [1, 2, 3.0]]) + shift
    weight = jnp.array([0.0, 1.0])

    def weighed(student, temperature, rows, reduction):
        kept = {"sample_weight": weight[2 - rows :], "temperature": temperature, "beta": beta, "reduction": reduction}
        return jnp.sum(jxent.softmax_distillation(student[2 - rows :], teacher[2 - rows :], **kept))

    for reduction in ("none", "sum"):
        of_both, of_one = (
            jax.value_and_grad(weighed, (0, 1))(student, jnp.float32(0.5), rows, reduction) for rows in (2, 1)
        )
        assert_tree_close(of_both, of_one, 1e-6)


def test_distillation_slopes_of_an_infinite_row_sum_to_0():
    student, teacher = jnp.array([[3.0, 1, 5]]), jnp.array([[3, 2, -INF]])
    slope = jax.grad(lambda x: jxent.softmax_distillation(x, teacher, beta=1)[0])(student)
    assert slope[0, 2] > 1e30
    np.testing.assert_allclose(jnp.sum(slope / slope[0, 2]), 0, atol=1e-6)


@pytest.mark.parametrize("beta", [1e-8, 1 - 1e-8])
def test_distillation_of_a_beta_that_rounds(beta):
    student, teacher = np.float32([[200, 0], [1, 0]]), np.float32([[0, 200], [0, 1]])
    got = jxent.softmax_distillation(student, teacher, beta=beta)
    m, far = np.float64(jax.nn.softmax(np.stack([student, teacher]), axis=-1)), min(beta, 1 - beta)
    mix = beta * m[1] + (1 - beta) * m[0]
    want = beta * rel_entr(m[1], mix).sum(-1) + (1 - beta) * rel_entr(m[0], mix).sum(-1)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=far * 1e-5)


def test_distillation_of_classes_that_do_not_exist():
    student = jnp.array([[0, 1, -INF], [0, 1, 2], [0, -INF, 1], [0, 0, 0]])
    teacher = jnp.array([[1, 0, -INF], [0, 1, -INF], [0, 1, 2], [-INF, -INF, -INF]])
    s, t = np.float64(jax.nn.softmax(student)), np.float64(jax.nn.softmax(teacher))
    rows = functools.partial(jxent.softmax_distillation, student, teacher)
    forward, backward = rel_entr(t, s).sum(1), rel_entr(s, t).sum(1)
    np.testing.assert_allclose(rows(), forward, rtol=1e-6)
    np.testing.assert_allclose(rows(beta=1), backward, rtol=1e-6)
    np.testing.assert_array_equal(np.isinf(rows()), [False, False, True, False])
    np.testing.assert_array_equal(np.isinf(rows(beta=1)), [False, True, False, False])
    np.testing.assert_array_equal(np.isnan(rows(beta=0.5)), [False, False, False, True])
    m = 0.3 * t + 0.7 * s
    np.testing.assert_allclose(rows(beta=0.3), 0.3 * rel_entr(t, m).sum(1) + 0.7 * rel_entr(s, m).sum(1), rtol=1e-6)
    for beta in (0, 0.3, 1):
        slope = jax.grad(lambda x, b=beta: jxent.softmax_distillation(x, teacher, beta=b)[:3].sum())(student)
        assert np.isfinite(slope[:3]).all()
        np.testing.assert_array_equal(slope[:3][student[:3] == -INF], 0)
        assert np.isnan(slope[3]).all()


@SOME_BETAS
@pytest.mark.parametrize("fused", [False, True])
def test_distillation_masked_rows_are_exactly_zero(rng, beta, fused):
    shapes = ((N, D), (D, V), (N, E), (E, V)) if fused else ((N, V), (N, V))
    arguments = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]
    for i in (0, len(shapes) // 2):
        arguments[i] = jnp.where(WHERE[:, None], arguments[i], jnp.nan)
    call = functools.partial(jxent.linear_softmax_distillation, chunk_size=3) if fused else jxent.softmax_distillation

    def rows(*arguments):
        return call(*arguments, beta=beta, where=WHERE)

    wrt = (0, 1) if fused else (0,)
    value, slopes = jax.value_and_grad(lambda *a: rows(*a).sum(), wrt)(*arguments)
    assert np.isfinite(value)
    np.testing.assert_array_equal(rows(*arguments)[~WHERE], 0)
    np.testing.assert_array_equal(slopes[0][~WHERE], 0)
    assert all(np.isfinite(slope).all() for slope in slopes)


def fused_arguments(rng, dtype=np.float64):
    """The arguments by name; the kernels of student and teacher differ in width and orientation."""
    shapes = {"hidden": (N, D), "kernel": (D, V), "bias": (V,), "teacher_hidden": (N, E)}
    shapes |= {"teacher_kernel": (V, E), "teacher_bias": (V,)}
    arguments = {name: jnp.asarray(rng.normal(size=shape), dtype) for name, shape in shapes.items()}
    return arguments | {"temperature": jnp.asarray(1.7, dtype)}


def logits_of(a):
    student = a["hidden"] @ a["kernel"] + a["bias"][None]
    return student, a["teacher_hidden"] @ a["teacher_kernel"].T + a["teacher_bias"][None]


# The mean to second order.
@pytest.mark.parametrize(
    ("beta", "reduction"),
    [*itertools.product([0, 0.3, 1], ["none", "mean"]), (0.3, "sum"), (1, "partial")],
)
def test_linear_distillation_is_that_of_materialised_logits(rng, x64, beta, reduction):
    weight, cotangent = rng.uniform(0.5, 2, N), rng.normal(size=N)
    options = {"where": WHERE, "sample_weight": weight, "beta": beta, "reduction": reduction}

    def reduced(result):
        if reduction == "none":
            return jnp.vdot(cotangent, result)
        return result.total / result.weight if reduction == "partial" else result

    def ours(arguments):
        call = functools.partial(jxent.linear_softmax_distillation, teacher_transpose_kernel=True, chunk_size=4)
        return reduced(call(**arguments, **options))

    def plain(arguments):
        student, teacher = logits_of(arguments)
        return reduced(jxent.softmax_distillation(student, teacher, temperature=arguments["temperature"], **options))

    arguments = fused_arguments(rng)
    got, want = (jax.jit(jax.value_and_grad(f))(arguments) for f in (ours, plain))
    assert_tree_close(got, want, 1e-12)
    assert all(not np.any(slope) for name, slope in got[1].items() if name.startswith("teacher"))
    if reduction == "mean":
        got, want = (
            jax.jit(jax.hessian(lambda h, f=f: f({**arguments, "hidden": h})))(arguments["hidden"])
            for f in (ours, plain)
        )
        assert_tree_close(got, want, 1e-11)


def test_linear_distillation_takes_four_matmuls_and_no_array_of_logits():
    n, d, e, v = 256, 8, 12, 4096
    shapes = (n, d), (d, v), (n, e), (e, v)
    structs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    for where in (None, np.arange(n) < 9):

        def mean(*arguments, where=where):
            return jxent.linear_softmax_distillation(*arguments, where=where, chunk_size=8, reduction="mean")

        compiled = jax.jit(jax.value_and_grad(mean, (0, 1))).lower(*structs).compile()
        assert compiled.as_text().count(" dot(") == 4
        assert compiled.memory_analysis().temp_size_in_bytes < 4 * n * v
        assert (" conditional(" in compiled.as_text()) == (where is not None)


SPLITS = {
    "hidden": P("data"),
    "kernel": P(None, "classes"),
    "bias": P("classes"),
    "teacher_hidden": P("data"),
    "teacher_kernel": P("classes"),
    "teacher_bias": P("classes"),
    "temperature": P(),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("beta", "how"), [(0, "Auto"), (0.3, "Auto"), (0.3, "Explicit"), (0.3, "shard_map"), (1, "shard_map")]
)
def test_linear_distillation_on_a_mesh_is_that_of_one_device(rng, beta, how):
    arguments, where = fused_arguments(rng, np.float32), jnp.asarray(WHERE)
    mesh = make_mesh(AxisType.Explicit if how == "Explicit" else AxisType.Auto)

    def partial(arguments, where, **options):
        call = functools.partial(jxent.linear_softmax_distillation, teacher_transpose_kernel=True, chunk_size=2)
        return call(**arguments, where=where, beta=beta, reduction="partial", **options)

    def mean(arguments, where):
        return partial(arguments, where).value()

    def inside(arguments, where):
        return partial(arguments, where, vocab_axis_name="classes").psum("data").value()

    want = jax.jit(jax.value_and_grad(mean))(arguments, where)
    over_mesh = mean
    if how == "shard_map":
        over_mesh = jax.shard_map(inside, mesh=mesh, in_specs=(SPLITS, P("data")), out_specs=P())
    placed = {name: jax.device_put(a, NamedSharding(mesh, SPLITS[name])) for name, a in arguments.items()}
    got = jax.jit(jax.value_and_grad(over_mesh))(placed, jax.device_put(where, NamedSharding(mesh, P("data"))))
    assert_tree_close(jax.device_get(got), want, 5e-6)


@SOME_BETAS
@pytest.mark.parametrize("how", ["Auto", "Explicit", "shard_map"])
def test_distillation_of_logits_whose_classes_are_split(rng, beta, how):
    student, teacher = (jnp.asarray(2 * rng.normal(size=(4, V)), jnp.float32) for _ in range(2))
    mesh, spec = make_mesh(AxisType.Explicit if how == "Explicit" else AxisType.Auto), P("data", "classes")

    def total(student, teacher, **options):
        return jxent.softmax_distillation(student, teacher, beta=beta, temperature=1.5, reduction="sum", **options)

    def inside(student, teacher):
        return jax.lax.psum(total(student, teacher, vocab_axis_name="classes"), "data")

    over_mesh = jax.shard_map(inside, mesh=mesh, in_specs=(spec, spec), out_specs=P()) if how == "shard_map" else total
    placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a in (student, teacher)]
    got, want = (jax.jit(jax.value_and_grad(f))(*a) for f, a in ((over_mesh, placed), (total, (student, teacher))))
    assert_tree_close(jax.device_get(got), want, 5e-6)


@pytest.mark.slow
@SOME_BETAS
def test_distillation_under_transformations(rng, x64, beta):
    student, teacher = (jnp.asarray(rng.normal(size=(3, N, V))) for _ in range(2))

    def total(student, teacher):
        return jxent.softmax_distillation(student, teacher, beta=beta).sum()

    want = jax.grad(total)(student, teacher)
    np.testing.assert_allclose(jax.vmap(jax.grad(total))(student, teacher), want, atol=1e-14)
    np.testing.assert_allclose(jax.grad(jax.checkpoint(total))(student, teacher), want, atol=1e-14)
    step = lambda sum_, pair: (sum_ + total(*pair), None)  # noqa: E731
    scanned = jax.grad(lambda x: jax.lax.scan(step, 0.0, (x, teacher))[0])(student)
    np.testing.assert_allclose(scanned, want, atol=1e-14)


@pytest.mark.slow
def test_distillation_is_exported_for_any_number_of_rows(rng):
    (n,) = jax.export.symbolic_shape("n")
    kernels = [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((D, V), (E, V))]

    def step(hidden, teacher):
        call = lambda h: jxent.linear_softmax_distillation(h, kernels[0], teacher, kernels[1], reduction="mean")  # noqa: E731
        logits = hidden @ kernels[0], teacher @ kernels[1]
        return jax.value_and_grad(call)(hidden), jxent.softmax_distillation(*logits, beta=0.5)

    structs = [jax.ShapeDtypeStruct((n, width), jnp.float32) for width in (D, E)]
    exported = jax.export.deserialize(jax.export.export(jax.jit(step))(*structs).serialize())
    for rows in (1, 7):
        arguments = [jnp.asarray(rng.normal(size=(rows, width)), jnp.float32) for width in (D, E)]
        assert_tree_close(exported.call(*arguments), step(*arguments), 3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_distillation_is_in_the_result_dtype_and_cotangents_in_their_own(rng, dtype):
    arguments = {name: a.astype(dtype) for name, a in fused_arguments(rng, np.float32).items()}
    call = functools.partial(jxent.linear_softmax_distillation, teacher_transpose_kernel=True, reduction="mean")
    value, slopes = jax.value_and_grad(lambda a: call(**a))(arguments)
    assert value.dtype == jnp.float32
    assert {slope.dtype for slope in slopes.values()} == {jnp.dtype(dtype)}
    wide = {name: a.astype(jnp.float32) for name, a in arguments.items()}
    want = jax.value_and_grad(lambda a: call(**a))(wide)
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    assert_tree_close(slopes, want[1], 2e-2 if dtype == jnp.bfloat16 else 3e-3)
    logits = jnp.asarray(rng.normal(size=(4, V)), dtype), jnp.asarray(rng.normal(size=(4, V)), jnp.float32)
    value, slope = jax.value_and_grad(lambda x: jxent.softmax_distillation(x, logits[1]).sum())(logits[0])
    assert (value.dtype, slope.dtype) == (jnp.float32, dtype)


@SOME_BETAS
@pytest.mark.parametrize(("own", "other"), [("float32", "float64"), ("float64", "float32"), ("bfloat16", "float64")])
def test_distillation_is_in_the_students_dtype_whatever_the_teachers_is(rng, x64, beta, own, other):
    arguments = fused_arguments(rng)
    student, teacher = logits_of(arguments)
    want = np.asarray(textbook(student, teacher, arguments["temperature"], beta))
    arguments = {name: a.astype(other if name.startswith("teacher") else own) for name, a in arguments.items()}
    fused = functools.partial(jxent.linear_softmax_distillation, teacher_transpose_kernel=True, beta=beta)
    temperature = {"temperature": arguments["temperature"], "beta": beta}
    result, tolerance = ("float32", 2e-2) if own == "bfloat16" else (own, 1e-5)
    for rows in (
        fused(**arguments),
        jxent.softmax_distillation(student.astype(own), teacher.astype(other), **temperature),
    ):
        assert rows.dtype == result
        np.testing.assert_allclose(rows, want, rtol=tolerance, atol=tolerance)
    slope = jax.grad(lambda h: fused(**{**arguments, "hidden": h}).sum())(arguments["hidden"])
    assert slope.dtype == own
    without = jxent.softmax_distillation(student.astype(own), teacher.astype(other), beta=beta)
    np.testing.assert_allclose(without, textbook(student, teacher, 1.0, beta), rtol=tolerance, atol=tolerance)


x, k, h, t, w = (jnp.ones(shape) for shape in ((4, 3), (2, 3), (4, 2), (4, 5), (5, 3)))
ERRORS = {
    "teacher of another shape": (
        (x, x[:3]),
        {},
        ValueError,
        "teacher_logits has shape (3, 3); expected that of logits",
    ),
    "integer teacher": ((x, x > 0), {}, TypeError, "teacher_logits must have a floating dtype; got bool"),
    "beta above 1": ((x, x), {"beta": 1.5}, ValueError, "beta must be in [0, 1]; got 1.5"),
    "beta an array": ((x, x), {"beta": jnp.ones(2)}, TypeError, "beta must be a static number in [0, 1]; got"),
    "beta None": ((x, x), {"beta": None}, TypeError, "beta must be a static number in [0, 1]; got None (NoneType)"),
    "temperature 0": ((x, x), {"temperature": 0}, ValueError, "temperature must be above 0 and finite; got 0"),
    "temperature inf": ((x, x), {"temperature": INF}, ValueError, "temperature must be above 0 and finite; got inf"),
    "temperature of each row": ((x, x), {"temperature": x[:, 0]}, ValueError, "temperature must be a scalar"),
    "float mask": ((x, x), {"where": x[:, 0]}, TypeError, "where must have dtype bool; got float32"),
    "axis out of range": ((x, x), {"axis": 2}, ValueError, "axis=2 is out of range"),
    "unknown reduction": ((x, x), {"reduction": "batchmean"}, ValueError, "'partial'; got 'batchmean'"),
    "fused: rows of another number": (
        (h, k, t[:3], w),
        {},
        ValueError,
        "teacher_hidden has shape (3, 5); expected the rows",
    ),
    "fused: other classes": ((h, k, t, w[:, :2]), {}, ValueError, "teacher_kernel has 2 classes, but kernel has 3"),
    "fused: teacher's kernel the other way": (
        (h, k, t, w.T),
        {},
        ValueError,
        "teacher_kernel has shape (3, 5); expected (5, V), to go with teacher_hidden of shape (4, 5)",
    ),
    "fused: teacher's bias": ((h, k, t, w), {"teacher_bias": jnp.ones(5)}, ValueError, "teacher_bias has shape (5,)"),
    "fused: beta below 0": ((h, k, t, w), {"beta": -1}, ValueError, "beta must be in [0, 1]; got -1"),
}


@pytest.mark.parametrize(("arguments", "options", "error", "words"), ERRORS.values(), ids=ERRORS)
def test_distillation_bad_argument_is_named(arguments, options, error, words):
    fn = jxent.softmax_distillation if len(arguments) == 2 else jxent.linear_softmax_distillation
    with pytest.raises(error) as raised:
        fn(*arguments, **options)
    assert str(raised.value).startswith(f"{fn.__name__}: ")
    assert words in str(raised.value)


def test_distillation_beta_that_is_traced_is_refused():
    with pytest.raises(TypeError, match="beta must be a static number"):
        jax.jit(lambda b: jxent.softmax_distillation(x, x, beta=b))(0.5)
