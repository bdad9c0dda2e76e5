"""Pictures of what the library returns. They need matplotlib: the extra `plots`.

Each takes arrays and returns a matplotlib figure; none opens a window. All can be read in grey.
"""

from jbackprop.drawing.flow import plot_delta_norms, plot_flow
from jbackprop.drawing.learning import plot_examples, plot_learning, plot_lines, plot_privacy
from jbackprop.drawing.panel import plot_panel
from jbackprop.drawing.weights import plot_filters, plot_outer, plot_weights

__all__ = [
    "plot_delta_norms",
    "plot_examples",
    "plot_filters",
    "plot_flow",
    "plot_learning",
    "plot_lines",
    "plot_outer",
    "plot_panel",
    "plot_privacy",
    "plot_weights",
]
