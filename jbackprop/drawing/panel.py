"""One page of what a training run told of its gradients."""

from typing import Any

import numpy as np

from jbackprop.drawing.style import BLUE, ORANGE, SOFT, curves, paper, picture
from jbackprop.quantities.diagnostics import Panel


def smooth(values: Any, steps: int) -> np.ndarray:
    """The mean over the last `steps` values along the first axis, or over as many as there are."""
    values = np.asarray(values, float)
    known = np.isfinite(values)
    totals = (np.cumsum(v, axis=0) for v in (np.where(known, values, 0), known))
    sums, counts = (
        total - np.concatenate([np.zeros((steps, *total.shape[1:])), total])[: len(total)]
        for total in totals
    )
    return sums / np.maximum(counts, 1)


@picture
def plot_panel(panel: Panel, *, figure: Any = None, over: int | None = None) -> Any:
    """One page of a `Panel` over steps: what the gradients of a training run were like.

    Cost; noise scale, as tr Σ / |G|² of running means, beside the batch size; how the norms of the
    examples' gradients are spread; variance and ‖δ^l‖ by layer; the three tests of the batch's
    size; dead and saturated units; how far a step moves each layer.

    Args:
        panel: stacked over steps, as `train_epoch` returns it under `observe=observe_all(net)`.
        figure: a matplotlib figure or subfigure to draw into; by default a new one.
        over: steps that a running mean takes in; by default a fiftieth of all.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: panel holds a single step.
    """
    panel = Panel._make(panel)
    cost = np.asarray(panel.cost, float)
    if cost.ndim != 1 or len(cost) < 2:
        raise ValueError(f"panel: expected an axis of at least 2 steps, got {cost.shape}")
    over = over or max(1, len(cost) // 50)
    figure = paper(figure, 12, 8.5)
    _draw(panel, figure.subplots(3, 3), over)
    return figure


def _draw(panel: Panel, grid: Any, over: int) -> None:
    layers = [f"layer {l + 1}" for l in range(panel.variance.shape[-1])]
    running = lambda values: smooth(values, over)
    _lines(grid[0, 0], running(panel.cost), "mean cost C")

    # over more steps, since |G|² of a single batch is mostly noise
    trace, squared = (
        smooth(v, 5 * over) for v in (panel.noise.trace, panel.noise.squared_gradient)
    )
    present = np.asarray(panel.norms) > 0
    batch, axes = present.sum(-1).max(), grid[0, 1]
    scale = trace / np.where(squared > 0, squared, np.nan)
    _lines(axes, scale, "examples in a batch that would be worth it")
    axes.lines[0].set(color=BLUE, label="noise scale tr Σ / |G|²")
    axes.axhline(batch, color=ORANGE, linestyle="--", label=f"batch size {batch}")
    axes.legend()

    norms, axes = np.where(present, panel.norms, np.nan), grid[0, 2]
    with np.errstate(all="ignore"):
        cuts = np.nanquantile(norms, (0.05, 0.25, 0.5, 0.75, 0.95), axis=1)
    low, quarter, middle, three, high = (running(cut) for cut in cuts)
    _lines(axes, middle, "norm ‖g$_i$‖ over the examples of a batch")
    axes.lines[0].set(color=BLUE, label="median")
    steps = axes.lines[0].get_xdata()
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0, label="90 %")
    axes.fill_between(steps, quarter, three, color=BLUE, alpha=0.3, linewidth=0, label="50 %")
    axes.legend()

    _lines(grid[1, 0], running(panel.variance), "variance tr Σ$^l$ by layer", layers)
    _lines(grid[1, 1], running(panel.delta.mean), "mean ‖δ$^l$‖", layers)
    moved = running(panel.update_ratio)
    _lines(grid[1, 2], moved, "update / weight, ‖Δθ$^l$‖ / ‖θ$^l$‖", layers)
    tests = [panel.norm_test, panel.inner_product_test, panel.orthogonality_test]
    names = ["norm", "inner product", "orthogonality"]
    tests = running(np.stack(tests, -1))
    _lines(grid[2, 0], tests, "tests of the batch's size (θ², ν²)", names)
    grid[2, 0].axhline(1, color=SOFT, linewidth=1)
    _lines(grid[2, 1], running(panel.gradient_norm), "‖ḡ$^l$‖", layers)
    shares = 100 * np.concatenate([panel.units.saturated, panel.units.dead], -1)
    if shares.size:
        names = [f"{l}: {kind}" for kind in ("flat", "dead") for l in layers[:-1]]
        _lines(grid[2, 2], running(shares), "units with f' ≈ 0 (%)", names, log=False)
        grid[2, 2].set_ylim(0, max(5, 1.2 * shares.max()))
    else:
        grid[2, 2].set_axis_off()
    for axes in grid[2]:
        axes.set_xlabel("step")


def _lines(axes: Any, values: Any, title: str, names: Any = None, *, log: bool = True) -> None:
    """A line over steps 1, 2, … for each column."""
    columns = values.reshape(len(values), -1).T
    curves(axes, 1 + np.arange(len(values)), columns, names, title=title, log=log)
