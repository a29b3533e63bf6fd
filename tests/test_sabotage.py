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
SHARDS = "_core/shards.py"
SOFTMAX, VOCAB_AXIS = "tests/test_softmax.py", "tests/test_vocab_axis.py"
LINEAR, FUSED, FUSED_ON_MESHES = "_core/linear/rule.py", "tests/test_linear.py", "tests/test_linear_meshes.py"
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
        "x = _counted(logits.astype(dtype), where, axis)",
        "x = logits.astype(dtype)",
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
    "mask dropped from the class weights' gradient": Sabotage(
        ROWS, "w = None if w is None else jnp.where(where, w, 0)", "pass", SOFTMAX, "all_masked and softmax"
    ),
    "ignore_index dropped": Sabotage(TARGETS, "if counted is not None:", "if False:", SOFTMAX, "ignore_index_masks"),
    "ids clipped to an ignore_index": Sabotage(
        "_core/arguments.py",
        "clipped = np.where((clipped == at) & (value != ignored), beside, clipped)",
        "pass",
        SOFTMAX,
        "taken_for_an_ignore",
    ),
    "an ignore_index beyond 32 bits not clipped as its ids": Sabotage(
        "_core/arguments.py",
        "ignored_as = None if ignored is None else _within_int32(ignored)",
        "ignored_as = ignored",
        "tests/_core/test_arguments.py",
        "wide_ids and array",
    ),
    "entries of a list wrapped": Sabotage(
        "_core/arguments.py",
        "return narrowed(array) if _is_wide(array.dtype) else array",
        "return narrowed(array) if _is_wide(array.dtype) and array.ndim else array",
        "tests/_core/test_arguments.py",
        "wide_ids and beside",
    ),
    "smoothing dropped": Sabotage(
        TARGETS, "if self.smoothing is None:", "if True:", SOFTMAX, "one_option and label_smoothing and sum"
    ),
    "smoothing over all classes": Sabotage(
        ROWS,
        'result["live"] = sums.of(live)',
        'result["live"] = sums.of(live) * 0 + logits.shape[axis]',
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
        "if where is None:\n            return size_of(",
        "if True:\n            return size_of(",
        SOFTMAX,
        "one_option and where and mean and softmax",
    ),
    "sample weights left out of the denominator": Sabotage(
        "reduction.py",
        "weighted(ones if row_weight is None else row_weight, sample_weight, where)",
        "weighted(ones if row_weight is None else row_weight, None, where)",
        SOFTMAX,
        "one_option and sample_weight and mean and softmax",
    ),
    "counts wrapped": Sabotage(
        "_core/counts.py", "size * length <= limit", "True", "tests/_core/test_counts.py", "more_than_int32"
    ),
    "carry of a count dropped": Sabotage(
        "_core/counts.py", " + (low >> _LOW_BITS)", "", "tests/_core/test_counts.py", "rounded_once"
    ),
    "class counts all in one part": Sabotage(
        "class_weights.py",
        "part = jnp.arange(ids.size, dtype=jnp.uint32) % ",
        "part = jnp.arange(ids.size, dtype=jnp.uint32) * 0 + ",
        "tests/test_class_weights.py",
        "than_int32",
    ),
    "means taken for arrays by NumPy": Sabotage(
        "reduction.py", "__array_ufunc__ = None", "pass", "tests/test_reduction.py", "by_numpy"
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
    "wide weights clipped": Sabotage(
        "_core/arguments.py",
        "_as_floats, wanted)\n    if not",
        "_clipped, wanted)\n    if not",
        "tests/_core/test_arguments.py",
        "wide_integers",
    ),
    "poison missing from the gradient": Sabotage(
        ROWS,
        "jnp.where(jnp.expand_dims(labels < 0, axis), jnp.nan, 1 / (1 + rows.excess))",
        "1 / (1 + rows.excess)",
        SOFTMAX,
        "bad_id and softmax",
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
        'excess = (sums["num_maxima"] - 1) + sums["others"]',
        'excess = (sums["num_maxima"] + sums["others"]) - 1',
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
    "z-loss dropped": Sabotage(ROWS, "if z_loss is not None:", "if False:", SOFTMAX, "z_loss"),
    "tangent map kept": Sabotage(
        ROWS,
        "jax.checkpoint(partial(row_tangents, axis, vocab_axis_name), prevent_cse=False)",
        "partial(row_tangents, axis, vocab_axis_name)",
        "tests/test_memory.py",
        "reverse_mode",
    ),
    "barriers dropped": Sabotage(SUMS, "if self.cpu:", "if False:", "tests/test_memory.py", "rows_only"),
    "smoothing by the classes of one device": Sabotage(
        ROWS,
        "| summed(of_slope, vocab_axis_name)",
        "| summed(of_slope, vocab_axis_name) | "
        '({"live": lax.pmean(sums["live"], vocab_axis_name)} if smooth and vocab_axis_name else {})',
        VOCAB_AXIS,
        "oracle_inside and ids",
    ),
    "class weight of an id added by every device": Sabotage(
        TARGETS,
        "jnp.where(own < 0, 0, _at_ids(",
        "jnp.where(own < -1, 0, _at_ids(",
        VOCAB_AXIS,
        "oracle_inside and ids",
    ),
    "ids checked against the classes of one device": Sabotage(
        SHARDS, "num_classes * lax.axis_size(vocab_axis_name)", "num_classes", VOCAB_AXIS, "every_sort and ids-float32"
    ),
    "predicted ids of one device": Sabotage(ROWS, "first + predicted", "predicted", VOCAB_AXIS, "every_sort and ids-f"),
    "check_vma not asked": Sabotage(
        "_core/arguments.py", "if missing:", "if False:", VOCAB_AXIS, "refused and check_vma"
    ),
    "axes of labels and logits not aligned": Sabotage(
        ROWS,
        "aligned((logits, labels, class_weight, where), apart_from=vocab_axis_name)",
        "(logits, labels, class_weight, where)",
        "tests/test_sharding.py",
        "replicated",
    ),
    "windows cut anywhere": Sabotage(
        SUMS, "while width % 2 == 0", "while width % 2 > 1", "tests/test_communication.py", "window and 40000"
    ),
    "label counted in its window": Sabotage(SUMS, "(ids != y) & ", "", SOFTMAX, "anywhere_in_a_long_row"),
    "last window counted twice": Sabotage(SUMS, " & (ids >= own * width)", "", SOFTMAX, "anywhere_in_a_long_row"),
    "window of a bad label left out": Sabotage(
        SUMS,
        "own, is_known = y // width, y >= 0",
        "own, is_known = y // width, y == y",
        SOFTMAX,
        "anywhere_in_a_long_row",
    ),
    "exp kept for the gradient without the mask": Sabotage(
        ROWS,
        "d = _counted(logits, where, axis) - jnp",
        "d = logits - jnp",
        "tests/test_memory.py",
        "keeps_the_exp",
    ),
    "binary terms free to be written out in parts": Sabotage(
        "_core/platform.py",
        "cpu=_selected, default=_same",
        "default=_same",
        "tests/test_memory.py",
        "one_array_at_most",
    ),
    "binary value and gradient free to share": Sabotage(
        "_core/platform.py",
        "list(_barrier(platforms, primals))",
        "list(primals)",
        "tests/test_memory.py",
        "one_array_at_most",
    ),
    "second derivative subtracted": Sabotage(
        "_core/sigmoid_terms.py",
        "sigmoid(x) * sigmoid(-x) * d_x",
        "sigmoid(x) * (1 - sigmoid(x)) * d_x",
        "tests/test_sigmoid.py",
        "second_derivative",
    ),
    "miss subtracted": Sabotage(
        SUMS,
        "(jnp.expand_dims(excess, axis) + (o.one - jnp.exp(_d(o, axis))))",
        "((jnp.expand_dims(excess, axis) + o.one) - jnp.exp(_d(o, axis)))",
        "tests/test_focal.py",
        "digits and distributions",
    ),
    "maximum of a converted copy": Sabotage(
        ROWS,
        "jnp.max(logits, axis).astype(compute_dtype(logits.dtype))",
        "jnp.max(logits.astype(compute_dtype(logits.dtype)), axis)",
        "tests/test_memory.py",
        "does_not_tell_of and bfloat16 and no",
    ),
    "kernel's gradient cast before it is added up": Sabotage(
        LINEAR,
        "return added_up(gradient, self.varying).astype(self.dtype)",
        "return added_up(gradient.astype(self.dtype), self.varying)",
        FUSED_ON_MESHES,
        "before_it_is_cast",
    ),
    "miss not smoothed": Sabotage(
        "_core/row_misses.py",
        "targets.smoothed(miss, spread_miss, rows.live_classes)",
        "miss",
        "tests/test_properties.py",
        "explicit_soft_labels and poly1_cross_entropy-ids",
    ),
    "focal factor's derivative divides by 0": Sabotage(
        "_core/focal_terms.py",
        "1 / jnp.where(is_zero, 1, x))",
        "1 / x) + 0 / x",
        "tests/test_focal.py",
        "finite_to_second_order and ids",
    ),
    "focal factor without a derivative by gamma": Sabotage(
        "_core/focal_terms.py",
        "if not isinstance(d_exponent, SymbolicZero):",
        "if False:",
        "tests/test_focal.py",
        "every_derivative and sigmoid",
    ),
    "bad labels left out of the counts": Sabotage(
        "class_weights.py",
        "jnp.where(jnp.any(ids < 0), jnp.nan, counts)",
        "counts",
        "tests/test_class_weights.py",
        "bad_label",
    ),
    "absent classes counted": Sabotage(
        "class_weights.py",
        "_or_1(count(occurs, (0,), counts.dtype))",
        "jnp.asarray(counts.size, counts.dtype)",
        "tests/test_class_weights.py",
        "paper",
    ),
    "ignored labels refused": Sabotage(
        "labels.py", "is_bad &= labels != ignored", "pass", "tests/test_labels.py", "passes_good_ones"
    ),
    "rounding refused": Sabotage("labels.py", "1 + arguments.LABEL_ROUNDING", "1", "tests/test_labels.py", "good_ones"),
    "option missing from the overloads": Sabotage(
        "_core/signatures.py", "    axis: int\n", "", "tests/test_typing.py", "overloads"
    ),
    "probabilities' slope not clamped": Sabotage(
        "_core/probability_rows.py", "jnp.maximum(p, _LOWEST_PROB)", "p", "tests/test_probs.py", "still_push"
    ),
    "torch's mean of distributions weighted": Sabotage(
        "torch_compat.py",
        "mean.total.dtype) if is_soft else mean.weight",
        "mean.total.dtype) if False else mean.weight",
        "tests/test_torch_compat.py",
        "torchs_formula and distributions",
    ),
    "torch's mean of nothing is 0": Sabotage(
        "torch_compat.py",
        "jnp.where(divisor == 0, jnp.nan, divisor)",
        "jnp.where(divisor == 0, 1, divisor)",
        "tests/test_torch_compat.py",
        "mean_over_ignored_rows",
    ),
    "reduce read as size_average": Sabotage(
        "torch_compat.py",
        "if reduce is not None and not reduce:",
        "if size_average is not None and not size_average:",
        "tests/test_torch_compat.py",
        "override_reduction",
    ),
    "what is no probability let through": Sabotage(
        "torch_compat.py", "1), 0, jnp.nan)", "1), 0, 0)", "tests/test_torch_compat.py", "no_probability"
    ),
    "families of smoothing not converted on the page": Sabotage(
        "../docs/migrating.md",
        "label_smoothing=0.1 * V / (V - 1)",
        "label_smoothing=0.1",
        "tests/test_migrating.py",
        "optax",
    ),
    "masked hidden states meet the matmuls": Sabotage(
        LINEAR,
        "return rows.hidden if rows.where is None else jnp.where(rows.where[:, None], rows.hidden, 0)",
        "return rows.hidden",
        FUSED,
        "masked_rows and mean and ids",
    ),
    "cotangents of rows dropped": Sabotage(
        LINEAR,
        "Cotangents(_or_none(cotangents.loss), ",
        "Cotangents(jnp.ones_like(cotangents.loss), ",
        FUSED,
        "plain_formula and 31 and None",
    ),
    "cotangent of the total dropped": Sabotage(
        LINEAR,
        "lambda gradient: d_total * gradient, gradients",
        "lambda gradient: gradient, gradients",
        FUSED,
        "plain_formula and 31 and None",
    ),
    "remainder of the rows dropped": Sabotage(
        "_core/linear/chunks.py",
        "sums = jax.tree.map(jnp.add, sums, terms)\n    return",
        "sums = sums\n    return",
        FUSED,
        "plain_formula and 31 and None",
    ),
    "chunks left in their own order": Sabotage(
        "_core/linear/chunks.py", "lambda a: a.swapaxes(0, 1)", "lambda a: a", FUSED, "does_not_depend_on_the_chunks"
    ),
    "softcap without its derivative": Sabotage(
        LINEAR,
        "softcap(logits, shared.logit_softcap)",
        "logits + lax.stop_gradient(softcap(logits, shared.logit_softcap) - logits)",
        FUSED,
        "plain_formula and 31 and 5.0",
    ),
    "softcap of inf taken for a cap": Sabotage(
        LINEAR, "return jnp.where(is_none, logits, capped)", "return capped", FUSED, "softcap_of_inf"
    ),
    "softcap of a class that does not exist": Sabotage(
        LINEAR, "jnp.where(is_dead, -jnp.inf, cap", "jnp.where(False, -jnp.inf, cap", FUSED, "padded_columns"
    ),
    "kernel gradient rounded chunk by chunk": Sabotage(
        LINEAR,
        "return _outer(config, hidden, d_products)\n",
        "return _outer(config, hidden, d_products).astype(hidden.dtype)\n",
        FUSED,
        "gradients_have_their_arguments_dtypes or errors",
    ),
    "d_hidden not added over the classes' devices": Sabotage(
        "_core/linear/meshes.py",
        "over = varying_axes(gradient) - like",
        "over = frozenset()",
        FUSED_ON_MESHES,
        "inside_and_outside and ids",
    ),
    "caller's vocab axis dropped on an Explicit mesh": Sabotage(
        LINEAR,
        "vocab = (self.vocab_axis_name or ()) + self.placement.class_axes",
        "vocab = self.placement.class_axes",
        FUSED_ON_MESHES,
        "beside_an_explicit",
    ),
    "float16 rows left at their own scale": Sabotage(
        LINEAR, "if dtype != jnp.float16:", "if True:", FUSED, "scale_of_the_weights and 1e-08 and sum"
    ),
    "float16 rows not brought back to their scale": Sabotage(
        LINEAR,
        "gradient if unit is None else gradient * unit",
        "gradient",
        FUSED,
        "scale_of_the_weights and 1e-08 and mean",
    ),
    "unit of a float16 row of 0 taken for the highest": Sabotage(
        LINEAR,
        "jnp.maximum(unit, 2.0**-100), 2.0**-100)",
        "jnp.where(unit > 0, unit, 1), 1)",
        FUSED,
        "confident_and_bad",
    ),
    "gradient of log_z dropped": Sabotage(
        LINEAR, "Cotangents(None, d_log_z)", "Cotangents(None, 0 * d_log_z)", FUSED, "carries_its_gradient and mean"
    ),
    "nll with class weights": Sabotage(
        ROWS, "if targets.are_ids or targets.class_weight is None:", "if True:", FUSED, "nll_is_plain and soft"
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
