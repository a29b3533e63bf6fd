"""How many digits are right, against truth in 120 digits (or exactly rounded sums) for the inputs as they were rounded."""

import math

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest

import jxent
from tests.losses import LOSSES, by_name

EPS = 2.0**-23
# XLA:CPU flushes what is smaller: a loss, or a term of one, below is 0.
SMALLEST_NORMAL = float(np.finfo(np.float32).tiny)

TRANSFORMS = pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
KINDS = pytest.mark.parametrize("kind", ["ids", "one-hot"])


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(120):
        yield


def exact(array):
    return [mpmath.mpf(float(x)) for x in np.ravel(np.asarray(array, np.float64))]


def true_row(logits, label):
    """Loss, gradient and log_z of one row of the logits as they are."""
    x = exact(logits)
    top = max(x)
    terms = [mpmath.exp(v - top) for v in x]
    total = mpmath.fsum(terms)
    others = mpmath.fsum(term for c, term in enumerate(terms) if c != label)
    gradient = [term / total for term in terms]
    gradient[label] = -others / total
    return mpmath.log1p(others / terms[label]), gradient, top + mpmath.log(total)


def relative_error(value, truth):
    return float(abs(mpmath.mpf(float(value)) - truth) / abs(truth))


def ulps(value, truth, spacing=np.spacing):
    return float(abs(mpmath.mpf(float(value)) - truth)) / float(spacing(np.float32(abs(float(truth)))))


def make_labels(kind, ids, num_classes):
    ids = np.asarray(ids, np.int32)
    return ids if kind == "ids" else (ids[..., None] == np.arange(num_classes)).astype(np.float32)


def loss_and_gradient(transform, logits, labels, **options):
    """Per row, each by a compiled or an eager function."""
    loss = transform(lambda x: jxent.softmax_cross_entropy(x, labels, **options))(logits)
    gradient = transform(jax.grad(lambda x: jxent.softmax_cross_entropy(x, labels, **options).sum()))(logits)
    assert loss.dtype == jnp.float32
    assert gradient.dtype == logits.dtype
    return np.asarray(loss), np.asarray(gradient, np.float32)


# --- confident rows -----------------------------------------------------------------------------------------------

GAPS = (8, 16, 21, 40, 60, 80, 86.5)


@TRANSFORMS
@KINDS
@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_softmax_cross_entropy_of_confident_rows_keeps_its_digits(num_classes, kind, transform):
    """The logits of the others are 0, so that every difference is exact: down to a loss of 2.7e-38 nothing is lost."""
    ids = np.arange(len(GAPS)) % num_classes
    logits = np.where(ids[:, None] == np.arange(num_classes), np.array(GAPS)[:, None], 0).astype(np.float32)
    loss, gradient = loss_and_gradient(transform, jnp.asarray(logits), make_labels(kind, ids, num_classes))
    for i, y in enumerate(ids):
        true_loss, true_gradient, _ = true_row(logits[i], y)
        assert true_loss > 2e-38
        assert relative_error(loss[i], true_loss) < 2e-7
        for value, truth in zip(gradient[i], true_gradient, strict=True):
            assert relative_error(value, truth) < 3e-7


@TRANSFORMS
@KINDS
@pytest.mark.parametrize("num_classes", [2, 3, 10])
def test_softmax_cross_entropy_of_confident_rows_loses_only_what_rounding_the_differences_does(
    rng, num_classes, kind, transform
):
    ids = np.arange(len(GAPS)) % num_classes
    # Between 0 and 1, so that no difference exceeds its gap.
    logits = rng.uniform(0, 1, (len(GAPS), num_classes))
    logits[np.arange(len(GAPS)), ids] = GAPS
    logits = logits.astype(np.float32)
    loss, gradient = loss_and_gradient(transform, jnp.asarray(logits), make_labels(kind, ids, num_classes))
    for i, (y, gap) in enumerate(zip(ids, GAPS, strict=True)):
        true_loss, true_gradient, _ = true_row(logits[i], y)
        assert relative_error(loss[i], true_loss) < (3 + gap) * EPS
        for value, truth in zip(gradient[i], true_gradient, strict=True):
            assert relative_error(value, truth) < (3 + gap) * EPS


@pytest.mark.parametrize("gap", [21, 40, 80])
def test_softmax_cross_entropy_of_confident_rows_is_not_zero_as_its_peer_is(gap):
    """Why the tests above exist: 1 + exp(−21) rounds to 1."""
    logits, label = jnp.array([gap, 0, 0], jnp.float32), jnp.array(0)
    peer = optax.softmax_cross_entropy_with_integer_labels
    assert float(peer(logits, label)) == 0
    assert float(jax.grad(peer)(logits, label)[0]) == 0
    truth = true_row(logits, 0)[0]
    assert relative_error(jxent.softmax_cross_entropy(logits, label), truth) < 2e-7
    assert relative_error(-jax.grad(jxent.softmax_cross_entropy)(logits, label)[0], truth) < 2e-7


