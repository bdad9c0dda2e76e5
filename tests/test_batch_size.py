"""The tests of a batch's size, against their definitions on all gradients written out."""

import jax
import jax.numpy as jnp
import materialised
import numpy as np
import pytest
from helpers import problem
from materialised import CASES, NETS, Case, close

import jbackprop as jb
from jbackprop.quantities.batch_size import along_mean
from jbackprop.quantities.spread import spread


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return materialised.case(*request.param)


@pytest.mark.long(2)
def test_the_three_tests(case):
    kappa, m = (case.p**2).sum(), case.mean @ case.mean
    factor = kappa / (1 - kappa) / m
    s, along = case.p @ (case.g**2).sum(1), case.p @ (case.g @ case.mean) ** 2
    close(jb.norm_test(case.factors), factor * (s - m), 1e-5)
    close(jb.inner_product_test(case.factors), factor * (along - m**2) / m, 1e-5)
    close(jb.orthogonality_test(case.factors), factor * (s - along / m), 1e-5)


def test_one_is_the_sum_of_the_others(case):
    parts = jb.inner_product_test(case.factors) + jb.orthogonality_test(case.factors)
    np.testing.assert_allclose(jb.norm_test(case.factors), parts, rtol=1e-5)


def test_norm_test_is_the_papers_without_weights():
    case = Case(NETS["deep"])
    expected = np.trace(np.cov(case.g.T)) / len(case.g) / (case.mean @ case.mean)
    close(jb.norm_test(case.factors), expected, 1e-5)


@pytest.mark.parametrize("width", [3, 200])
def test_both_ways_to_the_products_with_the_mean(width):
    """All pairs where they are fewer than parameters, the mean itself otherwise."""
    case = Case(jb.Network((width, width, 2)))
    along = case.g @ case.mean / (case.mean @ case.mean) - 1
    close(along_mean(case.factors, spread(case.factors)), along, 1e-5)


@pytest.mark.long(5)
def test_signal_to_noise(case):
    spread = case.p @ (case.g - case.mean) ** 2
    ours = case.vector(jb.signal_to_noise(case.factors))
    clear = spread > 1e-4 * spread.max()
    np.testing.assert_allclose(ours[clear], (case.mean**2 / spread)[clear], rtol=1e-2)


def test_takeuchi(case):
    close(jb.takeuchi(case.factors), case.p @ (case.g**2).sum(1))
    h = jax.tree.map(lambda p: 1 + p**2, case.params)
    expected = ((case.p @ case.g**2) / case.vector(h)).sum()
    close(jb.takeuchi(case.factors, h), expected)


def test_one_example_is_nan_and_none_is_zero():
    params, x, t = problem(NETS["softmax"])
    tests = (jb.norm_test, jb.inner_product_test, jb.orthogonality_test)
    one = jb.backprop(NETS["softmax"], params, x[:1], t[:1])
    assert all(jnp.isnan(test(one)) for test in tests)
    none = jb.backprop(NETS["softmax"], params, x, t, weight=jnp.zeros(6))
    assert [float(test(none)) for test in tests] == [0, 0, 0]


def test_regression_with_targets_near_20_000_keeps_its_spread():
    """Float32 loses the spread of such gradients in a difference of squares: 9.63 became 0."""
    net = jb.Network((3, 4, 1))
    params, x, _ = problem(net, batch=64)
    t = 20_000 + 3 * jax.random.normal(jax.random.key(5), (64, 1))
    case = Case(net, batch=64)
    case.factors = factors = jb.backprop(net, params, x, t)
    leaves = jax.tree.leaves(jb.example_gradients(jax.tree.map(np.float64, factors)))
    g = case.flat(leaves, 64)
    spread = ((g - g.mean(0)) ** 2).mean(0)
    assert spread.min() < 1e-5 * (g.mean(0) ** 2).max()
    ours = np.concatenate([np.ravel(v) for v in jax.tree.leaves(jb.variance(factors))])
    np.testing.assert_allclose(ours, spread, rtol=5e-5)
    assert float(jb.noise_scale(factors).trace) == pytest.approx(spread.sum() * 64 / 63, rel=1e-5)
    signal = np.concatenate([np.ravel(v) for v in jax.tree.leaves(jb.signal_to_noise(factors))])
    np.testing.assert_allclose(signal, g.mean(0) ** 2 / spread, rtol=1e-4)


def test_signal_to_noise_of_identical_rows_is_infinite_everywhere():
    params, x, t = problem(NETS["softmax"])
    same = jnp.repeat(x[:1], 6, axis=0), jnp.repeat(t[:1], 6, axis=0)
    for weight in (None, jnp.array([1.0, 2, 0, 0.3, 1, 1])):
        found = jb.signal_to_noise(jb.backprop(NETS["softmax"], params, *same, weight=weight))
        assert all(jnp.isinf(leaf).all() for leaf in jax.tree.leaves(found))


@jax.numpy_dtype_promotion("strict")
def test_a_curvature_of_small_floats():
    net = jb.Network((3, 2))
    params = jb.init(net, jax.random.key(0), dtype=jnp.bfloat16)
    factors = jb.backprop(net, params, jnp.eye(3), jnp.ones((3, 2)))
    ours = jb.takeuchi(
        factors, jax.tree.map(lambda g: 2 * jnp.ones_like(g), jb.mean_gradient(factors))
    )
    assert ours.dtype == jnp.float32
    assert float(ours) == pytest.approx(float(jb.takeuchi(factors)) / 2, rel=1e-2)
