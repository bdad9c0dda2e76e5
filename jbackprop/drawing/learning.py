"""How training went, and what it got wrong."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jbackprop.drawing.style import (
    BLUE,
    INK,
    ORANGE,
    SOFT,
    bare,
    caption,
    curves,
    in_order,
    paper,
    picture,
)


@picture
def plot_lines(
    lines: Mapping[str, Any], *, x: Any = None, title: str = "", xlabel: str = "",
    log: bool = False, figure: Any = None,
) -> Any:  # fmt: skip
    """A line for every name, from dark to light.

    Args:
        lines: name to values, (N,) each.
        x: where they stand, (N,); by default 1, 2, …
        title, xlabel: what is drawn, over what.
        log: whether the values are drawn by their logarithms.
        figure: a matplotlib figure or subfigure to draw into; by default a new one.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: a line has another length than x.

    >>> import jbackprop as jb
    >>> figure = jb.plot_lines({"cost": [3.0, 2.0, 1.5]}, xlabel="epoch")
    >>> figure.axes[0].lines[0].get_xdata().tolist()
    [1, 2, 3]
    """
    values = {name: np.asarray(line, float) for name, line in lines.items()}
    x = 1 + np.arange(max(map(len, values.values()), default=0)) if x is None else np.asarray(x)
    for name, line in values.items():
        if line.shape != x.shape:
            raise ValueError(f"lines: expected {name!r} of shape {x.shape}, got {line.shape}")
    figure = paper(figure, 9, 3.4)
    axes = figure.subplots()
    curves(axes, x, values.values(), [*values], title=title, log=log)
    axes.set_xlabel(xlabel)
    return figure


@picture
def plot_learning(
    metrics: Mapping[str, Any], *, kept: int | None = None, figure: Any = None
) -> Any:
    """Cost and error of every part of the data after every epoch.

    Args:
        metrics: name to `Metrics`, as `evaluate` returns them, with an axis of epochs.
        kept: the epoch, from 1, whose parameters were kept; it is marked.
        figure: a matplotlib figure or subfigure to draw into; by default a new one.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there is nothing to draw.
    """
    costs = {name: np.asarray(m.cost, float) for name, m in metrics.items()}
    errors = {name: 100 * (1 - np.asarray(m.accuracy, float)) for name, m in metrics.items()}
    if not costs or min(map(np.size, costs.values())) == 0:
        raise ValueError(f"metrics: expected a part with epochs at least, got {dict(metrics)}")
    epochs = 1 + np.arange(len(next(iter(costs.values()))))
    figure = paper(figure, 9, 3.4)
    left, right = figure.subplots(1, 2)
    curves(left, epochs, costs.values(), [*costs], title="Mean cost C", log=True)
    curves(right, epochs, errors.values(), [*errors], title="Wrongly classified (%)")
    right.set_ylim(0, None)
    last = sorted([*errors.values()][-1])
    if len(epochs) > 10:  # the first epochs would hide all that follows
        right.set_ylim(0, 1.3 * last[int(0.9 * len(last))] + 1)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        if kept is not None:
            axes.axvline(kept, color=SOFT, linestyle=":", linewidth=1.2)
    if kept is not None:
        left.annotate(
            "kept", (kept, 1), (3, -2), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="top", color=INK,
        )  # fmt: skip
    return figure


@picture
def plot_examples(
    images: Any, t: Any, y: Any, *, title: str = "", columns: int = 6, figure: Any = None
) -> Any:
    """Images that a network was asked:
    above each what it is, what the network said of it and how surely.

    What was said wrongly is in bold type.

    Args:
        images: (N, height, width) each, or (N, length).
        t: labels, (N,).
        y: outputs, (N, n), as `predict` returns them; the largest is what was said.
        title: over all.
        columns: images in a row.
        figure: a matplotlib figure or subfigure to draw into; by default a new one.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: t or y are of other lengths.
    """
    images, t, y = np.asarray(images), np.asarray(t), np.asarray(y)
    for name, value, dims in (("t", t, 1), ("y", y, 2)):
        if value.ndim != dims or len(value) != len(images):
            raise ValueError(f"{name}: expected {len(images)} rows, got shape {value.shape}")
    rows = -(-len(images) // columns)
    figure = paper(figure, 1.5 * columns, 1.9 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    surely = "{:.0%}" if ((y >= 0) & (y <= 1)).all() else "{:.2f}"
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image, label, of in zip(grid.flat, images, t, y, strict=False):
        axes.set_axis_on()
        if image.ndim == 1:
            axes.plot(image, color=INK, linewidth=1)
        else:
            axes.imshow(image)
        bare(axes)
        said = int(of.argmax())
        color, weight = (BLUE, "normal") if said == label else (ORANGE, "bold")
        told = f"a {label}; said {said} ({surely.format(of.max())})"
        axes.set_title(told, loc="center", fontsize=8, color=color, fontweight=weight)
    caption(figure, title)
    return figure


@picture
def plot_privacy(
    spent: Mapping[float, tuple[Any, Any]], delta: float, *, without: float | None = None,
    figure: Any = None,
) -> Any:  # fmt: skip
    """What privacy costs: accuracy against ε, a line for every noise multiplier σ.

    Args:
        spent: σ to (ε, accuracy), an entry for every epoch each.
        delta: the δ at which ε holds.
        without: accuracy that clipping without noise reaches; a level.
        figure: a matplotlib figure or subfigure to draw into; by default a new one.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure = paper(figure, 9, 4.2)
    axes = figure.subplots()
    for (sigma, (epsilon, accuracy)), color in zip(
        sorted(spent.items()), in_order(len(spent)), strict=True
    ):
        right = 100 * np.asarray(accuracy, float)
        axes.plot(epsilon, right, "o-", color=color, markersize=3.5)
        axes.annotate(
            f"σ = {sigma:g}", (epsilon[-1], right[-1]), (6, 0), textcoords="offset points",
            va="center", color=INK, zorder=5,
            bbox={"boxstyle": "square,pad=0.1", "color": "white"},  # another σ may pass behind
        )  # fmt: skip
    if without is not None:
        axes.axhline(100 * without, color=ORANGE, linestyle="--", linewidth=1.2)
        axes.annotate(
            "clipped, without noise: no privacy", (0.01, 100 * without), (0, -12),
            xycoords=("axes fraction", "data"), textcoords="offset points", color=ORANGE,
        )  # fmt: skip
    axes.set(
        title="What privacy costs: a point an epoch, up and to the left is better",
        xlabel=f"ε spent, at δ = {delta:g}", ylabel="test accuracy (%)", xscale="log",
    )  # fmt: skip
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(x=0.1)
    axes.grid(True, axis="both")
    return figure
