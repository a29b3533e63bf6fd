"""Log-probabilities, entropy and losses of them, against the textbook in float64, differentiated by jax."""

import functools
import itertools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from tests.linear_problems import logits_of
from tests.test_linear import assert_tree_close
from tests.test_sharding import make_mesh

N, D, V, K = 12, 5, 40, 6
WHERE = np.arange(N) % 3 != 1
LABELS = pytest.mark.parametrize("several", [False, True], ids=["one id", "K ids"])


def ppo(log_prob, entropy, old_log_prob, advantage):
    ratio = jnp.exp(log_prob - old_log_prob)
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
    return -surrogate - 0.3 * entropy * entropy


def reinforce(log_prob, entropy, old_log_prob, advantage):
    return -advantage * log_prob - 0.1 * entropy


def unlikelihood(log_prob, entropy, old_log_prob, advantage):
    return -jnp.log(-jnp.expm1(log_prob))


def detached(log_prob, entropy, old_log_prob, advantage):
    return -jax.lax.stop_gradient(jnp.exp(log_prob)) * log_prob


def focal(log_prob, entropy, old_log_prob, advantage):
    return -jnp.square(-jnp.expm1(log_prob)) * log_prob


def poly(log_prob, entropy, old_log_prob, advantage):
    return -log_prob - 2 * jnp.expm1(log_prob)


LOSSES = {f.__name__: f for f in (ppo, reinforce, unlikelihood, detached, focal, poly)}


@pytest.fixture
def arguments(rng):
    return {
        "hidden": jnp.asarray(rng.normal(size=(N, D))),
        "kernel": jnp.asarray(rng.normal(size=(D, V))),
        "bias": jnp.asarray(rng.normal(size=V)).at[3].set(-jnp.inf),
        "logit_scale": jnp.asarray(1.3),
        "logit_softcap": jnp.asarray(5.0),
    }


def make_ids(rng, logits, several):
    """Repeated ones and the top class among them; none of the dead class."""
    ids = rng.integers(4, V, size=(N, K))
    ids[:, 1], ids[:, 2] = ids[:, 0], np.argmax(logits, 1)
    return ids if several else ids[:, 0]


def textbook(logits, ids):
    log_p = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.where(log_p == -jnp.inf, 0, jnp.exp(log_p) * jnp.where(log_p == -jnp.inf, 0, log_p)), -1)
    log_prob = jnp.take_along_axis(log_p, ids.reshape(N, -1), 1).reshape(ids.shape)
    return log_prob, entropy


def textbook_logits(arguments):
    dead = arguments["bias"] == -jnp.inf
    return jnp.where(dead, -jnp.inf, logits_of({**arguments, "bias": jnp.where(dead, 0, arguments["bias"])}))


def weighed(log_probs, rng_seed):
    """Gradients of both results, with random cotangents and the mask."""
    rng = np.random.default_rng(rng_seed)
    log_prob, entropy = log_probs
    where = WHERE.reshape(N, *[1] * (log_prob.ndim - 1))
    of_log_prob = jnp.sum(jnp.where(where, rng.normal(size=log_prob.shape) * log_prob, 0))
    return of_log_prob + jnp.sum(jnp.where(WHERE, rng.normal(size=N) * entropy, 0))


@LABELS
@pytest.mark.parametrize("axis", [0, 1])
def test_log_probs_and_entropy_of_logits(rng, x64, several, axis):
    logits = jnp.asarray(3 * rng.normal(size=(N, V))).at[:, 3].set(-jnp.inf)
    ids = make_ids(rng, logits, several)

    def ours(logits, scale):
        options = {"logit_scale": scale, "where": WHERE, "axis": axis, "return_entropy": True}
        return weighed(jxent.softmax_log_probs(logits if axis else logits.T, ids, **options), 7)

    def plain(logits, scale):
        is_dead = logits == -jnp.inf
        return weighed(textbook(jnp.where(is_dead, -jnp.inf, scale * jnp.where(is_dead, 0, logits)), ids), 7)

    got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(logits, 1.2) for f in (ours, plain))
    assert_tree_close(got, want, 1e-12)
    live = logits[:, 4:]
    along = live * 0.3, 0.1
    full = lambda f: lambda live, scale: f(logits.at[:, 4:].set(live), scale)  # noqa: E731
    got, want = (jax.jit(functools.partial(jax.jvp, full(f)))((live, 1.2), along) for f in (ours, plain))
    assert_tree_close(got, want, 1e-12)
    got, want = (jax.jit(jax.hessian(full(f)))(live, 1.2) for f in (ours, plain))
    assert_tree_close(got, want, 1e-11)


