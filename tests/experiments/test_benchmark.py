"""The benchmark as an instrument: what it refuses, what it skips; and all of it, at toy size."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import jbackprop as jb
from experiments.benchmark import __main__ as benchmark
from experiments.benchmark import compare, examples, goals, report, timing
from experiments.benchmark.work import QUICK, WORK, problem

ROOT = Path(__file__).parents[2]
PEERS = {"equinox": "Equinox", "flax": "Flax NNX", "torch": "PyTorch"}


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Peers mix dtypes as they like."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.long
def test_the_whole_command_at_toy_size(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        report.into_readme("before\n{}\n{}\nafter\n".format(*report.marks()), "an old table")
    )
    done = subprocess.run(
        [sys.executable, "-m", "experiments.benchmark", "--quick"]
        + ["--out", str(tmp_path / "out"), "--readme", str(readme)],
        cwd=ROOT, text=True, capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "out").glob("*.json")
    results = json.loads(path.read_text())
    assert path.stem == results["machine"]
    for kind in (".md", "-peers.png", "-growth.png"):
        assert path.with_name(path.stem + kind).stat().st_size > 1000

    rows = results["steps"]["S tanh sgd float32"]["candidates"]
    groups = {row["group"] for row in rows.values()}
    assert {"jbackprop", "jax.grad", "NumPy", "scikit-learn"} <= groups
    for library, group in PEERS.items():
        skipped = f"skipped, {library} is not installed" in done.stdout
        assert skipped != (group in groups)
    for row in rows.values():
        assert row["us_per_step"] > 0
        assert row["ours_over_this"]["low"] <= row["ours_over_this"]["high"]
    assert {
        "shuffle",
        "many",
        "pieces",
        "growth",
        "compile",
        "first_step",
        "import_seconds",
    } <= set(results)
    judged = {(goal["what"], goal["where"]) for goal in results["goals"]}
    assert ("fraction of the measured matrix-product rate", "M") in judged

    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "an old table" not in text
    assert "`clipped_mean`" in text
    assert re.search(r"\| jbackprop \| [\d.,]+ \| [\d.,]+ \|", text)


def test_a_missing_peer_is_named_and_skipped(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.neural_network", None)
    monkeypatch.delitem(sys.modules, "experiments.benchmark.peers.by_sklearn", raising=False)
    said = []
    found = compare.candidates(
        QUICK["S"], ["ours", "by_sklearn"], jb.tanh, "sgd", "float32", said.append
    )
    assert {c.group for c in found} == {"jbackprop", "jbackprop stepped"}
    assert said == ["  by_sklearn: skipped, sklearn.neural_network is not installed"]


@pytest.mark.parametrize("fault", [1.001, np.nan])
def test_a_peer_with_another_gradient_stops_the_run_and_nothing_is_written(
    fault, monkeypatch, tmp_path, capsys
):
    from experiments.benchmark.peers import by_numpy

    honest = by_numpy.candidates

    def faulty(*args):
        (candidate,) = honest(*args)
        wrong = lambda: [(w * fault, b) for w, b in candidate.gradient()]
        return [candidate._replace(gradient=wrong)]

    monkeypatch.setattr(by_numpy, "candidates", faulty)
    monkeypatch.setattr(compare, "PEERS", ["ours", "by_numpy"])
    options = benchmark.Options(out=tmp_path / "out", quick=True)
    assert benchmark.main(options) == 1
    by = "nan" if np.isnan(fault) else "1.0e-03"
    expected = f"NumPy, by hand at S: its gradient differs from ours by {by} of its largest entry"
    assert expected in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_peer_with_another_quantity_stops_the_run():
    peer = examples.Peer("liar", "norms", lambda: [np.array([1.0, 2.0])], lambda: None)
    examples.check(QUICK["S"], peer, [np.array([1.0, 2.0])])
    for wrong in ([1.0, 2.001], [1.0, np.nan]):
        with pytest.raises(compare.GradientsDiffer, match="liar at S: its norms differs from ours"):
            examples.check(
                QUICK["S"],
                peer._replace(result=lambda w=wrong: [np.array(w)]),
                [np.array([1.0, 2.0])],
            )


def test_a_readme_without_marks_is_refused_before_anything_is_measured(
    monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("it measured"))
    readme = tmp_path / "README.md"
    readme.write_text("no marks")
    assert benchmark.main(benchmark.Options(out=tmp_path / "out", readme=readme)) == 1
    assert "readme: expected <!-- benchmark: begin -->" in capsys.readouterr().out


@pytest.mark.parametrize("hidden", [jb.tanh, jb.relu])
def test_the_numpy_peer_descends_as_we_do(hidden):
    """Not only its first gradient: parameters after all batches."""
    from experiments.benchmark.peers import by_numpy

    work = QUICK["S"]
    numbers = problem(work, hidden)
    net = by_numpy.Net(numbers, work.batch, hidden.name)
    params = numbers.params
    ours = jb.Network(work.sizes, hidden, jb.softmax, jb.cross_entropy)
    for x, labels in zip(numbers.x, numbers.labels, strict=True):
        net.gradient(x, labels)
        net.descend()
        _, gradient = jb.value_and_grad(ours, params, x, labels)
        params = jb.sgd_step(
            jax.tree.map(jax.numpy.asarray, params), gradient, compare.LEARNING_RATE
        )
    theirs = [(w.T, b) for w, b in zip(net.w, net.b, strict=True)]
    assert compare.relative_difference(params, theirs) < 1e-5


def test_candidates_take_turns_and_the_first_rotates():
    said = []
    names = ["a", "b", "c"]
    seconds = timing.in_turn({name: lambda name=name: said.append(name) for name in names}, 12)
    assert {name: len(s) for name, s in seconds.items()} == dict.fromkeys(names, 12)
    rounds = [said[3 + 3 * i : 6 + 3 * i] for i in range(12)]  # one untimed round first
    assert all(sorted(one) == names for one in rounds)
    firsts = [one[0] for one in rounds]
    follows = [(x, y) for one in rounds for x, y in pairwise(one)]
    assert {name: firsts.count(name) for name in names} == dict.fromkeys(names, 4)
    assert {pair: follows.count(pair) for pair in follows} == dict.fromkeys(
        [(x, y) for x in names for y in names if x != y], 4
    )


def test_ratios_are_paired():
    ours, theirs = np.array([1.0, 10.0, 100.0]), np.array([2.0, 20.0, 200.0])
    assert timing.ratio(ours, theirs) == (0.5, 0.5, 0.5)


def test_goals_are_judged_and_those_without_a_figure_left_out():
    results = {
        "import_seconds": {"median": 0.061, "of_it_collecting_garbage": 0.04},
        "first_step": {"ours_over_this": {"median": 1.0}},
    }
    assert [(row["figure"], row["met"]) for row in goals.judged(results)] == [
        (61.0, False),
        (1.0, True),
    ]


def test_operations_and_values_of_a_step():
    work = WORK["S"]
    forward = 64 * 32 + 32 * 10
    assert work.operations == 2 * 32 * (3 * forward - 64 * 32)
    assert work.values == 2 * (forward + 42) + 32 * 64


def test_the_machine_has_a_name_fit_for_a_file(monkeypatch):
    from experiments.benchmark import machine

    assert re.fullmatch(r"[a-z0-9-]+", machine.name())
    device = SimpleNamespace(platform="gpu", device_kind="NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert machine.name() == "nvidia-h100-80gb-hbm3"
    assert machine.told(machine.name()) == "NVIDIA H100 80GB HBM3"
    assert machine.told("amd-epyc-2-cores") == "AMD EPYC, 2 cores"
    assert machine.told("intel-xeon-1-core") == "Intel Xeon, 1 core"
