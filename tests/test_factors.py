"""A batch is its examples: weights, masks, labels, order, structure, and what jit users feel."""

from dataclasses import dataclass

import battery
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import HEADS, assert_close, head_name, problem, temporaries

import jbackprop as jb

NET = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)


@pytest.mark.parametrize("pair", HEADS, ids=head_name)
def test_absent_rows_change_nothing(pair):
    battery.absent_rows_change_nothing(jb, jb.Network((4, 5, 3), jb.relu, *pair))


@pytest.mark.parametrize("pair", HEADS, ids=head_name)
def test_autodiff_of_mean_cost_survives_absent_rows_of_nan(pair):
    net = jb.Network((4, 5, 3), jb.tanh, *pair)
    params, x, t = problem(net)
    weight = np.array([True, True, False, True, True, True])
    x, t = x.at[2].set(jnp.nan), t.at[2].set(jnp.nan)
    cost, gradient = jb.value_and_grad(net, params, x, t, weight=weight)
    theirs = jax.value_and_grad(jb.mean_cost, argnums=1)(net, params, x, t, weight=weight)
    assert_close((cost, gradient), theirs)


def test_labels_are_one_hot_or_nan():
    battery.labels_are_one_hot_or_nan(jb)


def test_saturated_heads_are_right():
    battery.saturated_heads_are_right(jb)


def test_a_batch_is_its_examples():
    params, x, t = problem(NET)
    factors = jb.backprop(NET, params, x, t)
    for i in range(len(x)):
        tape = jb.forward(NET, params, x[i])
        row = jax.tree.map(lambda leaf, i=i: leaf[i], factors)
        assert_close(row.tape, tape)
        assert_close(row.delta, jb.backward(NET, params, tape, t[i]))
    assert_close(factors.t, t)
    assert_close(factors.weight, jnp.ones(len(x)))


def test_a_batch_is_the_weighted_sum_of_its_parts_in_any_order():
    params, x, t = problem(NET)
    whole = jb.value_and_grad(NET, params, x, t)
    parts = [jb.value_and_grad(NET, params, x[s], t[s]) for s in (slice(2), slice(2, 6))]
    assert_close(whole, jax.tree.map(lambda a, b: a / 3 + b * 2 / 3, *parts))
    order = jnp.array([5, 0, 3, 1, 4, 2])
    assert_close(jb.value_and_grad(NET, params, x[order], t[order]), whole)
    twice = jnp.array([2.0, 1, 1, 1, 1, 1])
    again = jnp.array([0, 0, 1, 2, 3, 4, 5])
    weighted = jb.value_and_grad(NET, params, x, t, weight=twice)
    assert_close(weighted, jb.value_and_grad(NET, params, x[again], t[again]))


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int32, np.float64])
def test_weight_of_any_real_dtype(dtype):
    params, x, t = problem(NET)
    weight = np.array([1, 0, 1, 1, 0, 1], dtype)
    expected = jb.value_and_grad(NET, params, x, t, weight=weight.astype(np.float32))
    assert_close(jb.value_and_grad(NET, params, x, t, weight=weight), expected)


def test_no_weight_at_all_gives_zero():
    params, x, t = problem(NET)
    cost, gradient = jb.value_and_grad(NET, params, x, t, weight=jnp.zeros(6))
    assert not any(leaf.any() for leaf in jax.tree.leaves((cost, gradient)))
    assert float(jb.mean_cost(NET, params, x, t, weight=jnp.zeros(6))) == 0


def test_zero_cost_gives_zero_gradient():
    net = jb.Network((4, 5, 3))
    params, x, _ = problem(net)
    cost, gradient = jb.value_and_grad(net, params, x, jb.predict(net, params, x))
    assert float(cost) < 1e-12
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(gradient)) < 1e-6


def test_a_traced_negative_or_nan_weight_gives_nan():
    params, x, t = problem(NET)
    step = jax.jit(lambda weight: jb.value_and_grad(NET, params, x, t, weight=weight))
    for bad in (-1.0, jnp.nan):
        leaves = jax.tree.leaves(step(jnp.ones(6).at[3].set(bad)))
        assert all(jnp.isnan(leaf).all() for leaf in leaves)


