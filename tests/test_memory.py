"""What a loss takes beside its arguments, by the compiler's own account and by what reverse mode keeps.

Compiled for the CPU and never run. Everything is counted in rows: N float32 numbers.
"""

import math
import re
import resource

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jxent
from tests import page_faults
from tests.losses import LOSSES, VARIANTS, by_name

# Barriers keep some row-sized arrays apart that XLA would otherwise have fused away.
EXTRA_ROWS = 5
# The CPU sums so few classes fastest from an array of them.
FEW_CLASSES = 8
# The CPU sums rows longer than a window in windows, and holds a number for each window of a row.
WINDOW = 8192
ROWS = 20
# A number for each class, whatever the number of rows.
ONCE = 1
# Weighing masked rows keeps its operands, before and after the mask, for the gradient of sample_weight.
ROWS_OF_WEIGHTS = 6

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
SHAPES = [(65536, 7), (8192, 100), (4096, 1000), (2048, 32768), (1024, 50257), (512, 128256)]

# Two dtypes, two kinds of labels and five options: every pair of settings in eight runs (the orthogonal array L8).
SETTINGS = ("bfloat16", "distributions", "class_weight", "where", "label_smoothing", "z_loss", "sample_weight")
PAIRWISE = [
    tuple(name for name, mask in zip(SETTINGS, range(1, 8), strict=True) if (run & mask).bit_count() % 2)
    for run in range(8)
]


