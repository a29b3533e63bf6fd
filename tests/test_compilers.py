"""What the losses take on TPU and GPU, by the word of the compilers for them; compiled and never run.

Memory beside arguments and results is counted in rows: N float32 numbers, of which a float32 copy of the logits has V.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

import jxent
from benchmarks.losses import THREE_PRODUCTS
from jxent import torch_compat
from tests.losses import LOSSES, VARIANTS
from tests.test_api import LOSS_NAMES, TORCH_SIGNATURES
from tools.aot import PLATFORMS, Program

pytestmark = pytest.mark.slow
GIB = 2**30
ROWS, CLASSES = 8192, 128256
LINEAR_ROWS, WIDTH = 32768, 4096
IDS = "softmax_cross_entropy-ids"
LINEAR = "linear_softmax_cross_entropy-ids"
LINEAR_MASKED, LINEAR_LEAN = f"{LINEAR}, masked", f"{LINEAR}, chunks of 512"
SPARSE, LINEAR_DISTILLATION = "softmax_cross_entropy-64 entries", "linear_softmax_distillation"
LOG_PROBS, LINEAR_LOG_PROBS, LINEAR_LOSS = "softmax_log_probs", "linear_softmax_log_probs", "linear_softmax_loss"
ROWS_ON_TPU = 50
# A GPU shares a long row out among threads that leave a part of each sum for 256 classes; there are up to eight sums.
ROWS_ON_GPU = 40 + 8 * CLASSES // 256
# The plain softmax losses of ids, on a TPU.
ROWS_OF_IDS = 15
PLAIN_IDS = {IDS, LOG_PROBS, "softmax_focal_loss-ids", "poly1_cross_entropy-ids"}


def ppo(log_prob, entropy, old_log_prob, advantage):
    ratio = jnp.exp(log_prob - old_log_prob)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage) - 0.01 * entropy


def log_probs_and_entropy(function, *arguments):
    log_prob, entropy = function(*arguments, return_entropy=True)
    return jnp.mean(log_prob) + jnp.mean(entropy)


@dataclass(frozen=True)
class Case:
    """A call that gives one number, of which value and gradient are compiled.

    Attributes:
        function: the name of the public loss, with its module's if that is not `jxent`.
        call: the loss.
        shapes: of the arguments, each with a dtype; None stands for the dtype of the case.
        wrt: the arguments that are differentiated.
        splits: ways of splitting the arguments over the four devices → the mesh's axes, and their PartitionSpecs.
    """

    function: str
    call: Callable[..., Any]
    shapes: tuple[tuple[tuple[int, ...], Any], ...]
    wrt: tuple[int, ...] = (0,)
    splits: dict[str, tuple[dict[str, int], tuple[P, ...]]] | None = None


SCORES = ((ROWS, CLASSES), None)
LABELS = {"ids": ((ROWS,), jnp.int32), "soft": SCORES, "hard": ((ROWS, CLASSES), jnp.bool_)}
LINEAR_SHAPES = (((LINEAR_ROWS, WIDTH), None), ((WIDTH, CLASSES), None), ((LINEAR_ROWS,), jnp.int32))
DATA, VOCAB, BOTH = {"data": 4}, {"classes": 4}, {"data": 2, "classes": 2}
ROW, COLUMN = P("data"), P(None, "classes")


def mean_of(loss):
    labels = LABELS[loss.name.rsplit("-", 1)[1]]
    return Case(loss.call.__name__, partial(loss.call, reduction="mean"), (SCORES, labels))


def of_torch(name, labels):
    return Case(f"torch_compat.{name}", getattr(torch_compat, name), (SCORES, labels))


def with_options(logits, labels, class_weight, where):
    options = {"class_weight": class_weight, "where": where, "label_smoothing": 0.1}
    return jxent.softmax_cross_entropy(logits, labels, reduction="mean", **options)


def optax_on_float32(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), labels).mean()


def optax_on_materialised(hidden, kernel, labels):
    return optax_on_float32(hidden @ kernel, labels)


CASES = {loss.name: mean_of(loss) for loss in LOSSES + VARIANTS} | {
    IDS: Case(
        "softmax_cross_entropy",
        partial(jxent.softmax_cross_entropy, reduction="mean"),
        (SCORES, LABELS["ids"]),
        splits={"classes": (VOCAB, (COLUMN, P())), "both": (BOTH, (P("data", "classes"), ROW))},
    ),
    "softmax_cross_entropy-weights, smoothing and mask": Case(
        "softmax_cross_entropy",
        with_options,
        (SCORES, LABELS["ids"], ((CLASSES,), jnp.float32), ((ROWS,), jnp.bool_)),
    ),
    "torch_compat.cross_entropy": of_torch("cross_entropy", LABELS["ids"]),
    "torch_compat.nll_loss": of_torch("nll_loss", LABELS["ids"]),
    "torch_compat.binary_cross_entropy": of_torch("binary_cross_entropy", SCORES),
    "torch_compat.binary_cross_entropy_with_logits": of_torch("binary_cross_entropy_with_logits", SCORES),
    LINEAR: Case(
        "linear_softmax_cross_entropy",
        partial(jxent.linear_softmax_cross_entropy, reduction="mean"),
        LINEAR_SHAPES,
        wrt=(0, 1),
        splits={
            "rows": (DATA, (ROW, P(), ROW)),
            "classes": (VOCAB, (P(), COLUMN, P())),
            "both": (BOTH, (ROW, COLUMN, ROW)),
        },
    ),
    LINEAR_MASKED: Case(
        "linear_softmax_cross_entropy",
        lambda hidden, kernel, labels, where: jxent.linear_softmax_cross_entropy(
            hidden, kernel, labels, where=where, reduction="mean"
        ),
        (*LINEAR_SHAPES, ((LINEAR_ROWS,), jnp.bool_)),
        wrt=(0, 1),
    ),
    LOG_PROBS: Case(LOG_PROBS, partial(log_probs_and_entropy, jxent.softmax_log_probs), (SCORES, LABELS["ids"])),
    LINEAR_LOG_PROBS: Case(
        LINEAR_LOG_PROBS, partial(log_probs_and_entropy, jxent.linear_softmax_log_probs), LINEAR_SHAPES, wrt=(0, 1)
    ),
    LINEAR_LOSS: Case(
        LINEAR_LOSS,
        partial(jxent.linear_softmax_loss, ppo),
        (*LINEAR_SHAPES, *[((LINEAR_ROWS,), jnp.float32)] * 2),
        wrt=(0, 1),
    ),
    SPARSE: Case(
        "softmax_cross_entropy",
        lambda logits, ids, weights: jxent.softmax_cross_entropy(
            logits, jxent.SparseLabels(ids, weights), reduction="mean"
        ),
        (SCORES, ((ROWS, 64), jnp.int32), ((ROWS, 64), jnp.float32)),
    ),
    "softmax_distillation": Case(
        "softmax_distillation",
        partial(jxent.softmax_distillation, temperature=2.0, reduction="mean"),
        (SCORES, SCORES),
    ),
    LINEAR_DISTILLATION: Case(
        LINEAR_DISTILLATION,
        partial(jxent.linear_softmax_distillation, reduction="mean"),
        (*LINEAR_SHAPES[:2], *LINEAR_SHAPES[:2]),
        wrt=(0, 1),
    ),
    LINEAR_LEAN: Case(
        "linear_softmax_cross_entropy",
        partial(jxent.linear_softmax_cross_entropy, reduction="mean", chunk_size=512),
        LINEAR_SHAPES,
        wrt=(0, 1),
    ),
}
PEERS = {
    "optax on float32": Case("", optax_on_float32, (SCORES, LABELS["ids"])),
    "optax on materialised logits": Case("", optax_on_materialised, LINEAR_SHAPES, wrt=(0, 1)),
}
# The compiler for the second TPU is that of the first, and in float32 nothing is converted: one loss is enough there.
# `benchmarks/results/compilers.md` has the others too.
ONE_IS_ENOUGH = {("TPU v6e", "bfloat16"), ("TPU v5e", "float32"), ("H200", "float32")}
PROGRAMS = [
    (platform, case, "bfloat16")
    for platform in ("TPU v5e", "H200")
    for case in CASES
    if not (case.startswith("linear") or case == SPARSE)
    # Losses that are another one and a step on its rows, or in other words, are enough on one device.
    and not (platform == "H200" and (case in {loss.name for loss in VARIANTS} or case.startswith("torch_compat")))
] + [(platform, "softmax_cross_entropy-soft", dtype) for platform, dtype in sorted(ONE_IS_ENOUGH)]


def program(name, dtype, split):
    """Value and gradient of a case, in the process that compiles."""
    case = (CASES | PEERS)[name]
    axes, specs = case.splits[split] if split else ({"all": 1}, None)
    arguments = [(shape, fixed or jnp.dtype(dtype)) for shape, fixed in case.shapes]
    return Program(jax.value_and_grad(case.call, case.wrt), arguments, axes, specs)


@pytest.fixture
def compiled(compile_for):
    def compiled(platform, name, dtype, split=None):
        return compile_for(platform, f"{__name__}:program", name=name, dtype=dtype, split=split)

    return compiled


def in_rows(program):
    assert program.error is None, program.error
    return program.temporaries / (4 * ROWS)


def most_rows(platform, case, dtype):
    if not platform.startswith("TPU"):
        # For two sums of a divergence of bfloat16 logits, XLA for GPU stores the teacher's softmax in float32.
        return 1.01 * CLASSES if (case, dtype) == ("softmax_distillation", "bfloat16") else ROWS_ON_GPU
    return ROWS_OF_IDS if case in PLAIN_IDS else ROWS_ON_TPU


def test_every_public_loss_is_compiled():
    assert {case.function for case in CASES.values()} == {*LOSS_NAMES, *TORCH_SIGNATURES}


@pytest.mark.parametrize(("platform", "case", "dtype"), PROGRAMS)
def test_losses_take_memory_for_rows_only(compiled, platform, case, dtype):
    taken = in_rows(compiled(platform, case, dtype))
    assert taken <= most_rows(platform, case, dtype), f"{taken:.2f} rows"


@pytest.mark.parametrize("platform", ["TPU v5e", "H200"])
def test_float16_is_not_copied_as_it_is_on_the_cpu(compiled, platform):
    taken = in_rows(compiled(platform, IDS, "float16"))
    assert taken <= most_rows(platform, IDS, "float16"), f"{taken:.2f} rows"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_float32_copy_would_be_seen(compiled, platform):
    """Optax on converted logits, which are gathered from too, makes one."""
    taken = in_rows(compiled(platform, "optax on float32", "bfloat16"))
    assert taken >= CLASSES > 10 * max(ROWS_ON_TPU, ROWS_ON_GPU), f"{taken:.2f} rows"


LINEAR_GIB = {
    LINEAR: 4.6,
    LINEAR_MASKED: 4.6,
    LINEAR_LEAN: 3.3,
    LINEAR_LOSS: 4.6,
    LINEAR_LOG_PROBS: 4.6,
    LINEAR_DISTILLATION: 5.6,
}


@pytest.mark.parametrize(
    ("platform", "case", "most"),
    [
        (platform, case, most)
        for platform in PLATFORMS
        for case, most in LINEAR_GIB.items()
        if platform != "TPU v6e" or case == LINEAR_LEAN
    ],
)
def test_linear_memory_of_a_large_language_model(compiled, platform, case, most):
    program = compiled(platform, case, "bfloat16")
    assert program.error is None, program.error
    # The gradients in float32, then a chunk of logits and their gradient.
    assert program.temporaries <= most * GIB, f"{program.temporaries / GIB:.3f} GiB"
    assert program.temporaries >= 4 * WIDTH * CLASSES


# At the first vocabulary a form with more states in one reduction, or in another order, fell off a cliff on a v5e.
@pytest.mark.parametrize("num_classes", [151936, 50257])
@pytest.mark.parametrize(
    ("loss", "mode", "most"),
    [
        ("ids", "forward", {"TPU v5e": 15, "TPU v6e": 9.5}),
        ("distributions", "gradient", {"TPU v5e": 43, "TPU v6e": 26}),
    ],
)
@pytest.mark.parametrize("platform", ["TPU v5e", "TPU v6e"])
def test_a_row_is_planned_to_be_read_once_and_once_more_for_its_gradient(
    compile_for, platform, num_classes, loss, mode, most
):
    """Cycles for 1000 logits; optax on float32 logits takes 28 and 46 for ids, 58 and 80 for distributions on a v5e."""
    case = {"loss": loss, "shape": [2048, num_classes], "dtype": "bfloat16", "mode": mode, "who": "jxent"}
    program = compile_for(platform, "benchmarks.plans.cases:program", **case)
    cycles = program.planned / (2048 * num_classes / 1000)
    assert cycles <= most[platform], f"{cycles:.1f}"


def heads(who, *shape):
    return {"loss": "fused", "shape": list(shape), "dtype": "bfloat16", "mode": "gradient", "who": who}


@pytest.mark.parametrize(
    ("platform", "shape", "most"),
    [
        ("TPU v5e", (8192, 4096, 128256), 1.55),
        ("TPU v6e", (8192, 4096, 128256), 1.5),
        ("TPU v6e", (16384, 2560, 151936), 1.9),
        ("TPU v6e", (8192, 2048, 50257), 2.4),
    ],
)
def test_linear_is_planned_near_its_three_matmuls(compile_for, platform, shape, most):
    ours, bare = (
        compile_for(platform, "benchmarks.plans.cases:program", **heads(who, *shape))
        for who in ("jxent", THREE_PRODUCTS)
    )
    assert ours.planned <= most * bare.planned, f"{ours.planned / bare.planned:.2f}"


@pytest.mark.parametrize(
    ("platform", "case", "beside"),
    [("TPU v5e", LOG_PROBS, IDS), ("TPU v6e", LOG_PROBS, IDS), ("TPU v5e", LINEAR_LOSS, LINEAR)],
)
def test_entropy_and_any_row_loss_are_planned_at_the_cost_of_cross_entropy(compiled, platform, case, beside):
    ours, cross_entropy = (compiled(platform, name, "bfloat16") for name in (case, beside))
    assert ours.planned <= 1.02 * cross_entropy.planned, f"{ours.planned / cross_entropy.planned:.3f}"


def test_sparse_labels_are_planned_near_the_cost_of_ids(compiled):
    """But for the scatter of the gradient, which has no estimate, and for which the compiler takes a float32 array."""
    sparse, ids = (compiled("TPU v5e", name, "bfloat16") for name in (SPARSE, IDS))
    assert "scatter" in sparse.missing
    assert sparse.planned <= 1.1 * ids.planned, f"{sparse.planned / ids.planned:.3f}"
    assert in_rows(sparse) <= 1.02 * CLASSES, f"{in_rows(sparse):.2f} rows"


@pytest.mark.parametrize(("rows", "most"), [(4096, 15.0), (8192, 47.0)])
def test_linear_moves_the_gradient_of_the_kernel_no_more_than_once_a_chunk(compile_for, rows, most):
    """One chunk of 4096 rows moves 15 GB; another of them, 31 more: the kernel twice, its gradient in float32 twice."""
    program = compile_for("H200", "benchmarks.plans.cases:program", **heads("jxent", rows, 4096, CLASSES))
    assert program.planned <= most * 1e9, f"{program.planned / 1e9:.1f} GB"


@pytest.mark.parametrize("platform", ["TPU v5e", "H200"])
def test_linear_memory_of_materialised_logits(compiled, platform):
    """What it saves: 23.5 GiB, and a v5e has 16."""
    program = compiled(platform, "optax on materialised logits", "bfloat16")
    if platform == "TPU v5e":
        assert "exceeds available HBM" in program.error
    else:
        assert 23 * GIB <= program.temporaries <= 24 * GIB


def numbers_sent(program, in_loop=False):
    """Bytes by kind of collective, leaving out single numbers."""
    sent = Counter()
    for each in program.sent:
        if each["in_loop"] == in_loop:
            sent[each["kind"]] += sum(size for size in each["sizes"] if size > 1)
    return {kind: size for kind, size in sent.items() if size}


@pytest.mark.parametrize("platform", ["TPU v5e", "H200"])
@pytest.mark.parametrize("split", ["classes", "both"])
def test_devices_that_share_the_classes_send_rows_only(compiled, platform, split):
    program = compiled(platform, IDS, "bfloat16", split)
    rows, devices = (ROWS, 4) if split == "classes" else (ROWS // 2, 2)
    # The maximum and u of each device's part, which all of them merge; the label's logit; and the mean over the rows.
    assert numbers_sent(program) == {"all-gather": 2 * devices * rows, "all-reduce": rows}
    assert in_rows(program) <= most_rows(platform, IDS, "bfloat16")


@pytest.mark.parametrize(
    ("platform", "split"), [("TPU v5e", "rows"), ("TPU v5e", "classes"), ("TPU v5e", "both"), ("H200", "both")]
)
def test_linear_on_auto_axes_adds_the_gradient_of_the_kernel_up_once(compiled, platform, split):
    axes, _ = CASES[LINEAR].splits[split]
    program = compiled(platform, LINEAR, "bfloat16", split)
    of_kernel = WIDTH * CLASSES // axes.get("classes", 1)
    assert numbers_sent(program) == ({"all-reduce": of_kernel} if "data" in axes else {})
    # For a chunk: the label's logit and the gradient of its hidden states; and the maximum and u of each device's part.
    in_loop = numbers_sent(program, in_loop=True)
    chunk_rows, rest = divmod(in_loop.get("all-reduce", 0), 1 + WIDTH)
    assert rest == 0
    # Four devices take four times the rows of one.
    allowed = {4 * 2048, 2 * 2048} if platform.startswith("TPU") else {4 * 4096, 2 * 4096}
    assert chunk_rows in (allowed if "classes" in axes else {0})
    assert in_loop.get("all-gather", 0) == 2 * axes.get("classes", 1) * chunk_rows