def test_a_nan_row_poisons_its_own_factors_only():
    params, x, t = problem(NET)
    factors = jb.backprop(NET, params, x.at[1].set(jnp.nan), t)
    clean = jb.backprop(NET, params, x, t)
    others = jnp.array([0, 2, 3, 4, 5])
    pick = lambda f: jax.tree.map(lambda leaf: leaf[others], f)
    assert_close(pick(factors), pick(clean))
    assert jnp.isnan(factors.cost[1])
    assert all(jnp.isnan(d[1]).all() for d in factors.delta)


@pytest.mark.parametrize("form", [list, tuple])
def test_gradient_has_the_structure_of_the_parameters(form):
    params, x, t = problem(NET)
    other = form(form(layer) for layer in params)
    _, gradient = jb.value_and_grad(NET, other, x, t)
    assert jax.tree.structure(gradient) == jax.tree.structure(other)
    moved = jb.sgd_step(other, gradient, 0.1)
    expected = [[w - 0.1 * dw, b - 0.1 * db]
                for (w, b), (dw, db) in zip(params, gradient, strict=True)]  # fmt: skip
    assert_close(jax.tree.leaves(moved), jax.tree.leaves(expected))


def test_label_dtypes_agree_also_with_more_classes_than_uint8_counts():
    net = jb.Network((2, 300), output=jb.softmax, cost=jb.cross_entropy)
    params, x, _ = problem(net)
    labels = np.array([0, 7, 255, 3, 2, 1])
    expected = jb.value_and_grad(net, params, x, jnp.asarray(labels))
    for dtype in (np.uint8, np.int16, np.uint32, np.int64):
        assert_close(jb.value_and_grad(net, params, x, labels.astype(dtype)), expected)


def test_backprop_under_a_rule_with_noise_gives_every_example_its_own_key():
    noise = jb.Rule("noise", lambda s: jax.random.normal(s.key, s.slope.shape))
    params, x, t = problem(NET)
    ours = jb.backprop(NET, params, x, t, rule=noise, key=jax.random.key(0))
    assert len(jnp.unique(ours.delta[0])) == ours.delta[0].size
    assert_close(ours, jb.backprop(NET, params, x, t, rule=noise, key=jax.random.key(0)), 0)
    other = jb.backprop(NET, params, x, t, rule=noise, key=jax.random.key(1))
    assert not jnp.allclose(ours.delta[0], other.delta[0])


def test_works_under_jit_vmap_and_eval_shape():
    params, x, t = problem(NET)
    factors = jb.backprop(NET, params, x, t)
    assert_close(jax.jit(jb.backprop, static_argnums=0)(NET, params, x, t), factors)
    shapes = jax.eval_shape(lambda *a: jb.backprop(NET, *a), params, x, t)
    assert jax.tree.map(jnp.shape, factors) == jax.tree.map(lambda s: s.shape, shapes)
    many = jax.tree.map(lambda p: jnp.stack([p, 2 * p]), params)
    costs, gradients = jax.vmap(lambda p: jb.value_and_grad(NET, p, x, t))(many)
    second = jb.value_and_grad(NET, jax.tree.map(lambda p: 2 * p, params), x, t)
    assert_close((costs[1], jax.tree.map(lambda g: g[1], gradients)), second)


def test_mean_gradient_never_forms_a_gradient_per_example():
    net = jb.Network((128, 128, 128), jb.relu)
    params, x, t = problem(net, batch=64)
    step = jax.jit(lambda *a: jb.value_and_grad(net, *a))
    assert (
        temporaries(step.lower(params, x, t).compile()) < 64 * 128 * 128
    )  # a quarter of one layer's B × P floats


def test_masked_rows_leave_autodiff_finite_where_a_cost_is_singular_at_zero():
    """An output of 0 and a ground truth of 0: xlogy'(0, 0) and √'(0) are 0/0."""
    root = jb.Cost("root", lambda y, t: jnp.hypot(*y - t), lambda y, t: (y - t) / jnp.hypot(*y - t))
    params = (jb.Layer(jnp.full((2, 4), 0.05), jnp.zeros(2)),)
    mine = jb.Activation("mine", jb.tanh.f, jb.tanh.df)  # trusted to give probabilities
    _, x, t = problem(jb.Network((4, 2), output=mine, cost=jb.cross_entropy))
    for cost in (jb.cross_entropy, root):
        net = jb.Network((4, 2), output=mine, cost=cost)
        weight = jnp.array([1.0, 1, 0, 1, 1, 1])
        ours = jb.value_and_grad(net, params, jnp.abs(x), t, weight=weight)
        theirs = jax.value_and_grad(jb.mean_cost, argnums=1)(
            net, params, jnp.abs(x), t, weight=weight
        )
        assert_close(ours, theirs)


