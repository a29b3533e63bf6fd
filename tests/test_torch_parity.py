"""torch's losses in float64, value and gradient: what agrees, and the two differences that are on purpose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from tests.pairs import all_pairs

torch = pytest.importorskip("torch", reason="parity extra: torch is not installed")

NUM_CLASSES = 6
# torch holds the 1e-12 of its gradient in float32.
TORCH_CLAMP = float(np.float32(1e-12))
REDUCTIONS = ("none", "sum", "mean")
# Shape of the logits, and its class axis.
SHAPES = {(NUM_CLASSES,): 0, (7, NUM_CLASSES): 1, (4, NUM_CLASSES, 3): 1, (2, NUM_CLASSES, 3, 5): 1}

pytestmark = pytest.mark.usefixtures("x64")


def rows_of(shape):
    return tuple(size for axis, size in enumerate(shape) if axis != SHAPES[shape])


def dirichlet(rng, shape):
    return np.moveaxis(rng.dirichlet(np.ones(NUM_CLASSES), rows_of(shape)), -1, SHAPES[shape])


def as_torch(array):
    return None if array is None else torch.from_numpy(np.array(array, order="C"))


def jax_value_and_grads(f, cotangent, *inputs):
    value, pullback = jax.vjp(f, *(jnp.asarray(x) for x in inputs))
    return np.asarray(value), [np.asarray(g) for g in pullback(jnp.asarray(cotangent))]


def torch_value_and_grads(f, cotangent, *inputs):
    leaves = [as_torch(x).requires_grad_() for x in inputs]
    value = f(*leaves)
    grads = torch.autograd.grad(value, leaves, torch.as_tensor(cotangent))
    return value.detach().numpy(), [g.numpy() for g in grads]


def assert_parity(ours, theirs, rng, *inputs):
    """Values, and gradients by every input, with a random cotangent."""
    cotangent = rng.normal(size=np.shape(ours(*inputs)))
    value, grads = jax_value_and_grads(ours, cotangent, *inputs)
    expected_value, expected_grads = torch_value_and_grads(theirs, cotangent, *inputs)
    assert value.dtype == np.float64
    np.testing.assert_allclose(value, expected_value, rtol=1e-12, atol=1e-13)
    for grad, expected in zip(grads, expected_grads, strict=True):
        np.testing.assert_allclose(grad, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    *all_pairs(
        shape=SHAPES,
        reduction=REDUCTIONS,
        options=[(False, 0.0, -100), (True, 0.0, 2), (False, 0.1, 2), (True, 0.3, 2), (True, 1.0, -100)],
    ),
    ids=str,
)
def test_softmax_cross_entropy_ids_agree_with_torch(rng, shape, reduction, options):
    weighted, label_smoothing, ignore_index = options
    logits = 3 * rng.normal(size=shape)
    labels = np.asarray(rng.integers(NUM_CLASSES, size=rows_of(shape)))
    if labels.ndim == 0:
        labels = np.asarray(1)  # a mean of one ignored row is NaN in torch, and 0 here
    else:
        labels.flat[:2] = 2, 1  # one that is ignored and one that is not
    weight = rng.uniform(0.2, 3, NUM_CLASSES) if weighted else None

    def ours(x):
        return jxent.softmax_cross_entropy(
            x,
            labels,
            class_weight=weight,
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            axis=SHAPES[shape],
            reduction=reduction,
        )

    def theirs(x):
        return torch.nn.functional.cross_entropy(
            x,
            as_torch(labels),
            as_torch(weight),
            label_smoothing=label_smoothing,
            ignore_index=ignore_index,
            reduction=reduction,
        )

    assert_parity(ours, theirs, rng, logits)


@pytest.mark.parametrize(
    *all_pairs(shape=SHAPES, reduction=["none", "sum"], weighted=[False, True], label_smoothing=[0.0, 0.1, 0.3]),
    ids=str,
)
def test_softmax_cross_entropy_distributions_agree_with_torch(rng, shape, reduction, weighted, label_smoothing):
    """Gradients by the distributions too."""
    weight = rng.uniform(0.2, 3, NUM_CLASSES) if weighted else None

    def ours(x, q):
        return jxent.softmax_cross_entropy(
            x, q, class_weight=weight, label_smoothing=label_smoothing, axis=SHAPES[shape], reduction=reduction
        )

    def theirs(x, q):
        return torch.nn.functional.cross_entropy(
            x, q, as_torch(weight), label_smoothing=label_smoothing, reduction=reduction
        )

    assert_parity(ours, theirs, rng, 3 * rng.normal(size=shape), dirichlet(rng, shape))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax_cross_entropy_mean_of_distributions_weighs_rows_where_torch_counts_them(rng, shape, weighted):
    """Here one-hot rows and ids have one mean; torch divides by the number of rows whatever the weights are."""
    axis, rows = SHAPES[shape], rows_of(shape)
    logits, q = 3 * rng.normal(size=shape), dirichlet(rng, shape)
    weight = rng.uniform(0.2, 3, NUM_CLASSES) if weighted else None
    ours = jxent.softmax_cross_entropy(logits, q, class_weight=weight, axis=axis, reduction="mean")
    theirs = torch.nn.functional.cross_entropy(as_torch(logits), as_torch(q), as_torch(weight)).item()
    per_row = np.moveaxis(q, axis, -1) @ (np.ones(NUM_CLASSES) if weight is None else weight)
    np.testing.assert_allclose(float(ours) * per_row.sum(), theirs * np.prod(rows), rtol=1e-12)
    assert np.isclose(float(ours), theirs, rtol=1e-9) == (not weighted)


def test_softmax_cross_entropy_mean_of_nothing_is_zero_where_torch_is_nan(rng):
    logits, labels = rng.normal(size=(3, NUM_CLASSES)), np.full(3, -100)
    value, (grad,) = jax_value_and_grads(
        lambda x: jxent.softmax_cross_entropy(x, labels, ignore_index=-100, reduction="mean"), np.float64(1), logits
    )
    assert np.isnan(torch.nn.functional.cross_entropy(as_torch(logits), as_torch(labels)).item())
    assert float(value) == 0
    np.testing.assert_array_equal(np.asarray(grad), np.zeros_like(logits))


@pytest.mark.parametrize(
    *all_pairs(shape=SHAPES, reduction=REDUCTIONS, weighted=[False, True], ignore_index=[-100, 2]), ids=str
)
def test_cross_entropy_from_log_probs_agrees_with_torch_nll_loss(rng, shape, reduction, weighted, ignore_index):
    axis = SHAPES[shape]
    labels = np.asarray(rng.integers(NUM_CLASSES, size=rows_of(shape)))
    if labels.ndim == 0:
        labels = np.asarray(1)
    else:
        labels.flat[:2] = 2, 1
    weight = rng.uniform(0.2, 3, NUM_CLASSES) if weighted else None

    def ours(log_p):
        return jxent.cross_entropy_from_log_probs(
            log_p, labels, class_weight=weight, ignore_index=ignore_index, axis=axis, reduction=reduction
        )

    def theirs(log_p):
        return torch.nn.functional.nll_loss(
            log_p, as_torch(labels), as_torch(weight), ignore_index=ignore_index, reduction=reduction
        )

    assert_parity(ours, theirs, rng, np.log(dirichlet(rng, shape)))


# Shapes of elements; pos_weight and torch's weight are both taken along the last axis.
ELEMENTS = [(5,), (2, 3, 5)]


@pytest.mark.parametrize(
    *all_pairs(
        shape=ELEMENTS,
        reduction=["none", "sum"],
        weight=["none", "columns", "elements"],
        pos_weight=["none", "scalar", "columns"],
    ),
    ids=str,
)
def test_sigmoid_binary_cross_entropy_agrees_with_torch(rng, shape, reduction, weight, pos_weight):
    """torch's weight of elements is sample_weight, its weight of columns class_weight. Gradients by labels too."""
    pos = {"none": None, "scalar": np.asarray(2.5), "columns": rng.uniform(0.2, 4, 5)}[pos_weight]
    w = {"none": None, "columns": rng.uniform(0.2, 3, 5), "elements": rng.uniform(0.2, 3, shape)}[weight]
    mine = {"none": {}, "columns": {"class_weight": w}, "elements": {"sample_weight": w}}[weight]

    def ours(x, y):
        return jxent.sigmoid_binary_cross_entropy(x, y, pos_weight=pos, reduction=reduction, **mine)

    def theirs(x, y):
        return torch.nn.functional.binary_cross_entropy_with_logits(
            x, y, as_torch(w), pos_weight=as_torch(pos), reduction=reduction
        )

    assert_parity(ours, theirs, rng, 5 * rng.normal(size=shape), rng.uniform(size=shape))


