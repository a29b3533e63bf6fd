"""torch_compat: torch's formulas in float64 NumPy, and, where torch is installed, torch itself and its own tables."""

import functools
import importlib.util
import inspect
import itertools
import sys
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jxent import torch_compat
from tests import oracle
from tests.test_api import TORCH_SIGNATURES, imported_modules

NUM_CLASSES, NUM_COLUMNS = 6, 5
REDUCTIONS = ("none", "sum", "mean")
NAN, INF = np.nan, np.inf


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="parity extra: torch is not installed")


@pytest.fixture(scope="module")
def tables(torch):
    """The modules of torch's own tests, which change settings of whoever imports them."""
    pytest.importorskip("expecttest", reason="parity extra: expecttest is not installed")
    profile, argv = hypothesis.settings.get_current_profile_name(), sys.argv
    sys.argv = argv[:1]  # they parse it
    try:
        modules = importlib.import_module("torch.testing._internal.common_modules").module_db
        operators = importlib.import_module("torch.testing._internal.common_methods_invocations").op_db
    finally:
        hypothesis.settings.load_profile(profile)
        sys.argv = argv
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield modules, operators


class Problem(NamedTuple):
    """One function and every combination of its options.

    Attributes:
        function: its name.
        arrays: what there is, by name.
        differentiable: the arguments to differentiate by.
        options: keywords, where arrays stand by name.
    """

    function: str
    arrays: dict[str, np.ndarray]
    differentiable: tuple[str, ...]
    options: list[dict[str, Any]]

    def keywords(self, options, arrays):
        return {key: arrays.get(value, value) for key, value in options.items()}


def combinations(**choices):
    """Every combination of one value each; a choice of None leaves the keyword out."""
    for values in itertools.product(*choices.values()):
        yield {key: value for key, value in zip(choices, values, strict=True) if value is not None}


def multiclass_problem(function, shape, soft):
    rng = np.random.default_rng(len(shape))
    axis = min(1, len(shape) - 1)
    rows = shape[:axis] + shape[axis + 1 :]
    probs = np.moveaxis(rng.dirichlet(np.ones(NUM_CLASSES), rows), -1, axis)
    arrays = {
        "scores": np.log(probs) if function == "nll_loss" else 3 * rng.normal(size=shape),
        "per class": rng.uniform(0.2, 3, NUM_CLASSES),
        "distributions": np.moveaxis(rng.dirichlet(np.ones(NUM_CLASSES), rows), -1, axis),
        "cotangent": rng.normal(size=rows),
    }
    choices = {"reduction": REDUCTIONS, "weight": (None, "per class")}
    if function == "cross_entropy":
        choices["label_smoothing"] = (0.0, 0.1, 1.0)
    options = list(combinations(target=("distributions",), **choices)) if soft else []
    for ignored in () if soft else (-100, 2):
        labels = np.asarray(rng.integers(NUM_CLASSES, size=rows))
        if rows:
            labels.flat[:2] = ignored, 1  # one that is ignored and one that is not
        else:
            labels = np.asarray(1)
        arrays[f"ids {ignored}"] = labels
        options += combinations(target=(f"ids {ignored}",), ignore_index=(ignored,), **choices)
    return Problem(function, arrays, ("input", "target") if soft else ("input",), options)


