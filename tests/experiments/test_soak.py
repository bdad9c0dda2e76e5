"""The soak: steps that leave nothing pass; memory, an array or a trace too many is seen."""

import json

import jax.numpy as jnp
import pytest

import jbackprop as jb
from experiments import soak
from experiments.soak import Look, verdict

MIB = 2**20


def looks(resident=lambda i: 300 * MIB, arrays=lambda i: 9, traces=1):
    """Twenty, one after every fifty steps."""
    return [Look(50 * i, i, resident(i), arrays(i), traces) for i in range(1, 21)]


def test_what_stays_as_it_was_is_well():
    found = verdict("train_step", looks(), bound=8)
    assert found.well
    assert found[1:-1] == (1000, 20_000, 300, 0, 9, 0, 1)


@pytest.mark.parametrize(
    ("grows", "well"),
    [
        ({"resident": lambda i: (300 + i // 2) * MIB}, False),  # 9 MiB after the second look
        ({"resident": lambda i: (300 + i // 3) * MIB}, True),
        ({"resident": lambda i: (300 if i > 3 else 100 * i) * MIB}, True),  # before a tenth
        ({"resident": lambda i: (309 if i == 12 else 300) * MIB}, False),  # for a while
        ({"arrays": lambda i: 9 + (i == 20)}, False),
        ({"traces": 2}, False),
        ({"traces": 0}, False),
    ],
)
def test_what_grows_is_seen(grows, well):
    assert verdict("train_epoch", looks(**grows), bound=8).well is well


@pytest.mark.long
def test_a_short_soak_passes_and_one_that_keeps_arrays_does_not(tmp_path, monkeypatch, capsys):
    options = soak.Options(steps=2000, out=tmp_path, bound=200)
    assert soak.main(options) == 0
    (folder,) = tmp_path.iterdir()
    found = json.loads((folder / "soak.json").read_text())
    assert [v["way"] for v in found["verdicts"]] == ["train_step", "train_epoch"]
    assert [len(of) for of in found["looks"].values()] == [20, 20]
    assert (folder / "config.json").is_file()

    step, kept = jb.train_step, []

    def keeps(*arguments, **options):
        kept.append(jnp.zeros(1))
        return step(*arguments, **options)

    monkeypatch.setattr(jb, "train_step", keeps)
    assert soak.main(options) == 1
    assert "train_step" in capsys.readouterr().out


def test_too_few_steps_are_refused(tmp_path, capsys):
    assert soak.main(soak.Options(steps=10, out=tmp_path / "runs")) == 2
    assert "steps: expected at least 1000, got 10" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
