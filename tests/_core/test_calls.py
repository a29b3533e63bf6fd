"""Calls with arguments that a function does not have: the error names the right one, and nothing else has changed."""

import inspect
import re

import jax
import numpy as np
import pytest

import jxent
from jxent._core.rows import state
from tests.test_api import SIGNATURES, TAKE_MORE

x = np.zeros((2, 3), np.float32)
ids = np.zeros(2, np.int32)
softmax, sigmoid, focal = jxent.softmax_cross_entropy, jxent.sigmoid_binary_cross_entropy, jxent.softmax_focal_loss
UNKNOWN = {
    "weight": (softmax, "softmax_cross_entropy: has no argument 'weight'; did you mean class_weight or sample_weight?"),
    "weight of a binary loss": (sigmoid, "'weight'; did you mean pos_weight or class_weight or sample_weight?"),
    "weight of a mean": (jxent.weighted_mean, "weighted_mean: has no argument 'weight'; did you mean sample_weight?"),
    "weights": (softmax, "did you mean class_weight or sample_weight?"),
    "mask": (softmax, "'mask'; did you mean where?"),
    "dim": (softmax, "'dim'; did you mean axis?"),
    "smoothing": (softmax, "'smoothing'; did you mean label_smoothing?"),
    "softcap": (jxent.linear_softmax_cross_entropy, "'softcap'; did you mean logit_softcap?"),
    "alpha": (focal, "softmax_focal_loss: has no argument 'alpha'; did you mean class_weight?"),
    "ignore_index": (sigmoid, "'ignore_index'; did you mean where?"),
    "temperature": (jxent.softmax_log_probs, "'temperature'; did you mean logit_scale?"),
    "from_logits": (softmax, "has no argument 'from_logits'"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_argument_is_named_with_the_right_one(name):
    function, words = UNKNOWN[name]
    positional = [x, ids, ids][: len(SIGNATURES[function.__name__][0])]
    with pytest.raises(TypeError, match=f"{re.escape(words)}$"):
        function(*positional, **{name.split()[0]: None})


def test_unknown_argument_is_no_other_one_that_was_given():
    with pytest.raises(TypeError, match=r"has no argument 'target'; did you mean labels\?$"):
        softmax(x, target=ids)
    with pytest.raises(TypeError, match=r"has no argument 'weight'; did you mean sample_weight\?$"):
        softmax(x, ids, weight=np.ones(2), class_weight=np.ones(3))


def test_labels_of_a_function_of_ids_are_named():
    with pytest.raises(TypeError, match=r"softmax_log_probs: has no argument 'labels'; did you mean ids\?$"):
        jxent.softmax_log_probs(x, labels=ids)


def test_too_many_arguments_are_named():
    with pytest.raises(
        TypeError, match=re.escape("takes 2 positional arguments (logits, labels); got 3; pass the others")
    ):
        softmax(x, ids, np.ones(3))
    with pytest.raises(TypeError, match=r"^softmax_cross_entropy: .* by name, as class_weight=\.\.\.$"):
        softmax(x, ids, np.ones(3))
    with pytest.raises(TypeError, match=r"^weighted_mean: takes 1 .* \(values\); got 2; .* as where=\.\.\.$"):
        jxent.weighted_mean(x, x)
    with pytest.raises(TypeError, match=r"^balanced_class_weights: takes 1 positional arguments \(counts\); got 2$"):
        jxent.balanced_class_weights(x[0], 1)


def test_missing_argument_is_left_to_python():
    with pytest.raises(TypeError, match=r"softmax_cross_entropy\(\) missing 1 required positional argument: 'labels'"):
        softmax(x)


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_function_names_arguments(name):
    """And shows as what it is: name, module, signature, source."""
    function = getattr(jxent, name)
    positional, named = SIGNATURES[name]
    with pytest.raises(TypeError, match=f"^{name}: has no argument 'nonsense'$"):
        function(nonsense=1)
    if name not in TAKE_MORE:
        with pytest.raises(TypeError, match=f"^{name}: takes {len(positional)} positional arguments"):
            function(*[x] * (len(positional) + 1))
    assert (function.__name__, function.__module__.split(".")[0]) == (name, "jxent")
    assert list(inspect.signature(function).parameters) == [*positional, *filter(None, [TAKE_MORE.get(name)]), *named]
    assert f"def {name}(" in inspect.getsource(function)


def test_value_and_gradient_trace_a_row_once(monkeypatch):
    traced = []

    def counted(*arguments, row_state=state.row_state):
        traced.append(arguments)
        return row_state(*arguments)

    monkeypatch.setattr(state, "row_state", counted)
    jax.clear_caches()
    # With so many classes the CPU has a form of its own.
    logits = np.zeros((2, 40), np.float32)
    jax.jit(jax.value_and_grad(lambda x: softmax(x, ids, reduction="mean"))).trace(logits)
    jax.clear_caches()
    assert len(traced) == 1