def binary_problem(function, shape, weights):
    rng = np.random.default_rng(len(shape))
    labels = np.asarray(rng.uniform(size=shape))
    labels.flat[: labels.size // 2] = np.arange(labels.size // 2) % 2
    scores = 5 * rng.normal(size=shape)
    arrays = {
        "scores": scores if "logits" in function else 1 / (1 + np.exp(-scores)),
        "labels": labels,
        "cotangent": rng.normal(size=shape),
    }
    arrays |= {f"weight {weight}": rng.uniform(0.2, 3, weight) for weight in weights}
    arrays |= {f"pos {weight}": rng.uniform(0.2, 3, weight) for weight in weights}
    choices = {"target": ("labels",), "reduction": REDUCTIONS, "weight": (None, *(f"weight {w}" for w in weights))}
    if "logits" in function:
        choices["pos_weight"] = (None, *(f"pos {w}" for w in weights))
    return Problem(function, arrays, ("input", "target"), list(combinations(**choices)))


SHAPES = [(NUM_CLASSES,), (7, NUM_CLASSES), (4, NUM_CLASSES, 3), (2, NUM_CLASSES, 3, 5)]
# Shape of the elements: shapes of weights.
ELEMENTS = {
    (): [()],
    (NUM_COLUMNS,): [(1,), (NUM_COLUMNS,)],
    (2, 3, 4, NUM_COLUMNS): [(), (NUM_COLUMNS,), (3, 1, 1), (2, 1, 4, NUM_COLUMNS)],
}
PROBLEMS = {}
for _shape in SHAPES:
    PROBLEMS[f"cross_entropy-ids-{_shape}"] = multiclass_problem("cross_entropy", _shape, False)
    PROBLEMS[f"cross_entropy-distributions-{_shape}"] = multiclass_problem("cross_entropy", _shape, True)
    PROBLEMS[f"nll_loss-{_shape}"] = multiclass_problem("nll_loss", _shape, False)
for _shape, _weights in ELEMENTS.items():
    for _name in ("binary_cross_entropy", "binary_cross_entropy_with_logits"):
        PROBLEMS[f"{_name}-{_shape}"] = binary_problem(_name, _shape, _weights)

each_problem = pytest.mark.parametrize("name", PROBLEMS)


# Without torch there is nothing to compare the gradients of all combinations with, and half as much to compile.
HAS_TORCH = importlib.util.find_spec("torch") is not None


def values_and_grads(problem, arrays):
    """Values and gradients for every combination of options, with a random cotangent."""
    results = []
    for options in problem.options:
        keywords = problem.keywords(options, arrays) | {"input": arrays["scores"]}

        def f(*leaves, keywords=keywords):
            keywords = keywords | dict(zip(problem.differentiable, leaves, strict=True))
            return getattr(torch_compat, problem.function)(**keywords)

        leaves = [keywords[name] for name in problem.differentiable]
        if not HAS_TORCH:
            results.append((f(*leaves), None))
            continue
        value, pullback = jax.vjp(f, *leaves)
        cotangent = arrays["cotangent"] if options["reduction"] == "none" else arrays["cotangent"].ravel()[0]
        results.append((value, pullback(cotangent)))
    return results


@functools.cache
def ours(name):
    """One compilation of all combinations, which two tests look at."""
    with jax.enable_x64(True):
        run = jax.jit(functools.partial(values_and_grads, PROBLEMS[name]))
        return jax.tree.map(np.asarray, run(PROBLEMS[name].arrays))


def formula(
    function, scores, target, *, weight=None, pos_weight=1.0, ignore_index=-100, reduction, label_smoothing=0.0
):
    """What torch documents, in float64."""
    if function.startswith("binary"):
        if function.endswith("logits"):
            rows, _ = oracle.sigmoid_elements(scores, target, pos_weight=pos_weight)
        else:
            rows, _ = oracle.prob_elements(scores, target)
        rows, divisor = rows if weight is None else rows * weight, rows.size
    else:
        of = oracle.log_prob_rows if function == "nll_loss" else oracle.softmax_rows
        options = {} if function == "nll_loss" else {"label_smoothing": label_smoothing}
        rows, row_weight = of(scores, target, class_weight=weight, axis=min(1, scores.ndim - 1), **options)
        if target.dtype.kind == "f":
            divisor = rows.size
        else:
            rows = np.where(target == ignore_index, 0, rows)
            divisor = row_weight[target != ignore_index].sum()
    return {"none": rows, "sum": rows.sum(), "mean": rows.sum() / divisor}[reduction]


@each_problem
def test_every_combination_of_options_gives_torchs_formula(name):
    problem = PROBLEMS[name]
    for options, (value, _) in zip(problem.options, ours(name), strict=True):
        expected = formula(problem.function, problem.arrays["scores"], **problem.keywords(options, problem.arrays))
        assert value.dtype == np.float64
        np.testing.assert_allclose(value, expected, rtol=1e-11, atol=1e-12, err_msg=str(options))


def as_torch(torch, array):
    return torch.from_numpy(np.array(array, order="C"))


@each_problem
def test_every_combination_of_options_agrees_with_torch(torch, name):
    problem = PROBLEMS[name]
    for options, (value, grads) in zip(problem.options, ours(name), strict=True):
        arrays = {key: as_torch(torch, array) for key, array in problem.arrays.items()}
        keywords = problem.keywords(options, arrays) | {"input": arrays["scores"]}
        leaves = [keywords[key].requires_grad_() for key in problem.differentiable]
        theirs = getattr(torch.nn.functional, problem.function)(**keywords)
        cotangent = arrays["cotangent"] if options["reduction"] == "none" else arrays["cotangent"].ravel()[0]
        assert_agree(options, value, grads, theirs, torch.autograd.grad(theirs, leaves, cotangent))


def assert_agree(case, value, grads, expected_value, expected_grads):
    for actual, expected in zip((value, *grads), (expected_value, *expected_grads), strict=True):
        np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-9, atol=1e-12, err_msg=str(case))