def test_a_weight_may_be_closed_over():
    params, x, t = problem(NET)
    weight = jnp.array([1.0, 0, 2, 1, 1, 0])
    ours = jax.jit(lambda p: jb.value_and_grad(NET, p, x, t, weight=weight))(params)
    assert_close(ours, jb.value_and_grad(NET, params, x, t, weight=weight))


def test_a_label_that_no_int32_holds_is_nan_and_not_another_class():
    params, x, _ = problem(NET)
    for labels in ([0, 1, 2, 0, 2**32 + 1, 1], np.array([0, 1, 2, 0, 2**40 + 2, 1], np.uint64)):
        assert jnp.isnan(jb.backprop(NET, params, x, labels).cost).tolist() == [
            i == 4 for i in range(6)
        ]


@jax.numpy_dtype_promotion("standard")
def test_every_gradient_has_the_dtype_of_the_parameters_whatever_a_rule_or_cost_returns():
    params, x, t = problem(NET)
    small = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    wide = jb.Rule("wide", lambda s: s.slope.astype(jnp.float32))
    cost = jb.Cost(
        "wide",
        lambda y, t: jnp.sum(y).astype(jnp.float32),
        lambda y, t: jnp.ones_like(y, jnp.float32),
    )
    net = jb.Network((4, 5, 3), jb.tanh, cost=cost)
    gradient = jb.mean_gradient(jb.backprop(net, small, x, t, rule=wide))
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.bfloat16)}
    tape = jb.forward(net, params, x[0])
    assert jb.propagate(net, params, tape, [1, 0, 0])[-1].dtype == jnp.float32


def test_gradient_follows_parameters_that_order_their_leaves_differently():
    @jax.tree_util.register_dataclass
    @dataclass
    class Turned:
        b: jax.Array
        w: jax.Array

        def __iter__(self):
            yield from (self.w, self.b)

    params, x, t = problem(NET)
    _, gradient = jb.value_and_grad(NET, [Turned(b=b, w=w) for w, b in params], x, t)
    _, expected = jb.value_and_grad(NET, params, x, t)
    assert isinstance(gradient[0], Turned)
    assert_close([tuple(layer) for layer in gradient], [tuple(layer) for layer in expected])


def test_a_rule_whose_init_keeps_nothing_needs_no_feedback():
    params, x, t = problem(NET)
    rule = jb.Rule("wrapped", jb.backpropagation.delta, init=lambda net, params, key: ())
    assert_close(jb.backprop(NET, params, x, t, rule=rule), jb.backprop(NET, params, x, t), 0)


@pytest.mark.long(1)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_small_floats_are_taken_in_float32(dtype):
    """1,024 gradients of 100 add up to more than a float16 holds; weights of 1e-6 to less."""
    net = jb.Network((1, 1))
    params = (jb.Layer(jnp.zeros((1, 1), dtype), jnp.zeros(1, dtype)),)
    x, t = jnp.ones((1024, 1)), jnp.full((1024, 1), -100.0)
    half = jnp.tile(jnp.array([0.0, 3.0]), 512)
    for weight in (None, jnp.full(1024, 1e-6), jnp.full(1024, 1e30), half):
        factors = jb.backprop(net, params, x, t, weight=weight)
        mean, total = jb.mean_gradient(factors), jb.sum_gradient(factors)
        assert [float(g[0]) for g in (mean[0].w[0], mean[0].b)] == [100, 100]
        assert mean[0].w.dtype == dtype
        assert total[0].w.dtype == jnp.float32
        expected = 100 * (1024 if weight is None else float(jnp.sum(weight)))
        assert float(total[0].w[0, 0]) == pytest.approx(expected, rel=5e-3)
        assert factors.cost.dtype == jnp.float32
        assert float(jb.mean_cost(net, params, x, t, weight=weight)) == pytest.approx(5000)
        clipped = jb.sum_gradient(jb.clip(factors, 1e-5))  # a float16 δ of 1e-7 would be 0
        norms = jb.squared_norms(jb.clip(factors, 1e-5))
        assert float(norms.max()) == pytest.approx(1e-10, rel=1e-2)
        assert jnp.isfinite(clipped[0].w).all()
        assert float(jb.noise_scale(factors).trace) == pytest.approx(0, abs=1e-3)
        assert float(jb.variance(factors)[0].b[0]) == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("pair", HEADS, ids=head_name)
