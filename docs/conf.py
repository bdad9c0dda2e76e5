"""How the pages are built; what they show is made first, by `docs/make_pages.py`."""

import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs"), str(ROOT / "tools")]

import make_pages
import render
from docutils import nodes
from sphinx.util.docutils import SphinxTranslator

import jbackprop

project = "jbackprop"
author = "The jbackprop authors"
release = jbackprop.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["generated/reference.md", "_build"]
html_theme = "furo"
html_title = "jbackprop"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
napoleon_use_ivar = True  # fields are no objects of their own
napoleon_attr_annotations = False
autodoc_typehints = "none"
default_role = "code"


def _equation(self: SphinxTranslator, node: nodes.Element, *, block: bool = False) -> None:
    self.body.append(render.equation(node.astext(), {"display_mode": block}))
    raise nodes.SkipNode


def setup(app) -> None:
    make_pages.write(Path(__file__).parent / "generated")
    block = partial(_equation, block=True)
    app.add_html_math_renderer("mathml", (_equation, None), (block, None))
    app.connect("autodoc-process-docstring", make_pages.as_text, priority=400)  # before napoleon
