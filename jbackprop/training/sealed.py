"""A folder of files with a description: what is damaged is found out before anything is read of it.

The description is JSON with a SHA-256 of its own, and holds one of every other file.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")
NAME = "jbackprop.json"


class Damaged(ValueError):
    """What is wrong with a folder that is not as it was sealed."""


def seal(folder: Path, told: dict[str, Any], *, without: Iterable[str] = ()) -> None:
    """Writes the description, with digests of all files but some."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    digests = {n: [p.stat().st_size, _of_file(p)] for n, p in files.items() if n not in {*without}}
    told = {**told, "files": digests}
    with (folder / NAME).open("w", encoding="utf-8") as file:
        json.dump({"description": told, "sha256": _of_json(told)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def described(folder: Path) -> dict[str, Any]:
    """The description, which says what the files have to be. `Damaged` where it is not whole."""
    try:
        whole = json.loads((folder / NAME).read_bytes())
        told, digest = whole["description"], whole["sha256"]
    except FileNotFoundError:
        raise Damaged(f"its {NAME} is missing") from None
    except Exception as error:  # a flipped bit may break whatever reads it
        raise Damaged(f"its {NAME} cannot be read: {type(error).__name__}: {error}") from error
    if _of_json(told) != digest:
        raise Damaged(f"its {NAME} has changed")
    return told


def check_files(folder: Path, files: Iterable[tuple[str, Any]]) -> None:
    """(name, [bytes, SHA-256]) of files. `Damaged` where one has changed."""
    for name, (size, digest) in files:
        path = folder / name
        try:
            found = path.stat().st_size
            if found != size:
                raise Damaged(f"its {name} has {found} bytes, and had {size}")
            if _of_file(path) != digest:
                raise Damaged(f"its {name} has changed")
        except OSError as error:
            raise Damaged(f"its {name} cannot be read: {error.strerror}") from error


def in_every_process(look: Callable[[], T]) -> T:
    """What `look` finds; `Damaged` in every process where it is in one of them."""
    found: Any = None
    try:
        found, why = look(), ""
    except Damaged as error:
        why = str(error)
    if jax.process_count() > 1:
        elsewhere = np.any(multihost_utils.process_allgather(np.bool_(why)))
        why = why or ("another process finds it so" if elsewhere else "")
    if why:
        raise Damaged(why)
    return found


def _of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_json(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
