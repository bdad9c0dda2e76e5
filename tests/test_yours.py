"""A user's own activation, cost, rule, `gradient=` and `observe=`: they work, or are named."""

import functools
import pickle
import pydoc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, problem

import jbackprop as jb
from jbackprop.training.step import How, border

NET = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)
PARAMS, X, T = problem(NET, batch=6)
SGD = optax.sgd(0.1)


def state(net=NET, params=PARAMS, **kwargs):
    return jb.init_state(net, SGD, jax.random.key(1), params=params, **kwargs)


@functools.cache  # of a twin it is asked again
def everywhere(net):
    """All that reads f', f or C: the same as with the built-in twin, or an error with a name."""
    factors = jb.backprop(net, PARAMS, X, T)
    step = jb.train_step(net, SGD, state(net), X, T, observe=jb.observe_all(net))
    many = jb.train_epoch(net, SGD, state(net), X, T, batch_size=4)
    ntk = jb.empirical_ntk(net, PARAMS, X)
    weight = jnp.array([1.0, 0, 1, 1, 2, 1])
    slope = jax.grad(lambda p: jb.mean_cost(net, p, X, T, weight=weight))(PARAMS)
    return factors, step[1], many[1], step[0].params, ntk, jb.units(net, factors), slope


# ---- activations

STEP = jb.Activation("step", lambda z: jnp.maximum(z, 0), lambda z: (z > 0).astype(z.dtype))
RELUS = {
    "bool": lambda z: z > 0,
    "int": lambda z: jnp.where(z > 0, 1, 0),
    "float64 of NumPy": lambda z: jnp.where(z > 0, np.ones(()), np.zeros(())).astype(z.dtype),
}


@pytest.mark.long(1)
@pytest.mark.parametrize("df", RELUS)
def test_a_slope_may_be_of_any_real_dtype(df):
    mine = jb.Activation("mine", STEP.f, RELUS[df])
    networks = [jb.Network((4, 5, 3), f, jb.softmax, jb.cross_entropy) for f in (mine, STEP)]
    ours, theirs = map(everywhere, networks)
    assert_close(jax.tree.leaves(ours), jax.tree.leaves(theirs))


@pytest.mark.long(1)
@pytest.mark.parametrize("one", [1, 1.0, True, np.float32(1)])
def test_a_slope_may_be_a_constant(one):
    mine = jb.Activation("mine", lambda z: z, lambda z: one)
    ours, theirs = (everywhere(jb.Network((4, 5, 3), f, f)) for f in (mine, jb.identity))
    assert_close(jax.tree.leaves(ours), jax.tree.leaves(theirs))


@pytest.mark.long(1)
@pytest.mark.parametrize("place", ["hidden", "output"])
def test_a_slope_of_one_number_only_is_named(place):
    scalar = jb.Activation("scalar", jnp.sin, jax.grad(jnp.sin))
    mine = {place: scalar}
    net = jb.Network((4, 5, 3), **mine)
    for call in (
        lambda: jb.backprop(net, PARAMS, X, T),
        lambda: jb.train_step(net, SGD, state(net), X, T),
        lambda: jb.train_epoch(net, SGD, state(net), X, T, batch_size=2),
        lambda: jb.empirical_ntk(net, PARAMS, X),
        lambda: jb.check_derivatives(scalar),
    ):
        with pytest.raises(ValueError, match=r"^activation scalar: df\(z\) does not take z of"):
            call()
    whole = jb.Activation.from_function("sine", jnp.sin)
    by_hand = jb.Activation("sine", jnp.sin, jnp.cos)
    ours, theirs = (everywhere(jb.Network((4, 5, 3), f)) for f in (whole, by_hand))
    assert_close(jax.tree.leaves(ours), jax.tree.leaves(theirs))


def test_a_slope_of_a_wrong_shape_is_named():
    mine = jb.Activation("mine", jnp.tanh, lambda z: z[:2])
    with pytest.raises(ValueError, match=r"^activation mine: expected df\(z\) of shape \(5,\)"):
        jb.backprop(jb.Network((4, 5, 3), mine), PARAMS, X, T)


