"""Private training: what a sample is, what is released, and what it costs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbackprop as jb
from experiments import private

pytest.importorskip("dp_accounting")
PLAN = private.sampling(1000, 50)


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_a_sample_takes_every_example_by_itself_with_probability_q():
    rows, weight, overflow = jax.vmap(lambda k: private.draw(PLAN, k))(
        jax.random.split(jax.random.key(0), 4000)
    )
    assert not overflow.any()
    counts = np.zeros(1000)
    np.add.at(counts, np.asarray(rows), np.asarray(weight))
    q, n = 0.05, 4000
    assert abs(counts - q * n).max() < 5 * np.sqrt(n * q * (1 - q))
    sizes = np.asarray(weight).sum(1)
    assert sizes.var() == pytest.approx(1000 * q * (1 - q), rel=0.1)  # binomial, not fixed
    first = rows[0][np.asarray(weight[0]) > 0]
    assert len(np.unique(first)) == len(first)


def test_capacity_holds_all_but_hopelessly_rare_samples():
    assert PLAN.capacity < 130
    small = PLAN._replace(capacity=40)
    _, weight, overflow = private.draw(small, jax.random.key(1))
    assert bool(overflow) == (float(weight.sum()) == 40)
    assert private.sampling(10, 10).capacity == 10


def test_without_noise_and_bound_it_is_gradient_descent_on_the_same_samples():
    rng = np.random.default_rng(0)
    x, t = jnp.asarray(rng.normal(size=(60, 4)), jnp.float32), jnp.asarray(rng.integers(0, 3, 60))
    net = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)
    options = private.Options(max_norm=float("inf"), expected_size=20, learning_rate=0.5)
    plan = private.sampling(60, 20)
    optimizer = private.make_optimizer(options, 0.0)
    start = lambda: jb.init_state(net, optimizer, jax.random.key(0))
    gradient = private.released(options.max_norm, 20)
    ours, overflow = private.epoch(net, optimizer, gradient, plan, x, t)(start())
    assert not overflow

    theirs = start()
    plain = lambda factors: jax.tree.map(lambda g: g / 20, jb.sum_gradient(factors))
    for step in range(plan.steps):
        key = jax.random.fold_in(jax.random.fold_in(theirs.key, step), 0)
        rows, weight, _ = private.draw(plan, key)
        theirs, _ = jb.train_step(
            net, optax.sgd(0.5), theirs, x[rows], t[rows], weight=weight, gradient=plain
        )
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)


def test_the_noise_has_the_deviation_that_is_accounted_for():
    options = private.Options(max_norm=3.0, expected_size=50, learning_rate=1.0)
    optimizer = private.make_optimizer(options, 2.0)
    params = jnp.zeros(200_000)
    updates, _ = optimizer.update(jnp.zeros(200_000), optimizer.init(params), params)
    assert float(np.std(np.asarray(updates))) == pytest.approx(2.0 * 3.0 / 50, rel=0.01)


def test_one_example_more_moves_what_is_released_by_at_most_the_bound():
    rng = np.random.default_rng(1)
    x = jnp.asarray(10 * rng.normal(size=(8, 4)), jnp.float32)
    t = jnp.asarray(rng.integers(0, 3, 8))
    net = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)
    params = jb.init(net, jax.random.key(0))
    release = lambda w: private.released(0.5, 4)(jb.backprop(net, params, x, t, weight=w))
    everyone = jnp.ones(8)
    for i in range(8):
        moved = jax.tree.map(jnp.subtract, release(everyone), release(everyone.at[i].set(0)))
        assert 4 * float(optax.tree.norm(moved)) <= 0.5 * (1 + 1e-5)


def test_epsilon_grows_with_epochs_and_falls_with_noise():
    spent = {}
    for sigma in (1.0, 2.0):
        accountant = private.Accountant(sigma, PLAN, 1e-5)
        spent[sigma] = [accountant.epoch() for _ in range(3)]
        assert 0 < spent[sigma][0] < spent[sigma][1] < spent[sigma][2]
    assert spent[2.0][2] < spent[1.0][2]
    assert private.Accountant(0.0, PLAN, 1e-5).epoch() == float("inf")


def test_without_subsampling_epsilon_is_that_of_the_gaussian_mechanism():
    """One release, q = 1: δ(ε) in closed form (Balle and Wang, 2018, arXiv:1805.06530)."""
    from scipy.stats import norm

    accountant = private.Accountant(3.0, private.Sampling(10, 10, 1, 10), 1e-5)
    epsilon, mu = accountant.epoch(), 1 / 3.0
    delta = norm.cdf(mu / 2 - epsilon / mu) - np.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu)
    assert delta == pytest.approx(1e-5, rel=0.02)


def test_the_experiment_writes_a_line_an_epoch_and_says_what_is_covered(tmp_path, capsys):
    options = private.Options(quick=True, noise=(0.0, 2.0), out=tmp_path)
    assert private.main(options) == 0
    (folder,) = tmp_path.iterdir()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(row["noise"], row["epoch"]) for row in rows] == [(0, 1), (0, 2), (2, 1), (2, 2)]
    assert rows[0]["epsilon"] is None
    assert 0 < rows[2]["epsilon"] < rows[3]["epsilon"]
    assert (folder / "privacy.png").stat().st_size > 1000
    said = capsys.readouterr().out
    assert "Covered:" in said
    assert "Not covered:" in said


def test_a_sample_that_does_not_fit_stops_the_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(private.binom, "isf", lambda *_: 100)
    assert private.main(private.Options(quick=True, out=tmp_path)) == 1
    assert "larger than 101 rows" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"max_norm": -1.0}, "max_norm: expected at least 0"),
        ({"max_norm": float("inf")}, "max_norm: expected a finite number"),
        ({"noise": (-1.0,)}, "noise: expected numbers of at least 0"),
        ({"delta": 0.0}, "delta: expected a number between 0 and 1"),
        ({"expected_size": 5000}, "expected_size: expected 1 to 1077"),
        ({"epochs": 0}, "epochs: expected at least 1"),
    ],
)
def test_bad_options_are_named_and_leave_nothing_behind(bad, message, tmp_path, capsys):
    assert private.main(private.Options(out=tmp_path / "runs", **bad)) == 2
    assert message in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
