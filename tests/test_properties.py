"""Relations that hold for every loss whatever its inputs, searched for counterexamples by hypothesis.

All run in float64, on one shape each, so that the relations hold to rounding and compilation stays bounded.
"""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import jxent
from tests import oracle
from tests.losses import BINARY, LOSSES, MULTICLASS, NUM_CLASSES, VARIANTS, Loss, assert_close, by_name

NUM_ROWS = 4
FROM_IDS = [loss for loss in (*MULTICLASS, *VARIANTS) if loss.has_ids]
SOFTMAX = [loss for loss in MULTICLASS if loss.call is jxent.softmax_cross_entropy]
FROM_LOGITS = [
    loss for loss in LOSSES if loss.call in (jxent.softmax_cross_entropy, jxent.sigmoid_binary_cross_entropy)
]

hypothesis.settings.register_profile("jxent", deadline=None, derandomize=True, max_examples=25, database=None)
given_options = hypothesis.settings.get_profile("jxent")


def every(*losses: Loss):
    return pytest.mark.parametrize("loss", **by_name(list(losses)))


every_loss = every(*LOSSES)
every_loss_and_variant = every(*LOSSES, *VARIANTS)


def numbers(shape, low, high):
    return hnp.arrays(np.float64, shape, elements=st.floats(low, high, allow_subnormal=False))


def permutations(size):
    return st.permutations(range(size)).map(np.array)


def scores_of(loss: Loss):
    if "from_probs" in loss.name:
        return numbers((NUM_ROWS, NUM_CLASSES), 0.01, 0.99)
    if "from_log_probs" in loss.name:
        return numbers((NUM_ROWS, NUM_CLASSES), -30, 0)
    return numbers((NUM_ROWS, NUM_CLASSES), -30, 30)


def labels_of(loss: Loss):
    if loss.has_ids:
        return hnp.arrays(np.int32, NUM_ROWS, elements=st.integers(0, NUM_CLASSES - 1))
    if "hard" in loss.name:
        return hnp.arrays(np.float64, (NUM_ROWS, NUM_CLASSES), elements=st.sampled_from([0.0, 1.0]))
    return numbers((NUM_ROWS, NUM_CLASSES), 0, 1)


def rows_of(loss: Loss):
    return (NUM_ROWS, NUM_CLASSES) if loss.is_binary else (NUM_ROWS,)


def options_of(loss: Loss):
    """Every option of a variant and every one that all of LOSSES share, all switched on."""
    options = {
        "class_weight": numbers(NUM_CLASSES, 0.1, 3),
        "sample_weight": numbers(rows_of(loss), 0.1, 3),
        "where": hnp.arrays(np.bool_, rows_of(loss)),
        "label_smoothing": st.floats(0, 1).map(np.float64),
        "gamma": st.sampled_from([0, 0.5, 1, 2, 5]).map(np.float64),
        "alpha": st.floats(0, 1).map(np.float64),
        "epsilon": st.floats(-1, 5).map(np.float64),
    }
    return st.fixed_dictionaries({name: values for name, values in options.items() if loss.takes(name)})


def search(*strategies):
    """Runs a test, in float64, on the values of `strategies`, which are functions of the loss."""

    def decorate(test):
        @functools.wraps(test)
        def searching(loss):
            @given_options
            @hypothesis.given(st.tuples(*(strategy(loss) for strategy in strategies)))
            def check(values):
                with jax.enable_x64(True):
                    test(loss, *values)

            check()

        del searching.__wrapped__  # pytest reads the parameters from what is left
        return searching

    return decorate


def evaluate(loss: Loss, scores, labels, options, reduction="none"):
    return loss.call(scores, labels, **options, reduction=reduction)


@functools.cache
def compiled(loss: Loss, reduction="none"):
    return jax.jit(lambda scores, labels, options: evaluate(loss, scores, labels, options, reduction))


@functools.cache
def compiled_gradient(loss: Loss):
    """The gradient of the sum of the rows with respect to the scores."""
    return jax.jit(jax.grad(lambda scores, labels, options: evaluate(loss, scores, labels, options, "sum")))


