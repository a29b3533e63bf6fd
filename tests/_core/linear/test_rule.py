"""The fused loss under every transformation of JAX that a custom_vjp allows, with every option on."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from tests.linear_problems import Problem, fused, make_problem, materialised
from tests.pairs import all_pairs
from tests.test_linear import assert_tree_close

REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "mean"])


def scalar(loss, problem, reduction, **options):
    """arguments → a scalar that weighs the rows differently."""
    cotangent = problem.cotangents[reduction]
    return lambda arguments: jnp.sum(cotangent * loss(arguments, **problem.fixed, reduction=reduction, **options))


@pytest.mark.slow
@REDUCTIONS
@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_linear_second_order(rng, x64, reduction, kind):
    """Hessian-vector products over all arguments together, by reverse and by forward over reverse."""
    problem = make_problem(rng, (5,), 3, 4, kind, softcap=4.0, masked=False)
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), problem.arguments)

    @jax.jit
    def products(arguments, direction):
        def along(gradient):
            return lambda a: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, gradient(a), direction)))

        plain = jax.grad(scalar(materialised, problem, reduction))
        ours = jax.grad(scalar(fused, problem, reduction, chunk_size=2))
        expected = jax.jvp(plain, (arguments,), (direction,))[1]
        return expected, jax.jvp(ours, (arguments,), (direction,))[1], jax.grad(along(ours))(arguments)

    expected, forward_over_reverse, reverse_over_reverse = products(problem.arguments, direction)
    assert_tree_close(forward_over_reverse, expected, 1e-10)
    assert_tree_close(reverse_over_reverse, expected, 1e-10)


def batch_of_problems(rng, batched):
    """Three problems that share every argument but the `batched` ones, and the axes to map over."""
    problems = [make_problem(np.random.default_rng(seed), (5,), 3, 4, "ids", softcap=4.0) for seed in range(3)]
    first = problems[0]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[{**p.arguments, **p.fixed} for p in problems])
    shared = {**first.arguments, **first.fixed}
    arguments = {name: stacked[name] if name in batched else shared[name] for name in shared}
    return first, arguments, {name: 0 if name in batched else None for name in shared}


@pytest.mark.slow
@pytest.mark.parametrize(
    "batched",
    [
        ("hidden", "labels", "where"),
        ("kernel", "bias"),
        ("label_smoothing", "z_loss", "logit_scale", "logit_softcap"),
        ("labels",),
    ],
    ids=["batch", "ensemble", "hyper-parameters", "labels"],
)
def test_linear_vmap_is_the_loop(rng, x64, batched):
    problem, arguments, axes = batch_of_problems(rng, batched)

    def gradient(arguments, loss, **options):
        fixed = {name: arguments[name] for name in problem.fixed}
        of = {name: arguments[name] for name in problem.arguments}
        problem_of_one = Problem(of, fixed, problem.cotangents)
        return [jax.value_and_grad(scalar(loss, problem_of_one, r, **options))(of) for r in ("none", "mean")]

    mapped = jax.jit(jax.vmap(functools.partial(gradient, loss=fused, chunk_size=2), in_axes=(axes,)))(arguments)
    plain = jax.jit(jax.vmap(functools.partial(gradient, loss=materialised), in_axes=(axes,)))(arguments)
    assert_tree_close(mapped, plain, 1e-11)


@pytest.mark.slow
def test_linear_gradient_of_a_vmap(rng, x64):
    problem, arguments, axes = batch_of_problems(rng, ("hidden", "labels", "where"))

    def total(of, fixed, loss, **options):
        def rows(of, fixed):
            return sum(jnp.sum(loss(of, **fixed, reduction=r, **options)) for r in ("none", "sum"))

        return jnp.sum(jax.vmap(rows, in_axes=tuple({n: axes[n] for n in part} for part in (of, fixed)))(of, fixed))

    of, fixed = ({name: arguments[name] for name in part} for part in (problem.arguments, problem.fixed))
    ours = jax.jit(jax.grad(functools.partial(total, loss=fused, chunk_size=2)))(of, fixed)
    assert_tree_close(ours, jax.jit(jax.grad(functools.partial(total, loss=materialised)))(of, fixed), 1e-11)


@pytest.mark.slow
@REDUCTIONS
def test_linear_in_scan_under_checkpoint(rng, x64, reduction):
    """Three steps of gradient descent, the loss rematerialised."""
    problem = make_problem(rng, (5,), 3, 4, "ids")

    def trained(loss, **options):
        def step(arguments, _):
            value, slope = jax.value_and_grad(jax.checkpoint(scalar(loss, problem, reduction, **options)))(arguments)
            return jax.tree.map(lambda a, g: a - 0.01 * g, arguments, slope), value

        return jax.jit(lambda a: jax.lax.scan(step, a, length=3))(problem.arguments)

    assert_tree_close(trained(fused, chunk_size=2), trained(materialised), 1e-11)


@pytest.mark.slow
@REDUCTIONS
def test_linear_eager_is_jitted(rng, reduction):
    problem = make_problem(rng, (5,), 3, 4, "ids", dtype=np.float32)
    gradient = jax.value_and_grad(scalar(fused, problem, reduction, chunk_size=2))
    assert_tree_close(gradient(problem.arguments), jax.jit(gradient)(problem.arguments), 3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_linear_vmap_over_kernels_alone(rng, dtype, transposed):
    """And over hidden states alone. Of some such batches of bfloat16 XLA:CPU has no matmul."""
    b, n, d, v = 3, 6, 4, 5
    hidden = jnp.asarray(rng.normal(size=(b, n, d)), dtype)
    kernel = jnp.asarray(rng.normal(size=(b, v, d) if transposed else (b, d, v)), dtype)
    labels = jnp.asarray(rng.integers(v, size=n))

    def gradient(hidden, kernel):
        def mean(hidden, kernel):
            options = {"transpose_kernel": transposed, "reduction": "mean", "chunk_size": 4}
            return jxent.linear_softmax_cross_entropy(hidden, kernel, labels, **options)

        return jax.value_and_grad(mean, (0, 1))(hidden, kernel)

    for axes in ((None, 0), (0, None), (0, 0)):
        arguments = [a if axis == 0 else a[0] for a, axis in zip((hidden, kernel), axes, strict=True)]
        mapped = jax.jit(jax.vmap(gradient, axes))(*arguments)
        one = jax.jit(gradient)
        loop = [one(*(a[i] if x == 0 else a for a, x in zip(arguments, axes, strict=True))) for i in range(b)]
        tolerance = 3e-6 if dtype == jnp.float32 else 2e-2
        assert_tree_close(mapped, jax.tree.map(lambda *of: jnp.stack(of), *loop), tolerance)


@pytest.mark.parametrize("empty", ["rows", "batch"])
@REDUCTIONS
def test_linear_gradient_of_a_vmap_of_nothing(reduction, empty):
    hidden = jnp.zeros((3, 0, 6) if empty == "rows" else (0, 4, 6))
    kernel, labels = jnp.ones((6, 8)), jnp.zeros(hidden.shape[:2], jnp.int32)

    def total(hidden, kernel):
        def loss(hidden, labels):
            loss, aux = jxent.linear_softmax_cross_entropy(hidden, kernel, labels, reduction=reduction, return_aux=True)
            return jnp.sum(loss) + jnp.sum(aux.log_z)

        return jnp.sum(jax.vmap(loss)(hidden, labels))

    value, slopes = jax.value_and_grad(total, (0, 1))(hidden, kernel)
    assert value == 0
    assert [slope.shape for slope in slopes] == [hidden.shape, kernel.shape]
    assert not np.any(slopes[1])


@pytest.mark.slow
@pytest.mark.parametrize("outer", ["reverse", "forward"])
@REDUCTIONS
def test_linear_second_order_of_log_z(rng, x64, reduction, outer):
    problem = make_problem(rng, (5,), 3, 4, "ids", bare=True)
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), problem.arguments)

    def ours(arguments):
        options = {"reduction": reduction, "return_aux": True, "chunk_size": 2}
        loss, aux = fused(arguments, **problem.fixed, **options)
        return jnp.sum(loss) + jnp.sum(jnp.square(aux.log_z))

    def plain(arguments):
        log_z = jax.nn.logsumexp(arguments["hidden"] @ arguments["kernel"], -1)
        return jnp.sum(materialised(arguments, **problem.fixed, reduction=reduction)) + jnp.sum(jnp.square(log_z))

    def product(f):
        if outer == "forward":
            return jax.jvp(jax.grad(f), (problem.arguments,), (direction,))[1]
        along = lambda a: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, jax.grad(f)(a), direction)))  # noqa: E731
        return jax.grad(along)(problem.arguments)

    assert_tree_close(product(ours), product(plain), 1e-10)


def exported_and_called(rng, shapes, constraints, sizes, chunk_size=None, kind="ids", transposed=False):
    """The rows, the mean and its gradient, exported once with symbolic `shapes` (n, d, v) and called at each of `sizes`."""

    def gradient(hidden, kernel, labels, where):
        options = {"where": where, "chunk_size": chunk_size, "transpose_kernel": transposed}

        def mean(hidden, kernel):
            return jxent.linear_softmax_cross_entropy(hidden, kernel, labels, reduction="mean", **options)

        rows = jxent.linear_softmax_cross_entropy(hidden, kernel, labels, **options)
        return rows, *jax.value_and_grad(mean, (0, 1))(hidden, kernel)

    n, d, v = jax.export.symbolic_shape(shapes, constraints=constraints)
    struct = jax.ShapeDtypeStruct
    labels = struct((n,), np.int32) if kind == "ids" else struct((n, v), np.float32)
    kernel = struct((v, d) if transposed else (d, v), np.float32)
    exported = jax.export.export(jax.jit(gradient))(struct((n, d), np.float32), kernel, labels, struct((n,), np.bool_))
    for n, d, v in sizes:
        hidden = jnp.asarray(rng.normal(size=(n, d)), np.float32)
        kernel = jnp.asarray(rng.normal(size=(v, d) if transposed else (d, v)), np.float32)
        labels = rng.integers(v, size=n) if kind == "ids" else rng.dirichlet(np.ones(v), n)
        labels = jnp.asarray(labels, np.int32 if kind == "ids" else np.float32)
        arguments = hidden, kernel, labels, jnp.arange(n) != 2
        assert_tree_close(exported.call(*arguments), jax.jit(gradient)(*arguments), 3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_linear_export_with_symbolic_batch(rng, chunk_size):
    exported_and_called(rng, "n, 3, 5", (), [(1, 3, 5), (4, 3, 5), (11, 3, 5)], chunk_size)


@pytest.mark.slow
@pytest.mark.parametrize(
    *all_pairs(constraints=[(), ("v >= 16", "v <= 4000")], kind=["ids", "soft"], transposed=[False, True])
)
def test_linear_export_with_symbolic_width_and_classes(rng, constraints, kind, transposed):
    """Where a number is asked for, and there is none, it goes on with what is right for any."""
    sizes = [(5, 3, 17), (700, 4, 100)]
    exported_and_called(rng, "n, d, v", constraints, sizes, kind=kind, transposed=transposed)
    exported_and_called(rng, "600, d, v", constraints, [(600, 3, 17)], kind=kind, transposed=transposed)


def test_linear_compiles_once_a_shape(rng):
    problem = make_problem(rng, (5,), 3, 4, "ids", dtype=np.float32)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def gradient(arguments):
        return jax.grad(scalar(fused, problem, "mean", chunk_size=2))(arguments)

    for seed in range(3):
        gradient(make_problem(np.random.default_rng(seed), (5,), 3, 4, "ids", dtype=np.float32).arguments)


def test_linear_debug_nans_and_leaks(rng):
    """A class of −inf and a masked row of NaN make no NaN on the way."""
    problem = make_problem(rng, (5,), 3, 4, "ids", dtype=np.float32)
    arguments = problem.arguments | {"bias": problem.arguments["bias"].at[3].set(-jnp.inf)}
    fixed = {"labels": problem.fixed["labels"] % 3, "where": jnp.arange(5) != 1}
    clean = Problem(arguments, fixed, problem.cotangents)
    gradient = jax.value_and_grad(scalar(fused, clean, "mean", chunk_size=2))
    with jax.debug_nans(True), jax.check_tracer_leaks(True):
        value, slopes = gradient(arguments)
    poisoned = arguments | {"hidden": arguments["hidden"].at[1].set(jnp.nan)}
    assert_tree_close(jax.jit(gradient)(poisoned), (value, slopes), 3e-6)
    np.testing.assert_array_equal(slopes["kernel"][:, 3], 0)


def test_linear_refuses_forward_mode(rng):
    problem = make_problem(rng, (5,), 3, 4, "ids", dtype=np.float32)
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(scalar(fused, problem, "mean"), (problem.arguments,), (problem.arguments,))