def test_the_slope_of_the_mean_cost_in_a_weight_of_0_is_its_limit(pair):
    """(C_i - C̄) / Σw: where learning to reweight starts."""
    net = jb.Network((4, 5, 3), jb.tanh, *pair)
    params, x, t = problem(net)
    weight = jnp.array([1.0, 0, 2, 1, 0, 0.5])
    t, x = t.at[4].set(jnp.nan), x.at[4].set(jnp.nan)
    slope = jax.jit(jax.grad(lambda w: jb.mean_cost(net, params, x, t, weight=w)))
    costs = jb.backprop(net, params, x, t).cost
    mean = jb.mean_cost(net, params, x, t, weight=weight)
    expected = ((costs - mean) / jnp.sum(weight)).at[4].set(-mean / jnp.sum(weight))
    assert_close(slope(weight)[:4], expected[:4])
    assert jnp.isfinite(slope(weight)).all()
    near = slope(weight.at[1].set(1e-4))
    np.testing.assert_allclose(slope(weight)[1], near[1], rtol=1e-2, atol=1e-4)


def test_learning_to_reweight_has_its_slope_through_the_gradient_too():
    """∂/∂w_i of the cost elsewhere after a step: -η ⟨g_i - ḡ, ∇⟩ / Σw, also at w_i = 0."""
    params, x, t = problem(NET)
    weight = jnp.array([1.0, 0, 1, 1, 0, 1])
    inner = jax.grad(lambda p, w: jb.mean_cost(NET, p, x, t, weight=w))
    after = lambda w: jb.mean_cost(NET, jb.sgd_step(params, inner(params, w), 0.1), x[:2], t[:2])
    slope = jax.jit(jax.grad(after))(weight)
    moved = jb.sgd_step(params, inner(params, weight), 0.1)
    outer = jax.grad(lambda p: jb.mean_cost(NET, p, x[:2], t[:2]))(moved)
    every = jb.inner_products(jb.backprop(NET, params, x, t), outer)
    expected = -0.1 * (every - weight @ every / 4) / 4
    np.testing.assert_allclose(slope, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("bad", [jnp.inf, -jnp.inf, 1e39, -1.0, float("nan")])
def test_a_weight_is_finite(bad):
    params, x, t = problem(NET)
    weight = [1.0, 1, bad, 1, 1, 1]
    with pytest.raises(ValueError, match=r"^weight: expected finite numbers .* at row 2"):
        jb.backprop(NET, params, x, t, weight=weight)
    traced = jax.jit(lambda w: jb.mean_gradient(jb.backprop(NET, params, x, t, weight=w)))
    if bad != 1e39:
        assert jnp.isnan(traced(jnp.array(weight))[0].w).all()
    with pytest.raises(ValueError, match=r"^weight: expected 0 or numbers of at least 1.18e-38"):
        jb.backprop(NET, params, x, t, weight=[1.0, 1, 1e-40, 1, 1, 1])


def test_one_array_in_two_places_has_a_gradient_in_each():
    """As `jax.grad` has it, whatever the structure."""
    net = jb.Network((3, 3, 3), jb.tanh)
    w, b = jnp.eye(3) * 0.3, jnp.zeros(3)
    _, x, t = problem(net)
    for params in (
        (jb.Layer(w, b), jb.Layer(w, b)),
        [[w, b], [w, b]],
        (jb.Layer(w, b),) * 2,
        [(w, b), (w, jnp.ones(3))],
        [(w, b)] * 2,
    ):
        ours = jb.value_and_grad(net, params, x, t)[1]
        theirs = jax.grad(jb.mean_cost, argnums=1)(net, params, x, t)
        assert jax.tree.structure(ours) == jax.tree.structure(params)
        assert_close(ours, theirs)