def assert_equal_rows(actual, expected, factor=10.0):
    assert_close(actual, np.asarray(expected), np.float64, factor)


def assert_same(loss, scores, labels, options, other_scores, other_labels, other_options, reduction="none"):
    """Both calls agree, compiled."""
    actual = compiled(loss, reduction)(scores, labels, options)
    assert_equal_rows(actual, compiled(loss, reduction)(other_scores, other_labels, other_options))


def without(options, *names):
    return {name: value for name, value in options.items() if name not in names}


@every_loss_and_variant
@search(scores_of, labels_of, options_of)
def test_losses_jit_equals_eager_equals_the_oracle(loss, scores, labels, options):
    actual = compiled(loss)(scores, labels, options)
    assert_equal_rows(actual, evaluate(loss, scores, labels, options))
    reduced = {name: options[name] for name in ("sample_weight", "where")}
    rows, weight = loss.oracle(scores, labels, **without(options, *reduced))
    assert_equal_rows(actual, oracle.reduce(rows, weight, **reduced))
    for reduction in ("sum", "mean", "partial"):
        # A sum of large rows that cancel keeps the rounding of the rows.
        expected = oracle.reduce(rows, weight, **reduced, reduction=reduction)
        got = compiled(loss, reduction)(scores, labels, options)
        np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-11)


@every_loss_and_variant
@search(scores_of, labels_of, options_of)
def test_losses_vmap_equals_a_loop(loss, scores, labels, options):
    per_row = {name: options[name] for name in ("sample_weight", "where")}
    shared = without(options, *per_row)
    actual = vmapped(loss)(scores, labels, per_row, shared)
    for i in range(NUM_ROWS):
        row = {name: value[i] for name, value in per_row.items()}
        assert_equal_rows(actual[i], compiled(loss)(scores[i], labels[i], {**row, **shared}))


@functools.cache
def vmapped(loss):
    return jax.jit(
        jax.vmap(
            lambda scores, labels, per_row, shared: evaluate(loss, scores, labels, {**per_row, **shared}),
            in_axes=(0, 0, 0, None),
        )
    )


def rubbish(loss):
    """What masked rows may hold: scores, and a label."""
    scores = st.sampled_from([np.nan, np.inf, -np.inf, 1e300])
    labels = st.sampled_from([-1, -100, NUM_CLASSES, 2**31 - 1]) if loss.has_ids else scores
    return st.tuples(scores, labels, st.sampled_from([np.nan, np.inf, 0.0]))


@every_loss_and_variant
@search(scores_of, labels_of, options_of, rubbish)
def test_losses_masked_equals_sliced(loss, scores, labels, options, rubbish):
    where = options["where"]
    of_scores = where if loss.is_binary else where[:, None]
    of_labels = where if loss.has_ids else of_scores
    scores, good_scores = np.where(of_scores, scores, rubbish[0]), np.where(of_scores, scores, 0.5)
    good_labels = np.where(of_labels, labels, 0)
    labels = np.where(of_labels, labels, np.asarray(rubbish[1], labels.dtype))
    options["sample_weight"] = np.where(where, options["sample_weight"], rubbish[2])

    # Sliced: the oracle sees the rows that count alone.
    rows, weight = loss.oracle(good_scores, good_labels, **without(options, "sample_weight", "where"))
    kept, sample_weight = rows[where], options["sample_weight"][where]
    actual = np.asarray(compiled(loss)(scores, labels, options))
    assert_equal_rows(actual[where], kept * sample_weight)
    np.testing.assert_array_equal(actual[~where], 0)
    total, mass = oracle.reduce(kept, weight[where], sample_weight=sample_weight, reduction="partial")
    np.testing.assert_allclose(
        compiled(loss, "partial")(scores, labels, options), (total, mass), rtol=1e-11, atol=1e-11
    )
    np.testing.assert_allclose(
        compiled(loss, "mean")(scores, labels, options), total / mass if mass else 0, rtol=1e-11, atol=1e-11
    )

    gradient = np.asarray(compiled_gradient(loss)(scores, labels, options))
    expected = compiled_gradient(loss)(
        good_scores, good_labels, {**options, "sample_weight": np.where(where, options["sample_weight"], 1)}
    )
    assert_equal_rows(gradient, expected)
    np.testing.assert_array_equal(gradient[~where], 0)


