"""Every public loss through every transformation of JAX, all of its options switched on.

The truth is the oracle in float64, differentiated by JAX; a test of its own holds it against central differences.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import parameterized
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

import jxent
from tests import oracle
from tests.losses import LOSSES, MULTICLASS, NUM_CLASSES, Loss, assert_close, by_name

NUM_ROWS = 4
DTYPES = ["float32", "float64"]
FROM_LOGITS_OR_LOG_PROBS = [loss for loss in MULTICLASS if "from_probs" not in loss.name]
# Second derivatives lose a digit more.
SECOND = 20.0

on_every_loss = pytest.mark.parametrize("loss", **by_name(LOSSES))
in_both_precisions = pytest.mark.parametrize("precision", DTYPES, indirect=True)


def on_every_loss_alternating(first: str):
    """Where the dtype plays no part: each loss in one of both, `first` for the first. Compilation is what takes time."""
    pairs = [(loss, DTYPES[(i + DTYPES.index(first)) % 2]) for i, loss in enumerate(LOSSES)]
    ids = [f"{loss.name}-{dtype}" for loss, dtype in pairs]
    return pytest.mark.parametrize(("loss", "precision"), pairs, ids=ids, indirect=["precision"])


@pytest.fixture
def precision(request):
    """The dtype's name, with x64 switched on for float64 and off for float32."""
    with jax.enable_x64(request.param == "float64"):
        yield request.param


class Problem(NamedTuple):
    """All that a loss is called with.

    `inputs` are the arguments with a derivative (scores, floating labels, weights and hyper-parameters), `fixed` the
    others. One row, or some elements, are masked and hold NaN or an id out of range.
    """

    inputs: dict[str, np.ndarray]
    fixed: dict[str, np.ndarray]


def make_problem(loss: Loss, seed: int = 0, num_rows: int = NUM_ROWS) -> Problem:
    """In float32, so that float32 and float64 see the same numbers."""
    rng = np.random.default_rng(seed)
    scores, labels = loss.inputs(rng, (num_rows,))
    rows = loss.rows(scores)
    where = rng.random(rows) < 0.8
    where[0], where[1] = True, False
    scores[~where] = np.nan
    labels[~where] = 99 if loss.has_ids else np.nan
    inputs = {
        "scores": scores,
        "class_weight": rng.uniform(0.5, 2, NUM_CLASSES),
        "sample_weight": rng.uniform(0.5, 2, (num_rows, 1) if loss.is_binary else rows),
        "label_smoothing": rng.uniform(0.1, 0.3),
    }
    if loss.is_binary:
        inputs["pos_weight"] = rng.uniform(0.5, 2, NUM_CLASSES)
    if loss.call is jxent.softmax_cross_entropy:
        inputs["z_loss"] = rng.uniform(0.1, 0.3)
    fixed = {"where": where}
    (fixed if loss.has_ids else inputs)["labels"] = labels
    return Problem({name: np.asarray(value, np.float32) for name, value in inputs.items()}, fixed)


def arrays(tree, dtype):
    """NumPy → JAX, floating numbers in `dtype`."""
    return jax.tree.map(lambda x: jnp.asarray(x, dtype if x.dtype.kind == "f" else x.dtype), tree)


def call(loss: Loss, inputs, fixed, reduction="mean"):
    options = {**inputs, **fixed}
    return loss.call(options.pop("scores"), options.pop("labels"), **options, reduction=reduction)


def without_masked(loss: Loss, problem: Problem) -> Problem:
    """The problem in float64 with harmless numbers where it is masked, for formulas that multiply by the mask."""
    where = problem.fixed["where"]
    of_row = where if loss.is_binary else where[:, None]
    inputs = {name: np.asarray(value, np.float64) for name, value in problem.inputs.items()}
    fixed = dict(problem.fixed)
    inputs["scores"] = np.where(of_row, inputs["scores"], 0.5)
    if loss.has_ids:
        fixed["labels"] = np.where(where, fixed["labels"], 0)
    else:
        inputs["labels"] = np.where(of_row, inputs["labels"], 0.5)
    return Problem(inputs, fixed)


