"""The site in docs/: it builds without a warning, misses nothing public, and what its pages show runs and is so."""

import importlib.util
import inspect
import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import jxent
from tests.markdown import run_examples

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
GUIDES = [page for page in PAGES if page.stem not in ("index", "changelog")]
EXAMPLES = sorted((DOCS / "examples").glob("*.py"))
TIMEOUT = 300  # seconds; against hanging


def need(*modules):
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"docs extra not installed: No module named {module!r}")


def public_names():
    """Everything public, by the name that the reference uses."""
    names = {name for name, value in vars(jxent).items() if not (name.startswith("_") or inspect.ismodule(value))}
    members = vars(jxent.torch_compat).items()
    own = {name for name, value in members if getattr(value, "__module__", None) == "jxent.torch_compat"}
    names |= {f"torch_compat.{name}" for name in own if not name.startswith("_")}
    for cls in (jxent.Mean, jxent.CrossEntropyAux, jxent.LogProbs, jxent.SparseLabels):
        methods = {name for name, value in vars(cls).items() if inspect.isfunction(value) and value.__doc__}
        own_methods = {name for name in methods if not name.startswith("_") or name == "__add__"}
        names |= {f"{cls.__name__}.{name}" for name in {*cls._fields, *own_methods}}
    return {f"jxent.{name}" for name in names}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site; warnings are errors, and so is a name in code that refers to nothing."""
    need("sphinx", "myst_nb", "furo", "sphinx_copybutton")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-d", out / "doctrees", DOCS, out / "html"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out / "html"


@pytest.fixture(scope="module")
def inventory(site):
    """Name → the page and anchor of its entry, of everything Python in the reference."""
    from sphinx.util.inventory import InventoryFile  # noqa: PLC0415

    data = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    return {name: item.uri for kind, items in data.items() if kind.startswith("py:") for name, item in items.items()}


def test_docs_reference_has_an_entry_for_each_public_name(inventory, site):
    names = public_names()
    assert len(names) > 25
    # Sphinx lists a module, and a class also by where it is defined.
    beside = {
        "jxent.torch_compat",
        *(
            f"{cls.__module__}.{cls.__name__}"
            for cls in (jxent.Mean, jxent.CrossEntropyAux, jxent.LogProbs, jxent.SparseLabels)
        ),
    }
    assert set(inventory) - beside == names
    for name in names:
        page, anchor = inventory[name].split("#")
        assert f'id="{anchor}"' in (site / page).read_text(encoding="utf-8"), name


def test_docs_reference_shows_arguments_and_what_comes_back(site):
    page = (site / "api" / "multiclass.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", page)
    for wanted in ("label_smoothing=0.0", "Parameters:", "Returns:", "Gradients", "See also"):
        assert wanted in text, wanted
    for path in (site / "api").glob("*.html"):
        # Prose, of which nothing is taken for a type.
        starts = re.findall(r"Returns<.*?</dt>\s*<dd[^>]*>(?:<p>)?(.{4})", path.read_text(encoding="utf-8"), re.DOTALL)
        assert "<em>" not in starts, path.stem
    assert 'href="linear.html' in page
    # Code that names something public is a link.
    assert re.search(r'href="reductions\.html#jxent\.Mean"[^>]*><code', page)


def test_docs_pages_are_all_reached_from_the_index(site):
    # Sphinx warns of a page in no toctree, but notebooks and guides have to be there at all.
    page = (site / "index.html").read_text(encoding="utf-8")
    notebooks = [f"notebooks/{path.stem}" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert len(notebooks) >= 3
    for name in [*(guide.stem for guide in GUIDES), *notebooks, "api/index", "changelog"]:
        assert f'href="{name}.html"' in page, name
        assert (site / f"{name}.html").is_file(), name


def test_docs_notebooks_show_their_outputs(site):
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page = (site / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert 'class="output' in page, path.stem
        assert re.search(r'<img[^>]*src="\.\./_images/[0-9a-f]+\.png"', page), path.stem


def test_docs_load_nothing_from_elsewhere(site):
    assert (site / "_static" / "mathjax" / "tex-chtml.js").is_file()
    for page in site.rglob("*.html"):
        tags = re.findall(r"<(?:script|link|img)\b[^>]*>", page.read_text(encoding="utf-8"))
        fetched = [
            tag for tag in tags if re.search(r'(?:src|href)="(?:https?:)?//', tag) and 'rel="canonical"' not in tag
        ]
        assert fetched == [], page


def anchors(page):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("*.md")), *PAGES], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_docs_relative_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.optimised
@pytest.mark.parametrize("page", [page for page in PAGES if ">>> " in page.read_text("utf-8")], ids=lambda p: p.stem)
def test_docs_examples_print_what_they_say(page):
    run_examples(page)


def run_script(path, *arguments):
    return subprocess.run(
        [sys.executable, path, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_docs_training_steps_learn(path):
    need("optax", "equinox" if path.stem == "train_equinox" else "flax")
    done = run_script(path)
    assert done.returncode == 0, done.stdout + done.stderr
    losses = [float(loss) for loss in re.findall(r"^step +\d+  loss (\d+\.\d{4})$", done.stdout, re.MULTILINE)]
    assert len(losses) == 6
    # From guessing among ten classes to 0.38, 0.38 and 0.24.
    assert abs(losses[0] - np.log(10)) < 0.1
    assert losses[-1] < 0.5
    assert all(later < earlier for earlier, later in itertools.pairwise(losses))


def test_docs_training_steps_are_all_shown():
    text = (DOCS / "training.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```\{literalinclude\} (examples/\w+\.py)\n```$", text, re.MULTILINE)
    assert sorted(shown) == [str(path.relative_to(DOCS)) for path in EXAMPLES]
    assert len(shown) == 3


@pytest.mark.parametrize("path", sorted((DOCS / "figures").glob("*.py")), ids=lambda path: path.stem)
def test_docs_figures_are_drawn_by_their_scripts(path, tmp_path):
    need("matplotlib", "optax")
    done = run_script(path, tmp_path / "figure.svg")
    assert done.returncode == 0, done.stdout + done.stderr

    def outline(svg):
        """The figure's size, and what it has how many of; not the digits, which differ between machines."""
        text = svg.read_text(encoding="utf-8")
        return re.search(r"<svg [^>]*viewBox=\"([^\"]*)\"", text)[1], len(
            re.findall(r'<g id="(?:axes|line2d|text)_', text)
        )

    assert outline(tmp_path / "figure.svg") == outline(path.with_suffix(".svg"))
