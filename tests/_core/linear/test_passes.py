"""Masked rows of the fused loss: nothing of them is seen, and chunks of them alone are not run."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from tests.linear_problems import fused, make_problem, materialised
from tests.pairs import all_pairs
from tests.test_linear import assert_tree_close
from tests.test_sharding import make_mesh
from tools.hlo import collectives

N, D, V = 12, 4, 6
MASKS = {
    "scattered": np.arange(N) % 3 == 1,
    "first": np.arange(N) < 5,
    "last": np.arange(N) >= 9,
    "one": np.arange(N) == 7,
    "none": np.zeros(N, bool),
    "all": np.ones(N, bool),
}
KINDS = pytest.mark.parametrize("kind", ["ids", "soft"])
REDUCTIONS = pytest.mark.parametrize("reduction", ["none", "mean"])


def poisoned(problem, where):
    """The problem's arguments with NaN in all that belongs to masked rows, and ids that are out of range."""
    arguments, fixed = dict(problem.arguments), {**problem.fixed, "where": jnp.asarray(where)}
    for name in ("hidden", "sample_weight", "labels"):
        if name in arguments:
            mask = where.reshape(-1, *[1] * (arguments[name].ndim - 1))
            arguments[name] = jnp.where(mask, arguments[name], jnp.nan)
    if "labels" in fixed:
        fixed["labels"] = jnp.where(where, fixed["labels"], 1000)
    return arguments, fixed


def value_and_slopes(loss, problem, reduction, **options):
    """A function of arguments and fixed ones: the value, and the gradients of ⟨cotangent, value⟩."""
    cotangent = problem.cotangents[reduction]

    def f(arguments, fixed):
        value, pull = jax.vjp(lambda a: loss(a, **fixed, reduction=reduction, **options), arguments)
        return value, pull(cotangent)[0]

    return jax.jit(f)


@pytest.mark.parametrize(*all_pairs(chunk_size=[1, 2, 4, 5, N, None], reduction=["none", "mean"], kind=["ids", "soft"]))
def test_masked_rows_are_not_there(rng, x64, chunk_size, reduction, kind):
    problem = make_problem(rng, (N,), D, V, kind, softcap=4.0)
    ours = value_and_slopes(fused, problem, reduction, chunk_size=chunk_size)
    plain = value_and_slopes(materialised, problem, reduction)
    for where in MASKS.values():
        got_value, got = ours(*poisoned(problem, where))
        value, want = plain(problem.arguments, {**problem.fixed, "where": where})
        assert_tree_close((got_value, got), (value, want), 1e-12)
        for name, slope in got.items():
            if slope.shape[:1] == (N,):
                np.testing.assert_array_equal(slope[~where], 0, err_msg=name)


@REDUCTIONS
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_masked_rows_beside_a_bad_kernel(rng, reduction, bad):
    """Its rows that count are NaN; the others are still 0, and no product of 0 and the kernel."""
    problem = make_problem(rng, (N,), D, V, "ids", dtype=np.float32)
    where = MASKS["scattered"]
    arguments, fixed = poisoned(problem, where)
    arguments["kernel"] = arguments["kernel"].at[1, 2].set(bad)
    for chunk_size in (2, N):
        _, slopes = value_and_slopes(fused, problem, reduction, chunk_size=chunk_size)(arguments, fixed)
        np.testing.assert_array_equal(slopes["hidden"][~where], 0)
        assert not np.isfinite(slopes["hidden"][where]).all()


@pytest.mark.slow
@pytest.mark.optimised
@REDUCTIONS
def test_ignored_ids_are_masked_rows(rng, reduction):
    problem = make_problem(rng, (N,), D, V, "ids", dtype=np.float32)
    for where in MASKS.values():
        arguments, fixed = poisoned(problem, where)
        want = value_and_slopes(fused, problem, reduction, chunk_size=4)(arguments, fixed)
        ignored = {"labels": jnp.where(where, fixed["labels"], -100)}
        got = value_and_slopes(fused, problem, reduction, chunk_size=4, ignore_index=-100)(arguments, ignored)
        jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.slow
