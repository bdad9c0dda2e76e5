"""The order of an epoch: a permutation for every n, uniform, and the same everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbackprop as jb
from jbackprop.training.shuffle import _bases, _rounds, _walk

KEY = jax.random.key(0)


def orders(n, keys):
    """(keys, n): the orders of many keys."""
    make = jax.jit(jax.vmap(lambda key: jb.shuffled(key, jnp.arange(n), n)))
    return np.asarray(make(jax.random.split(jax.random.key(n), keys)))


def chi_squared(counts, expected):
    """How many standard deviations Pearson's statistic lies above its mean, both approximate."""
    statistic = np.sum((counts - expected) ** 2 / expected)
    freedom = np.size(counts) - 1
    return (statistic - freedom) / np.sqrt(2 * freedom)


def many_orders(sizes, keys, longest):
    """(sizes, keys, longest): orders of every n, -1 beyond it, all by one program."""
    rounds = {_rounds(n) for n in sizes}
    assert len(rounds) == 1
    bases = np.array([(*_bases(n), n) for n in sizes], np.uint32)
    secrets = jax.vmap(lambda key: jax.random.bits(key, (*rounds, 2), jnp.uint32))(
        jax.random.split(KEY, keys)
    )
    positions = jnp.arange(longest)

    def order(secret, a, b, n):
        return _walk(secret, positions, positions < n.astype(jnp.int32), a, b, n)

    of_size = lambda abn: jax.vmap(lambda secret: order(secret, *abn))(secrets)
    return np.asarray(jax.jit(lambda: jax.lax.map(of_size, jnp.asarray(bases)))())


def cycles(orders):
    """How many cycles each of (…, n) permutations has: their own least members."""
    least, jump = np.broadcast_to(np.arange(orders.shape[-1]), orders.shape), orders
    for _ in range(int(orders.shape[-1]).bit_length()):
        least = np.minimum(least, np.take_along_axis(least, jump, -1))
        jump = np.take_along_axis(jump, jump, -1)
    return (least == np.arange(orders.shape[-1])).sum(-1)


@pytest.mark.parametrize(
    "sizes",
    [
        range(1, 256),
        range(256, 512),
        range(512, 1024),
        range(1024, 2001, 5),
    ],
    ids=str,
)
def test_it_is_a_permutation_and_odd_as_often_as_even_for_every_n(sizes):
    """Where only even rounds were made no odd order ever came: n = 9, 25, 49, 81, 1089."""
    keys, odd = 24, 0
    found = many_orders(sizes, keys, max(sizes))
    for n, orders in zip(sizes, found, strict=True):
        orders = orders[:, :n]
        np.testing.assert_array_equal(np.sort(orders), np.broadcast_to(np.arange(n), orders.shape))
        if n > 1:
            parity = (n - cycles(orders)) % 2
            assert 0 < parity.sum() < keys, n  # missed by chance once in 8 million
            odd += parity.sum()
    drawn = keys * (len(sizes) - (sizes[0] == 1))
    assert abs(odd - drawn / 2) < 5 * np.sqrt(drawn) / 2


@pytest.mark.parametrize("n", [4097, 65_535, 65_536, 65_537, 10**6])
def test_it_is_a_permutation_of_many(n):
    order = jb.shuffled(KEY, jnp.arange(n), n)
    assert order.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(order), np.arange(n))


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7])
def test_every_order_is_equally_likely(n):
    keys = 100_000
    found = orders(n, keys)
    numbers = found @ n ** np.arange(n)
    _, counts = np.unique(numbers, return_counts=True)
    expected = keys / np.prod(np.arange(1, n + 1))
    assert len(counts) == keys / expected  # every one came
    assert chi_squared(counts, expected) < 5


@pytest.mark.parametrize("n", [7, 10, 16, 33, 64, 1500])
def test_position_and_neighbours_are_uniform(n):
    """Which example stands where, and how far apart two neighbours are, over many keys."""
    keys = max(2000, 2_000_000 // n**2)
    seen = orders(n, keys)
    bins = min(n, 20)
    example, place = seen * bins // n, np.arange(n) * bins // n
    counts = np.zeros((bins, bins))
    np.add.at(counts, (np.broadcast_to(place, example.shape), example), 1)
    expected = keys * np.outer(np.bincount(place), np.bincount(place)) / n
    # every row and every column has a given sum: fewer degrees of freedom, so the bound is safe
    assert chi_squared(counts, expected) < 5

    apart = np.bincount(((seen[:, 1:] - seen[:, :-1]) % n).ravel(), minlength=n)
    assert apart[0] == 0
    # an order of one key has every example once, which makes neighbours slightly dependent
    assert chi_squared(apart[1:], keys) < 6


def test_orders_of_different_keys_have_nothing_in_common():
    """Over keys, the number of examples that keep their place is 1 on average, with variance 1."""
    seen = orders(2000, 2000)
    fixed = np.sum(seen[1:] == seen[:-1], axis=1)
    assert abs(fixed.mean() - 1) < 5 / np.sqrt(len(fixed))
    assert 0.8 < fixed.var() < 1.2


def test_batch_by_batch_is_the_whole():
    n = 5000
    whole = jax.jit(lambda: jb.shuffled(KEY, jnp.arange(n), n))()
    parts = [jb.shuffled(KEY, jnp.arange(at, at + 100), n) for at in range(0, n, 100)]
    np.testing.assert_array_equal(whole, jnp.concatenate(parts))


@pytest.mark.parametrize(
    ("n", "first"),
    [
        (10, [0, 4, 9, 7, 5]),
        (1000, [285, 27, 897, 446, 596]),
        (60_000, [42098, 15453, 3624, 45131, 5469]),
    ],
)
def test_the_order_is_the_same_everywhere(n, first):
    """Integers alone: no version, device or rounding may change an epoch's order."""
    assert jb.shuffled(KEY, jnp.arange(5), n).tolist() == first


def test_the_epoch_takes_its_order_from_the_state():
    """fold_in(fold_in(key, step), 0), so that anyone can say which examples a batch held."""
    net, optimizer, n = jb.Network((1, 1)), optax.sgd(0.1), 50
    state = jb.init_state(net, optimizer, KEY)
    expected = jb.shuffled(
        jax.random.fold_in(jax.random.fold_in(state.key, state.step), 0), jnp.arange(n), n
    )
    rows = lambda factors, state, updates: factors.tape.a[0][:, 0]
    x, t = jnp.arange(n)[:, None], jnp.zeros((n, 1))
    _, info = jb.train_epoch(net, optimizer, state, x, t, batch_size=10, observe=rows)
    np.testing.assert_array_equal(info.observed.ravel(), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((KEY, jnp.arange(3), 0), "n: expected a whole number of at least 1, got 0"),
        ((KEY, jnp.arange(3), 2**31), "n: expected at most"),
        ((jnp.zeros(2, jnp.uint32), jnp.arange(3), 3), "key: expected a typed key"),
        ((KEY, jnp.arange(4), 3), "positions: expected numbers from 0 to 2, got 3"),
        ((KEY, jnp.array([0, -1]), 3), "positions: expected numbers from 0 to 2, got -1"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        jb.shuffled(*arguments)


def test_a_traced_position_out_of_range_is_no_plausible_number():
    order = jax.jit(lambda positions: jb.shuffled(KEY, positions, 3))(jnp.array([0, 3, -1, 7]))
    assert order[1:].tolist() == [-1, -1, -1]
