"""The convolutional experiment, for an epoch."""

import json
import socket
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

import jbackprop as jb
from experiments import convolution


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.long
def test_it_writes_all_that_it_promises(tmp_path, capsys):
    assert convolution.main(convolution.Options(quick=True, out=tmp_path)) == 0
    (folder,) = tmp_path.iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "flow.png", "kernels.png", "metrics.jsonl", "net.npz"]
    assert json.loads((folder / "config.json").read_text())["difference_from_autodiff"] < 1e-5
    epoch, last = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert epoch["epoch"] == 1
    assert 0.3 < last["test"]["accuracy"] <= 1
    net, params = jb.load(folder / "net.npz")
    assert params[0].w.shape == net.maps[0].w_shape(net.shapes[0]) == (16, 3, 3, 1)
    assert "Largest relative difference from jax.grad" in capsys.readouterr().out


@pytest.mark.long
def test_one_dimensional_digits_are_drawn_without_a_network(tmp_path, capsys, monkeypatch):
    def no_network(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("it reached for the network")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    np.random.seed(5)
    before = np.random.get_state()[1].tolist()  # pyright: ignore
    options = convolution.Options(mnist1d=True, quick=True, out=tmp_path)
    assert convolution.main(options) == 0
    assert np.random.get_state()[1].tolist() == before  # pyright: ignore
    said = capsys.readouterr().out
    assert "3600 digits to learn from" in said
    for name, published in (("logistic regression", 32), ("dense", 68), ("convolutional", 94)):
        assert f"Test, {name}: accuracy" in said
        assert f"(published: {published}%" in said
    (folder,) = tmp_path.iterdir()
    assert (folder / "flow.png").stat().st_size > 10_000
    rows = [*map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())]
    assert [row["network"] for row in rows if "test" in row] == [*convolution.PUBLISHED]


def test_images_of_mnists_size_get_the_tanh_network():
    data = convolution.load(None, 0)._replace(image_shape=(28, 28))
    (net,) = convolution.networks_for(data).values()
    assert net.z_shapes[:2] == ((14, 14, 16), (5, 5, 32))


def test_mnist_and_mnist_1d_exclude_each_other(tmp_path, capsys):
    options = convolution.Options(mnist1d=True, data=tmp_path, out=tmp_path / "runs")
    assert convolution.main(options) == 2
    assert "data: expected none beside --mnist1d" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["batch_size", "epochs"])
def test_bad_options_are_named_and_leave_nothing_behind(name, tmp_path, capsys):
    options = replace(convolution.Options(out=tmp_path / "runs"), **{name: 0})
    assert convolution.main(options) == 2
    assert f"{name}: expected at least 1, got 0" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
