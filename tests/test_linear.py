"""The fused loss against float64 autodiff of the plain formula: shapes, options, dtypes, rows that do not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from tests.linear_problems import fused, gradients, logits_of, make_problem, materialised
from tests.pairs import all_pairs

# Rows prime, so that chunks leave a remainder; V around and far from powers of two.
SIZES = [((7,), 5, 2), ((2, 13), 3, 53), ((31,), 17, 301), ((5, 1, 3), 8, 2049), ((3,), 4, 50257), ((), 6, 11)]
REDUCTIONS = ("none", "sum", "mean", "partial")


def evaluate(loss, problem, reductions=REDUCTIONS, **options):
    """For each reduction the value, and the gradients by every argument for a random cotangent."""

    @jax.jit
    def evaluated(arguments, cotangents):
        return {r: gradients(loss, arguments, problem, cotangents[r], reduction=r, **options) for r in reductions}

    return evaluated(problem.arguments, problem.cotangents)


def assert_tree_close(actual, expected, tolerance):
    """Each array relative to its own largest entry, or to 1."""

    def check(a, b):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.max(np.abs(b), initial=1))

    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(check, actual, expected)


def assert_values_and_gradients_close(actual, expected):
    for reduction, (value, slopes) in expected.items():
        assert_tree_close(actual[reduction][0], value, 1e-12)
        assert_tree_close(actual[reduction][1], slopes, 1e-11)


# The reductions to a scalar are one rule, so that two of them are enough for each kind of labels, and chunks for two.
OPTIONS = [
    ("ids", None, ("none", "mean"), 4, False),
    ("ids", 5.0, ("sum", "partial"), None, True),
    ("soft", None, ("sum", "partial"), 4, False),
    ("soft", 5.0, ("none", "mean"), None, True),
]


@pytest.mark.parametrize(
    ("rows", "depth", "num_classes", "kind", "softcap", "reductions", "chunk_size", "masked"),
    [(*size, *options) for i, size in enumerate(SIZES) for options in OPTIONS[i % 2 :: 2]],
    ids=str,
)
def test_linear_with_every_option_is_the_plain_formula(
    rng, x64, rows, depth, num_classes, kind, softcap, reductions, chunk_size, masked
):
    problem = make_problem(rng, rows, depth, num_classes, kind, softcap=softcap, masked=masked)
    got = evaluate(fused, problem, reductions, chunk_size=chunk_size)
    assert_values_and_gradients_close(got, evaluate(materialised, problem, reductions))


@pytest.mark.parametrize("num_classes", [2049, 50257])
def test_linear_at_initialisation_scale(rng, x64, num_classes):
    # Logits near 0 are where padded columns would weigh as much as real ones.
    problem = make_problem(rng, (11,), 4, num_classes, "ids", scale=0.02, bare=True)
    got = evaluate(fused, problem, ("none", "mean"), chunk_size=3)
    assert_values_and_gradients_close(got, evaluate(materialised, problem, ("none", "mean")))


@pytest.mark.slow
@pytest.mark.parametrize("masked", [False, True])
def test_linear_does_not_depend_on_the_chunks(rng, masked):
    problem = make_problem(rng, (12,), 5, 33, "ids", masked=masked, dtype=np.float32)
    whole = evaluate(fused, problem, ("none", "mean"))
    for chunk_size in (4, 5, 100):  # filled, with a remainder, more rows than there are
        assert_tree_close(evaluate(fused, problem, ("none", "mean"), chunk_size=chunk_size), whole, 2e-6)


@pytest.mark.parametrize("rows", [(3, 0), (1,)])
def test_linear_of_no_and_of_one_row(rng, x64, rows):
    problem = make_problem(rng, rows, 5, 7, "ids", bare=True)
    assert_values_and_gradients_close(evaluate(fused, problem, chunk_size=2), evaluate(materialised, problem))


@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_linear_of_a_transposed_kernel(rng, x64, kind):
    problem = make_problem(rng, (6,), 5, 7, kind, bare=True)
    want = evaluate(fused, problem, ("none", "mean"))

    def tied(arguments, **options):
        table = arguments["kernel"].T
        return fused({**arguments, "kernel": table}, transpose_kernel=True, **options)

    assert_values_and_gradients_close(evaluate(tied, problem, ("none", "mean"), chunk_size=2), want)


# Errors by the side of those that autodiff of float32 logits makes on the same rounded input, every result and gradient
# rounded to its dtype. bfloat16 and float16 round the gradient of the logits too, as a model that holds such logits does.
@pytest.mark.parametrize(*all_pairs(dtype=[np.float32, jnp.bfloat16], reduction=["none", "mean"], scale=[1.0, 0.02]))
def test_linear_errors_are_within_the_budget(rng, dtype, reduction, scale):
    allowed, floor = (1.5, 2e-7) if dtype == np.float32 else (3.0, 2e-3)
    with jax.enable_x64(True):
        problem = make_problem(rng, (64,), 32, 2049, "ids", scale=scale, bare=scale < 1, dtype=np.float64)
        rounded = jax.tree.map(lambda a: jnp.asarray(jnp.asarray(a, dtype), np.float64), problem.arguments)
        problem = type(problem)(rounded, problem.fixed, problem.cotangents)
        truth = evaluate(materialised, problem, (reduction,))[reduction]
    single = jax.tree.map(lambda a: jnp.asarray(a, np.float32), (problem.arguments, problem.cotangents))
    plain = evaluate(materialised, type(problem)(single[0], problem.fixed, single[1]), (reduction,))[reduction]
    narrow = jax.tree.map(lambda a: jnp.asarray(a, dtype), single[0])
    got = evaluate(fused, type(problem)(narrow, problem.fixed, single[1]), (reduction,), chunk_size=24)[reduction]
    assert got[0].dtype == np.float32

    def error(a, b):
        return np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)

    assert error(got[0], np.asarray(truth[0])) <= max(error(plain[0], np.asarray(truth[0])), 2e-7)
    for name, expected in jax.tree.map(np.asarray, truth[1]).items():
        assert got[1][name].dtype == dtype
        ours, theirs = error(got[1][name], expected), error(jnp.asarray(plain[1][name], dtype), expected)
        # A hyper-parameter's slope is one number, the rest of a sum that cancels: there luck has a part in either error.
        factor = 1 if expected.ndim else 4
        assert ours <= factor * max(allowed * theirs, floor), (name, ours, theirs)


def test_linear_keeps_confident_rows():
    hidden, kernel = jnp.eye(3) * 20, jnp.eye(3)
    loss_fn = lambda h: jxent.linear_softmax_cross_entropy(h, kernel, jnp.arange(3), reduction="sum", chunk_size=2)  # noqa: E731
    loss, slope = jax.value_and_grad(loss_fn)(hidden)
    expected = np.log1p(2 * np.exp(-20.0))
    np.testing.assert_allclose(loss, 3 * expected, rtol=1e-6)
    np.testing.assert_allclose(np.diag(slope), np.expm1(-expected), rtol=1e-6)


def test_linear_is_softmax_cross_entropy_with_aux(rng):
    problem = make_problem(rng, (2, 7), 5, 9, "ids", softcap=3.0, dtype=np.float32)
    a = problem.arguments
    names = ("class_weight", "sample_weight", "label_smoothing", "z_loss")
    options = {name: a[name] for name in names} | {"where": problem.fixed["where"], "ignore_index": 2}
    for reduction in ("none", "partial"):
        want = jxent.softmax_cross_entropy(
            logits_of(a), problem.fixed["labels"], reduction=reduction, return_aux=True, **options
        )
        got = fused(a, **problem.fixed, ignore_index=2, reduction=reduction, return_aux=True, chunk_size=4)
        assert_tree_close(got, want, 3e-6)
        assert got[1].predicted.dtype == np.int32


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize(("kind", "reduction"), [("ids", "mean"), ("soft", "none")])
def test_linear_softcap_of_inf_is_none(rng, kind, reduction):
    """To the bit, in value and gradients, the number as much as one that is traced; −inf and `finfo.min` included."""
    problem = make_problem(rng, (7,), 4, 6, kind, softcap=3.0, dtype=np.float32)
    arguments = {name: a for name, a in problem.arguments.items() if name not in ("logit_softcap", "logit_scale")}
    arguments["bias"] = arguments["bias"].at[2].set(-np.inf).at[4].set(np.finfo(np.float32).min)
    cotangent = problem.cotangents[reduction]

    def value_and_grad(**softcap):
        def loss_fn(arguments):
            return jnp.sum(cotangent * fused(arguments, **problem.fixed, **softcap, reduction=reduction, chunk_size=3))

        return jax.jit(jax.value_and_grad(loss_fn))(arguments)

    want = value_and_grad()
    for inf in (np.inf, np.array(np.inf), 1e39, jnp.float32(np.inf)):
        jax.tree.map(np.testing.assert_array_equal, value_and_grad(logit_softcap=inf), want)
    by_cap = jax.grad(lambda cap: fused(arguments, **problem.fixed, logit_softcap=cap, reduction="mean"))
    assert by_cap(jnp.inf) == 0


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_linear_masked_rows_are_exactly_zero_whatever_they_hold(rng, kind, reduction):
    problem = make_problem(rng, (9,), 4, 6, kind, softcap=4.0, dtype=np.float32)
    where = np.arange(9) % 3 != 1
    poisoned, kept = dict(problem.arguments), dict(problem.arguments)
    for name in ("hidden", "sample_weight", *(["labels"] if kind == "soft" else [])):
        bad = jnp.array([np.nan, np.inf, -np.inf], np.float32)[np.arange(9) // 3]
        mask = where.reshape(-1, *[1] * (poisoned[name].ndim - 1))
        poisoned[name] = jnp.where(mask, poisoned[name], bad.reshape(mask.shape))
        kept[name] = poisoned[name][where]
    fixed = {**problem.fixed, "where": jnp.asarray(where)}
    if kind == "ids":
        fixed["labels"] = jnp.where(where, fixed["labels"], -7)
    kept_fixed = {**fixed, "where": None} | ({"labels": fixed["labels"][where]} if kind == "ids" else {})
    cotangent = problem.cotangents[reduction]
    kept_cotangent = cotangent[where] if reduction == "none" else cotangent
    cotangents = {reduction: cotangent}, {reduction: kept_cotangent}
    got = evaluate(fused, type(problem)(poisoned, fixed, cotangents[0]), (reduction,), chunk_size=2)[reduction]
    want = evaluate(fused, type(problem)(kept, kept_fixed, cotangents[1]), (reduction,))[reduction]
    for name, slope in got[1].items():
        is_per_row = slope.shape[:1] == (9,)
        assert_tree_close(slope[where] if is_per_row else slope, want[1][name], 5e-6)
        if is_per_row:
            np.testing.assert_array_equal(slope[~where], 0)
    value = got[0][where] if reduction == "none" else got[0]
    assert_tree_close(value, want[0], 5e-6)
    if reduction == "none":
        np.testing.assert_array_equal(got[0][~where], 0)


@pytest.mark.parametrize("bad", [-1, 6, 2**31 - 1])
def test_linear_bad_id_is_nan_in_its_row(rng, bad):
    hidden, kernel = jnp.asarray(rng.normal(size=(5, 4)), np.float32), jnp.asarray(rng.normal(size=(4, 6)), np.float32)
    labels = jnp.array([0, bad, 5, 1, 2])
    rows, pull = jax.vjp(lambda h, k: jxent.linear_softmax_cross_entropy(h, k, labels, chunk_size=2), hidden, kernel)
    d_hidden, d_kernel = pull(jnp.ones(5))
    np.testing.assert_array_equal(np.isnan(rows), np.arange(5) == 1)
    np.testing.assert_array_equal(np.isnan(d_hidden).all(-1), np.arange(5) == 1)
    np.testing.assert_array_equal(np.isnan(d_hidden).any(-1), np.arange(5) == 1)
    assert np.isnan(d_kernel).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_linear_padded_columns_count_for_nothing(rng, x64, kind):
    problem = make_problem(rng, (7,), 4, 6, kind, softcap=3.0)
    pads = {"kernel": ((0, 0), (0, 3)), "bias": (0, 3), "class_weight": (0, 3), "labels": ((0, 0), (0, 3))}
    values = {"kernel": 1, "bias": -np.inf, "class_weight": 5, "labels": 0}

    def padded(arguments, **options):
        wide = {
            name: jnp.pad(a, pads[name], constant_values=values[name]) if name in pads else a
            for name, a in arguments.items()
        }
        return fused(wide, **options)

    got, want = (evaluate(f, problem, ("mean",), chunk_size=3) for f in (padded, fused))
    assert_values_and_gradients_close(got, want)


@pytest.mark.parametrize(("hidden", "kernel"), [(jnp.bfloat16, np.float32), (np.float32, jnp.bfloat16)])
def test_linear_gradients_have_their_arguments_dtypes(rng, hidden, kernel):
    h, k = jnp.asarray(rng.normal(size=(5, 4)), hidden), jnp.asarray(rng.normal(size=(4, 6)), kernel)
    loss_fn = lambda h, k: jxent.linear_softmax_cross_entropy(h, k, jnp.arange(5), reduction="mean", chunk_size=2)  # noqa: E731
    loss, (d_hidden, d_kernel) = jax.value_and_grad(loss_fn, (0, 1))(h, k)
    assert (loss.dtype, d_hidden.dtype, d_kernel.dtype) == (np.float32, hidden, kernel)
    assert not loss.weak_type
    wide = [jnp.asarray(jnp.asarray(a, hidden), np.float32) for a in (h, k)]
    want = jax.value_and_grad(loss_fn, (0, 1))(*wide)
    assert_tree_close((loss, d_hidden, d_kernel), (want[0], *want[1]), 1e-2)


def test_linear_takes_lists_and_numpy():
    rows = jxent.linear_softmax_cross_entropy([[1.0, 0.0]], np.eye(2), [0])
    np.testing.assert_allclose(rows, [np.log1p(np.exp(-1))], rtol=1e-6)
    scalar = jxent.linear_softmax_cross_entropy([1.0, 0.0], np.eye(2), 1)
    np.testing.assert_allclose(scalar, np.log1p(np.exp(1)), rtol=1e-6)


LOG_Z_FACTOR = 0.1


def with_log_z(loss, aux, where):
    """A loss of one's own in log_z, as a z-loss outside of the library is."""
    return loss + LOG_Z_FACTOR * jnp.mean(jnp.square(jnp.where(where, aux.log_z, 0)))