@pytest.mark.parametrize("pos_weight", [None, 2.5])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_sigmoid_binary_cross_entropy_mean_divides_by_weights_where_torch_counts(rng, weighted, pos_weight):
    x, y = 5 * rng.normal(size=(4, 5)), rng.uniform(size=(4, 5))
    w = rng.uniform(0.2, 3, (4, 5)) if weighted else None
    ours = jxent.sigmoid_binary_cross_entropy(x, y, pos_weight=pos_weight, sample_weight=w, reduction="mean")
    theirs = torch.nn.functional.binary_cross_entropy_with_logits(
        as_torch(x), as_torch(y), as_torch(w), pos_weight=as_torch(pos_weight)
    ).item()
    denominator = x.size if w is None else w.sum()
    np.testing.assert_allclose(float(ours) * denominator, theirs * x.size, rtol=1e-12)
    assert np.isclose(float(ours), theirs, rtol=1e-9) == (not weighted)


@pytest.mark.parametrize(
    *all_pairs(
        shape=ELEMENTS,
        reduction=["none", "sum"],
        weight=["none", "columns", "elements"],
        labels=["hard", "soft"],
    ),
    ids=str,
)
def test_binary_cross_entropy_from_probs_agrees_with_torch(rng, shape, reduction, weight, labels):
    w = {"none": None, "columns": rng.uniform(0.2, 3, 5), "elements": rng.uniform(0.2, 3, shape)}[weight]
    mine = {"none": {}, "columns": {"class_weight": w}, "elements": {"sample_weight": w}}[weight]
    y = rng.integers(2, size=shape).astype(np.float64) if labels == "hard" else rng.uniform(size=shape)
    p = rng.uniform(1e-6, 1 - 1e-6, size=shape)
    torch_y = as_torch(y)
    inputs = (p,) if labels == "hard" else (p, y)  # by soft labels too

    def ours(p, y=y):
        return jxent.binary_cross_entropy_from_probs(p, y, reduction=reduction, **mine)

    def theirs(p, y=torch_y):
        return torch.nn.functional.binary_cross_entropy(p, y, as_torch(w), reduction=reduction)

    assert_parity(ours, theirs, rng, *inputs)


