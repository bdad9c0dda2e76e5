"""Pages that are made and not written: the walk-through, the tables, and the list of all names."""

import inspect
import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import render

import jbackprop as jb
from experiments.benchmark import convolution, report

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


def write(folder: Path) -> None:
    """All of them."""
    folder.mkdir(parents=True, exist_ok=True)
    pages = {
        "activations.md": activations(),
        "costs.md": costs(),
        "reference.md": reference(),
        "walkthrough.md": walkthrough(folder),
    }
    for name, text in pages.items():
        file = folder / name
        if not file.exists() or file.read_text("utf-8") != text:
            file.write_text(text, "utf-8")


def activations() -> str:
    """Every activation and cost: formula, and name elsewhere."""
    public = {name: getattr(jb, name) for name in jb.__all__}
    table = lambda kind: "\n".join(
        f"| `{name}` | {_cell(value.formula)} | {_cell(value.elsewhere)} |"
        for name, value in public.items()
        if isinstance(value, kind)
    )
    head = "| name | formula | elsewhere |\n| --- | --- | --- |\n"
    return (
        "# Activations and costs\n\n"
        "Each has its derivative by hand, compared with differences and with autodiff. "
        "`softmax` is an output only.\n\n"
        f"## Activations\n\n{head}{table(jb.Activation)}\n\n"
        "With another constant: `leaky_relu_of(slope)`, `elu_of(alpha)`. One of your own is "
        "`Activation(name, f, df)`; `Activation.from_function(name, f)` derives f' by autodiff; "
        "`check_derivatives` compares.\n\n"
        f"## Costs\n\nOf one example.\n\n{head}{table(jb.Cost)}\n\n"
        "With another constant: `huber_of(delta)`. One of your own is `Cost(name, value, grad)`: "
        "[a worked example](../howto/regression.md).\n"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*").replace("_", "\\_").replace("$", "\\$")


def costs() -> str:
    """The tables of the results files."""
    parts = [
        "# What it costs\n",
        "Measured by commands of the project (`make benchmark`, `make benchmark-convolution`), "
        "each candidate in turn in one process, after its numbers were compared with ours.\n",
    ]
    for file in sorted(RESULTS.glob("*.json")):
        results = json.loads(file.read_text("utf-8"))
        spatial = file.stem.endswith("-convolution")
        what = "Convolutional networks" if spatial else "Dense networks"
        parts.append(f"## {what}, {results['machine']}\n")
        parts.append(convolution.tables(results) if spatial else report.summary(results))
    return "\n".join(parts) + "\n"


def reference() -> str:
    """Every public name, under the folder that it comes from."""
    rooms: dict[str, list[str]] = {title: [] for title in ROOMS.values()}
    for name in jb.__all__:
        value = getattr(jb, name)
        if isinstance(value, jb.Activation | jb.Cost):
            continue  # they have a table of their own
        module = getattr(value, "__module__", "").split(".")
        room = module[1] if len(module) > 2 and module[1] in ROOMS else ""
        if name in ("Params", "backpropagation"):
            room = "core"
        rooms[ROOMS[room]].append(name)
    parts = []
    for title, names in rooms.items():
        parts.append(f"## {title}\n")
        for name in names:
            value = getattr(jb, name)
            named = "function" if hasattr(value, "__name__") else "data"
            kind = "class" if inspect.isclass(value) else named
            parts.append(f"```{{eval-rst}}\n.. auto{kind}:: jbackprop.{name}\n```\n")
    return "\n".join(parts)


def walkthrough(folder: Path) -> str:
    """The script's cells, with what they print and draw."""
    script = ROOT / "experiments/walkthrough.py"
    names: dict[str, Any] = {"__name__": "walkthrough", "__file__": str(script)}
    sys.modules["walkthrough"] = type(sys)("walkthrough")
    parts, pictures = [], 0
    for cell in render.cells_of(script.read_text("utf-8")):
        if cell.prose:
            parts.append(cell.text + "\n")
            continue
        printed, value = render.run(cell, names, str(script))
        parts.append(f"```python\n{cell.text}\n```\n")
        if value is not None and not hasattr(value, "savefig"):
            printed += repr(value)
        if printed:
            parts.append(f"```text\n{printed.rstrip()}\n```\n")
        if hasattr(value, "savefig"):
            pictures += 1
            held = io.BytesIO()
            value.savefig(held, dpi=150)
            (folder / f"walk-{pictures}.png").write_bytes(held.getvalue())
            parts.append(f"![{render.told(value)}](walk-{pictures}.png)\n")
    return "\n".join(parts)


def as_text(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text: what Sphinx would read as marks is marked as text."""
    literal = False
    for i, line in enumerate(lines):
        if literal and line and not line.startswith(" "):
            literal = False
        if line.lstrip().startswith((">>>", "...")) or literal:
            continue
        literal = line.rstrip().endswith("::")
        quoted = re.split(r"(`[^`]*`)", line)
        lines[i] = "".join(p if p.startswith("`") else _escaped(p) for p in quoted)


def _escaped(text: str) -> str:
    text = re.sub(r"([*|\\])", r"\\\1", text)
    return re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", text)