@KINDS
def test_aux_of_masked_rows(rng, kind):
    problem = make_problem(rng, (N,), D, V, kind, dtype=np.float32)
    whole = functools.partial(fused, return_aux=True, chunk_size=N, reduction="mean")
    in_chunks = functools.partial(fused, return_aux=True, chunk_size=2, reduction="mean")
    for where in MASKS.values():
        _, want = whole(*poisoned(problem, where)[:1], **poisoned(problem, where)[1])
        _, got = in_chunks(*poisoned(problem, where)[:1], **poisoned(problem, where)[1])
        assert_tree_close(got, want, 5e-6)
        np.testing.assert_array_equal(got.predicted[~where], -(2**31))
        np.testing.assert_array_equal(got.log_z[~where], 0)


@pytest.mark.slow
def test_a_batch_of_masks(rng, x64):
    problem = make_problem(rng, (N,), D, V, "ids")
    mean = functools.partial(fused, labels=problem.fixed["labels"], reduction="mean", chunk_size=4)
    masks = jnp.asarray(list(MASKS.values()))
    slopes = jax.jit(jax.vmap(lambda where: jax.grad(lambda a: mean(a, where=where))(problem.arguments)))(masks)
    for i, where in enumerate(masks):
        plain = {**problem.fixed, "where": where, "reduction": "mean"}
        want = jax.grad(lambda a, plain=plain: materialised(a, **plain))(problem.arguments)
        assert_tree_close(jax.tree.map(lambda a, i=i: a[i], slopes), want, 1e-12)


@pytest.mark.slow
@REDUCTIONS
def test_second_order_of_masked_rows(rng, x64, reduction):
    problem = make_problem(rng, (N,), D, V, "ids", softcap=4.0)
    direction = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), problem.arguments)

    def curvature(loss, arguments, fixed, **options):
        def slope_along(arguments):
            _, pull = jax.vjp(lambda a: loss(a, **fixed, reduction=reduction, **options), arguments)
            slopes = pull(problem.cotangents[reduction])[0]
            return sum(jnp.vdot(d, s) for d, s in zip(jax.tree.leaves(direction), jax.tree.leaves(slopes), strict=True))

        return jax.jit(jax.grad(slope_along))(arguments)

    for name in ("scattered", "one"):
        fixed = {**problem.fixed, "where": jnp.asarray(MASKS[name])}
        got = curvature(fused, problem.arguments, fixed, chunk_size=4)
        assert_tree_close(got, curvature(materialised, problem.arguments, fixed), 1e-10)


def test_all_matmuls_are_within_what_is_skipped(rng):
    """Three of a chunk, in the branch of a conditional, in a loop: none that is run whatever the mask holds."""
    arguments = rng.normal(size=(64, 8)), rng.normal(size=(8, 50)), rng.integers(50, size=64), rng.random(64) < 0.5

    def mean(hidden, kernel, labels, where):
        return jxent.linear_softmax_cross_entropy(hidden, kernel, labels, where=where, reduction="mean", chunk_size=16)

    text = str(jax.make_jaxpr(jax.value_and_grad(mean, (0, 1)))(*arguments))
    before, within = text.split("cond[", 1)
    assert before.count("dot_general[") == 0
    assert len(re.findall(r"dot_general\[", within)) == 3


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
def test_a_mesh_that_splits_masked_rows_sends_none_of_them(rng, axis_type):
    """Each device takes its own rows that count; beside the gradient of the kernel numbers are sent."""
    mesh = make_mesh(axis_type)
    n, d, v = 64, 8, 500
    hidden, kernel = rng.normal(size=(n, d)), rng.normal(size=(d, v))
    labels, where = rng.integers(v, size=n), rng.random(n) < 0.3
    where[:16] = False

    def mean(hidden, kernel, labels, where):
        return jxent.linear_softmax_cross_entropy(hidden, kernel, labels, where=where, reduction="mean", chunk_size=16)

    arrays = [jnp.asarray(a) for a in (hidden, kernel, labels, where)]
    specs = P(("data", "classes")), P(), P(("data", "classes")), P(("data", "classes"))
    placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip(arrays, specs, strict=True)]
    f = jax.jit(jax.value_and_grad(mean, (0, 1)))
    compiled = f.lower(*placed).compile()
    sent = collectives(compiled)
    assert {each.kind for each in sent} == {"all-reduce"}
    assert {size for each in sent for size in each.sizes} <= {1, d * v}
    assert_tree_close(jax.device_get(f(*placed)), jax.device_get(f(*arrays)), 5e-6)
