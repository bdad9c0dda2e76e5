"""Folders in the order in which they were saved: which of them count, and the removal of the rest.

000012-step-300 is the twelfth, and of step 300. One counts until a later one is of its step or of
an earlier step.
"""

import contextlib
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

_NAME = re.compile(r"(\d{6,})-step-(\d+)")
_LEFT = re.compile(rf"{_NAME.pattern}(\.old|\.orbax-checkpoint-tmp.*)")


class Saved(NamedTuple):
    """One of them."""

    place: int
    step: int

    @property
    def name(self) -> str:
        return f"{self.place:06d}-step-{self.step}"


def listed(folder: Path) -> list[Saved]:
    """All that have their name, in their order."""
    if not folder.is_dir():
        return []
    found = [_NAME.fullmatch(path.name) for path in folder.iterdir()]
    return sorted(Saved(int(name[1]), int(name[2])) for name in found if name)


def current(folder: Path) -> list[Saved]:
    """Those that count: their steps go up."""
    found: list[Saved] = []
    for saved in listed(folder):
        found = [s for s in found if s.step < saved.step] + [saved]
    return found


def tidy(folder: Path, keep: int) -> None:
    """Removes those that do not count, or are not of the last few, and what was never finished."""
    if jax.process_index() == 0 and folder.is_dir():
        kept = {saved.name for saved in current(folder)[-keep:]}
        for path in folder.iterdir():
            with contextlib.suppress(OSError):
                if _NAME.fullmatch(path.name) and path.name not in kept:
                    # renamed first: half of one shall not have the name of a whole one
                    shutil.rmtree(path.rename(folder / f"{path.name}.old"))
                elif _LEFT.fullmatch(path.name):
                    shutil.rmtree(path)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("jbackprop: tidy")


def as_first_sees(found: list[Saved]) -> list[Saved]:
    """As process 0 sees them, in all: a disk may tell others later."""
    if jax.process_count() == 1:
        return found
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(found))))
    first = found if jax.process_index() == 0 else [Saved(0, 0)] * count
    rows = np.array(first, np.int32).reshape(count, 2)
    return [Saved(*map(int, row)) for row in multihost_utils.broadcast_one_to_all(rows)]


def told(folder: Path) -> str:
    """What is there instead of any."""
    if not folder.is_dir():
        return "a file" if folder.exists() else "no folder"
    names = sorted(path.name for path in folder.iterdir())
    return f"one with {', '.join(names[:3])}" if names else "an empty one"
