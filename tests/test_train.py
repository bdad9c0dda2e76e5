"""Steps and epochs: equal to the loop by hand, compiled once, donated, and the same bits twice."""

from functools import partial
from typing import Any

import battery
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, problem

import jbackprop as jb
from jbackprop.training.step import How, border

KEY = jax.random.key(0)
NET = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)
SGD = optax.sgd(0.1)


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax's own transformations mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_a_step_is_gradient_descent():
    params, x, t = problem(NET)
    cost, gradient = jb.value_and_grad(NET, params, x, t)
    state = jb.init_state(NET, SGD, KEY, params=params)
    state, info = jb.train_step(NET, SGD, state, x, t)
    assert_close(state.params, jb.sgd_step(params, gradient, 0.1))
    assert_close(info.cost, cost)
    assert info.observed is None
    assert int(state.step) == 1


def test_a_step_with_weights_gradient_and_observe():
    params, x, t = problem(NET)
    weight = jnp.array([1.0, 0, 2, 1, 1, 0])
    state = jb.init_state(NET, SGD, KEY, params=params)
    see = lambda factors, state, updates: (factors.cost, state.step, updates)
    state, info = jb.train_step(
        NET, SGD, state, x, t, weight=weight, gradient=jb.sum_gradient, observe=see
    )
    factors = jb.backprop(NET, params, x, t, weight=weight)
    total = jb.sum_gradient(factors)
    assert_close(state.params, jb.sgd_step(params, total, 0.1))
    assert_close(info.cost, jb.mean_cost(NET, params, x, t, weight=weight))
    expected = (factors.cost, jnp.int32(0), jax.tree.map(lambda g: -0.1 * g, total))
    assert_close(info.observed[::2], expected[::2])
    assert int(info.observed[1]) == 0  # the state that the factors came from


def test_an_epoch_is_its_steps():
    battery.an_epoch_is_its_steps(jb, optax.sgd(0.01))


