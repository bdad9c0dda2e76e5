"""Lines of the library's source, looked up where they are, so that no page tells of an old one."""

import inspect
from pathlib import Path
from typing import Any

import jbackprop

_ROOT = Path(jbackprop.__file__).parents[1]


def line_of(function: Any, holding: str) -> str:
    """'file:number', and below it the one line of a function that holds these words.

    `ValueError` where there is none, or more than one."""
    function = inspect.unwrap(function)
    lines, start = inspect.getsourcelines(function)
    found = [(start + i, line.strip()) for i, line in enumerate(lines) if holding in line]
    if len(found) != 1:
        raise ValueError(f"holding: expected one line of {function} with {holding!r}, got {found}")
    ((number, line),) = found
    file = Path(inspect.getsourcefile(function) or "").relative_to(_ROOT)
    return f"{file.as_posix()}:{number}\n    {line}"
