"""Scaled, clipped and normalised gradients, alone and by group."""

from typing import Any

import jax
import jax.numpy as jnp
import materialised
import numpy as np
import optax
import pytest
from helpers import assert_close, problem, temporaries
from hypothesis import given, settings
from hypothesis import strategies as st
from materialised import CASES, NETS, close

import jbackprop as jb
from jbackprop.quantities.clipping import rounded_up

NET = NETS["softmax"]


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return materialised.case(*request.param)


def shrunk(norms, limit):
    return np.minimum(1, limit / np.where(norms == 0, 1, norms))


@pytest.mark.long(3)
def test_scale(case):
    c = np.array([1.0, np.nan if case.w[1] == 0 else 2.0, -1.0, 0.0, 0.5, 3.0], np.float32)
    expected = np.where(case.w[:, None] == 0, 0, np.nan_to_num(c)[:, None] * case.g)
    close(case.rows(jb.example_gradients(jb.scale(case.factors, c))), expected)
    scaled = jb.scale(case.factors, c)
    assert_close(scaled._replace(delta=()), case.factors._replace(delta=()), 0)


def to_within(case, tolerance=2e-6):
    """A sum over positions is clipped to less, by what its rounding may hide."""
    return tolerance if not case.factors.maps else 20 * tolerance


@pytest.mark.long(25)
@pytest.mark.parametrize("limit", [0, 1e-3, 0.5, 1.0, 3.0, jnp.inf])
def test_clip(case, limit):
    clipped = jb.clip(case.factors, limit)
    norms = np.linalg.norm(case.g, axis=1)
    expected = shrunk(norms, float(limit))[:, None] * case.g
    tolerance = to_within(case)
    close(case.rows(jb.example_gradients(clipped)), expected, tolerance)
    close(case.vector(jb.clipped_mean(limit)(case.factors)), case.p @ expected, tolerance)
    close(case.vector(jb.sum_gradient(clipped)), case.w @ expected, tolerance)
    if limit == jnp.inf:
        assert_close(clipped, case.factors, 0)


def test_clip_layers(case):
    limits = np.linspace(0.1, 1.0, len(case.layers))
    expected = case.g.copy()
    for layer, limit in zip(case.layers, limits, strict=True):
        expected[:, layer] *= shrunk(np.linalg.norm(case.g[:, layer], axis=1), limit)[:, None]
    close(case.rows(jb.example_gradients(jb.clip_layers(case.factors, limits))), expected)


@pytest.mark.parametrize("gamma", [0.0, 0.01, 10.0])
def test_normalize(case, gamma):
    norms = np.linalg.norm(case.g, axis=1)[:, None]
    expected = case.g / np.where(norms + gamma == 0, 1, norms + gamma)
    close(case.rows(jb.example_gradients(jb.normalize(case.factors, gamma=gamma))), expected)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.floats(0, 1e6, width=32), st.integers(0, 3), st.sampled_from([1e-8, 1.0, 1e8]))
def test_one_example_moves_the_released_sum_by_at_most_the_bound(limit, seed, size):
    """Adding or removing any one, padding included: what differential privacy calls sensitivity."""
    params, x, t = problem(NET, seed=seed)
    release = lambda weight: jb.sum_gradient(
        jb.clip(jb.backprop(NET, params, size * x, t, weight=weight), limit)
    )
    everyone = jnp.array([1.0, 1, 1, 1, 0, 0])
    whole = release(everyone)
    for i in (0, 3):
        without = release(everyone.at[i].set(0))
        moved = jax.tree.map(lambda a, b: a.astype(float) - b.astype(float), whole, without)
        norm = float(optax.tree.norm(moved))
        # the sums themselves are rounded
        assert norm <= limit * (1 + 1e-5) + 1e-6 * float(optax.tree.norm(whole))


GROUPS = np.array([2, 0, 2, 1, 0, 0])


