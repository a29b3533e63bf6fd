"""What is public: the names, their signatures and docstrings, and what the package imports."""

import ast
import inspect
import json
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jxent
from tests import oracle
from tests.losses import LOSSES, VARIANTS, assert_close, by_name

PACKAGE = Path(jxent.__file__).parent
ROOT = PACKAGE.parent

# Positional arguments, then the keyword-only ones with their defaults.
WEIGHTS = {"class_weight": None, "sample_weight": None, "where": None}
MULTICLASS = {**WEIGHTS, "ignore_index": None, "label_smoothing": 0.0, "axis": -1, "reduction": "none"}
BINARY = {"pos_weight": None, **WEIGHTS, "label_smoothing": 0.0, "reduction": "none"}
SIGNATURES = {
    "softmax_cross_entropy": (
        ("logits", "labels"),
        {
            **WEIGHTS,
            "ignore_index": None,
            "label_smoothing": 0.0,
            "z_loss": 0.0,
            "axis": -1,
            "reduction": "none",
            "vocab_axis_name": None,
            "return_aux": False,
        },
    ),
    "linear_softmax_cross_entropy": (
        ("hidden", "kernel", "labels"),
        {
            "bias": None,
            "transpose_kernel": False,
            **WEIGHTS,
            "ignore_index": None,
            "label_smoothing": 0.0,
            "z_loss": 0.0,
            "logit_scale": None,
            "logit_softcap": None,
            "reduction": "none",
            "vocab_axis_name": None,
            "return_aux": False,
            "chunk_size": None,
            "precision": None,
        },
    ),
    "softmax_log_probs": (
        ("logits", "ids"),
        {
            "where": None,
            "ignore_index": None,
            "logit_scale": None,
            "axis": -1,
            "vocab_axis_name": None,
            "return_entropy": False,
        },
    ),
    "linear_softmax_log_probs": (
        ("hidden", "kernel", "ids"),
        {
            "bias": None,
            "transpose_kernel": False,
            "where": None,
            "ignore_index": None,
            "logit_scale": None,
            "logit_softcap": None,
            "vocab_axis_name": None,
            "return_entropy": False,
            "chunk_size": None,
            "precision": None,
        },
    ),
    "linear_softmax_loss": (
        ("row_loss", "hidden", "kernel", "ids"),
        {
            "bias": None,
            "transpose_kernel": False,
            "sample_weight": None,
            "where": None,
            "ignore_index": None,
            "logit_scale": None,
            "logit_softcap": None,
            "reduction": "mean",
            "vocab_axis_name": None,
            "chunk_size": None,
            "precision": None,
        },
    ),
    "softmax_distillation": (
        ("logits", "teacher_logits"),
        {
            "temperature": None,
            "beta": 0.0,
            "sample_weight": None,
            "where": None,
            "axis": -1,
            "reduction": "none",
            "vocab_axis_name": None,
        },
    ),
    "linear_softmax_distillation": (
        ("hidden", "kernel", "teacher_hidden", "teacher_kernel"),
        {
            "bias": None,
            "transpose_kernel": False,
            "teacher_bias": None,
            "teacher_transpose_kernel": False,
            "temperature": None,
            "beta": 0.0,
            "sample_weight": None,
            "where": None,
            "reduction": "none",
            "vocab_axis_name": None,
            "chunk_size": None,
            "precision": None,
        },
    ),
    "softmax_focal_loss": (
        ("logits", "labels"),
        {"gamma": 2.0, **WEIGHTS, "ignore_index": None, "axis": -1, "reduction": "none"},
    ),
    "poly1_cross_entropy": (("logits", "labels"), {"epsilon": 2.0, **MULTICLASS}),
    "sigmoid_binary_cross_entropy": (("logits", "labels"), BINARY),
    "sigmoid_focal_loss": (
        ("logits", "labels"),
        {"alpha": None, "gamma": 2.0, "sample_weight": None, "where": None, "reduction": "none"},
    ),
    "cross_entropy_from_probs": (("probs", "labels"), MULTICLASS),
    "cross_entropy_from_log_probs": (("log_probs", "labels"), MULTICLASS),
    "binary_cross_entropy_from_probs": (("probs", "labels"), BINARY),
    "class_counts": (("labels", "num_classes"), {"where": None}),
    "balanced_class_weights": (("counts",), {}),
    "effective_number_weights": (("counts",), {"beta": 0.999}),
    "log_prior_adjustment": (("counts",), {"tau": 1.0}),
    "check_labels": (("labels", "num_classes"), {"ignore_index": None}),
    "weighted_mean": (("values",), {"where": None, "sample_weight": None, "axis": None, "empty": 0.0}),
}
# torch's: every argument by position or by name.
TORCH_MULTICLASS = {"weight": None, "size_average": None, "ignore_index": -100, "reduce": None, "reduction": "mean"}
TORCH_BINARY = {"weight": None, "size_average": None, "reduce": None, "reduction": "mean"}
TORCH_SIGNATURES = {
    "torch_compat.cross_entropy": {**TORCH_MULTICLASS, "label_smoothing": 0.0},
    "torch_compat.nll_loss": TORCH_MULTICLASS,
    "torch_compat.binary_cross_entropy": TORCH_BINARY,
    "torch_compat.binary_cross_entropy_with_logits": {**TORCH_BINARY, "pos_weight": None},
}
CLASSES = {
    "Mean": ("total", "weight"),
    "CrossEntropyAux": ("log_z", "predicted", "nll", "entropy"),
    "LogProbs": ("log_prob", "entropy"),
    "SparseLabels": ("ids", "weights"),
}
# Those that take further arrays by position after these.
TAKE_MORE = {"linear_softmax_loss": "row_args"}
LOSS_NAMES = [name for name, (_, keywords) in SIGNATURES.items() if {"reduction", "return_entropy"} & {*keywords}]
# The one order of the keywords; each loss takes some of them.
KEYWORDS = [
    "bias",
    "transpose_kernel",
    "teacher_bias",
    "teacher_transpose_kernel",
    "temperature",
    "beta",
    "alpha",
    "gamma",
    "epsilon",
    "pos_weight",
    "class_weight",
    "sample_weight",
    "where",
    "ignore_index",
    "label_smoothing",
    "z_loss",
    "logit_scale",
    "logit_softcap",
    "axis",
    "reduction",
    "vocab_axis_name",
    "return_aux",
    "return_entropy",
    "chunk_size",
    "precision",
]
SECTIONS = ["Args", "Returns", "Raises", "Gradients", "Example", "References", "See also"]
ALL_SECTIONS = {*SECTIONS, "Attributes"}


