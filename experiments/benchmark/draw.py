"""Figures of the results: who is how fast, and what grows how."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmark.report import _group_order
from jbackprop.drawing.style import BLUE, INK, ORANGE, SOFT, in_order, paper, picture


@picture
def peers(path: Path, results: dict[str, Any]) -> None:
    """Time of a step relative to ours, for the best form of every peer at every size."""
    tables = {n.split()[0]: t for n, t in results["steps"].items() if "tanh sgd float32" in n}
    groups = sorted({g for t in tables.values() for g in t["best"]}, key=_group_order)[1:]
    figure = paper(None, 9, 0.42 * len(groups) + 1.6)
    axes, colors = figure.subplots(), in_order(len(tables))
    for (name, table), color in zip(tables.items(), colors, strict=True):
        xs, ys = [], []
        for y, group in enumerate(groups):
            if group in table["best"]:
                row = table["candidates"][table["best"][group]]
                xs.append(1 / row["ours_over_this"]["median"])
                ys.append(y)
        axes.plot(xs, ys, "o", color=color, markersize=7, label=name)
    axes.axvline(1, color=SOFT, linewidth=1)
    axes.set_yticks(range(len(groups)), groups)
    axes.invert_yaxis()
    axes.set(xscale="log", xlabel="time of a step, in steps of jbackprop's compiled epoch")
    axes.set_title("Right of the line: slower than jbackprop")
    axes.grid(axis="x")
    axes.xaxis.set_major_formatter("{x:g}")
    figure.legend(ncols=len(tables), loc="outside lower center")
    figure.savefig(path)


@picture
def growth(path: Path, results: dict[str, Any]) -> None:
    """Above, time as width, depth, batch and dataset grow, and compile time; below, memory."""
    panels = list(results["growth"].items())
    figure = paper(None, 2.5 * (len(panels) + 1), 4.8)
    grid = figure.subplots(2, len(panels) + 1)
    for (above, below), (axis, g) in zip(grid.T, panels, strict=False):
        above.set_title(f"{axis}: time ∝ n$^{{{g['exponent']:.2f}}}$")
        _line(above, g["sizes"], np.multiply(g["seconds"], 1e3), BLUE)
        if "temporary_bytes" in g:
            memory, what = g["temporary_bytes"], f"temporaries ∝ n$^{{{g['memory_exponent']:.2f}}}$"
        else:
            memory, what = g["peak_bytes"], "peak of the process"
        below.set_title(what)
        _line(below, g["sizes"], np.divide(memory, 2**20), ORANGE)
        below.set_xlabel(axis)
    grid[0, 0].set_ylabel("ms a step (dataset: an epoch)")
    grid[1, 0].set_ylabel("MiB")
    compiled, above = results["compile"], grid[0, -1]
    for name, color in (("ours", BLUE), ("jax.value_and_grad", INK)):
        _line(above, compiled["depths"], compiled[name], color, name)
    above.set(title="first step, compiled (s)", xlabel="depth")
    above.legend(loc="upper left")
    grid[1, -1].set_axis_off()
    figure.savefig(path)


def _line(axes: Any, sizes: Any, values: Any, color: str, label: str | None = None) -> None:
    axes.plot(sizes, values, "o-", color=color, markersize=4, label=label)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks([sizes[0], sizes[-1]], [f"{n:,}" for n in (sizes[0], sizes[-1])])
    axes.yaxis.set_major_formatter("{x:g}")
    low, high = axes.get_ylim()
    if high < 30 * low:  # there may be no power of ten between them
        ends = (np.min(values), np.max(values))
        axes.set_yticks(ends, [f"{end:.3g}" if end < 1000 else f"{end:,.0f}" for end in ends])
    axes.minorticks_off()
    axes.grid(axis="y")
