"""Cost and accuracy over a dataset."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, problem, temporaries

import jbackprop as jb

NET = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)


@pytest.mark.parametrize("batch_size", [None, 1, 2, 4, 6, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_definition_at_every_batch_size(batch_size, weighted):
    params, x, t = problem(NET)
    weight = jnp.array([1.0, 0, 2, 1, 0.5, 3]) if weighted else None
    x = x.at[1].set(jnp.nan) if weighted else x
    metrics = jb.evaluate(NET, params, x, t, weight=weight, batch_size=batch_size)
    w = np.ones(6) if weight is None else np.asarray(weight)
    right = np.asarray(jnp.argmax(jb.predict(NET, params, x), -1) == jnp.argmax(t, -1))
    assert_close(metrics.cost, jb.mean_cost(NET, params, x, t, weight=weight))
    assert float(metrics.accuracy) == pytest.approx((w * right).sum() / w.sum(), rel=1e-6)


def test_labels_and_one_hot_agree():
    params, x, _ = problem(NET)
    labels = jnp.array([0, 1, 2, 0, 1, 2], jnp.uint8)
    one_hot = jnp.eye(3)[labels]
    assert_close(jb.evaluate(NET, params, x, labels), jb.evaluate(NET, params, x, one_hot))


def test_one_output_is_a_threshold_with_binary_cross_entropy_and_nothing_otherwise():
    params = [(jnp.ones((1, 1)), jnp.zeros(1))]
    x, t = jnp.array([[-2.0], [3.0], [1.0]]), jnp.array([[0.0], [1.0], [0.0]])
    net = jb.Network((1, 1), output=jb.sigmoid, cost=jb.binary_cross_entropy)
    assert float(jb.evaluate(net, params, x, t).accuracy) == pytest.approx(2 / 3)
    for weight in (None, jnp.array([1.0, 1.0, 0.0])):
        metrics = jb.evaluate(jb.Network((1, 1)), params, x, t, weight=weight)
        assert jnp.isnan(metrics.accuracy)
        assert jnp.isfinite(metrics.cost)


def test_a_bad_row_makes_both_nan_and_no_rows_make_both_zero():
    params, x, _ = problem(NET)
    metrics = jb.evaluate(NET, params, x, jnp.array([0, 1, 2, 3, 1, 2]))
    assert jnp.isnan(metrics.cost)
    assert jnp.isnan(metrics.accuracy)
    absent = jb.evaluate(NET, params, x, jnp.zeros(6, int), weight=jnp.zeros(6))
    assert (float(absent.cost), float(absent.accuracy)) == (0, 0)


def test_memory_grows_with_the_batch_and_not_with_the_data():
    params, _, _ = problem(NET)
    x, t = jnp.zeros((4096, 4)), jnp.zeros(4096, int)
    evaluate = jax.jit(partial(jb.evaluate, NET), static_argnames="batch_size")
    compiled = [evaluate.lower(params, x, t, batch_size=size).compile() for size in (None, 64)]
    whole, small = map(temporaries, compiled)
    assert small < whole / 4


def test_one_trace_per_shape():
    traces = []

    def f(z):
        traces.append(z.shape)
        return jnp.tanh(z)

    net = jb.Network((4, 5, 3), jb.Activation("counted", f, jb.tanh.df))
    params, x, t = problem(net)
    for _ in range(5):
        jb.evaluate(net, params, x, t, batch_size=4)
    assert len(traces) == 2  # the loop's body, and the short batch