@LABELS
@pytest.mark.parametrize("chunk_size", [4, 5, None])
def test_log_probs_and_entropy_of_hidden_states(rng, x64, arguments, several, chunk_size):
    ids = make_ids(rng, logits_of(arguments), several)

    def ours(arguments):
        options = {"where": WHERE, "chunk_size": chunk_size, "return_entropy": True}
        return weighed(jxent.linear_softmax_log_probs(ids=ids, **arguments, **options), 7)

    def plain(arguments):
        return weighed(textbook(textbook_logits(arguments), ids), 7)

    got, want = (jax.jit(jax.value_and_grad(f))(arguments) for f in (ours, plain))
    assert_tree_close(got, want, 1e-12)


# Each loss with rows' own cotangents, and with the mean, to second order; the other reductions are the same for all.
@pytest.mark.parametrize(
    ("loss", "reduction"),
    [*itertools.product(LOSSES, ["none", "mean"]), *zip(LOSSES, ["sum", "partial"], strict=False)],
)
def test_row_losses_are_those_of_materialised_logits(rng, x64, arguments, loss, reduction):
    ids = make_ids(rng, logits_of(arguments), False)
    row_args = jnp.asarray(rng.normal(size=N) - 3), jnp.asarray(rng.normal(size=N))
    weight, cotangent = rng.uniform(0.5, 2, N), rng.normal(size=N)

    def reduced(result):
        if reduction == "none":
            return jnp.vdot(cotangent, result)
        return result.total / result.weight if reduction == "partial" else result

    def ours(arguments, row_args):
        options = {"where": WHERE, "sample_weight": weight, "reduction": reduction, "chunk_size": 5}
        named = {name: a for name, a in arguments.items() if name not in ("hidden", "kernel")}
        call = LOSSES[loss], arguments["hidden"], arguments["kernel"], ids, *row_args
        return reduced(jxent.linear_softmax_loss(*call, **named, **options))

    def plain(arguments, row_args):
        rows = weight * jnp.where(WHERE, LOSSES[loss](*textbook(textbook_logits(arguments), ids), *row_args), 0)
        if reduction == "none":
            return jnp.vdot(cotangent, rows)
        return rows.sum() if reduction == "sum" else rows.sum() / weight[WHERE].sum()

    got, want = (jax.jit(jax.value_and_grad(f, (0, 1)))(arguments, row_args) for f in (ours, plain))
    assert_tree_close(got, want, 1e-12)
    if reduction == "mean":
        got, want = (
            jax.jit(jax.hessian(lambda h, f=f: f({**arguments, "hidden": h}, row_args)))(arguments["hidden"])
            for f in (ours, plain)
        )
        assert_tree_close(got, want, 1e-10)


def test_log_probs_confident_rows_keep_their_digits():
    logits, ids = jnp.array([[40.0, 0, 0], [0, 20, 0]]), jnp.array([[0, 1], [1, 1]])
    truth = -2 * np.exp([-40.0, -20.0])
    got = jxent.softmax_log_probs(logits, ids)
    np.testing.assert_allclose(got[:, 0], truth, rtol=1e-6)
    np.testing.assert_array_equal(got[1], got[1, 0])
    one = jxent.softmax_log_probs(logits, ids[:, 0])
    np.testing.assert_array_equal(one, got[:, 0])
    for of in (ids, ids[:, 0]):
        slope = jax.grad(lambda x, of=of: jxent.softmax_log_probs(x, of).reshape(2, -1)[:, 0].sum())(logits)
        np.testing.assert_allclose(slope[[0, 1], [0, 1]], -truth, rtol=1e-6)
    entropy = jxent.softmax_log_probs(logits, ids, return_entropy=True).entropy
    np.testing.assert_allclose(entropy, 2 * np.array([41, 21]) * np.exp([-40.0, -20.0]), rtol=1e-6)


