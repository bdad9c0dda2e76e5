"""The main job, end to end, as a user starts it."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import jbackprop as jb
from experiments import digits

ROOT = Path(__file__).parents[2]


def start(name, *options):
    """The experiment as a process, its output as text."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-u", "-m", f"experiments.{name}", *map(str, options)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
    )  # fmt: skip


def ran(name, *options):
    process = start(name, *options)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_digits_writes_all_that_it_promises(tmp_path):
    tmp_path = tmp_path / "runs[bold]"  # no markup
    status, output = ran("digits", "--epochs", 3, "--sizes", 20, 12, "--seed", 7, "--out", tmp_path)
    assert status == 0, output
    assert "Largest relative difference from jax.grad" in output
    (folder,) = tmp_path.iterdir()
    assert str(folder) in output
    expected = ["curves.png", "deltas.png", "hardest.png", "metrics.jsonl", "net.npz"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints", "config.json", *expected,
    ]  # fmt: skip

    config = json.loads((folder / "config.json").read_text())
    assert config["options"]["seed"] == 7
    assert config["network"] == [64, 20, 12, 10]
    assert {"python", "jax", "optax", "jbackprop"} <= set(config["versions"])
    assert {"commit", "device", "backend"} <= set(config)
    assert config["difference_from_autodiff"] < 1e-5

    *epochs, last = lines(folder)
    assert [row["epoch"] for row in epochs] == [1, 2, 3]
    best = max(epochs, key=lambda row: row["validation"]["accuracy"])
    assert last["kept"] == best["epoch"]
    assert last["validation"]["accuracy"] == best["validation"]["accuracy"]
    assert f"{last['test']['accuracy']:.2%}" in output
    net, params = jb.load(folder / "net.npz")
    assert [w.shape for w, _ in params] == [(20, 64), (12, 20), (10, 12)]
    assert net.activations == (jb.relu, jb.relu, jb.softmax)
    status, told = ran("digits", "--load", folder / "net.npz", "--seed", 7)
    assert status == 0, told
    assert f"{last['test']['accuracy']:.2%}" in told
    for name in ("curves", "deltas", "hardest"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.long
def test_digits_learns_with_every_kind_of_option(tmp_path):
    status, output = ran(
        "digits", "--epochs", 12, "--sizes", 64, 32, "--hidden", "tanh", "relu",
        "--cost", "binary_cross_entropy", "--optimizer", "rmsprop", "--out", tmp_path,
    )  # fmt: skip
    assert status == 0, output
    (folder,) = tmp_path.iterdir()
    assert lines(folder)[-1]["test"]["accuracy"] > 0.9


def test_training_that_breaks_down_stops_and_keeps_what_was_written(tmp_path):
    status, output = ran(
        "digits", "--optimizer", "sgd", "--learning-rate", "1e20", "--cost", "squared_error",
        "--out", tmp_path,
    )  # fmt: skip
    assert status == 1, output
    assert "no longer finite after epoch 1" in output
    assert "lower --learning-rate" in output
    (folder,) = tmp_path.iterdir()
    assert lines(folder)[0]["finite"] is False
    assert "NaN" not in (folder / "metrics.jsonl").read_text()  # which strict JSON has not
    assert (folder / "config.json").is_file()


@pytest.mark.long
def test_interrupted_between_epochs_it_keeps_what_was_written_and_says_where(tmp_path):
    process = start("digits", "--epochs", 100_000, "--out", tmp_path)
    assert process.stdout is not None
    while not list(tmp_path.glob("*/config.json")):
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    (folder,) = tmp_path.iterdir()
    assert str(folder) in output
    assert "Stopped after epoch" in output
    assert (folder / "net.npz").is_file()
    assert lines(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "nonsense"}, "optimizer: expected the name .* got 'nonsense'"),
        ({"optimizer": "apply_updates"}, "optimizer: "),
        ({"data": Path("nowhere")}, "nowhere: no such folder"),
        ({"sizes": (0,)}, "sizes: expected .* at least 1"),
        ({"batch_size": 0}, "batch_size: expected at least 1, got 0"),
        ({"hidden": ("tanh", "relu", "elu")}, "hidden: expected 2 activations.* got 3"),
    ],
)
def test_bad_options_are_named_and_leave_nothing_behind(options, message, tmp_path, capsys):
    assert digits.main(replace(digits.Options(out=tmp_path / "runs"), **options)) == 2
    assert re.search(message, capsys.readouterr().out)
    assert not (tmp_path / "runs").exists()


def test_they_are_the_status_of_the_process(tmp_path):
    status, output = ran("digits", "--sizes", 0, "--out", tmp_path / "runs")
    assert status == 2, output
    assert "sizes: expected" in output
