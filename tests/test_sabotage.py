"""Breaks copies of the package on purpose, one line each: the tests named beside the break must fail on it."""

import multiprocessing
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


class Sabotage(NamedTuple):
    """`old` → `new`, once, in `file`; then `pytest tests` with `-k select` must fail."""

    file: str
    old: str
    new: str
    tests: str
    select: str


STATE, RULE, ON_CPU = "_core/rows/state.py", "_core/rows/rule.py", "_core/rows/cpu.py"
LOSSES, TARGETS = "_core/rows/losses.py", "_core/targets.py"
OF_STATE = "tests/_core/rows/test_state.py"
SOFTMAX, VOCAB_AXIS = "tests/test_softmax.py", "tests/_core/test_shards.py"
LINEAR, PRODUCTS, CHUNKS = (f"_core/linear/{room}.py" for room in ("rule", "products", "chunks"))
FUSED, FUSED_ON_MESHES = "tests/test_linear.py", "tests/_core/linear/test_meshes.py"
FUSED_MASKS = "tests/_core/linear/test_passes.py"
OF_DISTILLATION = "tests/test_distillation.py"
OF_LOG_PROBS = "tests/test_log_probs.py"
PROBABILITIES, PROBS = "_core/rows/probabilities.py", "tests/test_probs.py"
SABOTAGES = {
    "mask dropped from the value": Sabotage(
        RULE,
        "jnp.where(where, field, 0), rows)",
        "field, rows)",
        SOFTMAX,
        "masked_rows_are_exactly_zero and softmax",
    ),
    "mask dropped from the gradient": Sabotage(
        RULE,
        "jnp.where(mask, jnp.exp(d), 0)",
        "jnp.exp(d)",
        SOFTMAX,
        "masked_rows_are_exactly_zero and softmax",
    ),
    "ignore_index dropped": Sabotage(TARGETS, "if kept is not None:", "if False:", SOFTMAX, "ignore_index_masks"),
    "smoothing dropped": Sabotage(
        LOSSES, "if smoothing is not None:\n", "if False:\n", SOFTMAX, "one_option and label_smoothing and sum"
    ),
    "class weights left out of the denominator": Sabotage(
        LOSSES,
        "return targets.label_weight if targets.are_ids else",
        "return None if targets.are_ids else",
        SOFTMAX,
        "one_option and class_weight and mean and softmax",
    ),
    "mean of means": Sabotage(
        "reduction.py", "self.weight + other.weight", "self.weight", "tests/test_reduction.py", "mean"
    ),
    "psum dropped": Sabotage(
        "reduction.py", "lax.psum(self.weight, axis_name)", "self.weight", "tests/test_reduction.py", "psum"
    ),
    "ids wrapped": Sabotage(TARGETS, "jnp.where(bad, -1, ", "jnp.where(bad, num_classes - 1, ", SOFTMAX, "bad_id"),
    "poison missing from the gradient": Sabotage(
        RULE, "jnp.where(jnp.expand_dims(ids < 0, axis), jnp.nan, u)", "u", SOFTMAX, "bad_id and softmax"
    ),
    "log of the sum": Sabotage(
        RULE, "jnp.log1p(u) - (entry - m))", "jnp.log(1 + u) - (entry - m))", "tests/test_numerics.py", "confident"
    ),
    "0 times inf in a merge": Sabotage(STATE, "jnp.where(t.mass == 0, 0, gap * t.mass)", "gap * t.mass", OF_STATE, ""),
    "mean left out of the entropy's slope": Sabotage(
        STATE, "(dot / (1 + excess) - jnp.where(", "(0 - jnp.where(", "tests/_core/rows/test_rule.py", "slopes"
    ),
    "highest devices counted twice": Sabotage(
        STATE, "excess + (num_holding - 1)", "excess + num_holding", VOCAB_AXIS, "every_sort and ids-f"
    ),
    "a coefficient of 0 that silences nothing": Sabotage(
        "_core/silence.py",
        "return jnp.where(reduce(jnp.logical_or, zeros) & jnp.isinf(term), 0, term)",
        "return term",
        SOFTMAX,
        "silence",
    ),
    "label gradient subtracted": Sabotage(STATE, "jnp.expm1(-nll)", "jnp.exp(-nll) - 1", "tests/test_numerics.py", ""),
    "top class not told apart": Sabotage(
        STATE, "is_top = (d == 0) & (excess < 1)", "is_top = (d > 0) & (excess < 1)", "tests/test_numerics.py", ""
    ),
    "barriers dropped": Sabotage(
        ON_CPU,
        "lax.optimization_barrier(self.operands._replace(**places))",
        "self.operands._replace(**places)",
        "tests/test_memory.py",
        "rows_only",
    ),
    "probabilities' slope not clamped": Sabotage(
        PROBABILITIES, "tangents[0] / jnp.maximum(lowest, p)", "tangents[0] / p", PROBS, "still_push"
    ),
    "masked hidden states meet the matmuls": Sabotage(
        PRODUCTS,
        "hidden = _masked(per_row.hidden, per_row.where)\n    return",
        "hidden = per_row.hidden\n    return",
        FUSED_MASKS,
        "not_there and mean and ids",
    ),
    "cotangents of rows dropped": Sabotage(
        LINEAR,
        "map(_or_none, (cotangents.loss, ",
        "map(_or_none, (jnp.ones_like(cotangents.loss), ",
        FUSED,
        "plain_formula and 31 and None",
    ),
    "remainder of the rows dropped": Sabotage(
        CHUNKS,
        "sums = jax.tree.map(jnp.add, sums, terms)\n    return",
        "sums = sums\n    return",
        FUSED,
        "plain_formula and 31 and None",
    ),
    "a chunk skipped that has rows that count": Sabotage(
        CHUNKS, "lax.cond(i < order.number", "lax.cond(i + 1 < order.number", FUSED_MASKS, "not_there and mean and ids"
    ),
    "softcap without its derivative": Sabotage(
        PRODUCTS,
        "softcap(logits, shared.logit_softcap)",
        "logits + lax.stop_gradient(softcap(logits, shared.logit_softcap) - logits)",
        FUSED,
        "plain_formula and 13 and 5.0",
    ),
    "d_hidden not added over the classes' devices": Sabotage(
        "_core/linear/meshes.py",
        "over = varying_axes(gradient) - like",
        "over = frozenset()",
        FUSED_ON_MESHES,
        "inside_and_outside and ids",
    ),
    "float16 rows not brought back to their scale": Sabotage(
        PRODUCTS,
        "gradient if unit is None else gradient * unit",
        "gradient",
        FUSED,
        "scale_of_the_weights and 1e-08 and mean",
    ),
    "gradient of log_z dropped": Sabotage(
        LINEAR, "Cotangents(log_z=d_log_z)", "Cotangents(log_z=0 * d_log_z)", FUSED, "carries_its_gradient and mean"
    ),
    "row arguments of masked rows seen": Sabotage(
        PRODUCTS,
        "row_loss(log_prob, entropy, *row_args)",
        "row_loss(log_prob, entropy, *per_row.row_args)",
        OF_LOG_PROBS,
        "nothing_of_masked",
    ),
    "beta on the wrong side": Sabotage(
        "_core/rows/divergence.py",
        "m = beta * t + (1 - beta) * s",
        "m = beta * s + (1 - beta) * t",
        OF_DISTILLATION,
        "scipy or textbooks and 0",
    ),
    "temperature of the teacher forgotten": Sabotage(
        "_core/rows/divergence.py",
        "(s.logits - t.logits) * factor",
        "(s.logits * factor - t.logits)",
        OF_DISTILLATION,
        "is_the_textbooks and 0",
    ),
    "rounding of log z left in the slopes": Sabotage(
        "_core/rows/divergence.py",
        "return gap - of_s.p * ",
        "return gap - 0 * of_s.p * ",
        OF_DISTILLATION,
        "gradient_keeps and 1e-05 and 0-",
    ),
}