@LABELS
def test_log_probs_bad_ignored_and_masked(rng, several):
    logits = jnp.asarray(rng.normal(size=(4, 5)), np.float32).at[3].set(jnp.nan)
    ids = jnp.array([[0, 9], [-1, 1], [-100, 2], [1, 1]])
    ids = ids if several else ids[:, 0]
    where = jnp.array([True, True, True, False])

    def log_probs(logits):
        return jxent.softmax_log_probs(logits, ids, where=where, ignore_index=-100)

    got = np.asarray(log_probs(logits)).reshape(4, -1)
    assert np.isnan(got[1, 0])
    assert got[2, 0] == 0
    np.testing.assert_array_equal(got[3], 0)
    assert not np.signbit(got[2:, 0]).any()
    slopes = jax.grad(lambda x: log_probs(x).sum())(logits)
    np.testing.assert_array_equal(slopes[3], 0)
    assert np.isnan(slopes[1]).all()
    if several:
        assert np.isnan(got[0, 1])
        assert np.isfinite(got[[0, 1, 2], [0, 1, 1]]).all()
    else:
        np.testing.assert_array_equal(slopes[2], 0)


def test_row_loss_sees_nothing_of_masked_rows(rng):
    hidden, kernel = jnp.asarray(rng.normal(size=(6, 3)), np.float32), jnp.asarray(rng.normal(size=(3, 7)), np.float32)
    ids, where = jnp.arange(6), jnp.arange(6) % 2 == 0
    old = jnp.where(where, -2.0, jnp.nan)
    hidden = jnp.where(where[:, None], hidden, jnp.nan)

    def mean(hidden, kernel, old):
        loss = lambda log_prob, entropy, old: jnp.log(old + log_prob + 9) + entropy  # noqa: E731
        return jxent.linear_softmax_loss(loss, hidden, kernel, ids, old, where=where, chunk_size=2)

    value, slopes = jax.value_and_grad(mean, (0, 1, 2))(hidden, kernel, old)
    assert np.isfinite(value)
    assert all(np.isfinite(slope).all() for slope in slopes)
    np.testing.assert_array_equal(slopes[0][1::2], 0)
    np.testing.assert_array_equal(slopes[2][1::2], 0)


def test_row_loss_takes_three_matmuls_and_no_array_of_logits():
    n, d, v = 64, 8, 4096
    old, advantage, ids = (jax.ShapeDtypeStruct((n,), dtype) for dtype in (jnp.float32, jnp.float32, jnp.int32))

    def mean(hidden, kernel, ids, old, advantage):
        return jxent.linear_softmax_loss(ppo, hidden, kernel, ids, old, advantage, chunk_size=8)

    hidden, kernel = jax.ShapeDtypeStruct((n, d), jnp.float32), jax.ShapeDtypeStruct((d, v), jnp.float32)
    compiled = jax.jit(jax.value_and_grad(mean, (0, 1))).lower(hidden, kernel, ids, old, advantage).compile()
    assert compiled.as_text().count(" dot(") == 3
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * n * v


class Unhashable:
    __hash__ = None

    def __call__(self, log_prob, entropy):
        return -log_prob


@pytest.mark.parametrize(
    ("row_loss", "error", "text"),
    [
        (lambda p, h: (p + h).sum(), ValueError, r"one number per row, shape \(3,\) for 3 rows; got shape \(\)"),
        (lambda p, h: p[:, None], ValueError, r"got shape \(3, 1\)"),
        (lambda p, h: (p, h), ValueError, "got tuple"),
        (lambda p, h: (p > 0).astype(int), TypeError, "must return a floating dtype; got int"),
        (3, TypeError, "row_loss must be a function, and hashable; got int"),
        (Unhashable(), TypeError, "row_loss must be a function, and hashable; got Unhashable"),
    ],
)
def test_row_loss_errors(row_loss, error, text):
    with pytest.raises(error, match=f"linear_softmax_loss: .*{text}"):
        jxent.linear_softmax_loss(row_loss, jnp.ones((4, 2)), jnp.ones((2, 3)), jnp.zeros(4, int))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "partial"])
