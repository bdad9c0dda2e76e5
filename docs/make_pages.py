"""Pages that are made and not written: the walk-through, the tables, and the list of all names."""

import ast
import contextlib
import functools
import inspect
import io
import itertools
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import render

import jbackprop as jb
from experiments.benchmark import convolution, machine, report

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "experiments/benchmark/results"

# where a name stands in the reference: by the folder that it comes from
ROOMS = {
    "core": "Networks and the pass",
    "quantities": "What the factors tell",
    "training": "Training",
    "drawing": "Pictures",
    "": "Around it: verification, files, other libraries",
}


# what a user may ask of a record beside its fields
MEMBERS = {
    "Activation": ["from_function"],
    "Checkpoints": ["save", "restore", "wait", "close", "steps"],
    "Conv": ["z_shape", "w_shape", "apply", "transpose", "rows", "weighted_sum"],
    "MaxPool": ["out_shape", "apply", "transpose"],
    "Network": ["maps", "pools", "shapes", "z_shapes", "flat", "activations"],
    "Report": ["passed", "failures"],
}
SAID = {  # what stands above a room's names
    "What the factors tell": """
*Cost* is arithmetic in multiples of the plain gradient's, of a dense network of equal widths n ≥ B;
[what it costs](costs.md) has times. p_i = w_i / Σ w_i are the shares of the examples, and κ = Σ
p_i² is 1/B where all weigh the same.

""",
}


PARTS = "activations.md", "cost_functions.md", "costs.md", "reference.md"


def write(folder: Path) -> None:
    """All of them."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "activations.md": formulas(jb.Activation),
        "cost_functions.md": formulas(jb.Cost),
        "costs.md": costs(),
        "reference.md": reference(),
        "walkthrough.md": walkthrough(folder),
    }
    for name, text in pages.items():
        file = folder / name
        if not file.exists() or file.read_text("utf-8") != text:
            file.write_text(text, "utf-8")


def formulas(kind: type) -> str:
    """Every activation or every cost: formula, and name elsewhere."""
    public = {name: getattr(jb, name) for name in jb.__all__}
    rows = "\n".join(
        f"| `{name}` | {_cell(value.formula)} | {_cell(value.elsewhere)} |"
        for name, value in public.items()
        if isinstance(value, kind)
    )
    return f"| name | formula | elsewhere |\n| --- | --- | --- |\n{rows}\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("$", "\\$")


def costs() -> str:
    """The tables of the results files."""
    parts = []
    for file in sorted(RESULTS.glob("*.json")):
        results = json.loads(file.read_text("utf-8"))
        spatial = file.stem.endswith("-convolution")
        what = "Convolutional networks" if spatial else "Dense networks"
        parts.append(f"## {what}, {machine.told(results['machine'])}\n")
        tables = convolution.tables(results) if spatial else report.summary(results)
        parts.append(tables.replace(" (", "\u00a0("))  # a figure stays beside its ratio
    return "\n".join(parts) + "\n"


def reference() -> str:
    """Every public name, under the folder that it comes from."""
    rooms: dict[str, list[str]] = {title: [] for title in ROOMS.values()}
    for name in jb.__all__:
        value = getattr(jb, name)
        if isinstance(value, jb.Activation | jb.Cost):
            continue  # they have a table of their own
        module = values()[name][0] if name in values() else value.__module__
        folder = module.split(".")[1:-1]
        room = folder[0] if folder and folder[0] in ROOMS else ""
        rooms[ROOMS[room]].append(name)
    parts = []
    for title, names in rooms.items():
        said = SAID.get(title, "")
        listed = "\n".join(f"   {name}" for name in names)
        parts.append(
            f"## {title}\n\n{said}```{{eval-rst}}\n.. currentmodule:: jbackprop\n\n"
            f".. autosummary::\n   :nosignatures:\n\n{listed}\n```\n"
        )
        for name in names:
            value = getattr(jb, name)
            named = "function" if inspect.isroutine(inspect.unwrap(value)) else "data"
            kind = "class" if inspect.isclass(value) else named
            bare = "   :no-value:\n" if kind == "data" else ""
            bare += f"   :members: {', '.join(MEMBERS[name])}\n" if name in MEMBERS else ""
            parts.append(f"```{{eval-rst}}\n.. auto{kind}:: jbackprop.{name}\n{bare}```\n")
    return "\n".join(parts)


def walkthrough(folder: Path) -> str:
    """The script's cells, with what they print and draw."""
    script = ROOT / "experiments/walkthrough.py"
    names: dict[str, Any] = {"__name__": "walkthrough", "__file__": str(script)}
    sys.modules["walkthrough"] = type(sys)("walkthrough")
    parts = []
    for i, cell in enumerate(render.cells_of(script.read_text("utf-8"))):
        if cell.prose:
            parts.append(cell.text + "\n")
            continue
        code = f"```python\n{cell.text}\n```\n"
        parts.append(f"{render.FOLD}\n{code}\n</details>\n" if cell.folded else code)
        parts.append(_outcome(cell, names, str(script), folder / f"walkthrough-{i}.png", ""))
    return "\n".join(parts)