@pytest.mark.long(4)
def test_groups(case):
    sums = np.stack([(case.w * (u == GROUPS)) @ case.g for u in range(4)])
    close(case.rows(jb.group_gradients(case.factors, GROUPS, 4)), sums)
    close(jb.group_squared_norms(case.factors, GROUPS, 4), (sums**2).sum(1), 1e-5)
    for limit in (0.0, 0.3, jnp.inf):
        clipped = jb.group_clip(case.factors, GROUPS, 4, limit)
        norms = np.linalg.norm(sums, axis=1)
        expected = shrunk(norms, float(limit))[:, None] * sums
        tolerance = to_within(case, 1e-5)
        close(case.rows(jb.group_gradients(clipped, GROUPS, 4)), expected, tolerance)
        close(case.vector(jb.sum_gradient(clipped)), expected.sum(0), tolerance)


def test_a_user_moves_the_released_sum_by_at_most_the_bound():
    params, x, t = problem(NET)
    for limit in (0.05, 0.5, 5.0):
        release = lambda weight, limit=limit: jb.sum_gradient(
            jb.group_clip(jb.backprop(NET, params, x, t, weight=weight), GROUPS, 3, limit)
        )
        whole = release(jnp.ones(6))
        for user in range(3):
            without = release(jnp.asarray((user != GROUPS) * 1.0, jnp.float32))
            moved = jax.tree.map(jnp.subtract, whole, without)
            assert float(optax.tree.norm(moved)) <= limit * (1 + 1e-5)


def test_a_nan_row_stays_in_its_group():
    params, x, t = problem(NET)
    factors = jb.backprop(NET, params, x.at[3].set(jnp.nan), t)
    assert jnp.isnan(jb.group_squared_norms(factors, GROUPS, 3)).tolist() == [False, True, False]
    sums = jb.group_gradients(factors, GROUPS, 3)
    assert jnp.isnan(sums[0].w).any((1, 2)).tolist() == [False, True, False]


def test_a_group_id_of_a_padded_row_may_be_anything():
    params, x, t = problem(NET)
    factors = jb.backprop(NET, params, x, t, weight=jnp.array([1.0, 1, 1, 1, 1, 0]))
    padded = GROUPS.copy()
    padded[5] = -1
    assert_close(jb.group_gradients(factors, padded, 3), jb.group_gradients(factors, GROUPS, 3), 0)
    assert_close(jb.group_clip(factors, padded, 3, 0.5), jb.group_clip(factors, GROUPS, 3, 0.5), 0)


@pytest.mark.parametrize("by", [0.5, 3.0])
def test_a_group_whose_members_cancel_is_as_long_as_its_sum(by):
    """Beside one whose members do not, and whatever the weights."""
    delta = jnp.array([[1.0, 2], [3, -1], [-3, 1.001], [2, 2]])
    a, zeros = jnp.ones((4, 3)), jnp.zeros((4, 2))
    tape, weight = jb.Tape((zeros,), (a, zeros)), by * jnp.ones(4)
    factors = jb.Factors(jnp.zeros(4), tape, (delta,), zeros, weight)
    groups = [0, 1, 1, 0]
    sums = by * np.array([[3, 4], [0, 0.001]])
    expected = 4 * (sums**2).sum(1)
    np.testing.assert_allclose(jb.group_squared_norms(factors, groups, 2), expected, rtol=1e-3)


def test_one_group_out_of_range_spoils_all_where_it_is_traced():
    factors = materialised.case("softmax", "none").factors
    found = jax.jit(lambda g: jb.group_squared_norms(factors, g, 2))(jnp.array([0, 1, 0, 2, 1, 0]))
    assert jnp.isnan(found).all()


def test_a_weight_that_is_none_stays_in_its_group():
    factors = materialised.case("softmax", "none").factors
    factors = factors._replace(weight=factors.weight.at[1].set(jnp.nan))
    sums = jb.group_gradients(factors, [0, 1, 0, 0, 0, 0], 2)
    assert not jnp.isnan(sums[0].b[0]).any()
    assert jnp.isnan(sums[0].b[1]).all()


