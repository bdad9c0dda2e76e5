"""What pages are made of: indices, fields one by one, what a program shows, links to listings."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytest.importorskip("sphinx")
pytest.importorskip("mdit_py_plugins")
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "tools")]
import indices
import make_pages


def written(parts):
    """Nodes as text, an index between signs."""
    sign = {"subscript": "_", "superscript": "^"}
    return "".join(
        f"{sign[part.tagname]}<{written(part.children)}>" if part.tagname in sign else part.astext()
        for part in parts
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("w^l a^{l-1}", "w^<l> a^<l−1>"), ("δ_i^l", "δ_<i>^<l>"), ("(a_i^{l-1})ᵀ", "(a_<i>^<l−1>)ᵀ"),
     ("‖g_i^l‖²", "‖g_<i>^<l>‖²"), ("∇_y C", "∇_<y> C"), ("ḡ_test", "ḡ_<test>"),
     ("n_in, n_{l-1}", "n_<in>, n_<l−1>"), ("e^(z_k) / Σ_j", "e^<(z_<k>)> / Σ_<j>"),
     ("e^-z", "e^<−z>"), ("Σ_{i in u} w_i", "Σ_<i in u> w_<i>"), ("δ^L.", "δ^<L>.")],
)  # fmt: skip
def test_indices_stand_as_indices(text, expected):
    assert written(indices.indexed(text)) == expected


@pytest.mark.parametrize("text", ["squared_norms", "x_train and z_shape", "2^18", "a_b_c", "x ^ y"])
def test_names_have_none(text):
    assert indices.indexed(text) == []


def test_fields_that_share_a_description_have_one_each():
    lines = ["What it is.", "", "Attributes:", "    n: channels.", "    kernel, stride: a number,",
             "        or one each.", "", "Raises:", "    ValueError: a, b: no."]  # fmt: skip
    make_pages._named_one_by_one(lines)
    assert lines == [
        "What it is.", "", "Attributes:", "    n: channels.", "    kernel: a number,",
        "        or one each.", "    stride: a number,", "        or one each.", "", "Raises:",
        "    ValueError: a, b: no."]  # fmt: skip


def test_values_have_the_string_that_stands_below_them():
    found = make_pages.values()
    assert found["Params"][0] == "jbackprop.core.network"
    assert found["backpropagation"][1].startswith("The rule of the slides")
    assert "tanh" not in found


def test_what_a_program_prints_and_draws_stands_below_it(tmp_path):
    page = (
        "# A page\n\n```python\nx = 2\nprint('two:', x)\n```\n\nThen:\n\n```python\nx\n```\n\n"
        "```python\nfrom matplotlib.figure import Figure\nFigure()\n```\n"
    )
    shown = make_pages.with_outcomes(page, "howto/some", tmp_path)
    assert "print('two:', x)\n```\n\n```text\ntwo: 2\n```\n" in shown
    assert "x\n```\n\n```python\nfrom" in shown  # a value that is no figure is not shown
    assert shown.endswith("![a figure](/generated/howto-some-2.png)\n")
    assert (tmp_path / "howto-some-2.png").stat().st_size > 0
    quiet = "```python\n1 / 0\n```\n"
    assert make_pages.with_outcomes(quiet, "quiet", tmp_path) == quiet


def test_links_to_the_source_lead_to_listings(tmp_path):
    link = "| [`backward.py`](../jbackprop/core/backward.py) | x |"
    shown = '| <a href="listings/core/backward.html"><code>backward.py</code></a> | x |'
    assert make_pages.listings(link) == shown
    make_pages.write_listings(tmp_path)
    listing = (tmp_path / "core/backward.html").read_text("utf-8")
    assert "return (s.w.T @ s.delta) * s.slope" in re.sub("<[^>]+>", "", listing)
