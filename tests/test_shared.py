"""Quantities where weights are shared by positions: each way there, at its limits, in blocks."""

import itertools
from typing import Any

import battery
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, problem, temporaries
from maps import Banded, Circulant, doubled
from materialised import Case, close
from test_kernel import jacobian
from test_ways import taking

import jbackprop as jb
from jbackprop import Conv, MaxPool, MeanPool
from jbackprop.core import examples
from jbackprop.core.linear import sees_at_most
from jbackprop.core.maps import rows_of
from jbackprop.quantities import ghost, matrices
from jbackprop.quantities.layers import Shared, layers_of

NET = jb.Network(
    ((6, 5, 2), Conv(4, 3, padding=1), MaxPool(2, stride=1), Conv(3, 2, stride=2), 3), jb.tanh
)
SMALL = jb.Network(((4, 1), Conv(2, 2), MeanPool()), jb.tanh)


def factors_of(net=NET, batch=6, seed=0, **rest):
    params, x, t = problem(net, batch=batch, seed=seed)
    return jb.backprop(net, params, x, t, **rest)


def exact(factors):
    """Every example's gradient from the same factors, by layers, in float64."""
    with jax.enable_x64(True):
        wide = lambda v: jnp.asarray(np.asarray(v, np.float64))
        gradients = jb.example_gradients(jax.tree.map(wide, factors))
        return [Case.flat(layer, len(factors.cost)) for layer in gradients]


def first_of(factors) -> Any:
    return layers_of(factors)[0]


def norms_of(factors):
    return np.stack([np.linalg.norm(g, axis=1) for g in exact(factors)], axis=1)


@pytest.mark.parametrize("way", [True, False])
def test_ghost_and_direct_norms_are_the_same(way, monkeypatch):
    monkeypatch.setattr(ghost, "prefers_ghost", lambda layer: way)
    factors = factors_of()
    with jax.disable_jit():
        found = jb.layer_squared_norms(factors)
    close(found, norms_of(factors) ** 2)


def test_the_shorter_way_is_known_from_the_shapes():
    few, many = jb.Network(((4, 4, 30), Conv(40, 3), 2)), jb.Network(((12, 12, 3), Conv(4, 3), 2))
    first, second = (first_of(factors_of(net, batch=2)) for net in (few, many))
    assert ghost.prefers_ghost(first)  # 2 · 4 (270 + 40) < 270 · 40
    assert not ghost.prefers_ghost(second)  # 2 · 100 (27 + 4) > 27 · 4
    own = first_of(factors_of(jb.Network((5, Circulant(), 2))))
    assert isinstance(own, Shared)
    assert not ghost.prefers_ghost(own)


def cancelling(size):
    """Factors of one convolution, whose examples' δ all but add up to nothing over positions."""
    rng = np.random.default_rng(0)
    net = jb.Network(((5, 30), Conv(40, 2), MeanPool()))
    factors = factors_of(net)
    row = rng.normal(size=(6, 1, 30))
    delta = rng.normal(size=(6, 4, 40)) * np.array([1.0, -1, 1, -1])[:, None]
    delta -= delta.mean(1, keepdims=True) * (1 - size)
    a = jnp.asarray(np.broadcast_to(row, (6, 5, 30)), jnp.float32)
    tape = factors.tape._replace(a=(a, *factors.tape.a[1:]))
    return factors._replace(delta=(jnp.asarray(delta, jnp.float32),), tape=tape)


def test_who_else_is_there_changes_no_norm_of_a_clip():
    """One example that cancels is measured directly, and the others as ever."""
    one, many = cancelling(1e-3), cancelling(1.0)
    pick = lambda u, v: jnp.concatenate([u[:1], v[1:]])
    both = jax.tree.map(pick, one, many)
    alone, beside = jb.clip(many, 0.1), jb.clip(both, 0.1)
    np.testing.assert_array_equal(beside.delta[0][1:], alone.delta[0][1:])
    assert not (beside.delta[0][0] == alone.delta[0][0]).all()


@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-5])
def test_where_positions_cancel_ghost_norms_are_taken_directly(size):
    factors = cancelling(size)
    assert ghost.prefers_ghost(first_of(factors))
    found, true = np.sqrt(jb.squared_norms(factors)), norms_of(factors)[:, 0]
    np.testing.assert_allclose(found, true, rtol=2e-6 / size)


