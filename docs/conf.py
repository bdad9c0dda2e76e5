"""How the pages are built; what they show is made first, by `docs/make_pages.py`."""

import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
MADE = ROOT / "docs/generated"
sys.path[:0] = [str(ROOT), str(ROOT / "docs"), str(ROOT / "tools")]

import indices
import make_pages
import render
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject
from sphinx.util.docutils import SphinxTranslator

import jbackprop

project = "jbackprop"
author = copyright = "The jbackprop authors"
release = jbackprop.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = [
    *("generated/" + name for name in make_pages.PARTS),  # which other pages include
    "_build",
]
html_theme = "furo"
html_title = "jbackprop"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
napoleon_use_ivar = True  # fields are no objects of their own
napoleon_attr_annotations = False
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autosummary_generate = False
default_role = "code"


for _field in PyObject.doc_field_types:
    if _field.name == "variable":  # of a record, and not of a program
        _field.label = "Fields"


def _equation(self: SphinxTranslator, node: nodes.Element, *, block: bool = False) -> None:
    self.body.append(render.equation(node.astext(), {"display_mode": block}))
    raise nodes.SkipNode


def _outcomes(app: Sphinx, page: str, source: list[str]) -> None:
    if not page.startswith("generated/"):
        source[0] = make_pages.with_outcomes(make_pages.listings(source[0]), page, MADE)


def _listings(app: Sphinx, error: Exception | None) -> None:
    make_pages.write_listings(Path(app.outdir) / "listings")


def setup(app: Sphinx) -> None:
    make_pages.write(MADE)
    made_in = {name: module for name, (module, _) in make_pages.values().items()}
    app.add_post_transform(indices.Indices)
    block = partial(_equation, block=True)
    app.add_html_math_renderer("mathml", (_equation, None), (block, None))
    app.connect("source-read", _outcomes)
    app.connect("build-finished", _listings)
    app.connect("viewcode-follow-imported", lambda app, module, name: made_in.get(name))
    app.connect("autodoc-process-docstring", make_pages.as_text, priority=400)  # before napoleon
