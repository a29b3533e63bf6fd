"""Breaks copies of the package on purpose, one line each: the tests named beside the break must fail on it."""

import multiprocessing
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]


class Sabotage(NamedTuple):
    """`old` → `new`, once, in `file`; then `pytest tests` with `-k select` must fail."""

    file: str
    old: str
    new: str
    tests: str
    select: str


ROWS, SUMS, TARGETS = "_core/softmax_rows.py", "_core/row_sums.py", "_core/targets.py"
SOFTMAX = "tests/test_softmax.py"
SABOTAGES = {
    "mask dropped from the value": Sabotage(
        ROWS,
        "jnp.where(where, field, 0), rows)",
        "field, rows)",
        SOFTMAX,
        "masked_rows_are_exactly_zero and nan and softmax",
    ),
    "mask dropped from the gradient": Sabotage(
        ROWS,
        "x = jnp.where(where, x, -jnp.inf)",
        "x = x + 0",
        SOFTMAX,
        "masked_rows_are_exactly_zero and nan and softmax",
    ),
    "mask dropped from the soft labels' gradient": Sabotage(
        ROWS,
        "jnp.where(where, values.astype(dtype), 0)",
        "values.astype(dtype)",
        SOFTMAX,
        "masked_rows_are_exactly_zero and nan and softmax",
    ),
    "ignore_index dropped": Sabotage(
        TARGETS, "if ignored is not None and _holds", "if False and _holds", SOFTMAX, "ignore_index_masks"
    ),
    "smoothing dropped": Sabotage(
        TARGETS, "if self.smoothing is None:", "if True:", SOFTMAX, "one_option and label_smoothing and sum"
    ),
    "smoothing over all classes": Sabotage(
        ROWS,
        "live_classes = sums.of(live)",
        "live_classes = sums.of(live) * 0 + logits.shape[axis]",
        SOFTMAX,
        "minus_inf_is_a_class_mask and softmax",
    ),
    "class weights left out of the denominator": Sabotage(
        TARGETS,
        "return self.label_weight if self.are_ids else mass",
        "return None",
        SOFTMAX,
        "one_option and class_weight and mean and softmax",
    ),
    "mean over all rows": Sabotage(
        "reduction.py",
        "if where is None else where\n        return",
        "if True else where\n        return",
        SOFTMAX,
        "one_option and where and mean and softmax",
    ),
    "sample weights left out of the denominator": Sabotage(
        "reduction.py",
        "jnp.sum(_weighted(weight, sample_weight, where), axes)",
        "jnp.sum(_weighted(weight, None, where), axes)",
        SOFTMAX,
        "one_option and sample_weight and mean and softmax",
    ),
    "mean of means": Sabotage(
        "reduction.py", "self.weight + other.weight", "self.weight", "tests/test_reduction.py", "mean"
    ),
    "psum dropped": Sabotage(
        "reduction.py", "lax.psum(self.weight, axis_name)", "self.weight", "tests/test_reduction.py", "psum"
    ),
    "label iota in uint8": Sabotage(
        SUMS,
        "lax.broadcasted_iota(jnp.int32, shape, axis)",
        "lax.broadcasted_iota(jnp.uint8, shape, axis).astype(jnp.int32)",
        SOFTMAX,
        "ids_of_any_dtype",
    ),
    "ids wrapped": Sabotage(TARGETS, "jnp.where(bad, -1, ", "jnp.where(bad, num_classes - 1, ", SOFTMAX, "bad_id"),
    "ids compared after the cast": Sabotage(
        TARGETS,
        "    bad = labels < 0\n",
        "    labels = labels.astype(jnp.int32)\n    bad = labels < 0\n",
        SOFTMAX,
        "64_bit_ids",
    ),
    "poison missing from the gradient": Sabotage(
        ROWS, "jnp.where(y < 0, jnp.nan, 1 / (1 + rows.excess))", "1 / (1 + rows.excess)", SOFTMAX, "bad_id and softmax"
    ),
    "log of the sum": Sabotage(
        ROWS,
        "TargetRows(jnp.log1p(excess) -",
        "TargetRows(jnp.log(1 + excess) -",
        "tests/test_numerics.py",
        "confident",
    ),
    "excess of distributions subtracted": Sabotage(
        ROWS,
        "excess = (num_maxima - 1) + sums.of(exp_below_max)",
        "excess = (num_maxima + sums.of(exp_below_max)) - 1",
        "tests/test_numerics.py",
        "",
    ),
    "label gradient subtracted": Sabotage(
        ROWS, "jnp.expm1(-rows.label.loss)", "jnp.exp(-rows.label.loss) - 1", "tests/test_numerics.py", ""
    ),
    "top class not told apart": Sabotage(
        ROWS,
        "is_top = (d == 0) & (rows.excess < 1)",
        "is_top = (d > 0) & (rows.excess < 1)",
        "tests/test_numerics.py",
        "",
    ),
    "z-loss dropped": Sabotage("softmax.py", "if z_factor is not None:", "if False:", SOFTMAX, "z_loss"),
    "tangent map kept": Sabotage(
        ROWS,
        "jax.checkpoint(partial(_tangents, axis, smooth), prevent_cse=False)",
        "partial(_tangents, axis, smooth)",
        "tests/test_memory.py",
        "reverse_mode",
    ),
    "barriers dropped": Sabotage(SUMS, "if self.cpu:", "if False:", "tests/test_memory.py", "rows_only"),
    "second derivative subtracted": Sabotage(
        "_core/sigmoid_terms.py",
        "sigmoid(x) * sigmoid(-x) * d_x",
        "sigmoid(x) * (1 - sigmoid(x)) * d_x",
        "tests/test_sigmoid.py",
        "second_derivative",
    ),
    "probabilities' slope not clamped": Sabotage(
        "_core/probability_rows.py", "jnp.maximum(p, _LOWEST_PROB)", "p", "tests/test_probs.py", "still_push"
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
    for name in [name for name in sys.modules if name.partition(".")[0] in ("jxent", "tests")]:
        del sys.modules[name]
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    with log.open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.exit(pytest.main(arguments))


@pytest.fixture
def copy(tmp_path):
    for name in ("jxent", "tests"):
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