@pytest.mark.parametrize("limit", [1e-4, 0.1, 1.0])
@pytest.mark.parametrize("name", ["two convolutions", "one that cancels", "nothing is left", "own"])
def test_what_is_clipped_is_within_its_bound_exactly(name, limit):
    """In float64, of the very factors that come out."""
    factors = {
        "two convolutions": factors_of, "one that cancels": lambda: cancelling(1e-3),
        "nothing is left": lambda: cancelling(0.0),
        "own": lambda: factors_of(jb.Network((7, Circulant(), 2), jb.tanh)),
    }[name]()  # fmt: skip
    norms = lambda factors: np.sqrt((norms_of(factors) ** 2).sum(1))
    before, after = norms(factors), norms(jb.clip(factors, limit))
    assert (after <= limit).all()
    if name in ("two convolutions", "own"):
        np.testing.assert_allclose(after, np.minimum(before, limit), rtol=1e-4)
    layers = jb.clip_layers(factors, [limit] * len(factors.delta))
    assert (norms_of(layers) <= limit).all()
    groups = np.arange(6) // 2
    sums = [np.add.reduceat(g, [0, 2, 4]) for g in exact(jb.group_clip(factors, groups, 3, limit))]
    assert (np.linalg.norm(np.concatenate(sums, 1), axis=1) <= limit).all()


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e17, 1e22])
@pytest.mark.parametrize("way", [True, False])
def test_norms_are_right_wherever_they_are_numbers(size, way, monkeypatch):
    monkeypatch.setattr(ghost, "prefers_ghost", lambda layer: way)
    factors = factors_of(jb.Network(((5, 2), Conv(3, 2), MeanPool()), jb.tanh))
    true = norms_of(factors)[:, 0]
    delta = factors.delta[0].at[jnp.array([1, 4])].multiply(size)
    with jax.disable_jit():
        found = jb.grand(factors._replace(delta=(delta,)))
    np.testing.assert_allclose(found, true * np.where([0, 1, 0, 0, 1, 0], size, 1), rtol=1e-5)


def test_of_no_gradient_nothing_is_clipped_and_no_slope_is_nan():
    factors = jax.tree.map(jnp.zeros_like, factors_of())._replace(weight=jnp.ones(6))
    assert jb.squared_norms(factors).tolist() == [0.0] * 6
    norm = lambda c: jnp.sum(jb.grand(jb.clip(jb.scale(factors, c), 1.0)))
    assert jax.grad(norm)(jnp.ones(6)).tolist() == [0.0] * 6


def test_a_clip_that_does_nothing_has_the_derivative_of_nothing():
    factors = factors_of()
    mean = lambda c, by: jb.mean_gradient(by(jb.scale(factors, c)))[0].w.sum()
    ours = jax.grad(mean)(jnp.ones(6), lambda f: jb.clip(f, 1e6))
    assert_close(ours, jax.grad(mean)(jnp.ones(6), lambda f: f))


def test_a_sum_leaves_out_whose_gradient_is_no_number():
    params, x, t = problem(NET)
    bad = jb.backprop(NET, params, x.at[2].set(jnp.inf), t)
    good = jb.backprop(NET, params, x, t, weight=jnp.array([1.0, 1, 0, 1, 1, 1]))
    assert_close(jb.clipped_sum(0.5, 6)(bad), jb.clipped_sum(0.5, 6)(good))


HOSTILE = [
    [1e20, -1e20, 1e20, 1], [3e38, 3e38, -3e38, 1], [np.nan, 0, 0, 1], [np.inf, 1, 1, 1],
    [1e-30, 1e-30, 1e-30, 0], [1.8e19, 0, 0, 1], [1e4, -1e4, 3e3, 0],
]  # fmt: skip


@pytest.mark.parametrize("way", [True, False])
def test_whatever_one_example_is_it_moves_a_sum_by_no_more_than_the_bound(way, monkeypatch):
    monkeypatch.setattr(ghost, "prefers_ghost", lambda layer: way)
    net = jb.Network(((4, 1), Conv(2, 2), MeanPool(), 2), jb.tanh, jb.softmax, jb.cross_entropy)
    params, x, _ = problem(net, batch=len(HOSTILE) + 1)
    x = x.at[1:, :, 0].set(jnp.asarray(HOSTILE))
    t = jnp.arange(len(x)) % 2
    release = jax.jit(lambda w: jb.clipped_sum(0.5, 4)(jb.backprop(net, params, x, t, weight=w)))
    nobody = np.zeros(len(x), np.float32)
    for row in range(len(x)):
        alone = nobody.copy()
        alone[row] = 1
        moved = optax.tree.norm(release(alone))
        assert float(moved) <= 0.5 / 4 * (1 + 1e-6), HOSTILE[row - 1]


# ---- blocks of examples


