"""Figures of the results: who is how fast, and what grows how."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.benchmark.report import _group_order
from experiments.common.figures import BLUE, INK, ORANGE, SOFT


def peers(path: Path, results: dict[str, Any]) -> None:
    """Time of a step relative to ours, for the best form of every peer at every size."""
    tables = {n.split()[0]: t for n, t in results["steps"].items() if "tanh sgd float32" in n}
    groups = sorted({g for t in tables.values() for g in t["best"]}, key=_group_order)[1:]
    figure, axes = plt.subplots(figsize=(9, 0.42 * len(groups) + 1.6), layout="constrained")
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, len(tables)))
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
    axes.legend(ncols=len(tables), loc="upper center", bbox_to_anchor=(0.5, -0.28))
    figure.savefig(path)
    plt.close(figure)


def growth(path: Path, results: dict[str, Any]) -> None:
    """Time and temporaries as width, depth, batch and dataset grow; compile time by depth."""
    panels = list(results["growth"].items())
    figure, grid = plt.subplots(
        1, len(panels) + 1, figsize=(2.9 * (len(panels) + 1), 2.9), layout="constrained"
    )
    for axes, (axis, g) in zip(grid, panels, strict=False):
        axes.plot(g["sizes"], g["seconds"], "o-", color=BLUE, markersize=4)
        axes.set(xscale="log", yscale="log", title=f"{axis}: time ∝ n$^{{{g['exponent']:.2f}}}$")
        axes.set_xlabel(axis)
        memory = g.get("temporary_bytes") or g["peak_bytes"]
        twin = axes.twinx()
        twin.plot(g["sizes"], np.divide(memory, 2**20), "s--", color=ORANGE, markersize=3)
        twin.set(yscale="log")
        twin.tick_params(axis="y", colors=ORANGE)
        axes.tick_params(axis="y", colors=BLUE)
    grid[0].set_ylabel("seconds", color=BLUE)
    compiled = results["compile"]
    for name, color in (("ours", BLUE), ("jax.value_and_grad", INK)):
        grid[-1].plot(
            compiled["depths"], compiled[name], "o-", color=color, markersize=4, label=name
        )
    grid[-1].set(xscale="log", yscale="log", title="first step (s)", xlabel="depth")
    grid[-1].legend()
    figure.suptitle(
        "Blue: seconds. Orange: MiB of temporaries (dataset: of the process)", x=0.01, ha="left"
    )
    figure.savefig(path)
    plt.close(figure)
