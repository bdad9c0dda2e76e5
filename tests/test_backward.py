"""The recursion: table × battery against autodiff, differences, forward mode, linear algebra."""

import inspect
from functools import partial

import battery
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import references
from helpers import HEADS, HIDDEN, SIZES, assert_close, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

import jbackprop as jb
from jbackprop.core import backward as module

# every activation with two heads, every head with four or five activations
PAIRS = [(f, HEADS[(i + shift) % len(HEADS)]) for i, f in enumerate(HIDDEN) for shift in (0, 4)]


@pytest.mark.long(9)
@pytest.mark.parametrize(("f", "pair"), PAIRS, ids=lambda v: getattr(v, "name", None))
def test_gradient_is_that_of_autodiff(f, pair):
    battery.gradient_is_that_of_autodiff(jb, jb.Network((4, 5, 6, 3), f, *pair))


@pytest.mark.long(3)
@pytest.mark.parametrize("sizes", [*SIZES, (3, 3, 3, 3, 3, 3, 3, 3), (1, 1, 1), (2, 40, 1)])
@pytest.mark.parametrize(("dtype", "seed"), [("float32", 1), ("float64", 2)])
def test_gradient_at_every_shape_seed_and_dtype(sizes, seed, dtype):
    hidden = (jb.tanh, jb.relu, jb.gelu, jb.softsign, jb.silu, jb.elu)[: len(sizes) - 2]
    with jax.enable_x64(dtype == "float64"):
        net = jb.Network(sizes, hidden, jb.sigmoid, jb.binary_cross_entropy)
        battery.gradient_is_that_of_autodiff(jb, net, seed=seed, dtype=dtype)


@pytest.mark.parametrize("f", HIDDEN, ids=lambda f: f.name)
def test_every_component_by_central_differences(f):
    with jax.enable_x64(True):
        net = jb.Network((2, 3, 2), f, jb.softmax, jb.cross_entropy)
        params, x, t = problem(net, batch=3, dtype=jnp.float64)
        flat, unflatten = ravel_pytree(params)
        cost = jax.jit(lambda v: jb.mean_cost(net, unflatten(v), x, t))
        h = 1e-6
        steps = h * jnp.eye(len(flat))
        slopes = jnp.array([(cost(flat + s) - cost(flat - s)) / (2 * h) for s in steps])
        ours = ravel_pytree(jb.value_and_grad(net, params, x, t)[1])[0]
        np.testing.assert_allclose(ours, slopes, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("f", HIDDEN, ids=lambda f: f.name)
def test_propagate_is_the_adjoint_of_forward_mode(f):
    """⟨u, J v⟩ = ⟨Jᵀ u, v⟩, where J maps a shift of z^1 to the shift of z^L."""
    with jax.enable_x64(True):
        net = jb.Network((4, 5, 6, 3), f)
        params, x, _ = problem(net, dtype=jnp.float64)
        tape = jb.forward(net, params, x[0])

        def z_out(z1):
            act = references.JAX[f.name]
            z2 = params[1].w @ act(z1) + params[1].b
            return params[2].w @ act(z2) + params[2].b

        rng = np.random.default_rng(5)
        u, v = jnp.asarray(rng.normal(size=3)), jnp.asarray(rng.normal(size=5))
        _, jv = jax.jvp(z_out, (tape.z[0],), (v,))
        deltas = jb.propagate(net, params, tape, u)
        np.testing.assert_allclose(deltas[0] @ v, u @ jv, rtol=1e-12)
        assert deltas[2] is u


def test_a_linear_network_is_linear_algebra():
    """With f = identity and C = ½‖y - t‖²: δ^l = (w^L … w^{l+1})ᵀ (y - t)."""
    net = jb.Network((4, 5, 6, 3), jb.identity)
    params, x, t = problem(net)
    tape = jb.forward(net, params, x[0])
    error = tape.a[-1] - t[0]
    deltas = jb.backward(net, params, tape, t[0])
    w = [layer.w for layer in params]
    assert_close(deltas, (w[1].T @ w[2].T @ error, w[2].T @ error, error))
    gradients = jb.gradients(tape, deltas)
    assert_close(gradients[2], jb.Layer(jnp.outer(error, tape.a[2]), error))


@settings(derandomize=True, deadline=None, max_examples=50)
@given(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=3), st.floats(-4, 4, width=32))
def test_delta_is_linear_in_the_output_delta(u, c):
    net = jb.Network((4, 5, 6, 3))
    params, x, _ = problem(net)
    tape = jb.forward(net, params, x[0])
    u = jnp.array(u, jnp.float32)
    scaled = jb.propagate(net, params, tape, jnp.float32(c) * u)
    np.testing.assert_allclose(scaled[0], c * jb.propagate(net, params, tape, u)[0], atol=1e-5)


