"""The panel as an experiment, and the picture as a function."""

import jax
import optax
import pytest

import jbackprop as jb
from experiments import panel


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.long
def test_the_experiment_draws_one_page(tmp_path, capsys):
    assert panel.main(panel.Options(quick=True, out=tmp_path)) == 0
    (folder,) = tmp_path.iterdir()
    assert (folder / "panel.png").stat().st_size > 50_000
    assert "times one without" in capsys.readouterr().out


def test_bad_options_are_named(tmp_path, capsys):
    assert panel.main(panel.Options(batch_size=0, out=tmp_path / "runs")) == 2
    assert "batch_size: expected at least 1" in capsys.readouterr().out


def run(net, epochs=2):
    optimizer = optax.sgd(0.1)
    state = jb.init_state(net, optimizer, jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (20, net.sizes[0]))
    t = jax.random.normal(jax.random.key(2), (20, net.sizes[-1]))
    _, info = jb.train_epoch(
        net, optimizer, state, x, t, batch_size=10, observe=jb.observe_all(net)
    )
    return info.observed


@pytest.mark.long
@pytest.mark.parametrize("sizes", [(4, 3), (4, 5, 6, 7, 3)])
def test_a_panel_can_be_drawn_for_any_depth(sizes, tmp_path):
    figure = jb.plot_panel(run(jb.Network(sizes)))
    figure.savefig(tmp_path / "panel.png")
    assert len(figure.axes) == 9
