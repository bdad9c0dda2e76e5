"""Every public function called twice compiles nothing the second time; what is returned pickles."""

import gc
import pickle
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from helpers import assert_close, problem

import jbackprop as jb
from jbackprop import plots

NET = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)
PARAMS, X, T = problem(NET, batch=7)
SGD = optax.sgd(0.1)
KEY = jax.random.key(0)
STATE = jb.init_state(NET, SGD, KEY, params=PARAMS)
FACTORS = jb.backprop(NET, PARAMS, X, T)
TAPE = jb.forward(NET, PARAMS, X[0])
DELTAS = jb.backward(NET, PARAMS, TAPE, T[0])
GROUPS = [0, 1, 2, 0, 1, 2, 0]
MESH = jb.make_mesh(data=1)
NOISE = jb.gaussian_noise(1.0, 1.0, 3, KEY)
MEAN = jb.mean_gradient(FACTORS)
_, INFO = jb.train_epoch(NET, SGD, STATE, X, T, batch_size=4, observe=jb.observe_all(NET))

CALLS = {
    "apply": lambda: jb.apply(NET, PARAMS, X),
    "backprop": lambda: jb.backprop(NET, PARAMS, X, T),
    "backward": lambda: jb.backward(NET, PARAMS, TAPE, T[0]),
    "check_batch": lambda: jb.check_batch(NET, X, T),
    "check_derivatives": lambda: jb.check_derivatives(jb.tanh),
    "clip": lambda: jb.clip(FACTORS, 0.1),
    "clip_layers": lambda: jb.clip_layers(FACTORS, [0.1, 0.2]),
    "clipped_mean": lambda: jb.clipped_mean(0.1)(FACTORS),
    "clipped_sum": lambda: jb.clipped_sum(0.1, 3)(FACTORS),
    "delta_norms": lambda: jb.delta_norms(FACTORS),
    "el2n": lambda: jb.el2n(FACTORS),
    "elu_of": lambda: jb.elu_of(0.3).f(X),
    "empirical_ntk": lambda: jb.empirical_ntk(NET, PARAMS, X),
    "epoch_batches": lambda: [*jb.epoch_batches(STATE, X, T, batch_size=4)],
    "epoch_order": lambda: jb.epoch_order(STATE, 7),
    "evaluate": lambda: jb.evaluate(NET, PARAMS, X, T, batch_size=4),
    "every_label": lambda: jb.every_label(T[0], T[1]),
    "example_gradients": lambda: jb.example_gradients(FACTORS),
    "forward": lambda: jb.forward(NET, PARAMS, X[0]),
    "gaussian_noise": lambda: NOISE.update(MEAN, NOISE.init(MEAN)),
    "gradients": lambda: jb.gradients(TAPE, DELTAS),
    "gram": lambda: jb.gram(FACTORS),
    "grand": lambda: jb.grand(FACTORS),
    "group_clip": lambda: jb.group_clip(FACTORS, GROUPS, 3, 0.1),
    "group_gradients": lambda: jb.group_gradients(FACTORS, GROUPS, 3),
    "group_squared_norms": lambda: jb.group_squared_norms(FACTORS, GROUPS, 3),
    "histograms": lambda: jb.histograms(FACTORS, [-1.0, 0, 1], [-1.0, 0, 1]),
    "huber_of": lambda: jb.huber_of(0.3).value(X[0], X[1]),
    "influence": lambda: jb.influence(NET, PARAMS, X, T, X, T, block_size=3),
    "init": lambda: jb.init(NET, KEY),
    "init_state": lambda: jb.init_state(NET, SGD, KEY),
    "inner_product_test": lambda: jb.inner_product_test(FACTORS),
    "input_gradient": lambda: jb.input_gradient(NET, PARAMS, FACTORS),
    "inner_products": lambda: jb.inner_products(FACTORS, MEAN),
    "kronecker_factors": lambda: jb.kronecker_factors(FACTORS),
    "layer_squared_norms": lambda: jb.layer_squared_norms(FACTORS),
    "leaky_relu_of": lambda: jb.leaky_relu_of(0.3).f(X),
    **dict.fromkeys(  # other libraries have tests of their own
        [f"{way}_{library}" for way in ("from", "to") for library in
         ("equinox", "flax", "sklearn", "torch")] + ["load_torch", "to_linen"]),
    "load": None,  # files are looked at in their own tests
    "make_mesh": lambda: jb.make_mesh(data=1),
    "mean_cost": lambda: jb.mean_cost(NET, PARAMS, X, T, weight=[1, 1, 1, 0, 1, 1, 1]),
    "mean_gradient": lambda: jb.mean_gradient(FACTORS),
    "noise_scale": lambda: jb.noise_scale(FACTORS),
    "norm_test": lambda: jb.norm_test(FACTORS),
    "normalize": lambda: jb.normalize(FACTORS),
    "observe_all": lambda: jb.observe_all(NET)(FACTORS, STATE, MEAN),
    "orthogonality_test": lambda: jb.orthogonality_test(FACTORS),
    "pad_batch": lambda: jb.pad_batch(X, T, 8),
    **dict.fromkeys(plots.__all__),  # they draw
    "poisson_sample": lambda: jb.poisson_sample(KEY, 100, 0.1, 50),
    "predict": lambda: jb.predict(NET, PARAMS, X),
    "propagate": lambda: jb.propagate(NET, PARAMS, TAPE, T[0]),
    "save": None,
    "scale": lambda: jb.scale(FACTORS, [1, 2, 3, 4, 5, 6, 7]),
    "second_moment": lambda: jb.second_moment(FACTORS),
    "sgd_step": lambda: jb.sgd_step(PARAMS, MEAN, 0.1),
    "shard_batch": lambda: jb.shard_batch(MESH, (X, T)),
    "shardings_for": lambda: jb.shardings_for(NET, MESH),
    "shuffled": lambda: jb.shuffled(KEY, [1, 2, 3], 10),
    "signal_to_noise": lambda: jb.signal_to_noise(FACTORS),
    "squared_norms": lambda: jb.squared_norms(FACTORS),
    "sum_gradient": lambda: jb.sum_gradient(FACTORS),
    "takeuchi": lambda: jb.takeuchi(FACTORS, jax.tree.map(jnp.ones_like, MEAN)),
    "train_epoch": lambda: jb.train_epoch(
        NET, SGD, STATE, X, T, batch_size=4, gradient=jb.clipped_mean(1.0),
        observe=jb.observe_all(NET)),
    "train_step": lambda: jb.train_step(
        NET, SGD, STATE, X, T, gradient=jb.clipped_mean(1.0), observe=jb.observe_all(NET)),
    "train_stream": lambda: jb.train_stream(NET, SGD, STATE, [(X, T), (X[:4], T[:4])]),
    "units": lambda: jb.units(NET, FACTORS),
    "update_ratio": lambda: jb.update_ratio(PARAMS, MEAN),
    "value_and_grad": lambda: jb.value_and_grad(NET, PARAMS, X, T),
    "variance": lambda: jb.variance(FACTORS),
    "verify": None,  # it compiles a reference for what it is given
    "vjp": lambda: jb.vjp(NET, PARAMS, X)[1](T),
}  # fmt: skip