@pytest.mark.parametrize("way", [True, False])
@pytest.mark.parametrize("last", ["held", "not held"])
def test_a_gradient_beyond_every_number_is_left_out_of_a_sum(last, way, monkeypatch):
    """δ and a are numbers, and their products none; or δ meets nothing but zeros, in units whose
    product is none."""
    monkeypatch.setattr(ghost, "prefers_ghost", lambda layer: way)
    wide = Conv(2, 2) if last == "held" else Conv(20, 3)
    factors = factors_of(jb.Network(((4, 1), wide, MeanPool()), jb.tanh), batch=4)
    assert way or (ghost.held_of(first_of(factors)) is not None) == (last == "held")
    delta, a = factors.delta[0].at[0].multiply(1e25), factors.tape.a[0].at[0].multiply(1e25)
    delta = delta.at[1].set(0).at[1, 0].set(1e30)
    a = a.at[1].set(0).at[1, 3].set(1e30)
    tape = factors.tape._replace(a=(a, *factors.tape.a[1:]))
    found = factors._replace(delta=(delta,), tape=tape)
    blank = lambda v: v.at[0].set(0)
    without = jax.tree.map(blank, found)._replace(weight=jnp.array([0.0, 1, 1, 1]))
    assert_close(jb.clipped_sum(0.5, 4)(found), jb.clipped_sum(0.5, 4)(without))
    assert_close(jb.clipped_mean(0.5)(found)[0].w * 4, jb.clipped_mean(0.5)(without)[0].w * 3)
    assert jb.grand(found)[1] == pytest.approx(wide.n**0.5 * 1e30)


@pytest.mark.parametrize("size", [1e-20, 1e-15])
def test_squares_below_every_number_are_no_nan(size):
    factors = factors_of(SMALL)
    tape = factors.tape._replace(a=(factors.tape.a[0] * size, factors.tape.a[1]))
    factors = factors._replace(delta=(factors.delta[0] * size**1.5,), tape=tape)
    for found in (jb.second_moment(factors), jb.variance(factors)):
        assert not any(jnp.isnan(leaf).any() for leaf in jax.tree.leaves(found))


FRESH = itertools.count(10)


def traced_anew(factors):
    """The same factors, but for targets of a new shape, which no quantity looks at."""
    return factors._replace(t=jnp.zeros((len(factors.t), next(FRESH))))


BLOCKS = {
    "norms": jb.squared_norms, "second moment": jb.second_moment, "gram": jb.gram,
    "kronecker": lambda f: jb.kronecker_factors(f),
    "reduced": lambda f: jb.kronecker_factors(f, sharing="reduce"), "sum": jb.sum_gradient,
}  # fmt: skip


@pytest.mark.long(1)
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_of_any_size_give_the_same(name, monkeypatch):
    """Of 19 examples: in blocks of 8, one by one, or in even parts, and with a rest."""
    factors, quantity = factors_of(batch=19), BLOCKS[name]
    whole = quantity(factors)
    for room, held in [(1, 0), (700, 1)]:
        monkeypatch.setattr(examples, "ROOM", {"cpu": room})
        monkeypatch.setattr(matrices, "HELD", held)
        assert_close(quantity(traced_anew(factors)), whole)