@pytest.mark.slow
@pytest.mark.parametrize(("reduction", "kind"), [("none", "ids"), ("sum", "soft"), ("mean", "ids"), ("mean", "soft")])
def test_linear_aux_log_z_carries_its_gradient(rng, x64, reduction, kind):
    problem = make_problem(rng, (2, 7), 5, 9, kind, softcap=4.0)
    where, cotangent = problem.fixed["where"], problem.cotangents[reduction]

    def ours(arguments):
        loss, aux = fused(arguments, **problem.fixed, reduction=reduction, return_aux=True, chunk_size=4)
        return with_log_z(jnp.sum(cotangent * loss), aux, where)

    def plain(arguments):
        aux = jxent.CrossEntropyAux(jax.nn.logsumexp(logits_of(arguments), -1), None, None, None)
        loss = materialised(arguments, **problem.fixed, reduction=reduction)
        return with_log_z(jnp.sum(cotangent * loss), aux, where)

    got, want = (jax.jit(jax.value_and_grad(f))(problem.arguments) for f in (ours, plain))
    assert_tree_close(got, want, 1e-11)
    only_log_z = jax.jit(
        jax.grad(lambda a: ours(a) - jnp.sum(cotangent * fused(a, **problem.fixed, reduction=reduction)))
    )
    rest = jax.jit(
        jax.grad(lambda a: plain(a) - jnp.sum(cotangent * materialised(a, **problem.fixed, reduction=reduction)))
    )
    assert_tree_close(only_log_z(problem.arguments), rest(problem.arguments), 1e-11)


