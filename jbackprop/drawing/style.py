"""What all pictures share: paper, colours, and lines that can be told apart in grey.

Colours run from dark to light with their meaning, so that a copy in grey says the same: lines from
the first to the last, maps from the least to the most. No window is opened: a figure is an object,
which a notebook shows and `figure.savefig` writes.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import numpy as np

INK, SOFT, GRID = "#1f2933", "#9aa5b1", "#e4e7eb"
BLUE, ORANGE = "#2b6cb0", "#dd6b20"
DASHES = "-", "--", "-.", ":", (0, (9, 2)), (0, (6, 1, 1, 1, 1, 1))
# Looks, and nothing that a picture says.
_STYLE: Any = {
    "axes.edgecolor": SOFT,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.size": 10,
    "grid.color": GRID,
    "image.cmap": "gray_r",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
}


def picture(draw: Callable[..., Any]) -> Callable[..., Any]:
    """A function that draws, in the style of all."""

    @wraps(draw)
    def in_style(*args: Any, **kwargs: Any) -> Any:
        with style():
            return draw(*args, **kwargs)

    return in_style


@contextmanager
def style() -> Any:
    """The look of all pictures; `ImportError` where nothing can be drawn."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'jbackprop[plots]'") from error
    with mpl.rc_context(_STYLE):
        yield


def paper(figure: Any, width: Any, height: Any) -> Any:
    """The figure to draw into: the one that was given, or a new one of so many inches."""
    from matplotlib.figure import Figure

    if figure is not None:
        return figure
    return Figure(figsize=(width, height), dpi=130, layout="constrained")


def in_order(count: int) -> Any:
    """A colour for each of so many, from dark to light."""
    from matplotlib import colormaps

    return colormaps["viridis"](np.linspace(0, 0.8, max(count, 1)))


def signed() -> Any:
    """Of numbers about 0: blue and dark below, orange and light above, and grey between."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("signed", ["#0b2545", "#9ba3ad", "#ffe3c2"])


def heat(axes: Any, values: Any, most: float | None = None, **rest: Any) -> None:
    """A matrix of numbers about 0 as colours, from -most to most; no ticks."""
    most = float(np.abs(values).max(initial=0)) if most is None else most
    axes.imshow(values, cmap=signed(), vmin=-(most or 1), vmax=most or 1, **rest)
    bare(axes)


def bare(axes: Any) -> None:
    """Without ticks and frame."""
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def curves(
    axes: Any,
    x: Any,
    columns: Iterable[Any],
    names: Sequence[str] | None = None,
    *,
    title: str = "",
    log: bool = False,
) -> None:
    """A line for each column, from dark to light, with dashes of its own where they are few."""
    columns = [*columns]
    for i, (column, color) in enumerate(zip(columns, in_order(len(columns)), strict=True)):
        dashes = DASHES[i] if len(columns) <= len(DASHES) else "-"
        label = None if names is None else names[i]
        axes.plot(x, column, color=color, linestyle=dashes, label=label)
    axes.set_title(title)
    axes.grid(axis="y")
    if log:
        axes.set_yscale("log")
        in_decimals(axes.yaxis)
    if names is not None:
        axes.legend(ncols=2 if len(names) > 3 else 1)


def in_decimals(axis: Any) -> None:
    """The labels of a logarithmic axis as 0.3 and 200, where all are of such a size."""
    from matplotlib.ticker import LogFormatterSciNotation

    class Decimals(LogFormatterSciNotation):
        """Says which ticks have a label, as its parent does, and says it otherwise."""

        def __call__(self, x: float, pos: int | None = None) -> str:
            power = super().__call__(x, pos)
            low, high = axis.get_view_interval()
            return f"{x:g}" if power and low > 5e-4 and high < 2e5 else power

    axis.set_major_formatter(Decimals())
    axis.set_minor_formatter(Decimals(minor_thresholds=(1, 0.4), labelOnlyBase=False))


def caption(figure: Any, text: str) -> None:
    """A title at the left, over all."""
    if text:
        figure.suptitle(text, x=0.01, ha="left", fontsize=11)
