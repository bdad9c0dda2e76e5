"""What a picture says, against the numbers it was made of; and that it can be read in grey."""

import sys

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from helpers import problem
from matplotlib.colors import to_rgba

import jbackprop as jb
from jbackprop import plots
from jbackprop.drawing import style

DENSE = jb.Network((3, 4, 2), jb.tanh, jb.softmax, jb.cross_entropy)
SPATIAL = jb.Network(((6, 6, 1), jb.Conv(2, 3), jb.MaxPool(2), 3), jb.tanh)
LINE = jb.Network(((8, 1), jb.Conv(2, 3), 3), jb.tanh)
SOLID = jb.Network(((4, 4, 4, 1), jb.Conv(2, 2), 3), jb.tanh)
rng = np.random.default_rng(0)


def factors_of(net, batch=5):
    params, x, t = problem(net, batch=batch)
    return jb.backprop(net, params, x, t)


def images(axes):
    return [np.asarray(one.images[0].get_array()) for one in axes]


def grid_of(figure, rows):
    return np.array(figure.axes).reshape(rows, -1)


# ---- δ on its way back


def test_a_dense_networks_flow_is_its_deltas_from_above():
    factors = factors_of(DENSE)
    grid = grid_of(jb.plot_flow(factors, examples=4, title="here"), 3)
    assert grid.shape == (3, 4)
    for line, rows in zip(
        grid, (factors.delta[1], factors.delta[0], factors.tape.a[0]), strict=True
    ):
        for shown, row in zip(images(line), rows, strict=False):
            np.testing.assert_array_equal(shown, np.asarray(row)[None])
    assert [line[0].get_ylabel() for line in grid] == ["δ$^{2}$", "δ$^{1}$", "x"]
    told = [line[-1].texts[0].get_text() for line in grid[:2]]
    sizes = [np.linalg.norm(np.asarray(d[:4]), axis=1).mean() for d in reversed(factors.delta)]
    assert told == [f"‖·‖ {size:.2g}" for size in sizes]
    assert grid[0, 0].figure.get_suptitle() == "here"


@pytest.mark.parametrize("net", [SPATIAL, LINE, SOLID])
def test_over_positions_it_is_the_size_of_delta(net):
    factors = factors_of(net)
    grid = grid_of(jb.plot_flow(factors), 3)
    of_conv = np.asarray(factors.delta[0])
    along = (1, 4) if net is SOLID else (-1,)
    sizes = np.sqrt((of_conv**2).sum(along))
    for shown, expected in zip(images(grid[1]), sizes, strict=True):
        np.testing.assert_allclose(np.squeeze(shown), expected, rtol=1e-6)
    x = np.asarray(factors.tape.a[0])[..., 0]
    expected = x.mean(1) if net is SOLID else x
    for shown, image in zip(images(grid[2]), expected, strict=True):
        np.testing.assert_allclose(np.squeeze(shown), image, rtol=1e-6)


@pytest.mark.parametrize(("least", "grey"), [(0.0, True), (-0.5, False)])
def test_inputs_are_grey_where_none_of_them_is_below_0(least, grey):
    factors = factors_of(DENSE)
    x = jnp.full((5, 3), 0.5).at[1, 2].set(least)  # one entry of one example decides for all
    factors = factors._replace(tape=factors.tape._replace(a=(x, *factors.tape.a[1:])))
    shown = grid_of(jb.plot_flow(factors), 3)[2]
    assert {axes.images[0].get_cmap().name == "gray_r" for axes in shown} == {grey}


def test_inputs_may_be_shown_as_other_images():
    factors, other = factors_of(DENSE), rng.normal(size=(5, 2, 2))
    grid = grid_of(jb.plot_flow(factors, other), 3)
    np.testing.assert_array_equal(images(grid[2]), other)


def test_delta_norms_are_medians_with_a_band():
    norms = rng.uniform(1, 2, (6, 11, 3))
    (axes,) = jb.plot_delta_norms(norms).axes
    found = np.stack([line.get_ydata() for line in axes.lines], -1)
    np.testing.assert_allclose(found, np.median(norms, axis=1))
    for l, band in enumerate(axes.collections):
        low, high = np.quantile(norms[..., l], (0.1, 0.9), axis=1)
        heights = {round(v, 9) for v in band.get_paths()[0].vertices[:, 1]}
        assert heights == {round(v, 9) for v in (*low, *high)}


# ---- weights


def test_kernels_are_shown_in_one_scale():
    w = rng.normal(size=(10, 3, 4, 1))
    figure = jb.plot_filters(w)
    shown = [axes for axes in figure.axes if axes.images]
    np.testing.assert_array_equal(images(shown), w[..., 0])
    limits = {axes.images[0].get_clim() for axes in shown}
    assert limits == {(-np.abs(w).max(), np.abs(w).max())}
    assert figure.get_suptitle().startswith("10 kernels, from -")
    assert jb.plot_filters(w, title="mine").get_suptitle() == "mine"