def test_linear_aux_log_z_has_a_gradient_where_the_loss_has_none(rng):
    """A bad id poisons the loss of its row, and not the normaliser."""
    hidden, kernel = jnp.asarray(rng.normal(size=(5, 4)), np.float32), jnp.asarray(rng.normal(size=(4, 6)), np.float32)
    labels = jnp.array([0, 17, 5, 1, 2])
    for reduction in ("none", "mean"):

        def log_z(hidden, kernel, reduction=reduction):
            options = {"reduction": reduction, "return_aux": True, "chunk_size": 2}
            return jnp.sum(jxent.linear_softmax_cross_entropy(hidden, kernel, labels, **options)[1].log_z)

        want = jax.grad(lambda h, k: jnp.sum(jax.nn.logsumexp(h @ k, -1)), (0, 1))(hidden, kernel)
        assert_tree_close(jax.grad(log_z, (0, 1))(hidden, kernel), want, 3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ids", "soft"])
def test_linear_aux_nll_and_entropy_are_plain(rng, x64, kind):
    """Whatever smoothing, weights and z-loss are; 0 in masked rows; no gradient of it."""
    problem = make_problem(rng, (3, 5), 4, 7, kind)
    plain = {
        name: a
        for name, a in problem.arguments.items()
        if name in ("hidden", "kernel", "bias", "logit_scale", "labels")
    }
    ids = {"labels": problem.fixed["labels"]} if kind == "ids" else {}
    want = materialised(plain, **ids, where=problem.fixed["where"])
    log_p = jax.nn.log_softmax(logits_of(problem.arguments))
    entropy = jnp.where(problem.fixed["where"], -jnp.sum(jnp.exp(log_p) * log_p, -1), 0)
    for reduction in ("none", "mean"):

        def metrics(arguments, reduction=reduction):
            options = {"reduction": reduction, "return_aux": True, "chunk_size": 4}
            aux = fused(arguments, **problem.fixed, **options)[1]
            return aux.nll, aux.entropy

        assert_tree_close(metrics(problem.arguments), (want, entropy), 1e-12)
        slopes = jax.grad(lambda a: sum(map(jnp.sum, metrics(a))))(problem.arguments)
        assert all(not np.any(slope) for slope in jax.tree.leaves(slopes))


@pytest.mark.parametrize(
    *all_pairs(
        weight=[1e-8, 1e-5, 1.0, 1e5],
        reduction=["none", "sum", "mean"],
        by=["sample_weight", "class_weight"],
    )
)
def test_linear_float16_gradients_do_not_depend_on_the_scale_of_the_weights(rng, weight, reduction, by):
    """Against float64 of the same rounded arguments. What float16 does not hold in the end a loss scale makes it hold."""
    n, d, v = 24, 16, 40
    scale = 1.0 if reduction == "mean" else 1 / weight
    spread = rng.uniform(0.5, 2, n if by == "sample_weight" else v)
    hidden, kernel = (jnp.asarray(rng.normal(size=size), jnp.float16) for size in ((n, d), (d, v)))
    labels, cotangent = rng.integers(v, size=n), rng.uniform(0.5, 2, n)

    def total(hidden, kernel, dtype, **options):
        weights = {by: jnp.asarray(weight * spread, dtype)}
        loss = jxent.linear_softmax_cross_entropy(hidden, kernel, labels, **weights, reduction=reduction, **options)
        loss = loss * jnp.asarray(cotangent, dtype) if reduction == "none" else loss
        return jnp.asarray(scale, dtype) * jnp.sum(loss)

    got = jax.jit(jax.grad(lambda *a: total(*a, jnp.float32, chunk_size=8), (0, 1)))(hidden, kernel)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in (hidden, kernel)]
        want = jax.device_get(jax.grad(lambda *a: total(*a, jnp.float64), (0, 1))(*wide))
    for ours, truth in zip(got, want, strict=True):
        assert ours.dtype == np.float16
        error = np.linalg.norm(np.asarray(ours, np.float64) - truth) / np.linalg.norm(truth)
        assert error < 1e-3


