"""What the losses take on TPU and GPU, by the word of the compilers for them; compiled and never run.

Memory beside arguments and results is counted in rows: N float32 numbers, of which a float32 copy of the logits has V.
"""

import pytest

from tests.compilers import CASES, CLASSES, ON_FLOAT32, PLATFORMS, ROWS, WIDTH, Compilers, missing
from tests.test_api import LOSS_NAMES, TORCH_SIGNATURES

GIB = 2**30
LINEAR = "linear_softmax_cross_entropy-ids"
ROWS_ON_TPU = 50
# A GPU shares a long row out among threads that leave a part of each sum for 256 classes; there are up to eight sums.
ROWS_ON_GPU = 40 + 8 * CLASSES // 256
# The plain softmax losses of ids, everywhere.
ROWS_OF_IDS = 15
PLAIN_IDS = {"softmax_cross_entropy-ids", "softmax_focal_loss-ids", "poly1_cross_entropy-ids"}
# One dtype will do for the second TPU, whose compiler is that of the first, and for calls of the functions above them.
# `python -m benchmarks.compilers` compiles all.
PROGRAMS = [
    (platform, case, dtype)
    for platform in PLATFORMS
    for case in CASES
    for dtype in ("bfloat16", "float32")
    if case != LINEAR
    and not (dtype == "float32" and (platform == "TPU v6e" or CASES[case].function.startswith("torch_compat")))
]


@pytest.fixture(scope="session")
def compilers():
    with Compilers() as compilers:
        yield compilers


@pytest.fixture
def compiled(compilers):
    """Compiles for a platform, and skips the test where the extra is not installed."""

    def compiled(platform, *request):
        if package := missing(platform):
            pytest.skip(f"aot extra: {package} is not installed")
        return compilers.compiled(platform, *request)

    return compiled


def in_rows(program):
    assert program.error is None, program.error
    return program.temporaries / (4 * ROWS)


def most_rows(platform, case, dtype):
    if case in PLAIN_IDS:
        return ROWS_OF_IDS
    if platform.startswith("TPU"):
        return ROWS_ON_TPU
    return ROWS_ON_GPU


def test_every_public_loss_is_compiled():
    assert {case.function for case in CASES.values()} == {*LOSS_NAMES, *TORCH_SIGNATURES}


@pytest.mark.parametrize(("platform", "case", "dtype"), PROGRAMS)
def test_losses_take_memory_for_rows_only(compiled, platform, case, dtype):
    taken = in_rows(compiled(platform, case, "jxent", dtype))
    assert taken <= most_rows(platform, case, dtype), f"{taken:.2f} rows"


@pytest.mark.parametrize("platform", ["TPU v5e", "H200"])
def test_float16_is_not_copied_as_it_is_on_the_cpu(compiled, platform):
    taken = in_rows(compiled(platform, "softmax_cross_entropy-ids", "jxent", "float16"))
    assert taken <= ROWS_OF_IDS, f"{taken:.2f} rows"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_float32_copy_would_be_seen(compiled, platform):
    """Optax on converted logits, which are gathered from too, makes one."""
    taken = in_rows(compiled(platform, "softmax_cross_entropy-ids", ON_FLOAT32, "bfloat16"))
    assert taken >= CLASSES > 10 * max(ROWS_ON_TPU, ROWS_ON_GPU), f"{taken:.2f} rows"


@pytest.mark.parametrize("platform", PLATFORMS)
def test_linear_memory_of_a_large_language_model(compiled, platform):
    program = compiled(platform, LINEAR, "jxent", "bfloat16")
    assert program.error is None, program.error
    # The gradients in float32, then some chunks of logits.
    assert program.temporaries <= 3.6 * GIB, f"{program.temporaries / GIB:.3f} GiB"
    assert program.temporaries >= 4 * WIDTH * CLASSES


@pytest.mark.parametrize("platform", ["TPU v5e", "H200"])
def test_linear_memory_of_materialised_logits(compiled, platform):
    """What it saves: 23.5 GiB, and a v5e has 16."""
    program = compiled(platform, LINEAR, "optax on logits", "bfloat16")
    if platform == "TPU v5e":
        assert "exceeds available HBM" in program.error
    else:
        assert 23 * GIB <= program.temporaries <= 24 * GIB


@pytest.mark.parametrize("platform", ["TPU v5e", "H200"])
@pytest.mark.parametrize("split", ["classes", "both"])
def test_devices_that_share_the_classes_send_rows_only(compiled, platform, split):
    program = compiled(platform, "softmax_cross_entropy-ids", "jxent", "bfloat16", split)
    assert {sent["kind"] for sent in program.sent} == {"all-reduce"}
    rows = ROWS if split == "classes" else ROWS // 2
    # The maximum, Σ exp(d) and the label's logit; and the mean over the rows.
    assert sum(size for sent in program.sent for size in sent["sizes"] if size > 1) == 3 * rows
    assert in_rows(program) <= ROWS_OF_IDS


@pytest.mark.parametrize("platform", ["TPU v5e", "H200"])
@pytest.mark.parametrize("split", ["rows", "classes", "both"])
def test_linear_on_auto_axes_adds_the_gradient_of_the_kernel_up_once(compiled, platform, split):
    axes, _ = CASES[LINEAR].splits[split]
    program = compiled(platform, LINEAR, "jxent", "bfloat16", split)
    assert {sent["kind"] for sent in program.sent} == {"all-reduce"}  # nothing is gathered
    of_kernel = WIDTH * CLASSES // axes.get("classes", 1)
    once = [size for sent in program.sent if not sent["in_loop"] for size in sent["sizes"] if size > 1]
    assert once == ([of_kernel] if "data" in axes else [])
    # For a chunk: three numbers a row, and the gradient of its hidden states.
    sent_each_chunk = sum(size for sent in program.sent if sent["in_loop"] for size in sent["sizes"])
    chunk_rows, rest = divmod(sent_each_chunk, 3 + WIDTH)
    assert rest == 0
    assert chunk_rows in ({1024, 512} if "classes" in axes else {0})
