"""docs/migrating.md: both calls of every row of its tables run, and give the same number."""

import contextlib
import importlib.util
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jxent
from tests import stand_ins

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "migrating.md").read_text(encoding="utf-8")


class Row(NamedTuple):
    """The rows of one table: the old call, the new one, and the third column."""

    old: str
    new: str
    note: str


def read_tables():
    """The head of each table's first column → its rows."""
    tables, head = {}, None
    for line in PAGE.splitlines():
        if not line.startswith("|"):
            head = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 3, line
        if head is None:
            head = cells[0]
            tables[head] = []
        elif set(line) != {"|", "-"}:
            old, new = (re.fullmatch(r"`([^`]+)`", cell) for cell in cells[:2])
            tables[head].append(Row(old[1], new[1], cells[2]))
    return tables


TABLES = read_tables()


@pytest.fixture(scope="module")
def arrays():
    """What the page's first block makes, without the modules and the generator."""
    names = {}
    exec(re.search(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1], names)
    return {name: value for name, value in names.items() if isinstance(value, np.ndarray | int)}


# The arguments with respect to which the old and the new call are both differentiated.
SCORES = ("logits", "probs", "log_probs", "images", "x", "p")


def of_jax(calls, arrays, **modules):
    """The value of every call, and the gradients of its sum by all scores, in one compilation."""
    static = {name: value for name, value in arrays.items() if isinstance(value, int)}
    data = {name: value for name, value in arrays.items() if name not in static}
    scores = {name: data.pop(name) for name in SCORES}

    def evaluate(scores, data):
        def value_of(scores, call):
            names = {"jax": jax, "jnp": jnp, "jxent": jxent, **modules, **static, **data, **scores}
            value = eval(call, names)
            return jnp.sum(value), value

        return [jax.grad(value_of, has_aux=True)(scores, call)[::-1] for call in calls]

    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(evaluate)(scores, data))


def of_torch(torch, calls, arrays):
    names = {"torch": torch, "nn": torch.nn, "F": torch.nn.functional}
    names |= {name: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for name, x in arrays.items()}
    results = []
    for call in calls:
        leaves = [names[name].clone().requires_grad_() for name in SCORES]
        value = eval(call, names | dict(zip(SCORES, leaves, strict=True)))
        grads = torch.autograd.grad(value.sum(), leaves, materialize_grads=True)
        grads = {name: grad.numpy() for name, grad in zip(SCORES, grads, strict=True)}
        results.append((value.detach().numpy(), grads))
    return results


def assert_equal(rows, ours, theirs, rtol=1e-9):
    for row, (value, grads), (expected, expected_grads) in zip(rows, ours, theirs, strict=True):
        assert np.isfinite(value).all(), row.new
        np.testing.assert_allclose(value, expected, rtol=rtol, err_msg=row.old)
        for name, grad in expected_grads.items():
            np.testing.assert_allclose(grads[name], grad, rtol=rtol, atol=1e-12, err_msg=f"{row.old} by {name}")


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="parity extra: torch is not installed")


def installed_keras(home):
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setenv("KERAS_BACKEND", "jax")
        patch.setenv("KERAS_HOME", str(home))
        return importlib.import_module("keras")


@contextlib.contextmanager
def float64(keras):
    """Others' calls in float64, and free to promote ranks and dtypes."""
    with jax.enable_x64(True), lenient():
        if keras is stand_ins.keras:
            yield
            return
        keras.config.set_floatx("float64")
        try:
            yield
        finally:
            keras.config.set_floatx("float32")


@contextlib.contextmanager
def lenient():
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module", params=["formulas", *(["keras"] if importlib.util.find_spec("keras") else [])])
def keras(request, tmp_path_factory):
    """Keras' documented formulas, and Keras itself where it is installed."""
    return stand_ins.keras if request.param == "formulas" else installed_keras(tmp_path_factory.mktemp("keras"))


def assert_values_equal(rows, arrays, **modules):
    """The old calls evaluated as they stand, without their gradients."""
    ours = of_jax([row.new for row in rows], arrays)
    with float64(modules["keras"]):
        names = {"np": np, **modules, **arrays}
        theirs = [(np.asarray(eval(row.old, names)), {}) for row in rows]
    # On JAX, Keras takes means in float32, of float64 too.
    assert_equal(rows, ours, theirs, 1e-9 if modules["keras"] is stand_ins.keras else 1e-6)


def test_page_has_its_tables():
    assert {head: len(rows) for head, rows in TABLES.items()} == {
        "torch": 22,
        "softmax twice": 2,
        "optax": 14,
        "Keras": 12,
        "ε/(V−1), by hand": 1,
        "with focus": 5,
    }
    assert any("nn.CrossEntropyLoss(weight=" in row.old and "ignore_index=" in row.old for row in TABLES["torch"])


@pytest.fixture(scope="module")
def new_calls_of_torch_rows(arrays):
    return of_jax([row.new for row in TABLES["torch"]], arrays)


@pytest.mark.slow
def test_new_calls_run_without_torch(new_calls_of_torch_rows):
    assert all(np.isfinite(value).all() for value, _ in new_calls_of_torch_rows)


def test_rows_from_torch_agree(torch, arrays, new_calls_of_torch_rows):
    rows = TABLES["torch"]
    assert_equal(rows, new_calls_of_torch_rows, of_torch(torch, [row.old for row in rows], arrays))


def test_softmax_twice_is_what_torch_computes_and_not_what_was_meant(torch, arrays):
    rows = TABLES["softmax twice"]
    same, meant = of_jax([row.new for row in rows], arrays), of_jax([row.note.strip("`") for row in rows], arrays)
    assert_equal(rows, same, of_torch(torch, [row.old for row in rows], arrays))
    right = ["F.cross_entropy(logits, labels)", "F.nll_loss(torch.log(probs), labels)"]
    assert_equal(rows, meant, of_torch(torch, right, arrays))
    assert all(abs(value - true) > 0.02 for (value, _), (true, _) in zip(same, meant, strict=True))


def test_softmax_twice_has_a_floor_and_no_gradient_where_it_is_confidently_wrong():
    loss = jax.jit(jax.value_and_grad(lambda logits: jxent.softmax_cross_entropy(jax.nn.softmax(logits), 0)))
    floor, _ = loss(jnp.array([100.0, 0, 0, 0, 0]))
    np.testing.assert_allclose(floor, np.log1p(4 / np.e), rtol=1e-6)
    wrong, grad = loss(jnp.array([0, 20.0, 0, 0, 0]))
    assert wrong > floor
    np.testing.assert_allclose(grad, 0, atol=1e-8)


def test_rows_from_optax_agree(arrays):
    rows = TABLES["optax"] + TABLES["ε/(V−1), by hand"]
    with lenient():
        theirs = of_jax([row.old for row in rows], arrays, optax=optax)
    assert_equal(rows, of_jax([row.new for row in rows], arrays), theirs)


def test_rows_from_keras_agree(keras, arrays):
    assert_values_equal(TABLES["Keras"], arrays, keras=keras)


def test_rows_with_focus_agree(keras, arrays):
    assert_values_equal(TABLES["with focus"], arrays, keras=keras, optax=optax, torchvision=stand_ins.torchvision)