def test_from_function_is_equal_for_equal_functions_and_pickles():
    one, two = (jb.Activation.from_function("warm", jb.tanh.f) for _ in range(2))
    assert one == two
    assert hash(one) == hash(two)
    assert pickle.loads(pickle.dumps(one)) == one
    assert one != jb.Activation.from_function("warm", jnp.sin)
    z = jnp.linspace(-3, 3, 7)
    assert_close(one.df(z), jb.tanh.df(z))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: jb.Activation("a", 1, jnp.cos), "activation a: expected a function f, got 1"),
        (
            lambda: jb.Activation("a", jnp.sin, None),
            "activation a: expected a function df",
        ),
        (lambda: jb.Activation("a", jnp.sin, 2.0), "activation a: expected .* df, got 2.0"),
        (lambda: jb.Activation("a", jnp.sin, jnp.cos, 3), "activation a: expected a function pull"),
        (lambda: jb.Activation(jnp.sin, jnp.cos, jnp.cos), "name: expected a string"),
        (lambda: jb.Cost("c", None, jnp.sum), "cost c: expected a function value, got None"),
        (lambda: jb.Cost("c", jnp.sum, None), "cost c: expected a function grad, got None"),
    ],
)
def test_a_record_of_no_functions_is_refused(made, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        made()


# ---- an output with a Jacobian of its own


def _warm(z):
    return jax.nn.softmax(z / 2)


def _pull_warm(z, e):
    y = _warm(z)
    return y * (e - y @ e) / 2


WARM = jb.Activation("warm", _warm, None, _pull_warm)


@pytest.mark.parametrize("cost", [jb.cross_entropy, jb.squared_error, jb.binary_cross_entropy])
@pytest.mark.parametrize("df", [None, jax.jacobian(_warm)])
def test_an_output_may_have_a_pull(cost, df):
    net = jb.Network((4, 5, 3), output=jb.Activation("warm", _warm, df, _pull_warm), cost=cost)
    ours = jb.value_and_grad(net, PARAMS, X, T)
    theirs = jax.value_and_grad(jb.mean_cost, argnums=1)(net, PARAMS, X, T)
    assert_close(ours, theirs)
    jacobian = jax.vmap(jax.jacobian(lambda p, x: jb.predict(net, p, x)), (None, 0))(PARAMS, X)
    flat = [leaf.reshape(6, 3, -1) for leaf in jax.tree.leaves(jacobian)]
    kernel = sum(jnp.einsum("iko,jko->ij", v, v) for v in flat)
    assert_close(jb.empirical_ntk(net, PARAMS, X), kernel)


@pytest.mark.long
def test_softmax_is_such_an_output():
    z, e = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 2.0, -1.0])
    assert_close(jb.softmax.pull(z, e), jb.softmax.df(z).T @ e)
    shouting = jb.Activation("mine", jb.softmax.f, jb.softmax.df, jb.softmax.pull)
    ours, theirs = (everywhere(jb.Network((4, 5, 3), output=f)) for f in (shouting, jb.softmax))
    assert_close(jax.tree.leaves(ours), jax.tree.leaves(theirs))
    everywhere(jb.Network((4, 5, 3), output=WARM))  # without f' too


def test_a_pull_is_for_outputs_and_keeps_the_shape():
    with pytest.raises(ValueError, match=r"^hidden: .* got warm, whose Jacobian is not diagonal"):
        jb.Network((4, 5, 3), WARM)
    short = jb.Activation("short", _warm, None, lambda z, e: e[:1])
    with pytest.raises(ValueError, match=r"^activation short: expected pull\(z, e\) of"):
        jb.backprop(jb.Network((4, 5, 3), output=short), PARAMS, X, T)


# ---- what takes probabilities

GIVE = {"softmax", "sigmoid", "hard_sigmoid"}
BUILT_IN = [v for v in vars(jb).values() if isinstance(v, jb.Activation)]


@pytest.mark.parametrize(
    "f", [*BUILT_IN, jb.elu_of(0.5), jb.leaky_relu_of(0.3)], ids=lambda f: f.name
)
@pytest.mark.parametrize("cost", [jb.cross_entropy, jb.binary_cross_entropy], ids=lambda c: c.name)
def test_a_cost_of_probabilities_is_refused_what_gives_none(f, cost):
    if f.name in GIVE:
        assert jb.Network((4, 3), output=f, cost=cost).output == f
        return
    with pytest.raises(ValueError, match=f"^output: expected .* cost {cost.name} takes prob.* got"):
        jb.Network((4, 3), output=f, cost=cost)
    trusted = jb.Activation("mine", f.f, f.df)
    assert jb.Network((4, 3), output=trusted, cost=cost).output == trusted
    assert jb.Network((4, 3), output=f).output == f


