"""The settings of the book: its update, its weights, its images."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbackprop as jb
from experiments import nielsen

NET = jb.Network((400, 300, 10), jb.sigmoid, jb.sigmoid)


def test_an_update_shrinks_weights_and_leaves_biases():
    setting = nielsen.SETTINGS["cross-entropy, L2"]
    params = jb.init(NET, jax.random.key(0))
    gradient = jax.tree.map(jnp.ones_like, params)
    optimizer = nielsen.descent(setting)
    updates: Any = optimizer.update(gradient, optimizer.init(params), params)[0]
    for (w, _), (of_w, of_b) in zip(params, updates, strict=True):
        np.testing.assert_allclose(of_w, -0.5 * (1 + 5.0 / 50_000 * w), rtol=1e-6)
        np.testing.assert_allclose(of_b, -0.5)


@pytest.mark.parametrize(("large", "sizes"), [(True, (1, 1)), (False, (400**-0.5, 300**-0.5))])
def test_weights_are_drawn_as_in_the_book(large, sizes):
    layers = nielsen.drawn(NET, jax.random.key(0), large=large)
    for (w, b), size in zip(layers, sizes, strict=True):
        assert float(w.std()) == pytest.approx(size, rel=0.05)
        assert float(b.std()) == pytest.approx(1, rel=0.5)


def test_an_easy_problem_is_learned_by_every_setting():
    x = np.eye(8, dtype=np.float32).repeat(20, 0)
    labels = np.arange(8).repeat(20)
    data = tuple(map(jnp.asarray, (x, labels, x[::20], labels[::20])))
    for setting in nielsen.SETTINGS.values():
        found = nielsen.accuracies(setting, 2, 12, data)
        assert found.shape == (2, 12)
        assert found[:, -1].min() > 0.7
        assert (found[0] != found[1]).any()


def test_without_networks_it_says_so(capsys, tmp_path):
    assert nielsen.main(nielsen.Options(seeds=0, out=tmp_path)) == 2
    assert "seeds: expected at least 1, got 0" in capsys.readouterr().out
    assert nielsen.main(nielsen.Options(data=tmp_path / "none", out=tmp_path)) == 2
