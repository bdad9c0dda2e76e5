"""C, ∇_y C and the output heads: against the textbook, autodiff and float64 closed forms."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from helpers import HEADS, head_name
from references import COSTS, EXACT

import jbackprop as jb
from jbackprop.core.heads import head

ALL = [jb.squared_error, jb.binary_cross_entropy, jb.cross_entropy, jb.huber, jb.log_cosh]
SATURATED = [0.0, 17.0, -17.0, 88.0, -88.0, 104.0, -104.0, 1e4, -1e4, 1e30, -1e30]


@pytest.mark.parametrize("cost", ALL, ids=lambda c: c.name)
@pytest.mark.parametrize("scale", [1e-2, 0.3])
def test_value_and_gradient(cost, scale):
    with jax.enable_x64(True):
        y = jnp.array([0.2, 0.7, 0.5])
        t = y + scale * jnp.array([1.0, -2.0, 0.5])
        np.testing.assert_allclose(cost.value(y, t), COSTS[cost.name](y, t), rtol=1e-12)
        slope = jax.grad(COSTS[cost.name])(y, t)
        np.testing.assert_allclose(cost.grad(y, t), slope, rtol=1e-10)


@pytest.mark.parametrize("cost", [jb.huber, jb.log_cosh], ids=lambda c: c.name)
@pytest.mark.parametrize("e", [1e-30, 1e-4, 0.99, 1.01, 50.0, 1e4, 1e30])
def test_robust_costs_are_exact_near_zero_and_far_out(cost, e):
    y, t = jnp.array([e], jnp.float32), jnp.zeros(1)
    wide = np.float64(np.float32(e))
    huber = wide**2 / 2 if wide <= 1 else wide - 0.5
    log_cosh = wide**2 / 2 if wide < 1e-5 else wide + np.log1p(np.exp(-2 * wide)) - np.log(2)
    expected = huber if cost == jb.huber else log_cosh
    np.testing.assert_allclose(cost.value(y, t), expected, rtol=1e-5, atol=1e-37)
    assert jnp.isfinite(jax.grad(cost.value)(y, t)).all()


@pytest.mark.parametrize("cost", [jb.binary_cross_entropy, jb.cross_entropy], ids=lambda c: c.name)
def test_zero_times_log_zero_is_zero(cost):
    y = t = jnp.array([0.0, 1.0])
    assert float(cost.value(y, t)) == 0
    assert jnp.isfinite(cost.grad(y, t)).all()


@pytest.mark.parametrize("pair", HEADS, ids=head_name)
def test_delta_of_every_head_is_the_derivative_of_its_cost(pair):
    output, cost = pair
    with jax.enable_x64(True):
        z, t = jnp.array([0.3, -0.8, 1.1]), jnp.array([0.2, 0.5, 0.3])
        y = output.f(z)
        start = head(output, cost)
        np.testing.assert_allclose(start.value(z, y, t), COSTS[cost.name](y, t), rtol=1e-12)
        delta = jax.grad(lambda z: COSTS[cost.name](output.f(z), t))(z)
        np.testing.assert_allclose(start.delta(z, y, t), delta, rtol=1e-10)


@pytest.mark.parametrize("z", SATURATED)
@pytest.mark.parametrize("t", [0.0, 0.25, 1.0])
def test_sigmoid_head_is_finite_and_exact_when_saturated(z, t):
    wide = np.float64(np.float32(z))
    # ln(1 + e^z) in float64, from either side
    plus, minus = np.logaddexp(0, wide), np.logaddexp(0, -wide)
    z, t = jnp.array([z], jnp.float32), jnp.array([t], jnp.float32)
    y = jb.sigmoid.f(z)
    start = head(jb.sigmoid, jb.binary_cross_entropy)
    cost = start.value(z, y, t)
    expected = float(t[0]) * minus + (1 - float(t[0])) * plus
    np.testing.assert_allclose(cost, expected, rtol=1e-6, atol=1e-37)
    np.testing.assert_allclose(start.delta(z, y, t), np.exp(-minus) - t, rtol=1e-6, atol=1.2e-7)


@pytest.mark.parametrize("z", SATURATED)
@pytest.mark.parametrize("t", [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.2, 0.3, 0.5], [0.5, 0.5, 1.0]])
def test_softmax_head_is_finite_and_exact_when_saturated(z, t):
    z, t = jnp.array([z, -z, 0.5], jnp.float32), jnp.array(t)
    wide = np.asarray(z, np.float64)
    log_y = wide - np.logaddexp.reduce(wide)
    y = jb.softmax.f(z)
    start = head(jb.softmax, jb.cross_entropy)
    expected = -np.sum(np.asarray(t, np.float64) * log_y)
    np.testing.assert_allclose(start.value(z, y, t), expected, rtol=1e-6, atol=1.2e-7)
    expected = np.exp(log_y) * float(t.sum()) - np.asarray(t)
    np.testing.assert_allclose(start.delta(z, y, t), expected, rtol=1e-6, atol=1.2e-7)


@pytest.mark.parametrize("pair", HEADS[:3], ids=head_name)
def test_three_heads_give_y_minus_t(pair):
    z, t = jnp.array([0.3, -0.8, 1.1]), jnp.array([0.2, 0.5, 0.3])
    y = pair[0].f(z)
    np.testing.assert_allclose(head(*pair).delta(z, y, t), y - t, atol=1e-7)


def test_equality_decides_what_fuses():
    twin = jb.Activation("sigmoid", jb.sigmoid.f, jb.sigmoid.df)
    assert head(twin, jb.binary_cross_entropy) is head(jb.sigmoid, jb.binary_cross_entropy)
    other = jb.Activation("sigmoid", lambda z: z, lambda z: z)
    assert head(other, jb.binary_cross_entropy) is not head(jb.sigmoid, jb.binary_cross_entropy)


# Every output with every cost that takes it, beyond where exp is ∞ or 0, against 400 digits.
LOGITS = [
    [0.3, -0.8, 1.1], [8.5, -8.5, 0.0], [-8.5, 8.5, 8.5], [95.0, -95.0, 3.0], [30.0, 29.0, -200.0],
    [350.0, -350.0, 0.5], [-350.0, -350.0, -350.0],
]  # fmt: skip
TARGETS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
ENTROPIES = [jb.cross_entropy, jb.binary_cross_entropy]
PAIRS = [(output, cost) for output in (jb.sigmoid, jb.softmax) for cost in ENTROPIES]
OTHERS = [jb.softmax, jb.sigmoid, jb.tanh, jb.softplus, jb.log_sigmoid, jb.identity]
PAIRS += [(o, c) for o in OTHERS for c in (jb.squared_error, jb.huber, jb.log_cosh)]


def exact_head(output, cost, z, t):
    """(C, δ), δ by the textbook's ∇_y C and Jacobian, which do not cancel there."""
    z, t = ([mp.mpf(float(v)) for v in row] for row in (z, t))
    with mp.workdps(400):
        if output == jb.softmax:
            top = max(z)
            parts = [mp.exp(v - top) for v in z]
            y = [part / sum(parts) for part in parts]
            jacobian = [[y[k] * ((k == j) - y[j]) for j in range(len(z))] for k in range(len(z))]
        else:
            f = EXACT[output.name]
            y = [f(v) for v in z]
            slope = {
                "sigmoid": lambda v: 1 / (2 + mp.exp(v) + mp.exp(-v)),
                "tanh": lambda v: 1 / mp.cosh(v) ** 2,
                "softplus": lambda v: 1 / (1 + mp.exp(-v)),
                "log_sigmoid": lambda v: 1 / (1 + mp.exp(v)),
                "identity": lambda v: mp.mpf(1),
            }[output.name]
            jacobian = [[slope(z[k]) * (k == j) for j in range(len(z))] for k in range(len(z))]
        term = lambda a, v: a * mp.log(v) if a else mp.mpf(0)
        over = lambda a, v: a / v if a else mp.mpf(0)
        e = [a - b for a, b in zip(y, t, strict=True)]
        pairs = [*zip(y, t, strict=True)]
        value, grad = {
            "cross_entropy": lambda: (
                -sum(term(b, a) for a, b in pairs), [-over(b, a) for a, b in pairs]),
            "binary_cross_entropy": lambda: (
                -sum(term(b, a) + term(1 - b, 1 - a) for a, b in pairs),
                [over(1 - b, 1 - a) - over(b, a) for a, b in pairs]),
            "squared_error": lambda: (sum(v**2 for v in e) / 2, e),
            "huber": lambda: (
                sum(v**2 / 2 if abs(v) <= 1 else abs(v) - mp.mpf(0.5) for v in e),
                [min(max(v, mp.mpf(-1)), mp.mpf(1)) for v in e]),
            "log_cosh": lambda: (
                sum(abs(v) + mp.log1p(mp.exp(-2 * abs(v))) - mp.log(2) for v in e),
                [mp.tanh(v) for v in e]),
        }[cost.name]()  # fmt: skip
        delta = [sum(jacobian[j][k] * grad[j] for j in range(len(z))) for k in range(len(z))]
        return float(value), [float(v) for v in delta]


