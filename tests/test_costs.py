"""C, ∇_y C and the output heads: against the textbook, autodiff and float64 closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import HEADS, head_name
from references import COSTS

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
