"""Network, init, forward and predict."""

import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, problem

import jbackprop as jb

KEY = jax.random.key(0)


def test_network_is_a_value():
    net = jb.Network([np.int64(64), 32, 10], [jb.relu], jb.softmax, jb.cross_entropy)
    twin = jb.Network((64, 32, 10), (jb.relu,), jb.softmax, jb.cross_entropy)
    assert net == twin
    assert hash(net) == hash(twin)
    assert net.sizes == (64, 32, 10)
    assert all(type(n) is int for n in net.sizes)
    assert pickle.loads(pickle.dumps(net)) == net
    assert jax.tree.leaves(net) == [net]  # not a pytree


def test_hidden_is_kept_as_given_so_that_depth_can_be_replaced():
    net = jb.Network((4, 3, 2), jb.relu)
    assert net.hidden == jb.relu
    assert dataclasses.replace(net, sizes=(4, 3, 3, 2)).activations == (
        jb.relu,
        jb.relu,
        jb.identity,
    )


def test_defaults():
    net = jb.Network((4, 2))
    assert net.activations == (jb.identity,)
    assert jb.Network((4, 3, 2)).activations == (jb.tanh, jb.identity)
    assert net.cost == jb.squared_error


@pytest.mark.parametrize(
    ("hidden", "variance"),
    [(f, 2.0) for f in (jb.relu, jb.leaky_relu, jb.relu6, jb.elu, jb.celu, jb.silu, jb.gelu,
                        jb.gelu_exact, jb.mish, jb.squareplus)]
    + [(f, 1.0) for f in (jb.tanh, jb.selu, jb.sigmoid, jb.softplus, jb.identity)],
    ids=lambda v: getattr(v, "name", str(v)),
)  # fmt: skip
def test_init_scales_each_layer_by_its_activation(hidden, variance):
    net = jb.Network((400, 300, 200), hidden)
    first, last = jb.init(net, KEY)
    assert float(jnp.var(first.w)) * 400 == pytest.approx(variance, rel=0.02)
    assert float(jnp.var(last.w)) * 300 == pytest.approx(1.0, rel=0.03)
    assert not first.b.any()
    assert not last.b.any()


def test_init_is_a_function_of_its_key_and_layers_differ():
    net = jb.Network((8, 8, 8, 8))
    params = jb.init(net, KEY)
    assert_close(params, jb.init(net, KEY), tolerance=0)
    assert not jnp.allclose(params[0].w, params[1].w)
    assert not jnp.allclose(params[0].w, jb.init(net, jax.random.key(1))[0].w)


def test_init_takes_an_initializer_and_a_dtype():
    params = jb.init(jb.Network((3, 2)), KEY, initializer=jax.nn.initializers.ones)
    assert_close(params, (jb.Layer(jnp.ones((2, 3)), jnp.zeros(2)),))
    assert jb.init(jb.Network((3, 2)), KEY, dtype=jnp.bfloat16)[0].b.dtype == jnp.bfloat16
    with jax.enable_x64(True):
        assert jb.init(jb.Network((3, 2)), KEY, dtype=jnp.float64)[0].w.dtype == jnp.float64


def test_forward_is_the_slide():
    net = jb.Network((4, 3, 2), jb.sigmoid)
    params, x, _ = problem(net)
    tape = jb.forward(net, params, x[0])
    z1 = params[0].w @ x[0] + params[0].b
    z2 = params[1].w @ jax.nn.sigmoid(z1) + params[1].b
    assert_close(tape, jb.Tape((z1, z2), (x[0], jax.nn.sigmoid(z1), z2)))


def test_each_hidden_layer_may_have_its_own_activation():
    net = jb.Network((2, 2, 2, 2), (jb.relu, jb.tanh))
    params, x, _ = problem(net)
    tape = jb.forward(net, params, x[0])
    assert_close(tape.a[1:], (jax.nn.relu(tape.z[0]), jnp.tanh(tape.z[1]), tape.z[2]))


@pytest.mark.parametrize("lead", [(), (6,), (2, 3), (0,), (1, 6)])
def test_predict_takes_any_leading_axes(lead):
    net = jb.Network((4, 3, 2), output=jb.softmax)
    params, x, _ = problem(net)
    rows = x[: int(np.prod(lead))].reshape(*lead, 4) if lead else x[0]
    y = jb.predict(net, params, rows)
    each = [jb.forward(net, params, row).a[-1] for row in rows.reshape(-1, 4)]
    assert_close(y, jnp.array(each, jnp.float32).reshape(*lead, 2))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float64, bool, np.float16])
def test_inputs_of_any_real_dtype_are_cast_to_that_of_the_parameters(dtype):
    net = jb.Network((4, 2))
    params, _, _ = problem(net)
    x = np.array([0, 1, 1, 0], dtype)
    y = jb.predict(net, params, x)
    assert_close(y, jb.predict(net, params, x.astype(np.float32)))
    assert_close(y, jb.predict(net, params, x.tolist()))


@pytest.mark.parametrize("form", ["list", "tuple", "named", "numpy"])
def test_params_are_any_structure_that_unpacks(form):
    net = jb.Network((4, 3, 2))
    params, x, _ = problem(net)
    other = {
        "list": [[w, b] for w, b in params],
        "tuple": tuple((w, b) for w, b in params),
        "named": params,
        "numpy": [(np.asarray(w, np.float64), np.asarray(b, np.float64)) for w, b in params],
    }[form]
    assert_close(jb.predict(net, other, x), jb.predict(net, params, x))