# --- every scale and offset -----------------------------------------------------------------------------------------


def is_flushed(truth):
    """Whether some term of a sum may have been subnormal: a loss of V such terms is no longer accurate."""
    return truth < 10 * SMALLEST_NORMAL


@KINDS
@pytest.mark.parametrize("scale", [0.1, 1, 10, 100, 1e3, 1e4])
def test_softmax_cross_entropy_meets_its_bounds_at_any_scale_and_offset(rng, scale, kind):
    """Relative to the truth, (3 + max|x − m|) roundings; ties at the maximum included, which large offsets bring."""
    offsets = np.repeat([0, 1e4, -1e4, 1e8, -1e8], 12)
    logits = (offsets[:, None] + scale * rng.normal(size=(60, 10))).astype(np.float32)
    ids = rng.integers(10, size=60)
    ids[::2] = logits[::2].argmax(-1)
    loss, gradient = loss_and_gradient(jax.jit, jnp.asarray(logits), make_labels(kind, ids, 10))
    for x, y, value, row in zip(logits, ids, loss, gradient, strict=True):
        true_loss, true_gradient, _ = true_row(x, y)
        distance = x.max().astype(np.float64) - x.astype(np.float64)
        if is_flushed(true_loss):
            assert 0 <= value <= true_loss * 1.001
        else:
            assert relative_error(value, true_loss) < (3 + distance.max()) * EPS
        for c, truth in enumerate(true_gradient):
            if is_flushed(abs(truth)):
                assert abs(row[c]) <= abs(truth) * 1.001
            else:
                # A probability has lost what its own difference has.
                lost = distance.max() if c == y else distance[c]
                assert relative_error(row[c], truth) < (4 + lost) * EPS


@TRANSFORMS
@KINDS
@pytest.mark.parametrize("value", [0, 1e4, -1e4, 1e8, -1e8, 3e38])
def test_softmax_cross_entropy_of_tied_maxima_is_exact(value, kind, transform):
    """Three equal logits cost log 3, as a tie with the label or without it; with a fourth far below as well."""
    logits = jnp.asarray(np.array([[value] * 3 + [-3e38]] * 2, np.float32))
    loss, gradient = loss_and_gradient(transform, logits, make_labels(kind, [0, 2], 4))
    np.testing.assert_allclose(loss, float(mpmath.log(3)), rtol=1.5e-7)
    np.testing.assert_allclose(gradient, [[-2 / 3, 1 / 3, 1 / 3, 0], [1 / 3, 1 / 3, -2 / 3, 0]], rtol=2.5e-7)


@TRANSFORMS
@KINDS
@pytest.mark.parametrize("num_classes", [10, 1000])
def test_softmax_cross_entropy_gradient_of_nearly_uniform_rows_meets_its_bound_at_the_label(
    rng, num_classes, kind, transform
):
    logits = (0.1 * rng.normal(size=(2, num_classes))).astype(np.float32)
    ids = np.array([3, logits[1].argmax()])
    _, gradient = loss_and_gradient(transform, jnp.asarray(logits), make_labels(kind, ids, num_classes))
    for x, y, row in zip(logits, ids, gradient, strict=True):
        assert relative_error(row[y], true_row(x, y)[1][y]) < 4e-7


@pytest.mark.parametrize("kind", ["ids", "one-hot"])
@pytest.mark.parametrize("num_classes", [1000, 30000])
def test_softmax_cross_entropy_gradient_of_nearly_uniform_rows_keeps_its_digits_at_the_top(rng, num_classes, kind):
    """Where the top class is not the label its gradient is p, and p is small."""
    logits = (0.1 * rng.normal(size=(1, num_classes))).astype(np.float32)
    top = logits[0].argmax()
    ids = [(top + 1) % num_classes]
    _, gradient = loss_and_gradient(jax.jit, jnp.asarray(logits), make_labels(kind, ids, num_classes))
    total = math.fsum(np.exp(logits[0].astype(np.float64) - logits.max()))
    np.testing.assert_allclose(gradient[0, top], 1 / total, rtol=1e-6)


