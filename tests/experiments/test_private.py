"""Private training: every claim that it prints, and the attack that would refute it."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.stats import beta, norm

import jbackprop as jb
from experiments import private

pytest.importorskip("dp_accounting")
NET = jb.Network((3, 2), jb.tanh, jb.softmax, jb.cross_entropy)


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def options(**changes: Any) -> private.Options:
    return private.Options(**{"expected_size": 4, "learning_rate": 1.0, **changes})


# "(ε, δ) against anyone who knows everything but whether one training example was there": an
# auditor trains thousands of times with and without it, and looks for it in what is released.
X = jnp.array([[1.0, 0, 0], [0.0, 1, 0], [0.0, 0, 1], [5.0, -5, 5]])
T = jnp.array([0, 1, 0, 1])


def released(present: bool, settings: private.Options, sigma: float, trials: int, plan: Any):
    """(trials, P): the parameters after an epoch, every run with its own key and the same start."""
    x = X.at[3].set(jnp.where(present, X[3], jnp.nan))  # empty: no finite gradient, so none at all
    params = jb.init(NET, jax.random.key(7))
    keys = jax.random.split(jax.random.key(1), trials)
    optimizer, _ = private.start(NET, settings, sigma, keys[0])
    begin = lambda key: private.start(NET, settings, sigma, key)[1]._replace(params=params)
    loop: Any = private.epoch(NET, optimizer, settings, plan, x, T)
    state, _ = jax.vmap(loop)(jax.vmap(begin)(keys))
    leaves = jax.tree.leaves(state.params)
    return np.concatenate([np.asarray(leaf).reshape(trials, -1) for leaf in leaves], axis=1)


def empirical_epsilon(inside, outside, delta):
    """A lower bound of ε that holds with 99.9 %: Clopper and Pearson on a threshold's two errors.

    Jagielski et al., "Auditing Differentially Private Machine Learning", 2020, arXiv:2006.07709."""
    direction = inside.mean(0) - outside.mean(0)
    half = len(inside) // 2  # thresholds are chosen on one half, judged on the other
    one, two = inside @ direction, outside @ direction
    cuts = np.quantile(np.concatenate([one[:half], two[:half]]), np.linspace(0.02, 0.98, 49))
    scores = [np.mean(one[:half] > c) / (np.mean(two[:half] > c) + 5 / half) for c in cuts]
    cut, n = cuts[int(np.argmax(scores))], len(one) - half
    hits, alarms = np.sum(one[half:] > cut), np.sum(two[half:] > cut)
    sure_hits = beta.ppf(0.001, hits, n - hits + 1)
    most_alarms = beta.ppf(0.999, alarms + 1, n - alarms)
    return float(np.log(max(sure_hits - delta, 1e-9) / most_alarms))


@pytest.mark.long
@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_an_auditor_finds_no_more_than_epsilon_and_finds_what_is_wrong(rate, monkeypatch):
    settings, sigma, delta, trials = options(expected_size=int(4 * rate)), 1.0, 1e-5, 10_000
    plan = private.sampling(4, settings.expected_size)
    claimed = private.Accountant(sigma, plan, delta).epoch()
    found = empirical_epsilon(
        released(True, settings, sigma, trials, plan),
        released(False, settings, sigma, trials, plan),
        delta,
    )
    assert 0.3 < found <= claimed  # the attack has power, and the claim stands

    # a fifth of the noise, or a bound ten times too high: the same attack refutes the claim
    weak = [released(there, settings, sigma / 5, trials, plan) for there in (True, False)]
    assert empirical_epsilon(weak[0], weak[1], delta) > claimed
    bounded = jb.clipped_sum
    monkeypatch.setattr(jb, "clipped_sum", lambda c, n: bounded(10 * c, n))
    loose = [released(there, settings, sigma, trials, plan) for there in (True, False)]
    assert empirical_epsilon(loose[0], loose[1], delta) > claimed


# "Each σ is a run of its own": an attacker who has two of them takes off the noise of one by that
# of the other, which leaves the clipped sum alone if both were drawn from one key.
def noise_of(settings, sigma, key):
    optimizer, state = private.start(NET, settings, sigma, key)
    zeros = jax.tree.map(lambda p: jnp.zeros((40_000, *p.shape)), state.params)
    updates, _ = optimizer.update(zeros, state.opt_state, state.params)
    return np.concatenate([np.asarray(v).ravel() for v in jax.tree.leaves(updates)])


@pytest.mark.parametrize("seed", [None, 5])
def test_two_runs_do_not_cancel_each_others_noise(seed):
    settings = options()
    keys = private.run_keys(seed, 2)
    one, four = noise_of(settings, 1.0, keys[0]), noise_of(settings, 4.0, keys[1])
    left = (4 * one - four) / 3
    alone = 1.0 * settings.max_norm / settings.expected_size
    assert np.std(left) == pytest.approx(np.hypot(4, 4) / 3 * alone, rel=0.02)
    assert abs(np.corrcoef(one, four)[0, 1]) < 5 / np.sqrt(len(one))
    same = (4 * noise_of(settings, 1.0, keys[0]) - noise_of(settings, 4.0, keys[0])) / 3
    assert np.std(same) < 1e-6 * alone  # the attack works where one key was used twice

    states = [private.start(NET, settings, 1.0, key)[1] for key in keys]
    assert not (states[0].params[0].w == states[1].params[0].w).any()
    one, two = (jb.poisson_sample(state.key, 1000, 0.5, 600)[0] for state in states)
    assert len(np.intersect1d(one, two)) < 350


# "The keys of these draws are as secret as the examples": nobody finds them beside the models.
def written(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_no_seed_is_written_unasked_and_none_is_used_twice(tmp_path):
    quick: dict[str, Any] = {"quick": True, "noise": (2.0,), "epochs": 1}
    assert private.main(private.Options(out=tmp_path / "a", seed=918273645, **quick)) == 0
    assert b"918273645" not in written(tmp_path / "a")
    asked = private.Options(out=tmp_path / "b", seed=918273645, record_seed=True, **quick)
    assert private.main(asked) == 0
    assert b"918273645" in written(tmp_path / "b")
    assert private.main(private.Options(out=tmp_path / "c", **quick)) == 0
    models = [np.load(next((tmp_path / name).glob("*/*.npz")))["w1"] for name in "abc"]
    np.testing.assert_array_equal(models[0], models[1])  # a seed repeats a run
    assert not (models[0] == models[2]).any()
    assert not (jax.random.key_data(private.run_keys(None, 1))
                == jax.random.key_data(private.run_keys(None, 1))).all()  # fmt: skip


# "Norms clipped to max_norm": one example does what it can to move the sum further.
HOSTILE = [
    [1e20, -1e20, 1e20], [3e38, 3e38, -3e38], [jnp.nan, 0, 0], [jnp.inf, 1, 1],
    [1e-30, 1e-30, 1e-30], [1.8e19, 0, 0], [1e4, -1e4, 3e3], [0, 0, 0],
]  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE, ids=str)
def test_no_example_moves_the_sum_by_more_than_the_bound(hostile):
    params = jb.init(NET, jax.random.key(0))
    x = X.at[3].set(jnp.array(hostile))
    for bound in (1e-3, 1.0, 1e3):
        gradient = jb.clipped_sum(bound, 4)
        total = lambda weight, x=x, gradient=gradient: np.concatenate([
            np.asarray(leaf, np.float64).ravel()
            for leaf in jax.tree.leaves(gradient(jb.backprop(NET, params, x, T, weight=weight)))
        ])  # fmt: skip
        with_it, without = total(jnp.ones(4)), total(jnp.array([1.0, 1, 1, 0]))
        assert np.isfinite(with_it).all()
        moved = 4 * np.linalg.norm(with_it - without)
        assert moved <= bound + 1e-6 * 4 * np.linalg.norm(without)


# "Samples of 50 on average": at the rate that is accounted for, and never one that was cut off.
def test_a_sample_that_does_not_fit_is_no_release():
    plan = private.sampling(1000, 50)
    assert plan.capacity < 130
    assert plan.overflow < 1e-12
    assert private.sampling(10, 10)[2:] == (1, 10, 0.0)
    settings, x = options(expected_size=2), jnp.tile(X, (3, 1))
    cut = private.Sampling(12, 6, 2, 3, 1.0)
    optimizer, state = private.start(NET, settings, 1.0, jax.random.key(0))
    state, overflow = private.epoch(NET, optimizer, settings, cut, x, jnp.tile(T, 3))(state)
    assert bool(overflow)
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_a_sample_that_does_not_fit_stops_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(private.binom, "isf", lambda *_: 100)
    assert private.main(private.Options(quick=True, out=tmp_path)) == 1
    assert "larger than its rows" in capsys.readouterr().out
    assert not [*tmp_path.rglob("*.npz")]


def test_without_noise_and_bound_it_is_gradient_descent_on_the_same_samples():
    rng = np.random.default_rng(0)
    x, t = jnp.asarray(rng.normal(size=(60, 4)), jnp.float32), jnp.asarray(rng.integers(0, 3, 60))
    net = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)
    settings = options(max_norm=float("inf"), expected_size=20, learning_rate=0.5)
    plan = private.sampling(60, 20)
    optimizer, state = private.start(net, settings, 0.0, jax.random.key(0))
    ours, overflow = private.epoch(net, optimizer, settings, plan, x, t)(
        jax.tree.map(jnp.copy, state)
    )
    assert not overflow
    plain = lambda factors: jax.tree.map(lambda g: g / 20, jb.sum_gradient(factors))
    sgd = optax.sgd(0.5)
    theirs: Any = state._replace(opt_state=sgd.init(state.params))
    for step in range(plan.steps):
        key = jax.random.fold_in(jax.random.fold_in(theirs.key, step), 0)
        index, weight = jb.poisson_sample(key, 60, 20 / 60, plan.capacity)
        theirs, _ = jb.train_step(
            net, sgd, theirs, x[index], t[index], weight=weight, gradient=plain
        )
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


# ε itself
PLAN = private.sampling(1000, 50)


def test_epsilon_grows_with_epochs_and_falls_with_noise():
    spent = {}
    for sigma in (1.0, 2.0):
        accountant = private.Accountant(sigma, PLAN, 1e-5)
        spent[sigma] = [accountant.epoch() for _ in range(3)]
        assert 0 < spent[sigma][0] < spent[sigma][1] < spent[sigma][2]
    assert spent[2.0][2] < spent[1.0][2]
    assert private.Accountant(0.0, PLAN, 1e-5).epoch() == float("inf")


@pytest.mark.parametrize("steps", [1, 4])
def test_without_subsampling_epsilon_is_that_of_the_gaussian_mechanism(steps):
    """q = 1: δ(ε) in closed form (Balle and Wang, 2018, arXiv:1805.06530); k steps are √k / σ."""
    accountant = private.Accountant(3.0, private.Sampling(10, 10, steps, 10, 0.0), 1e-5)
    epsilon, mu = accountant.epoch(), np.sqrt(steps) / 3.0
    delta = norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    assert delta == pytest.approx(1e-5, rel=0.02)


def test_what_is_lost_by_overflow_is_taken_from_delta():
    leaky = private.Accountant(1.0, PLAN._replace(overflow=4e-7), 1e-5)
    tight = private.Accountant(1.0, PLAN._replace(overflow=0.0), 1e-5 - PLAN.steps * 4e-7)
    assert leaky.epoch() == tight.epoch() > private.Accountant(1.0, PLAN, 1e-5).epoch()


def test_the_experiment_writes_a_line_an_epoch_and_says_what_is_covered(tmp_path, capsys):
    settings = private.Options(quick=True, noise=(0.0, 2.0), out=tmp_path)
    assert private.main(settings) == 0
    (folder,) = tmp_path.iterdir()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["noise"], row["epoch"]) for row in rows] == [(0, 1), (0, 2), (2, 1), (2, 2)]
    assert rows[0]["epsilon"] is None
    assert 0 < rows[2]["epsilon"] < rows[3]["epsilon"]
    assert (folder / "privacy.png").stat().st_size > 1000
    said = capsys.readouterr().out
    for words in ("Covered:", "Not covered:", "their number is public", "sum of their ε"):
        assert words in said


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"max_norm": -1.0}, "max_norm: expected at least 0"),
        ({"max_norm": float("inf")}, "max_norm: expected a finite number"),
        ({"max_norm": 1e-37, "noise": (1e-3,)}, "max_norm: expected a noise of deviation"),
        ({"noise": (-1.0,)}, "noise: expected numbers of at least 0"),
        ({"noise": (1.0, 1.0)}, "noise: expected different numbers"),
        ({"delta": 0.0}, "delta: expected a number between 0 and 1"),
        ({"delta": 1e-3}, "delta: expected less than 1/N"),
        ({"expected_size": 5000}, "expected_size: expected 1 to 1077"),
        ({"epochs": 0}, "epochs: expected at least 1"),
        ({"record_seed": True}, "record_seed: expected a --seed"),
    ],
)
def test_bad_options_are_named_and_leave_nothing_behind(bad, message, tmp_path, capsys):
    assert private.main(private.Options(out=tmp_path / "runs", **bad)) == 2
    assert message in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_the_convolutional_network_is_trained_by_images(tmp_path, capsys):
    quick: dict[str, Any] = {"quick": True, "noise": (1.0,), "epochs": 1, "network": "cnn"}
    assert private.main(private.Options(out=tmp_path, **quick)) == 0
    (file,) = tmp_path.glob("*/*.npz")
    with np.load(file) as arrays:
        assert arrays["w1"].shape == (16, 3, 3, 1)
    assert "σ = 1    epoch   1" in capsys.readouterr().out