def by_oracle(loss: Loss, problem: Problem, **changed):
    """The mean; `changed` inputs replace those of the problem."""
    inputs, fixed = without_masked(loss, Problem({**problem.inputs, **changed}, problem.fixed))
    options = {**inputs, **fixed}
    sample_weight, where = options.pop("sample_weight"), options.pop("where")
    rows, weight = loss.oracle(options.pop("scores"), options.pop("labels"), **options)
    return oracle.reduce(rows, weight, sample_weight=sample_weight, where=where, reduction="mean")


def differences(loss: Loss, problem: Problem) -> dict[str, np.ndarray]:
    """The oracle's gradient by every input: central differences, good to some 1e-9."""

    def along(name, value):
        return oracle.numerical_gradient(lambda value: by_oracle(loss, problem, **{name: value}), value)

    return {name: along(name, value) for name, value in problem.inputs.items()}


def by_textbook(loss: Loss, inputs, fixed):
    """m·s·loss and m·s·v of each row, differentiable, where no masked number is NaN."""
    options = {**inputs, **fixed}
    scale = options.pop("where").astype(inputs["scores"].dtype) * options.pop("sample_weight")
    rows, weight = loss.oracle(options.pop("scores"), options.pop("labels"), **options, xp=jnp)
    return scale * rows, scale * weight


@functools.cache
def textbook(loss: Loss):
    """Compiled functions of the problem, all inputs in one vector: of the mean, the value with the gradient, and the
    Hessian; of the rows, the Jacobian.
    """
    _, unravel = ravel_pytree(make_problem(loss).inputs)

    def rows(x, fixed):
        return by_textbook(loss, unravel(x), fixed)[0]

    def mean(x, fixed):
        total, weight = by_textbook(loss, unravel(x), fixed)
        return jnp.sum(total) / jnp.sum(weight)

    return tuple(map(jax.jit, (jax.value_and_grad(mean), jax.hessian(mean), jax.jacrev(rows))))


def evaluated(loss: Loss, problem: Problem, index: int):
    with jax.enable_x64(True):
        inputs, fixed = arrays(without_masked(loss, problem), jnp.float64)
        return jax.tree.map(np.asarray, textbook(loss)[index](ravel_pytree(inputs)[0], fixed))


@functools.cache
def truth(loss: Loss, seed: int = 0):
    """The mean and its gradient by all inputs in one vector."""
    return evaluated(loss, make_problem(loss, seed), 0)


@functools.cache
def true_hessian(loss: Loss):
    return evaluated(loss, make_problem(loss), 1)


def flat(loss: Loss, dtype, problem: Problem | None = None):
    """The mean as a function of one vector and the fixed arguments; and these."""
    inputs, fixed = arrays(make_problem(loss) if problem is None else problem, dtype)
    x, unravel = ravel_pytree(inputs)

    def mean(x, fixed):
        return call(loss, unravel(x), fixed)

    return mean, x, fixed, unravel


def assert_all_close(actual, expected, dtype, factor=1.0):
    for got, want in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert got.dtype == dtype
        assert_close(got, want, dtype, factor)


@on_every_loss
def test_losses_truth_agrees_with_the_oracle(loss):
    problem = make_problem(loss)
    value, gradient = truth(loss)
    assert_close(value, by_oracle(loss, problem), np.float64)
    np.testing.assert_allclose(gradient, ravel_pytree(differences(loss, problem))[0], rtol=1e-6, atol=1e-8)


