"""Convolutional networks: the battery of the dense ones, rules, a user's own maps, training."""

from types import SimpleNamespace
from typing import Any

import battery
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, problem
from maps import Banded, Circulant, doubled

import jbackprop as jb
from jbackprop import Conv, Dense, MaxPool, MeanPool
from jbackprop.core.summary import brief

SIGN = jb.Rule("sign", lambda s: (jax.tree.map(jnp.sign, s.w).T @ s.delta) * s.slope)


PAIRS = {
    "softmax": (jb.softmax, jb.cross_entropy),
    "identity": (jb.identity, jb.squared_error),
    "sigmoid": (jb.sigmoid, jb.binary_cross_entropy),
    "slope": (jb.tanh, jb.huber),
}
NETS = {
    "2-D": jb.Network(
        ((6, 6, 2), Conv(3, 3, padding=1), MaxPool(2), 4, 3), jb.tanh, *PAIRS["softmax"]),
    "two convolutions": jb.Network(
        ((8, 7, 1), Conv(3, 3, stride=2, padding=1), MaxPool(2, stride=1), Conv(4, 2), 5, 2),
        (jb.tanh, jb.gelu, jb.sigmoid), *PAIRS["identity"]),
    "1-D": jb.Network(((9, 2), Conv(3, 3, dilation=2, padding="SAME"), MeanPool(3, stride=2), 3),
                      jb.silu, *PAIRS["sigmoid"]),
    "3-D": jb.Network(((4, 3, 4, 1), Conv(2, 2, padding="SAME"), MaxPool(2, padding=1), 3),
                      jb.elu, *PAIRS["slope"]),
    "convolutions alone": jb.Network(
        ((6, 5, 2), Conv(4, 3), MaxPool(2, stride=1), Conv(3, 1), MeanPool()),
        jb.tanh, *PAIRS["softmax"]),
    "a max behind the last": jb.Network(
        ((5, 1), Conv(4, 2), Conv(3, 2), MaxPool(3), Dense(3)), jb.softplus, *PAIRS["identity"]),
    "an image to a dense map": jb.Network(((4, 4, 2), 6, 3), jb.tanh, *PAIRS["softmax"]),
    "a convolution at the end": jb.Network(
        ((3, 2), Conv(2, 3), MeanPool()), jb.tanh, *PAIRS["slope"]),
    "circulant": jb.Network((5, Circulant(), 3), jb.tanh, *PAIRS["softmax"]),
    "banded": jb.Network((5, Banded(6), Banded(4)), jb.gelu, *PAIRS["identity"]),
}  # fmt: skip


@pytest.fixture(params=NETS)
def net(request):
    return NETS[request.param]


@pytest.mark.long(1)
def test_gradient_is_that_of_autodiff(net):
    battery.gradient_is_that_of_autodiff(jb, net, seed=1)


@pytest.mark.long(1)
@pytest.mark.parametrize("name", ["two convolutions", "a max behind the last"])
def test_gradient_is_that_of_autodiff_in_float64(name):
    with jax.enable_x64(True):
        battery.gradient_is_that_of_autodiff(jb, NETS[name], dtype="float64", seed=1)


# one of each kind: two dimensions and one, vectors, positions up to the end, a map of one's own
KINDS = ["two convolutions", "1-D", "convolutions alone", "circulant"]


@pytest.mark.long(1)
@pytest.mark.parametrize("name", KINDS)
def test_absent_rows_change_nothing(name):
    battery.absent_rows_change_nothing(jb, NETS[name])


@pytest.mark.long(1)
@pytest.mark.parametrize("name", KINDS)
def test_a_step_an_epoch_and_an_evaluation(name):
    net = NETS[name]
    params, x, t = problem(net, batch=7)
    optimizer = optax.sgd(0.1)
    state = jb.init_state(net, optimizer, jax.random.key(0), params=params)
    one, info = jb.train_step(net, optimizer, state, x, t)
    cost, gradient = jb.value_and_grad(net, params, x, t)
    assert_close(info.cost, cost)
    assert_close(one.params, jb.sgd_step(params, gradient, 0.1))
    order = jb.epoch_order(state, 7)
    end, seen = jb.train_epoch(net, optimizer, state, x, t, batch_size=4)
    for i, rows in enumerate((order[:4], order[4:])):
        state, info = jb.train_step(net, optimizer, state, x[rows], t[rows])
        assert_close(info.cost, seen.cost[i])
    assert_close(state.params, end.params)
    assert_close(jb.evaluate(net, params, x, t, batch_size=3).cost, cost)
    assert jb.predict(net, params, x[None]).shape == (1, 7, *net.shapes[-1])