def test_linear_float16_rows_of_unlike_weights(rng):
    """Each row has its own digits, and a row of no weight at all takes none from the others."""
    n, d, v = 6, 8, 20
    hidden, kernel = (jnp.asarray(rng.normal(size=size), jnp.float16) for size in ((n, d), (d, v)))
    weight, labels = np.array([1e-7, 1, 0, 1e-3, 1e4, 1e-7]), rng.integers(v, size=n)

    def rows(hidden, kernel, dtype):
        options = {"sample_weight": jnp.asarray(weight, dtype), "where": jnp.arange(n) != 5, "chunk_size": 3}
        return jxent.linear_softmax_cross_entropy(hidden, kernel, labels, **options)

    # The loss scale of each row brings its gradient into the range of float16.
    scales = 1 / np.where(weight == 0, 1, weight)
    slopes = jax.jit(
        lambda h, k, scales: jax.vmap(lambda c: jax.vjp(lambda h: rows(h, k, jnp.float32), h)[1](c)[0])(scales)
    )(hidden, kernel, jnp.diag(jnp.asarray(scales, jnp.float32)))
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a), jnp.float64) for a in (hidden, kernel)]
        truth = np.asarray(jax.vjp(lambda h: rows(h, wide[1], jnp.float64), wide[0])[1](jnp.asarray(scales))[0])
    for i in range(n):
        own = np.asarray(slopes[i], np.float64)
        np.testing.assert_array_equal(np.delete(own, i, 0), 0)
        np.testing.assert_allclose(own[i], truth[i], atol=2e-3 * np.max(np.abs(truth[i]), initial=0), rtol=0)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_linear_float16_confident_and_bad_rows(reduction):
    """Rows whose gradients float16 does not hold at all beside masked ones, and one that is NaN."""
    hidden = jnp.asarray([[20.0, 0], [0, 20], [1, 1], [0, 1]], jnp.float16)
    kernel, labels = jnp.eye(2, 3, dtype=jnp.float16), jnp.array([0, 1, 99, 0])

    def total(hidden, kernel, where):
        options = {"where": where, "reduction": reduction, "chunk_size": 4}
        return jnp.sum(2.0**20 * jxent.linear_softmax_cross_entropy(hidden, kernel, labels, **options))

    gradient = jax.jit(jax.grad(total, (0, 1)))
    d_hidden, d_kernel = gradient(hidden, kernel, jnp.arange(4) < 2)
    p = np.exp(-20.0) * 2**20 / (1 + 2 * np.exp(-20.0))
    np.testing.assert_allclose(d_hidden, [[-2 * p, p], [p, -2 * p], [0, 0], [0, 0]], rtol=2e-3)
    np.testing.assert_allclose(d_kernel, [[-40 * p, 20 * p, 20 * p], [20 * p, -40 * p, 20 * p]], rtol=2e-3)
    d_hidden, d_kernel = gradient(hidden, kernel, jnp.ones(4, bool))
    np.testing.assert_array_equal(np.isnan(d_hidden).all(-1), np.arange(4) == 2)
    assert np.isnan(d_kernel).any()


