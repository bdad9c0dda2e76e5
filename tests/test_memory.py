"""A step in less memory, with the numbers of the whole: parts of a batch, and a tape worked out
again."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, problem, temporaries
from maps import Circulant

import jbackprop as jb
from jbackprop.core import remat

KEY = jax.random.key(0)
Extra: Any = optax.GradientTransformationExtraArgs
TRACE = optax.trace(0.0)  # its state is the gradient, and so are its updates
NET = jb.Network((12, 16, 9, 5), jb.tanh, jb.softmax, jb.cross_entropy)
SHARED = jb.Network(
    ((6, 6, 2), jb.Conv(4, 3), jb.MaxPool(2), jb.Conv(3, 2), 4), jb.tanh, jb.softmax,
    jb.cross_entropy,
)  # fmt: skip
GRADIENTS = [jb.mean_gradient, jb.sum_gradient, jb.clipped_mean(0.3), jb.clipped_sum(0.3, 20)]
names = lambda value: getattr(value, "__name__", None) or type(value).__name__


def step(net, batch, *, rule=jb.backpropagation, optimizer=TRACE, **how: Any):
    params, x, t = problem(net, batch=len(batch[0]))
    state = jb.init_state(net, optimizer, KEY, params=params, rule=rule)
    weight = batch[2] if len(batch) > 2 else None
    return jb.train_step(net, optimizer, state, x, t, weight=weight, rule=rule, **how)


def batch_of(size, *weight):
    return (np.zeros(size), None, *weight)


@pytest.mark.long(1)
@pytest.mark.parametrize("weighted", [False, True], ids=["all alike", "weighted"])
@pytest.mark.parametrize("gradient", GRADIENTS, ids=names)
@pytest.mark.parametrize("net", [NET, SHARED], ids=["dense", "convolution"])
def test_parts_give_the_gradient_of_the_whole(net, gradient, weighted):
    weight = np.random.default_rng(0).uniform(0, 3, 22).astype(np.float32)
    weight[[0, 5, 6, 7, 8, 9, 10, 11]] = 0  # one of three parts is absent altogether
    batch = batch_of(22, *[weight] * weighted)
    whole, info = step(net, batch, gradient=gradient)
    for parts in (2, 3, 4, 22):
        after, told = step(net, batch, gradient=gradient, microbatches=parts)
        assert_close(after.opt_state, whole.opt_state, 1e-6)
        np.testing.assert_allclose(told.cost, info.cost, rtol=1e-6)


def test_parts_where_all_weights_are_zero_give_zero():
    after, info = step(NET, batch_of(6, np.zeros(6, np.float32)), microbatches=3)
    assert not any(leaf.any() for leaf in jax.tree.leaves(after.opt_state))
    assert float(info.cost) == 0


def test_parts_of_a_nan_give_nan_and_of_an_absent_one_do_not():
    params, x, t = problem(NET)
    x = x.at[4].set(jnp.nan)
    state = jb.init_state(NET, TRACE, KEY, params=params)
    after, info = jb.train_step(NET, TRACE, state, x, t, microbatches=2)
    assert bool(jnp.isnan(after.params[0].b).all())
    assert bool(jnp.isnan(info.cost))
    weight = np.array([1, 1, 1, 1, 0, 1])
    after, info = jb.train_step(NET, TRACE, state, x, t, weight=weight, microbatches=2)
    assert bool(jnp.isfinite(after.params[0].w).all())
    assert bool(jnp.isfinite(info.cost))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parts_add_up_in_float32(dtype):
    """4,096 gradients of 1: in 8 digits their sum would stop at 256."""
    net = jb.Network((1, 1))
    params = [(jnp.zeros((1, 1), dtype), jnp.zeros(1, dtype))]
    state = jb.init_state(net, optax.identity(), KEY, params=params)
    x, t = np.ones((4096, 1), np.float32), -np.ones((4096, 1), np.float32)
    kept = {}

    def update(updates, state, params=None):
        return jax.tree.map(lambda g: (g / 4096).astype(dtype), updates), state

    optimizer = optax.GradientTransformation(lambda params: (), update)
    for name, gradient in (("sum", jb.sum_gradient), ("mean", jb.mean_gradient)):
        kept[name], _ = jb.train_step(
            net, optimizer, state, x, t, gradient=gradient, microbatches=4096
        )
    assert float(kept["sum"].params[0].b[0]) == 1
    assert float(kept["mean"].params[0].b[0]) == 1 / 4096


def test_a_noisy_rule_draws_the_same_in_parts():
    def back(s):
        return (s.w.T @ s.delta) * s.slope + jax.random.normal(s.key, s.slope.shape)

    rule = jb.Rule("noisy", back)
    whole, _ = step(NET, batch_of(10), rule=rule)
    for parts, every in ((3, None), (1, 2), (2, 1)):
        after, _ = step(NET, batch_of(10), rule=rule, microbatches=parts, remat=every)
        assert_close(after.opt_state, whole.opt_state, 1e-6)


def test_an_epoch_in_parts_is_that_of_the_whole():
    params, x, t = problem(NET, batch=23)
    momentum = optax.sgd(1e-2, 0.9)
    state = jb.init_state(NET, momentum, KEY, params=params)
    given = NET, momentum, state, x, t
    whole, info = jb.train_epoch(*given, batch_size=8)
    for parts, every in ((3, None), (1, 2), (2, 2)):
        after, told = jb.train_epoch(*given, batch_size=8, microbatches=parts, remat=every)
        assert_close(after.params, whole.params, 1e-6)
        np.testing.assert_allclose(told.cost, info.cost, rtol=1e-5)


def test_a_line_search_in_parts_sees_the_cost_of_the_whole():
    """And a sharpness-aware step the gradient there: value_fn and grad_fn are of all parts."""

    def update(updates, state, params=None, *, value_fn, grad_fn, **extra):
        return updates, (value_fn(params), grad_fn(params))

    nothing = lambda params: (jnp.zeros(()), params)
    asks = Extra(nothing, update)
    whole, info = step(NET, batch_of(10), optimizer=asks)
    after, _ = step(NET, batch_of(10), optimizer=asks, microbatches=4)
    assert_close(after.opt_state, whole.opt_state, 1e-6)
    np.testing.assert_allclose(after.opt_state[0], info.cost, rtol=1e-6)


UPDATED = jb.Rule("own", jb.backpropagation.delta, update=lambda *_: ())


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"microbatches": 0}, "microbatches: expected a whole number of at least 1, got 0"),
        ({"microbatches": 1.5}, "microbatches: expected a whole number"),
        ({"microbatches": 7}, "microbatches: expected at most the 6 rows of x, got 7"),
        ({"remat": 0}, "remat: expected a whole number of at least 1, got 0"),
        ({"remat": True + 0.5}, "remat: expected a whole number"),
        (
            {"microbatches": 2, "gradient": lambda factors: jb.mean_gradient(factors)},
            "gradient: expected one that says how those of microbatches combine",
        ),
        (
            {"microbatches": 2, "observe": lambda factors, state, updates: 0},
            "observe: expected None, since with microbatches",
        ),
        (
            {"microbatches": 2, "rule": UPDATED},
            "rule: expected one without an update of its own",
        ),
    ],
)  # fmt: skip
def test_what_does_not_go_with_parts_raises(how, said):
    with pytest.raises(ValueError, match=said):
        step(NET, batch_of(6), **how)


def test_an_optimizer_that_asks_for_factors_says_so_in_parts():
    def update(updates, state, params=None, *, factors, **extra):
        return updates, state

    asks = Extra(lambda params: (), update)
    step(NET, batch_of(6), optimizer=asks)
    with pytest.raises((TypeError, ValueError), match="factors"):
        step(NET, batch_of(6), optimizer=asks, microbatches=2)


def test_a_gradient_of_ones_own_says_how_it_combines():
    def weighted(factors):
        return jb.mean_gradient(jb.scale(factors, jb.squared_norms(factors)))

    gradient: Any = weighted
    gradient.combines = "mean"
    whole, _ = step(NET, batch_of(10), gradient=gradient)
    after, _ = step(NET, batch_of(10), gradient=gradient, microbatches=4)
    assert_close(after.opt_state, whole.opt_state, 1e-6)


DEEP = jb.Network((7, *range(5, 13), 4), jb.tanh, jb.softmax, jb.cross_entropy)
OWN = jb.Network((8, Circulant(), Circulant(), 6, 3), jb.sigmoid)


def kept_feedback(net, params, key):
    return tuple(jax.random.normal(key, layer.w.shape) for layer in params[1:])


def direct_feedback(net, params, key):
    (n,) = net.shapes[-1]
    return tuple(jax.random.normal(key, (n, *shape)) for shape in net.z_shapes[:-1])


RULES: list[jb.Rule] = [
    jb.backpropagation,
    jb.Rule("feedback alignment", lambda s: (s.feedback.T @ s.delta) * s.slope, kept_feedback),
    jb.Rule("direct", lambda s: (s.feedback.T @ s.output_delta) * s.slope, direct_feedback),
    jb.Rule("of t", lambda s: (s.w.T @ s.delta) * s.slope * jnp.sum(s.t)),
]


@pytest.mark.long(4)
@pytest.mark.parametrize("barrier", [False, True], ids=["as on a CPU", "as on an accelerator"])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("net", [DEEP, SHARED, OWN], ids=["dense", "convolution", "own map"])
def test_what_is_worked_out_again_is_the_same(net, rule, barrier, monkeypatch):
    if barrier:
        monkeypatch.setattr(remat.jax, "default_backend", lambda: "gpu")
    params, x, t = problem(net)
    feedback = rule.init(net, params, KEY)
    given = {"rule": rule, "feedback": feedback, "key": KEY}
    pass_of = jax.jit(
        lambda every: jb.backprop(net, params, x, t, remat=every, **given), static_argnums=0
    )
    for every in (1, 3, 50):
        assert_close(pass_of(every), pass_of(None))


def test_parameters_of_nan_stay_nan():
    params, x, t = problem(DEEP)
    w, b = params[4]
    params = (*params[:4], jb.Layer(w, b.at[0].set(jnp.nan)), *params[5:])
    gradient = jb.mean_gradient(jb.backprop(DEEP, params, x, t, remat=2))
    assert all(bool(jnp.isnan(leaf).any()) for leaf in jax.tree.leaves(gradient))


@pytest.mark.long
def test_it_takes_less_memory():
    """Sixty layers with all of their tape, and with every eighth a^l; and a batch in parts."""
    net = jb.Network((32, *[32] * 60, 10), jb.tanh, jb.softmax, jb.cross_entropy)
    params, x, t = problem(net, batch=128)
    sgd = optax.sgd(0.1)
    state = jb.init_state(net, sgd, KEY, params=params)

    def memory(**how):
        one = jax.jit(lambda state, x, t: jb.train_step(net, sgd, state, x, t, **how))
        return temporaries(one.lower(state, x, t).compile())

    whole = memory()
    assert memory(remat=8) < whole / 2.5
    assert memory(microbatches=8) < whole / 2.5
    assert memory(microbatches=8, remat=8) < whole / 4
