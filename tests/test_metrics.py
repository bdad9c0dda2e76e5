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
    assert len(traces) == 3  # the loop's body, before that its shapes, and the short batch


# what is right: by labels, by cross_entropy, by one-hot rows, by the user's word; else NaN
IDENTITY = [(jnp.eye(3), jnp.zeros(3))]
Y = jnp.array([[0.9, 0.1, 0.0], [0.2, 0.7, 0.6], [0.4, 0.3, 0.8]])
HOT = jnp.eye(3)[jnp.array([0, 1, 1])]
REGRESSION = jb.Network((3, 3))


def test_one_hot_rows_are_classified_under_every_cost_and_others_are_not():
    for cost in (jb.squared_error, jb.huber, jb.log_cosh):
        net = jb.Network((3, 3), cost=cost)
        assert float(jb.evaluate(net, IDENTITY, Y, HOT).accuracy) == pytest.approx(2 / 3)
        for t in (Y, 2 * HOT, HOT.at[1].set(0.0), HOT.at[2, 0].set(1.0), HOT * 0.5,
                  HOT.at[0, 1].set(0.3)):  # fmt: skip
            metrics = jb.evaluate(net, IDENTITY, Y, t)
            assert jnp.isnan(metrics.accuracy)
            assert jnp.isfinite(metrics.cost)


@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_rows_that_are_absent_need_not_be_one_hot(batch_size):
    t, weight = HOT.at[1].set(jnp.array([0.3, jnp.nan, 0.2])), jnp.array([1.0, 0.0, 1.0])
    metrics = jb.evaluate(REGRESSION, IDENTITY, Y, t, weight=weight, batch_size=batch_size)
    assert float(metrics.accuracy) == pytest.approx(1 / 2)
    soft = t.at[1].set(Y[1])
    present = jb.evaluate(REGRESSION, IDENTITY, Y, soft, batch_size=batch_size)
    assert jnp.isnan(present.accuracy)


def test_soft_targets_are_classified_under_cross_entropy():
    net = jb.Network((3, 3), output=jb.softmax, cost=jb.cross_entropy)
    soft = jnp.array([[0.6, 0.4, 0.0], [0.2, 0.3, 0.5], [0.1, 0.1, 0.8]])
    assert float(jb.evaluate(net, IDENTITY, Y, soft).accuracy) == pytest.approx(2 / 3)


@pytest.mark.parametrize("batch_size", [None, 2])
def test_several_labels_at_once(batch_size):
    net = jb.Network((3, 3), output=jb.sigmoid, cost=jb.binary_cross_entropy)
    t = jnp.array([[1, 1, 0], [1, 1, 1], [0, 0, 1]])
    z = 8 * jnp.array([[1, 1, -1], [1, 1, -1], [-1, -1, 1]])
    assert jnp.isnan(jb.evaluate(net, IDENTITY, z, t).accuracy)
    metrics = jb.evaluate(net, IDENTITY, z, t, right=jb.every_label, batch_size=batch_size)
    assert float(metrics.accuracy) == pytest.approx(2 / 3)
    weighted = jb.evaluate(
        net, IDENTITY, z, t, right=jb.every_label, batch_size=batch_size, weight=[1, 2, 3]
    )
    assert float(weighted.accuracy) == pytest.approx(4 / 6)


def _near(y, t):
    return jnp.abs(y - t).max() < 0.5


@pytest.mark.parametrize(
    "right",
    [_near, lambda y, t: jnp.where(_near(y, t), 1, 0), lambda y, t: _near(y, t).astype(float)],
)
def test_right_is_the_users_word(right):
    t = Y.at[1, 1].add(0.6).at[2].add(0.1)
    metrics = jb.evaluate(REGRESSION, IDENTITY, Y, t, right=right)
    assert float(metrics.accuracy) == pytest.approx(2 / 3)
    labels = jb.Network((3, 3), output=jb.softmax, cost=jb.cross_entropy)
    seen = lambda y, t: (t.shape == (3,)) & (t[1] == 1)  # a label comes as a vector
    metrics = jb.evaluate(labels, IDENTITY, Y, [0, 1, 1], right=seen)
    assert float(metrics.accuracy) == pytest.approx(2 / 3)


def test_right_of_no_single_number_is_named():
    with pytest.raises(ValueError, match=r"^right: expected shape \(\), got \(3,\)"):
        jb.evaluate(REGRESSION, IDENTITY, Y, HOT, right=lambda y, t: y > t)


@pytest.mark.parametrize(
    ("y", "t", "right"),
    [(0.5, 0, True), (0.5, 1, False), (0.51, 1, True), (0.9, 1, True), (0.9, 0, False),
     (0.1, 0, True), (0.2, 0.5, True), (0.8, 0.5, False), (0.8, 0.7, True)],
)  # fmt: skip
def test_half_is_not_above_half(y, t, right):
    assert bool(jb.every_label(jnp.array([y, 0.0]), jnp.array([t, 0.0]))) == right
    net = jb.Network((1, 1), output=jb.Activation("as it is", lambda z: z, jnp.ones_like),
                     cost=jb.binary_cross_entropy)  # fmt: skip
    one = [(jnp.ones((1, 1)), jnp.zeros(1))]
    assert float(jb.evaluate(net, one, [[y]], [[float(t)]]).accuracy) == right


@pytest.mark.parametrize("by", [1e-37, 1.0, 1e38])
def test_the_scale_of_weights_does_not_matter(by):
    metrics = jb.evaluate(REGRESSION, IDENTITY, Y, HOT, weight=by * np.array([1.0, 0, 3]))
    plain = jb.evaluate(REGRESSION, IDENTITY, Y, HOT, weight=[1, 0, 3])
    assert_close(metrics, plain)


def test_a_cost_may_count():
    count = jb.Cost("count", lambda y, t: jnp.sum(y > t), lambda y, t: jnp.zeros_like(y))
    metrics = jb.evaluate(jb.Network((3, 3), cost=count), IDENTITY, Y, 0 * Y + 0.5)
    assert float(metrics.cost) == pytest.approx((1 + 2 + 1) / 3)


def test_a_batch_size_is_a_whole_number_and_t_has_rows():
    with pytest.raises(ValueError, match=r"^batch_size: expected a whole number of at least 1"):
        jb.evaluate(REGRESSION, IDENTITY, Y, HOT, batch_size=0)
    for t in (HOT[:2], jnp.array([[1.0]])):
        with pytest.raises(ValueError, match=r"^t: expected shape \(3, 3\)"):
            jb.evaluate(REGRESSION, IDENTITY, Y, t)