def test_of_many_kernels_the_title_says_how_many_are_shown():
    w = rng.normal(size=(6, 3, 5))
    figure = jb.plot_filters(w, most=10)
    shown = [axes for axes in figure.axes if axes.images]
    expected = [w[i, :, c][None] for i in range(2) for c in range(5)]
    np.testing.assert_array_equal(images(shown), expected)
    assert figure.get_suptitle().startswith("10 of 30, from -")


def test_weights_and_what_training_changed():
    before = jb.init(SPATIAL, jax.random.key(0))
    after = jax.tree.map(lambda v: v + 0.5 * jnp.sin(9 * v), before)
    grid = grid_of(jb.plot_weights(after, before), 2)
    for line, (w, _), (old, _) in zip(grid, after, before, strict=True):
        flat = lambda v: np.asarray(v, float).reshape(len(v), -1)
        np.testing.assert_array_equal(images(line), [flat(w), flat(w) - flat(old)])
    assert [axes.get_title("left").split(",")[0] for axes in grid[1]] == ["w$^{2}$", "Δw$^{2}$"]
    assert grid_of(jb.plot_weights(after), 2).shape == (2, 1)


def test_the_outer_product_is_written_as_on_the_slide():
    delta, a = np.array([0.5, -2.0]), np.array([1.0, 3.0, -1.0])
    axes = jb.plot_outer(delta, a).axes
    for shown, expected in zip(
        images(axes), (np.outer(delta, a), delta[:, None], a[None]), strict=True
    ):
        np.testing.assert_array_equal(shown, expected)
    assert [text.get_text() for text in axes[0].texts] == ["0.5", "1.5", "-0.5", "-2", "-6", "2"]
    for n, m, written in ((9, 9, 0), (6, 6, 36), (3, 7, 0)):  # nor where columns are narrow
        assert len(jb.plot_outer(np.ones(n), np.ones(m)).axes[0].texts) == written


# ---- how training went


@pytest.mark.parametrize(
    ("values", "labels"),
    [([0.3, 2], {"0.3", "0.4", "0.6", "1", "2"}), ([20, 300], {"20", "60", "100", "300"}),
     ([1e-6, 1], {"$\\mathdefault{10^{-6}}$"}), ([1e3, 1e7], {"$\\mathdefault{10^{3}}$"})],
)  # fmt: skip
def test_a_logarithmic_axis_has_decimals_where_they_are_short(values, labels):
    figure = jb.plot_lines({"a": values}, log=True)
    figure.draw_without_rendering()
    axis = figure.axes[0].yaxis
    both = axis.get_ticklabels(which="both")
    found = {text.get_text() for text in both} - {""}
    assert labels <= found
    assert all(text.startswith("$") for text in found) or not any("$" in t for t in found)


def test_lines_stand_where_they_should():
    (axes,) = jb.plot_lines({"a": [1, 2], "b": [3, 4]}, x=[10, 20], xlabel="step", log=True).axes
    for line, values in zip(axes.lines, ([1, 2], [3, 4]), strict=True):
        np.testing.assert_array_equal(line.get_xydata().T, [[10, 20], values])
    assert (axes.get_xlabel(), axes.get_yscale()) == ("step", "log")
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]


def test_learning_shows_cost_and_error_and_what_was_kept():
    stacked = lambda n: jb.Metrics(
        *map(jnp.asarray, (rng.uniform(1, 2, n), rng.uniform(0.5, 1, n)))
    )
    metrics = {"train": stacked(20), "validation": stacked(20)}
    left, right = jb.plot_learning(metrics, kept=7).axes
    for name, of_cost, of_error in zip(metrics, left.lines, right.lines, strict=False):
        np.testing.assert_array_equal(of_cost.get_ydata(), metrics[name].cost)
        np.testing.assert_allclose(of_error.get_ydata(), 100 * (1 - metrics[name].accuracy))
    assert [{*axes.lines[2].get_xdata()} for axes in (left, right)] == [{7}, {7}]
    assert len(jb.plot_learning(metrics).axes[0].lines) == 2


@pytest.mark.parametrize(
    ("y", "surely"),
    [([[0.1, 0.9], [0.75, 0.25]], ["90%", "75%"]), ([[1.5, 2.5], [0.5, -1.0]], ["2.50", "0.50"])],
)
def test_examples_say_what_they_are_and_what_was_said(y, surely):
    shown = rng.uniform(size=(2, 4, 4))
    figure = jb.plot_examples(shown, [1, 1], np.array(y), columns=3)
    first, second, empty = figure.axes
    np.testing.assert_array_equal(images([first, second]), shown)
    assert first.get_title() == f"a 1; said 1 ({surely[0]})"
    assert second.get_title() == f"a 1; said 0 ({surely[1]})"
    weights = [axes.title.get_fontweight() for axes in (first, second)]
    assert (weights, empty.axison) == (["normal", "bold"], False)


def test_lines_are_examples_too():
    figure = jb.plot_examples(np.ones((1, 5)), [0], np.eye(2)[:1], columns=1)
    assert figure.axes[0].lines[0].get_ydata().tolist() == [1.0] * 5