@every(*FROM_IDS)
@search(scores_of, labels_of, options_of)
def test_losses_one_hot_equals_ids(loss, scores, labels, options):
    one_hot = np.eye(NUM_CLASSES)[labels]
    for reduction in ("none", "mean"):
        assert_same(loss, scores, labels, options, scores, one_hot, options, reduction)
    actual = compiled_gradient(loss)(scores, labels, options)
    assert_equal_rows(actual, compiled_gradient(loss)(scores, one_hot, options))


@every_loss
@search(scores_of, labels_of, options_of)
def test_losses_unit_weights_equal_none(loss, scores, labels, options):
    ones = {
        "class_weight": np.ones(NUM_CLASSES),
        "sample_weight": np.ones(rows_of(loss)),
        "where": np.ones(rows_of(loss), bool),
        "label_smoothing": np.float64(0),
    }
    for reduction in ("none", "mean"):
        assert_same(loss, scores, labels, ones, scores, labels, {}, reduction)
    for name in ("class_weight", "sample_weight", "where"):
        assert_same(loss, scores, labels, {**options, name: ones[name]}, scores, labels, without(options, name))


@every(*(loss for loss in (*LOSSES, *VARIANTS) if loss.takes("label_smoothing")))
@search(scores_of, labels_of, options_of)
def test_losses_smoothing_equals_explicit_soft_labels(loss, scores, labels, options):
    smoothing = options["label_smoothing"]
    q = np.eye(NUM_CLASSES)[labels] if loss.has_ids else labels
    smoothed = (1 - smoothing) * q + smoothing / (2 if loss.is_binary else NUM_CLASSES)
    assert_same(loss, scores, labels, options, scores, smoothed, without(options, "label_smoothing"))


@every(*SOFTMAX)
@search(scores_of, labels_of, options_of, lambda _: numbers((NUM_ROWS, 1), -100, 100))
def test_softmax_cross_entropy_shift_invariance(loss, scores, labels, options, shift):
    # Rounding x + shift moves x by up to 1e-14.
    assert_same(loss, scores, labels, options, scores + shift, labels, options)


@every_loss_and_variant
@search(scores_of, labels_of, options_of, lambda _: permutations(NUM_CLASSES))
def test_losses_permutation_of_classes(loss, scores, labels, options, order):
    permuted = {name: value[order] if name == "class_weight" else value for name, value in options.items()}
    if loss.is_binary:
        permuted |= {name: options[name][:, order] for name in ("sample_weight", "where")}
    other_labels = np.argsort(order).astype(np.int32)[labels] if loss.has_ids else labels[:, order]
    actual = np.asarray(compiled(loss)(scores, labels, options))
    actual = actual[:, order] if loss.is_binary else actual
    assert_equal_rows(actual, compiled(loss)(scores[:, order], other_labels, permuted))
    gradient = np.asarray(compiled_gradient(loss)(scores, labels, options))[:, order]
    assert_equal_rows(gradient, compiled_gradient(loss)(scores[:, order], other_labels, permuted))


@every_loss
@search(scores_of, labels_of, options_of, lambda _: permutations(NUM_ROWS))
def test_losses_permutation_of_rows(loss, scores, labels, options, order):
    permuted = {**options, **{name: options[name][order] for name in ("sample_weight", "where")}}
    actual = np.asarray(compiled(loss)(scores, labels, options))[order]
    assert_equal_rows(actual, compiled(loss)(scores[order], labels[order], permuted))


