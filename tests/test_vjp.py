"""Somebody else's loss: `vjp`, `input_gradient`, and `apply` inside programs of JAX."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
from helpers import HIDDEN, assert_close, problem
from jax.flatten_util import ravel_pytree
from materialised import NETS

import jbackprop as jb

alignment = jb.Rule(
    "alignment",
    lambda s: (s.feedback.T @ s.delta) * s.slope,
    init=lambda net, params, key: tuple(jnp.cos(9 * w) for w, _ in params[1:]),
)
ALL = NETS | {
    "pooled output": jb.Network(((4, 5, 2), jb.Conv(3, 2), jb.MeanPool()), jb.tanh, jb.softmax),
    "one-dimensional": jb.Network(((9, 2), jb.Conv(4, 3, stride=2), jb.MaxPool(2), 2), jb.gelu),
}


def own(y):
    """A loss that is none of ours, of a whole batch: its examples' derivatives differ."""
    return jnp.sum(jnp.sin(3 * y) * jnp.linspace(0.1, 1, y.size, dtype=y.dtype).reshape(y.shape))


@functools.cache
def case(name):
    net = ALL[name]
    params, x, _ = problem(net, batch=5)
    return net, params, x


def theirs(net, loss, params, x):
    """`jax.grad` of a forward pass of the tests' own."""
    y = lambda params, x: jax.vmap(functools.partial(references.output, net, params))(x)
    return jax.grad(lambda params, x: loss(y(params, x)), argnums=(0, 1))(params, x)


@pytest.mark.long(2)
@pytest.mark.parametrize("name", ALL)
def test_pull_gives_the_factors_of_any_loss(name):
    net, params, x = case(name)

    @jax.jit
    def ours(params, x):
        y, pull = jb.vjp(net, params, x)
        factors = pull(jax.grad(own)(y))
        return y, jb.sum_gradient(factors), jb.input_gradient(net, params, factors)

    y, gradient, of_x = ours(params, x)
    assert_close(y, jb.predict(net, params, x))
    assert_close((gradient, of_x), theirs(net, own, params, x))


@pytest.mark.parametrize("name", ALL)
def test_apply_is_differentiated_by_the_recursion(name):
    net, params, x = case(name)
    ours = jax.jit(jax.grad(lambda p, x: own(jb.apply(net, p, x)), argnums=(0, 1)))(params, x)
    assert_close(ours, theirs(net, own, params, x))


def test_the_factors_are_those_of_backprop():
    net = NETS["convolutions"]
    params, x, t = problem(net)
    weight = jnp.array([1.0, 0, 2, 1, 0, 3])
    factors = jb.backprop(net, params, x, t, weight=weight)
    slope = jax.vmap(jax.grad(net.cost.value))(factors.tape.a[-1], t)
    spoilt = slope.at[1].set(jnp.nan)  # an absent row may hold anything
    y, pull = jb.vjp(net, params, x.at[4].set(jnp.nan), weight=weight)
    pulled = jax.jit(lambda pull, e: pull(e))(pull, spoilt)  # a pytree, like that of jax.vjp
    assert (y[jnp.array([1, 4])] == 0).all()
    assert jax.tree.structure(pulled) == jax.tree.structure(factors)
    assert not pulled.cost.any()
    assert not pulled.t.any()
    for quantity in (jb.squared_norms, jb.mean_gradient, jb.clipped_mean(0.1), jb.gram):
        assert_close(quantity(pulled), quantity(factors), 2e-5)


def test_an_output_with_a_jacobian_of_its_own():
    def pull(z, e):
        y = jax.nn.softmax(z / 2)
        return (y * e - y * jnp.sum(y * e)) / 2

    warm = jb.Activation("warm", lambda z: jax.nn.softmax(z / 2), None, pull)
    net = jb.Network((4, 6, 3), jb.tanh, warm)
    params, x, _ = problem(net)
    slope = lambda apply: jax.grad(lambda p: own(apply(net, p, x)))(params)
    assert_close(slope(jb.apply), slope(jb.predict))


