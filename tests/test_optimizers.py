"""Every optimizer and wrapper of optax and optax.contrib takes steps, alone and in an epoch."""

import inspect
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, problem
from optax import contrib

import jbackprop as jb
from jbackprop.training.optimizer import check_optimizer, updates_of

Extra: Any = optax.GradientTransformationExtraArgs
Labels: Any = jb.Layer  # a label for each leaf
unbound: Any = jb  # what is forgotten is found by a type checker too
NET = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)
PARAMS, X, T = problem(NET, batch=10)


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax's own transformations mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


WITH_RATE = [
    "adabelief",
    "adadelta",
    "adafactor",
    "adagrad",
    "adam",
    "adamax",
    "adamaxw",
    "adamw",
    "adan",
    "amsgrad",
    "fromage",
    "lamb",
    "lars",
    "lion",
    "nadam",
    "nadamw",
    "novograd",
    "optimistic_gradient_descent",
    "optimistic_adam_v2",
    "radam",
    "rmsprop",
    "rprop",
    "sgd",
    "sign_sgd",
    "signum",
    "sm3",
    "yogi",
]
CONTRIB = [
    "acprop",
    "ademamix",
    "adopt",
    "cocob",
    "dadapt_adamw",
    "dog",
    "dowg",
    "galore",
    "madgrad",
    "momo",
    "momo_adam",
    "muon",
    "prodigy",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "simplified_ademamix",
]
UNLIKE = {  # arguments of their own
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=0),
    "polyak_sgd": lambda: optax.polyak_sgd(0.1),
    "lbfgs": lambda: optax.lbfgs(),
    "lbfgs with backtracking": lambda: optax.lbfgs(
        linesearch=optax.scale_by_backtracking_linesearch(5)
    ),
    "a line search": lambda: optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=5)
    ),
    "zoom": lambda: optax.chain(optax.sgd(1.0), optax.scale_by_zoom_linesearch(5)),
    "sophia": lambda: contrib.sophia(0.01),
    "sam": lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.05), opaque_mode=True),
    "sam stepwise": lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.05)),
    "mechanize": lambda: contrib.mechanize(optax.sgd(0.1)),
    "schedule_free": lambda: contrib.schedule_free(optax.sgd(0.1), 0.1),
    "split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(optax.sgd(0.1)),
}
WRAPPERS = {
    "MultiSteps": lambda inner: optax.MultiSteps(inner, 2),
    "MultiSteps as a transformation": lambda inner: optax.MultiSteps(
        inner, 2
    ).gradient_transformation(),
    "apply_if_finite": lambda inner: optax.apply_if_finite(inner, 3),
    "chain": lambda inner: optax.chain(optax.clip_by_global_norm(1.0), inner),
    "named_chain": lambda inner: optax.named_chain(("clip", optax.clip(1.0)), ("inner", inner)),
    "flatten": optax.flatten,
    "masked": lambda inner: optax.masked(inner, lambda p: jax.tree.map(lambda v: v.ndim > 1, p)),
    "partition": lambda inner: optax.partition(
        {"w": inner, "b": optax.sgd(0.1)},
        lambda p: tuple(Labels("w", "b") for _ in p),
    ),
    "conditionally_mask": lambda inner: optax.conditionally_mask(
        inner, lambda step, **_: jnp.greater(step, 0)
    ),
    "conditionally_transform": lambda inner: optax.conditionally_transform(
        inner, lambda step, **_: jnp.greater(step, 0)
    ),
    "skip": lambda inner: optax.MultiSteps(inner, 1, should_skip_update_fn=optax.skip_not_finite),
    "reduce_on_plateau": lambda inner: optax.chain(inner, contrib.reduce_on_plateau()),
    "noise": lambda inner: optax.chain(optax.add_noise(0.01, 0.5, key=0), inner),
    "snapshot": lambda inner: optax.chain(optax.snapshot("update", lambda u: u), inner),
}
INNER = {
    "adam": lambda: optax.adam(0.1),
    "one that needs value": lambda: optax.polyak_sgd(0.1),
}


def made(table):
    return {name: (lambda name=name: getattr(table[0], name)(*table[1])) for name in table[2]}


def _contrib(name):
    factory = getattr(contrib, name)
    required = [p for p in inspect.signature(factory).parameters.values() if p.default is p.empty]
    return factory(*[0.1] * len(required))


OPTIMIZERS = {
    **{name: (lambda name=name: getattr(optax, name)(0.1)) for name in WITH_RATE},
    **{name: (lambda name=name: _contrib(name)) for name in CONTRIB},
    **UNLIKE,
}
CASES = {
    **OPTIMIZERS,
    **{
        f"{outer} of {inner}": (lambda o=outer, i=inner: WRAPPERS[o](INNER[i]()))
        for outer in WRAPPERS
        for inner in INNER
    },
}