TWO_CLASSES = jax.jit(
    lambda logits, labels, smoothing: jxent.softmax_cross_entropy(logits, labels, label_smoothing=smoothing)
)
ONE_DIFFERENCE = jax.jit(
    lambda logits, labels, smoothing: jxent.sigmoid_binary_cross_entropy(logits, labels, label_smoothing=smoothing)
)


@given_options
@hypothesis.given(numbers((NUM_ROWS, 2), -300, 300), numbers(NUM_ROWS, 0, 1), st.floats(0, 1).map(np.float64))
def test_softmax_cross_entropy_of_two_classes_is_binary_of_the_difference(logits, labels, smoothing):
    with jax.enable_x64(True):
        binary = ONE_DIFFERENCE(logits[:, 1] - logits[:, 0], labels, smoothing)
        assert_equal_rows(TWO_CLASSES(logits, np.stack([1 - labels, labels], -1), smoothing), binary)
        hard = np.round(labels).astype(np.int32)
        assert_equal_rows(
            TWO_CLASSES(logits, hard, smoothing), ONE_DIFFERENCE(logits[:, 1] - logits[:, 0], hard, smoothing)
        )


@every(*SOFTMAX)
@search(scores_of, labels_of, options_of)
def test_softmax_cross_entropy_gradient_rows_sum_to_zero(loss, scores, labels, options):
    gradient = np.asarray(compiled_gradient(loss)(scores, labels, options))
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-13 * NUM_CLASSES * (1 + np.abs(gradient).max()))


@every_loss
@search(scores_of, labels_of, options_of, lambda _: st.integers(0, NUM_ROWS))
def test_losses_chunks_of_a_mean_equal_the_whole(loss, scores, labels, options, cut):
    # Chunks of 1 and 3 rows, or 2 and 2, …, an empty one included: told apart by masks, so that they share a shape.
    in_first = np.arange(NUM_ROWS) < cut
    in_first = in_first[:, None] if loss.is_binary else in_first
    parts = [
        compiled(loss, "partial")(scores, labels, {**options, "where": options["where"] & chunk})
        for chunk in (in_first, ~in_first)
    ]
    half = NUM_ROWS // 2
    per_row = {name: options[name] for name in ("sample_weight", "where")}
    shared = without(options, *per_row)
    halves = [
        compiled(loss, "partial")(scores[i], labels[i], {**shared, **{name: v[i] for name, v in per_row.items()}})
        for i in (slice(half), slice(half, None))
    ]
    rows, weight = loss.oracle(scores, labels, **shared)
    expected = oracle.reduce(rows, weight, **per_row, reduction="mean")
    for chunks in (parts, halves):
        np.testing.assert_allclose(sum(chunks).value(), expected, rtol=1e-11, atol=1e-11)


@every_loss
@search(scores_of, labels_of, options_of, lambda loss: hnp.arrays(np.int32, rows_of(loss), elements=st.integers(0, 3)))
def test_losses_integer_sample_weight_is_repetition(loss, scores, labels, options, repeats):
    weighted = compiled(loss, "partial")(scores, labels, {**options, "sample_weight": repeats})
    # Copy k of all rows is masked where a row occurs at most k times.
    plain = without(options, "sample_weight")
    copies = [
        compiled(loss, "partial")(scores, labels, {**plain, "where": options["where"] & (repeats > k)})
        for k in range(3)
    ]
    repeated = sum(copies)
    np.testing.assert_allclose(weighted, repeated, rtol=1e-11, atol=1e-11)
    mean = compiled(loss, "mean")(scores, labels, {**options, "sample_weight": repeats})
    rows, weight = loss.oracle(scores, labels, **without(plain, "where"))
    index = np.repeat(np.arange(rows.size), np.where(options["where"], repeats, 0).ravel())
    expected = rows.ravel()[index].sum() / weight.ravel()[index].sum() if weight.ravel()[index].sum() else 0
    np.testing.assert_allclose(mean, expected, rtol=1e-11, atol=1e-11)