@pytest.mark.long(1)
@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (2, 1, 3)])
def test_any_leading_axes(lead):
    net, params, x = case("convolutions")
    x = jnp.resize(x, (*lead, *net.shapes[0]))
    loss = lambda apply: lambda p, x: own(apply(net, p, x))
    assert jb.apply(net, params, x).shape == (*lead, 3)
    ours = jax.grad(loss(jb.apply), argnums=(0, 1))(params, x)
    assert_close(ours, jax.grad(loss(jb.predict), argnums=(0, 1))(params, x))


def test_params_of_any_structure_and_inputs_of_any_dtype():
    net, params, _ = case("softmax")
    x = jnp.arange(8, dtype=jnp.uint8).reshape(2, 4)
    named = [{"w": w, "b": b}.values() for w, b in params]
    assert_close(jb.apply(net, [tuple(v) for v in named], x), jb.predict(net, params, x))
    lists = [[w, b] for w, b in params]
    found = jax.grad(lambda p: own(jb.apply(net, p, x)))(lists)
    assert jax.tree.structure(found) == jax.tree.structure(lists)
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), params)
    found = jax.grad(lambda p: own(jb.apply(net, p, x)).astype(jnp.float32))(half)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {"bfloat16"}


def test_a_rule_goes_back_through_any_program():
    net, params, x = case("convolutions")
    feedback = alignment.init(net, params, jax.random.key(0))
    given = {"rule": alignment, "feedback": feedback}
    y, pull = jb.vjp(net, params, x, **given)
    factors = pull(jax.grad(own)(y))
    loss = lambda p, x: own(jb.apply(net, p, x, **given))
    of_params, of_x = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, x)
    assert_close(of_params, jb.sum_gradient(factors))
    assert_close(of_x, jb.input_gradient(net, params, factors))
    plain = jax.grad(lambda p: own(jb.predict(net, p, x)))(params)
    assert not np.allclose(plain[0].w, of_params[0].w, rtol=0.1)
    assert_close(plain[-1], of_params[-1])


