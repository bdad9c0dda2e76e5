"""A script in percent format as one self-contained page: python tools/render.py script.py page.html

Cells are run in their order, once; what they print, and the value of a last expression, stand below
them: a figure as a picture. Equations become MathML, so that a page needs nothing from elsewhere.
"""

import ast
import base64
import contextlib
import html
import io
import re
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from docutils.utils.math import latex2mathml
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

STYLE = """
:root { --ink: #1f2933; --soft: #52606d; --paper: #fff; --shade: #f4f6f8; --line: #d9dfe5; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ec; --soft: #a7b1bc; --paper: #14181d; --shade: #1d232a; --line: #36404a; }
}
body { color: var(--ink); background: var(--paper); font: 1.05rem/1.6 system-ui, sans-serif;
  max-width: 50rem; margin: 0 auto; padding: 1rem 1.25rem 5rem; }
h1, h2 { line-height: 1.25; } h2 { margin-top: 3rem; }
pre { font: .85rem/1.5 ui-monospace, monospace; overflow-x: auto; padding: .7rem .9rem;
  border-radius: 6px; background: var(--shade); margin: .8rem 0; }
pre.printed { background: none; border-left: 3px solid var(--line); border-radius: 0;
  color: var(--soft); }
.linenos, .linenos a { color: var(--soft); text-decoration: none; padding-right: .8em; }
summary { color: var(--soft); cursor: pointer; }
code { font-family: ui-monospace, monospace; font-size: .9em; }
img { max-width: 100%; background: #fff; border-radius: 6px; display: block; margin: 1rem 0; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { text-align: left; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); }
math[display=block] { margin: 1rem 0; overflow-x: auto; overflow-y: hidden; }
"""


FOLD = "<details><summary>Imports, and what the page needs</summary>\n"


class Cell(NamedTuple):
    """One cell: its text, without the marks of a comment where it is prose, and its first line.
    Folded it is where its mark has the tag "hide-input", as of a notebook."""

    prose: bool
    text: str
    line: int
    folded: bool = False


def cells_of(script: str) -> list[Cell]:
    """The cells of a script, split at `# %%`."""
    cells = []
    marks = [*re.finditer(r"^# %%(?P<kind>.*)$", script, re.MULTILINE)]
    ends = [mark.start() for mark in marks[1:]] + [len(script)]
    for mark, end in zip(marks, ends, strict=True):
        text, prose = script[mark.end() : end].strip("\n"), "[markdown]" in mark["kind"]
        if prose:
            text = re.sub(r"^# ?", "", text, flags=re.MULTILINE)
        line = script.count("\n", 0, mark.end()) + 2
        cells.append(Cell(prose, text, line, "hide-input" in mark["kind"]))
    return cells


def run(cell: Cell, names: dict[str, Any], file: str) -> tuple[str, Any]:
    """What it prints, and the value of its last expression."""
    tree = ast.parse("\n" * (cell.line - 1) + cell.text, file)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(tree, file, "exec"), names)
        value: Any = None
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), file, "eval"), names)
    return printed.getvalue(), value


def shown(value: Any) -> str:
    """The value of a cell, as HTML."""
    if value is None:
        return ""
    if hasattr(value, "savefig"):
        picture = io.BytesIO()
        value.savefig(picture, dpi=150)
        coded = base64.b64encode(picture.getvalue()).decode()
        return f'<img alt="{html.escape(told(value))}" src="data:image/png;base64,{coded}">'
    return f'<pre class="printed">{html.escape(repr(value))}</pre>'


def told(figure: Any) -> str:
    """Its title, in words."""
    titles = [axes.get_title("left") for axes in figure.axes]
    said = next(filter(None, [figure.get_suptitle(), *titles]), "a figure")
    return re.sub(r"[$^{}]", "", said)


def equation(tex: str, options: dict[str, Any]) -> str:
    """MathML."""
    return latex2mathml.tex2mathml(tex.strip(), as_block=options.get("display_mode", False))


def page(script: Path) -> str:
    """The whole page."""
    prose = MarkdownIt("commonmark").enable("table")
    prose.use(dollarmath_plugin, renderer=equation, allow_blank_lines=False)
    names: dict[str, Any] = {"__name__": script.stem, "__file__": str(script)}
    sys.modules[script.stem] = type(sys)(script.stem)  # where its classes look for their names
    parts, title = [], script.stem
    for cell in cells_of(script.read_text("utf-8")):
        if cell.prose:
            parts.append(prose.render(cell.text))
            continue
        printed, value = run(cell, names, str(script))
        code = highlight(cell.text, PythonLexer(), HtmlFormatter(nowrap=False))
        parts.append(f"{FOLD}{code}</details>" if cell.folded else code)
        if printed:
            parts.append(f'<pre class="printed">{html.escape(printed.rstrip())}</pre>')
        parts.append(shown(value))
    heading = re.search(r"<h1>(.*?)</h1>", "".join(parts))
    return _whole(heading[1] if heading else title, "\n".join(parts))


def listing(title: str, code: str) -> str:
    """A file of Python with its lines numbered, as a page of its own."""
    formatter = HtmlFormatter(linenos="inline", lineanchors="line", anchorlinenos=True)
    code = highlight(code, PythonLexer(), formatter)
    return _whole(title, f"<style>body {{ max-width: 62rem }}</style><h2>{title}</h2>{code}")


def _whole(title: str, body: str) -> str:
    """A page in light and dark that needs nothing from elsewhere."""
    light, dark = (
        HtmlFormatter(style=style).get_style_defs(".highlight") for style in ("tango", "monokai")
    )
    plain = ".highlight, .highlight pre { background: var(--shade) !important; border-radius: 6px }"
    colors = f"{light}\n@media (prefers-color-scheme: dark) {{ {dark} }}\n{plain}"
    head = (
        f'<meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}\n{colors}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def main(script: str, out: str) -> None:
    """Writes the page."""
    warnings.simplefilter("error")
    file = Path(out)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(Path(script)), "utf-8")
    print(f"Written to {file} ({file.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    sys.path.insert(0, ".")
    main(*sys.argv[1:])