@pytest.mark.parametrize("n", [1, 2, 8, 9])
@pytest.mark.parametrize("batch_size", [1, 4, 20])
def test_an_epoch_sees_each_example_exactly_once(n, batch_size):
    net = jb.Network((1, 1))
    state = jb.init_state(net, SGD, KEY)
    x = jnp.arange(n)[:, None]
    state, info = jb.train_epoch(
        net, SGD, state, x, jnp.zeros((n, 1)), batch_size=batch_size, observe=_rows_and_weights
    )
    rows, weight = info.observed
    assert weight.shape == (-(-n // batch_size), min(batch_size, n))
    assert sorted(rows[weight > 0].tolist()) == list(range(n))
    assert set(weight.ravel().tolist()) <= {0.0, 1.0}
    assert (weight[:-1] == 1).all()
    assert int(state.step) == len(weight)


def _rows_and_weights(factors, state, updates):
    return factors.tape.a[0][:, 0], factors.weight


def test_epochs_are_shuffled_anew_and_depend_on_the_key():
    net = jb.Network((1, 1))
    x, t = jnp.arange(32)[:, None], jnp.zeros((32, 1))

    def order(seed, epochs):
        state = jb.init_state(net, SGD, jax.random.key(seed))
        seen = []
        for _ in range(epochs):
            state, info = jb.train_epoch(
                net, SGD, state, x, t, batch_size=8, observe=_rows_and_weights
            )
            seen.append(tuple(info.observed[0].ravel().tolist()))
        return seen

    first, second = order(0, 2)
    assert first != second
    assert order(0, 1) == [first]
    assert order(1, 1) != [first]
    assert first != tuple(range(32))


def test_lists_and_numbers_pass_through_jit():
    params, x, _ = problem(NET)
    labels = [0, 1, 2, 0, 2, 1]
    one = lambda factors, state, updates: 1.0
    for batch_size in (3, 4):
        state = jb.init_state(NET, SGD, KEY, params=params)
        _, info = jb.train_epoch(
            NET, SGD, state, x.tolist(), labels, batch_size=batch_size, observe=one
        )
        assert info.observed.tolist() == [1.0, 1.0]
    state = jb.init_state(NET, SGD, KEY, params=params)
    _, info = jb.train_step(NET, SGD, state, x.tolist(), labels, weight=[1, 0, 1, 1, 1, 1])
    weight = jnp.array([1.0, 0, 1, 1, 1, 1])
    assert_close(info.cost, jb.mean_cost(NET, params, x, jnp.array(labels), weight=weight))


def test_an_epoch_respects_weights():
    params, x, t = problem(NET, batch=7)
    weight = jnp.array([1.0, 0, 2, 1, 1, 0, 3])
    x = x.at[1].set(jnp.nan)
    state = jb.init_state(NET, SGD, KEY, params=params)
    _, info = jb.train_epoch(
        NET, SGD, state, x, t, batch_size=3, weight=weight, observe=lambda f, s, u: f.weight
    )
    seen = np.sort(np.asarray(info.observed).ravel())
    np.testing.assert_array_equal(seen, np.sort([*weight, 0, 0]))
    assert jnp.isfinite(info.cost).all()


def test_one_trace_per_shape():
    traces = []

    def f(z):
        traces.append(z.shape)
        return jnp.tanh(z)

    net = jb.Network((4, 5, 3), jb.Activation("counted", f, jb.tanh.df))
    optimizer = optax.inject_hyperparams(optax.adam)(1e-3)
    params, x, t = problem(net, batch=8)
    state = jb.init_state(net, optimizer, KEY, params=[[np.asarray(w), b] for w, b in params])
    for _ in range(100):
        state, _ = jb.train_step(net, optimizer, state, x, t)
    assert len(traces) == 1
    traces.clear()
    for _ in range(5):
        state, _ = jb.train_epoch(net, optimizer, state, x, t, batch_size=3)
    assert len(traces) == 2  # the loop's body, and the short batch
    traces.clear()
    state, _ = jb.train_step(net, optimizer, state, np.asarray(x), np.asarray(t))
    assert not traces


@pytest.mark.parametrize("epoch", [False, True])
def test_the_state_stays_alive_unless_it_is_donated(epoch):
    params, x, t = problem(NET)
    key = jax.random.key(4)
    state = jb.init_state(NET, SGD, key, params=params)
    once = partial(jb.train_epoch, batch_size=2) if epoch else jb.train_step
    first, _ = once(NET, SGD, state, x, t)
    again, _ = once(NET, SGD, state, x, t)
    assert_close(first.params, again.params)
    new, _ = once(NET, SGD, state, x, t, donate=True)
    assert_close(new.params, again.params)
    assert state.params[0].w.is_deleted()
    with pytest.raises((RuntimeError, ValueError), match="deleted"):
        once(NET, SGD, state, x, t)
    assert not any(leaf.is_deleted() for leaf in (new.params[0].w, params[0].w, key))


def test_autodiff_passes_through_an_eager_step():
    params, x, t = problem(NET)

    def cost_after(rate):
        optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
        state = jb.init_state(NET, optimizer, KEY, params=params)
        state.opt_state.hyperparams["learning_rate"] = rate
        state, _ = jb.train_step(NET, optimizer, state, x, t)
        return jb.mean_cost(NET, state.params, x, t)

    gradient = jb.value_and_grad(NET, params, x, t)[1]
    at = jb.value_and_grad(NET, jb.sgd_step(params, gradient, 0.1), x, t)[1]
    products = jax.tree.map(lambda a, b: -jnp.sum(a * b), at, gradient)
    assert_close(jax.grad(cost_after)(0.1), sum(jax.tree.leaves(products)))


def test_a_buffer_that_stands_twice_in_the_state_is_copied():
    """Tied parameters, and optimizers and rules that keep the parameters."""
    net = jb.Network((3, 3, 3))
    layer = jb.Layer(jnp.eye(3), jnp.zeros(3))
    optimizer = optax.GradientTransformation(
        lambda params: params, lambda updates, state, params=None: (updates, state)
    )
    rule = jb.Rule("kept", jb.backpropagation.delta, init=lambda net, p, key: (p[1].w,))
    state = jb.init_state(net, optimizer, KEY, params=(layer, layer), rule=rule)
    state, _ = jb.train_step(net, optimizer, state, jnp.eye(3), jnp.eye(3), rule=rule)
    assert int(state.step) == 1


def test_the_same_key_gives_the_same_bits_twice_and_key_never_changes():
    _, x, t = problem(NET, batch=10)
    optimizer = optax.adam(1e-2)

    def run():
        state = jb.init_state(NET, optimizer, jax.random.key(3))
        key = np.array(jax.random.key_data(state.key))
        for _ in range(3):
            state, _ = jb.train_epoch(NET, optimizer, state, x, t, batch_size=4)
        assert (jax.random.key_data(state.key) == key).all()
        return state._replace(key=jax.random.key_data(state.key))

    for a, b in zip(jax.tree.leaves(run()), jax.tree.leaves(run()), strict=True):
        np.testing.assert_array_equal(a, b)


def test_every_draw_has_a_key_of_its_own():
    """Of the first key: parameters, feedback, training. Of that and the step: order, δ, update."""
    keys = jax.random.split(KEY, 3)
    told = lambda net, params, feedback, updates, factors, key: (jax.random.normal(key, (3, 5)),)
    rule = jb.Rule(
        "drawn",
        lambda s: jax.random.normal(s.key, s.slope.shape) + 0 * s.feedback[0],
        init=lambda net, params, key: (jax.random.normal(key, (3, 5)),),
        update=told,
    )
    net = jb.Network((4, 5, 3))
    state = jb.init_state(net, SGD, KEY, rule=rule)
    assert_close(state.params, jb.init(net, keys[0]))
    assert_close(state.feedback, (jax.random.normal(keys[1], (3, 5)),))
    assert state.key == keys[2]
    _, x, t = problem(net)
    see = lambda factors, state, updates: factors.delta[0]
    for step in range(2):
        assert int(state.step) == step
        k = jax.random.fold_in(keys[2], step)
        state, info = jb.train_step(net, SGD, state, x, t, rule=rule, observe=see)
        assert_close(state.feedback, (jax.random.normal(jax.random.fold_in(k, 2), (3, 5)),))
        own = jax.random.split(jax.random.fold_in(k, 1), len(x))  # of every example, then layer
        assert_close(
            info.observed,
            jax.vmap(lambda k: jax.random.normal(jax.random.split(k, 1)[0], (5,)))(own),
        )


def test_nothing_is_masked_without_weights():
    state = jb.init_state(NET, SGD, KEY)
    _, x, t = problem(NET)
    assert border(NET, state, x, t, None, How())[3] is None
    assert border(NET, state, x, t, [1] * len(x), How())[3].tolist() == [1] * len(x)


def test_a_state_has_no_weak_types():
    """Which would change at the first step, and compile it twice."""
    functions: Any = (lambda p: (jnp.asarray(0.1), 2), print)
    own = optax.GradientTransformation(*functions)
    state = jb.init_state(NET, own, KEY)
    assert jnp.asarray(0.1).weak_type
    assert not any(leaf.weak_type for leaf in jax.tree.leaves((state.params, state.opt_state)))
    assert [leaf.dtype for leaf in jax.tree.leaves(state.opt_state)] == [jnp.float32, jnp.int32]


def test_a_rule_keeps_and_updates_feedback():
    def update(net, params, feedback, updates, factors, key):
        return (feedback[0] + updates[1].w + 0 * factors.cost.sum() + 0 * params[1].w,)

    rule = jb.Rule(
        "kept",
        lambda s: (s.feedback.T @ s.delta) * s.slope,
        init=lambda net, params, key: (jax.random.normal(key, params[1].w.shape),),
        update=update,
    )
    params, x, t = problem(NET)
    state = jb.init_state(NET, SGD, KEY, params=params, rule=rule)
    before = jnp.array(state.feedback[0])
    factors = jb.backprop(NET, params, x, t, rule=rule, feedback=(before,))
    state, _ = jb.train_step(NET, SGD, state, x, t, rule=rule)
    assert_close(state.params, jb.sgd_step(params, jb.mean_gradient(factors), 0.1))
    # tolerance: the update is a difference of parameters
    np.testing.assert_allclose(
        state.feedback[0] - before, state.params[1].w - params[1].w, atol=1e-6
    )
    assert not jnp.allclose(factors.delta[0], jb.backprop(NET, params, x, t).delta[0])


def test_optimizers_with_extra_arguments_get_factors_value_and_grad():
    def update(updates, state, params=None, **extra):
        assert isinstance(extra["factors"], jb.Factors)
        return jax.tree.map(lambda g: -g * extra["value"], extra["grad"]), state

    optimizer = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)
    params, x, t = problem(NET)
    cost, gradient = jb.value_and_grad(NET, params, x, t)
    state = jb.init_state(NET, optimizer, KEY, params=params)
    state, _ = jb.train_step(NET, optimizer, state, x, t)
    assert_close(state.params, jb.sgd_step(params, gradient, cost))


def test_many_networks_at_once_equal_one_at_a_time():
    _, x, t = problem(NET, batch=10)
    optimizer = optax.inject_hyperparams(optax.sgd)(0.0)

    def start(seed, rate):
        state = jb.init_state(NET, optimizer, jax.random.key(seed))
        state.opt_state.hyperparams["learning_rate"] = rate
        return state

    def epoch(state):
        return jb.train_epoch(NET, optimizer, state, x, t, batch_size=4)

    rates = [0.1, 0.5, 1.0]
    many, info = jax.vmap(epoch)(jax.vmap(start)(jnp.arange(3), jnp.array(rates)))
    for i in range(3):
        one, one_info = epoch(start(i, jnp.float32(rates[i])))
        assert_close(jax.tree.map(lambda p, i=i: p[i], many.params), one.params)
        assert_close(info.cost[i], one_info.cost)

    # one order of examples for all
    axes: Any = jb.TrainState._make([0, 0, 0, None, None])
    state = jax.vmap(start)(jnp.arange(3), jnp.array(rates))
    state = state._replace(key=jax.random.clone(KEY), step=jnp.int32(0))
    shared, _ = jax.vmap(epoch, in_axes=(axes,), out_axes=(axes, 0))(state)
    for i in range(3):
        one, _ = epoch(start(i, jnp.float32(rates[i]))._replace(key=jax.random.clone(KEY)))
        assert_close(jax.tree.map(lambda p, i=i: p[i], shared.params), one.params)


def test_training_learns_a_separable_problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    t = (x[:, 0] * x[:, 1] > 0).astype(int)  # no linear model can
    net = jb.Network((4, 16, 2), jb.relu, jb.softmax, jb.cross_entropy)
    optimizer = optax.adam(1e-2)
    state = jb.init_state(net, optimizer, KEY)
    for _ in range(60):
        state, _ = jb.train_epoch(net, optimizer, state, x, t, batch_size=20)
    assert float(jb.evaluate(net, state.params, x, t).accuracy) > 0.97


@pytest.mark.parametrize("n", [1, 7, 8])
def test_epoch_order_is_that_of_the_coming_epoch(n):
    net = jb.Network((1, 1))
    x, t = jnp.arange(n)[:, None], jnp.zeros((n, 1))
    state = jb.init_state(net, SGD, KEY)
    for _ in range(2):
        order = jb.epoch_order(state, n)
        assert order.dtype == jnp.int32
        state, info = jb.train_epoch(net, SGD, state, x, t, batch_size=3, observe=_rows_and_weights)
        rows, weight = (leaf.ravel() for leaf in info.observed)
        assert rows[weight > 0].tolist() == order.tolist()
    for bad in (0, 2.5, "a"):
        with pytest.raises(ValueError, match=r"^n: expected a whole number"):
            jb.epoch_order(state, bad)


@pytest.mark.parametrize("made", [np.asarray, jnp.asarray])
def test_ragged_batches_padded_compile_once_and_change_nothing(made):
    params, x, t = problem(NET, batch=6)
    x, t, traces = made(x), made(t), []

    def counted(factors):
        traces.append(1)
        return jb.mean_gradient(factors)

    for weight in (None, made(np.arange(6.0))):
        ours = theirs = jb.init_state(NET, SGD, KEY, params=params)
        for rows in (slice(0, 4), slice(4, 6), slice(0, 1)):
            w = None if weight is None else weight[rows]
            padded = jb.pad_batch(x[rows], t[rows], 4, weight=w)
            assert [type(leaf) for leaf in padded[:2]] == [type(x), type(t)]
            ours, info = jb.train_step(
                NET, SGD, ours, *padded[:2], weight=padded[2], gradient=counted
            )
            theirs, expected = jb.train_step(NET, SGD, theirs, x[rows], t[rows], weight=w)
            assert_close(info.cost, expected.cost)
            assert_close(ours.params, theirs.params)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((np.ones((3, 2)), np.ones((3, 2)), 2), "size: expected at least the 3 rows of x, got 2"),
        ((np.ones((3, 2)), np.ones((2, 2)), 4), "t: expected one row for each of x"),
        ((np.ones((3, 2)), np.ones((3, 2)), 0), "size: expected a whole number of at least 1"),
        ((1.0, np.ones((3, 2)), 4), "t: expected one row for each of x"),
        ((["a"], np.ones((1, 2)), 4), "x: expected an array of real numbers, got list"),
    ],
)
def test_pad_batch_names_what_is_wrong(arguments, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        jb.pad_batch(*arguments)
    with pytest.raises(ValueError, match=r"^weight: expected shape \(3,\), got \(2,\)"):
        jb.pad_batch(np.ones((3, 2)), np.ones((3, 2)), 4, weight=[1, 2])
