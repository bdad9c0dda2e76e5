"""What lies behind a run after some epochs: all that it goes on from but the state of training."""

import math
from typing import Any, NamedTuple

import jax
import numpy as np

import jbackprop as jb
from experiments.common import run


class History(NamedTuple):
    """Of the epochs so far.

    Attributes:
        rows: the lines of metrics.jsonl, one an epoch.
        norms: what was observed in each epoch, (steps, L).
        kept: the best epoch, counted from 1, and its parameters; None before there is one.
    """

    rows: tuple[dict[str, Any], ...] = ()
    norms: tuple[np.ndarray, ...] = ()
    kept: tuple[int, Any] | None = None

    def after(self, row: dict[str, Any], norms: np.ndarray, params: Any) -> "History":
        """With one more epoch, which may be the best."""
        best = finite(row) and (self.kept is None or _merit(row) > _merit(self.best))
        kept = (len(self.rows) + 1, jax.tree.map(np.array, params)) if best else self.kept
        return History((*self.rows, row), (*self.norms, norms), kept)

    @property
    def best(self) -> dict[str, Any]:
        """The row of the best epoch."""
        assert self.kept
        return self.rows[self.kept[0] - 1]


def finite(row: dict[str, Any]) -> bool:
    """Whether the costs are numbers."""
    return all(math.isfinite(row[part]["cost"]) for part in ("train", "validation"))


def _merit(row: dict[str, Any]) -> tuple[float, float]:
    """Accuracy on validation; among equals the cost decides."""
    return row["validation"]["accuracy"], -row["validation"]["cost"]


def packed(history: History) -> dict[str, Any]:
    """A flat dict of arrays, which a checkpoint takes."""
    rows = np.frombuffer(run.lines(history.rows), np.uint8)
    epoch, params = history.kept or (0, ())
    layers = enumerate(params, start=1)
    named = {f"{name}{l}": v for l, layer in layers for name, v in zip("wb", layer, strict=True)}
    return {"rows": rows, "norms": np.stack(history.norms), "best_epoch": epoch, **named}


def unpacked(extra: dict[str, Any]) -> History:
    """The history that was packed."""
    epoch, count = int(extra["best_epoch"]), sum(name.startswith("w") for name in extra)
    params = tuple(jb.Layer(extra[f"w{l}"], extra[f"b{l}"]) for l in range(1, count + 1))
    rows = run.rows_of(extra["rows"].tobytes())
    return History(tuple(rows), tuple(extra["norms"]), (epoch, params) if epoch else None)