LINK = re.compile(r"\[`([^`]+)`\]\(\.\./jbackprop/(\S+)\.py\)")


def listings(text: str) -> str:
    """Links to files of the package, as links to their listings."""
    return LINK.sub(r'<a href="listings/\2.html"><code>\1</code></a>', text)


def write_listings(folder: Path) -> None:
    """Every file of the package with its lines numbered, as a page of its own."""
    for file in sorted((ROOT / "jbackprop").rglob("*.py")):
        page = folder / file.relative_to(ROOT / "jbackprop").with_suffix(".html")
        page.parent.mkdir(parents=True, exist_ok=True)
        title = file.relative_to(ROOT).as_posix()
        page.write_text(render.listing(title, file.read_text("utf-8")), "utf-8")


def with_outcomes(text: str, page: str, folder: Path) -> str:
    """A page, and below each of its programs what it prints and draws: run here, in their order.

    Pages that show nothing are left as they are; the tests run those too."""
    if not re.search(r"\bprint\(|\bjb\.plot_", text):
        return text
    names: dict[str, Any] = {"__name__": "page"}
    parts, end = [], 0
    stem = page.replace("/", "-")
    # where a program leaves its files
    with tempfile.TemporaryDirectory() as elsewhere, contextlib.chdir(elsewhere):
        for i, block in enumerate(re.finditer(r"^```python\n(.*?)^```\n", text, re.M | re.S)):
            cell = render.Cell(False, block[1], text.count("\n", 0, block.start(1)) + 1)
            picture = folder / f"{stem}-{i}.png"
            shown = _outcome(cell, names, page, picture, "/generated/")
            parts += [text[end : block.end()], "\n" + shown if shown else ""]
            end = block.end()
    return "".join([*parts, text[end:]])


def _outcome(cell: render.Cell, names: dict[str, Any], file: str, picture: Path, at: str) -> str:
    """What a program prints, and the figure that its last expression is, as Markdown."""
    printed, value = render.run(cell, names, file)
    text = f"```text\n{printed.rstrip()}\n```\n" if printed else ""
    if not hasattr(value, "savefig"):
        return text
    drawn = io.BytesIO()
    value.savefig(drawn, dpi=150)
    picture.write_bytes(drawn.getvalue())
    return f"{text}![{render.told(value)}]({at}{picture.name})\n"


@functools.cache
def values() -> dict[str, tuple[str, str]]:
    """Public names that are neither a class nor a function: the module of each, and the string that
    stands below it there."""
    found = {}
    for file in (ROOT / "jbackprop").rglob("*.py"):
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        body = ast.parse(file.read_text("utf-8")).body
        for statement, text in itertools.pairwise(body):
            match statement, text:
                case (
                    ast.Assign(targets=[ast.Name(id=name)])
                    | ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(said))),
                ):
                    found[name] = module, said
    return {name: found[name] for name in jb.__all__ if name in found}


def as_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: what Sphinx would read as marks is marked as text."""
    if (value := values().get(name.split(".")[-1])) is not None:
        lines[:] = [*inspect.cleandoc(value[1]).splitlines(), ""]
    _named_one_by_one(lines)
    literal = False
    for i, line in enumerate(lines):
        if literal and line and not line.startswith(" "):
            literal = False
        if line.lstrip().startswith((">>>", "...")) or literal:
            continue
        literal = line.rstrip().endswith("::")
        quoted = re.split(r"(`[^`]*`)", line)
        lines[i] = "".join(p if p.startswith("`") else _escaped(p) for p in quoted)


def _named_one_by_one(lines: list[str]) -> None:
    """A field for each name of "Attributes:", also where several share a description."""
    if "Attributes:" not in lines:
        return
    start = lines.index("Attributes:") + 1
    fields, end = [], start
    for end in range(start, len(lines) + 1):
        if end == len(lines) or (lines[end] and not lines[end].startswith(" ")):
            break
        shared = re.match(r"    (\w+(?:, \w+)+): ", lines[end])
        if shared or (lines[end][4:5].strip() or not lines[end]):
            fields.append((shared[1].split(", ") if shared else [], []))
        if fields:
            fields[-1][1].append(lines[end])
    each = [
        re.sub(r"^    [\w, ]+: ", f"    {name}: ", line) if name else line
        for names, of in fields
        for name in (names or [""])
        for line in of
    ]
    lines[start:end] = each


def _escaped(text: str) -> str:
    text = re.sub(r"([*|\\])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", text)
