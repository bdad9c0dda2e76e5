"""The pages: every block of code runs, no how-to is long, every public name is in one, links lead
somewhere."""

import ast
import os
import re
import warnings
from pathlib import Path

import jax
import pytest

import jbackprop as jb

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if "generated" not in p.parts)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RUN = [page for page in PAGES if BLOCK.search(page.read_text("utf-8"))]
OTHERS = "torch", "flax", "equinox", "sklearn", "matplotlib", "grain"
TOP = [DOCS.parent / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
NAME = lambda page: page.relative_to(DOCS).as_posix()


def blocks(page):
    return BLOCK.findall(page.read_text("utf-8"))


@pytest.fixture
def as_users_do():
    """Without the strictness of the other tests: pages are for programs that have none."""
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        warnings.catch_warnings(),
    ):
        yield


@pytest.mark.long(1)
@pytest.mark.parametrize("page", RUN, ids=NAME)
def test_every_block_of_a_page_runs(page, as_users_do, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for library in OTHERS:
        if re.search(rf"^\s*(from|import) {library}", "\n".join(blocks(page)), re.MULTILINE):
            pytest.importorskip(library)
    names = {"__name__": "page"}
    for block in blocks(page):
        exec(compile(block, NAME(page), "exec"), names)


@pytest.mark.parametrize("page", RUN, ids=NAME)
def test_a_block_is_short(page):
    for block in blocks(page):
        lines = [line for line in block.splitlines() if line.strip()]
        assert len(lines) <= 30
        assert all(len(line) <= 100 for line in lines)


def used(source):
    tree = ast.parse(source)
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_every_public_name_is_in_an_example():
    """In a block of a page, or in a docstring's example."""
    seen = set().union(*(used(block) for page in RUN for block in blocks(page)))
    for name in jb.__all__:
        text = getattr(getattr(jb, name), "__doc__", None) or ""
        seen |= {*re.findall(r"\bjb\.(\w+)", text)}
    tables = {n for n in jb.__all__ if isinstance(getattr(jb, n), jb.Activation | jb.Cost)}
    assert {*jb.__all__} - tables - seen == set()


def test_a_first_line_says_what_a_name_is_for():
    """In words: the equation comes after them."""
    for name in jb.__all__:
        value = getattr(jb, name)
        if callable(value) or isinstance(value, jb.Rule):
            first = (value.__doc__ or "").strip().splitlines()[0]
            assert re.match(r"[A-Z][\w'-]*('s)? [a-z`\w]", first), f"{name}: {first}"


def test_the_readme_is_short_and_leads_to_every_page():
    text = (DOCS.parent / "README.md").read_text("utf-8")
    assert text.count("\n") < 250
    assert {NAME(p) for p in PAGES} - {*re.findall(r"\]\(docs/(\S+\.md)\)", text)} == {
        "index.md", "howto/index.md", "reference.md", "activations.md", "costs.md",
    }  # fmt: skip


@pytest.mark.parametrize("page", [*PAGES, *TOP], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith("http"):
            path = Path(os.path.normpath(page.parent / target))
            assert path.exists() or path.parent.name == "generated", target


def test_every_page_is_in_a_table_of_contents():
    named = set()
    for page in PAGES:
        for tree in re.findall(r"^```{toctree}\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S):
            lines = [line for line in tree.splitlines() if line and not line.startswith(":")]
            named |= {os.path.normpath(page.parent / f"{line}.md") for line in lines}
    assert {str(page) for page in PAGES} - named == {str(DOCS / "index.md")}