def test_the_default_output_is_refused_and_softmax_of_one_too():
    with pytest.raises(ValueError, match=r"^output: expected softmax or sigmoid, .* got identity"):
        jb.Network((64, 32, 10), cost=jb.cross_entropy)
    with pytest.raises(ValueError, match=r"^output: expected sigmoid, or two outputs, got softmax"):
        jb.Network((4, 1), output=jb.softmax)


# ---- help, repr, constants


def test_help_tells_what_every_record_is():
    for name in jb.__all__:
        value = getattr(jb, name)
        if isinstance(value, jb.Activation | jb.Cost):
            page = pydoc.plain(pydoc.render_doc(value))
            assert value.formula, name
            assert value.formula in page
            assert value.formula in repr(value)
            assert "torch" in page or "jax.nn" in page or "optax" in page
    assert "1.0507" in repr(jb.selu)
    assert "0.2 z below" in repr(jb.leaky_relu_of(0.2))


@pytest.mark.parametrize(
    ("of", "usual", "built_in", "name"),
    [
        (jb.leaky_relu_of, 0.01, jb.leaky_relu, "slope"),
        (jb.elu_of, 1, jb.elu, "alpha"),
        (jb.huber_of, 1, jb.huber, "delta"),
    ],
)
def test_equal_constants_make_equal_records(of, usual, built_in, name):
    assert of(usual) == built_in
    assert of(0.3) == of(np.float64(0.3))
    assert hash(of(0.3)) == hash(of(0.3))
    assert of(0.3) != of(0.4)
    assert pickle.loads(pickle.dumps(of(0.3))) == of(0.3)
    for bad in ("a", None, np.nan, np.inf, [1, 2]):
        with pytest.raises(ValueError, match=f"^{name}: expected a finite number"):
            of(bad)


def test_constants_do_what_they_say():
    z = jnp.array([-2.0, -0.5, 0.0, 3.0])
    assert_close(jb.leaky_relu_of(0.2).f(z), jax.nn.leaky_relu(z, 0.2))
    assert_close(jb.elu_of(0.7).f(z), jax.nn.elu(z, 0.7))
    for f in (jb.leaky_relu_of(0.2), jb.elu_of(0.7)):
        assert_close(f.df(z), jax.vmap(jax.grad(f.f))(z))
        assert f.df(z.astype(jnp.float16)).dtype == jnp.float16
    t = jnp.zeros(4)
    assert_close(jb.huber_of(0.7).value(z, t), optax.huber_loss(z, t, delta=0.7).sum())
    assert_close(jb.huber_of(0.7).grad(z, t), jax.grad(lambda z: jb.huber_of(0.7).value(z, t))(z))
    with pytest.raises(ValueError, match=r"^delta: expected a finite number above 0, got 0"):
        jb.huber_of(0)


def test_constants_start_as_their_kind_does():
    """He's variance for rectifiers, whatever their slope."""
    key = jax.random.key(0)
    for kind, other in ((jb.leaky_relu, jb.leaky_relu_of(0.3)), (jb.elu, jb.elu_of(0.5))):
        one, two = (jb.init(jb.Network((4, 5, 3), f), key) for f in (kind, other))
        assert_close(one, two)


# ---- rules

NOISY = jb.Rule(
    "noisy",
    lambda s: (s.w.T @ s.delta) * s.slope + jax.random.normal(s.key, s.slope.shape, s.slope.dtype),
)
FEEDBACK = jb.Rule(
    "feedback",
    lambda s: (s.feedback.T @ s.delta) * s.slope,
    init=lambda net, params, key: tuple(jnp.ones_like(w) for w, _ in params[1:]),
)
DIRECT = jb.Rule(
    "direct",
    lambda s: (s.feedback.T @ s.output_delta) * s.slope,
    init=lambda net, params, key: tuple(jnp.ones((3, 5)) for _ in params[1:]),
)
TARGETS = jb.Rule("targets", lambda s: (s.w.T @ (s.t - s.delta)) * s.slope)


