"""Pooling: against `reduce_window`, its gradient, the definition by loops; ties, padding, NaN."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jbackprop import MaxPool, MeanPool
from jbackprop.core.pooling import Pool

RNG = np.random.default_rng(0)
CASES = {
    "1-D": (MaxPool(2), (8, 3)),
    "1-D that does not divide": (MaxPool(3), (8, 3)),
    "2-D": (MaxPool(2), (6, 4, 2)),
    "2-D overlapping": (MaxPool(3, stride=2), (7, 8, 2)),
    "2-D stride 1": (MaxPool(2, stride=1), (5, 6, 2)),
    "2-D padded": (MaxPool(3, stride=2, padding=1), (7, 6, 3)),
    "2-D padded by pairs": (MaxPool((2, 3), padding=((1, 0), (2, 1))), (7, 6, 2)),
    "2-D SAME": (MaxPool(3, stride=2, padding="SAME"), (6, 5, 2)),
    "2-D by dimension": (MaxPool((1, 3), stride=(2, 1)), (6, 5, 2)),
    "3-D": (MaxPool(2), (5, 4, 4, 2)),
    "all of it": (MaxPool((5, 6)), (5, 6, 2)),
    "mean 1-D": (MeanPool(2), (9, 3)),
    "mean 2-D": (MeanPool(2), (6, 5, 2)),
    "mean overlapping": (MeanPool(3, stride=2), (7, 8, 2)),
    "mean by dimension": (MeanPool((2, 1), stride=(1, 2)), (5, 6, 2)),
    "mean 3-D": (MeanPool(2), (4, 5, 4, 1)),
    "mean of all": (MeanPool(), (5, 6, 3)),
    "mean of all, 1-D": (MeanPool(), (5, 3)),
}
INPUTS = {
    "plain": lambda u: u,
    "ties": np.round,
    "all of one value": np.zeros_like,
    "negative only": lambda u: -1 - np.abs(u),
    "large": lambda u: 1e300 * u,
}


def by_windows(pool, u):
    """The same by XLA's windows."""
    rank = u.ndim - 1
    each = lambda v: (v,) * rank if isinstance(v, int) else v
    if pool.size is None:
        return jnp.mean(u, axis=range(rank))
    size, stride = each(pool.size), each(pool.stride)
    if isinstance(pool, MeanPool):
        total = lax.reduce_window(u, 0.0, lax.add, (*size, 1), (*stride, 1), "VALID")
        return total / float(np.prod(size))
    pads = pool.padding
    if not isinstance(pads, str):
        pads = [(p, p) if isinstance(p, int) else p for p in each(pads)] + [(0, 0)]
    return lax.reduce_window(u, -jnp.inf, lax.max, (*size, 1), (*stride, 1), pads)


@pytest.mark.long(27)
@pytest.mark.parametrize("of", INPUTS)
@pytest.mark.parametrize("name", CASES)
def test_it_and_its_adjoint_are_those_of_reduce_window(name, of):
    pool, shape = CASES[name]
    with jax.enable_x64(True):
        u = jnp.asarray(INPUTS[of](RNG.normal(size=shape)))
        theirs, pull = jax.vjp(lambda u: by_windows(pool, u), u)
        ours = pool.apply(u)
        assert ours.shape == pool.out_shape(shape)
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
        e = jnp.asarray(RNG.normal(size=ours.shape))
        np.testing.assert_allclose(pool.transpose(u, e), pull(e)[0], atol=1e-12)
        own = jax.vjp(pool.apply, u)[1](e)[0]
        np.testing.assert_allclose(own, pull(e)[0], atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_definition_by_loops(name):
    pool, shape = CASES[name]
    if pool.size is None or getattr(pool, "padding", 0) != 0:
        return  # the others are all of its definition
    rank = len(shape) - 1
    each = lambda v: (v,) * rank if isinstance(v, int) else v
    u = RNG.normal(size=shape).astype(np.float32)
    found = np.asarray(pool.apply(jnp.asarray(u)))
    for at in itertools.product(*map(range, found.shape[:-1])):
        spans = zip(at, each(pool.stride), each(pool.size), strict=True)
        window = u[tuple(slice(i * s, i * s + k) for i, s, k in spans)].reshape(-1, shape[-1])
        expected = window.max(0) if isinstance(pool, MaxPool) else window.mean(0)
        np.testing.assert_allclose(found[at], expected, rtol=1e-5, atol=1e-6)


def test_the_first_of_equal_ones_counts():
    u, e = jnp.ones((4, 4, 1)), jnp.arange(1.0, 5).reshape(2, 2, 1)
    expected = np.zeros((4, 4))
    expected[::2, ::2] = [[1, 2], [3, 4]]
    np.testing.assert_array_equal(MaxPool(2).transpose(u, e)[..., 0], expected)


def test_a_padding_is_nobodys_maximum():
    u = jnp.full((2, 2, 1), -3.0)
    assert (MaxPool(2, padding=1).apply(u) == -3).all()


def test_what_is_no_number_is_seen_on_both_ways():
    u = jnp.array([[1.0], [jnp.nan], [2.0], [3.0]])
    assert jnp.isnan(MaxPool(2).apply(u)).tolist() == [[True], [False]]
    back = MaxPool(2).transpose(u, jnp.array([[jnp.nan], [1.0]]))
    assert jnp.isnan(back[:2]).any()
    assert back[2:].tolist() == [[0.0], [1.0]]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_mean_of_small_floats_is_taken_in_float32(dtype):
    u = jnp.full((100, 100, 1), 60.0, dtype)
    for pool in (MeanPool(), MeanPool(20)):
        assert (pool.apply(u) == 60).all()
        assert pool.apply(u).dtype == pool.transpose(u, pool.apply(u)).dtype == dtype
    assert MaxPool(2).apply(u).dtype == MaxPool(2).transpose(u, u[::2, ::2]).dtype == dtype


def test_poolings_are_equal_by_value():
    for pool, _ in CASES.values():
        assert isinstance(pool, Pool)
    assert MaxPool(2) == MaxPool(2, stride=2) == MaxPool(np.int64(2), padding="VALID")
    assert MaxPool([2, 3]) == MaxPool((2, 3), stride=(2, 3))
    assert MaxPool(2) != MaxPool(2, stride=1)
    assert MeanPool(2) == MeanPool(2, stride=2) != MeanPool()
    assert hash(MeanPool([2, 3])) == hash(MeanPool((2, 3)))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: MaxPool(0), "size: expected a whole number of at least 1, got 0"),
        (lambda: MaxPool(2, stride=0), "stride: expected a whole number"),
        (lambda: MaxPool(2, padding=-1), "padding: expected a number of at least 0"),
        (lambda: MeanPool(2.5), "size: expected a whole number"),
        (lambda: MeanPool(2, stride=-1), "stride: expected a whole number"),
        (lambda: MeanPool(stride=2), "stride: expected a size with it, got 2 alone"),
        (
            lambda: MaxPool(2, padding=2).out_shape((4, 1)),
            "MaxPool.*: expected every wind",
        ),
        (lambda: MaxPool(2, padding=((0, 2),)).out_shape((4, 1)), "MaxPool.*: expected every wind"),
        (lambda: MaxPool(9).out_shape((5, 5, 1)), r"MaxPool.*: expected .* \(9, 9\) positions"),
        (lambda: MeanPool().out_shape((5,)), r"MeanPool.*: expected .*\(\*positions, channels\)"),
    ],
)
def test_what_does_not_fit_is_named(made, said):
    with pytest.raises(ValueError, match=said):
        made()