def test_row_loss_of_another_dtype_is_cast_and_integers_are_arguments(rng, reduction):
    hidden, kernel = jnp.asarray(rng.normal(size=(6, 3)), np.float32), jnp.asarray(rng.normal(size=(3, 7)), np.float32)
    ids, step = jnp.arange(6), jnp.arange(6)

    def narrow(log_prob, entropy, step):
        return jnp.where(step > 2, -log_prob, entropy).astype(jnp.bfloat16)

    def total(hidden, row_loss):
        loss = jxent.linear_softmax_loss(row_loss, hidden, kernel, ids, step, reduction=reduction, chunk_size=2)
        assert {leaf.dtype for leaf in jax.tree.leaves(loss)} == {jnp.dtype("float32")}
        return jnp.sum(jax.tree.leaves(loss)[0])

    wide = lambda log_prob, entropy, step: jnp.where(step > 2, -log_prob, entropy)  # noqa: E731
    got, want = (jax.value_and_grad(total)(hidden, row_loss) for row_loss in (narrow, wide))
    assert_tree_close(got, want, 1e-2)


def test_log_probs_errors():
    logits, hidden, kernel, ids = jnp.ones((4, 3)), jnp.ones((4, 2)), jnp.ones((2, 3)), jnp.zeros(4, int)
    with pytest.raises(TypeError, match=r"softmax_log_probs: ids must have an integer dtype .*; got float32"):
        jxent.softmax_log_probs(logits, logits)
    with pytest.raises(ValueError, match=r"ids has shape \(3,\); expected the row shape \(4,\), or \(4, 'K'\)"):
        jxent.softmax_log_probs(logits, ids[:3])
    with pytest.raises(
        ValueError, match=r"linear_softmax_loss: ids has shape \(4, 1\); expected the row shape \(4,\), to go"
    ):
        jxent.linear_softmax_loss(lambda p, h: p, hidden, kernel, ids[:, None])
    with pytest.raises(
        ValueError, match=r"row_args\[1\] has shape \(3,\); expected one that begins with the row shape \(4,\)"
    ):
        jxent.linear_softmax_loss(ppo, hidden, kernel, ids, jnp.ones(4), jnp.ones(3))
    with pytest.raises(ValueError, match="row_loss closes over a traced array"):
        jax.grad(lambda c: jxent.linear_softmax_loss(lambda p, h: c * p, hidden, kernel, ids))(1.0)


def mesh_arguments(rng, several):
    """In float32, B by T rows: the differentiable arguments by name, the ids and the mask."""
    rows = 4, 6
    arguments = {
        "hidden": rng.normal(size=(*rows, D)),
        "kernel": rng.normal(size=(D, 8)),
        "bias": rng.normal(size=8),
        "old_log_prob": rng.normal(size=rows) - 2,
        "advantage": rng.normal(size=rows),
    }
    arguments = {name: jnp.asarray(a, jnp.float32) for name, a in arguments.items()}
    ids = jnp.asarray(rng.integers(8, size=(*rows, 3) if several else rows))
    return arguments, {"ids": ids, "where": jnp.asarray(rng.random(rows) < 0.7)}


def log_probs_and_mean(arguments, fixed, **options):
    """One number from all functions of hidden states, with a gradient for every argument."""
    a = dict(arguments)
    row_args = a.pop("old_log_prob"), a.pop("advantage")
    ids, where = fixed["ids"], fixed["where"]
    options |= {"where": where, "bias": a["bias"], "chunk_size": 5}
    both = jxent.linear_softmax_log_probs(a["hidden"], a["kernel"], ids, return_entropy=True, **options)
    if ids.ndim > where.ndim:
        return jnp.cos(both.log_prob).sum(-1) + both.entropy, jxent.Mean(jnp.float32(0), jnp.float32(0))
    mean = jxent.linear_softmax_loss(ppo, a["hidden"], a["kernel"], ids, *row_args, reduction="partial", **options)
    return jnp.cos(both.log_prob) + both.entropy, mean


