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


STATE, RULE, ON_CPU = "_core/rows/state.py", "_core/rows/rule.py", "_core/rows/cpu.py"
LOSSES, TARGETS = "_core/rows/losses.py", "_core/targets.py"
OF_STATE, OF_CPU = "tests/_core/rows/test_state.py", "tests/_core/rows/test_cpu.py"
SHARDS = "_core/shards.py"
SOFTMAX, VOCAB_AXIS = "tests/test_softmax.py", "tests/test_vocab_axis.py"
LINEAR, PRODUCTS, CHUNKS = (f"_core/linear/{room}.py" for room in ("rule", "products", "chunks"))
FUSED, FUSED_ON_MESHES, FUSED_MASKS = (f"tests/test_linear{of}.py" for of in ("", "_meshes", "_masks"))
PROBABILITIES, PROBS = "_core/rows/probabilities.py", "tests/test_probs.py"
SABOTAGES = {
    "mask dropped from the value": Sabotage(
        RULE,
        "jnp.where(where, field, 0), rows)",
        "field, rows)",
        SOFTMAX,
        "masked_rows_are_exactly_zero and nan and softmax",
    ),
    "mask dropped from the gradient": Sabotage(
        RULE,
        "jnp.where(mask, jnp.exp(d), 0)",
        "jnp.exp(d)",
        SOFTMAX,
        "masked_rows_are_exactly_zero and nan and softmax",
    ),
    "mask dropped from the soft labels' gradient": Sabotage(
        RULE,
        "None if q is None else counted(q)",
        "None if q is None else q.astype(u.dtype)",
        SOFTMAX,
        "masked_rows_are_exactly_zero and nan and softmax",
    ),
    "mask dropped from the class weights' gradient": Sabotage(
        RULE, "counted(along(w, x.ndim, axis))", "along(w, x.ndim, axis)", SOFTMAX, "all_masked and softmax"
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
        LOSSES, "if smoothing is not None:\n", "if False:\n", SOFTMAX, "one_option and label_smoothing and sum"
    ),
    "smoothing over all classes": Sabotage(
        STATE,
        "is_live, one = x > -jnp.inf,",
        "is_live, one = x == x,",
        SOFTMAX,
        "minus_inf_is_a_class_mask and softmax",
    ),
    "class weights left out of the denominator": Sabotage(
        LOSSES,
        "return targets.label_weight if targets.are_ids else",
        "return None if targets.are_ids else",
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
        SHARDS,
        "lax.broadcasted_iota(jnp.int32, shape, axis)",
        "lax.broadcasted_iota(jnp.uint8, shape, axis).astype(jnp.int32)",
        SOFTMAX,
        "ids_of_any_dtype",
    ),
    "ids wrapped": Sabotage(TARGETS, "jnp.where(bad, -1, ", "jnp.where(bad, num_classes - 1, ", SOFTMAX, "bad_id"),
    "ids compared after the cast": Sabotage(
        TARGETS,
        "wide = labels if jnp.iinfo(labels.dtype).bits >= 32 else labels.astype(jnp.int32)",
        "wide = labels.astype(jnp.int32)",
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
        RULE, "jnp.where(jnp.expand_dims(ids < 0, axis), jnp.nan, u)", "u", SOFTMAX, "bad_id and softmax"
    ),
    "log of the sum": Sabotage(
        RULE, "jnp.log1p(u) - (entry - m))", "jnp.log(1 + u) - (entry - m))", "tests/test_numerics.py", "confident"
    ),
    "the lower part's 1 dropped": Sabotage(
        STATE, "jnp.exp(-gap), 1 + part.excess", "jnp.exp(-gap), part.excess", OF_STATE, ""
    ),
    "gap of the wrong sign": Sabotage(STATE, "hi.row_max - lo.row_max)", "lo.row_max - hi.row_max)", OF_STATE, ""),
    "tie counted as below": Sabotage(
        STATE, "jnp.where(gap > 0, t.mass, t.below)", "jnp.where(gap >= 0, t.mass, t.below)", OF_STATE, ""
    ),
    "last of a tie": Sabotage(STATE, "jnp.minimum(hi.top, lo.top)", "jnp.maximum(hi.top, lo.top)", OF_STATE, ""),
    "0 times inf in a merge": Sabotage(STATE, "jnp.where(t.mass == 0, 0, gap * t.mass)", "gap * t.mass", OF_STATE, ""),
    "mean left out of the entropy's slope": Sabotage(
        STATE, "(dot / (1 + excess) - jnp.where(", "(0 - jnp.where(", "tests/_core/rows/test_rule.py", "slopes"
    ),
    "highest devices counted twice": Sabotage(
        STATE, "excess + (num_highest - 1)", "excess + num_highest", VOCAB_AXIS, "every_sort and ids-f"
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
    "z-loss dropped": Sabotage(LOSSES, "if z_loss is not None:", "if False:", SOFTMAX, "z_loss"),
    "tangent map kept": Sabotage(
        RULE,
        "jax.checkpoint(partial(_tangents, config), prevent_cse=False)",
        "partial(_tangents, config)",
        "tests/test_memory.py",
        "reverse_mode",
    ),
    "barriers dropped": Sabotage(
        ON_CPU,
        "lax.optimization_barrier(self.operands._replace(**places))",
        "self.operands._replace(**places)",
        "tests/test_memory.py",
        "rows_only",
    ),
    "smoothing by the classes of one device": Sabotage(
        STATE,
        "t._replace(below=below[name]) for",
        "t._replace(below=below[name], mass=lax.pmean(state.targets[name].mass, axis_name)) for",
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
    "predicted ids of one device": Sabotage(
        STATE,
        "lax.axis_index(axis_name) * num_classes + top",
        "0 * lax.axis_index(axis_name) + top",
        VOCAB_AXIS,
        "every_sort and ids-f",
    ),
    "check_vma not asked": Sabotage(
        "_core/arguments.py", "if missing:", "if False:", VOCAB_AXIS, "refused and check_vma"
    ),
    "windows cut anywhere": Sabotage(
        ON_CPU, "while width % 2 == 0", "while width % 2 > 1", "tests/test_communication.py", "window and 40000"
    ),
    "maximum counted in its window": Sabotage(
        ON_CPU, "is_counted = (ids != top) & ", "is_counted = ", OF_CPU, "one and device and 10000"
    ),
    "last window counted twice": Sabotage(ON_CPU, " & (ids >= own * width)", "", OF_CPU, "one and device and 10000"),
    "ids of constants": Sabotage(
        ON_CPU,
        "jnp.where(jnp.isnan(self.operands.row_max), -1, excluded)",
        "excluded",
        SOFTMAX,
        "single_long_row and four and 40000",
    ),
    "binary terms free to be written out in parts": Sabotage(
        "_core/xla.py",
        "cpu=_selected, default=_same",
        "default=_same",
        "tests/test_memory.py",
        "one_array_at_most",
    ),
    "binary value and gradient free to share": Sabotage(
        "_core/xla.py",
        "constant = _barrier(platforms, leaves)",
        "constant = leaves",
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
        STATE,
        "(excess - jnp.expm1(d)) / (1 + excess)",
        "1 - prob(d, excess)",
        "tests/test_focal.py",
        "digits and distributions",
    ),
    "maximum of a converted copy": Sabotage(
        ON_CPU,
        "_windows(logits, axis, width, -jnp.inf, lax.max)",
        "_windows(logits.astype(dtype), axis, width, -jnp.inf, lax.max)",
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
        LOSSES,
        "if targets.smoothing is None:\n        return miss",
        "if True:\n        return miss",
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
    "rounding refused": Sabotage("labels.py", "1 + arguments.ROUNDING", "1", "tests/test_labels.py", "good_ones"),
    "option missing from the overloads": Sabotage(
        "_core/signatures.py", "    axis: int\n", "", "tests/test_typing.py", "overloads"
    ),
    "probabilities' slope not clamped": Sabotage(
        PROBABILITIES, "tangents[0] / jnp.maximum(lowest, p)", "tangents[0] / p", PROBS, "still_push"
    ),
    "slope of float16 probabilities capped before the weights": Sabotage(
        PROBABILITIES, "jnp.abs(coefficient)) / largest", "jnp.ones_like(coefficient)) / largest", PROBS, "float16"
    ),
    "negative probability let into the gradient": Sabotage(
        PROBABILITIES, "return x * (1 + 0 * lax", "return x + 0 * (0 * lax", PROBS, "no_probability"
    ),
    "NaN lost by the sums of long rows": Sabotage(
        "_core/rows/cpu.py",
        "jnp.minimum(o.one, jnp.maximum(-o.huge, x) - x)",
        "jnp.minimum(jnp.maximum(x, -o.huge) - x, o.one)",
        PROBS,
        "no_probability and 9000",
    ),
    "bad id without a NaN gradient": Sabotage(PROBABILITIES, "== y) | (y < 0)", "== y)", PROBS, "bad_id"),
    "no live class is no fault under smoothing": Sabotage(
        PROBABILITIES, "jnp.where(is_good, ones, jnp.nan)", "ones", PROBS, "no_live_class"
    ),
    "float labels that are no probabilities let through": Sabotage(
        "_core/binary_targets.py",
        "return one + 0 * one * jnp.sqrt(",
        "return one + 0 * one * jnp.abs(",
        "tests/test_sigmoid.py",
        "no_probability",
    ),
    "binary 0 · inf": Sabotage(
        "_core/sigmoid_terms.py",
        "positive = silenced(softplus(-x), t.pos_weight, *weights)",
        "positive = softplus(-x)",
        "tests/test_sigmoid.py",
        "pos_weight_of_zero",
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
        PRODUCTS,
        "return rows.hidden if rows.where is None else jnp.where(rows.where[:, None], rows.hidden, 0)",
        "return rows.hidden",
        FUSED_MASKS,
        "not_there and mean and ids",
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
        CHUNKS,
        "sums = jax.tree.map(jnp.add, sums, terms)\n    return",
        "sums = sums\n    return",
        FUSED,
        "plain_formula and 31 and None",
    ),
    "chunks left in their own order": Sabotage(
        CHUNKS, "lambda a: a.swapaxes(0, 1)", "lambda a: a", FUSED, "does_not_depend_on_the_chunks"
    ),
    "masked rows left in the order of the chunks": Sabotage(
        CHUNKS, "jnp.take(a, place, 0", "jnp.take(a, jnp.sort(place), 0", FUSED_MASKS, "not_there and none and ids"
    ),
    "a chunk skipped that has rows that count": Sabotage(
        CHUNKS, "lax.cond(i < order.number", "lax.cond(i + 1 < order.number", FUSED_MASKS, "not_there and mean and ids"
    ),
    "gradient of masked hidden states not written": Sabotage(
        PRODUCTS,
        "return gradient if rows.where is None else jnp.where(rows.where[:, None], gradient, 0)",
        "return gradient",
        FUSED_MASKS,
        "beside_a_bad_kernel",
    ),
    "logit_scale without its derivative": Sabotage(
        PRODUCTS,
        "else shared.logit_scale * products",
        "else lax.stop_gradient(shared.logit_scale) * products",
        FUSED,
        "plain_formula and 31 and None",
    ),
    "softcap without its derivative": Sabotage(
        PRODUCTS,
        "softcap(logits, shared.logit_softcap)",
        "logits + lax.stop_gradient(softcap(logits, shared.logit_softcap) - logits)",
        FUSED,
        "plain_formula and 31 and 5.0",
    ),
    "softcap of inf taken for a cap": Sabotage(
        PRODUCTS, "return jnp.where(is_none, logits, capped)", "return capped", FUSED, "softcap_of_inf"
    ),
    "softcap of a class that does not exist": Sabotage(
        PRODUCTS, "jnp.where(is_dead, -jnp.inf, cap", "jnp.where(False, -jnp.inf, cap", FUSED, "padded_columns"
    ),
    "kernel gradient rounded chunk by chunk": Sabotage(
        PRODUCTS,
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
        "_core/linear/records.py",
        "vocab = (self.vocab_axis_name or ()) + self.placement.class_axes",
        "vocab = self.placement.class_axes",
        FUSED_ON_MESHES,
        "beside_an_explicit",
    ),
    "float16 rows left at their own scale": Sabotage(
        PRODUCTS, "if dtype != jnp.float16:", "if True:", FUSED, "scale_of_the_weights and 1e-08 and sum"
    ),
    "float16 rows not brought back to their scale": Sabotage(
        PRODUCTS,
        "gradient if unit is None else gradient * unit",
        "gradient",
        FUSED,
        "scale_of_the_weights and 1e-08 and mean",
    ),
    "unit of a float16 row of 0 taken for the highest": Sabotage(
        PRODUCTS,
        "jnp.maximum(unit, 2.0**-100), 2.0**-100)",
        "jnp.where(unit > 0, unit, 1), 1)",
        FUSED,
        "confident_and_bad",
    ),
    "gradient of log_z dropped": Sabotage(
        LINEAR, "Cotangents(None, d_log_z)", "Cotangents(None, 0 * d_log_z)", FUSED, "carries_its_gradient and mean"
    ),
    "nll with class weights": Sabotage(
        LOSSES, '"label" if targets.class_weight is None else "plain"', '"label"', FUSED, "nll_is_plain and soft"
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
