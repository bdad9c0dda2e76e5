"""The folder of a run: what was asked for, what came out, written as it comes."""

import json
import math
import os
import platform
import re
import signal
import subprocess
from collections.abc import Iterable, Iterator
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


def moment(folder: Path) -> tuple[str, int] | None:
    """When a run's folder was made, by its name; None where it is none. The newest is the last."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d)(?:-(\d+))?", folder.name)
    return (found[1], int(found[2] or 0)) if found else None


def write_config(folder: Path, options: Any, **more: Any) -> None:
    """config.json: the options, and all that a repetition needs."""
    write_whole(folder / "config.json", as_json({"options": asdict(options), **more, **here()}))


def here() -> dict[str, Any]:
    """What a run's numbers depend on, and that is no option of it."""
    return {
        "commit": _commit(),
        "device": jax.devices()[0].device_kind,
        "backend": jax.default_backend(),
        "platform": platform.platform(),
        "versions": {"python": platform.python_version(), "jbackprop": jb.__version__}
        | {name: version(name) for name in ("jax", "jaxlib", "numpy", "optax", "scikit-learn")},
    }


def as_json(config: dict[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, default=str, ensure_ascii=False) + "\n").encode()


def write_whole(path: Path, data: bytes) -> None:
    """What stood there is replaced in one stroke: who reads it finds the old or the new."""
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


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
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(lines([row]))


def lines(rows: Iterable[dict[str, Any]]) -> bytes:
    """As they stand in metrics.jsonl."""
    return "".join(json.dumps(_strict(row), allow_nan=False) + "\n" for row in rows).encode()


def rows_of(text: bytes) -> list[dict[str, Any]]:
    """What stands in such lines."""
    return [json.loads(line) for line in text.splitlines()]


def _strict(value: Any) -> Any:
    """NaN and infinity, for which JSON has no words, become null."""
    if isinstance(value, dict):
        return {key: _strict(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def stop_between_epochs() -> Iterator[list[int]]:
    """Ctrl-C or SIGTERM puts its number into the list that is yielded; a second ends at once."""
    asked: list[int] = []

    def ask(number: int, frame: Any) -> None:
        asked.append(number)
        as_before()

    def as_before() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # JAX's own, in C, would only log

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        as_before()


def stopped(asked: list[int]) -> int:
    """The exit status of a run that ended as asked, as a shell has it; 0 where nobody asked."""
    return 128 + asked[0] if asked else 0