@pytest.mark.parametrize(
    ("batch", "each", "least", "expected"),
    [(64, 2**17, 1, 8), (64, 2**20 // 9, 1, 8), (61, 2**17, 1, 8), (7, 1, 1, 7), (64, 2**30, 1, 1),
     (64, 2**30, 8, 8), (5, 2**30, 8, 5), (19, 2**18, 1, 4), (6, 0, 1, 6)],
)  # fmt: skip
def test_the_size_of_a_block(batch, each, least, expected):
    """What there is room for; evenly, unless that would be half of it or less."""
    assert examples.block_size(batch, each, least=least) == expected


def test_products_of_a_map_without_rows_go_by_parts_of_its_weights(monkeypatch):
    monkeypatch.setattr(matrices, "HELD", 0)
    factors = factors_of(jb.Network((7, Circulant(), 2), jb.tanh))
    g = np.concatenate(exact(factors), axis=1)
    close(jb.gram(traced_anew(factors)), g @ g.T)


# ---- the longer ways


@pytest.mark.long(1)
@pytest.mark.parametrize("net", [SMALL, jb.Network((3, Banded(2)), jb.tanh)], ids=["1-D", "own"])
def test_the_longer_way_gives_the_same_of_an_ordinary_batch(net, monkeypatch):
    taking(monkeypatch, lambda fine, plain, careful: careful())
    with jax.disable_jit():
        battery.quantities_are_those_of_all_gradients(jb, net)


def test_of_equal_examples_nothing_is_left_but_the_mean():
    factors = factors_of()
    alike = jax.tree.map(lambda v: jnp.broadcast_to(v[:1], v.shape), factors)
    alike = alike._replace(weight=jnp.array([1.0, 2, 0.5, 1, 3, 1]))
    assert not any(leaf.any() for leaf in jax.tree.leaves(jb.variance(alike)))
    assert float(jb.noise_scale(alike).trace) == 0
    assert float(jb.norm_test(alike)) == 0


@pytest.mark.long(1)
@pytest.mark.parametrize("spread", [1e-2, 1e-4])
def test_a_spread_below_the_mean_is_not_lost(spread):
    """Against deviations in float64, of factors that hardly differ from example to example."""
    factors = factors_of(batch=8)
    alike = lambda v: v[:1] + spread * (v - v[:1])
    tape = factors.tape._replace(a=tuple(map(alike, factors.tape.a)))
    factors = factors._replace(delta=tuple(map(alike, factors.delta)), tape=tape)
    g = np.concatenate(exact(factors), axis=1)
    away = g - g.mean(0)
    close(Case.flat(jax.tree.leaves(jb.variance(factors)), 1)[0], (away**2).mean(0), 1e-4)
    trace, m = (away**2).sum() / 7, (g.mean(0) ** 2).sum()
    np.testing.assert_allclose(jb.noise_scale(factors).trace, trace, rtol=1e-4)
    along = (away @ g.mean(0)) ** 2
    np.testing.assert_allclose(jb.inner_product_test(factors), along.sum() / 56 / m**2, rtol=1e-3)


@pytest.mark.parametrize("size", [1e-12, 1e25])
def test_products_and_moments_in_every_range(size):
    factors = factors_of(SMALL)
    delta = (factors.delta[0] * (1 / size),)
    tape = factors.tape._replace(a=(factors.tape.a[0] * size, factors.tape.a[1]))
    g = exact(factors._replace(delta=delta, tape=tape))[0]
    found = factors._replace(delta=delta, tape=tape)
    close(jb.gram(found), g @ g.T)
    w = Case.flat([jb.second_moment(found)[0].w], 1)[0]
    close(w, (g[:, : len(w)] ** 2).mean(0))
    direction = (jb.Layer(jnp.ones((2, 2, 1)), jnp.zeros(2)),)
    close(jb.inner_products(found, direction), g[:, : len(w)].sum(1), 1e-5)


def test_kronecker_factors_out_of_range_are_infinite_and_not_nan():
    factors = factors_of(SMALL)
    rows = jnp.arange(6)[:, None, None]
    delta = (factors.delta[0] * jnp.where(rows < 4, 1e25, -1e-25),)
    a = (factors.tape.a[0] * jnp.where(rows < 2, 1e-30, 1e22), factors.tape.a[1])
    found = factors._replace(delta=delta, tape=factors.tape._replace(a=a))
    for sharing in "expand", "reduce":
        for matrix in jb.kronecker_factors(found, sharing=sharing)[0]:
            assert jnp.isinf(matrix).any()
            assert not jnp.isnan(matrix).any()


# ---- what else the factors tell


@pytest.mark.long(1)
@pytest.mark.parametrize(
    "net", [NET, SMALL, jb.Network((4, Circulant(), 2), jb.tanh)], ids=range(3)
)
def test_the_tangent_kernel_is_the_product_of_jacobians(net):
    params, x, _ = problem(net)
    j = jacobian(net, params, x)
    close(jb.empirical_ntk(net, params, x, x[:4], block_size=3), np.einsum("ikp,jkp->ij", j, j[:4]))
    each = jb.empirical_ntk(net, params, x, per_output=True)
    close(each, np.einsum("ikp,jkp->kij", j, j))


def test_units_are_channels():
    net = jb.Network(((4, 1), Conv(3, 1), MeanPool(), 2), jb.relu)
    w = jnp.array([[[1.0]], [[-1.0]], [[1.0]]])
    params = (jb.Layer(w, jnp.array([0.0, 0.0, 1.0])), jb.Layer(jnp.ones((2, 3)), jnp.zeros(2)))
    x = jnp.abs(jnp.arange(1.0, 9).reshape(2, 4, 1)).at[0, 0].set(-0.5)
    factors = jb.backprop(net, params, x, jnp.ones((2, 2)))
    found = jb.units(net, factors)
    assert found.saturated[0] == pytest.approx((1 + 7) / 24)  # of 24, one of the first and 7 others
    assert found.dead.tolist() == [0.0]
    masked = jb.backprop(net, params, x, jnp.ones((2, 2)), weight=jnp.array([0.0, 1]))
    assert_close(jb.units(net, masked).dead, jnp.array([1 / 3]))


def test_histograms_count_positions():
    factors = factors_of(weight=jnp.array([1.0, 0, 2, 1, 1, 1]))
    found = jb.histograms(factors, jnp.array([0.0]), jnp.array([0.0]))
    w = np.asarray(factors.weight, np.float64)
    for values, counts in zip(factors.tape.a[1:], found.a, strict=True):
        below = (np.asarray(values) < 0).reshape(6, -1).sum(1)
        assert_close(counts, jnp.array([w @ below, w @ (values[0].size - below)], jnp.float32))


@pytest.mark.long
def test_the_whole_panel_of_an_epoch():
    params, x, t = problem(NET, batch=8)
    optimizer = optax.sgd(0.1)
    state = jb.init_state(NET, optimizer, jax.random.key(0), params=params)
    _, info = jb.train_epoch(
        NET, optimizer, state, x, t, batch_size=4, observe=jb.observe_all(NET),
        gradient=jb.clipped_mean(1.0))  # fmt: skip
    rows = jb.epoch_order(state, 8)[:4]
    factors = jb.backprop(NET, params, x[rows], t[rows])
    assert_close(info.observed.norms[0], jb.grand(factors))
    assert_close(info.observed.noise.trace[0], jb.noise_scale(factors).trace)


def test_a_norm_of_small_floats_is_that_of_float32():
    factors = factors_of()
    small = jax.tree.map(lambda v: v.astype(jnp.float16), (factors.delta, factors.tape))
    back = jax.tree.map(lambda v: v.astype(jnp.float32), small)
    found = jb.squared_norms(factors._replace(delta=small[0], tape=small[1]))
    assert found.dtype == jnp.float32
    assert_close(found, jb.squared_norms(factors._replace(delta=back[0], tape=back[1])))


# ---- rows, and what does not fit


def test_a_subclass_with_a_way_of_its_own_has_no_rows():
    assert rows_of(Conv(2, 2)) is not None
    assert rows_of(doubled(Conv)(2, 2)) is None
    assert rows_of(Circulant()) is None
    factors = factors_of(jb.Network(((5, 3), doubled(Conv)(4, 2), 2), jb.tanh))
    close(jb.layer_squared_norms(factors), norms_of(factors) ** 2)


@pytest.mark.parametrize(
    "linear",
    [
        Conv(2, 3),
        Conv(2, 3, stride=2),
        Conv(2, 4, stride=3),
        Conv(2, 3, dilation=2),
        Conv(2, 9, padding=4),
    ],
    ids=str,
)
def test_how_many_rows_may_hold_an_input(linear):
    a = jnp.ones((9, 9, 1))
    seen = linear.transpose(jnp.ones(linear.w_shape(a.shape)), jnp.ones(linear.z_shape(a.shape)),
                            a.shape) / 2  # fmt: skip
    assert float(seen.max()) <= sees_at_most(linear, a.shape)


def test_what_does_not_fit_is_named():
    factors, other = factors_of(), factors_of(SMALL)
    with pytest.raises(ValueError, match=r"^other: expected factors of a network with the maps"):
        jb.gram(factors, other)
    with pytest.raises(ValueError, match=r"^direction: expected \(w, b\) .*\(4, 3, 3, 2\)"):
        jb.inner_products(factors, jb.mean_gradient(other))
    with pytest.raises(ValueError, match=r"^sharing: expected .expand. or .reduce., got 'both'"):
        jb.kronecker_factors(factors, sharing="both")
    own = factors_of(jb.Network((4, Circulant(), 2)))
    with pytest.raises(ValueError, match=r"^factors: expected maps with rows, .*Circulant"):
        jb.kronecker_factors(own)


def test_no_matrix_is_held_for_every_example():
    """What a clipped mean allocates is what a plain one does, and a block."""
    net = jb.Network(((14, 14, 8), Conv(32, 5), MaxPool(2), Conv(64, 3), 10), jb.tanh)
    params, x, t = problem(net, batch=64)
    of = lambda gradient: temporaries(
        jax.jit(lambda p, x, t: gradient(jb.backprop(net, p, x, t))).lower(params, x, t).compile()
    )
    plain, clipped = of(jb.mean_gradient), of(jb.clipped_mean(1.0))
    assert clipped <= 1.3 * plain
    all_of_them = 4 * 64 * sum(w.size for w, _ in params)
    assert clipped - plain < all_of_them / 4