def test_what_a_rule_reads_and_did_not_get_is_named():
    said = "^rule noisy: reads key, which it was not given"
    with pytest.raises(ValueError, match=said):
        jb.backprop(NET, PARAMS, X, T, rule=NOISY)
    tape = jb.forward(NET, PARAMS, X[0])
    for rule, field in ((NOISY, "key"), (FEEDBACK, "feedback"), (TARGETS, "t")):
        with pytest.raises(ValueError, match=f"^rule {rule.name}: reads {field}, which it was"):
            jb.propagate(NET, PARAMS, tape, T[0], rule=rule)
    for use in (
        lambda v: v + 1, lambda v: 1 * v, lambda v: v[0], lambda v: jnp.sign(v), lambda v: v.T,
        lambda v: jax.tree.map(jnp.sign, v).T, lambda v: jnp.ones(3) @ v, lambda v: -v,
        lambda v: jax.random.bits(v), lambda v: v > 0, lambda v: jnp.ones(3) - v, lambda v: [*v],
    ):  # fmt: skip
        rule = jb.Rule("r", lambda s, use=use: use(s.feedback) * s.slope)
        with pytest.raises(ValueError, match=r"^rule r: reads feedback, which it was not given"):
            jb.propagate(NET, PARAMS, tape, T[0], rule=rule)


def test_a_rule_may_look_whether_it_was_given_something():
    rule = jb.Rule("either", lambda s: (s.w.T @ s.delta) * s.slope * (1 if s.key is None else 2))
    tape = jb.forward(NET, PARAMS, X[0])
    one = jb.propagate(NET, PARAMS, tape, T[0], rule=rule)
    two = jb.propagate(NET, PARAMS, tape, T[0], rule=rule, key=jax.random.key(0))
    assert_close(2 * one[0], two[0])


def test_a_rule_s_own_error_has_its_name():
    wrong = jb.Rule("wrong", lambda s: s.w @ s.delta)
    with pytest.raises(ValueError, match=r"^rule wrong: .*dot"):
        jb.backprop(NET, PARAMS, X, T, rule=wrong)
    gone = jb.Rule("gone", lambda s: s.nothing)  # pyright: ignore
    with pytest.raises(ValueError, match=r"^rule gone: AttributeError: .*nothing"):
        jb.backprop(NET, PARAMS, X, T, rule=gone)


DEEP = jb.Network((4, 5, 6, 3))
OF_DEEP = jb.init(DEEP, jax.random.key(0))


def test_a_state_for_another_rule_is_named():
    plain, kept = state(), state(rule=FEEDBACK)
    said = "^feedback: expected what rule.init gives for "
    with pytest.raises(ValueError, match=said + r"feedback, .* got \[\]; a state is made for one"):
        jb.train_step(NET, SGD, plain, X, T, rule=FEEDBACK)
    deep = state(DEEP, OF_DEEP, rule=FEEDBACK)
    other = jb.Rule("other", DIRECT.delta, lambda net, p, key: (jnp.ones((3, 5)), jnp.ones((3, 6))))
    for call in (
        lambda: jb.train_step(DEEP, SGD, deep, X, T, rule=other),
        lambda: jb.train_epoch(DEEP, SGD, deep, X, T, rule=other, batch_size=2),
        lambda: jb.backprop(DEEP, OF_DEEP, X, T, rule=other, feedback=deep.feedback),
    ):
        with pytest.raises(ValueError, match=said + "other"):
            call()
    jb.train_step(NET, SGD, kept, X, T)  # backpropagation reads none


@pytest.mark.parametrize("made", [tuple, list])
def test_feedback_may_be_listed_and_an_array_is_named(made):
    feedback = (jnp.ones((3, 5)),)
    ours = jb.backprop(NET, PARAMS, X, T, rule=FEEDBACK, feedback=made(feedback))
    assert_close(ours.delta, jb.backprop(NET, PARAMS, X, T, rule=FEEDBACK, feedback=feedback).delta)
    bare = jb.Rule("bare", FEEDBACK.delta)
    for array in (jnp.ones((3, 5)), np.ones((3, 5))):
        with pytest.raises(ValueError, match=r"^feedback: expected a tuple of 1, .*shape \(3, 5\)"):
            jb.backprop(NET, PARAMS, X, T, rule=bare, feedback=array)


# ---- gradient and observe