# Each break runs in a fork of a process that has imported what all tests import, which takes longer than many a break. jax
# starts no threads at its import.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["pytest", "numpy", "jax.numpy", "optax", "mpmath"])
# Without the plugins that would only cost time.
OPTIONS = "-x -q -p no:cacheprovider -p no:xdist -p no:hypothesispytest"


def run_on_copy(folder: Path, tests: str, select: str) -> tuple[int | None, str]:
    """The exit status (None: none in time) and the output of pytest on the copy in `folder`."""
    log = folder / "log"
    process = FORKS.Process(target=_run_pytest, args=(folder, [*OPTIONS.split(), tests, "-k", select], log))
    process.start()
    process.join(300)
    process.kill()
    return process.exitcode, log.read_text()


def _run_pytest(folder: Path, arguments: list[str], log: Path) -> None:
    """Runs in the fork. The modules that brought it here are those of the unbroken code."""
    for name in [name for name in sys.modules if name.partition(".")[0] in ("jxent", "tests", "tools")]:
        del sys.modules[name]
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.exit(pytest.main(arguments))


@pytest.fixture
def copy(tmp_path):
    for name in ("jxent", "tests", "tools", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_unbroken_copy_passes(copy):
    status, output = run_on_copy(copy, "tests/test_reduction.py", "psum or mean_adds")
    assert status == 0, output
    assert " passed" in output


@pytest.mark.parametrize("sabotage", SABOTAGES.values(), ids=SABOTAGES)
def test_broken_copy_fails(copy, sabotage):
    path = copy / "jxent" / sabotage.file
    text = path.read_text()
    assert text.count(sabotage.old) == 1, "the line to break is not there, or not alone"
    path.write_text(text.replace(sabotage.old, sabotage.new))
    status, output = run_on_copy(copy, sabotage.tests, sabotage.select)
    # 1 is "tests failed"; a collection error, or nothing selected, is another code.
    assert status == 1, output[-4000:]
    assert "1 failed" in output