@on_every_loss
@in_both_precisions
def test_losses_grad_reaches_every_input(loss, precision):
    problem = make_problem(loss)
    inputs, fixed = arrays(problem, precision)
    gradients = jax.jit(jax.grad(lambda inputs, fixed: call(loss, inputs, fixed)))(inputs, fixed)
    tolerance = 1e-6 if precision == "float64" else 1e-5
    where = problem.fixed["where"]
    for name, want in differences(loss, problem).items():
        got = np.asarray(gradients[name])
        assert got.dtype == precision
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance, err_msg=name)
        # Never a silent zero, and exactly 0 where masked.
        if name in ("scores", "labels"):
            counted = where if loss.is_binary else np.broadcast_to(where[:, None], got.shape)
            np.testing.assert_array_equal(got != 0, counted)
        elif name == "sample_weight":
            np.testing.assert_array_equal(got.reshape(NUM_ROWS) != 0, where.reshape(NUM_ROWS, -1).any(-1))
        else:
            assert np.all(got != 0)


class VariantsTest(chex.TestCase):
    """Chex's variants of one call: jitted, not jitted, on and off the device, and pmapped."""

    def setUp(self):
        super().setUp()
        flags.FLAGS["chex_skip_pmap_variant_if_single_device"].value = False

    @chex.variants(with_jit=True, without_jit=True, with_device=True, without_device=True, with_pmap=True)
    @parameterized.named_parameters(
        (f"{loss.name}_{DTYPES[i % 2]}", loss, DTYPES[i % 2]) for i, loss in enumerate(LOSSES)
    )
    def test_losses_variants(self, loss, dtype):
        with jax.enable_x64(dtype == "float64"):
            mean, x, fixed, _ = flat(loss, dtype)
            actual = self.variant(jax.value_and_grad(mean))(x, fixed)
            assert_all_close(actual, truth(loss), dtype)


@on_every_loss
@in_both_precisions
def test_losses_jvp(loss, precision, rng):
    mean, x, fixed, _ = flat(loss, precision)
    direction = jnp.asarray(rng.normal(size=x.shape), precision)
    actual = jax.jit(lambda x, v, fixed: jax.jvp(lambda x: mean(x, fixed), (x,), (v,)))(x, direction, fixed)
    expected = truth(loss)[0], truth(loss)[1] @ np.asarray(direction, np.float64)
    assert_all_close(actual, expected, precision, 3)


@on_every_loss_alternating("float32")
def test_losses_linearize(loss, precision, rng):
    mean, x, fixed, _ = flat(loss, precision)
    directions = jnp.asarray(rng.normal(size=(3, *x.shape)), precision)

    @jax.jit
    def linearized(x, directions, fixed):
        value, pushforward = jax.linearize(lambda x: mean(x, fixed), x)
        return value, jax.vmap(pushforward)(directions)

    expected = truth(loss)[0], np.asarray(directions, np.float64) @ truth(loss)[1]
    assert_all_close(linearized(x, directions, fixed), expected, precision, 3)


@on_every_loss_alternating("float64")
def test_losses_jacfwd_of_rows(loss, precision):
    _, x, fixed, unravel = flat(loss, precision)
    got = jax.jit(jax.jacfwd(lambda x, fixed: call(loss, unravel(x), fixed, "none")))(x, fixed)
    assert_all_close(got, evaluated(loss, make_problem(loss), 2), precision)
    np.testing.assert_array_equal(got[~fixed["where"]], 0)


@on_every_loss_alternating("float64")
def test_losses_hessian(loss, precision):
    mean, x, fixed, _ = flat(loss, precision)
    assert_all_close(jax.jit(jax.hessian(mean))(x, fixed), true_hessian(loss), precision, SECOND)


@pytest.mark.slow
@on_every_loss_alternating("float32")
def test_losses_reverse_over_reverse(loss, precision):
    mean, x, fixed, _ = flat(loss, precision)
    assert_all_close(jax.jit(jax.jacrev(jax.grad(mean)))(x, fixed), true_hessian(loss), precision, SECOND)


