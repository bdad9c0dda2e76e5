"""Pictures of what the library returns. They need matplotlib: the extra `experiments`."""

from typing import Any

import numpy as np

from jbackprop.quantities.diagnostics import Panel


def smooth(values: Any, steps: int) -> np.ndarray:
    """The mean over the last `steps` values along the first axis, or over as many as there are."""
    sums = np.cumsum(np.nan_to_num(np.asarray(values, float)), axis=0)
    count = np.cumsum(np.isfinite(np.asarray(values, float)), axis=0)
    before = np.concatenate([np.zeros((steps, *sums.shape[1:])), sums])[: len(sums)]
    counted = np.concatenate([np.zeros((steps, *count.shape[1:])), count])[: len(count)]
    return (sums - before) / np.maximum(count - counted, 1)


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
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plot_panel needs matplotlib: pip install 'jbackprop[experiments]'"
        ) from error

    panel = Panel._make(panel)
    cost = np.asarray(panel.cost, float)
    if cost.ndim != 1 or len(cost) < 2:
        raise ValueError(f"panel: expected an axis of at least 2 steps, got {cost.shape}")
    over = over or max(1, len(cost) // 50)
    if figure is None:
        figure = plt.figure(figsize=(12, 8.5), dpi=130, layout="constrained")
    grid = figure.subplots(3, 3)
    steps = 1 + np.arange(len(cost))
    running = lambda values: smooth(values, over)

    def lines(axes: Any, values: Any, title: str, names: Any = None, log: bool = True) -> None:
        values = running(values).reshape(len(steps), -1)
        colors = plt.get_cmap("viridis")(np.linspace(0, 0.85, values.shape[1]))
        for column, color in enumerate(colors):
            label = None if names is None else names[column]
            axes.plot(steps, values[:, column], color=color, linewidth=1.5, label=label)
        axes.set_title(title, loc="left", fontsize=10)
        if log:
            axes.set_yscale("log")
        if names is not None:
            axes.legend(frameon=False, fontsize=8, ncols=2 if len(names) > 3 else 1)

    layers = [f"layer {l}" for l in range(1, panel.variance.shape[-1] + 1)]
    hidden = layers[:-1]
    lines(grid[0, 0], cost, "mean cost C")

    # over more steps, since |G|² of a single batch is mostly noise
    noise = panel.noise
    trace, squared = (smooth(v, 5 * over) for v in (noise.trace, noise.squared_gradient))
    scale = trace / np.where(squared > 0, squared, np.nan)
    batch = (np.asarray(panel.norms) > 0).sum(-1).max()
    axes = grid[0, 1]
    axes.plot(steps, scale, color="#2b6cb0", linewidth=1.5, label="noise scale tr Σ / |G|²")
    axes.axhline(batch, color="#dd6b20", linewidth=1.2, linestyle="--", label=f"batch size {batch}")
    axes.set_title("examples in a batch that would be worth it", loc="left", fontsize=10)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)

    norms = np.where(np.asarray(panel.norms) > 0, panel.norms, np.nan)
    with np.errstate(all="ignore"):
        cuts = np.nanquantile(norms, (0.05, 0.25, 0.5, 0.75, 0.95), axis=1)
    low, quarter, middle, three, high = (running(cut) for cut in cuts)
    axes = grid[0, 2]
    axes.fill_between(steps, low, high, color="#2b6cb0", alpha=0.15, linewidth=0, label="90 %")
    axes.fill_between(steps, quarter, three, color="#2b6cb0", alpha=0.3, linewidth=0, label="50 %")
    axes.plot(steps, middle, color="#2b6cb0", linewidth=1.5, label="median")
    axes.set_title("norm ‖g$_i$‖ over the examples of a batch", loc="left", fontsize=10)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)

    lines(grid[1, 0], panel.variance, "variance tr Σ$^l$ by layer", layers)
    lines(grid[1, 1], panel.delta.mean, "mean ‖δ$^l$‖", layers)
    lines(grid[1, 2], panel.update_ratio, "update / weight, ‖Δθ$^l$‖ / ‖θ$^l$‖", layers)
    tests = [panel.norm_test, panel.inner_product_test, panel.orthogonality_test]
    names = ["norm", "inner product", "orthogonality"]
    lines(grid[2, 0], np.stack(tests, -1), "tests of the batch's size (θ², ν²)", names)
    grid[2, 0].axhline(1, color="#9aa5b1", linewidth=1)
    lines(grid[2, 1], panel.gradient_norm, "‖ḡ$^l$‖", layers)
    if hidden:
        shares = np.concatenate([panel.units.saturated, panel.units.dead], -1)
        names = [f"{l}: {kind}" for kind in ("flat", "dead") for l in hidden]
        lines(grid[2, 2], 100 * shares, "units with f' ≈ 0 (%)", names, log=False)
        grid[2, 2].set_ylim(0, max(5, 120 * shares.max()))
    else:
        grid[2, 2].set_axis_off()
    for axes in grid.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e4e7eb")
    for axes in grid[2]:
        axes.set_xlabel("step")
    return figure
