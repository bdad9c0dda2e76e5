"""The rooms: imports go one way, down the page of the source, which names every file once."""

import ast
import re
from pathlib import Path

import pytest

import jbackprop

PACKAGE = Path(jbackprop.__file__).parent
PAGE = Path(__file__).parents[1] / "docs/source.md"
MAP = re.findall(r"\]\(../jbackprop/(\S+\.py)\) \|", PAGE.read_text(encoding="utf-8"))
FILES = [path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py"))]
ROOMS = ["conversion", "drawing", "verification", "training", "quantities", "core"]  # from the top


def imported(source):
    """The package's own files that a source imports, at its top or anywhere inside."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jbackprop":
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        if isinstance(node, ast.ImportFrom) and node.level:
            raise AssertionError(f"relative import of {node.module}")
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("jbackprop")}
    paths = {name.removeprefix("jbackprop").strip(".").replace(".", "/") + ".py" for name in names}
    return {path for path in paths if (PACKAGE / path).is_file()}


def test_the_map_names_every_file_once():
    assert sorted(MAP) == [path for path in FILES if not path.endswith("__init__.py")]


def test_rooms_stand_above_each_other():
    rooms = [path.split("/")[0] for path in MAP if "/" in path]
    assert list(dict.fromkeys(rooms)) == ROOMS
    assert rooms == sorted(rooms, key=ROOMS.index)


@pytest.mark.parametrize("path", FILES)
def test_imports_go_down(path):
    found = imported((PACKAGE / path).read_text(encoding="utf-8"))
    if path in MAP:
        assert found <= set(MAP[MAP.index(path) + 1 :])
    elif path == "__init__.py":
        assert found
    else:
        assert not found, "a room is entered by its files"


def test_an_import_that_goes_up_is_seen():
    assert imported("from jbackprop.core.factors import backprop") == {"core/factors.py"}
    assert imported("def f():\n    import jbackprop.plots") == {"plots.py"}
    assert imported("from jbackprop.core import backward as module") == {"core/backward.py"}