def total_of(rows, mean):
    return jnp.sum(rows) + mean.total / jnp.maximum(mean.weight, 1)


SPLITS = {
    "hidden": P("data"),
    "kernel": P(None, "classes"),
    "bias": P("classes"),
    "old_log_prob": P("data"),
    "advantage": P("data"),
}
FIXED_SPLITS = {"ids": P("data"), "where": P("data")}


def assert_on_mesh_as_on_one_device(over_mesh, arguments, fixed):
    want = jax.jit(jax.value_and_grad(lambda *a: total_of(*log_probs_and_mean(*a))))(arguments, fixed)
    got = jax.jit(jax.value_and_grad(over_mesh))(arguments, fixed)
    assert_tree_close(jax.device_get(got), want, 5e-6)


@pytest.mark.slow
@LABELS
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=lambda t: t.name)
def test_log_probs_on_a_mesh_are_those_of_one_device(rng, several, axis_type):
    arguments, fixed = mesh_arguments(rng, several)
    mesh = make_mesh(axis_type)

    def over_mesh(arguments, fixed):
        return total_of(*log_probs_and_mean(arguments, fixed))

    want = jax.jit(jax.value_and_grad(over_mesh))(arguments, fixed)
    placed = (
        {name: jax.device_put(a, NamedSharding(mesh, specs[name])) for name, a in part.items()}
        for part, specs in ((arguments, SPLITS), (fixed, FIXED_SPLITS))
    )
    assert_tree_close(jax.device_get(jax.jit(jax.value_and_grad(over_mesh))(*placed)), want, 5e-6)


@LABELS
def test_log_probs_in_shard_map_over_rows_and_classes(rng, several):
    arguments, fixed = mesh_arguments(rng, several)
    arguments["hidden"] = jnp.where(fixed["where"][..., None], arguments["hidden"], jnp.nan)

    @functools.partial(jax.shard_map, mesh=make_mesh(), in_specs=(SPLITS, FIXED_SPLITS), out_specs=P())
    def over_mesh(arguments, fixed):
        rows, mean = log_probs_and_mean(arguments, fixed, vocab_axis_name="classes")
        return total_of(jax.lax.psum(jnp.sum(rows), "data"), mean if several else mean.psum("data"))

    assert_on_mesh_as_on_one_device(over_mesh, arguments, fixed)


@LABELS
@pytest.mark.parametrize("how", ["Auto", "Explicit", "shard_map"])
def test_log_probs_of_logits_whose_classes_are_split(rng, several, how):
    logits = jnp.asarray(3 * rng.normal(size=(4, 8)), jnp.float32)
    ids = jnp.asarray(rng.integers(8, size=(4, 3) if several else 4))
    mesh, specs = (
        make_mesh(AxisType.Explicit if how == "Explicit" else AxisType.Auto),
        (P("data", "classes"), P("data")),
    )

    def total(logits, ids, **options):
        log_prob, entropy = jxent.softmax_log_probs(logits, ids, logit_scale=1.5, return_entropy=True, **options)
        return jnp.sum(jnp.cos(log_prob)) + jnp.sum(entropy**2)

    def inside(logits, ids):
        return jax.lax.psum(total(logits, ids, vocab_axis_name="classes"), "data")

    over_mesh = jax.shard_map(inside, mesh=mesh, in_specs=specs, out_specs=P()) if how == "shard_map" else total
    placed = [jax.device_put(a, NamedSharding(mesh, spec)) for a, spec in zip((logits, ids), specs, strict=True)]
    got, want = (jax.jit(jax.value_and_grad(f))(*a) for f, a in ((over_mesh, placed), (total, (logits, ids))))
    assert_tree_close(jax.device_get(got), want, 5e-6)


TRANSFORMED = {
    "vmap over rows": lambda f, rows: jnp.sum(jax.vmap(f)(rows)),
    "scan": lambda f, rows: jnp.sum(jax.lax.scan(lambda total, h: (total, f(h)), 0, rows)[1]),
    "checkpoint": lambda f, rows: jnp.sum(jax.checkpoint(f)(rows)),
    "vmap of a gradient": lambda f, rows: jnp.sum(jnp.sin(jax.vmap(jax.grad(lambda h: jnp.sum(f(h))))(rows))),
    "vmap over the scale": lambda f, rows: jnp.sum(jax.vmap(lambda t: f(rows * t))(jnp.array([0.5, 1.0, 2.0]))),
}