def binary_from_probs(p, y):
    """Values and gradients by p, ours and torch's, of one element each."""
    p, y = np.asarray(p), np.asarray(y)
    ones = np.ones_like(p)
    value, (grad,) = jax_value_and_grads(lambda p: jxent.binary_cross_entropy_from_probs(p, y), ones, p)
    theirs, (their_grad,) = torch_value_and_grads(
        lambda p: torch.nn.functional.binary_cross_entropy(p, as_torch(y), reduction="none"), ones, p
    )
    return value, grad, theirs, their_grad


def test_binary_cross_entropy_from_probs_clamps_as_torch_at_zero_and_one():
    value, grad, theirs, their_grad = binary_from_probs([0.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(theirs, [100.0, 100.0, 0.0, 0.0])
    np.testing.assert_array_equal(value, theirs)
    # The wrong side: (p − y) / 1e-12 in both.
    np.testing.assert_allclose(their_grad[:2], [-1 / TORCH_CLAMP, 1 / TORCH_CLAMP], rtol=1e-12)
    np.testing.assert_allclose(grad[:2], [-1e12, 1e12], rtol=1e-12)
    np.testing.assert_allclose(grad[:2], their_grad[:2], rtol=1e-8)
    # The right side: torch's p − y is 0 there; ours is the slope of −log p, y/p, or of −log(1 − p).
    np.testing.assert_array_equal(their_grad[2:], [0.0, 0.0])
    np.testing.assert_allclose(grad[2:], [1.0, -1.0], rtol=1e-12)


def test_binary_cross_entropy_from_probs_between_zero_and_the_clamp_differs_from_torch_as_documented():
    """torch's slope is (p − y)/max(p(1 − p), 1e-12), ours −y/max(p, 1e-12) + (1 − y)/max(1 − p, 1e-12)."""
    p = np.array([1e-50, 1e-13, 1e-11, 1e-50, 1e-13, 1e-11])
    y = np.array([1.0, 1.0, 1.0, 0.3, 0.3, 0.3])
    value, grad, theirs, their_grad = binary_from_probs(p, y)
    np.testing.assert_allclose(value, theirs, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(their_grad, (p - y) / np.maximum(p * (1 - p), TORCH_CLAMP), rtol=1e-12)
    np.testing.assert_allclose(grad, -y / np.maximum(p, 1e-12) + (1 - y) / (1 - p), rtol=1e-12)
    # Beyond the clamp they are one; within it torch drops the (1 − y) that ours keeps.
    np.testing.assert_allclose(grad[[2, 5]], their_grad[[2, 5]], rtol=1e-10)
    np.testing.assert_allclose(grad[[0, 3]], their_grad[[0, 3]] * TORCH_CLAMP / 1e-12 + (1 - y[[0, 3]]), rtol=1e-12)