def test_privacy_is_accuracy_over_epsilon():
    spent = {2.0: ([1.0, 2.0], [0.5, 0.6]), 1.0: ([2.0, 4.0], [0.6, 0.7])}
    (axes,) = jb.plot_privacy(spent, 1e-5, without=0.9).axes
    first, second, level = axes.lines
    np.testing.assert_allclose(first.get_xydata(), [[2, 60], [4, 70]])
    np.testing.assert_allclose(second.get_xydata(), [[1, 50], [2, 60]])
    assert {*level.get_ydata()} == {90.0}
    assert len(jb.plot_privacy(spent, 1e-5).axes[0].lines) == 2


# ---- all of them

ALL = {
    "flow": lambda figure: jb.plot_flow(factors_of(DENSE), figure=figure),
    "delta_norms": lambda figure: jb.plot_delta_norms(np.ones((2, 3, 2)), figure=figure),
    "filters": lambda figure: jb.plot_filters(np.ones((2, 3, 3, 1)), figure=figure),
    "weights": lambda figure: jb.plot_weights([(np.ones((2, 3)), 0)], figure=figure),
    "outer": lambda figure: jb.plot_outer(np.ones(2), np.ones(3), figure=figure),
    "lines": lambda figure: jb.plot_lines({"a": [1, 2]}, figure=figure),
    "learning": lambda figure: jb.plot_learning(
        {"a": jb.Metrics(jnp.ones(2), jnp.ones(2))}, figure=figure),
    "examples": lambda figure: jb.plot_examples(
        np.ones((1, 2, 2)), [0], np.eye(2)[:1], figure=figure),
    "privacy": lambda figure: jb.plot_privacy({1.0: ([1, 2], [0, 1])}, 1e-5, figure=figure),
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
def test_no_window_is_opened_and_a_figure_is_drawn_into(name, tmp_path):
    figure = ALL[name](None)
    figure.savefig(tmp_path / "it.png")
    assert plt.get_fignums() == []
    whole = style.paper(None, 8, 4)
    part = whole.subfigures(1, 2)[0]
    assert ALL[name](part) is part
    assert part.axes


@pytest.mark.parametrize("name", ALL)
def test_without_matplotlib_it_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'jbackprop\[plots\]'"):
        ALL[name](None)


def test_every_function_is_tested_here_or_with_the_panel():
    assert {f"plot_{name}" for name in ALL} | {"plot_panel"} == {*plots.__all__}


def lightness(color):
    """Relative luminance, of linear light: what a copy in grey shows."""
    rgb = np.array(to_rgba(color)[:3])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_colours_keep_their_order_in_grey():
    signed = [lightness(style.signed()(v)) for v in np.linspace(0, 1, 33)]
    lines = [lightness(color) for color in style.in_order(8)]
    assert (np.diff(signed) > 0.003).all()
    assert (np.diff(lines) > 0.01).all()


def test_few_lines_have_dashes_of_their_own():
    (axes,) = jb.plot_lines({name: [1, 2] for name in "abcdef"}).axes
    # what a custom pattern is, only the line itself keeps
    patterns = {str(line._unscaled_dash_pattern) for line in axes.lines}
    assert len(patterns) == 6


NOT_SO = {
    "no example": (lambda: jb.plot_flow(factors_of(DENSE), examples=0), "examples: expected at"),
    "fewer images": (
        lambda: jb.plot_flow(factors_of(DENSE), np.ones((4, 2, 2))),
        "images: expected 5, .* got 4"),
    "norms of one epoch": (lambda: jb.plot_delta_norms(np.ones((3, 2))), r"norms: .* got \(3, 2\)"),
    "a matrix as kernels": (lambda: jb.plot_filters(np.ones((3, 2))), r"w: .* got \(3, 2\)"),
    "weights of another": (
        lambda: jb.plot_weights([(np.ones((2, 3)), 0)], [(np.ones((2, 4)), 0)]),
        r"before: expected matrices of shapes \[\(2, 3\)\], got \[\(2, 4\)\]"),
    "a batch of δ": (lambda: jb.plot_outer(np.ones((2, 2)), np.ones(3)), r"delta: .*\(2, 2\)"),
    "a batch of a": (lambda: jb.plot_outer(np.ones(2), np.ones((1, 3))), r"a: .*\(1, 3\)"),
    "a shorter line": (lambda: jb.plot_lines({"a": [1], "b": [1, 2]}), "lines: expected 'a'"),
    "no part": (lambda: jb.plot_learning({}), "metrics: expected a part"),
    "other labels": (
        lambda: jb.plot_examples(np.ones((2, 3, 3)), [0], np.eye(2)), r"t: expected 2 rows"),
    "other outputs": (
        lambda: jb.plot_examples(np.ones((2, 3, 3)), [0, 1], np.ones(2)), r"y: expected 2 rows"),
}  # fmt: skip


@pytest.mark.parametrize("what", NOT_SO)
def test_what_cannot_be_drawn_is_named(what):
    make, said = NOT_SO[what]
    with pytest.raises(ValueError, match=said):
        make()