def test_init_has_the_variance_of_its_inputs():
    net = jb.Network(((20, 20, 30), Conv(50, 4), MeanPool(), 10), jb.relu)
    w = jb.init(net, jax.random.key(0))[0].w
    assert w.shape == (50, 4, 4, 30)
    assert float(w.std()) == pytest.approx(np.sqrt(2 / (4 * 4 * 30)), rel=0.02)
    ones = jb.init(net, jax.random.key(0), initializer=jax.nn.initializers.ones)
    assert [layer.w.shape for layer in ones] == [(50, 4, 4, 30), (10, 50)]
    shapes = []
    note: Any = lambda key, shape, dtype: shapes.append(shape) or jnp.zeros(shape, dtype)
    jb.init(net, jax.random.key(0), initializer=note)
    assert shapes == [(50, 480), (10, 50)]


# ---- rules: each keeps its one line

SAME = lambda net, params, key: tuple(layer.w for layer in params[1:])
LIKE = {
    "feedback": jb.Rule("feedback", lambda s: (s.feedback.T @ s.delta) * s.slope, init=SAME),
    "either": jb.Rule(
        "either",
        lambda s: (jax.tree.map(lambda w, b: (w + b) / 2, s.w, s.feedback).T @ s.delta) * s.slope,
        init=SAME,
    ),
}


@pytest.mark.parametrize("rule", LIKE)
def test_feedback_like_the_weights_is_backpropagation(net, rule):
    params, x, t = problem(net)
    ours = jb.backprop(net, params, x, t, rule=LIKE[rule], feedback=SAME(net, params, None))
    assert_close(ours.delta, jb.backprop(net, params, x, t).delta)


def test_sign_symmetry_is_that_of_the_weights_signs(net):
    params, x, t = problem(net)
    tape = jb.forward(net, params, x[0])
    delta = jb.backward(net, params, tape, t[0])[-1]
    signed = tuple(jb.Layer(jnp.sign(w), b) for w, b in params)
    ours = jb.propagate(net, params, tape, delta, rule=SIGN)
    assert_close(ours, jb.propagate(net, signed, tape, delta))


def test_direct_feedback_reaches_every_shape():
    net = NETS["two convolutions"]
    params, x, t = problem(net)
    draw = lambda shape: jax.random.normal(jax.random.key(0), shape)
    matrices = tuple(draw((2, *shape)) for shape in net.z_shapes[:-1])
    rule = jb.Rule("direct", lambda s: (s.feedback.T @ s.output_delta) * s.slope)
    factors = jb.backprop(net, params, x, t, rule=rule, feedback=matrices)
    for matrix, f, z, delta in zip(
        matrices, net.activations, factors.tape.z, factors.delta, strict=False
    ):
        back = jnp.tensordot(factors.delta[-1], matrix, 1)
        assert_close(delta, back * f.df(z))


def test_what_a_rule_is_shown():
    net = NETS["two convolutions"]
    params, x, _ = problem(net)
    tape, seen = jb.forward(net, params, x[0]), []
    rule = jb.Rule("seen", lambda s: seen.append(s) or s.slope)
    jb.propagate(net, params, tape, jnp.ones(2), rule=rule)
    for s, (w, _), a, z in zip(seen[::-1], params[1:], tape.a[1:], tape.z, strict=False):
        assert_close(jax.tree.leaves(s.w), [w])
        assert s.a is a
        assert s.slope.shape == (s.w.T @ s.delta).shape == z.shape
    assert_close(seen[1].w @ seen[1].a, tape.z[2] - params[2].b, 1e-4)
    assert isinstance(seen[0].w, jax.Array)  # between vectors it is the matrix itself


# ---- small floats, and what does not fit


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_floats_keep_their_dtype_and_are_near(dtype):
    net = NETS["two convolutions"]
    params, x, t = problem(net)
    small = jax.tree.map(lambda p: p.astype(dtype), params)
    cost, gradient = jb.value_and_grad(net, small, x, t)
    assert cost.dtype == jnp.float32
    _, expected = jb.value_and_grad(net, params, x, t)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == dtype
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours.astype("float32"), theirs, atol=0.05 * scale)