def windows(num_classes):
    return 0 if num_classes <= WINDOW else -(-num_classes // WINDOW)


def temporaries(f, *shapes):
    """In bytes."""
    return jax.jit(f).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def struct(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype)


def optax_mean(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def jxent_mean(logits, labels):
    return jxent.softmax_cross_entropy(logits, labels, reduction="mean")


@DTYPES
@pytest.mark.parametrize("transform", [lambda f: f, jax.value_and_grad], ids=["forward", "gradient"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_softmax_cross_entropy_ids_take_no_more_memory_than_optax(shape, transform, dtype):
    n, v = shape
    arguments = struct(shape, dtype), struct((n,), jnp.int32)
    ours, theirs = (temporaries(transform(f), *arguments) for f in (jxent_mean, optax_mean))
    extra = EXTRA_ROWS + windows(v) + ONCE * v / n + (v if v <= FEW_CLASSES else 0)
    assert ours <= theirs + extra * 4 * n, f"{ours / 4 / n:.2f} rows, optax {theirs / 4 / n:.2f}"


def assert_takes_rows(shape, dtype, kind, options, return_aux=False):
    n, v = shape

    def mean(logits, labels, class_weight, where, sample_weight):
        values = {
            "class_weight": class_weight,
            "where": where,
            "label_smoothing": 0.1,
            "z_loss": 1e-4,
            "sample_weight": sample_weight,
        }
        chosen = {name: value for name, value in values.items() if name in options}
        return jxent.softmax_cross_entropy(logits, labels, reduction="mean", return_aux=return_aux, **chosen)

    f32 = jnp.float32
    labels = struct((n,), jnp.int32) if kind == "ids" else struct(shape, dtype)
    arguments = struct(shape, dtype), labels, struct((v,), f32), struct((n,), jnp.bool_), struct((n,), f32)
    # There are up to eight row sums, and jaxlib 0.10 holds the windows of all of them at once.
    limit = (ROWS + 8 * windows(v)) * 4 * n + ONCE * 4 * v
    assert limit < 0.05 * 4 * n * v
    forward = temporaries(mean, *arguments)
    gradient = temporaries(jax.value_and_grad(mean, has_aux=return_aux), *arguments)
    assert max(forward, gradient) <= limit, f"{forward / 4 / n:.2f} and {gradient / 4 / n:.2f} rows"


@pytest.mark.parametrize("settings", PAIRWISE, ids=lambda settings: "-".join(settings) or "plain")
def test_softmax_cross_entropy_takes_memory_for_rows_only(settings):
    dtype = jnp.bfloat16 if "bfloat16" in settings else jnp.float32
    kind = "distributions" if "distributions" in settings else "ids"
    assert_takes_rows((4096, 1000), dtype, kind, settings)


@DTYPES
@pytest.mark.parametrize("kind", ["ids", "distributions"])
@pytest.mark.parametrize("options", page_faults.OPTIONS)
@pytest.mark.parametrize("num_classes", [1000, 32769, 50257])
def test_softmax_cross_entropy_takes_memory_for_rows_only_with_many_classes(num_classes, options, kind, dtype):
    assert_takes_rows((512, num_classes), dtype, kind, page_faults.OPTIONS[options])


@DTYPES
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("num_classes", [16384, 50257, 128256])
def test_rows_cut_around_their_maximum_take_memory_near_a_square_root(num_classes, dtype):
    """For each row the maxima and sums of the windows of near √V classes that it is cut in, and the classes of one."""
    n = 256
    logits, labels = struct((n, num_classes), dtype), struct((n,), jnp.int32)
    taken = temporaries(jxent_mean, logits, labels)
    assert math.isqrt(num_classes) * 4 * n < taken <= (ROWS + 3 * math.isqrt(num_classes)) * 4 * n


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", ["ids", "distributions"])
@pytest.mark.parametrize("options", page_faults.OPTIONS)
def test_softmax_cross_entropy_takes_memory_for_rows_only_with_aux(options, kind, dtype):
    assert_takes_rows((512, 1000), dtype, kind, page_faults.OPTIONS[options], return_aux=True)


@pytest.fixture(scope="module")
def faults():
    return page_faults.measured()


@DTYPES
@pytest.mark.parametrize("kind", ["ids", "distributions"])
@pytest.mark.parametrize("options", page_faults.OPTIONS)
def test_softmax_cross_entropy_takes_no_memory_that_the_compiler_does_not_tell_of(faults, options, kind, dtype):
    """XLA:CPU writes long rows out in memory of its own that `memory_analysis()` leaves out. Run, to see it."""
    size = page_faults.N * page_faults.V
    limit = 0.1 * 4 * size / resource.getpagesize()
    counted = faults[f"{options}-{kind}-{dtype.__name__}"]
    assert counted["forward"] <= limit
    gradient = size * jnp.dtype(dtype).itemsize / resource.getpagesize()
    assert 0.9 * gradient <= counted["grad"] <= gradient + limit


def test_page_faults_tell_of_hidden_memory(faults):
    assert faults["hidden"] > 0.9 * 4 * page_faults.N * page_faults.V / resource.getpagesize()


@DTYPES
@pytest.mark.parametrize("kind", ["ids", "distributions"])
def test_softmax_cross_entropy_takes_memory_for_rows_only_along_a_middle_axis(kind, dtype):
    """Segmentation: optax has to move the classes last, which writes all of the logits out."""
    shape, rows = (8, 21, 64, 64), (8, 64, 64)
    n = np.prod(rows)
    arguments = struct(shape, dtype), struct(rows, jnp.int32) if kind == "ids" else struct(shape, dtype)

    def ours(logits, labels):
        return jxent.softmax_cross_entropy(logits, labels, axis=1, reduction="mean")

    def theirs(logits, labels):
        logits = jnp.moveaxis(logits, 1, -1)
        if kind == "ids":
            return optax_mean(logits, labels)
        return optax.softmax_cross_entropy(logits, jnp.moveaxis(labels, 1, -1)).mean()

    for transform in (lambda f: f, jax.value_and_grad):
        taken, by_optax = (temporaries(transform(f), *arguments) / (4 * n) for f in (ours, theirs))
        assert taken <= 10, f"{taken:.2f} rows"
        # In bfloat16 the moved copy alone is 21 halves of a row.
        assert taken < by_optax, f"{taken:.2f} rows, optax {by_optax:.2f}"


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("z_loss", [None, 1e-4])
@pytest.mark.parametrize("shape", [(4096, 40), (512, 1000), (64, 8192)], ids=str)
def test_gradient_by_ids_keeps_the_exp_of_its_row_sums(shape, z_loss, masked):
    """In its own memory, where the dtype is that of the sums: each exp is computed once."""
    options = {} if z_loss is None else {"z_loss": z_loss}

    def mean(logits, labels, where):
        mask = where if masked else None
        return jxent.softmax_cross_entropy(logits, labels, where=mask, reduction="mean", **options)

    n, v = shape
    arguments = struct(shape, jnp.float32), struct((n,), jnp.int32), struct((n,), jnp.bool_)
    compiled = jax.jit(jax.value_and_grad(mean)).lower(*arguments).compile()
    assert compiled.cost_analysis()["transcendentals"] <= n * (v + 6)
    assert compiled.memory_analysis().temp_size_in_bytes <= (ROWS + windows(v)) * 4 * n + ONCE * 4 * v


@DTYPES
@pytest.mark.parametrize(
    "loss", [jxent.sigmoid_binary_cross_entropy, jxent.sigmoid_focal_loss], ids=lambda f: f.__name__
)
def test_binary_losses_take_one_array_at_most(loss, dtype):
    """XLA:CPU has no log1p in its sums, so the terms are written out; but not what they are made of."""
    shape = (2048, 1000)
    arguments = struct(shape, dtype), struct(shape, dtype)

    def mean(logits, labels):
        return loss(logits, labels, reduction="mean")

    taken = max(temporaries(transform(mean), *arguments) for transform in (lambda f: f, jax.value_and_grad))
    assert taken <= 1.05 * 4 * np.prod(shape)


@DTYPES
@pytest.mark.parametrize("options", ["plain", "class_weight-where", "label_smoothing-class_weight-where-sample_weight"])
@pytest.mark.parametrize("kind", ["ids", "distributions"])
@pytest.mark.parametrize(
    "loss", [jxent.cross_entropy_from_probs, jxent.cross_entropy_from_log_probs], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("num_classes", [1000, 50304])
def test_losses_of_probabilities_take_memory_for_rows_only(num_classes, loss, kind, options, dtype):
    n, v, f32 = 512, num_classes, jnp.float32

    def mean(scores, labels, class_weight, where, sample_weight):
        values = {"class_weight": class_weight, "where": where, "sample_weight": sample_weight, "label_smoothing": 0.1}
        chosen = {name: value for name, value in values.items() if name in options}
        return loss(scores, labels, reduction="mean", **chosen)

    labels = struct((n,), jnp.int32) if kind == "ids" else struct((n, v), dtype)
    arguments = struct((n, v), dtype), labels, struct((v,), f32), struct((n,), jnp.bool_), struct((n,), f32)
    limit = (ROWS + 8 * windows(v)) * 4 * n + ONCE * 4 * v
    assert temporaries(mean, *arguments) <= limit
    assert temporaries(jax.grad(mean), *arguments) <= limit


@DTYPES
@pytest.mark.parametrize(
    "loss", [jxent.cross_entropy_from_probs, jxent.cross_entropy_from_log_probs], ids=lambda f: f.__name__
)
def test_ids_of_probabilities_read_as_much_as_a_gather(loss, dtype):
    """Nothing is computed for the other classes."""
    arguments = struct((4096, 32768), dtype), struct((4096,), jnp.int32)
    program = jax.jit(loss).lower(*arguments).compile().as_text().partition("ENTRY")[2]
    made = [
        line for line in program.splitlines() if re.search(r"= \w+\[4096,32768\]", line) and "parameter(" not in line
    ]
    assert made == []


@DTYPES
@pytest.mark.parametrize(
    ("loss", "arrays"), [(jxent.sigmoid_binary_cross_entropy, 4), (jxent.binary_cross_entropy_from_probs, 2)]
)
def test_forward_mode_of_binary_losses_takes_few_arrays(loss, arrays, dtype):
    def tangent(scores, labels):
        return jax.jvp(lambda x: loss(x, labels, reduction="mean"), (scores,), (scores,))

    assert temporaries(tangent, *[struct((2048, 1000), dtype)] * 2) <= 1.05 * arrays * 4 * 2048 * 1000


def kept_for_reverse_mode(f, *arguments):
    """f's value, and what its pullback closes over."""
    value, pullback = jax.vjp(f, *arguments)
    return value, [np.asarray(leaf) for leaf in jax.tree.leaves(pullback)]


def split_by_origin(kept, size, arguments):
    """Arrays of `size` elements and more that are none of the arguments (same dtype, same numbers); and smaller ones."""
    known = [np.asarray(a) for a in arguments]
    large = [leaf for leaf in kept if leaf.size >= size]
    new = [leaf for leaf in large if not any(leaf.dtype == a.dtype and np.array_equal(leaf, a) for a in known)]
    return new, [leaf for leaf in kept if leaf.size < size]


@DTYPES
@pytest.mark.parametrize("loss", **by_name(LOSSES))
def test_every_loss_keeps_its_arguments_for_reverse_mode(rng, loss, dtype):
    """The gradients of scores and labels need no softmax, no float32 copy and no one-hot labels."""
    scores, labels = (jnp.asarray(a) for a in loss.inputs(rng, (257,), dtype))

    def mean(scores, labels=labels):
        return loss.call(scores, labels, label_smoothing=0.1, reduction="mean")

    arguments = (scores,) if loss.has_ids else (scores, labels)
    value, kept = kept_for_reverse_mode(mean, *arguments)
    new, small = split_by_origin(kept, scores.size, arguments)
    assert [(leaf.shape, leaf.dtype) for leaf in new] == []
    rows = np.prod(loss.rows(np.asarray(scores)))
    assert sum(leaf.size for leaf in small) <= (8 if loss.is_binary else ROWS) * rows
    expected, weight = loss.oracle(scores, labels, label_smoothing=0.1)
    np.testing.assert_allclose(float(value), expected.sum() / weight.sum(), rtol=1e-5)


@DTYPES
@pytest.mark.parametrize("loss", **by_name(LOSSES))
def test_every_loss_keeps_its_arguments_and_rows_for_reverse_mode_with_weights_and_mask(rng, loss, dtype):
    """The gradient of sample weights too. The rows of a binary loss are its elements, so there a few rows are as large."""
    scores, labels = (jnp.asarray(a) for a in loss.inputs(rng, (257,), dtype))
    rows = loss.rows(np.asarray(scores))
    where = jnp.asarray(rng.uniform(size=rows) < 0.7)
    sample_weight = jnp.asarray(rng.uniform(0.5, 2, rows), jnp.float32)

    def mean(scores, sample_weight, labels=labels):
        options = {"sample_weight": sample_weight, "where": where, "label_smoothing": 0.1, "reduction": "mean"}
        return loss.call(scores, labels, **options)

    arguments = (scores, sample_weight) if loss.has_ids else (scores, sample_weight, labels)
    _, kept = kept_for_reverse_mode(mean, *arguments)
    new, small = split_by_origin(kept, scores.size, (*arguments, where))
    assert len(new) <= (ROWS_OF_WEIGHTS if loss.is_binary else 0), [(leaf.shape, leaf.dtype) for leaf in new]
    assert sum(leaf.size for leaf in small) <= 24 * np.prod(rows)


@DTYPES
def test_softmax_focal_loss_of_distributions_takes_memory_for_rows_only(dtype):
    n, v = 4096, 1000

    def mean(logits, labels):
        return jxent.softmax_focal_loss(logits, labels, reduction="mean")

    taken = temporaries(jax.value_and_grad(mean), struct((n, v), dtype), struct((n, v), dtype))
    assert taken <= ROWS * 4 * n, f"{taken / 4 / n:.2f} rows"


@pytest.mark.parametrize("loss", **by_name([loss for loss in VARIANTS if not loss.has_ids]))
def test_variants_keep_their_arguments_for_reverse_mode(rng, loss):
    scores, labels = (jnp.asarray(a) for a in loss.inputs(rng, (257,), jnp.bfloat16))
    _, kept = kept_for_reverse_mode(lambda x, y: loss.call(x, y, reduction="mean"), scores, labels)
    new, small = split_by_origin(kept, scores.size, (scores, labels))
    assert [(leaf.shape, leaf.dtype) for leaf in new] == []
    assert sum(leaf.size for leaf in small) <= ROWS * np.prod(loss.rows(np.asarray(scores)))
