"""A script as a page: cells, what they print and draw, equations, and nothing from elsewhere."""

import re
import sys
from pathlib import Path

import pytest

from experiments.common.source import line_of

TOOLS = Path(__file__).parents[1] / "tools"
pytest.importorskip("docutils")
pytest.importorskip("mdit_py_plugins")
sys.path.insert(0, str(TOOLS))
import render

SCRIPT = """# %% [markdown]
# # A title
#
# with $a^l$ and
#
# $$\\\\delta^l = (w^{l+1})^T \\\\delta^{l+1}$$

# %%
value = 1 + 1
print("printed <here>")
value

# %%
import matplotlib.figure
figure = matplotlib.figure.Figure()
figure.subplots().set_title("δ$^{2}$", loc="left")
figure

# %% [markdown]
# The end.
""".replace("\\\\\\\\", "\\\\")


def test_cells_are_split_at_their_marks():
    cells = render.cells_of(SCRIPT)
    assert [cell.prose for cell in cells] == [True, False, False, True]
    assert cells[0].text.startswith("# A title\n\nwith $a^l$")
    lines = SCRIPT.splitlines()
    for cell in cells:
        assert lines[cell.line - 1].removeprefix("# ") == cell.text.splitlines()[0]


def test_a_cell_prints_and_has_a_value():
    names = {}
    printed, value = render.run(render.cells_of(SCRIPT)[1], names, "script.py")
    assert (printed, value, names["value"]) == ("printed <here>\n", 2, 2)
    assert render.run(render.Cell(False, "x = 3", 1), names, "script.py") == ("", None)


def test_an_error_names_the_line_of_the_script():
    with pytest.raises(ZeroDivisionError) as raised:
        render.run(render.Cell(False, "a = 1\n1 / 0", 7), {}, "script.py")
    assert raised.traceback[-1].lineno + 1 == 8


def test_a_page_holds_all_of_it_and_needs_nothing_from_elsewhere(tmp_path):
    script = tmp_path / "shown_script.py"
    script.write_text(SCRIPT, "utf-8")
    text = render.page(script)
    assert "<title>A title</title>" in text
    assert "printed &lt;here&gt;" in text
    assert '<pre class="printed">2</pre>' in text
    assert 'alt="δ2" src="data:image/png;base64,' in text
    assert text.count("<math") == 2
    assert "The end." in text
    assert not re.search(r'(src|href)="(?!data:)', text)


def test_a_listing_numbers_its_lines_and_needs_nothing_from_elsewhere():
    text = render.listing("a/file.py", "x = 1\n# a <comment>\n")
    assert "<title>a/file.py</title>" in text
    assert 'href="#line-2"' in text
    assert 'name="line-2"' in text
    assert "a &lt;comment&gt;" in text
    assert not re.search(r'(src|href)="(?!#|data:)', text)


def test_a_line_of_the_source_is_found_where_it_stands():
    import jbackprop.core.backward as backward

    found = line_of(backward._backpropagation, "return")
    assert found.startswith("jbackprop/core/backward.py:")
    assert found.endswith("\n    return (s.w.T @ s.delta) * s.slope")
    for none_or_many in ("no such words", "s"):
        with pytest.raises(ValueError, match="holding: expected one line"):
            line_of(backward._backpropagation, none_or_many)