def table_results(calls, inputs):
    """`calls[i](input, rest)` of every case of a table in one compilation: values and gradients by the input."""

    def run(inputs):
        results = []
        for call, (scores, rest, cotangent) in zip(calls, inputs, strict=True):
            value, pullback = jax.vjp(lambda scores, call=call, rest=rest: call(scores, rest), scores)
            results.append((value, pullback(cotangent)))
        return results

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(run)(inputs))


def assert_table_agrees(torch, function, cases):
    """Each case is (name, input, target, options)."""
    calls, inputs, expected = [], [], []
    for _, scores, target, options in cases:
        leaf = scores.detach().requires_grad_()
        value = getattr(torch.nn.functional, function)(leaf, target.detach(), **options)
        cotangent = torch.randn_like(value)
        expected.append((value, torch.autograd.grad(value, leaf, cotangent)))
        rest = {"target": target, **{key: x for key, x in options.items() if isinstance(x, torch.Tensor)}}
        static = {key: x for key, x in options.items() if key not in rest}
        calls.append(lambda x, rest, static=static: getattr(torch_compat, function)(x, **rest, **static))
        rest = {key: x.detach().numpy() for key, x in rest.items()}
        inputs.append((scores.detach().numpy(), rest, cotangent.numpy()))
    for case, results, theirs in zip(cases, table_results(calls, inputs), expected, strict=True):
        assert_agree(case[0], *results, *theirs)


MODULES = {
    "CrossEntropyLoss": ("cross_entropy", 105),
    "NLLLoss": ("nll_loss", 28),
    "BCELoss": ("binary_cross_entropy", 6),
    "BCEWithLogitsLoss": ("binary_cross_entropy_with_logits", 6),
}


def module_info(tables, module):
    (info,) = (info for info in tables[0] if info.name == f"nn.{module}")
    return info


@pytest.mark.parametrize("module", MODULES)
def test_torchs_table_of_module_inputs_agrees(torch, tables, module):
    function, count = MODULES[module]
    info = module_info(tables, module)
    samples = info.module_inputs_func(info, device="cpu", dtype=torch.float64, requires_grad=True, training=True)
    cases = [
        (sample.desc, *sample.forward_input.args, sample.constructor_input.kwargs)
        for sample in samples
        if not sample.constructor_input.args
    ]
    assert len(cases) == count
    assert_table_agrees(torch, function, cases)


@pytest.mark.parametrize(
    ("function", "count"), {"cross_entropy": 21, "nll_loss": 61, "binary_cross_entropy": 11}.items()
)
def test_torchs_table_of_operator_inputs_agrees(torch, tables, function, count):
    (info,) = (info for info in tables[1] if info.name == f"nn.functional.{function}")
    samples = list(info.sample_inputs("cpu", torch.float64, requires_grad=True))
    assert len(samples) == count
    assert_table_agrees(torch, function, [(repr(s.kwargs), s.input, *s.args, s.kwargs) for s in samples])


# torch's message: ours.
TABLE_ERRORS = {
    "Expected floating point type for target with class probabilities": r"did you mean target.astype\(jnp.float32\)",
    "expected target dtype to be Long or Byte": r"class ids, did you mean target.astype\(jnp.int32\)",
    "Expected input batch_size .* to match target batch_size": r"target has shape \(3,\) .* expected \(2,\)",
    "weight tensor should be defined either for all .* classes or no classes": r"weight has shape \(2,\); expected \(3,\)",
    "ignore_index is not supported for floating point target": "ignore_index goes with class ids",
    "label_smoothing must be between 0.0 and 1.0": r"label_smoothing must be in \[0, 1\]; got 1.5",
    "Expected target size": r"target has shape \(2, 4\) .* expected \(2, 5\)",
    # Dtypes may be mixed here, but these inputs have zero classes.
    r"expected scalar type \w+ but found \w+": "zero classes",
}