@pytest.mark.parametrize("offset", [0, 1e4, -1e4])
def test_softmax_cross_entropy_log_z_and_z_loss_keep_their_digits(rng, offset):
    logits = (offset + rng.normal(size=(6, 10))).astype(np.float32)
    ids = rng.integers(10, size=6).astype(np.int32)
    _, aux = jxent.softmax_cross_entropy(logits, ids, return_aux=True)
    with_z = jxent.softmax_cross_entropy(logits, ids, z_loss=1e-2)
    gradient = jax.grad(lambda x: jxent.softmax_cross_entropy(x, ids, z_loss=1e-2).sum())(jnp.asarray(logits))
    factor = mpmath.mpf(float(np.float32(1e-2)))
    for i, y in enumerate(ids):
        loss, true_gradient, log_z = true_row(logits[i], y)
        assert relative_error(aux.log_z[i], log_z) < 2 * EPS
        assert relative_error(with_z[i], loss + factor * log_z**2) < 5 * EPS
        for c, truth in enumerate(true_gradient):
            # d(log_z²) = 2 log_z p; the two terms may differ in sign.
            p = truth if c != y else 1 + truth
            z_part = 2 * factor * log_z * p
            error = abs(mpmath.mpf(float(gradient[i, c])) - (truth + z_part))
            assert error < 10 * EPS * (abs(truth) + abs(z_part))


# --- binary -----------------------------------------------------------------------------------------------------------


@TRANSFORMS
@pytest.mark.parametrize("label", [0, 1])
def test_sigmoid_binary_cross_entropy_is_within_three_ulp_and_its_gradient_within_two(rng, label, transform):
    near_zero = np.sign(rng.normal(size=600)) * 10 ** rng.uniform(-8, 0.5, 600)
    logits = np.concatenate([np.linspace(-87, 87, 1741), near_zero]).astype(np.float32)
    labels = np.full(logits.shape, label, np.float32)
    loss = transform(lambda x: jxent.sigmoid_binary_cross_entropy(x, labels))(jnp.asarray(logits))
    gradient = transform(jax.grad(lambda x: jxent.sigmoid_binary_cross_entropy(x, labels).sum()))(jnp.asarray(logits))
    worst_loss = worst_gradient = 0.0
    with mpmath.workdps(60):
        for x, value, slope in zip(exact(logits), np.asarray(loss), np.asarray(gradient), strict=True):
            wrong_side = mpmath.exp(x if label == 0 else -x)  # the loss is log1p of it
            true_slope = wrong_side / (1 + wrong_side) * (1 if label == 0 else -1)
            worst_loss = max(worst_loss, ulps(value, mpmath.log1p(wrong_side)))
            worst_gradient = max(worst_gradient, ulps(slope, true_slope))
    assert worst_loss <= 3
    assert worst_gradient <= 2


# --- half precision in ------------------------------------------------------------------------------------------------

HALVES = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])


def row_in_float64(logits, label):
    """Loss and gradient of one long row; exactly rounded sums of float64 terms."""
    x = np.asarray(logits, np.float64)
    terms = np.exp(x - x.max())
    others = math.fsum(np.delete(terms, label))
    total = others + terms[label]
    gradient = terms / total
    gradient[label] = -others / total
    return np.log1p(others / terms[label]), gradient


@HALVES
@KINDS
@pytest.mark.parametrize("confidence", [None, 0.5, 0.99, 0.999999], ids=str)
def test_softmax_cross_entropy_of_half_precision_logits_is_right_to_float32(rng, confidence, kind, dtype):
    """At V = 128256 the loss is that of the rounded logits to 2e-7, where a bfloat16 loss has two or three digits."""
    num_classes = 128256
    logits = rng.normal(size=(2, num_classes))
    ids = rng.integers(num_classes, size=2)
    if confidence is not None:
        odds = confidence / (1 - confidence)
        logits[np.arange(2), ids] = np.log(odds * np.exp(logits).sum(-1))
    logits = jnp.asarray(logits, dtype)
    loss = jax.jit(jxent.softmax_cross_entropy)(logits, make_labels(kind, ids, num_classes))
    assert loss.dtype == jnp.float32
    truth = [row_in_float64(x, y)[0] for x, y in zip(logits, ids, strict=True)]
    np.testing.assert_allclose(np.asarray(loss, np.float64), truth, rtol=2e-7)


@HALVES
@TRANSFORMS
@pytest.mark.parametrize("confidence", [None, 0.99], ids=str)
def test_softmax_cross_entropy_gradient_of_half_precision_logits_is_rounded_once(rng, confidence, transform, dtype):
    """Every element is within 0.51 ulp of its dtype, where only the last rounding leaves 0.5."""
    num_classes = 1000
    logits = rng.normal(size=(4, num_classes))
    ids = rng.integers(num_classes, size=4)
    if confidence is not None:
        logits[np.arange(4), ids] = np.log(confidence / (1 - confidence) * np.exp(logits).sum(-1))
    logits = jnp.asarray(logits, dtype)
    _, gradient = loss_and_gradient(transform, logits, make_labels("ids", ids, num_classes))
    info = jnp.finfo(dtype)
    for x, y, row in zip(logits, ids, gradient, strict=True):
        truth = row_in_float64(x, y)[1]
        spacing = 2.0 ** np.maximum(np.floor(np.log2(np.abs(truth))), info.minexp) * float(info.eps)
        assert (np.abs(row - truth) / spacing).max() <= 0.51


