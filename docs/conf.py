"""Settings of the documentation site.

    sphinx-build -W --keep-going -n docs docs/_build/html

Sphinx with MyST, because that is what the libraries around this one are documented with (JAX, Flax, Optax): guides stay
Markdown that GitHub shows too, notebooks are shown with the outputs they were committed with, and the reference is made
of the docstrings. Nothing is fetched, neither while it builds nor by the reader's browser: MathJax is part of the site.
"""

import os
import re
import shutil
from pathlib import Path

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode

import jxent

DOCS = Path(__file__).parent

project = "jxent"
author = "the authors of jxent"
release = version = jxent.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "examples", "figures"]
nitpicky = True
nitpick_ignore = [("py:exc", name) for name in ("IndexError", "TypeError", "ValueError")]

# In docstrings `x` is code, as in Markdown; where it names something public, `_LinkPublicNames` makes a link of it.
default_role = "literal"
smartquotes_action = "D"  # dashes alone: reduction="mean" is to be copied as it stands
add_module_names = False
python_maximum_signature_line_length = 88
# The Args sections say what each argument is; the annotations would repeat that, once for every overload.
autodoc_typehints = "none"
napoleon_numpy_docstring = False
napoleon_attr_annotations = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Gradients"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run the notebooks, and compare what is committed
nb_merge_streams = True
nb_ipywidgets_js = {}  # there are no widgets, and these would be fetched from elsewhere

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "jxent"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["jxent.css"]
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_exclude = ".linenos, .gp, .go"


class _LinkPublicNames(SphinxPostTransform):
    """Code that is the name of something in the reference becomes a link there, in docstrings and guides alike."""

    default_priority = 200

    def run(self, **kwargs):
        objects = self.env.get_domain("py").objects
        for literal in list(self.document.findall(nodes.literal)):
            name = literal.astext()
            entry = next((objects[key] for key in (name, f"jxent.{name}") if key in objects), None)
            if entry is None or isinstance(literal.parent, nodes.reference | nodes.title):
                continue
            docname = self.env.current_document.docname
            linked = make_refnode(self.app.builder, docname, entry.docname, entry.node_id, literal.deepcopy(), name)
            literal.replace_self(linked)


class _BreakCallsInTables(SphinxPostTransform):
    """Keeps tables no wider than the page: calls may wrap after a bracket, and names in a head after an underscore."""

    default_priority = 210
    formats = ("html",)

    def run(self, **kwargs):
        for entry in self.document.findall(nodes.entry):
            in_head = isinstance(entry.parent.parent, nodes.thead)
            for literal in list(entry.findall(nodes.literal)):
                parts = re.split(r"(?<=_)" if in_head else r"(?<=[(])(?=[^)])", literal.astext())
                if len(parts) > 1:
                    breaks = [
                        node for part in parts for node in (nodes.raw("", "<wbr>", format="html"), nodes.Text(part))
                    ]
                    literal.children = []
                    literal.extend(breaks[1:])


def _keep_returns_whole(app, what, name, obj, options, lines):
    """Napoleon takes what precedes a colon in the first line of Returns for a type; there it is prose."""
    if "Returns:" in lines:
        lines.insert(lines.index("Returns:") + 1, "    \\")  # an empty first line, which reStructuredText drops


def _set_formulas(app, what, name, obj, options, lines):
    """An indented formula becomes a block whose line breaks and spaces are kept."""
    at = next((i for i, line in enumerate(lines) if re.match(r"^\w[\w ]*:$", line)), len(lines))
    for i in reversed(range(1, at)):
        if lines[i].startswith("    ") and not lines[i - 1].strip():
            lines[i:i] = [".. code-block:: text", "    :class: formula", ""]


def _copy_notebooks(app):
    """The notebooks lie beside this folder; Sphinx reads only what is in it."""
    copies = DOCS / "notebooks"
    copies.mkdir(exist_ok=True)
    originals = {path.name: path for path in (DOCS.parent / "notebooks").glob("*.ipynb")}
    for name, path in originals.items():
        if not (copies / name).exists() or (copies / name).read_bytes() != path.read_bytes():
            # In one step: another build may be reading here.
            part = shutil.copy2(path, copies / f"{name}.{os.getpid()}")
            os.replace(part, copies / name)
    for copy in copies.glob("*.ipynb"):
        if copy.name not in originals:
            copy.unlink(missing_ok=True)


def _localise_links(app, docname, source):
    """Guides link to what lies outside this folder as it lies in the repository."""
    source[0] = source[0].replace("](../notebooks/", "](notebooks/").replace("](../CHANGELOG.md", "](changelog.md")


def setup(app):
    app.connect("builder-inited", _copy_notebooks)
    app.connect("source-read", _localise_links)
    app.connect("autodoc-process-docstring", _keep_returns_whole, priority=400)
    app.connect("autodoc-process-docstring", _set_formulas, priority=400)
    app.add_post_transform(_LinkPublicNames)
    app.add_post_transform(_BreakCallsInTables)
