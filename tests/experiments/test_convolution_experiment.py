"""The convolutional experiment, for an epoch."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments import convolution


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_it_writes_all_that_it_promises(tmp_path, capsys):
    assert convolution.main(convolution.Options(quick=True, out=tmp_path)) == 0
    (folder,) = tmp_path.iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "flow.png", "kernels.png", "metrics.jsonl", "params.npz"]
    assert json.loads((folder / "config.json").read_text())["difference_from_autodiff"] < 1e-5
    epoch, last = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    assert epoch["epoch"] == 1
    assert 0.3 < last["test"]["accuracy"] <= 1
    with np.load(folder / "params.npz", allow_pickle=False) as arrays:
        assert arrays["w1"].shape == (16, 3, 3, 1)
    assert "Largest relative difference from jax.grad" in capsys.readouterr().out


def test_images_of_mnists_size_get_the_tanh_network():
    data = convolution.load(None, 0)._replace(image_shape=(28, 28))
    assert convolution.network(data).z_shapes[:2] == ((14, 14, 16), (5, 5, 32))


@pytest.mark.parametrize("name", ["batch_size", "epochs"])
def test_bad_options_are_named_and_leave_nothing_behind(name, tmp_path, capsys):
    options = replace(convolution.Options(out=tmp_path / "runs"), **{name: 0})
    assert convolution.main(options) == 2
    assert f"{name}: expected at least 1, got 0" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
