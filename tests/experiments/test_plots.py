"""What a page of a panel says: every line, band, label and axis, against NumPy."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

import jbackprop as jb
from jbackprop.drawing.panel import smooth
from jbackprop.quantities.diagnostics import Spread, Units

mpl.use("Agg")
import matplotlib.pyplot as plt

rng = np.random.default_rng(0)


def panel(steps: int = 200, layers: int = 3, batch: int = 6) -> Any:
    """Numbers of no network, so that each can be told from the others."""
    of: Any = lambda *shape: rng.uniform(0.1, 1, (steps, *shape))
    norms = of(batch)
    norms[0, 1:] = 0  # absent rows
    squared = of() - 0.55  # below 0 for some
    squared[0] = 0
    noise = jb.NoiseScale(of(), squared, of())
    delta = Spread(of(layers), of(layers))
    units = Units(of(layers - 1), of(layers - 1))
    return jb.Panel(
        of(), norms, noise, of(), of(), of(), of(layers), of(layers), delta, units, of(layers)
    )


def mean_of_last(values, n):
    values = np.asarray(values).reshape(len(values), -1)
    return np.stack([values[max(0, i + 1 - n) : i + 1].mean(0) for i in range(len(values))])


def lines(axes):
    return np.stack([line.get_ydata() for line in axes.lines], -1)


@pytest.fixture
def page():
    seen = panel()
    figure = jb.plot_panel(seen)
    yield seen, np.array(figure.axes).reshape(3, 3)
    plt.close(figure)


@pytest.mark.parametrize(
    ("place", "values"),
    [((0, 0), lambda p: p.cost), ((1, 0), lambda p: p.variance), ((1, 1), lambda p: p.delta.mean),
     ((1, 2), lambda p: p.update_ratio), ((2, 1), lambda p: p.gradient_norm),
     ((2, 2), lambda p: 100 * np.concatenate([p.units.saturated, p.units.dead], -1))],
)  # fmt: skip
def test_lines_are_means_of_a_fiftieth_of_all_steps(page, place, values):
    seen, grid = page
    axes = grid[place]
    np.testing.assert_allclose(lines(axes), mean_of_last(values(seen), 4), rtol=1e-10)
    for line in axes.lines:
        np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 201))
    assert axes.get_yscale() == ("linear" if place == (2, 2) else "log")


def test_the_noise_scale_is_a_ratio_of_longer_means_and_stands_beside_the_batch_size(page):
    seen, grid = page
    trace, squared = (mean_of_last(v, 20)[:, 0] for v in seen.noise[:2])
    scale, batch = grid[0, 1].lines
    assert (squared < 0).any()
    with np.errstate(divide="ignore"):
        expected = np.where(squared > 0, trace / squared, np.nan)
    np.testing.assert_allclose(scale.get_ydata(), expected, rtol=1e-10)
    assert {*batch.get_ydata()} == {6}
    labels = [text.get_text() for text in grid[0, 1].get_legend().get_texts()]
    assert labels == ["noise scale tr Σ / |G|²", "batch size 6"]


def test_the_norms_present_have_a_median_and_two_bands(page):
    seen, grid = page
    axes, norms = grid[0, 2], np.where(seen.norms > 0, seen.norms, np.nan)
    cut = lambda q: mean_of_last(np.nanquantile(norms, q, axis=1), 4)[:, 0]
    np.testing.assert_allclose(lines(axes)[:, 0], cut(0.5), rtol=1e-10)
    for band, (low, high) in zip(axes.collections, [(0.05, 0.95), (0.25, 0.75)], strict=True):
        (path,) = band.get_paths()
        points = {(x, round(y, 9)) for x, y in path.vertices}
        edges = [(i + 1, round(v, 9)) for q in (low, high) for i, v in enumerate(cut(q))]
        assert points == {*edges}
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["median", "90 %", "50 %"]


def test_the_tests_of_a_batchs_size_stand_around_1(page):
    seen, grid = page
    *tests, one = grid[2, 0].lines
    expected = np.stack([seen.norm_test, seen.inner_product_test, seen.orthogonality_test], -1)
    found = np.stack([line.get_ydata() for line in tests], -1)
    np.testing.assert_allclose(found, mean_of_last(expected, 4), rtol=1e-10)
    assert {*one.get_ydata()} == {1}
    labels = [text.get_text() for text in grid[2, 0].get_legend().get_texts()]
    assert labels == ["norm", "inner product", "orthogonality"]


def test_layers_are_named_and_told_apart(page):
    _, grid = page
    for place in ((1, 0), (1, 1), (1, 2), (2, 1)):
        legend = grid[place].get_legend()
        labels = [text.get_text() for text in legend.get_texts()]
        assert labels == ["layer 1", "layer 2", "layer 3"]
        colors = [line.get_color() for line in grid[place].lines]
        assert len({tuple(color) for color in colors}) == 3
        assert legend._ncols == 1
    legend = grid[2, 2].get_legend()
    kinds = [f"layer {l}: {kind}" for kind in ("flat", "dead") for l in (1, 2)]
    assert [text.get_text() for text in legend.get_texts()] == kinds
    assert legend._ncols == 2
    assert grid[0, 0].get_legend() is None


def test_every_part_has_a_title_and_the_last_row_says_what_is_counted(page):
    _, grid = page
    titles = [axes.get_title("left") for axes in grid.flat]
    assert len({*titles}) == 9
    assert all(titles)
    assert [axes.get_xlabel() for axes in grid.flat] == [""] * 6 + ["step"] * 3


def test_few_units_that_rest_do_not_fill_the_picture(page):
    seen, grid = page
    most = 100 * max(v.max() for v in (seen.units.saturated, seen.units.dead))
    assert grid[2, 2].get_ylim() == (0, pytest.approx(1.2 * most))
    quiet = seen._replace(units=type(seen.units)(*(0 * v for v in seen.units)))
    figure = jb.plot_panel(quiet)
    assert figure.axes[8].get_ylim() == (0, 5)
    plt.close(figure)


def test_one_layer_has_no_hidden_units_to_show():
    figure = jb.plot_panel(panel(layers=1))
    assert [axes.axison for axes in figure.axes] == [True] * 8 + [False]
    plt.close(figure)


@pytest.mark.parametrize(("steps", "over", "n"), [(2, None, 1), (149, None, 2), (200, 7, 7)])
def test_a_mean_is_over_as_many_steps_as_asked(steps, over, n):
    seen, figure = panel(steps), plt.figure()
    assert jb.plot_panel(seen, figure=figure, over=over) is figure
    np.testing.assert_allclose(lines(figure.axes[0]), mean_of_last(seen.cost, n), rtol=1e-10)
    plt.close(figure)


@pytest.mark.parametrize("cost", [np.ones(1), np.ones(()), np.ones((3, 2))])
def test_what_is_not_stacked_over_steps_is_named(cost):
    with pytest.raises(ValueError, match=r"^panel: expected an axis of at least 2 steps, got "):
        jb.plot_panel(panel()._replace(cost=cost))


@pytest.mark.parametrize("shape", [(9,), (9, 2)])
def test_running_means_pass_over_what_is_not_a_number(shape):
    values = rng.normal(size=shape)
    values[3], values[5] = np.nan, np.inf
    known = np.where(np.isfinite(values), values, np.nan)
    for steps in (2, 3, 20):
        parts = [known[max(0, i + 1 - steps) : i + 1] for i in range(9)]
        np.testing.assert_allclose(smooth(values, steps), [np.nanmean(p, 0) for p in parts])
    assert smooth(np.full(3, np.nan), 2).tolist() == [0, 0, 0]
