"""δ on its way back: where it is large, and how large it is."""

from typing import Any

import numpy as np

from jbackprop.core.factors import Factors
from jbackprop.drawing.style import bare, caption, curves, heat, in_order, paper, picture

_STRIP = 0.35  # of an image's height, what belongs to no place


@picture
def plot_flow(
    factors: Factors, images: Any = None, *, examples: int = 8, title: str = "", figure: Any = None
) -> Any:
    """The error on its way back, from above: an example a column, δ^L on top and x at the bottom.

    Of a layer of positions the size ‖δ_p‖ at every position, dark where it is large; of any other
    the entries δ_j side by side, dark below 0 and light above. Each in a scale of its own, as from
    layer to layer δ may vanish; at the right the mean ‖δ^l‖ of the examples shown says how much.

    Args:
        factors: of a batch, as `backprop` returns them.
        images: the inputs as they are to be looked at, (B, height, width) or (B, length); by
            default a^0, of which the last axis are channels where there are positions.
        examples: how many, the first of the batch.
        title: over all.
        figure: a matplotlib figure or subfigure to draw into; by default a new one.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the images are not as many as the examples; examples is none.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((3, 4, 2))
    >>> params = jb.init(net, jax.random.key(0))
    >>> factors = jb.backprop(net, params, jnp.ones((5, 3)), jnp.zeros((5, 2)))
    >>> figure = jb.plot_flow(factors)
    >>> len(figure.axes)  # δ², δ¹ and x of five examples
    15
    """
    batch = len(factors.cost)
    if examples < 1:
        raise ValueError(f"examples: expected at least 1, got {examples}")
    looked_at = _as_seen(factors.tape.a[0]) if images is None else np.asarray(images)
    if len(looked_at) != batch:
        raise ValueError(f"images: expected {batch}, one for each example, got {len(looked_at)}")
    count = min(examples, batch)
    deltas = [np.asarray(delta[:count]) for delta in factors.delta]
    rows = [*reversed([*map(_sizes, deltas)]), looked_at[:count]]
    heights = [1 if row.ndim > 2 else _STRIP for row in rows]
    figure = paper(figure, 1.1 * count + 1.6, 1.15 * sum(heights) + 0.6)
    grid = figure.subplots(len(rows), count, squeeze=False, height_ratios=heights)
    names = [f"δ$^{{{l}}}$" for l in range(len(deltas), 0, -1)] + ["x"]
    for line, name, row in zip(grid, names, rows, strict=True):
        shades = "gray_r" if name == "x" and (row.ndim > 2 or row.min() >= 0) else None
        for axes, values in zip(line, row, strict=True):
            _draw(axes, values, shades)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=11)
    for line, delta in zip(grid, reversed(deltas), strict=False):
        mean = np.linalg.norm(delta.reshape(count, -1), axis=1).mean()
        where = line[-1].transAxes
        line[-1].text(1.06, 0.5, f"‖·‖ {mean:.2g}", transform=where, va="center", fontsize=7.5)
    caption(figure, title)
    return figure


def _draw(axes: Any, values: Any, shades: str | None) -> None:
    image = values.ndim > 1
    shown = values if image else values[None]
    shape: Any = None if image else "auto"
    if shades:
        axes.imshow(shown, cmap=shades, aspect=shape)
    elif image:
        axes.imshow(shown, cmap="magma_r", vmin=0)
    else:
        heat(axes, shown, aspect=shape)
    bare(axes)


def _as_seen(x: Any) -> np.ndarray:
    """Without channels: their mean. Of three dimensions the mean along the first."""
    x = np.asarray(x)
    x = x.mean(axis=-1) if x.ndim > 2 else x
    return x.mean(axis=1) if x.ndim > 3 else x


def _sizes(delta: np.ndarray) -> np.ndarray:
    """‖δ_p‖ at every position, of three dimensions along the first too; or δ itself."""
    if delta.ndim == 2:
        return delta
    along = (1, -1) if delta.ndim == 5 else (-1,)
    return np.sqrt((delta**2).sum(axis=along))


@picture
def plot_delta_norms(norms: Any, *, figure: Any = None) -> Any:
    """How large the error was in training:
    ‖δ^l‖ of every layer, the median of each epoch's steps, and the middle 80 %.

    Args:
        norms: (epochs, steps, L), the means that `delta_norms` gives in every step.
        figure: a matplotlib figure or subfigure to draw into; by default a new one.

    Returns:
        The figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: norms is of another shape.
    """
    norms = np.asarray(norms)
    if norms.ndim != 3:
        raise ValueError(f"norms: expected shape (epochs, steps, L), got {norms.shape}")
    figure = paper(figure, 9, 3.6)
    axes, epochs = figure.subplots(), 1 + np.arange(len(norms))
    low, middle, high = np.quantile(norms, (0.1, 0.5, 0.9), axis=1)
    for l, color in enumerate(in_order(norms.shape[2])):
        axes.fill_between(epochs, low[:, l], high[:, l], color=color, alpha=0.12, linewidth=0)
    names = [f"δ$^{{{l + 1}}}$" for l in range(norms.shape[2])]
    curves(axes, epochs, middle.T, names, title="Mean ‖δ$^l$‖ over a batch", log=True)
    axes.set_xlabel("epoch")
    return figure