@pytest.mark.parametrize(
    *all_pairs(
        hidden=[jnp.bfloat16, np.float32, np.float64],
        labels=[jnp.bfloat16, np.float32, np.float64],
        others=[np.float32, np.float64],
    )
)
def test_linear_arguments_of_any_width_beside_another(rng, x64, hidden, labels, others):
    """Nothing promotes silently in the tests: each is cast, and its gradient back."""
    problem = make_problem(rng, (6,), 5, 7, "soft", softcap=4.0)
    dtypes = dict.fromkeys(problem.arguments, others) | {"hidden": hidden, "labels": labels}
    arguments = {name: a.astype(dtypes[name]) for name, a in problem.arguments.items()}
    rounded = {name: a.astype(np.float64) for name, a in arguments.items()}
    got = jax.jit(jax.grad(lambda a: fused(a, **problem.fixed, reduction="mean", chunk_size=4)))(arguments)
    want = jax.grad(lambda a: materialised(a, **problem.fixed, reduction="mean"))(rounded)
    assert {name: slope.dtype for name, slope in got.items()} == {name: a.dtype for name, a in arguments.items()}
    narrowest = jnp.bfloat16 in (hidden, labels)
    assert_tree_close({n: np.float64(a) for n, a in got.items()}, want, 2e-2 if narrowest else 1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_linear_logit_scale_is_applied_in_the_compute_dtype(rng, dtype):
    """Logits divided by a temperature in bfloat16 would be off by 2⁻⁹ of themselves; hidden states too."""
    hidden, kernel = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((16, 8), (8, 50)))
    labels, scale = rng.integers(50, size=16), 1 / 0.7
    logits = scale * (np.float64(hidden) @ np.float64(kernel))
    want = np.log(np.exp(logits).sum(1)) - logits[np.arange(16), labels]
    got = jxent.linear_softmax_cross_entropy(hidden, kernel, labels, logit_scale=scale)
    np.testing.assert_allclose(got, want, rtol=2e-6)
    traced = jax.jit(lambda s: jxent.linear_softmax_cross_entropy(hidden, kernel, labels, logit_scale=s))(scale)
    np.testing.assert_allclose(traced, got, rtol=1e-6)


