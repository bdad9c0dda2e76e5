"""The figures of a training run. Each function draws one file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import LinearSegmentedColormap

from jbackprop.plots import plot_panel

INK, SOFT = "#1f2933", "#9aa5b1"
BLUE, ORANGE = "#2b6cb0", "#dd6b20"
DIVERGING = LinearSegmentedColormap.from_list("diverging", [BLUE, "white", ORANGE])
mpl.rcParams |= {
    "figure.dpi": 130,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "grid.color": "#e4e7eb",
    "legend.frameon": False,
    "image.cmap": "gray_r",
}


def learning_curves(path: Path, rows: Sequence[dict[str, Any]], best: int) -> None:
    """Cost and error of train and validation after every epoch; the one that was kept is marked."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for part, color in (("train", BLUE), ("validation", ORANGE)):
        left.plot(epochs, [row[part]["cost"] for row in rows], color=color, label=part)
        error = [100 * (1 - row[part]["accuracy"]) for row in rows]
        right.plot(epochs, error, color=color, label=part)
    left.set(title="Mean cost C", yscale="log")
    right.set(title="Wrongly classified (%)", ylim=(0, None))
    top = sorted(100 * (1 - row["validation"]["accuracy"]) for row in rows)
    if len(rows) > 10:  # the first epochs would hide all that follows
        right.set_ylim(0, 1.3 * top[int(0.9 * len(top))] + 1)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(axis="y")
        axes.axvline(best, color=SOFT, linestyle=":", linewidth=1.2)
        axes.legend()
    left.annotate(
        "kept", (best, 1), (3, -2), xycoords=("data", "axes fraction"),
        textcoords="offset points", va="top", color=SOFT,
    )  # fmt: skip
    figure.savefig(path)
    plt.close(figure)


def delta_norms(path: Path, norms: np.ndarray) -> None:
    """Mean ‖δ^l‖ of every layer: its median over each epoch's steps, and the middle 80 % as a band.

    norms has shape (epochs, steps, L)."""
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    epochs = 1 + np.arange(len(norms))
    low, middle, high = np.quantile(norms, (0.1, 0.5, 0.9), axis=1)
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.8, norms.shape[2]))
    for l, color in enumerate(colors):
        axes.fill_between(epochs, low[:, l], high[:, l], color=color, alpha=0.12, linewidth=0)
        axes.plot(epochs, middle[:, l], color=color, linewidth=1.8, label=f"δ$^{{{l + 1}}}$")
    axes.set(title="Mean ‖δ$^l$‖ over a batch", xlabel="epoch", yscale="log")
    axes.legend(ncols=3)
    axes.grid(axis="y")
    figure.savefig(path)
    plt.close(figure)


def hardest(
    path: Path,
    images: np.ndarray,
    truth: np.ndarray,
    said: np.ndarray,
    surely: Sequence[str],
    title: str,
) -> None:
    """Images with what the network said of each, how surely, and what it is."""
    columns = 6
    rows = -(-len(images) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(9, 1.9 * rows + 0.4), layout="constrained", squeeze=False
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, t, y, p in zip(grid.flat, images, truth, said, surely, strict=False):
        axes.imshow(image)
        color = BLUE if t == y else ORANGE
        axes.set_title(f"a {t}; said {y} ({p})", loc="center", fontsize=9, color=color)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11)
    figure.savefig(path)
    plt.close(figure)