@pytest.mark.parametrize("pair", PAIRS, ids=head_name)
def test_every_head_is_right_when_saturated(pair):
    output, cost = pair
    start = jax.jit(lambda z, t: (
        head(*pair).value(z, output.f(z), t), head(*pair).delta(z, output.f(z), t),
        jax.grad(lambda z: head(*pair).value(z, output.f(z), t))(z)))  # fmt: skip
    for z in LOGITS:
        for t in TARGETS:
            value, delta = exact_head(output, cost, *np.array([z, t], np.float32))
            ours, our_delta, slope = start(jnp.array(z), jnp.array(t))
            np.testing.assert_allclose(ours, value, rtol=1e-5, atol=3e-7, err_msg=f"C {z} {t}")
            lost = 2e-6 if output == jb.tanh else 3e-7  # see its f'
            np.testing.assert_allclose(our_delta, delta, rtol=1e-5, atol=lost, err_msg=f"δ {z} {t}")
            assert jnp.isfinite(slope).all()


@pytest.mark.parametrize("output", [jb.hard_sigmoid], ids=lambda f: f.name)
@pytest.mark.parametrize("cost", [jb.cross_entropy, jb.binary_cross_entropy], ids=lambda c: c.name)
def test_an_output_of_0_or_1_passes_no_infinity_back(output, cost):
    z, t = jnp.array([-9.0, 9.0, 0.0]), jnp.array([0.0, 1.0, 0.25])
    delta = head(output, cost).delta(z, output.f(z), t)
    assert delta[:2].tolist() == [0, 0]
    assert jnp.isfinite(delta).all()
    wrong = head(output, cost).delta(z, output.f(z), 1 - t)  # C is infinite, and flat
    assert wrong[:2].tolist() == [0, 0]