def test_a_gradient_may_be_any_structure_of_w_and_b():
    listed = lambda factors: [list(layer) for layer in jb.mean_gradient(factors)]
    ours, _ = jb.train_step(NET, SGD, state(), X, T, gradient=listed)
    theirs, _ = jb.train_step(NET, SGD, state(), X, T)
    assert_close(ours.params, theirs.params)


@pytest.mark.parametrize(
    "gradient", [lambda f: 1.0, lambda f: None, lambda f: jb.mean_gradient(f)[:1], lambda f: f.cost]
)
def test_a_gradient_of_another_structure_is_named(gradient):
    with pytest.raises(ValueError, match=r"^gradient: expected \(w, b\) per layer, got"):
        jb.train_step(NET, SGD, state(), X, T, gradient=gradient)


@pytest.mark.parametrize(
    "gradient", [jb.example_gradients, lambda f: [(w.T, b) for w, b in jb.mean_gradient(f)]]
)
def test_a_gradient_of_another_shape_is_named(gradient):
    said = "^gradient: expected one whose updates have the parameters' shapes"
    with pytest.raises(ValueError, match=said):
        jb.train_step(NET, SGD, state(), X, T, gradient=gradient)
    with pytest.raises(ValueError, match=said):
        jb.train_epoch(NET, SGD, state(), X, T, batch_size=4, gradient=gradient)


def test_observe_returns_arrays_of_any_kind_or_is_named():
    seen = lambda *_: {"one": 1, "none": None, "list": [True, np.ones(2)], "key": jax.random.key(0)}
    _, info = jb.train_epoch(NET, SGD, state(), X, T, batch_size=4, observe=seen)
    assert info.observed["one"].tolist() == [1, 1]
    assert info.observed["list"][1].shape == (2, 2)
    for batch_size in (4, 6):
        with pytest.raises(ValueError, match=r"^observe: expected a pytree of arrays, got 'words'"):
            jb.train_epoch(
                NET, SGD, state(), X, T, batch_size=batch_size, observe=lambda *_: "words"
            )


def test_a_state_of_lists_keeps_its_structure():
    listed = [[w, b] for w, b in PARAMS]
    mine = jb.TrainState(listed, SGD.init(listed), (), jax.random.key(1), jnp.int32(0))
    ours, _ = jb.train_step(NET, SGD, mine, X, T, observe=jb.observe_all(NET))
    theirs, _ = jb.train_step(NET, SGD, state(), X, T)
    assert isinstance(ours.params, list)
    assert_close(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params))
    ours, _ = jb.train_epoch(NET, SGD, mine, X, T, batch_size=4)
    assert isinstance(ours.params[0], list)
    with pytest.raises(ValueError, match=r"^state: expected a TrainState, .* got list"):
        border(NET, listed, X, T, None, How())


@pytest.mark.parametrize("layer", [lambda w, b: (w,), lambda w, b: (w, None)])
def test_a_layer_without_a_bias_is_named(layer):
    params = [layer(w, b) for w, b in PARAMS]
    with pytest.raises(ValueError, match=r"^params: .* a layer has no bias, b of zeros, .* no b"):
        jb.predict(NET, params, X)


def test_a_clipped_mean_may_be_traced():
    factors = jb.backprop(NET, PARAMS, X, T)
    ours = jax.jit(lambda c: jb.clipped_mean(c)(factors))(0.1)
    assert_close(ours, jb.clipped_mean(0.1)(factors))
    ours = jax.vmap(lambda c: jb.clipped_sum(c, 3)(factors))(jnp.array([0.1, 0.2]))
    assert_close(jax.tree.map(lambda v: v[1], ours), jb.clipped_sum(0.2, 3)(factors))
    assert jb.clipped_mean(1.0) is jb.clipped_mean(1)


def test_a_batch_for_one_example_is_called_a_batch():
    batched = jax.vmap(functools.partial(jb.forward, NET, PARAMS))(X)
    deltas = jb.backprop(NET, PARAMS, X, T).delta
    for call in (
        lambda: jb.gradients(batched, deltas),
        lambda: jb.gradients(jb.forward(NET, PARAMS, X[0]), deltas),
        lambda: jb.backward(NET, PARAMS, batched, T),
        lambda: jb.propagate(NET, PARAMS, batched, deltas[-1]),
    ):
        with pytest.raises(ValueError, match=r"ONE example.* a batch: jax.vmap makes this"):
            call()