def privacy(path: Path, curves: dict[float, list[dict[str, Any]]], delta: float) -> None:
    """Test accuracy against ε, an epoch a point, a line for every σ; without noise a level."""
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    noisy = [sigma for sigma in sorted(curves) if sigma > 0 and curves[sigma]]
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, max(1, len(noisy))))
    for sigma, color in zip(noisy, colors, strict=False):
        spent, right = ([row[key] for row in curves[sigma]] for key in ("epsilon", "test"))
        axes.plot(spent, np.multiply(right, 100), "o-", color=color, markersize=3.5)
        axes.annotate(
            f"σ = {sigma:g}", (spent[-1], 100 * right[-1]), (6, 0), textcoords="offset points",
            va="center", color=color, zorder=5,
            bbox={"boxstyle": "square,pad=0.1", "color": "white"},  # another σ may pass behind
        )  # fmt: skip
    for sigma in set(curves) - set(noisy):
        best = 100 * curves[sigma][-1]["test"]
        axes.axhline(best, color=ORANGE, linestyle="--", linewidth=1.2)
        axes.annotate(
            "clipped, without noise: no privacy", (0.01, best), (0, -12),
            xycoords=("axes fraction", "data"), textcoords="offset points", color=ORANGE,
        )  # fmt: skip
    axes.set(
        title="What privacy costs: a point an epoch, up and to the left is better",
        xlabel=f"ε spent, at δ = {delta:g}", ylabel="test accuracy (%)", xscale="log",
    )  # fmt: skip
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.1)
    axes.grid()
    figure.savefig(path)
    plt.close(figure)


def kernels(path: Path, w: np.ndarray) -> None:
    """The kernels of the first layer, (n, k, k) or (n, k): blue is below 0, orange above."""
    if w.ndim == 2:
        w = w[:, None]
    columns = 8
    rows = -(-len(w) // columns)
    height = 0.55 if w.shape[1] == 1 else 1.1
    figure, grid = plt.subplots(
        rows, columns, figsize=(9, height * rows + 0.6), layout="constrained", squeeze=False
    )
    most = np.abs(w).max()
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, kernel in zip(grid.flat, w, strict=False):
        axes.imshow(kernel, cmap=DIVERGING, vmin=-most, vmax=most)
    figure.suptitle("The kernels w$^1$ that were learned", x=0.01, ha="left", fontsize=11)
    figure.savefig(path)
    plt.close(figure)


def flow(path: Path, images: np.ndarray, sizes: Sequence[np.ndarray]) -> None:
    """A digit a column: the image (or line) below, and above it how large δ^l is everywhere."""
    lines = images.ndim == 2
    count, rows = len(images), [*reversed(sizes), images]
    names = [f"‖δ$^{{{l}}}$‖" for l in range(len(sizes), 0, -1)] + ["x"]
    heights = [0.35] * len(sizes) + [1.2] if lines else [1.2] * len(rows)
    figure, grid = plt.subplots(
        len(rows), count, figsize=(9, sum(heights) + 0.5), layout="constrained", squeeze=False,
        height_ratios=heights,
    )  # fmt: skip
    for line, name, row in zip(grid, names, rows, strict=True):
        for axes, image in zip(line, row, strict=True):
            if name == "x" and lines:
                axes.plot(image, color=INK, linewidth=1)
                axes.set(xlim=(-0.5, len(image) - 0.5), ylim=(images.min(), images.max()))
            else:
                shown = image[None] if lines else image
                look = "gray_r" if name == "x" else "magma_r"
                axes.imshow(shown, cmap=look, aspect="auto" if lines else None)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
    figure.suptitle(
        "The error on its way back, from above: where each digit's δ is large, by layer",
        x=0.01, ha="left", fontsize=11,
    )  # fmt: skip
    figure.savefig(path)
    plt.close(figure)


def panel(path: Path, panel: Any, images: np.ndarray, titles: Sequence[str]) -> None:
    """The panel of a run, and under it the examples that were hardest, as images."""
    figure = plt.figure(figsize=(12, 11), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=[4.6, 1])
    above, below = parts
    plot_panel(panel, figure=above)
    below.suptitle(
        "The training digits of the highest cost, over all of training", x=0.01, ha="left", size=10
    )
    row: Any = below.subplots(1, len(images))
    for axes, image, title in zip(row, images, titles, strict=True):
        axes.imshow(image)
        axes.set_axis_off()
        axes.set_title(title, loc="center", fontsize=8)
    figure.savefig(path)
    plt.close(figure)