def test_torchs_table_of_error_inputs_raises(torch, tables):
    seen = set()
    for module in ("CrossEntropyLoss", "NLLLoss"):
        info = module_info(tables, module)
        for error in info.module_error_inputs_func(
            info, device="cpu", dtype=torch.float64, requires_grad=False, training=True
        ):
            sample = error.module_error_input
            options = {
                key: x.numpy() if isinstance(x, torch.Tensor) else x
                for key, x in sample.constructor_input.kwargs.items()
            }
            scores, target = (x.numpy() for x in sample.forward_input.args)
            function = getattr(torch_compat, MODULES[module][0])
            with pytest.raises((TypeError, ValueError), match=TABLE_ERRORS[error.error_regex]) as caught:
                function(scores, target, **options)
            assert str(caught.value).startswith(f"torch_compat.{function.__name__}: ")
            seen.add(error.error_regex)
    assert seen == set(TABLE_ERRORS)


class Difference(NamedTuple):
    """Where torch_compat is not torch.

    Attributes:
        function: which one.
        says: the words of its docstring that name the case.
        input: scores, float32 unless they are an array.
        target: labels, int64 or float32.
        ours, theirs: the value of each, or what is raised.
        our_grad, their_grad: by `input`, or None.
        options: keywords.
    """

    function: str
    says: str
    input: Any
    target: Any
    ours: Any
    theirs: Any
    our_grad: Any = None
    their_grad: Any = None
    options: dict[str, Any] = {}  # noqa: RUF012 - never written to


CE, NLL, BCE, LOGITS = FUNCTIONS = [function for function, _ in MODULES.values()]
TINY = np.exp(-20.0) * 2
HALF = np.array([[0.5, 3.0, -1.0]])
DIFFERENCES = {
    "confident row": Difference(
        CE,
        "A confident row keeps its digits",
        [[20, 0, 0]],
        [0],
        np.log1p(TINY),
        0,
        [[-TINY, TINY / 2, TINY / 2]],
        [[0, TINY / 2, TINY / 2]],
    ),
    "ignored row with NaN": Difference(
        CE,
        "An ignored row is exactly 0 whatever it holds",
        [[NAN, 0, 1], [0, 0, 0]],
        [-100, 1],
        np.log(3),
        np.log(3),
        [[0, 0, 0], [1 / 3, -2 / 3, 1 / 3]],
        [[NAN, NAN, NAN], [1 / 3, -2 / 3, 1 / 3]],
    ),
    "−inf class under smoothing": Difference(
        CE,
        "smoothing goes to the other classes",
        [[0, -INF, 0]],
        [0],
        np.log(2),
        INF,
        [[-0.35, 0, 0.35]],
        [[-0.3, -0.1, 0.4]],
        {"label_smoothing": 0.3},
    ),
    "−inf class without a target": Difference(
        CE, "a target or a weight of 0 costs nothing", [[0, -INF, 0]], [[0.5, 0, 0.5]], np.log(2), NAN
    ),
    "−inf class of weight 0": Difference(
        CE,
        "a target or a weight of 0 costs nothing",
        [[0, -INF, 0]],
        [1],
        0,
        NAN,
        options={"weight": [1, 0, 1], "reduction": "sum"},
    ),
    "negative smoothing": Difference(
        CE,
        "A negative `label_smoothing` is an error",
        [[0, 0]],
        [1],
        ValueError,
        np.log(2),
        options={"label_smoothing": -0.1},
    ),
    "int32 ids": Difference(
        CE, "Ids may have any integer dtype", [[0, 0]], np.array([1], np.int32), np.log(2), RuntimeError
    ),
    "mixed dtypes": Difference(
        CE,
        "Dtypes may be mixed",
        [[0, 0]],
        [1],
        np.log(2),
        RuntimeError,
        options={"weight": np.array([1, 2], np.float16)},
    ),
    "zero classes, all ignored": Difference(
        CE,
        "Zero classes are an error",
        np.zeros((2, 0), np.float32),
        [-100, -100],
        ValueError,
        0,
        options={"reduction": "sum"},
    ),
    "log-probability of −inf and weight 0": Difference(
        NLL,
        "a weight of 0 costs nothing",
        [[0, -INF]],
        [1],
        0,
        NAN,
        options={"weight": [1, 0], "reduction": "sum"},
    ),
    "+inf at the label": Difference(NLL, "An entry of +inf at the label gives NaN", [[INF, -1]], [0], NAN, -INF),
    "int32 ids of nll_loss": Difference(
        NLL, "Ids may have any integer dtype", [[-1, -2]], np.array([1], np.int32), 2, RuntimeError
    ),
    "probability and label 1": Difference(BCE, "it is 0, not −1, at p = y = 1", [1], [1.0], 0, 0, [-1], [0]),
    "probability below the clamp": Difference(
        BCE,
        "loses one of the two",
        np.array([1e-13]),
        np.array([0.5]),
        -0.5 * np.log(1e-13),
        -0.5 * np.log(1e-13),
        [-0.5e12 + 0.5],
        [(1e-13 - 0.5) / float(np.float32(1e-12))],
    ),
    "integer labels": Difference(BCE, "Labels may be bool or integer", [0.5], [1], np.log(2), RuntimeError),
    "logit of +inf, label 1": Difference(
        LOGITS, "A logit of ±inf on the right side costs 0", [INF], [1.0], 0, NAN, [0], [0]
    ),
    "logit of −inf, label 0": Difference(
        LOGITS, "A logit of ±inf on the right side costs 0", [-INF], [0.0], 0, NAN, [0], [0]
    ),
    "label of 2": Difference(LOGITS, "One outside [0, 1] by more than rounding gives NaN", [0], [2.0], NAN, np.log(2)),
    "bool labels": Difference(LOGITS, "Labels may be bool or integer", [0], [True], np.log(2), RuntimeError),
}
each_difference = pytest.mark.parametrize("difference", DIFFERENCES.values(), ids=DIFFERENCES)


