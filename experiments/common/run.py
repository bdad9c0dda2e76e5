"""The folder of a run: what was asked for, what came out, written as it comes."""

import json
import math
import platform
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import jbackprop as jb


def new_folder(parent: Path) -> Path:
    """A fresh folder named by the time; two runs in one second get two folders."""
    stamp = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    for n in range(1000):
        folder = parent / (f"{stamp}-{n}" if n else stamp)
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            continue
    raise FileExistsError(f"{parent / stamp}: exists a thousand times over")


def write_config(folder: Path, options: Any, **more: Any) -> None:
    """config.json: the options, and all that a repetition needs."""
    config = {
        "options": asdict(options),
        **more,
        "commit": _commit(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), "jbackprop": jb.__version__}
        | {name: version(name) for name in ("jax", "jaxlib", "numpy", "optax", "scikit-learn")},
    }
    text = json.dumps(config, indent=2, default=str, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def _commit() -> str | None:
    """The commit of this checkout, marked where the working tree differs from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.decode().strip() + ("+changes" if changes.stdout else "")


def append(folder: Path, row: dict[str, Any]) -> None:
    """One more line of metrics.jsonl, on disk when this returns."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(_strict(row), allow_nan=False) + "\n")


def _strict(value: Any) -> Any:
    """NaN and infinity, for which JSON has no words, become null."""
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def stop_between_epochs() -> Iterator[list[int]]:
    """Ctrl-C fills the list that is yielded; a second Ctrl-C stops at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)
