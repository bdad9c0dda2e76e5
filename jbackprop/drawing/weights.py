"""Weights: the kernels of a convolution, all matrices and their change, and what changes them."""

from typing import Any

import numpy as np

from jbackprop.drawing.style import bare, caption, heat, paper, picture

_COLUMNS = 8


@picture
def plot_filters(w: Any, *, most: int = 64, title: str | None = None, figure: Any = None) -> Any:
    """The kernels of a convolution as images: dark below 0, light above, in one scale.

    Args:
        w: (n, *kernel, channels) in one or two dimensions, `params[l].w` of a convolution. With one
            channel eight kernels stand in a row; with more, a row is a kernel and a column one of
            its channels.
        most: how many images at most; the title says so where there are more.
        title: over all; by default how many there are.
        figure: a matplotlib figure or subfigure to draw into; by default a new one.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: w is no kernel of one or two dimensions.

    >>> import jax
    >>> import jbackprop as jb
    >>> net = jb.Network(((8, 8, 1), jb.Conv(6, 3), 2))
    >>> len(jb.plot_filters(jb.init(net, jax.random.key(0))[0].w).axes)
    6
    """
    w = np.asarray(w)
    if w.ndim not in (3, 4):
        raise ValueError(
            f"w: expected (n, *kernel, channels) with 1 or 2 dimensions, got {w.shape}"
        )
    if w.ndim == 3:
        w = w[:, None]
    n, high, wide, channels = w.shape
    columns = min(_COLUMNS if channels == 1 else channels, max(n, channels))
    columns = max(1, min(columns, most))
    kernels = min(n, most if channels == 1 else max(1, most // columns))
    images = np.moveaxis(w[:kernels, ..., :columns] if channels > 1 else w[:kernels], -1, 1)
    images = images.reshape(-1, high, wide)
    rows = -(-len(images) // columns)
    height = min(1.1, max(0.45, 1.1 * high / wide))
    figure = paper(figure, 1.12 * columns + 0.2, height * rows + 0.5)
    grid = figure.subplots(rows, columns, squeeze=False)
    scale = float(np.abs(w).max())
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, image in zip(grid.flat, images, strict=False):
        axes.set_axis_on()
        heat(axes, image, scale)
    shown = len(images)
    total = f"{n * channels} kernels" if n * channels == shown else f"{shown} of {n * channels}"
    caption(figure, f"{total}, from -{scale:.2g} to {scale:.2g}" if title is None else title)
    return figure


@picture
def plot_weights(params: Any, before: Any = None, *, title: str = "", figure: Any = None) -> Any:
    """Every w^l as a matrix, and beside it what training has changed: dark below 0, light above.

    A row is an output, of a convolution a channel, whose kernel stands in a row. Each matrix has a
    scale of its own, which its title says.

    Args:
        params: of a network, or a gradient.
        before: parameters to compare with, such as those of `init`.
        title: over all.
        figure: a matplotlib figure or subfigure to draw into; by default a new one.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: before has other shapes.
    """
    matrix = lambda w: np.asarray(w, float).reshape(len(w), -1)
    columns = [("w", [matrix(w) for w, _ in params])]
    if before is not None:
        old = [matrix(w) for w, _ in before]
        shapes = [[w.shape for w in ws] for ws in (columns[0][1], old)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"before: expected matrices of shapes {shapes[0]}, got {shapes[1]}")
        columns.append(("Δw", [w - v for w, v in zip(columns[0][1], old, strict=True)]))
    layers = len(columns[0][1])
    figure = paper(figure, 4.6 * len(columns), 1.5 * layers + 0.4)
    grid = figure.subplots(layers, len(columns), squeeze=False)
    for column, (name, matrices) in zip(grid.T, columns, strict=True):
        for l, (axes, values) in enumerate(zip(column, matrices, strict=True), start=1):
            heat(axes, values, aspect="auto", interpolation="nearest")
            most = np.abs(values).max(initial=0)
            axes.set_title(f"{name}$^{{{l}}}$, {' × '.join(map(str, values.shape))}, ±{most:.2g}")
    caption(figure, title)
    return figure


@picture
def plot_outer(delta: Any, a: Any, *, title: str = "", figure: Any = None) -> Any:
    """The outer product ∂C/∂w = δ aᵀ of ONE example, as on the slide: a column times a row.

    Args:
        delta: (n,), of a layer.
        a: (m,), that goes into it.
        title: over all.
        figure: a matplotlib figure or subfigure to draw into; by default a new one.

    Returns:
        The figure, with every number written where there are few.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: delta or a is no vector.
    """
    delta, a = np.asarray(delta, float), np.asarray(a, float)
    for name, value in (("delta", delta), ("a", a)):
        if value.ndim != 1:
            raise ValueError(f"{name}: expected a vector, got shape {value.shape}")
    n, m = len(delta), len(a)
    figure = paper(figure, min(9, 0.75 * (2 * m + 1) + 1.6), min(6, 0.75 * n + 0.9))
    widths = [m, max(1, m / 8), m]
    axes = figure.subplots(1, 3, width_ratios=widths)
    parts = (np.outer(delta, a), "∂C/∂w  ="), (delta[:, None], "δ  ×"), (a[None], "aᵀ")
    for place, (values, name) in zip(axes, parts, strict=True):
        heat(place, values)
        place.set_title(name, loc="center")
        if n * m <= 40 and m <= 6:  # beyond, a column is narrower than its number
            _written(place, values)
    caption(figure, title)
    return figure


def _written(axes: Any, values: np.ndarray) -> None:
    most = np.abs(values).max() or 1
    for (j, k), value in np.ndenumerate(values):
        color = "white" if value < -0.2 * most else "black"
        axes.text(k, j, f"{value:.2g}", ha="center", va="center", color=color, fontsize=8)
    bare(axes)