def test_the_table_names_every_public_function():
    functions = {
        name
        for name in jb.__all__
        if callable(getattr(jb, name)) and not isinstance(getattr(jb, name), type)
    }
    assert functions - {"Params"} == {*CALLS}


@pytest.fixture(scope="module")
def compiled():
    events = []

    def listen(event: str, duration_secs: float, **_: Any) -> None:
        events.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield lambda: sum(event.endswith("backend_compile_duration") for event in events)
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.long(9)
@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if call])
def test_called_twice_it_compiles_nothing_the_second_time(name, compiled):
    CALLS[name]()
    before = compiled()
    CALLS[name]()
    assert compiled() == before


def test_a_first_call_is_seen_to_compile(compiled):
    before = compiled()
    jax.jit(lambda x: x * 3.25)(X)
    assert compiled() > before


@pytest.mark.parametrize(
    "made",
    [lambda: jb.clipped_mean(0.3), lambda: jb.clipped_sum(0.3, 5), lambda: jb.observe_all(NET)],
)
def test_what_goes_into_a_step_pickles_and_is_equal_when_made_again(made):
    again = pickle.loads(pickle.dumps(made()))
    assert again == made()
    assert hash(again) == hash(made())


def test_what_was_pickled_does_the_same():
    for made in (jb.clipped_mean(0.3), jb.clipped_sum(0.3, 5)):
        assert_close(pickle.loads(pickle.dumps(made))(FACTORS), made(FACTORS))
    observe = jb.observe_all(NET)
    ours, theirs = (f(FACTORS, STATE, MEAN) for f in (pickle.loads(pickle.dumps(observe)), observe))
    assert_close(jax.tree.leaves(ours), jax.tree.leaves(theirs))


def test_networks_that_are_observed_may_go():
    net = jb.Network((4, 5, 3), jb.sigmoid)
    here, observe = weakref.ref(net), jb.observe_all(net)
    del net, observe
    gc.collect()
    assert here() is None