def test_permuting_hidden_units_permutes_the_gradient():
    net = jb.Network((4, 5, 3))
    (one, two), x, t = problem(net)
    order = jnp.array([3, 1, 4, 0, 2])
    permuted = (jb.Layer(one.w[order], one.b[order]), jb.Layer(two.w[:, order], two.b))
    _, (g1, g2) = jb.value_and_grad(net, (one, two), x, t)
    _, ours = jb.value_and_grad(net, permuted, x, t)
    assert_close(ours, (jb.Layer(g1.w[order], g1.b[order]), jb.Layer(g2.w[:, order], g2.b)))


def test_a_rule_sees_every_signal_and_replaces_the_recursion():
    net = jb.Network((4, 5, 6, 3), (jb.tanh, jb.sigmoid), jb.softmax, jb.cross_entropy)
    params, x, _ = problem(net)
    tape = jb.forward(net, params, x[0])
    u, key = jnp.array([1.0, -2.0, 0.5]), jax.random.key(7)
    seen = []

    def delta(s):
        seen.append(s)
        return s.feedback * jnp.sum(s.output_delta)

    feedback = (jnp.arange(5.0), jnp.arange(6.0))
    rule = jb.Rule("seen", delta)
    kwargs = {"rule": rule, "feedback": feedback, "t": 2, "key": key}
    deltas = jb.propagate(net, params, tape, u, **kwargs)
    assert_close(deltas, (-0.5 * feedback[0], -0.5 * feedback[1], u))

    upper, lower = seen
    assert_close((upper.w, lower.w), (params[2].w, params[1].w))
    assert_close((upper.delta, lower.delta), (u, deltas[1]))
    assert_close((upper.a, lower.a), (tape.a[2], tape.a[1]))
    assert_close((upper.slope, lower.slope), (jb.sigmoid.df(tape.z[1]), jb.tanh.df(tape.z[0])))
    assert_close((upper.t, lower.t), (jnp.eye(3)[2],) * 2)
    assert_close((upper.output_delta, lower.output_delta), (u, u))
    assert upper.key != lower.key


def test_without_feedback_key_and_t_a_rule_sees_none():
    net = jb.Network((4, 5, 3))
    params, x, _ = problem(net)
    seen = []
    rule = jb.Rule("seen", lambda s: seen.append(s) or s.slope)
    jb.propagate(net, params, jb.forward(net, params, x[0]), jnp.ones(3), rule=rule)
    assert (seen[0].feedback, seen[0].t, seen[0].key) == (None, None, None)


def test_a_single_layer_has_no_hidden_delta():
    net = jb.Network((4, 3))
    params, x, t = problem(net)
    tape = jb.forward(net, params, x[0])
    deltas = jb.propagate(net, params, tape, t[0], key=jax.random.key(0))
    assert_close(deltas, (t[0],))


def test_bfloat16_stays_bfloat16_and_is_near():
    net = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)
    params, x, t = problem(net)
    small = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    cost, gradient = jb.value_and_grad(net, small, x, t)
    assert cost.dtype == jnp.float32  # sums are taken in float32
    _, expected = jb.value_and_grad(net, params, x, t)
    assert_close(gradient, jax.tree.map(lambda g: g.astype(jnp.bfloat16), expected))


def test_own_activation_and_cost():
    cube = jb.Activation("cube", lambda z: z**3, lambda z: 3 * z**2)
    quartic = jb.Cost("quartic", lambda y, t: jnp.sum((y - t) ** 4), lambda y, t: 4 * (y - t) ** 3)
    net = jb.Network((4, 5, 3), cube, jb.softmax, quartic)
    params, x, t = problem(net)
    expected = jax.grad(partial(jb.mean_cost, net))(params, x, t)
    assert_close(jb.value_and_grad(net, params, x, t)[1], expected)


def test_the_recursion_fits_one_screen():
    """From `backpropagation` to the end, without docstrings: the slide, in code."""
    source = inspect.getsource(module)
    assert source.count("\n") <= 200
    body = [inspect.getsource(f) for f in (jb.propagate, jb.backward, jb.gradients)]
    docs = [str(f.__doc__) for f in (jb.propagate, jb.backward, jb.gradients)]
    code = sum(map(str.count, body, "\n" * 3)) - sum(map(str.count, docs, "\n" * 3))
    assert code <= 50