@pytest.mark.parametrize("how", TRANSFORMED)
@pytest.mark.parametrize("what", ["log_probs", "loss", "of logits"])
def test_log_probs_under_transformations(rng, x64, arguments, what, how):
    """Maps of the value and of its gradient. `f` takes the hidden states of one row, or of all; their ids are all alike."""
    kernel = arguments["kernel"]

    def ours(h):
        ids = jnp.full(h.shape[:-1], 5)
        if what == "loss":
            row_args = jnp.full(ids.shape, -3.0), jnp.cos(h[..., 0])
            return jxent.linear_softmax_loss(ppo, h, kernel, ids, *row_args, reduction="sum", chunk_size=5)
        if what == "of logits":
            log_prob, entropy = jxent.softmax_log_probs(h @ kernel, ids, logit_scale=0.7, return_entropy=True)
        else:
            log_prob, entropy = jxent.linear_softmax_log_probs(h, kernel, ids, logit_scale=0.7, return_entropy=True)
        return jnp.sum(log_prob**2 + entropy**2)

    def plain(h):
        log_p = jax.nn.log_softmax((1.0 if what == "loss" else 0.7) * (h @ kernel))
        log_prob, entropy = log_p[..., 5], -jnp.sum(jnp.exp(log_p) * log_p, -1)
        if what == "loss":
            return jnp.sum(ppo(log_prob, entropy, jnp.full(log_prob.shape, -3.0), jnp.cos(h[..., 0])))
        return jnp.sum(log_prob**2 + entropy**2)

    got, want = (
        jax.jit(jax.value_and_grad(functools.partial(TRANSFORMED[how], f)))(arguments["hidden"]) for f in (ours, plain)
    )
    assert_tree_close(got, want, 1e-11)


@pytest.mark.slow
def test_log_probs_are_exported_for_any_number_of_rows(rng):
    (n,) = jax.export.symbolic_shape("n")
    kernel = jnp.asarray(rng.normal(size=(D, V)), jnp.float32)

    def step(hidden, ids, old, advantage):
        both = jxent.linear_softmax_log_probs(hidden, kernel, ids, return_entropy=True)
        return both, jax.grad(lambda h: jxent.linear_softmax_loss(ppo, h, kernel, ids, old, advantage))(hidden)

    shapes = ((n, D), jnp.float32), ((n,), jnp.int32), ((n,), jnp.float32), ((n,), jnp.float32)
    structs = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes]
    exported = jax.export.deserialize(jax.export.export(jax.jit(step))(*structs).serialize())
    for rows in (1, 7):
        ids = jnp.asarray(rng.integers(V, size=rows), jnp.int32)
        values = [jnp.asarray(rng.normal(size=(rows, *rest)), jnp.float32) for rest in ((D,), (), ())]
        given = values[0], ids, *values[1:]
        assert_tree_close(exported.call(*given), step(*given), 3e-6)