# --- dtypes -----------------------------------------------------------------------------------------------------------


def wide_arguments(loss, scores):
    """Everything beside the scores in float64, or in lists."""
    rows, num_classes = loss.rows(scores), scores.shape[-1]
    weight = np.linspace(0.5, 2, num_classes)
    options = {"label_smoothing": np.float64(0.1), "sample_weight": np.linspace(0.5, 2, np.prod(rows)).reshape(rows)}
    as_arrays = options | {"class_weight": weight}
    as_lists = options | {"class_weight": weight.tolist(), "sample_weight": options["sample_weight"].tolist()}
    if loss.is_binary:
        as_arrays["pos_weight"], as_lists["pos_weight"] = np.float64(1.5), 1.5
    if loss.name.startswith("softmax"):
        as_arrays["z_loss"], as_lists["z_loss"] = np.float64(1e-3), 1e-3
    return {"arrays": as_arrays, "lists": as_lists}


# These hand on what they are given: a float64 argument may pass, to be cast.
PASSING = ("convert_element_type", "optimization_barrier", "broadcast_in_dim")


def made_in_float64(jaxpr):
    """The primitives, in the functions that it calls too, which make float64 arrays that are no scalars."""
    made = []
    for equation in jaxpr.eqns:
        parameters = [p if isinstance(p, tuple | list) else [p] for p in equation.params.values()]
        inner = [getattr(part, "jaxpr", part) for parts in parameters for part in parts]
        called = [part for part in inner if hasattr(part, "eqns")]
        made += [pair for part in called for pair in made_in_float64(part)]
        # What a call returns is made, or passed on, by its parts.
        if not called and equation.primitive.name not in PASSING:
            avals = [variable.aval for variable in equation.outvars]
            made += [(equation.primitive.name, str(a)) for a in avals if a.dtype == jnp.float64 and a.ndim]
    return made


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("form", "dtype"), [("arrays", jnp.float32), ("lists", jnp.bfloat16)], ids=["arrays", "lists"])
@pytest.mark.parametrize("loss", **by_name(LOSSES))
def test_every_loss_of_float32_scores_stays_float32_under_x64(rng, loss, form, dtype):
    scores, labels = loss.inputs(rng, (7,), np.float64)
    scores = jnp.asarray(scores, dtype)
    options = wide_arguments(loss, scores)[form]
    labels = labels.tolist() if form == "lists" else labels

    def mean(x):
        return loss.call(x, labels, reduction="mean", **options)

    value, gradient = jax.value_and_grad(mean)(scores)
    assert (value.dtype, gradient.dtype) == (jnp.float32, dtype)
    oracle_options = {
        name: np.asarray(option, np.float64) for name, option in options.items() if name != "sample_weight"
    }
    rows, weight = loss.oracle(scores, np.asarray(labels), **oracle_options)
    s = np.asarray(options["sample_weight"])
    np.testing.assert_allclose(float(value), (s * rows).sum() / (s * weight).sum(), rtol=2e-6)
    for wrapped in (mean, jax.grad(mean)):
        assert made_in_float64(jax.make_jaxpr(wrapped)(scores).jaxpr) == []


@pytest.mark.parametrize("form", ["arrays", "lists"])
@pytest.mark.parametrize("loss", **by_name(LOSSES))
def test_every_loss_returns_no_weak_type(rng, loss, form):
    scores, labels = loss.inputs(rng, (7,))
    options = wide_arguments(loss, scores)[form]
    if form == "lists":
        scores, labels = scores.tolist(), labels.tolist()
    oracle_options = {name: np.asarray(option) for name, option in options.items() if name != "sample_weight"}
    rows, weight = loss.oracle(scores, np.asarray(labels), **oracle_options)
    s = np.asarray(options["sample_weight"])
    total, weight = (s * rows).sum(), (s * weight).sum()
    expected = {"none": (s * rows,), "sum": (total,), "mean": (total / weight,), "partial": (total, weight)}
    for reduction, values in expected.items():
        result = jax.tree.leaves(loss.call(scores, labels, reduction=reduction, **options))
        for leaf, value in zip(result, values, strict=True):
            assert (leaf.dtype, leaf.weak_type) == (jnp.float32, False)
            np.testing.assert_allclose(leaf, value, rtol=3e-6, atol=1e-6)