IMAGE = (8, 8, 2)
FUNCTIONS = ("z_shape", "w_shape", "apply", "transpose", "weighted_sum")
NO_HASH = SimpleNamespace(**dict.fromkeys(FUNCTIONS, print))
BAD: dict[str, Any] = {
    "a kernel larger than the input": (
        (IMAGE, Conv(3, 9), 2), r"sizes: entry 1: Conv\(.*\): expected .* got \(8, 8\)"),
    "and with its padding": (
        (IMAGE, 3, Conv(3, 11, padding=1), 2), r"sizes: entry 2: Conv.* got \(3,\)"),
    "a vector": ((8, Conv(3, 3), 2), r"sizes: entry 1: Conv.*positions, channels\).* \(8,\)"),
    "a pooling first": ((IMAGE, MaxPool(2), 2), "sizes: expected a pooling behind .* entry 1"),
    "two poolings": ((IMAGE, Conv(3, 3), MaxPool(2), MeanPool(2), 2), "sizes: .* as entry 3"),
    "a pooling of a vector": ((IMAGE, 5, MaxPool(2), 2), "sizes: entry 2: MaxPool"),
    "a window that is too large": ((IMAGE, Conv(3, 3), MaxPool(7), 2), "sizes: entry 2: MaxPool"),
    "an output of images": ((IMAGE, Conv(3, 3)), r"sizes: .* shape \(n,\).* got \(6, 6, 3\)"),
    "a class": ((IMAGE, Conv(3, 3), MeanPool), r"sizes: expected MeanPool\(…\), got the class"),
    "what cannot be hashed": ((5, NO_HASH, 2), "sizes: expected entries that can be hashed"),
    "a word": ((IMAGE, "conv", 2), "sizes: expected whole numbers .* maps and poolings"),
    "a shape of nothing": (((), 2), "sizes: expected whole numbers"),
    "a shape with 0": (((8, 0), 2), "sizes: expected at least two sizes, each at least 1"),
    "a shape later": ((8, (3, 3), 2), "sizes: expected whole numbers"),
    "an input alone": ((IMAGE,), "sizes: expected at least two sizes"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_network_that_does_not_fit_is_named(name):
    sizes, said = BAD[name]
    with pytest.raises(ValueError, match=f"^{said}"):
        jb.Network(sizes)


def test_arguments_that_do_not_fit_are_named():
    net = NETS["2-D"]
    params, x, t = problem(net)
    for call, said in [
        (lambda: jb.backprop(net, params, x[..., :1], t), r"x: expected shape \(B, 6, 6, 2\)"),
        (lambda: jb.predict(net, params, x[0, 0]), r"x: expected shape \(..., 6, 6, 2\)"),
        (lambda: jb.forward(net, params, x), r"x: expected one example of shape \(6, 6, 2\)"),
        (lambda: jb.predict(net, [params[1], *params[1:]], x), r"params: expected w\^1 of shape"),
        (lambda: jb.gradients(jb.forward(net, params, x[0]), (t[0],) * 3, net.maps), "deltas: "),
        (lambda: jb.gradients(jb.forward(net, params, x[0]), jb.backward(
            net, params, jb.forward(net, params, x[0]), t[0])), "maps: expected net.maps"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"^{said}"):
            call()


# ---- what the factors tell


@pytest.mark.long
@pytest.mark.parametrize("name", ["two convolutions", "1-D", "3-D", "banded"])
def test_quantities_are_those_of_all_gradients(name):
    battery.quantities_are_those_of_all_gradients(jb, NETS[name])


def test_every_example_is_scaled_by_its_own_number(net):
    params, x, t = problem(net)
    c = jnp.array([0.0, 2, -1, 3, 0.5, 1])
    ours = jb.example_gradients(jb.scale(jb.backprop(net, params, x, t), c))
    plain = jb.example_gradients(jb.backprop(net, params, x, t))
    by = lambda g: jnp.expand_dims(c, range(1, g.ndim)) * g
    assert_close(ours, jax.tree.map(by, plain))


def test_of_equal_maxima_the_first_counts_for_autodiff_too():
    net = jb.Network(((3, 1), Conv(1, 2), MaxPool(2), 1), jb.tanh)
    params = [(jnp.ones((1, 2, 1)), jnp.zeros(1)), (jnp.ones((1, 1)), jnp.zeros(1))]
    x, t = jnp.array([[[0.3], [0.0], [0.3]]]), jnp.ones((1, 1))
    theirs = jax.grad(jb.mean_cost, argnums=1)(net, params, x, t)
    assert_close(jb.value_and_grad(net, params, x, t)[1], theirs)
    assert theirs[0][0].ravel()[1] == 0


@pytest.mark.long(1)
@pytest.mark.parametrize("map_", [
    Conv(1, 1, stride=10, padding=((2, 0),)), Conv(2, 2, stride=20, padding=6),
    Conv(2, 2, padding=4),
], ids=str)  # fmt: skip
def test_windows_of_padding_alone(map_):
    net = jb.Network(((3, 1), map_, 2), jb.tanh)
    battery.gradient_is_that_of_autodiff(jb, net)


def test_direct_feedback_where_a_pooling_is_last():
    net = jb.Network(((6, 2), Conv(3, 2), Conv(2, 1), MeanPool()), jb.tanh)
    params, x, t = problem(net)
    rule = jb.Rule("direct", lambda s: (s.feedback.T @ s.output_delta) * s.slope)
    matrix = jax.random.normal(jax.random.key(0), (2, *net.z_shapes[0]))
    factors = jb.backprop(net, params, x, t, rule=rule, feedback=(matrix,))
    error = factors.tape.a[-1] - t
    back = jnp.tensordot(error, matrix, 1)
    assert_close(factors.delta[0], back * jb.tanh.df(factors.tape.z[0]))


def test_a_subclass_is_asked():
    twice = doubled(Dense)(3)
    net = jb.Network((4, twice, 2))
    assert net.maps[0] is twice
    battery.gradient_is_that_of_autodiff(jb, net)


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("apply", lambda self, w, a: a[:2], r"apply\(w, a\) of shape \(5,\), got \(2,\)"),
        ("transpose", lambda *_: jnp.ones(()), r"transpose\(.*\) of shape \(5,\), got \(\)"),
        ("weighted_sum", lambda *_: jnp.ones(4), r"weighted_sum\(.*\) of shape \(5,\), got"),
    ],
)
def test_what_a_map_returns_is_looked_at(name, wrong, said):
    mine = type("Mine", (Circulant,), {name: wrong})()
    net = jb.Network((5, 5, mine), jb.tanh)
    params, x, t = problem(net)
    with pytest.raises(ValueError, match=f"Mine.*: expected {said}|Circulant.*: expected {said}"):
        jb.value_and_grad(net, params, x, t)


class Lost(MeanPool):
    """A pooling of a user's own, whose adjoint forgets where."""

    def transpose(self, u, e):
        return jnp.sum(e)


@pytest.mark.parametrize("rest", [(3,), ()], ids=["between maps", "behind the last"])
def test_what_a_pooling_returns_is_looked_at(rest):
    net = jb.Network(((4, 1), Conv(2, 2), Lost(), *rest), jb.tanh)
    params, x, t = problem(net)
    with pytest.raises(ValueError, match=r"Lost.*: expected transpose\(u, e\) of shape \(3, 2\)"):
        jb.value_and_grad(net, params, x, t)


def test_networks_are_equal_by_value_and_know_their_shapes():
    sizes = ((28, 28, 1), Conv(16, 8, stride=2, padding=3), MaxPool(2, stride=1),
             Conv(32, 4, stride=2), MaxPool(2, stride=1), 32, 10)  # fmt: skip
    net = jb.Network(sizes)
    assert net.shapes == ((28, 28, 1), (13, 13, 16), (4, 4, 32), (32,), (10,))
    assert net.z_shapes == ((14, 14, 16), (5, 5, 32), (32,), (10,))
    assert net == jb.Network([list(sizes[0]), *sizes[1:-2], Dense(32), Dense(10)])
    assert hash(net) == hash(jb.Network(list(sizes)))
    assert net != jb.Network((*sizes[:-2], 33, 10))
    assert jb.Network(((4,), Dense(3))) == jb.Network((4, 3))
    assert (jb.Network((4, 3)).flat, net.flat) == (True, False)


@pytest.mark.parametrize(
    ("entry", "said"),
    [(MeanPool(2), "MeanPool(2)"), (MeanPool(), "MeanPool()"), (MaxPool(2), "MaxPool(2)"),
     (MeanPool(3, stride=2), "MeanPool(3, stride=2)"), (Conv(4, 3), "Conv(4, 3)"),
     (MaxPool(3, stride=2, padding="SAME"), "MaxPool(3, stride=2, padding='SAME')"),
     (Conv(4, (3, 1), stride=2, padding=1), "Conv(4, (3, 1), stride=2, padding=1)")],
    ids=str,
)  # fmt: skip
def test_an_entry_is_printed_as_one_would_write_it(entry, said):
    assert brief(entry) == said
    assert eval(said) == entry