@LABELS
def test_log_probs_of_no_rows(several):
    hidden, kernel = jnp.zeros((0, D)), jnp.zeros((D, V))
    ids = jnp.zeros((0, K) if several else 0, int)

    def total(hidden, kernel):
        both = jxent.linear_softmax_log_probs(hidden, kernel, ids, return_entropy=True)
        assert both.log_prob.shape == ids.shape
        assert both.entropy.shape == (0,)
        of_logits = jxent.softmax_log_probs(hidden @ kernel, ids, return_entropy=True)
        return jnp.sum(both.log_prob) + jnp.sum(both.entropy) + jnp.sum(of_logits.log_prob)

    value, slopes = jax.value_and_grad(total, (0, 1))(hidden, kernel)
    assert value == 0
    np.testing.assert_array_equal(slopes[1], 0)
    no_ids = jnp.zeros(0, int)
    assert jxent.linear_softmax_loss(lambda p, h: p, hidden, kernel, no_ids) == 0


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@LABELS
def test_log_probs_are_in_the_result_dtype_and_cotangents_in_their_own(rng, several, dtype):
    hidden, kernel = jnp.asarray(rng.normal(size=(6, D)), dtype), jnp.asarray(rng.normal(size=(D, V)), dtype)
    ids = jnp.asarray(rng.integers(V, size=(6, K) if several else 6))
    scale = jnp.float32(1 / 0.7)

    def fused_total(h, k, scale):
        both = jxent.linear_softmax_log_probs(h, k, ids, logit_scale=scale, return_entropy=True)
        assert {leaf.dtype for leaf in both} == {jnp.dtype("float32")}
        return jnp.sum(both.log_prob) + jnp.sum(both.entropy)

    def plain(h, k, scale):
        log_p = jax.nn.log_softmax(scale * jnp.dot(h, k, preferred_element_type=jnp.float32))
        return jnp.take_along_axis(log_p, ids.reshape(6, -1), 1).sum() - jnp.sum(jnp.exp(log_p) * log_p)

    got, want = (jax.jit(jax.value_and_grad(f, (0, 1, 2)))(hidden, kernel, scale) for f in (fused_total, plain))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    assert [slope.dtype for slope in got[1]] == [dtype, dtype, jnp.float32]
    assert_tree_close(got[1], want[1], 2e-2 if dtype == jnp.bfloat16 else 3e-3)


def test_the_scale_of_bfloat16_logits_is_applied_in_float32(rng):
    """Dividing them by a temperature in their own dtype would round each to eight bits."""
    logits, ids = jnp.asarray(4 * rng.normal(size=(5, 50)), jnp.bfloat16), jnp.arange(5)
    got = jxent.softmax_log_probs(logits, ids, logit_scale=1 / 0.7)
    want = jax.nn.log_softmax(np.float64(logits) * np.float64(np.float32(1 / 0.7)))[np.arange(5), ids]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_log_probs_entropy_keeps_its_digits():
    for gap in (0.0, 3.0, 30.0, 80.0):
        logits = np.array([gap, 0, 0, -1], np.float32)
        with mpmath.workdps(60):
            e = [mpmath.exp(mpmath.mpf(float(x))) for x in logits]
            p = [x / mpmath.fsum(e) for x in e]
            entropy = -mpmath.fsum(q * mpmath.log(q) for q in p)
            slope = [-q * (mpmath.log(q) + entropy) for q in p]
        f = lambda x: jxent.softmax_log_probs(x, 0, return_entropy=True).entropy  # noqa: E731
        value, got = jax.value_and_grad(f)(jnp.asarray(logits))
        assert abs(float(value) / entropy - 1) < 1e-6
        # A slope that is a difference, −p (log p + H), is right to the digits of its larger part.
        scale = max(map(abs, slope))
        assert all(abs(float(s) - t) <= 2e-6 * scale for s, t in zip(got, slope, strict=True))


def test_masked_rows_of_log_probs_are_not_run():
    """The chunks stand in a conditional, of a loss of any row as of the cross entropy."""
    hidden, kernel = jax.ShapeDtypeStruct((64, 8), jnp.float32), jax.ShapeDtypeStruct((8, 4096), jnp.float32)
    ids, where = jax.ShapeDtypeStruct((64,), jnp.int32), jax.ShapeDtypeStruct((64,), jnp.bool_)

    def mean(hidden, kernel, ids, where):
        loss = lambda log_prob, entropy: -log_prob - 0.1 * entropy  # noqa: E731
        return jxent.linear_softmax_loss(loss, hidden, kernel, ids, where=where, chunk_size=8)

    def total(hidden, kernel, ids, where):
        return jxent.linear_softmax_log_probs(hidden, kernel, ids, where=where, chunk_size=8).sum()

    for f, matmuls in ((mean, 3), (total, 4)):
        compiled = jax.jit(jax.value_and_grad(f, (0, 1))).lower(hidden, kernel, ids, where).compile()
        text = compiled.as_text()
        assert text.count(" dot(") == matmuls
        assert " conditional(" in text
        assert compiled.memory_analysis().temp_size_in_bytes < 4 * 64 * 4096
