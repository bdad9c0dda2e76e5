"""Prints the newest Python of this machine, if newer than the one that runs this; else exits 1."""

import os
import subprocess
import sys
from pathlib import Path

ASK = "import ensurepip, sys, venv; print(*sys.version_info[:2], sys.version_info.releaselevel)"


def candidates() -> list[str]:
    """By name on the PATH, and pyenv's versions, whose names there may lead nowhere."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    return [f"python3.{minor}" for minor in range(12, 20)] + [
        str(path) for path in sorted(pyenv.glob("versions/3.*/bin/python"))
    ]


def asked(python: str) -> tuple[int, int] | None:
    """The version of a Python that can make environments, or None."""
    try:
        done = subprocess.run([python, "-c", ASK], capture_output=True, text=True, timeout=60)
        major, minor, level = done.stdout.split()
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return (int(major), int(minor)) if level == "final" else None


if __name__ == "__main__":
    found = [(version, python) for python in candidates() if (version := asked(python))]
    newest = max(found, default=(sys.version_info[:2], ""))
    if newest[0] <= sys.version_info[:2]:
        sys.exit(1)
    print(newest[1])