@on_every_loss_alternating("float32")
def test_losses_vmap_of_grad_equals_a_loop(loss, precision):
    seeds = range(3)
    problems = [arrays(make_problem(loss, seed), precision) for seed in seeds]
    inputs, fixed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    gradients = jax.jit(jax.vmap(jax.grad(lambda inputs, fixed: call(loss, inputs, fixed))))(inputs, fixed)
    for i in seeds:
        got = ravel_pytree(jax.tree.map(lambda leaf, i=i: leaf[i], gradients))[0]
        assert_all_close(got, truth(loss, i)[1], precision)


@on_every_loss_alternating("float64")
def test_losses_checkpoint(loss, precision):
    mean, x, fixed, _ = flat(loss, precision)
    actual = jax.jit(jax.value_and_grad(jax.checkpoint(mean)))(x, fixed)
    assert_all_close(actual, truth(loss), precision)


@on_every_loss_alternating("float32")
def test_losses_scan_over_microbatches(loss, precision):
    _, x, fixed, unravel = flat(loss, precision)

    def mean(x, fixed):
        inputs = unravel(x)
        per_row = {name: inputs.pop(name) for name in ("scores", "labels", "sample_weight") if name in inputs}
        chunks = jax.tree.map(lambda a: a.reshape(2, NUM_ROWS // 2, *a.shape[1:]), (per_row, fixed))

        def add(so_far, chunk):
            return so_far + call(loss, inputs | chunk[0], chunk[1], "partial"), None

        zero = jnp.zeros((), x.dtype)
        return jax.lax.scan(add, jxent.Mean(zero, zero), chunks)[0].value()

    assert_all_close(jax.jit(jax.value_and_grad(mean))(x, fixed), truth(loss), precision)


@on_every_loss
@in_both_precisions
def test_losses_value_and_grad_with_donation(loss, precision):
    mean, x, fixed, _ = flat(loss, precision)
    actual = jax.jit(jax.value_and_grad(mean), donate_argnums=0)(x, fixed)
    assert x.is_deleted()
    assert_all_close(actual, truth(loss), precision)


@on_every_loss_alternating("float64")
def test_losses_export_with_symbolic_batch(loss, precision):
    inputs, fixed = arrays(make_problem(loss), precision)
    (batch,) = jax.export.symbolic_shape("batch")
    per_row = {"scores", "labels", "sample_weight", "where"}

    def abstract(name, leaf):
        shape = (batch, *leaf.shape[1:]) if name in per_row else leaf.shape
        return jax.ShapeDtypeStruct(shape, leaf.dtype)

    structs = [{name: abstract(name, leaf) for name, leaf in part.items()} for part in (inputs, fixed)]
    value_and_grad = jax.jit(jax.value_and_grad(lambda inputs, fixed: call(loss, inputs, fixed)))
    exported = jax.export.export(value_and_grad)(*structs)
    tolerance = 1e-6 if precision == "float64" else 1e-5
    for num_rows in (NUM_ROWS, 7):
        problem = make_problem(loss, 0, num_rows)
        value, gradient = exported.call(*arrays(problem, precision))
        assert_all_close(value, by_oracle(loss, problem), precision)
        chex.assert_trees_all_close(
            gradient, arrays(differences(loss, problem), precision), rtol=tolerance, atol=tolerance
        )


@on_every_loss
@pytest.mark.parametrize(
    ("precision", "grad_is"), [("float32", "inside"), ("float64", "outside")], indirect=["precision"]
)
def test_losses_shard_map(loss, precision, grad_is):
    inputs, fixed = arrays(make_problem(loss), precision)
    per_row = {"scores", "labels", "sample_weight", "where"}
    specs = [
        {name: PartitionSpec("data") if name in per_row else PartitionSpec() for name in part}
        for part in (inputs, fixed)
    ]
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    over_mesh = functools.partial(jax.shard_map, mesh=mesh, in_specs=tuple(specs))

    def mean(inputs, fixed):
        return call(loss, inputs, fixed, "partial").psum("data").value()

    if grad_is == "inside":
        mapped = over_mesh(jax.value_and_grad(mean), out_specs=(PartitionSpec(), specs[0]))
    else:
        mapped = jax.value_and_grad(over_mesh(mean, out_specs=PartitionSpec()))
    value, gradient = jax.jit(mapped)(inputs, fixed)
    assert_all_close((value, ravel_pytree(gradient)[0]), truth(loss), precision)


@on_every_loss_alternating("float32")
def test_losses_leak_no_tracers(loss, precision):
    mean, x, fixed, _ = flat(loss, precision)
    with jax.checking_leaks():
        actual = jax.jit(jax.value_and_grad(mean))(x, fixed)
    assert_all_close(actual, truth(loss), precision)


@on_every_loss
@in_both_precisions
def test_losses_compile_once_per_shape(loss, precision):
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=2)
    def mean(inputs, fixed):
        return call(loss, inputs, fixed)

    for num_rows in (NUM_ROWS, 7):
        for seed in (0, 1):
            problem = make_problem(loss, seed, num_rows)
            assert_all_close(mean(*arrays(problem, precision)), by_oracle(loss, problem), precision)


@on_every_loss_alternating("float64")
def test_losses_without_any_jit(loss, precision):
    mean, x, fixed, _ = flat(loss, precision)
    with jax.disable_jit():
        actual = jax.value_and_grad(mean)(x, fixed)
    assert_all_close(actual, truth(loss), precision)


@pytest.mark.parametrize(
    ("loss", "name"),
    [pytest.param(loss, "label_smoothing", id=f"{loss.name}-label_smoothing") for loss in LOSSES]
    + [pytest.param(loss, "z_loss", id=f"{loss.name}-z_loss") for loss in LOSSES if "softmax" in loss.name],
)
@in_both_precisions
def test_losses_vmap_over_a_hyper_parameter_equals_a_loop(loss, precision, name):
    problem = make_problem(loss)
    inputs, fixed = arrays(problem, precision)
    values = np.array([0.0, 0.25, 1.0])

    def mean(value):
        return call(loss, {**inputs, name: value}, fixed)

    got, slope = jax.jit(jax.vmap(jax.value_and_grad(mean)))(jnp.asarray(values, precision))
    for i, value in enumerate(values):

        def mean_at(value):
            return by_oracle(loss, problem, **{name: value})

        assert_all_close(got[i], mean_at(value), precision)
        # The mean is affine in both, so that differences are exact but for rounding.
        np.testing.assert_allclose(slope[i], mean_at(value + 1) - mean_at(value), rtol=1e-5)


def with_dead_classes(loss: Loss) -> Problem:
    """Three rows with 1 class, 2 and NUM_CLASSES − 1 live, labels on these; the masked row has none."""
    inputs, fixed = make_problem(loss)
    dead = np.zeros((NUM_ROWS, NUM_CLASSES), bool)
    dead[0, 1:] = dead[1] = dead[2, :3] = dead[3, 2] = True
    inputs["scores"] = np.where(dead, -np.inf, np.random.default_rng(1).normal(size=dead.shape)).astype(np.float32)
    fixed["where"] = np.array([True, False, True, True])
    if loss.has_ids:
        fixed["labels"] = np.array([0, -100, 3, 1], np.int32)
    else:
        q = np.where(dead, 0, np.random.default_rng(2).uniform(0.1, 1, dead.shape))
        q[1] = 1
        inputs["labels"] = (q / q.sum(-1, keepdims=True)).astype(np.float32)
    return Problem(inputs, fixed)


def without_mixed_dead(problem: Problem, direction: np.ndarray) -> np.ndarray:
    """The direction, but 0 along a distribution's dead entries: the loss is inf as soon as one of them is positive, so
    that no second derivative by them and the scores exists.
    """
    parts = ravel_pytree(problem.inputs)[1](direction.astype(np.float32))
    if "labels" in parts:
        parts["labels"] = np.where(problem.inputs["scores"] == -np.inf, 0, parts["labels"])
    return np.asarray(ravel_pytree(parts)[0], direction.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("loss", **by_name(FROM_LOGITS_OR_LOG_PROBS))
@pytest.mark.parametrize(("precision", "how"), [("float64", "eager"), ("float32", "jit")], indirect=["precision"])
def test_losses_dead_classes_are_right_to_second_order(loss, precision, how, rng):
    problem = with_dead_classes(loss)
    mean, x, fixed, _ = flat(loss, precision, problem)
    direction = jnp.asarray(rng.normal(size=x.shape).astype(np.float32), precision)
    transformed = jax.jit if how == "jit" else lambda f: f
    expected_value, expected_gradient = evaluated(loss, problem, 0)
    tangent_of_gradient = evaluated(loss, problem, 1) @ without_mixed_dead(problem, np.asarray(direction, np.float64))
    assert np.isfinite(tangent_of_gradient).all()
    assert_close(expected_value, by_oracle(loss, problem), np.float64)

    def everything(x, fixed):
        value, tangent = jax.jvp(lambda x: mean(x, fixed), (x,), (direction,))
        return value, tangent, jax.grad(mean)(x, fixed)

    wanted = expected_value, np.asarray(direction, np.float64) @ expected_gradient, expected_gradient
    with jax.debug_nans(True):
        assert_all_close(transformed(everything)(x, fixed), wanted, precision, 3)
        hessian_times = transformed(lambda x, v, fixed: jax.jvp(lambda x: jax.grad(mean)(x, fixed), (x,), (v,))[1])
        second = jnp.asarray(without_mixed_dead(problem, np.asarray(direction)), precision)
        assert_all_close(hessian_times(x, second, fixed), tangent_of_gradient, precision, SECOND)


@pytest.mark.parametrize("loss", **by_name(FROM_LOGITS_OR_LOG_PROBS))
@in_both_precisions
@pytest.mark.parametrize("how", ["eager", "jit"])
def test_losses_label_on_a_dead_class_is_inf_with_a_finite_gradient(loss, precision, how):
    scores = np.array([[1.0, -np.inf, 0.5, -1.0, 0.0], [0.0, 1.0, 2.0, -np.inf, -np.inf]])
    ids = np.array([1, 4])
    onehot = np.eye(NUM_CLASSES)[ids]
    labels = jnp.asarray(ids) if loss.has_ids else jnp.asarray(onehot, precision)
    p = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True) if loss.call is jxent.softmax_cross_entropy else 0
    transformed = jax.jit if how == "jit" else lambda f: f
    rows, pullback = jax.vjp(transformed(lambda x: loss.call(x, labels)), jnp.asarray(scores, precision))
    np.testing.assert_array_equal(rows, np.inf)
    assert_all_close(pullback(jnp.ones_like(rows))[0], p - onehot, precision)


@on_every_loss
@in_both_precisions
def test_losses_debug_nans_with_extreme_scores(loss, precision):
    # The largest logits and the probabilities 0 and 1, each with labels that make the loss finite.
    eye = np.eye(NUM_CLASSES)
    if "from_probs" in loss.name:
        scores = eye
    elif loss.is_binary:
        scores = np.where(eye == 1, np.inf, -np.inf)
    else:
        scores = np.where(eye == 1, 0, -np.inf)
    labels = jnp.arange(NUM_CLASSES) if loss.has_ids else jnp.asarray(eye, precision)
    expected = oracle.prob_rows(eye, eye)[0] if not loss.is_binary else np.zeros_like(eye)
    with jax.debug_nans(True):
        rows, pullback = jax.vjp(jax.jit(lambda x: loss.call(x, labels)), jnp.asarray(scores, precision))
        gradient = pullback(jnp.ones_like(rows))[0]
    assert_all_close(rows, expected, precision)
    assert np.isfinite(gradient).all()