@pytest.mark.parametrize("spoilt", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("of", ["delta", "a"])
@pytest.mark.parametrize("layer", [0, 1])
def test_an_example_that_is_not_finite_somewhere_counts_as_none(spoilt, of, layer):
    factors = materialised.case("softmax", "none").factors
    changed = lambda rows: tuple(
        v.at[2, 0].set(spoilt) if l == layer else v for l, v in enumerate(rows)
    )
    if of == "delta":
        bad = factors._replace(delta=changed(factors.delta))
    else:
        bad = factors._replace(tape=factors.tape._replace(a=changed(factors.tape.a)))
    without = factors._replace(weight=factors.weight.at[2].set(0))
    assert_close(jb.clipped_sum(0.5, 3)(bad), jb.clipped_sum(0.5, 3)(without))


def test_norms_are_rounded_up_by_what_their_rounding_may_hide():
    """(2 + √n/4 + n/400) ε, of norms of rows of n."""
    found = rounded_up(jnp.ones(1), 4_000_000) - 1
    np.testing.assert_allclose(found, np.finfo(np.float32).eps * (2 + 500 + 10_000), rtol=1e-4)


def test_a_group_is_clipped_to_less_by_what_its_rounding_may_hide():
    """By 16 times what one norm may hide, and 2 ε of what its members add up to."""
    delta, a, zeros = jnp.ones((2, 1)), jnp.zeros((2, 4000)), jnp.zeros((2, 1))
    tape = jb.Tape((zeros,), (a, zeros))
    factors = jb.Factors(jnp.zeros(2), tape, (delta,), zeros, jnp.ones(2))
    found = jb.group_clip(factors, [0, 1], 2, 0.5).delta[0]
    margin = float(np.finfo(np.float32).eps) * (16 * (2 + 4000**0.5 / 4 + 4000 / 400) + 2)
    np.testing.assert_allclose(found, 0.5 / (1 + margin), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_floats_are_clipped_in_float32(dtype):
    params = jb.init(NET, jax.random.key(0), dtype=dtype)
    factors = jb.backprop(NET, params, jnp.ones((6, 4)), jnp.arange(6) % 3)
    for bounded in (
        jb.clip(factors, 0.1), jb.clip_layers(factors, [0.1, 0.1]), jb.normalize(factors),
        jb.scale(factors, jnp.ones(6) / 3), jb.group_clip(factors, jnp.arange(6), 6, 0.1),
    ):  # fmt: skip
        assert all(d.dtype == jnp.float32 for d in bounded.delta)
        assert jnp.isfinite(jb.squared_norms(bounded)).all()
    limit = float(jnp.sqrt(jb.squared_norms(jb.clip(factors, 0.1)).max()))
    assert limit == pytest.approx(0.1, rel=1e-3)


def test_training_with_clipping_and_observing_is_one_trace():
    traces = []

    def f(z):
        traces.append(z.shape)
        return jnp.tanh(z)

    net = jb.Network((4, 5, 3), jb.Activation("counted", f, jb.tanh.df))
    params, x, t = problem(net, batch=8)
    with jax.numpy_dtype_promotion("standard"):
        optimizer = optax.chain(optax.add_noise(0.1, 0.0, 0), optax.sgd(0.1))
        state = jb.init_state(net, optimizer, jax.random.key(0), params=params)
        info: Any = None
        for _ in range(5):
            state, info = jb.train_epoch(
                net, optimizer, state, x, t, batch_size=4,
                gradient=jb.clipped_mean(0.5), observe=jb.observe_all(net),
            )  # fmt: skip
    assert len(traces) == 1
    assert info.observed.norms.shape == (2, 4)


def test_a_clipped_mean_takes_no_more_memory_than_the_factors():
    net = jb.Network((256, 256, 256, 10), jb.relu)
    params, x, t = problem(net, batch=64)
    plain, clipped = (
        temporaries(
            jax.jit(lambda p, x, t, f=f: f(jb.backprop(net, p, x, t))).lower(params, x, t).compile()
        )
        for f in (jb.mean_gradient, jb.clipped_mean(1.0))
    )
    assert clipped <= 1.1 * plain + 4 * 64 * (256 + 256 + 10)


FACTORS = jb.backprop(NET, *problem(NET))
OTHER = jb.backprop(NETS["linear"], *problem(NETS["linear"]))
BAD = {
    "negative limit": (lambda: jb.clip(FACTORS, -1), "max_norm: expected at least 0, got -1"),
    "NaN limit": (lambda: jb.clip(FACTORS, jnp.nan), "max_norm: expected at least 0, got nan"),
    "a limit each": (lambda: jb.clip(FACTORS, jnp.ones(6)), r"max_norm: expected shape \(\)"),
    "no limit": (lambda: jb.clip(FACTORS, None), "max_norm: expected an array of real numbers"),
    "negative clipped_mean": (lambda: jb.clipped_mean(-2.0), "max_norm: .* got -2"),
    "limits": (lambda: jb.clip_layers(FACTORS, [1.0]), r"max_norms: expected shape \(2,\)"),
    "limit of a layer": (lambda: jb.clip_layers(FACTORS, [1.0, -1.0]), "max_norms: expected at"),
    "gamma": (lambda: jb.normalize(FACTORS, gamma=-1), "gamma: expected at least 0"),
    "c": (lambda: jb.scale(FACTORS, jnp.ones(5)), r"c: expected shape \(6,\), got \(5,\)"),
    "group id": (
        lambda: jb.group_gradients(FACTORS, [0, 0, 3, 0, 0, 0], 3),
        "groups: expected ids from 0 to 2, got 3 at row 2"),
    "group id -1": (lambda: jb.group_clip(FACTORS, [0, -1] * 3, 3, 1.0), "groups: .* row 1"),
    "groups' shape": (lambda: jb.group_gradients(FACTORS, [0, 1], 3), "groups: expected integers"),
    "groups' dtype": (lambda: jb.group_gradients(FACTORS, jnp.ones(6), 3), "groups: .* float32"),
    "num_groups": (lambda: jb.group_gradients(FACTORS, [0] * 6, 0), "num_groups: expected a whole"),
    "other network": (lambda: jb.gram(FACTORS, OTHER), r"other: .* \(4, 5, 3\), got \(4, 3\)"),
    "direction": (
        lambda: jb.inner_products(FACTORS, jb.mean_gradient(OTHER)), "direction: expected .w, b."),
    "no direction": (lambda: jb.inner_products(FACTORS, 3), "direction: .* got int"),
    "curvature": (lambda: jb.takeuchi(FACTORS, jb.mean_gradient(OTHER)), "curvature: expected"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_names_the_argument(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=f"^{message}"):
        call()


def test_traced_bad_values_give_nan():
    traced = jax.jit(lambda limit: jb.clip(FACTORS, limit).delta)
    assert all(jnp.isnan(d).all() for d in traced(-1.0) + traced(jnp.nan))
    ids = jnp.array([0, 1, 2, 3, 0, 1])
    sums = jax.jit(lambda ids: jb.group_gradients(FACTORS, ids, 3))(ids)
    norms = jax.jit(lambda ids: jb.group_squared_norms(FACTORS, ids, 3))(ids)
    assert all(jnp.isnan(leaf).all() for leaf in jax.tree.leaves((sums, norms)))


def test_a_bound_that_is_known_stays_what_it_is_inside_a_trace():
    with jax.enable_x64(True):
        net = jb.Network((4, 3))
        params, x, t = problem(net, dtype=jnp.float64)
        factors = jb.backprop(net, params, x, t)
        for made in (jb.clipped_mean, lambda bound: jb.clipped_sum(bound, 3)):
            inside = jax.jit(lambda factors, made=made: made(0.1)(factors))(factors)
            assert_close(inside, made(0.1)(factors))
            traced = jax.jit(lambda c, factors, made=made: made(c)(factors))(0.1, factors)
            assert_close(traced, made(0.1)(factors))