def test_linear_logit_scale_learns_and_of_0_makes_all_classes_alike(rng):
    hidden, kernel, labels = jnp.ones((3, 2)), jnp.asarray(rng.normal(size=(2, 5))), jnp.array([0, 1, 4])
    mean = lambda s: jxent.linear_softmax_cross_entropy(hidden, kernel, labels, logit_scale=s, reduction="mean")  # noqa: E731
    loss, slope = jax.value_and_grad(mean)(jnp.float32(0))
    np.testing.assert_allclose(loss, np.log(5), rtol=1e-6)
    logits = np.asarray(hidden @ kernel)
    np.testing.assert_allclose(slope, (logits.mean(1) - logits[np.arange(3), labels]).mean(), rtol=1e-4)


@pytest.mark.parametrize(
    ("scale", "error", "text"),
    [
        (float("nan"), ValueError, "logit_scale must be a number; got nan"),
        (np.ones(3, np.float32), ValueError, r"logit_scale must be a scalar; got shape \(3,\)"),
        ("2", TypeError, "logit_scale must be a number"),
    ],
)
def test_linear_logit_scale_errors(scale, error, text):
    with pytest.raises(error, match=f"linear_softmax_cross_entropy: {text}"):
        jxent.linear_softmax_cross_entropy(jnp.ones((3, 2)), jnp.ones((2, 5)), jnp.zeros(3, int), logit_scale=scale)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_linear_infinite_rows_of_weight_0_are_nothing(reduction):
    bias, labels = jnp.array([0, -jnp.inf, 0, 0]), jnp.array([1, 0])

    def total(hidden, labels, weight):
        options = {"bias": bias, "sample_weight": weight, "reduction": reduction}
        return jnp.sum(jxent.linear_softmax_cross_entropy(hidden, jnp.eye(3, 4), labels, **options))

    value, slope = jax.value_and_grad(total)(jnp.ones((2, 3)), labels, jnp.array([0.0, 1.0]))
    want, of_last = jax.value_and_grad(total)(jnp.ones((1, 3)), labels[1:], jnp.ones(1))
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(slope, jnp.concatenate([jnp.zeros((1, 3)), of_last]), rtol=1e-6)
