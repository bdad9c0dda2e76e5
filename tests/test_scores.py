"""Scores of examples, against their definitions; blocks of any size agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import problem
from materialised import NETS, Case, close

import jbackprop as jb

NET = NETS["softmax"]


def test_grand_and_el2n():
    case = Case(NET, jnp.array([1.0, 0, 2, 1, 1, 1]))
    close(jb.grand(case.factors), np.linalg.norm(case.g, axis=1))
    error = np.asarray(jb.predict(NET, case.params, case.x) - case.t, np.float64)
    close(jb.el2n(case.factors), np.linalg.norm(error, axis=1) * (case.w > 0))


@pytest.mark.parametrize("of", ["float16", "bfloat16"])
def test_the_error_of_small_floats_is_measured_in_float32(of):
    case = Case(NET)
    small = jax.tree.map(lambda p: p.astype(of), case.params)
    found = jb.el2n(jb.backprop(NET, small, case.x, case.t))
    assert found.dtype == jnp.float32
    close(found, jb.el2n(case.factors), 2e-2)


@pytest.mark.parametrize("block_size", [1, 3, 4, 6, 100])
def test_influence(block_size):
    case, test = Case(NET), Case(NET, batch=4, seed=9)
    factors = jb.backprop(NET, case.params, test.x, test.t)
    mean = case.vector(jb.mean_gradient(factors))
    ours = jb.influence(NET, case.params, case.x, case.t, test.x, test.t, block_size=block_size)
    close(ours, case.g @ mean)


def test_influence_is_how_much_a_step_lowers_the_test_cost():
    """To first order: ∂/∂η of the test cost after a step of length η on one example."""
    params, x, _ = problem(NET)
    labels = jnp.array([0, 1, 2, 0, 1, 2])
    scores = jb.influence(NET, params, x, labels, x[3:], labels[3:])

    def after(i, rate):
        _, gradient = jb.value_and_grad(NET, params, x[i : i + 1], labels[i : i + 1])
        return jb.mean_cost(NET, jb.sgd_step(params, gradient, rate), x[3:], labels[3:])

    for i in range(3):
        slope = jax.grad(lambda rate, i=i: after(i, rate))(0.0)
        np.testing.assert_allclose(scores[i], -slope, rtol=1e-4)


def test_bad_input_is_named():
    params, x, t = problem(NET)
    with pytest.raises(ValueError, match=r"^block_size: expected a whole number"):
        jb.influence(NET, params, x, t, x, t, block_size=0)
    with pytest.raises(ValueError, match=r"^t: expected shape"):
        jb.influence(NET, params, x, t[:3], x, t)
