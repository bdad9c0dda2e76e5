"""A pass in bfloat16 or float16 beside parameters in float32: what is rounded, and what is not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, problem

import jbackprop as jb

SMALL = ["bfloat16", "float16"]
EPS = {name: float(jnp.finfo(name).eps) for name in SMALL}
KEY = jax.random.key(0)
Extra: Any = optax.GradientTransformationExtraArgs
NETS = {
    "dense": jb.Network((12, 16, 16, 5), jb.tanh, jb.softmax, jb.cross_entropy),
    "regression": jb.Network((12, 16, 3), jb.gelu, jb.identity, jb.squared_error),
    "convolution": jb.Network(
        ((6, 6, 2), jb.Conv(4, 3), jb.MaxPool(2), jb.Conv(3, 2), 4), jb.tanh, jb.sigmoid,
        jb.binary_cross_entropy,
    ),
}  # fmt: skip
each_net = pytest.mark.parametrize("net", NETS.values(), ids=NETS)
each_dtype = pytest.mark.parametrize("dtype", SMALL)


def rounded(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype).astype(leaf.dtype), tree)


@pytest.mark.long(1)
@each_net
@each_dtype
def test_the_gradient_is_that_of_float32_up_to_rounding(net, dtype):
    params, x, t = problem(net)
    exact = jb.backprop(net, params, x, t)
    factors = jb.backprop(net, params, x, t, compute_dtype=dtype)
    inside = factors.tape.z[:-1], factors.tape.a[:-1]
    assert {leaf.dtype.name for leaf in jax.tree.leaves(inside)} == {dtype}
    assert factors.tape.z[-1].dtype == factors.tape.a[-1].dtype == jnp.float32
    # of float16 δ has powers of two that only float32 holds
    wide = "float32" if dtype == "float16" else dtype
    assert {leaf.dtype.name for leaf in factors.delta} == {wide}
    assert factors.cost.dtype == factors.t.dtype == factors.weight.dtype == jnp.float32
    for of in (jb.mean_gradient, jb.sum_gradient, jb.clipped_mean(0.5), jb.second_moment):
        ours, theirs = of(factors), of(exact)
        assert_close(ours, theirs, 6 * EPS[dtype])
        assert {leaf.dtype.name for leaf in jax.tree.leaves(ours)} == {"float32"}


@pytest.mark.long(1)
@each_net
@each_dtype
def test_norms_are_within_a_hundredth(net, dtype):
    params, x, t = problem(net, batch=32)
    norms = lambda **how: jnp.sqrt(jb.squared_norms(jb.backprop(net, params, x, t, **how)))
    assert norms().dtype == norms(compute_dtype=dtype).dtype == jnp.float32
    smaller, exact = norms(compute_dtype=dtype), norms()
    np.testing.assert_allclose(smaller.mean(), exact.mean(), rtol=0.01)
    if net.cost != jb.squared_error:  # of y - t there may be little left, and y has 8 digits
        np.testing.assert_allclose(smaller, exact, rtol=0.01)


@each_dtype
def test_products_are_added_up_in_float32(dtype):
    """In a sum of 4,096 numbers rounded at every step the last would find no more room."""
    net = jb.Network((4096, 1, 1), jb.identity)
    params = [(jnp.ones((1, 4096)), jnp.zeros(1)), (jnp.ones((1, 1)), jnp.zeros(1))]
    x, t = jnp.full((4096, 4096), 0.125), jnp.zeros((4096, 1))
    factors = jax.jit(lambda: jb.backprop(net, params, x, t, compute_dtype=dtype))()
    assert float(factors.tape.z[0][0, 0]) == 512
    assert float(jb.sum_gradient(factors)[0].b[0]) == 512 * 4096


@each_dtype
@pytest.mark.parametrize("head", [(jb.softmax, jb.cross_entropy), (jb.identity, jb.huber)])
def test_the_cost_and_its_derivative_take_y_in_float32(dtype, head):
    """Rounded to 8 or 11 binary digits 1 - y would be 0."""
    net = jb.Network((1, 2), jb.tanh, *head)
    params, x = [(jnp.array([[8.0], [0]]), jnp.zeros(2))], jnp.ones((1, 1))
    t = jnp.array([[1.0, 0]])
    exact = jb.backprop(net, params, x, t)
    factors = jb.backprop(net, params, x, t, compute_dtype=dtype)
    np.testing.assert_array_equal(factors.cost, exact.cost)
    np.testing.assert_allclose(factors.delta[-1], exact.delta[-1], rtol=EPS[dtype])
    assert float(exact.cost[0]) != 0


def test_the_ground_truth_is_not_rounded():
    net = jb.Network((1, 1))
    params, x, t = (
        [(jnp.ones((1, 1)), jnp.zeros(1))],
        jnp.ones((1, 1)),
        jnp.full((1, 1), 1 + 2**-12),
    )
    factors = jb.backprop(net, params, x, t, compute_dtype="bfloat16")
    assert float(factors.delta[0][0, 0]) == -(2**-12)


@pytest.mark.parametrize("size", [1e-12, 1e-6, 1.0, 1e6, 1e12])
def test_float16_needs_no_loss_scale(size):
    """δ far outside of what float16 holds comes through all layers with its digits."""
    sizes = (12, *[16] * 6, 5)
    cost = jb.Cost("scaled", lambda y, t: size * jnp.sum(y * t), lambda y, t: size * t)
    net = jb.Network(sizes, jb.tanh, jb.identity, cost)
    params, x, t = problem(net)
    exact = jb.backprop(net, params, x, t)
    factors = jb.backprop(net, params, x, t, compute_dtype="float16")
    for ours, theirs in zip(factors.delta, exact.delta, strict=True):
        assert_close(ours, theirs, 8 * EPS["float16"])


def test_float16_loses_nothing_over_forty_layers():
    """δ falls by 1e-12 on the way: without a power of two for every layer nothing would arrive."""
    net = jb.Network((8, *[8] * 40, 3), jb.tanh, jb.identity, jb.squared_error)
    params, x, t = problem(net)
    params = tuple(jb.Layer(w / 2, b) for w, b in params)
    exact = jb.backprop(net, params, x, t)
    factors = jb.backprop(net, params, x, t, compute_dtype="float16")
    assert 0 < float(jnp.abs(exact.delta[0]).max()) < 1e-10
    assert_close(factors.delta, exact.delta, 0.05)


def test_a_row_without_error_stays_zero_and_one_of_nan_stays_nan():
    net = NETS["regression"]
    params, x, t = problem(net)
    t = t.at[0].set(jb.predict(net, rounded(params, "float16"), rounded(x, "float16"))[0])
    x = x.at[1].set(jnp.nan)
    weight = jnp.array([1.0, 0, 1, 1, 1, 1])
    factors = jb.backprop(net, params, x, t, compute_dtype="float16", weight=weight)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(factors))
    assert all(not leaf[1].any() for leaf in jax.tree.leaves((factors.delta, factors.tape)))
    spoilt = jb.backprop(net, params, x, t, compute_dtype="float16")
    assert all(bool(jnp.isnan(delta[1]).all()) for delta in spoilt.delta)
    assert all(bool(jnp.isfinite(delta[2:]).all()) for delta in spoilt.delta)


@each_dtype
def test_another_rule_sees_its_delta_as_it_is(dtype):
    """A power of two would change a rule that is not linear in δ."""
    seen = []

    def back(s):
        seen.append(s)
        return jnp.clip(s.w.T @ s.delta, -0.01, 0.01).astype(s.slope.dtype) * s.slope

    net = NETS["dense"]
    params, x, t = problem(net)
    rule = jb.Rule("bounded", back)
    ours = jb.backprop(net, params, x, t, rule=rule, compute_dtype=dtype)
    theirs = jb.backprop(net, params, x, t, rule=rule)
    assert {s.delta.dtype.name for s in seen[:2]} == {dtype}
    assert_close(jb.mean_gradient(ours), jb.mean_gradient(theirs), 8 * EPS[dtype])


@each_dtype
def test_autodiff_of_the_mean_cost_agrees(dtype):
    """jax.grad through the rounded forward pass; its δ has no powers of two."""
    net = NETS["dense"]
    params, x, t = problem(net)
    cost, ours = jb.value_and_grad(net, params, x, t, compute_dtype=dtype)
    mean_cost = lambda params: jb.mean_cost(net, params, x, t, compute_dtype=dtype)
    theirs = jax.grad(mean_cost)(params)
    assert_close(ours, theirs, 4 * EPS[dtype])
    np.testing.assert_array_equal(cost, mean_cost(params))


@pytest.mark.long(1)
@each_dtype
def test_training_keeps_parameters_and_optimizer_in_float32(dtype):
    net = NETS["dense"]
    params, x, t = problem(net, batch=10)
    for optimizer in (optax.sgd(1e-2, 0.9), optax.sgd(1e-4)):
        state = jb.init_state(net, optimizer, KEY, params=params)
        exact, cost = jb.train_epoch(net, optimizer, state, x, t, batch_size=4)
        after, info = jb.train_epoch(net, optimizer, state, x, t, batch_size=4, compute_dtype=dtype)
        dtypes = lambda tree: [leaf.dtype for leaf in jax.tree.leaves(tree)]
        assert dtypes(after) == dtypes(state)
        assert dtypes(info) == dtypes(cost)
        # steps of 1e-4, which a weight of 8 digits would not notice
        moved = jax.tree.map(lambda a, b: a - b, after.params, state.params)
        by = jax.tree.map(lambda a, b: a - b, exact.params, state.params)
        assert_close(moved, by, 16 * EPS[dtype])
        np.testing.assert_allclose(info.cost, cost.cost, rtol=8 * EPS[dtype])


def test_a_line_search_sees_the_cost_that_its_gradient_is_of():
    def update(updates, state, params=None, *, value, value_fn, grad_fn, **extra):
        return updates, (value, value_fn(params), grad_fn(params))

    net = NETS["dense"]
    params, x, t = problem(net)
    nothing = lambda params: (jnp.zeros(()), jnp.zeros(()), params)
    asks = Extra(nothing, update)
    state = jb.init_state(net, asks, KEY, params=params)
    after, info = jb.train_step(net, asks, state, x, t, compute_dtype="bfloat16")
    value, again, grads = after.opt_state
    assert float(value) == float(again) == float(info.cost)
    cost, ours = jb.value_and_grad(net, params, x, t, compute_dtype="bfloat16")
    np.testing.assert_allclose(value, cost, rtol=EPS["bfloat16"])
    assert_close(grads, ours, 2 * EPS["bfloat16"])


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("int8", "compute_dtype: expected a floating dtype, got int8"),
        ("float64", "compute_dtype: float64 needs 64-bit mode"),
        (3, "compute_dtype: expected a floating dtype, got 3"),
        ("half a float", "compute_dtype: expected a floating dtype, got half a float"),
    ],
)
def test_a_dtype_that_is_none_raises(wrong, said):
    net = NETS["dense"]
    params, x, t = problem(net)
    sgd = optax.sgd(0.1)
    state = jb.init_state(net, sgd, KEY, params=params)
    calls = [
        lambda: jb.backprop(net, params, x, t, compute_dtype=wrong),
        lambda: jb.mean_cost(net, params, x, t, compute_dtype=wrong),
        lambda: jb.train_step(net, sgd, state, x, t, compute_dtype=wrong),
        lambda: jb.train_epoch(net, sgd, state, x, t, batch_size=2, compute_dtype=wrong),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=said):
            call()


def test_a_wider_dtype_than_the_parameters_raises():
    net = NETS["dense"]
    params, x, t = problem(net, dtype=jnp.bfloat16)
    for wider in ("float32", "float16"):
        with pytest.raises(ValueError, match=f"compute_dtype: .* bfloat16, got {wider}"):
            jb.backprop(net, params, x, t, compute_dtype=wider)
    same = jb.backprop(net, params, x, t, compute_dtype=jnp.bfloat16)
    assert same.dtype == ()
    assert jb.mean_gradient(same)[0].w.dtype == jnp.bfloat16


def test_names_and_types_of_a_dtype_compile_one_program():
    net = NETS["dense"]
    params, x, t = problem(net)
    traces = []

    def gradient(factors):
        traces.append(1)
        return jb.mean_gradient(factors)

    sgd = optax.sgd(0.1)
    state = jb.init_state(net, sgd, KEY, params=params)
    for dtype in ("bfloat16", jnp.bfloat16, jnp.dtype("bfloat16")):
        jb.train_step(net, sgd, state, x, t, gradient=gradient, compute_dtype=dtype)
    assert len(traces) == 1
    for dtype in (None, "float32", jnp.float32):
        jb.train_step(net, sgd, state, x, t, gradient=gradient, compute_dtype=dtype)
    assert len(traces) == 2
