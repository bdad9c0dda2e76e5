"""What a verification found: a row for every comparison, and a table of them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

WIDTH = 79  # of a terminal


class Row(NamedTuple):
    """One comparison.

    Attributes:
        what: was compared with what.
        error: the largest difference, relative to the largest entry of what was expected.
        tolerance: the largest that may be.
        where: layer and entry of the largest difference, where it is too large.
        blame: what is wrong, as far as can be told.
    """

    what: str
    error: float
    tolerance: float
    where: str = ""
    blame: str = ""

    @property
    def passed(self) -> bool:
        """NaN is no agreement."""
        return bool(self.error <= self.tolerance)


@dataclass(frozen=True)
class Report:
    """What `verify` found: all rows, what a reader should know beside them, and where it ran.

    Attributes:
        rows: the comparisons, in the order in which one needs the other.
        notes: such as that a layer saturates, or that a row of x was left out.
        about: device, versions and network.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    about: str = ""

    @property
    def passed(self) -> bool:
        """Whether every comparison agrees, and there was one."""
        return bool(self.rows) and all(row.passed for row in self.rows)

    @property
    def failures(self) -> tuple[Row, ...]:
        """The rows that do not agree."""
        return tuple(row for row in self.rows if not row.passed)

    def __str__(self) -> str:
        width = max([len(row.what) for row in self.rows], default=0)
        width = min(max(width, len("compared")), WIDTH - 30)
        lines = [self.about] if self.about else []
        lines.append(f"{'compared':{width}}  {'error':>8} {'allowed':>8}")
        for row in self.rows:
            verdict = "ok" if row.passed else "WRONG"
            lines.append(f"{row.what:{width}}  {row.error:8.1e} {row.tolerance:8.0e}  {verdict}")
            lines += [f"    {told}" for told in (row.where, row.blame) if told and not row.passed]
        lines += [f"note: {note}" for note in self.notes]
        wrong = len(self.failures)
        agree = f"all {len(self.rows)} comparisons agree"
        lines.append(f"{wrong} of {len(self.rows)} are wrong" if wrong else agree)
        return "\n".join(lines)


def compared(
    what: str,
    ours: Any,
    theirs: Any,
    tolerance: float,
    *,
    by_layer: bool = False,
    least: float = 0.0,
) -> Row:
    """The row of two pytrees of equal structure: every leaf relative to its own largest entry, but
    never to less than 1e-6 of the largest of all, which cancellation may leave of a zero, nor to
    less than `least`."""
    found, expected = (
        [np.asarray(v, np.float64) for v in jax.tree.leaves(of)] for of in (ours, theirs)
    )
    if [v.shape for v in found] != [v.shape for v in expected]:
        shapes = f"got shapes {[v.shape for v in found]}, expected {[v.shape for v in expected]}"
        return Row(what, np.inf, tolerance, shapes)
    overall = max((_largest(v) for v in expected), default=0.0)
    worst, where = 0.0, ""
    leaves = len(expected) // max(_layers(ours, by_layer), 1)
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            same = (a == b) | (np.isnan(a) & np.isnan(b))  # such as a variance of one example
            off = np.where(same, 0.0, np.abs(a - b))
            scale = max(_largest(b), 1e-6 * overall, least)
            relative = np.where(off == 0, 0.0, off / scale)
        relative = np.where(np.isnan(relative), np.inf, relative)
        largest = float(np.max(relative, initial=0))
        if largest > worst:
            worst, at = largest, np.unravel_index(int(np.argmax(relative)), relative.shape)
            layer = f"layer {1 + k // leaves}: " if by_layer else ""
            part = ("w", "b")[k % 2] if by_layer and leaves == 2 else ""
            place = f"{part}[{', '.join(map(str, at))}]" if at else part or "value"
            where = f"{layer}{place} is {a[at]:.6g}, expected {b[at]:.6g}"
    return Row(what, worst, tolerance, where)


def _layers(tree: Any, by_layer: bool) -> int:
    return len(tree) if by_layer else 1


def _largest(values: np.ndarray) -> float:
    """Of the numbers among them."""
    known = np.abs(values[np.isfinite(values)])
    return float(np.max(known, initial=0))