def sections(docstring):
    """The title of each section → its text, in order."""
    parts = re.split(r"^(\w[\w ]*):\n(?= )", inspect.cleandoc(docstring), flags=re.MULTILINE)
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return {title: text for title, text in found.items() if title in ALL_SECTIONS}


def described(section):
    """The names that an Args or Attributes section describes, in order."""
    return re.findall(r"^    \*?(\w+): \S", section, re.MULTILINE)


def imported_modules(path):
    """The absolute names of all modules that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            # `from jxent._core import arguments` imports a module too.
            is_package = (ROOT / node.module.replace(".", "/")).is_dir()
            names.update(f"{node.module}.{alias.name}" if is_package else node.module for alias in node.names)
    return names


def is_within(module, packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_package_names_are_exactly_the_public_ones():
    public = {name for name, value in vars(jxent).items() if not (name.startswith("_") or inspect.ismodule(value))}
    assert public == {*SIGNATURES, *CLASSES}
    submodules = {name for name, value in vars(jxent).items() if inspect.ismodule(value) and not name.startswith("_")}
    assert submodules == {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}


def test_package_version_is_the_one_of_the_release():
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+|(a|b|rc)\d+)?", jxent.__version__)


@pytest.mark.parametrize("name", SIGNATURES)
def test_functions_signature_is_the_designed_one(name):
    parameters = inspect.signature(getattr(jxent, name)).parameters.values()
    positional = tuple(p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD)
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    more = [p.name for p in parameters if p.kind is p.VAR_POSITIONAL]
    assert more == ([TAKE_MORE[name]] if name in TAKE_MORE else [])
    assert len(positional) + len(more) + len(keywords) == len(parameters)
    assert all(p.default is p.empty for p in parameters if p.name in positional)
    assert positional == SIGNATURES[name][0]
    assert list(keywords.items()) == list(SIGNATURES[name][1].items())


def test_torch_compat_names_are_exactly_the_designed_ones():
    members = vars(jxent.torch_compat).items()
    own = {name for name, value in members if getattr(value, "__module__", None) == "jxent.torch_compat"}
    public = {f"torch_compat.{name}" for name in own if not name.startswith("_")}
    assert public == set(TORCH_SIGNATURES)


@pytest.mark.parametrize("name", TORCH_SIGNATURES)
def test_torch_compat_signature_is_the_designed_one(name):
    parameters = inspect.signature(attrgetter(name)(jxent)).parameters.values()
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    scores, target, *rest = parameters
    assert [(p.name, p.default) for p in (scores, target)] == [("input", scores.empty), ("target", scores.empty)]
    assert [(p.name, p.default) for p in rest] == list(TORCH_SIGNATURES[name].items())


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_losses_keywords_come_in_one_order(name):
    keywords = [p.name for p in inspect.signature(getattr(jxent, name)).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert set(keywords) <= set(KEYWORDS), "a keyword is missing from KEYWORDS"
    assert keywords == [keyword for keyword in KEYWORDS if keyword in keywords]


def test_guides_table_of_arguments_is_that_of_the_signatures():
    page = (ROOT / "docs" / "which.md").read_text(encoding="utf-8")
    section = page.partition("## Which function has which argument\n")[2]
    head, _, *rows = (
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in section.splitlines() if "|" in line
    )
    shown = {name: {key: mark == "✓" for key, mark in zip(head[1:], marks, strict=True)} for name, *marks in rows}
    assert {mark for _, *marks in rows for mark in marks} == {"✓", ""}
    assert shown == {name: {key: key in SIGNATURES[name][1] for key in head[1:]} for name in LOSS_NAMES}
    # The text above the table names three more.
    assert all("where" in SIGNATURES[name][1] for name in LOSS_NAMES)
    without = {name for name in LOSS_NAMES if not {"sample_weight", "reduction"} <= {*SIGNATURES[name][1]}}
    assert without == {"softmax_log_probs", "linear_softmax_log_probs"}


@pytest.mark.parametrize("name", [name for name in LOSS_NAMES if name not in TAKE_MORE])
def test_losses_options_are_refused_by_position(name):
    with pytest.raises(TypeError, match="positional"):
        getattr(jxent, name)(*[jnp.full((2, 2), 0.5)] * len(SIGNATURES[name][0]), None)


@pytest.mark.parametrize("loss", **by_name([*LOSSES, *VARIANTS]))
def test_losses_arguments_work_by_name(loss, rng):
    scores, labels = loss.inputs(rng, (3,))
    name = loss.name.split("-")[0]
    value = getattr(jxent, name)(**{SIGNATURES[name][0][0]: scores, "labels": labels})
    assert_close(value, oracle.reduce(*loss.oracle(scores, labels)))


@pytest.mark.parametrize("name", CLASSES)
def test_classes_fields_are_the_designed_ones(name):
    cls = getattr(jxent, name)
    assert cls._fields == CLASSES[name]
    assert tuple(cls(*range(len(CLASSES[name])))) == (*range(len(CLASSES[name])),)


@pytest.mark.parametrize("name", [*SIGNATURES, *TORCH_SIGNATURES])
def test_functions_docstring_has_every_section_in_order(name):
    function = attrgetter(name)(jxent)
    found = sections(function.__doc__)
    assert list(found) == SECTIONS
    assert all(text.strip() for text in found.values())
    assert described(found["Args"]) == list(inspect.signature(function).parameters)
    assert ">>> " in found["Example"]


@pytest.mark.parametrize("name", CLASSES)
def test_classes_docstring_has_its_sections_in_order(name):
    cls = getattr(jxent, name)
    found = sections(cls.__doc__)
    assert {"Example", "See also"} <= set(found)
    in_order = ["Attributes", *SECTIONS]
    assert list(found) == [title for title in in_order if title in found]
    assert described(found["Attributes"]) == list(cls._fields)
    assert ">>> " in found["Example"]


@pytest.mark.parametrize("method", [jxent.Mean.value, jxent.Mean.psum, jxent.Mean.__add__], ids=lambda m: m.__name__)
def test_mean_docstrings_name_every_parameter(method):
    found = sections(method.__doc__)
    assert described(found["Args"]) == list(inspect.signature(method).parameters)[1:]


@pytest.mark.parametrize("name", [*SIGNATURES, *TORCH_SIGNATURES, *CLASSES])
def test_docstrings_point_only_at_what_exists(name):
    names = re.findall(r"`([\w.]+)`", sections(attrgetter(name)(jxent).__doc__)["See also"])
    assert names
    assert set(names) <= {*SIGNATURES, *TORCH_SIGNATURES, *CLASSES} - {name}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_package_imports_run_one_way(path):
    modules = imported_modules(path)
    public = {f"jxent.{p.stem}" for p in PACKAGE.glob("*.py")} - {"jxent.__init__"}
    outside = {m for m in modules if not is_within(m, ["jxent"])}
    inside = modules - outside
    assert all(m.split(".")[0] in {"jax", "numpy", *sys.stdlib_module_names} for m in outside), outside
    if path.parent.name == "_core":
        assert all(is_within(m, ["jxent._core"]) for m in inside), inside
    elif path.name == "__init__.py":
        # `from jxent.softmax import …`: the name is a member there, never a private module.
        assert all(is_within(m, public) for m in inside), inside
        assert not outside
    else:
        assert all(is_within(m, ["jxent._core", *(public - {f"jxent.{path.stem}"})]) for m in inside), inside


def test_package_imports_form_no_cycle():
    def module_name(path):
        return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")

    imports = {module_name(path): imported_modules(path) for path in PACKAGE.rglob("*.py")}
    imports = {name: set(imports) & modules for name, modules in imports.items()}
    while imports:
        leaves = {name for name, modules in imports.items() if not modules & set(imports)}
        assert leaves, f"a cycle among {sorted(imports)}"
        imports = {name: modules for name, modules in imports.items() if name not in leaves}


def test_package_is_typed():
    assert (PACKAGE / "py.typed").is_file()


def test_package_import_needs_jax_alone():
    program = (
        "import json, sys, jax, jax.numpy\n"
        "before = {name.split('.')[0] for name in sys.modules}\n"
        "import jxent\n"
        "loss = jxent.softmax_cross_entropy([[0.0, 0.0]], [1], reduction='mean')\n"
        "after = {name.split('.')[0] for name in sys.modules}\n"
        "print(json.dumps([sorted(after - before), sorted(after), float(loss)]))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    brought, present, loss = json.loads(result.stdout)
    assert {name for name in brought if name not in sys.stdlib_module_names} == {"jxent"}
    assert not {"optax", "chex", "flax", "torch", "sklearn", "hypothesis", "equinox"} & set(present)
    np.testing.assert_allclose(loss, np.log(2), rtol=1e-6)
