"""A batch at its border: who is absent, and what stands in its place."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbackprop as jb
from jbackprop.core import batch as b

NET = jb.Network((2, 3), output=jb.softmax, cost=jb.cross_entropy)
LAYERS = jb.init(NET, jax.random.key(0))
X = np.arange(8.0, dtype=np.float32).reshape(4, 2)
T = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]


def made(weight, x=X, t=T):
    return b.as_batch(NET, LAYERS, x, t, weight)


def test_labels_are_known_as_labels():
    """So that their closed form is taken, which need not add t up."""
    assert made(None, t=np.array([0, 1, 2, 0])).label
    assert not made(None).label


def test_no_weight_is_1_and_nobody_absent():
    batch = made(None)
    assert batch.weight.tolist() == [1] * 4
    assert batch.absent is None
    assert b.without_absent(batch) is batch
    assert made([0, 2, 0, 1]).absent.tolist() == [True, False, True, False]


def test_the_first_row_present_stands_for_those_absent():
    found = b.without_absent(made([0, 2, 0, 1]))
    for rows, given in ((found.x, X), (found.t, T)):
        np.testing.assert_array_equal(rows, given[[1, 1, 1, 3]])


def test_zeros_stand_for_all_where_all_are_absent():
    found = b.without_absent(made([0, 0, 0, 0]))
    assert not found.x.any()
    assert not found.t.any()


def test_absent_rows_are_blank():
    rows = jnp.array([[1.0, jnp.nan], [2.0, 3.0]])
    assert b.blank(None, rows) is rows
    found = b.blank(jnp.array([True, False]), (rows, rows[:, 0]))
    assert [leaf.tolist() for leaf in found] == [[[0, 0], [2, 3]], [0, 2]]


ROOT = jb.Cost("root", lambda y, t: jnp.sum(jnp.sqrt(y) * t), lambda y, t: t / (2 * jnp.sqrt(y)))
OF_ROOT = jb.Network((2, 2), output=jb.identity, cost=ROOT)
POSITIVE = (jb.Layer(jnp.array([[1.0, 0.0], [3.0, 1.0]]), jnp.array([0.0, 1.0])),)
SPOILT = {
    "x": ([np.nan, 0], [1, 1]), "a feature": ([1, np.inf], [1, 1]), "t": ([1, 0], [np.nan, 1]),
    "a target": ([1, 0], [1, np.inf]),
    "√0": ([0, 0], [1, 1]), "√ of less": ([-1, 1], [1, 1]),
}  # fmt: skip


@pytest.mark.parametrize("spoilt", SPOILT)
def test_an_absent_row_spoils_no_derivative(spoilt):
    """√y has none at y = 0, nor has NaN: what is in such a row passes in no way."""
    row, target = SPOILT[spoilt]
    x, t = np.array([row, [4.0, 3.0]], np.float32), np.array([target, [1.0, 1.0]], np.float32)
    slopes = jax.value_and_grad(jb.mean_cost, argnums=1)
    cost, found = slopes(OF_ROOT, POSITIVE, x, t, weight=[0, 3])
    alone, expected = slopes(OF_ROOT, POSITIVE, x[1:], t[1:])
    assert cost == alone == 6
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_weight_of_an_absent_row_has_its_derivative():
    """(C_i - C̄) / Σ w, where the row has a cost; 0 - C̄ where it has none."""
    x = np.array([[1.0, 5], [4, 3], [np.nan, 0]], np.float32)
    t = np.array([[1.0, 1], [1, 1], [0, np.nan]], np.float32)
    slopes = jax.grad(lambda w: jb.mean_cost(OF_ROOT, POSITIVE, x, t, weight=w))(
        jnp.array([0.0, 2.0, 0.0])
    )
    assert slopes.tolist() == [(4 - 6) / 2, 0, -6 / 2]


def test_padding_is_of_zeros_up_to_the_size():
    x, t, weight = b.pad_batch(X, T, 6)
    assert (x[:4] == X).all()
    assert (t[:4] == T).all()
    assert not x[4:].any()
    assert not t[4:].any()
    assert weight.tolist() == [1, 1, 1, 1, 0, 0]
    assert weight.dtype == np.float32
    assert b.pad_batch(X, T, 4, weight=[1, 2, 3, 4])[2].tolist() == [1, 2, 3, 4]


def test_padding_keeps_kind_and_dtype():
    x, t, _ = b.pad_batch(jnp.ones((2, 3, 1), jnp.float16), np.array([1, 2], np.uint8), 3)
    assert isinstance(x, jax.Array)
    assert x.dtype == jnp.float16
    assert x.shape == (3, 3, 1)
    assert (type(t), t.dtype, t.tolist()) == (np.ndarray, np.uint8, [1, 2, 0])
    x, t, _ = b.pad_batch(np.ones(2), np.ones(2), 3)
    assert x.tolist() == t.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [((1.0, 1.0, 3), "t: expected one row for each of x"), ((X, T[:3], 5), "t: expected one row"),
     ((X, T, 3), "size: expected at least the 4 rows of x, got 3"), ((X, T, 0), "size: expected a"),
     ((X, 1.0, 5), "t: expected one row")],
)  # fmt: skip
def test_what_cannot_be_padded_is_named(arguments, said):
    with pytest.raises(ValueError, match=f"^{said}"):
        b.pad_batch(*arguments)


def test_a_cost_is_one_number():
    vector = jb.Cost("vector", lambda y, t: y - t, lambda y, t: y - t)
    net = jb.Network((2, 3), output=jb.identity, cost=vector)
    with pytest.raises(
        ValueError, match=r"^cost: expected vector.value\(y, t\) of shape \(\), got"
    ):
        jb.mean_cost(net, LAYERS, X, T)


def test_a_cost_of_float16_is_float32():
    """A square beyond 65,504 is no infinity, and ln Σ e^z keeps its digits."""
    half = (jb.Layer(jnp.zeros((3, 2), jnp.float16), jnp.array([300, 1, 2], jnp.float16)),)
    cost = jb.mean_cost(jb.Network((2, 3)), half, X[:1], [[0, 1, 0]])
    assert (cost.dtype, float(cost)) == (jnp.float32, (300**2 + 2**2) / 2)
    cost = jb.mean_cost(jb.Network((2, 3)), half, X[:1], [[0, 1, -400]])
    assert float(cost) == (300**2 + 402**2) / 2
    z = np.array([2.5, 1.25, 2.75])
    half = (half[0]._replace(b=jnp.array(z, jnp.float16)),)
    cost = jb.mean_cost(NET, half, X[:1], [1])
    np.testing.assert_allclose(cost, np.log(np.exp(z).sum()) - 1.25, rtol=2e-7)