@every_loss
@search(scores_of, labels_of, options_of)
def test_losses_none_sums_to_sum_and_partial(loss, scores, labels, options):
    rows = np.asarray(compiled(loss)(scores, labels, options))
    total, weight = compiled(loss, "partial")(scores, labels, options)
    np.testing.assert_allclose(compiled(loss, "sum")(scores, labels, options), rows.sum(), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(total, rows.sum(), rtol=1e-12, atol=1e-12)
    mean = compiled(loss, "mean")(scores, labels, options)
    np.testing.assert_allclose(mean * weight, rows.sum() if weight else 0, rtol=1e-12, atol=1e-12)


@every_loss
@search(scores_of, labels_of, options_of, lambda _: st.floats(1e-3, 1e3))
def test_losses_mean_ignores_the_scale_of_weights(loss, scores, labels, options, scale):
    scaled = {**options, "sample_weight": options["sample_weight"] * scale}
    assert_same(loss, scores, labels, options, scores, labels, scaled, "mean")
    scaled = {**options, "class_weight": options["class_weight"] * scale}
    assert_same(loss, scores, labels, options, scores, labels, scaled, "mean")


@every(*MULTICLASS, *(loss for loss in VARIANTS if loss.takes("axis") and not loss.has_ids))
@search(scores_of, labels_of, options_of, lambda _: st.integers(-3, 2))
def test_losses_class_axis_may_be_anywhere(loss, scores, labels, options, axis):
    # One row axis becomes two, of 2 × 2, with the classes before, between or behind.
    def folded(a):
        return a.reshape(2, NUM_ROWS // 2, *a.shape[1:])

    per_row = {name: folded(options[name]) for name in ("sample_weight", "where")}
    moved = np.moveaxis(folded(scores), -1, axis)
    moved_labels = folded(labels) if loss.has_ids else np.moveaxis(folded(labels), -1, axis)
    actual = along_axis(loss, axis)(moved, moved_labels, {**options, **per_row})
    reduced = {name: options[name] for name in ("sample_weight", "where")}
    rows, weight = loss.oracle(scores, labels, **without(options, *reduced))
    assert_equal_rows(actual.reshape(NUM_ROWS), oracle.reduce(rows, weight, **reduced))


@functools.cache
def along_axis(loss, axis):
    return jax.jit(lambda scores, labels, options: evaluate(loss, scores, labels, {**options, "axis": axis}))


@every(*BINARY)
@search(scores_of, labels_of, options_of)
def test_binary_losses_swap_of_both_classes(loss, scores, labels, options):
    flipped = 1 - scores if "from_probs" in loss.name else -scores
    assert_same(loss, scores, labels, options, flipped, 1 - labels, options)


@every(*FROM_LOGITS)
@search(scores_of, labels_of, options_of)
def test_losses_from_logits_equal_those_from_probabilities(loss, scores, labels, options):
    if loss.is_binary:
        # 1 − p has lost its digits where p is near 1.
        scores, tolerance = scores / 3, 1e-9
        other, probs = jxent.binary_cross_entropy_from_probs, 1 / (1 + np.exp(-scores))
    else:
        other, tolerance = jxent.cross_entropy_from_log_probs, 1e-11
        probs = np.asarray(jax.nn.log_softmax(jnp.asarray(scores)))
    actual = compiled(loss)(scores, labels, options)
    np.testing.assert_allclose(actual, other(probs, labels, **options), rtol=tolerance, atol=tolerance)


@every_loss
@search(scores_of, labels_of, options_of)
def test_losses_gradient_is_linear_in_the_cotangent_of_each_row(loss, scores, labels, options):
    # A row's gradient depends on its own cotangent alone: scale them by the sample weights.
    plain = {**options, "sample_weight": np.ones(rows_of(loss))}
    by_weight = compiled_gradient(loss)(scores, labels, options)
    weight = options["sample_weight"] if loss.is_binary else options["sample_weight"][:, None]
    assert_equal_rows(by_weight, weight * np.asarray(compiled_gradient(loss)(scores, labels, plain)))
