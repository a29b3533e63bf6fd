"""`SparseLabels` against the dense distribution with the same entries, and against ids."""

import functools
import inspect
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jxent
from jxent import SparseLabels
from tests.linear_problems import make_problem
from tests.test_linear import assert_tree_close
from tests.test_sharding import make_mesh

N, V, K = 6, 9, 4
WHERE = np.arange(N) % 3 != 1
LOSSES = {
    "softmax": jxent.softmax_cross_entropy,
    "focal": functools.partial(jxent.softmax_focal_loss, gamma=1.5),
    "poly": jxent.poly1_cross_entropy,
    "probs": jxent.cross_entropy_from_probs,
    "log_probs": jxent.cross_entropy_from_log_probs,
}
OPTIONS = "class_weight", "sample_weight", "label_smoothing", "z_loss"


def scores_of(name, logits):
    return {"probs": jax.nn.softmax, "log_probs": jax.nn.log_softmax}.get(name, lambda x: x)(logits)


def dense(ids, weights, num_classes):
    """The distribution that these entries make; a bad id is nowhere in it."""
    return jnp.sum(jax.nn.one_hot(ids, num_classes, dtype=weights.dtype) * weights[..., None], -2)


def make_labels(rng, rows=(N,), num_classes=V, k=K, dtype=np.float64):
    """An id comes twice in the first entries, and weights do not sum to 1."""
    ids = rng.integers(num_classes, size=(*rows, k))
    ids[..., k // 2] = ids[..., 0]
    return jnp.asarray(ids), jnp.asarray(rng.uniform(0.1, 1, (*rows, k)), dtype)


@pytest.mark.parametrize(("name", "reduction"), [*((name, "mean") for name in LOSSES), (next(iter(LOSSES)), "none")])
def test_sparse_labels_are_the_dense_ones_under_every_option(rng, x64, name, reduction):
    """Value, and gradient by scores, weights of the labels and every option, for each subset of the options."""
    scores, (ids, weights) = scores_of(name, jnp.asarray(2 * rng.normal(size=(N, V)))), make_labels(rng)
    given = {
        "class_weight": jnp.asarray(rng.uniform(0.5, 2, V)),
        "sample_weight": jnp.asarray(rng.uniform(0.5, 2, N)),
        "label_smoothing": jnp.asarray(0.2),
        "z_loss": jnp.asarray(0.1),
    }
    takes = inspect.signature(getattr(LOSSES[name], "func", LOSSES[name])).parameters
    names = [option for option in OPTIONS if option in takes]
    cotangent = jnp.cos(jnp.arange(N)) if reduction == "none" else 1.0

    def total(make, scores, weights, options):
        rows = LOSSES[name](scores, make(weights), reduction=reduction, where=WHERE, **options)
        return jnp.sum(cotangent * rows)

    for chosen in itertools.chain.from_iterable(itertools.combinations(names, n) for n in (0, 1, len(names))):
        options = {option: given[option] for option in chosen}
        sparse, full = (
            jax.jit(jax.value_and_grad(functools.partial(total, make), (0, 1, 2)))(scores, weights, options)
            for make in (lambda w: SparseLabels(ids, w), lambda w: dense(ids, w, V))
        )
        assert_tree_close(sparse, full, 1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_sparse_labels_in_both_directions_and_to_second_order(rng, x64, name):
    scores, (ids, weights) = scores_of(name, jnp.asarray(rng.normal(size=(3, V)))), make_labels(rng, (3,))

    def total(make, scores, weights):
        return jnp.sum(jnp.sin(LOSSES[name](scores, make(weights))))

    sparse, full = (
        functools.partial(total, make) for make in (lambda w: SparseLabels(ids, w), lambda w: dense(ids, w, V))
    )
    along = jnp.cos(scores), jnp.sin(weights)
    assert_tree_close(*(jax.jit(lambda *a, f=f: jax.jvp(f, a, along))(scores, weights) for f in (sparse, full)), 1e-12)
    hessians = (jax.jit(jax.hessian(f, (0, 1)))(scores, weights) for f in (sparse, full))
    assert_tree_close(*hessians, 1e-11)


@pytest.mark.parametrize("k", [1, 2, 64, 256])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sparse_labels_of_any_number_beside_any_axis(rng, axis, k):
    num_classes = 300
    logits = jnp.asarray(3 * rng.normal(size=(2, 3, num_classes)), jnp.float32)
    ids, weights = make_labels(rng, (2, 3), num_classes, k, np.float32)
    moved = jnp.moveaxis(logits, -1, axis)
    got = jxent.softmax_cross_entropy(moved, SparseLabels(ids, weights), axis=axis)
    want = jxent.softmax_cross_entropy(logits, dense(ids, weights, num_classes))
    np.testing.assert_allclose(got, want, rtol=3e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_one_entry_is_as_accurate_as_its_id(name):
    logits, ids = jnp.array([[40.0, 0, 0], [0, 20, 0], [1, 2, 3]]), jnp.array([0, 1, 0])
    scores, labels = scores_of(name, logits), SparseLabels(ids[:, None], jnp.ones((3, 1)))
    sparse, plain = (jax.value_and_grad(lambda x, y=y: LOSSES[name](x, y).sum())(scores) for y in (labels, ids))
    assert_tree_close(sparse, plain, 1e-6)
    if name == "softmax":
        truth = np.log1p(2 * np.exp([-40.0, -20.0]))
        np.testing.assert_allclose(jxent.softmax_cross_entropy(logits, labels)[:2], truth, rtol=1e-6)
        np.testing.assert_allclose(sparse[1][[0, 1], [0, 1]], np.expm1(-truth), rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_bad_id_is_nan_whatever_its_weight_unless_masked(rng, name):
    scores = scores_of(name, jnp.asarray(rng.normal(size=(5, 4)), jnp.float32))
    ids = jnp.array([[0, 4], [-1, 1], [2, 3], [9, 9], [1, 0]])
    weights = jnp.array([[1.0, 0.0], [0.5, 0.5], [0.5, 0.0], [jnp.nan, 1], [1, 1]])
    where = jnp.array([True, True, True, False, True])
    scores = scores.at[3].set(jnp.nan)

    def rows(scores, weights):
        return LOSSES[name](scores, SparseLabels(ids, weights), where=where)

    value = rows(scores, weights)
    np.testing.assert_array_equal(np.isnan(value), [True, True, False, False, False])
    assert value[3] == 0
    by_scores, by_weights = jax.grad(lambda *a: rows(*a).sum(), (0, 1))(scores, weights)
    np.testing.assert_array_equal(np.isnan(by_scores).all(1), [True, True, False, False, False])
    assert np.isfinite(by_scores[2:]).all()
    np.testing.assert_array_equal(by_scores[3], 0)
    np.testing.assert_array_equal(by_weights[3], 0)
    assert np.isfinite(by_weights[2:]).all()


def test_entries_at_classes_that_do_not_exist():
    logits = jnp.array([[0.0, -jnp.inf, 1.0], [0.0, -jnp.inf, 1.0]])
    labels = SparseLabels(jnp.array([[0, 1], [0, 1]]), jnp.array([[1.0, 0.0], [0.5, 0.5]]))
    value, slopes = jax.value_and_grad(lambda x: jxent.softmax_cross_entropy(x, labels)[0])(logits)
    np.testing.assert_allclose(value, np.log1p(np.e), rtol=1e-6)
    assert np.isfinite(slopes).all()
    assert slopes[0, 1] == 0
    assert jxent.softmax_cross_entropy(logits, labels)[1] == np.inf


@pytest.mark.parametrize(
    ("reduction", "bare"), [("none", False), ("none", True), ("sum", True), ("mean", False), ("partial", False)]
)
def test_fused_sparse_labels_are_the_dense_ones(rng, x64, reduction, bare):
    problem = make_problem(rng, (2, 5), 4, V, "ids", softcap=None if bare else 4.0, bare=bare)
    ids, weights = make_labels(rng, (2, 5))
    cotangent, fixed = problem.cotangents[reduction], {k: a for k, a in problem.fixed.items() if k != "labels"}

    def total(make, arguments, weights):
        options = {"reduction": reduction, "chunk_size": 3, "return_aux": True}
        loss, aux = jxent.linear_softmax_cross_entropy(**arguments, labels=make(weights), **fixed, **options)
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), cotangent, loss)
        return sum(jax.tree.leaves(products)) + jnp.sum(aux.log_z**2), aux

    sparse, full = (
        jax.jit(jax.value_and_grad(functools.partial(total, make), (0, 1), has_aux=True))(problem.arguments, weights)
        for make in (lambda w: SparseLabels(ids, w), lambda w: dense(ids, w, V))
    )
    assert_tree_close(sparse, full, 1e-11)


@pytest.mark.parametrize("fused", [False, True], ids=["logits", "fused"])
@pytest.mark.parametrize("how", ["Auto", "Explicit", "shard_map"])
def test_sparse_labels_on_a_mesh_are_those_of_one_device(rng, how, fused):
    mesh = make_mesh(AxisType.Explicit if how == "Explicit" else AxisType.Auto)
    rows, classes = P("data"), P("classes")
    shapes = {"hidden": (8, 6), "kernel": (6, 8)} if fused else {"logits": (8, 8)}
    arguments = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    ids, weights = make_labels(rng, (8,), 8, 3, np.float32)
    arguments |= {"weights": weights, "class_weight": jnp.asarray(rng.uniform(0.5, 2, 8), jnp.float32)}
    specs = {"hidden": rows, "kernel": P(None, "classes"), "logits": P("data", "classes")}
    specs |= {"weights": rows, "class_weight": classes}
    specs = {name: specs[name] for name in arguments}

    def partial(arguments, ids, **options):
        a = dict(arguments)
        call = (
            functools.partial(jxent.linear_softmax_cross_entropy, chunk_size=2)
            if fused
            else jxent.softmax_cross_entropy
        )
        labels = SparseLabels(ids, a.pop("weights"))
        return call(**a, labels=labels, label_smoothing=0.1, reduction="partial", **options)

    def mean(arguments, ids):
        return partial(arguments, ids).value()

    def inside(arguments, ids):
        return partial(arguments, ids, vocab_axis_name="classes").psum("data").value()

    over_mesh = mean
    if how == "shard_map":
        over_mesh = jax.shard_map(inside, mesh=mesh, in_specs=(specs, rows), out_specs=P())
    placed = {name: jax.device_put(a, NamedSharding(mesh, specs[name])) for name, a in arguments.items()}
    got = jax.jit(jax.value_and_grad(over_mesh))(placed, jax.device_put(ids, NamedSharding(mesh, rows)))
    assert_tree_close(jax.device_get(got), jax.jit(jax.value_and_grad(mean))(arguments, ids), 5e-6)


@pytest.mark.slow
def test_sparse_labels_under_transformations(rng, x64):
    logits, (ids, weights) = jnp.asarray(rng.normal(size=(3, N, V))), make_labels(rng, (3, N))

    def total(logits, ids, weights):
        return jxent.softmax_cross_entropy(logits, SparseLabels(ids, weights), label_smoothing=0.1).sum()

    want = jax.grad(total)(logits, ids, weights)
    np.testing.assert_allclose(jax.vmap(jax.grad(total))(logits, ids, weights), want, atol=1e-14)
    np.testing.assert_allclose(jax.grad(jax.checkpoint(total))(logits, ids, weights), want, atol=1e-14)
    labels = SparseLabels(ids, weights)
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (logits, labels))
    exported = jax.export.export(jax.jit(jxent.softmax_cross_entropy))(*structs).serialize()
    assert b"jxent.SparseLabels" in exported
    again = jax.export.deserialize(exported).call(logits, labels)
    np.testing.assert_allclose(again, jxent.softmax_cross_entropy(logits, labels), atol=1e-14)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
def test_sparse_labels_cotangents_are_in_the_dtype_of_their_weights(rng, dtype):
    logits, (ids, weights) = jnp.asarray(rng.normal(size=(N, V)), dtype), make_labels(rng, dtype=np.float32)
    call = lambda x, w: jxent.softmax_cross_entropy(x, SparseLabels(ids, w), reduction="mean")  # noqa: E731
    value, slopes = jax.value_and_grad(call, (0, 1))(logits, weights.astype(dtype))
    assert (value.dtype, slopes[0].dtype, slopes[1].dtype) == (jnp.float32, dtype, dtype)
    np.testing.assert_allclose(value, call(logits.astype(jnp.float32), weights.astype(dtype)), rtol=1e-5)


def test_check_labels_reads_their_ids():
    weights = jnp.ones((2, 2))
    jxent.check_labels(SparseLabels(jnp.array([[0, 1], [2, 0]]), weights), 3)
    with pytest.raises(ValueError, match=r"labels\[1, 0\] = 3"):
        jxent.check_labels(SparseLabels(jnp.array([[0, 1], [3, 0]]), weights), 3)


x = jnp.ones((4, 3))
ids, ones = jnp.zeros((4, 2), int), jnp.ones((4, 2))
ERRORS = {
    "float ids": (ones, ones, {}, TypeError, "labels.ids must have an integer dtype (class ids); got float32"),
    "one id a row": (ids[:, 0], ones, {}, ValueError, "labels.ids has shape (4,); expected (4, 'K'), K ids per row"),
    "no ids": (ids[:, :0], ones[:, :0], {}, ValueError, "labels.ids has shape (4, 0); expected (4, 'K')"),
    "other rows": (ids[:3], ones[:3], {}, ValueError, "labels.ids has shape (3, 2); expected (4, 'K')"),
    "integer weights": (ids, ids, {}, TypeError, "labels.weights must have a floating dtype; got int32"),
    "weights for all": (
        ids,
        ones[0],
        {},
        ValueError,
        "labels.weights has shape (2,); expected that of labels.ids, (4, 2)",
    ),
    "ignore_index": (ids, ones, {"ignore_index": 0}, ValueError, "labels is a distribution (SparseLabels); mask rows"),
}


@pytest.mark.parametrize(("ids", "weights", "options", "error", "words"), ERRORS.values(), ids=ERRORS)
def test_sparse_labels_that_do_not_fit_are_named(ids, weights, options, error, words):
    for call in (jxent.softmax_cross_entropy, functools.partial(jxent.linear_softmax_cross_entropy, kernel=jnp.eye(3))):
        with pytest.raises(error) as raised:
            call(x, labels=SparseLabels(ids, weights), **options)
        assert words in str(raised.value)