@pytest.mark.long(2)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("label", [True, False])
def test_a_class_may_be_switched_off(dtype, label):
    """By a bias of -∞: of two others alike the cost is ln 2, and nothing flows to the third."""
    net = jb.Network((2, 3), output=jb.softmax, cost=jb.cross_entropy)
    params = (jb.Layer(jnp.zeros((3, 2), dtype), jnp.array([0.0, 0.0, -jnp.inf], dtype)),)
    t = jnp.array([0, 1]) if label else jnp.eye(3)[:2]
    with jax.debug_nans(True):
        cost, gradient = jb.value_and_grad(net, params, jnp.ones((2, 2)), t)
        theirs = jax.grad(jb.mean_cost, argnums=1)(net, params, jnp.ones((2, 2)), t)
    assert float(cost) == pytest.approx(np.log(2), rel=1e-6)
    assert gradient[0].b.tolist() == [0, 0, 0]
    assert theirs[0].b.tolist() == [0, 0, 0]
    for output, t in ((jb.softmax, [[1.0, 0, 0]]), (jb.sigmoid, [[1.0, 0.5, 0]])):
        net = jb.Network((2, 3), output=output, cost=jb.binary_cross_entropy)
        cost, gradient = jb.value_and_grad(net, params, jnp.ones((1, 2)), jnp.array(t))
        expected = 2 * np.log(2)
        assert float(cost) == pytest.approx(expected, rel=1e-6)
        assert float(gradient[0].b[2]) == 0
        slope = jax.grad(jb.mean_cost, argnums=1)(net, params, jnp.ones((1, 2)), jnp.array(t))
        assert jnp.isfinite(slope[0].b).all()