@pytest.mark.long(3)
@pytest.mark.parametrize("name", CASES)
def test_it_takes_steps_in_an_epoch(name):
    """Parameters move and stay finite, and the state keeps its structure, shapes and dtypes."""
    optimizer = CASES[name]()
    state = jb.init_state(NET, optimizer, jax.random.key(0), params=PARAMS)
    end, seen = jb.train_epoch(NET, optimizer, state, X, T, batch_size=4)
    assert int(end.step) == 3
    ends = [*zip(jax.tree.leaves(end.params), jax.tree.leaves(PARAMS), strict=True)]
    assert all(jnp.isfinite(after).all() for after, _ in ends)
    assert any((after != before).any() for after, before in ends)
    assert jnp.isfinite(seen.cost).all()
    shapes = [jax.tree.map(lambda v: (v.shape, v.dtype), each) for each in (state, end)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("name", ["adam", "lbfgs", "polyak_sgd", "MultiSteps of adam"])
def test_steps_alone_are_those_of_an_epoch(name):
    optimizer = CASES[name]()
    one = state = jb.init_state(NET, optimizer, jax.random.key(0), params=PARAMS)
    order = jb.epoch_order(state, 10)
    end, seen = jb.train_epoch(NET, optimizer, state, X, T, batch_size=5)
    for i, rows in enumerate((order[:5], order[5:])):
        one, info = jb.train_step(NET, optimizer, one, X[rows], T[rows])
        assert_close(info.cost, seen.cost[i])
    assert_close(one.params, end.params)


def test_the_table_names_every_optimizer_of_optax():
    """An optimizer that optax gains must be added above."""
    kinds = ("optax._src.alias", "optax.contrib")
    found = {
        name
        for module in (optax, contrib)
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__.startswith(kinds)
        and not name.startswith(("scale_by", "_"))
    }
    other = {"optimistic_adam",   # no optimizers: what they are made of, and what needs B gradients
        "differentially_private_aggregate", "dpsgd", "hutchinson_estimator_diag_hessian",
        "normalize", "schedule_free_eval_params", "reduce_on_plateau",
    }  # fmt: skip
    assert found - other <= {*OPTIMIZERS}, sorted(found - other - {*OPTIMIZERS})


def test_private_aggregation_by_optax_takes_every_examples_gradient():
    optimizer = contrib.differentially_private_aggregate(0.5, 0.0, key=0)
    optimizer = optax.chain(optimizer, optax.sgd(0.1))
    state = jb.init_state(NET, optimizer, jax.random.key(0), params=PARAMS)
    theirs, _ = jb.train_step(NET, optimizer, state, X, T, gradient=jb.example_gradients)
    plain = jb.init_state(NET, optax.sgd(0.1), jax.random.key(0), params=PARAMS)
    ours, _ = jb.train_step(NET, optax.sgd(0.1), plain, X, T, gradient=jb.clipped_mean(0.5))
    assert_close(ours.params, theirs.params)


def test_it_is_given_what_it_asks_for():
    """Functions of parameters are of this batch, with its weights."""
    weight = jnp.arange(10.0)
    seen = {}

    def update(updates, state, params=None, *, value, grad, value_fn, obj_fn, grad_fn, factors):
        seen.update(
            value=value, grad=grad, at=value_fn(params), same=obj_fn(params),
            again=grad_fn(params, 0), slope=jax.grad(value_fn)(params), factors=factors,
        )  # fmt: skip
        return updates, state

    optimizer = Extra(lambda p: (), update)
    state = jb.init_state(NET, optimizer, jax.random.key(0), params=PARAMS)
    _, info = jb.train_step(
        NET, optimizer, state, X, T, weight=weight, observe=lambda *_: dict(seen)
    )
    told = info.observed
    cost, gradient = jb.value_and_grad(NET, PARAMS, X, T, weight=weight)
    for name in ("value", "at", "same"):
        assert_close(told[name], cost)
    for name in ("grad", "again", "slope"):
        assert_close(told[name], gradient)
    assert_close(jb.mean_gradient(told["factors"]), gradient)


@pytest.mark.parametrize("refused", ["factors", "value", "grad_fn"])
@pytest.mark.parametrize("deep", [False, True])
def test_what_an_optimizer_refuses_it_is_not_given(refused, deep):
    names = {"factors", "value", "grad", "value_fn", "obj_fn", "grad_fn"} - {refused}
    taken = ", ".join(f"{name}=None" for name in sorted(names))
    scope = {}
    exec(f"def update(u, s, p=None, *, {taken}): return u, s", scope)
    picky = Extra(lambda p: (), scope["update"])
    optimizer = optax.chain(optax.chain(picky, optax.sgd(0.1)), optax.identity()) if deep else picky
    state = jb.init_state(NET, optimizer, jax.random.key(0), params=PARAMS)
    state, _ = jb.train_step(NET, optimizer, state, X, T)
    assert int(state.step) == 1


def test_the_next_state_keeps_what_it_is_made_of():
    """Dtypes, keys and what is no array, where the structure stays; another is let through."""
    state = {"m": jnp.zeros(2, jnp.bfloat16), "n": 1, "key": jax.random.key(3), "none": None}
    following = {"m": jnp.ones(2), "n": 2, "key": jax.random.key(4), "none": None}
    grads = (jb.Layer(jnp.ones((1, 2)), jnp.ones(1)),)
    to = lambda after: Extra(lambda p: state, lambda u, s, p=None, **_: (u, after))
    updates, kept = updates_of(to(following), grads, state, grads, {"value": 1.0})
    assert updates is grads
    assert (kept["m"].dtype, kept["m"].tolist()) == (jnp.bfloat16, [1, 1])
    assert (kept["n"], kept["key"], type(kept["n"])) == (2, jax.random.key(4), int)
    _, grown = updates_of(to((following, 0)), grads, state, grads, {})
    assert grown == (following, 0)


def test_updates_of_another_shape_are_told_with_both():
    grads, params = ((jnp.ones((1, 2)), jnp.ones(1)),), ((jnp.ones((2, 1)), jnp.ones(1)),)
    passing = Extra(lambda p: (), lambda u, s, p=None, **_: (u, s))
    said = r"shapes \[\(2, 1\), \(1,\)\], got \[\(1, 2\), \(1,\)\] from the optimizer$"
    with pytest.raises(ValueError, match=said):
        updates_of(passing, grads, (), params, {})


@pytest.mark.parametrize("missing", ["init", "update"])
def test_an_optimizer_has_both_functions(missing):
    half = SimpleNamespace(**dict.fromkeys({"init", "update"} - {missing}, print))
    said = "^optimizer: expected an optax transformation, got SimpleNamespace$"
    with pytest.raises(ValueError, match=said):
        check_optimizer(half)
    with pytest.raises(ValueError, match=said):
        unbound.init_state(NET, optimizer=half, key=jax.random.key(0))
    check_optimizer(optax.sgd(0.1))


def test_an_error_of_the_optimizer_s_own_comes_through():
    def update(updates, state, params=None, **_):
        return wrong(**{"unknown": 1}), state

    def wrong(**_):
        raise TypeError("wrong() got an unexpected keyword argument 'unknown'")

    optimizer = Extra(lambda p: (), update)
    state = jb.init_state(NET, optimizer, jax.random.key(0), params=PARAMS)
    with pytest.raises(TypeError, match="unexpected keyword argument 'unknown'"):
        jb.train_step(NET, optimizer, state, X, T)


@pytest.mark.long(4)
@pytest.mark.parametrize("rate", [0.1, np.float32(0.1), jnp.float32(0.1)])
@pytest.mark.parametrize(
    "inner", [optax.sgd, optax.adam, lambda learning_rate: optax.sgd(learning_rate, 0.9)]
)
def test_bfloat16_parameters_with_float32_hyperparameters_train_in_an_epoch(rate, inner):
    optimizer = optax.inject_hyperparams(inner, hyperparam_dtype=jnp.float32)(learning_rate=rate)
    params = jb.init(NET, jax.random.key(0), dtype=jnp.bfloat16)
    state = jb.init_state(NET, optimizer, jax.random.key(0), params=params)
    new, info = jb.train_epoch(NET, optimizer, state, X, T, batch_size=4)
    before, after = ([leaf.dtype for leaf in jax.tree.leaves(s)] for s in (state, new))
    assert before == after
    assert jnp.isfinite(info.cost).all()


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (None, "NoneType"),
        (0.1, "float"),
        (optax.adam, "adam; call it with its learning rate"),
    ],
)
def test_what_is_no_optimizer_is_named(optimizer, said):
    with pytest.raises(
        ValueError, match=f"^optimizer: expected an optax transformation, got {said}"
    ):
        jb.init_state(NET, optimizer, jax.random.key(0))


def test_a_state_made_for_another_optimizer_is_named():
    rates = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    for other in (rates, optax.adam(0.1), optax.MultiSteps(optax.sgd(0.1), 2)):
        state = jb.init_state(NET, optax.sgd(0.1), jax.random.key(0), params=PARAMS)
        for call in (jb.train_step, partial(jb.train_epoch, batch_size=4)):
            with pytest.raises(
                ValueError, match=r"^state: expected an opt_state of this optimizer"
            ):
                call(NET, other, state, X, T)


def test_a_forgotten_optimizer_is_missed_by_its_name():
    state = jb.init_state(NET, optax.sgd(0.1), jax.random.key(0))
    said = "^optimizer: expected an optax transformation, got "
    with pytest.raises(ValueError, match=said + "TrainState"):
        unbound.train_step(NET, state, X, T)
    with pytest.raises(ValueError, match=said + "TrainState"):
        unbound.train_epoch(NET, state, X, T, batch_size=2)
    with pytest.raises(ValueError, match=said):
        unbound.init_state(NET, jax.random.key(0))
    with pytest.raises(TypeError, match="missing"):
        unbound.train_step(NET)
