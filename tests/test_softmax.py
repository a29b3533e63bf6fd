"""The semantics of the multiclass losses, sentence by sentence, on every one of them where the sentence holds for all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from tests import oracle
from tests.losses import LOSSES, MULTICLASS, NUM_CLASSES, assert_close, by_name
from tests.pairs import all_pairs

REDUCTIONS = ("none", "sum", "mean", "partial")
NO_CLASS = -(2**31)
LOGIT_LOSSES = [loss for loss in MULTICLASS if loss.call is jxent.softmax_cross_entropy]


def options_of(loss, rng, rows):
    """Everything that the losses have in common, with one masked row."""
    where = np.ones(rows, bool)
    where[(1,) * len(rows)] = False
    options = {
        "class_weight": rng.uniform(0.5, 2, NUM_CLASSES),
        "sample_weight": rng.uniform(0.5, 2, rows),
        "where": where,
        "label_smoothing": 0.1,
    }
    if loss.is_binary:
        options["pos_weight"] = rng.uniform(0.5, 2, NUM_CLASSES)
    if loss.call is jxent.softmax_cross_entropy:
        options["z_loss"] = 0.01
    return options


def expected(loss, scores, labels, reduction, *, sample_weight=None, where=None, ignore_index=None, **options):
    if ignore_index is not None:
        counted = np.asarray(labels) != ignore_index
        where = counted if where is None else where & counted
    rows, weight = loss.oracle(scores, labels, **options)
    return oracle.reduce(rows, weight, sample_weight=sample_weight, where=where, reduction=reduction)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("loss", **by_name(LOSSES))
def test_loss_with_every_option(loss, reduction, rng):
    scores, labels = loss.inputs(rng, (6, 3))
    options = options_of(loss, rng, loss.rows(scores))
    result = loss.call(scores, labels, reduction=reduction, **options)
    assert_close(
        jnp.stack(result) if reduction == "partial" else result, expected(loss, scores, labels, reduction, **options)
    )
    assert jax.tree.all(jax.tree.map(lambda field: field.dtype == jnp.float32, result))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "option", ["class_weight", "sample_weight", "where", "label_smoothing", "pos_weight", "z_loss"]
)
@pytest.mark.parametrize("loss", **by_name(LOSSES))
def test_loss_with_one_option(loss, option, reduction, rng):
    scores, labels = loss.inputs(rng, (6, 3))
    options = options_of(loss, rng, loss.rows(scores))
    options = {option: options[option]} if option in options else {}
    result = loss.call(scores, labels, reduction=reduction, **options)
    assert_close(
        jnp.stack(result) if reduction == "partial" else result, expected(loss, scores, labels, reduction, **options)
    )


@pytest.mark.parametrize("rows", [(), (1,), (0,), (2, 3), (2, 0, 3), (2, 3, 2)])
@pytest.mark.parametrize("loss", **by_name(LOSSES))
def test_loss_of_any_rank(loss, rows, rng):
    scores, labels = loss.inputs(rng, rows)
    assert_close(loss.call(scores, labels), expected(loss, scores, labels, "none"))
    assert_close(loss.call(scores, labels, reduction="mean"), expected(loss, scores, labels, "mean"))


def test_sigmoid_of_scalars():
    assert_close(jxent.sigmoid_binary_cross_entropy(2.0, True), np.log1p(np.exp(-2)))
    assert_close(jxent.binary_cross_entropy_from_probs(0.25, 1, pos_weight=3.0), 3 * np.log(4))


@pytest.mark.parametrize("axis", [0, 2, -1, -3])
@pytest.mark.parametrize("loss", **by_name(MULTICLASS))
def test_axis_is_the_class_axis(loss, axis, rng):
    scores, labels = loss.inputs(rng, (2, 3, 4))
    options = {"class_weight": rng.uniform(0.5, 2, NUM_CLASSES), "label_smoothing": 0.1}
    want, d_want = jax.value_and_grad(lambda s: loss.call(s, labels, reduction="mean", **options))(scores)
    moved = labels if loss.has_ids else np.moveaxis(labels, -1, axis)
    got, d_got = jax.value_and_grad(lambda s: loss.call(s, moved, axis=axis, reduction="mean", **options))(
        np.moveaxis(scores, -1, axis)
    )
    assert_close(got, expected(loss, scores, labels, "mean", **options))
    assert_close(got, want)
    assert_close(jnp.moveaxis(d_got, axis, -1), d_want)


def test_softmax_of_segmentation_map(rng):
    logits, labels = rng.normal(size=(2, 4, 5, 6)).astype(np.float32), rng.integers(4, size=(2, 5, 6))
    labels[0, 0] = 255
    got = jxent.softmax_cross_entropy(logits, labels, axis=1, ignore_index=255, reduction="mean")
    rows, weight = oracle.softmax_rows(logits, labels, axis=1)
    assert_close(got, oracle.reduce(rows, weight, where=labels != 255, reduction="mean"))


@pytest.mark.parametrize("loss", **by_name(LOSSES))
def test_row_arguments_of_size_one_count_for_each(loss, rng):
    scores, labels = loss.inputs(rng, (4, 3))
    rows = loss.rows(scores)
    narrow = (4, *(1 for _ in rows[1:]))
    weight, where = rng.uniform(0.5, 2, narrow), np.array([True, False, True, True]).reshape(narrow)
    got = loss.call(scores, labels, sample_weight=weight, where=where, reduction="partial")
    full = {"sample_weight": np.broadcast_to(weight, rows), "where": np.broadcast_to(where, rows)}
    assert_close(jnp.stack(got), expected(loss, scores, labels, "partial", **full))


@pytest.mark.parametrize("loss", **by_name([loss for loss in MULTICLASS if loss.has_ids]))
def test_ignore_index_masks_in_and_out_of_range(loss, rng):
    scores, labels = loss.inputs(rng, (6,))
    for ignored in (-100, 2, 255):
        labels[[0, 3]] = ignored
        got = loss.call(scores, labels, ignore_index=ignored, reduction="mean")
        assert_close(got, expected(loss, scores, labels, "mean", ignore_index=ignored))
    both = loss.call(scores, labels, ignore_index=255, where=np.arange(6) > 1)
    assert_close(both, expected(loss, scores, labels, "none", ignore_index=255, where=np.arange(6) > 1))


def test_ignore_index_outside_the_dtype_matches_nothing():
    logits = np.zeros((2, 300), np.float32)
    labels = np.array([156, 255], np.uint8)
    assert_close(jxent.softmax_cross_entropy(logits, labels, ignore_index=-100), np.log([300, 300]))
    assert_close(jxent.softmax_cross_entropy(logits, labels, ignore_index=156 + 256), np.log([300, 300]))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_ids_of_any_dtype_are_checked_in_their_own(dtype, rng):
    logits = rng.normal(size=(3, 300)).astype(np.float32)
    highest = min(np.iinfo(dtype).max, 299)
    labels = np.array([0, 7, highest], dtype)
    rows, _ = oracle.softmax_rows(logits, labels)
    assert_close(jxent.softmax_cross_entropy(logits, labels), rows)
    gradient = jax.grad(lambda x: jxent.softmax_cross_entropy(x, labels, reduction="sum"))(logits)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    assert_close(gradient, p - oracle.distributions(labels, 300))
    if np.iinfo(dtype).max > 300:
        labels[1] = np.iinfo(dtype).max
        assert_close(jxent.softmax_cross_entropy(logits, labels), np.where(np.arange(3) == 1, np.nan, rows))


@pytest.mark.parametrize("bad", [2**32, 2**32 + 1, -(2**32), 2**40])
def test_64_bit_ids_do_not_wrap(bad):
    labels = np.array([bad, 1], np.int64)
    loss = jxent.softmax_cross_entropy(np.zeros((2, 4), np.float32), labels)
    np.testing.assert_array_equal(np.isnan(loss), [True, False])
    with jax.enable_x64(True):
        loss = jxent.softmax_cross_entropy(np.zeros((2, 4), np.float32), jnp.asarray(labels))
    np.testing.assert_array_equal(np.isnan(loss), [True, False])


@pytest.mark.parametrize(
    ("bad", "limit", "dtype"),
    [(2**40, 2**31 - 1, np.int64), (-(2**40), -(2**31), np.int64), (2**40, 2**32 - 1, np.uint64)],
)
def test_64_bit_ids_are_not_taken_for_an_ignore_index_at_the_end_of_32_bits(bad, limit, dtype):
    labels = np.array([bad, limit, 1], dtype)
    loss = jxent.softmax_cross_entropy(np.zeros((3, 4), np.float32), labels, ignore_index=limit)
    assert_close(loss, [np.nan, 0, np.log(4)])
    with pytest.raises(IndexError, match="target is"):
        jxent.torch_compat.cross_entropy(np.zeros((3, 4), np.float32), labels, ignore_index=limit)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bad", [-1, NUM_CLASSES, -100, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("loss", **by_name([loss for loss in MULTICLASS if loss.has_ids]))
def test_bad_id_is_nan_in_value_and_gradient(loss, bad, smoothing, rng):
    scores, labels = loss.inputs(rng, (4,))
    clean = loss.call(scores, labels, label_smoothing=smoothing)
    labels[2] = bad
    options = {"class_weight": np.ones(NUM_CLASSES, np.float32), "label_smoothing": smoothing}
    for run in (loss.call, jax.jit(loss.call, static_argnames="reduction")):
        value = run(scores, labels, **options)
        assert_close(value, np.where(np.arange(4) == 2, np.nan, clean))
        gradient = jax.grad(lambda s, run=run: run(s, labels, reduction="sum", **options))(scores)
        np.testing.assert_array_equal(np.isnan(gradient), np.arange(4)[:, None] == np.full((1, NUM_CLASSES), 2))
        assert np.isnan(run(scores, labels, reduction="mean", **options))
    # Masked, a bad id is nothing; and it counts 1 in the weight of a mean.
    masked = loss.call(scores, labels, where=np.arange(4) != 2, reduction="mean", **options)
    assert_close(masked, np.delete(clean, 2).mean())
    assert loss.call(scores, labels, reduction="partial", **options).weight == 4


def test_bad_binary_integer_is_nan():
    x = np.array([1.0, 1.0, 1.0], np.float32)
    for loss in (jxent.sigmoid_binary_cross_entropy, jxent.binary_cross_entropy_from_probs):
        labels = np.array([0, -1, 2])
        np.testing.assert_array_equal(np.isnan(loss(x / 2, labels)), [False, True, True])
        gradient = jax.grad(lambda s, loss=loss, labels=labels: loss(s, labels).sum())(x / 2)
        np.testing.assert_array_equal(np.isnan(gradient), [False, True, True])


POISON = [np.nan, np.inf, -np.inf, 1e38]


def masked(loss, diff, fixed, reduction="none"):
    """Calls the loss with the arguments that have a derivative in `diff` and the others in `fixed`."""
    options = {**diff, **fixed}
    return loss.call(options.pop("scores"), options.pop("labels"), reduction=reduction, **options)


@pytest.mark.parametrize("loss", **by_name(LOSSES))
def test_masked_rows_are_exactly_zero(loss, rng):
    """Scores, labels and weights of a masked row may hold anything: not a trace of it reaches value or gradient."""
    scores, labels = loss.inputs(rng, (3 + len(POISON), 2))
    rows = loss.rows(scores)
    clean = {"scores": scores, **options_of(loss, rng, rows)}
    clean = {k: np.asarray(v, np.float32) for k, v in clean.items() if k != "where"}
    counts = np.arange(len(scores)) < 3
    clean_fixed = {"where": counts.reshape(-1, *(1 for _ in rows[1:]))}
    (clean_fixed if loss.has_ids else clean)["labels"] = labels
    dirty, dirty_fixed = ({k: np.array(v) for k, v in part.items()} for part in (clean, clean_fixed))
    for name in {"scores", "labels", "sample_weight"} & set(dirty):
        dirty[name][3:] = np.reshape(POISON, (-1, *(1 for _ in dirty[name].shape[1:])))
    if loss.has_ids:
        dirty_fixed["labels"][3:] = -7

    for reduction in REDUCTIONS:
        want = masked(loss, clean, clean_fixed, reduction)
        got = jax.jit(functools.partial(masked, loss, reduction=reduction))(dirty, dirty_fixed)
        assert_close(jnp.hstack(jax.tree.leaves(got)), jnp.hstack(jax.tree.leaves(want)))
    value = masked(loss, dirty, dirty_fixed)
    assert not np.any(value[~counts])
    cotangent = jnp.asarray(rng.normal(size=value.shape), jnp.float32)
    for run in (functools.partial(masked, loss), jax.jit(functools.partial(masked, loss))):
        want = jax.vjp(lambda diff, run=run: run(diff, clean_fixed), clean)[1](cotangent)[0]
        got = jax.vjp(lambda diff, run=run: run(diff, dirty_fixed), dirty)[1](cotangent)[0]
        for name in got:
            if name in ("scores", "labels", "sample_weight"):
                assert not np.any(got[name][~counts]), name
            assert_close(got[name], want[name])


def test_masked_rows_of_a_nan_class_weight_are_zero():
    weight = np.array([1.0, np.nan], np.float32)
    logits, labels, where = np.zeros((2, 2), np.float32), np.array([0, 1]), np.array([True, False])
    value, grads = jax.value_and_grad(
        lambda x, w: jxent.softmax_cross_entropy(x, labels, class_weight=w, where=where, reduction="mean"), (0, 1)
    )(logits, weight)
    assert_close(value, np.log(2))
    assert_close(grads[0], [[-0.5, 0.5], [0, 0]])
    assert_close(grads[1], [0, 0])


@pytest.mark.parametrize("loss", **by_name(LOSSES))
def test_rows_that_are_all_masked_are_zero_whatever_all_weights_hold(loss, rng):
    scores, labels = loss.inputs(rng, (3,))
    rows, nan = loss.rows(scores), np.float32(np.nan)
    diff = {"scores": np.full_like(scores, nan), "sample_weight": np.full(rows, nan)}
    diff["class_weight"] = np.full(NUM_CLASSES, nan, np.float32)
    diff |= {"pos_weight": nan} if loss.is_binary else {}
    diff |= {"labels": np.full_like(labels, nan)} if loss.has_float_labels else {}
    fixed = {"where": np.zeros(rows, bool), "label_smoothing": np.float32(0.1)}
    fixed |= {} if loss.has_float_labels else {"labels": labels}

    def sum_and_tangent(diff):
        return jax.jvp(lambda diff: masked(loss, diff, fixed, "sum"), (diff,), (jax.tree.map(jnp.ones_like, diff),))

    found = jax.jit(lambda diff: (sum_and_tangent(diff), jax.grad(lambda d: masked(loss, d, fixed, "sum"))(diff)))(diff)
    for leaf in jax.tree.leaves(found):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_a_weight_of_zero_is_not_a_mask():
    logits = np.array([[np.nan, 0.0]], np.float32)
    assert np.isnan(jxent.softmax_cross_entropy(logits, [0], sample_weight=[0.0])[0])


@pytest.mark.parametrize("loss", **by_name(LOSSES))
def test_empty_mean_is_zero_with_zero_gradient(loss, rng):
    scores, labels = loss.inputs(rng, (3,))
    rows = loss.rows(scores)
    for options in ({"where": np.zeros(rows, bool)}, {"sample_weight": np.zeros(rows, np.float32)}):
        value, gradient = jax.value_and_grad(
            lambda s, options=options: loss.call(s, labels, reduction="mean", **options)
        )(scores)
        assert value == 0
        assert not np.any(gradient)
        partial = loss.call(scores, labels, reduction="partial", **options)
        assert (partial.total, partial.weight, partial.value(empty=-1.0)) == (0, 0, -1)
    value = loss.call(*loss.inputs(rng, (0,)), reduction="mean")
    assert value == 0


@pytest.mark.parametrize("loss", **by_name(LOSSES))
def test_nan_in_a_live_row_is_nan(loss, rng):
    scores, labels = loss.inputs(rng, (4,))
    # From (log-)probabilities, an id reads its own entry alone.
    scores[1, labels[1] if loss.has_ids and loss not in LOGIT_LOSSES else 2] = np.nan
    where_nan = np.isnan(scores) if loss.is_binary else np.isnan(scores).any(-1)
    for run in (loss.call, jax.jit(loss.call)):
        np.testing.assert_array_equal(np.isnan(run(scores, labels)), where_nan)
    gradient = jax.grad(lambda s: loss.call(s, labels).sum())(scores)
    np.testing.assert_array_equal(np.isnan(gradient).any(-1), np.arange(4) == 1)


@pytest.mark.parametrize(
    "spoil", [lambda row: np.full_like(row, -np.inf), lambda row: np.where(np.arange(5) == 1, np.inf, row)]
)
@pytest.mark.parametrize("loss", **by_name(LOGIT_LOSSES))
def test_no_live_class_or_an_infinite_one_is_nan(loss, spoil, rng):
    scores, labels = loss.inputs(rng, (4,))
    scores[2] = spoil(scores[2])
    for run in (loss.call, jax.jit(loss.call)):
        np.testing.assert_array_equal(np.isnan(run(scores, labels)), np.arange(4) == 2)
    gradient = jax.grad(lambda s: loss.call(s, labels).sum())(scores)
    np.testing.assert_array_equal(np.isnan(gradient).any(-1), np.arange(4) == 2)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("loss", **by_name([loss for loss in MULTICLASS if "from_probs" not in loss.name]))
def test_minus_inf_is_a_class_mask(loss, smoothing, rng):
    """A masked class is as if it were not there: value, gradient and smoothing are those of the other classes."""
    scores, labels = loss.inputs(rng, (6,))
    keep = [0, 1, 3]
    scores[:, [2, 4]] = -np.inf
    if loss.has_ids:
        labels = np.array([0, 1, 3, 3, 1, 0], np.int32)
        fewer = np.searchsorted(keep, labels).astype(np.int32)
    else:
        labels[:, [2, 4]] = 0
        fewer = labels[:, keep]
    weight = rng.uniform(0.5, 2, NUM_CLASSES).astype(np.float32)

    def value(s, labels, w):
        return loss.call(s, labels, class_weight=w, label_smoothing=smoothing, reduction="sum")

    for run in (value, jax.jit(value)):
        got, grads = jax.value_and_grad(run, (0, 2))(scores, labels, weight)
        want, d_want = jax.value_and_grad(run, (0, 2))(scores[:, keep], fewer, weight[keep])
        assert_close(got, expected(loss, scores, labels, "sum", class_weight=weight, label_smoothing=smoothing))
        assert_close(got, want)
        assert_close(grads[0][:, keep], d_want[0])
        assert not np.any(grads[0][:, [2, 4]])
        assert_close(grads[1][np.array(keep)], d_want[1])


@pytest.mark.parametrize("loss", **by_name(LOGIT_LOSSES))
def test_label_on_a_masked_class_is_inf_with_a_finite_gradient(loss):
    logits = np.array([[1.0, -np.inf, 0.0], [1.0, 2.0, 0.0]], np.float32)
    labels = np.array([1, 1], np.int32) if loss.has_ids else np.eye(3, dtype=np.float32)[[1, 1]]
    for run in (loss.call, jax.jit(loss.call)):
        value, pull = jax.vjp(lambda s, run=run: run(s, labels), logits)
        gradient = pull(jnp.ones(2))[0]
        e = np.e
        assert value[0] == np.inf
        assert_close(gradient[0], [e / (e + 1), -1, 1 / (e + 1)])
        assert_close(gradient[1], np.exp(logits[1]) / np.exp(logits[1]).sum() - [0, 1, 0])


def test_gradient_of_soft_labels_at_a_masked_class():
    """∂q_c is 0 at a masked class that carries no label, and +inf where it does."""
    logits = np.array([[0.0, -np.inf], [0.0, -np.inf]], np.float32)
    soft = np.array([[1.0, 0.0], [0.5, 0.5]], np.float32)
    value, pull = jax.vjp(lambda q: jxent.softmax_cross_entropy(logits, q), soft)
    np.testing.assert_array_equal(value, [0, np.inf])
    np.testing.assert_array_equal(pull(jnp.ones(2))[0], [[0, 0], [0, np.inf]])


def test_one_live_class_takes_all_the_smoothing():
    logits = np.array([[-np.inf, 3.0, -np.inf]], np.float32)
    value, gradient = jax.value_and_grad(lambda x: jxent.softmax_cross_entropy(x, [1], label_smoothing=0.3)[0])(logits)
    assert value == 0
    np.testing.assert_array_equal(gradient, [[0, 0, 0]])


def test_lowest_finite_logit_is_live():
    lowest = np.finfo(np.float32).min
    logits = np.array([[0.0, lowest, -np.inf]], np.float32)
    value = jxent.softmax_cross_entropy(logits, [0], label_smoothing=0.5)
    assert_close(value / -np.float64(lowest), [0.25])


def test_class_weight_of_zero_silences_an_infinite_loss():
    logits = np.array([[0.0, -np.inf]], np.float32)
    weight = np.array([1.0, 0.0], np.float32)
    for labels in (np.array([1]), np.array([[0.0, 1.0]], np.float32)):
        value, grads = jax.value_and_grad(
            lambda x, w, labels=labels: jxent.softmax_cross_entropy(x, labels, class_weight=w, reduction="sum"), (0, 1)
        )(logits, weight)
        assert value == 0
        np.testing.assert_array_equal(grads[0], [[0, 0]])
        assert not np.isnan(grads[1]).any()


def test_z_loss_is_scaled_by_samples_but_not_by_classes(rng):
    logits, labels = rng.normal(size=(3, 4)).astype(np.float32), np.array([0, 1, 2])
    class_weight, sample_weight = np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 3])
    log_z = np.log(np.exp(logits.astype(np.float64)).sum(-1))
    nll = log_z - np.take_along_axis(logits, labels[:, None], 1)[:, 0]
    got = jxent.softmax_cross_entropy(
        logits, labels, class_weight=class_weight, sample_weight=sample_weight, z_loss=0.5, reduction="partial"
    )
    w = class_weight[labels]
    assert_close(jnp.stack(got), [(sample_weight * (w * nll + 0.5 * log_z**2)).sum(), (sample_weight * w).sum()])


def test_aux_is_per_row_under_every_reduction():
    nan, inf = np.nan, np.inf
    logits = np.array([[1, 3, 3], [0, nan, 2], [-inf, -inf, -inf], [5, 1, 0], [-inf, 2, -inf], [9, 0, 0]], np.float32)
    labels, where = np.array([0, 0, 0, 0, 1, 7]), np.array([True, True, True, False, True, True])
    for reduction in REDUCTIONS:
        _, aux = jxent.softmax_cross_entropy(logits, labels, where=where, reduction=reduction, return_aux=True)
        np.testing.assert_array_equal(aux.predicted, [1, NO_CLASS, NO_CLASS, NO_CLASS, 1, 0])
        assert aux.predicted.dtype == jnp.int32
        log_z = np.array([np.log(np.e + 2 * np.e**3), nan, nan, 0, 2, np.log(np.e**9 + 2)])
        assert_close(aux.log_z, log_z)
        assert_close(aux.nll, [log_z[0] - 1, nan, nan, 0, 0, nan])
        live = [(1, 3, 3), (9, 0, 0)]
        entropy = [log_z[i] - np.dot(x, np.exp(x - log_z[i])) for i, x in zip((0, 5), live, strict=True)]
        assert_close(aux.entropy, [entropy[0], nan, nan, 0, 0, entropy[1]])


@pytest.mark.parametrize("ignored", [-1, -(2**31), 0, 2])
def test_a_masked_row_is_predicted_as_no_label_at_all(ignored):
    labels = np.array([ignored, 1, ignored, 2 if ignored == 0 else 0])
    _, aux = jxent.softmax_cross_entropy(jnp.zeros((4, 3)), labels, ignore_index=ignored, return_aux=True)
    assert not np.any(aux.predicted == labels, where=labels == ignored)
    assert np.all(aux.predicted[::2] < -(2**30))


OF_AUX = {
    "plain": {},
    "all": {"label_smoothing": 0.1, "z_loss": 0.1, "class_weight": np.array([1.0, 2, 0.5, 3])},
}


@pytest.mark.parametrize("kind", ["ids", "distributions"])
@pytest.mark.parametrize("options", OF_AUX.values(), ids=OF_AUX)
def test_the_aux_has_the_gradient_of_log_z_and_plain_metrics(options, kind, rng):
    logits = rng.normal(size=(3, 4)).astype(np.float32)
    labels = np.array([0, 1, 2]) if kind == "ids" else rng.dirichlet(np.ones(4), size=3).astype(np.float32)
    where = np.array([True, True, False])

    def total(x, of_log_z, of_rest):
        loss, aux = jxent.softmax_cross_entropy(x, labels, where=where, reduction="sum", return_aux=True, **options)
        return loss + of_log_z * jnp.sum(aux.log_z**2) + of_rest * jnp.sum(aux.nll + aux.entropy), aux

    (_, aux), gradient = jax.value_and_grad(total, has_aux=True)(logits, 0.3, 0.5)
    plain = jax.grad(total, has_aux=True)(logits, 0.0, 0.0)[0]
    e = np.exp(logits.astype(np.float64))
    log_z, p = np.log(e.sum(-1)), e / e.sum(-1, keepdims=True)
    assert_close(gradient - plain, where[:, None] * 0.6 * log_z[:, None] * p, factor=10)
    assert_close(aux.log_z, where * log_z)
    assert_close(aux.nll, where * oracle.softmax_rows(logits, labels)[0])
    assert_close(aux.entropy, where * -np.sum(p * np.log(p), -1))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16, np.float32])
@pytest.mark.parametrize("loss", **by_name(LOSSES))
def test_scores_alone_set_the_dtypes(loss, dtype, rng):
    scores, labels = loss.inputs(rng, (4,), dtype)
    labels = labels if loss.has_ids else labels.astype(np.float32)
    weight = jnp.asarray(rng.uniform(0.5, 2, NUM_CLASSES), jnp.bfloat16)
    for reduction in REDUCTIONS:
        value = loss.call(scores, labels, class_weight=weight, reduction=reduction)
        assert {leaf.dtype for leaf in jax.tree.leaves(value)} == {jnp.dtype(jnp.float32)}
    value, grads = jax.value_and_grad(
        lambda s, q, w: loss.call(s, q, class_weight=w, reduction="sum"), (0, 2) if loss.has_ids else (0, 1, 2)
    )(scores, labels, weight)
    assert grads[0].dtype == dtype
    assert grads[-1].dtype == jnp.bfloat16
    assert loss.has_ids or grads[1].dtype == jnp.float32
    wide = np.asarray(scores, np.float64)
    want = expected(loss, wide, labels, "sum", class_weight=np.asarray(weight, np.float64))
    assert_close(value, want, factor=5)


def test_vocabulary_beyond_float32_integers():
    """The label is still told apart from its neighbours where float32 no longer counts in ones."""
    num_classes = 2**24 + 3
    logits = np.zeros((1, num_classes), np.float32)
    logits[0, num_classes - 2] = 40.0
    loss = jax.jit(jxent.softmax_cross_entropy)(logits, np.array([num_classes - 2]))
    np.testing.assert_allclose(loss, np.log1p((num_classes - 1) * np.exp(-40.0)), rtol=2e-6)


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize(
    *all_pairs(
        num_classes=[8191, 8192, 2**14 + 100, 2**16 + 1], dtype=[np.float32, np.float16, jnp.bfloat16], axis=[-1, 0]
    )
)
def test_labels_anywhere_in_a_long_row(num_classes, dtype, axis, rng):
    """The classes near a label are summed by themselves: at the ends of windows, and in a last one that is cut short."""
    from_an_end = np.array([0, 1, 127, 128, 255, 256, 511, 512])
    good = np.concatenate([from_an_end, num_classes - 1 - from_an_end])
    labels = np.append(good, [num_classes, -1])
    rows = np.arange(good.size)
    logits = rng.normal(size=(labels.size, num_classes)) - 30
    logits[rows, good] += np.resize([0, 30, 60], good.size)
    logits[rows, (good + 1) % num_classes] += np.resize([0, 0, 0, 30], good.size)
    logits[rows, (good + 2) % num_classes] = np.resize([-np.inf, 0], good.size)
    logits = jnp.asarray(logits, dtype)

    call = jax.jit(functools.partial(jxent.softmax_cross_entropy, axis=axis, return_aux=True))
    loss, aux = call(jnp.moveaxis(logits, -1, axis), labels)
    wide = np.asarray(logits, np.float64)
    beside = wide[:-2] - wide[rows, good][:, None]
    beside[rows, good] = -np.inf
    np.testing.assert_allclose(loss[:-2], np.log1p(np.exp(beside).sum(-1)), rtol=2e-6)
    np.testing.assert_array_equal(loss[-2:], np.nan)
    np.testing.assert_allclose(aux.log_z, np.log(np.exp(wide).sum(-1)), rtol=2e-6, atol=1e-6)


@pytest.mark.usefixtures("devices")
@pytest.mark.parametrize("num_classes", [40000, 2**16])
@pytest.mark.parametrize("rows", [(), (1,), (1, 1), (2,)], ids=str)
def test_a_single_long_row(rows, num_classes, rng):
    """XLA:CPU (jaxlib 0.10) gives all windows of one row the same iota."""
    logits = rng.normal(size=(*rows, num_classes)).astype(np.float32)
    labels = np.full(rows, num_classes - 5)
    expected_rows, _ = oracle.softmax_rows(logits, labels)
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.asarray(logits, dtype)
        total = functools.partial(jxent.softmax_cross_entropy, labels=labels, reduction="sum")
        value, gradient = jax.jit(jax.value_and_grad(total))(x)
        tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
        np.testing.assert_allclose(value, expected_rows.sum(), rtol=tolerance)
        p = np.asarray(jax.nn.softmax(x.astype(jnp.float32)), np.float64)
        p[..., num_classes - 5] -= 1
        np.testing.assert_allclose(np.asarray(gradient, np.float64), p, atol=tolerance * 1e-2, rtol=tolerance)


@pytest.mark.usefixtures("devices")
def test_what_a_long_row_holds_is_not_hidden_by_its_windows(rng):
    """Masked rows are 0 and others NaN, whether NaN or inf stands near the label or far from it."""
    logits = rng.normal(size=(6, 9000)).astype(np.float32)
    labels = np.full(6, 300)
    for row, (column, entry) in enumerate(
        [(301, np.nan), (8999, np.nan), (301, np.inf), (300, np.inf), (8999, np.inf)]
    ):
        logits[row, column] = entry
    where = np.array([False, True, True, True, True, True])
    loss = jax.jit(jxent.softmax_cross_entropy)(logits, labels, where=where)
    expected_row, _ = oracle.softmax_rows(logits[5], 300)
    np.testing.assert_allclose(loss, [0, *[np.nan] * 4, expected_row], rtol=1e-6)


LOWEST = np.finfo(np.float32).min
# Classes masked by the lowest number there is: the sum of two of them is −inf, and their mean is not.
MASKED_BY_LOWEST = np.array([[2, 1, LOWEST, LOWEST, 0]], np.float32)


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", ["ids", "distributions"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("loss", [jxent.softmax_cross_entropy, jxent.poly1_cross_entropy])
def test_a_traced_smoothing_is_the_static_one_where_a_sum_would_overflow(loss, smoothing, kind, dtype):
    # In bfloat16 the lowest float32 is −inf: such classes are none.
    x = jnp.maximum(jnp.asarray(MASKED_BY_LOWEST, dtype), jnp.finfo(dtype).min)
    labels = np.array([0]) if kind == "ids" else np.array([[1, 0, 0, 0, 0]], np.float32)

    def total(x, smoothing):
        return loss(x, labels, label_smoothing=smoothing, reduction="sum")

    static = jax.value_and_grad(total)(x, smoothing)
    traced = jax.jit(jax.value_and_grad(total))(x, jnp.float32(smoothing))
    np.testing.assert_allclose(traced[0], static[0], rtol=1e-6)
    np.testing.assert_allclose(*(np.asarray(g, np.float64) for g in (traced[1], static[1])), rtol=1e-6)
    x = np.asarray(x, np.float64)
    nll = -(x - np.log(np.exp(x).sum()))
    p = np.exp(-nll)
    q = (1 - smoothing) * np.eye(1, 5) + smoothing / 5
    wanted = (q * nll).sum() + (2 * (q * (1 - p)).sum() if loss is jxent.poly1_cross_entropy else 0)
    np.testing.assert_allclose(static[0], wanted, rtol=1e-5)


def test_a_traced_z_loss_of_0_silences_what_overflows():
    x = np.array([[1e30, 0]], np.float32)
    value, gradient = jax.jit(jax.value_and_grad(lambda x, z: jxent.softmax_cross_entropy(x, [0], z_loss=z).sum()))(
        x, 0.0
    )
    assert float(value) == 0
    np.testing.assert_array_equal(gradient, 0)


SILENCED_BY = {
    "class weight": {"class_weight": np.array([1.0, 0, 3])},
    "smoothing": {"label_smoothing": 1.0},
    "sample weight": {"sample_weight": np.array([0.0])},
}


@pytest.mark.parametrize("kind", ["ids", "distributions"])
@pytest.mark.parametrize("options", SILENCED_BY.values(), ids=SILENCED_BY)
def test_a_coefficient_of_0_silences_an_infinite_loss_in_every_gradient(options, kind):
    """The label is on a class that does not exist. A traced coefficient does what a constant does."""
    x = np.array([[1, -np.inf, 2]], np.float32)
    labels = np.array([1]) if kind == "ids" else np.array([[0, 1, 0]], np.float32)
    defaults = {"class_weight": np.ones(3), "label_smoothing": 0.0, "sample_weight": np.ones(1)}
    options = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), defaults | options)
    log_p = x[0, [0, 2]].astype(np.float64) - np.log(np.e + np.e**2)
    wanted = -log_p.mean() if float(options["label_smoothing"]) else 0.0

    def total(x, labels, options):
        return jxent.softmax_cross_entropy(x, labels, reduction="sum", **options)

    inputs = (0, 2) if kind == "ids" else (0, 1, 2)
    value, gradients = jax.jit(jax.value_and_grad(total, inputs))(x, labels, options)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    # The infinity itself is the true slope by what silences it, and by nothing else.
    infinite = [path for path, g in jax.tree_util.tree_leaves_with_path(gradients) if not np.all(np.isfinite(g))]
    silencer = next(name for name, a in defaults.items() if not np.array_equal(options[name], a))
    assert all(silencer in jax.tree_util.keystr(path) for path in infinite)
    assert not any(np.any(np.isnan(g)) for g in jax.tree.leaves(gradients))