def as_input(value):
    return np.asarray(value, None if isinstance(value, np.ndarray) else np.float32)


def as_option(value):
    return as_input(value) if isinstance(value, list) else value


def as_target(value):
    array = np.asarray(value)
    return array.astype(np.float32) if isinstance(value, list) and array.dtype.kind == "f" else array


@each_difference
def test_deliberate_difference_is_documented_and_ours_is_as_stated(difference):
    function = getattr(torch_compat, difference.function)
    assert difference.says in " ".join(function.__doc__.split())
    scores, target = as_input(difference.input), as_target(difference.target)
    options = {key: as_option(value) for key, value in difference.options.items()}
    if isinstance(difference.ours, type):
        with pytest.raises(difference.ours):
            function(scores, target, **options)
        return

    def call(scores):
        return function(scores, target, **options)

    with jax.enable_x64(scores.dtype == np.float64):
        if difference.our_grad is None:
            np.testing.assert_allclose(jax.jit(call)(scores), difference.ours, rtol=3e-6)
            return
        value, grad = jax.jit(jax.value_and_grad(call))(scores)
    np.testing.assert_allclose(value, difference.ours, rtol=3e-6)
    np.testing.assert_allclose(grad, difference.our_grad, rtol=3e-6)


@each_difference
def test_deliberate_difference_is_one_from_torch(torch, difference):
    scores, target = (as_torch(torch, x) for x in (as_input(difference.input), as_target(difference.target)))
    options = {
        key: as_torch(torch, as_option(value)) if isinstance(value, list | np.ndarray) else value
        for key, value in difference.options.items()
    }
    function = getattr(torch.nn.functional, difference.function)
    if isinstance(difference.theirs, type):
        with pytest.raises(difference.theirs):
            function(scores, target, **options)
        return
    value = function(scores.requires_grad_(), target, **options)
    np.testing.assert_allclose(value.item(), difference.theirs, rtol=3e-6)
    if difference.their_grad is not None:
        value.backward()
        np.testing.assert_allclose(scores.grad.numpy(), difference.their_grad, rtol=3e-6)


@pytest.mark.parametrize("name", TORCH_SIGNATURES)
def test_signature_is_torchs(torch, name):
    name = name.removeprefix("torch_compat.")
    theirs, here = (
        inspect.signature(getattr(m, name)).parameters.values() for m in (torch.nn.functional, torch_compat)
    )
    assert [(p.name, p.kind, p.default) for p in here] == [(p.name, p.kind, p.default) for p in theirs]


def plain_inputs(name):
    """Scores and labels that suit the function of that name."""
    scores = np.array([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]], np.float32)
    scores = {CE: scores, NLL: np.log(scores), BCE: scores, LOGITS: scores}[name]
    return scores, np.array([2, 0]) if name in (CE, NLL) else np.array([[0.0, 1, 0.5], [1, 1, 0]], np.float32)