def test_float16_logits_of_4e4_have_a_cost():
    net = jb.Network((1, 2), output=jb.softmax, cost=jb.cross_entropy)
    params = (jb.Layer(jnp.array([[4e4], [-4e4]], "float16"), jnp.zeros(2, "float16")),)
    for t in (jnp.array([1]), jnp.array([[0.0, 1.0]])):
        cost, gradient = jb.value_and_grad(net, params, jnp.ones((1, 1)), t)
        assert float(cost) == pytest.approx(8e4, rel=1e-3)
        assert gradient[0].b.tolist() == [1, -1]


@pytest.mark.parametrize("cost", [jb.cross_entropy, jb.binary_cross_entropy], ids=lambda c: c.name)
def test_a_probability_of_0_for_what_happened_costs_infinitely_much(cost):
    """And of 0 for what did not, nothing, with slope 0."""
    assert cost.value(jnp.array([0.0, 0.5]), jnp.array([1.0, 0.0])) == jnp.inf
    assert cost.value(jnp.array([0.0, 1.0]), jnp.array([0.0, 1.0])) == 0
    if cost == jb.binary_cross_entropy:
        assert cost.value(jnp.array([1.0]), jnp.array([0.0])) == jnp.inf
    slope = jax.grad(cost.value)(jnp.array([0.0, 0.5]), jnp.array([0.0, 1.0]))
    assert slope[1] == -2
    assert jnp.isfinite(slope[0])


@pytest.mark.parametrize("delta", [0.5, 1.0, 3.0])
def test_huber_has_its_slope_at_its_corners_by_autodiff_too(delta):
    cost, t = jb.huber_of(delta), jnp.zeros(5)
    y = jnp.array([-delta, -delta / 2, 0, delta, 2 * delta])
    assert jax.grad(cost.value)(y, t).tolist() == cost.grad(y, t).tolist()
    assert cost.grad(y, t).tolist() == [-delta, -delta / 2, 0, delta, delta]
    expected = delta**2 * (0.5 + 0.125 + 0.5 + 1.5)
    assert float(cost.value(y, t)) == pytest.approx(expected)


@pytest.mark.parametrize("on", [0, 1, 2])
def test_a_single_class_that_is_on_is_certain(on):
    """All others switched off by z = -∞: the class costs nothing where it is right."""
    of_pair = head(jb.softmax, jb.binary_cross_entropy)
    z = jnp.full(3, -jnp.inf).at[on].set(5.0)
    t = jnp.zeros(3).at[on].set(1.0)
    value = lambda z, t: of_pair.value(z, jb.softmax.f(z), t)
    with jax.debug_nans(True):
        assert value(z, t) == 0
        assert value(z, jnp.roll(t, 1)) == jnp.inf
        assert jnp.isfinite(jax.grad(value)(z, t)).all()
        assert of_pair.delta(z, jb.softmax.f(z), t).tolist() == [0, 0, 0]
        nothing = of_pair.delta(z, jb.softmax.f(z), jnp.zeros(3))
        assert jnp.delete(nothing, on).tolist() == [0, 0]