def test_a_rule_that_draws_has_a_key_for_every_example():
    noisy = jb.Rule("noisy", lambda s: jax.random.normal(s.key, s.slope.shape))
    net, params, x = case("softmax")
    loss = lambda p, k: own(jb.apply(net, p, x, rule=noisy, key=jax.random.key(k)))
    first, again, other = (jax.jit(jax.grad(loss))(params, k)[0].b for k in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


# second derivatives, each beside autodiff of the forward pass


@pytest.mark.long(6)
@pytest.mark.parametrize("f", HIDDEN, ids=lambda f: f.name)
def test_hessian_of_every_activation(f):
    net = jb.Network((3, 4, 2), f)
    params, x, _ = problem(net, batch=3)
    flat, restore = ravel_pytree(params)
    hessian = lambda apply: jax.hessian(lambda v: own(apply(net, restore(v), x)))(flat)
    assert_close(hessian(jb.apply), hessian(jb.predict), 2e-5)


@pytest.mark.parametrize("name", ["softmax", "convolutions", "a map of one's own"])
def test_gradient_penalty(name):
    net, params, x = case(name)

    def penalty(apply, params):
        slope = jax.grad(lambda x: jnp.sum(apply(net, params, x)[:, 0]))(x)
        return jnp.sum(jnp.square(slope))

    ours, autodiff = (
        jax.grad(functools.partial(penalty, f))(params) for f in (jb.apply, jb.predict)
    )
    assert_close(ours, autodiff, 2e-5)


def test_derivatives_in_x_and_then_in_the_parameters():
    """The residual of u'' = u, as physics-informed networks have it."""
    net = jb.Network((1, 8, 8, 1), jb.tanh)
    params, x, _ = problem(net, batch=7)

    def residual(apply, params):
        u = lambda x: apply(net, params, x[None])[0]
        second = jax.vmap(jax.grad(jax.grad(u)))(x[:, 0])
        return jnp.mean(jnp.square(second - jax.vmap(u)(x[:, 0])))

    values: Any = [
        jax.value_and_grad(functools.partial(residual, f))(params) for f in (jb.apply, jb.predict)
    ]
    assert_close(values[0], values[1], 2e-5)


def test_it_trains_in_a_scan():
    net, params, x = case("convolutions")
    optimizer = optax.adam(1e-2)

    def step(apply, state, _):
        params, opt_state = state
        value, slope = jax.value_and_grad(lambda p: own(apply(net, p, x)))(params)
        updates, opt_state = optimizer.update(slope, opt_state)
        return (optax.apply_updates(params, updates), opt_state), value

    start = params, optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        runs = [
            jax.lax.scan(functools.partial(step, f), start, None, 5)[1]
            for f in (jb.apply, jb.predict)
        ]
    assert_close(*runs)


# what does not fit


def test_forward_mode_raises_with_the_advice():
    net, params, x = case("softmax")
    y = lambda x: jb.apply(net, params, x)
    for forwards in (lambda: jax.jvp(y, (x,), (x,)), lambda: jax.jacfwd(y)(x)):
        with pytest.raises(TypeError, match=r"apply: expected reverse-mode.*predict"):
            forwards()
    along = jax.linearize(y, x)[1]  # JAX's own words, when it is called
    with pytest.raises(TypeError, match="forward-mode"):
        along(x)


def test_forward_mode_by_predict():
    net, params, x = case("softmax")
    jax.jvp(lambda x: jb.predict(net, params, x), (x,), (x,))


def _needs_t(net, params, x):
    wants_t = jb.Rule("wants t", lambda s: s.t.sum() * s.slope)
    jax.grad(lambda p: jnp.sum(jb.apply(net, p, x, rule=wants_t)))(params)


BAD = {
    "cotangent of another batch": (
        lambda net, params, x: jb.vjp(net, params, x)[1](jnp.ones((3, 3))),
        r"cotangent: expected ∂C_i/∂y_i of shape \(5, 3\), as y of this pass, got \(3, 3\)"),
    "cotangent of one example": (
        lambda net, params, x: jb.vjp(net, params, x)[1](jnp.ones(3)), r"\(5, 3\).*got \(3,\)"),
    "a number": (lambda net, params, x: jb.vjp(net, params, x)[1](1.0), r"\(5, 3\).*got \(\)"),
    "one example": (
        lambda net, params, x: jb.vjp(net, params, x[0]), r"x: expected shape \(B, 4\)"),
    "x of another shape": (
        lambda net, params, x: jb.apply(net, params, x[:, :3]), r"x: expected shape \(\.\.\., 4\)"),
    "no example": (
        lambda net, params, x: jb.apply(net, params, x[:0]), "x: expected at least one example"),
    "a rule that reads t": (_needs_t, "rule wants t: reads t, which it was not given"),
    "no feedback": (
        lambda net, params, x: jb.apply(net, params, x, rule=alignment), "feedback: expected"),
    "an old key": (
        lambda net, params, x: jb.vjp(net, params, x, key=jax.random.PRNGKey(0)), "key: expected"),
    "factors of another network": (
        lambda net, params, x: jb.input_gradient(
            jb.Network((4, 3)), params[1:], jb.vjp(net, params, x)[1](jnp.ones((5, 3)))),
        r"params: expected w\^1"),
    "factors of another depth": (
        lambda net, params, x: jb.input_gradient(
            jb.Network((4, 3)), jb.init(jb.Network((4, 3)), jax.random.key(0)),
            jb.vjp(net, params, x)[1](jnp.ones((5, 3)))),
        r"factors: expected δ\^1 of shape \(B, 3\).*got \(5, 5\)"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_does_not_fit_raises(what):
    call, message = BAD[what]
    with pytest.raises(ValueError, match=message):
        call(*case("softmax"))