LEGACY = {
    (None, True): "mean",
    (None, False): "none",
    (True, None): "mean",
    (True, True): "mean",
    (True, False): "none",
    (False, None): "sum",
    (False, True): "sum",
    (False, False): "none",
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_size_average_and_reduce_override_reduction_with_a_warning(name):
    function, inputs = getattr(torch_compat, name), plain_inputs(name)
    expected = {reduction: formula(name, *inputs, reduction=reduction) for reduction in REDUCTIONS}
    for (size_average, reduce), reduction in LEGACY.items():
        message = f"^torch_compat.{name}: size_average and reduce are deprecated; use reduction='{reduction}'$"
        with pytest.warns(DeprecationWarning, match=message) as caught:
            value = function(*inputs, size_average=size_average, reduce=reduce, reduction="overridden")
        assert [warning.filename for warning in caught] == [__file__]
        np.testing.assert_allclose(value, expected[reduction], rtol=1e-6)


def test_size_average_and_reduce_mean_what_they_mean_in_torch(torch):
    for (size_average, reduce), reduction in LEGACY.items():
        legacy = torch.nn._reduction.legacy_get_string(size_average, reduce, emit_warning=False)
        assert legacy == reduction


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mean_of_nothing_is_nan_and_the_other_reductions_are_not(name):
    function = getattr(torch_compat, name)
    scores, target = (x[:0] for x in plain_inputs(name))
    assert np.isnan(function(scores, target))
    assert function(scores, target, reduction="sum") == 0
    assert function(scores, target, reduction="none").shape == target.shape


def test_mean_of_an_empty_batch_of_distributions_is_nan():
    scores = np.zeros((2, 3, 0), np.float32)
    assert np.isnan(torch_compat.cross_entropy(scores, scores))


@pytest.mark.parametrize("weight", [None, (0.5, 1, 2)])
@pytest.mark.parametrize("name", [CE, NLL])
def test_mean_over_ignored_rows_only_is_nan_with_a_zero_gradient(name, weight):
    scores, _ = plain_inputs(name)
    call = functools.partial(getattr(torch_compat, name), target=np.full(2, -100), weight=weight)
    value, grad = jax.value_and_grad(call)(scores)
    assert np.isnan(value)
    np.testing.assert_array_equal(grad, np.zeros_like(scores))


@pytest.mark.parametrize(("name", "options"), [(CE, {}), (CE, {"label_smoothing": 0.1}), (NLL, {})])
def test_mean_of_total_weight_zero_is_nan_with_its_gradient(name, options):
    scores, _ = plain_inputs(name)
    call = functools.partial(getattr(torch_compat, name), target=np.array([1, -100]), weight=[1.0, 0.0, 1.0], **options)
    value, grad = jax.value_and_grad(call)(scores)
    assert np.isnan(value)
    assert np.isnan(grad[0, 1])
    np.testing.assert_array_equal(grad[1], np.zeros(3))


def test_mean_of_total_weight_zero_is_nan_where_torch_is(torch):
    weight = torch.tensor([1.0, 0.0, 1.0])
    for name, options in ((CE, {}), (CE, {"label_smoothing": 0.1}), (NLL, {})):
        scores = as_torch(torch, plain_inputs(name)[0]).requires_grad_()
        value = getattr(torch.nn.functional, name)(scores, torch.tensor([1, -100]), weight, **options)
        value.backward()
        assert value.isnan()
        assert scores.grad[0, 1].isnan()
        assert not scores.grad[1].any()


@pytest.mark.parametrize("name", [CE, NLL])
def test_single_row_takes_its_id_as_a_scalar_or_as_one_element(name):
    function, (scores, target) = getattr(torch_compat, name), plain_inputs(name)
    expected = formula(name, scores[:1], target[:1], reduction="none")[0]
    for shape in ((), (1,)):
        for reduction in REDUCTIONS:
            value = function(scores[0], target[:1].reshape(shape), reduction=reduction)
            assert value.shape == ()
            np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_lists_are_taken_and_16_bit_scores_give_float32(name):
    function, (scores, target) = getattr(torch_compat, name), plain_inputs(name)
    expected = formula(name, scores, target, reduction="mean")
    weights = {"weight": [1, 1.0, 1]} | ({"pos_weight": [[1], [1.0]]} if name == LOGITS else {})
    np.testing.assert_allclose(function(scores.tolist(), target.tolist(), **weights), expected, rtol=1e-6)
    value = function(jnp.asarray(scores, jnp.bfloat16), target)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=2e-2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_of_both_directions_agree_with_differences(name):
    scores, target = plain_inputs(name)
    with jax.enable_x64(True):
        call = jax.jit(functools.partial(getattr(torch_compat, name), target=target))
        check_grads(call, (scores.astype(np.float64),), order=1)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_vmap_over_single_rows_gives_the_rows(name):
    function, inputs = getattr(torch_compat, name), plain_inputs(name)
    rows = jax.vmap(functools.partial(function, reduction="sum"))(*inputs)
    expected = formula(name, *inputs, reduction="none").reshape(2, -1).sum(1)
    np.testing.assert_allclose(rows, expected, rtol=1e-6)


@pytest.mark.parametrize("name", [CE, NLL])
@pytest.mark.parametrize("bad", [-1, 3])
def test_bad_id_raises_where_it_is_known_and_is_nan_where_it_is_traced(name, bad):
    function, (scores, target) = getattr(torch_compat, name), plain_inputs(name)
    target[1] = bad
    message = rf"^torch_compat.{name}: target is {bad} at \(1,\); expected an id in \[0, 3\), or ignore_index=-100"
    call = functools.partial(function, target=target)
    for transformed in (call, jax.grad(call), lambda scores: jax.vmap(lambda _: call(scores))(jnp.zeros(2))):
        with pytest.raises(IndexError, match=message):
            transformed(scores)

    @jax.jit
    def rows_and_grad(scores, target):
        def call(scores):
            return function(scores, target, reduction="none")

        return call(scores), jax.grad(lambda scores: call(scores).sum())(scores)

    for result in rows_and_grad(scores, target):
        np.testing.assert_array_equal(np.isnan(result).reshape(2, -1).all(1), [False, True])
        assert np.isfinite(result[0]).all()


@pytest.mark.parametrize("name", [CE, NLL])
@pytest.mark.parametrize("dtype", ["int4", "uint4", "int2", "uint2"])
def test_ids_of_a_few_bits_are_checked_as_others_are(name, dtype):
    function, (scores, _) = getattr(torch_compat, name), plain_inputs(name)
    target = jnp.array([1, 0], dtype)
    np.testing.assert_allclose(
        function(scores, target), formula(name, scores, np.array([1, 0]), reduction="mean"), rtol=1e-6
    )
    with pytest.raises(IndexError, match=r"target is 1 at \(0,\); expected an id in \[0, 1\)"):
        function(scores[:, :1], target)
    assert np.isfinite(function(scores[:, :1], target, ignore_index=1))


def test_wide_pos_weight_is_the_number_it_is():
    logits, labels = np.zeros((2, 1), np.float32), np.ones((2, 1), np.float32)
    for pos_weight in (np.array([2**40]), np.array([[2**40], [2**40]])):
        loss = torch_compat.binary_cross_entropy_with_logits(logits, labels, pos_weight=pos_weight)
        np.testing.assert_allclose(loss, 2**40 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("target", [jax.random.key(0), jax.random.split(jax.random.key(0), 2)], ids=["key", "keys"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_keys_are_no_labels(name, target):
    with pytest.raises(
        TypeError, match=rf"^torch_compat.{name}: target .* got key<fry>|^torch_compat.{name}: target has"
    ):
        getattr(torch_compat, name)(plain_inputs(name)[0], target)


def test_every_axis_that_fits_the_target_is_named():
    scores, target = np.zeros((4, 2, 4, 4), np.float32), np.zeros((2, 4, 4), int)
    with pytest.raises(ValueError, match=r"did you mean jnp.moveaxis\(input, 0, 1\)\?$"):
        torch_compat.cross_entropy(scores, target)
    scores = np.zeros((4, 2, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"jnp.moveaxis\(input, 2, 1\) or jnp.moveaxis\(input, 3, 1\)\?$"):
        torch_compat.cross_entropy(scores, np.zeros((4, 2, 4), int))


@pytest.mark.parametrize("bad", [-0.1, 1.1, 1.0005, NAN])
@pytest.mark.parametrize("argument", ["input", "target"])
def test_number_that_is_no_probability_raises_where_it_is_known_and_is_nan_where_it_is_traced(argument, bad):
    arrays = dict(zip(("input", "target"), plain_inputs(BCE), strict=True))
    arrays[argument][1, 2] = bad
    message = rf"^torch_compat.{BCE}: {argument} is {bad} at \(1, 2\); expected numbers in \[0, 1\]$"
    with pytest.raises(ValueError, match=message):
        torch_compat.binary_cross_entropy(**arrays)

    @jax.jit
    def elements_and_grad(arrays):
        def call(scores):
            return torch_compat.binary_cross_entropy(scores, arrays["target"], reduction="none")

        return call(arrays["input"]), jax.grad(lambda scores: call(scores).sum())(arrays["input"])

    for result in elements_and_grad(arrays):
        assert np.isnan(result[1, 2])
        assert np.isfinite(result.ravel()[:-1]).all()


X, P, IDS = np.zeros((2, 3), np.float32), np.full((2, 3), 0.5, np.float32), np.zeros(2, np.int32)
ERRORS = [
    (
        CE,
        (X, IDS),
        {"reduction": "partial"},
        ValueError,
        "reduction must be one of 'none', 'sum', 'mean'; got 'partial'",
    ),
    (NLL, (X, IDS), {"reduction": None}, ValueError, "reduction must be one of .*; got None"),
    (BCE, (P, P), {"reduction": "elementwise_mean"}, ValueError, "reduction must be one of"),
    (CE, (X.astype(int), IDS), {}, TypeError, "input must have a floating dtype; got int"),
    (CE, (np.float32(0), 0), {}, ValueError, r"input has shape \(\); expected \(C,\) or \(N, C, ...\)"),
    (CE, (X, IDS[:, None]), {}, ValueError, r"target has shape \(2, 1\) .* did you mean target.squeeze\(-1\)\?"),
    (CE, (X, IDS > 0), {}, TypeError, "target has dtype bool; expected an integer dtype"),
    (CE, (X, IDS), {"weight": X}, ValueError, r"weight has shape \(2, 3\); expected \(3,\), one per class"),
    (CE, (X, IDS), {"label_smoothing": 1.1}, ValueError, r"label_smoothing must be in \[0, 1\]; got 1.1"),
    (CE, (X, IDS), {"label_smoothing": NAN}, ValueError, r"label_smoothing must be in \[0, 1\]; got nan"),
    (CE, (X, IDS), {"ignore_index": None}, TypeError, "ignore_index must be a static integer; got None"),
    (
        CE,
        (X, P),
        {"ignore_index": 2},
        ValueError,
        "ignore_index goes with class ids, but target is a distribution; got 2",
    ),
    (NLL, (X, P), {}, TypeError, "target must have an integer dtype .* got float32; torch_compat.cross_entropy takes"),
    (NLL, (X[None], IDS), {}, ValueError, r"target has shape \(2,\) .* expected \(1, 3\)"),
    (BCE, (P, P[0]), {}, ValueError, r"target has shape \(3,\); expected \(2, 3\), the shape of input"),
    (
        BCE,
        (P, P),
        {"weight": X[:, :2]},
        ValueError,
        r"weight has shape \(2, 2\); expected one that broadcasts to \(2, 3\)",
    ),
    (BCE, (P, P), {"weight": X[None]}, ValueError, r"weight has shape \(1, 2, 3\); expected one that broadcasts"),
    (LOGITS, (X, P[:, :1]), {}, ValueError, r"target has shape \(2, 1\); expected \(2, 3\)"),
    (LOGITS, (X, P.T), {"pos_weight": X}, ValueError, r"target has shape \(3, 2\); expected \(2, 3\)"),
    (
        LOGITS,
        (X, P),
        {"pos_weight": X[:, :2]},
        ValueError,
        r"pos_weight has shape \(2, 2\); expected one that broadcasts",
    ),
]


@pytest.mark.parametrize(("name", "inputs", "options", "error", "message"), ERRORS)
def test_errors_are_in_torchs_words(name, inputs, options, error, message):
    with pytest.raises(error, match=f"^torch_compat.{name}: {message}"):
        getattr(torch_compat, name)(*inputs, **options)


def test_module_is_built_on_public_functions_checks_and_counts_alone():
    inside = {module for module in imported_modules(Path(torch_compat.__file__)) if module.startswith("jxent")}
    assert inside == {"jxent._core.arguments", "jxent._core.counts", "jxent.probs", "jxent.sigmoid", "jxent.softmax"}
