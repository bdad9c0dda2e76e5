"""The benchmark of convolutional networks: peers compute the same, and tables are of results."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jbackprop as jb
from experiments.benchmark import convolution, report
from experiments.benchmark.compare import GradientsDiffer
from experiments.benchmark.peers.spatial import case
from jbackprop import Conv, MaxPool

ROOT = Path(__file__).parents[2]
NET = jb.Network(  # strides that leave a remainder, padding of one side alone
    ((9, 8, 2), Conv(3, 4, stride=2, padding=1), MaxPool(2, stride=2, padding="SAME"),
     Conv(4, 2, padding="SAME"), 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)  # fmt: skip


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Peers mix dtypes and ranks as they like."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def test_every_peer_that_is_installed_has_our_gradient(capsys):
    found = convolution.candidates(case("toy", NET, 3, 3))
    groups = {each.group for each in found}
    said = capsys.readouterr().err
    assert groups >= {"ours", "jax.grad"}
    for name, group in (("flax", "Flax"), ("equinox", "Equinox"), ("torch", "PyTorch")):
        assert (group in groups) != (f"conv_{name}: skipped" in said)


def test_a_batch_on_which_rounding_decides_is_not_the_first(monkeypatch, capsys):
    of = case("toy", NET, 3, 3)

    def differs(turned, wrong=(0,)):
        if any((turned.x[0] == of.x[i]).all() for i in wrong):
            raise GradientsDiffer("a peer")

    monkeypatch.setattr(convolution, "candidates", differs)
    found = convolution.settled(of)
    np.testing.assert_array_equal(found.x[0], of.x[2])
    np.testing.assert_array_equal(found.labels[0], of.labels[2])
    assert "batch 0: a peer" in capsys.readouterr().err
    monkeypatch.setattr(convolution, "candidates", lambda turned: differs(turned, (0, 1, 2)))
    with pytest.raises(GradientsDiffer):
        convolution.settled(of)


def test_steps_are_timed_beside_ours():
    rows = convolution.steps(case("toy", NET, 3, 3), 1)
    assert rows["ours, epoch"]["ours_over_this"]["median"] == 1
    assert {"ours, stepped", "jax.grad, slices, epoch"} < rows.keys()
    assert all(row["ms"] > 0 for row in rows.values())


def test_a_peer_with_other_numbers_is_named_and_not_timed(capsys):
    of, ours = case("toy", NET, 3, 1), {"norms": SimpleNamespace(result=lambda: np.ones(3))}
    peer = lambda name, value: SimpleNamespace(
        name=name, quantity="norms", result=lambda: np.full(3, value)
    )
    good, bad = peer("good", 1.0005), peer("bad", 1.002)
    right, wrong = convolution._right(of, [good, bad, peer("none", np.nan)], ours)
    assert right == [good]
    assert [*wrong] == ["bad, over our norms", "none, over our norms"]
    assert "left out: bad at toy" in capsys.readouterr().err


def test_pages_have_the_tables_of_the_results_that_they_name():
    text, made = (ROOT / "README.md").read_text("utf-8"), []
    for path in (ROOT / "experiments/benchmark/results").glob("*-convolution.json"):
        results = json.loads(path.read_text("utf-8"))
        assert path.with_suffix(".md").read_text("utf-8") == convolution.page(results)
        made.append(report.into_readme(text, convolution.of_steps(results), convolution.MARK))
    assert text in made
