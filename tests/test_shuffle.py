"""The order of an epoch: a permutation for every n, uniform, and the same everywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbackprop as jb
from jbackprop.training.shuffle import _bases, _hash, _network, _rounds, _shifted, _walk

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


# ---- its parts


def mixed(x):
    """The finalizer of MurmurHash3, in whole numbers of any size."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B % 2**32
    x = (x ^ (x >> 13)) * 0xC2B2AE35 % 2**32
    return x ^ (x >> 16)


NUMBERS = [0, 1, 77, 2**15, 0x9E3779B9, 2**31 + 3, 2**32 - 1]


@pytest.mark.parametrize("below", [1, 7, 46_341, 2**16])
def test_the_hash_is_murmurs_finalizer_scaled(below):
    expected = [(mixed(x) >> 16) * below >> 16 for x in NUMBERS]
    assert _hash(jnp.array(NUMBERS, jnp.uint32), below).tolist() == expected
    assert max(expected) < below


def test_a_shift_is_a_sum_modulo_n():
    pairs = [(x, by) for x in range(5) for by in range(5)]
    x, by = (jnp.array(column, jnp.uint32) for column in zip(*pairs, strict=True))
    assert _shifted(x, by, 5).tolist() == [(x + by) % 5 for x, by in pairs]


def test_the_bases_hold_n_with_little_to_spare_and_one_is_even():
    assert _bases(1) == (1, 1)
    assert [_bases(n) for n in (2, 5, 9, 10, 1089, 1090)] == [
        (2, 1), (3, 2), (3, 4), (4, 3), (33, 34), (34, 33),
    ]  # fmt: skip
    for n in range(2, 3000):
        a, b = _bases(n)
        assert n <= a * b < n + 2 * a
        assert a * b % 2 == 0
    a, b = _bases(2**31 - 1)
    assert max(a, b) < 2**16


def test_few_examples_get_more_rounds():
    assert [_rounds(n) for n in (1, 1023, 1024, 2**31 - 1)] == [16, 16, 5, 5]


def test_a_network_is_what_its_definition_says():
    secrets = np.random.default_rng(0).integers(0, 2**32, (3, 2), dtype=np.uint32)
    a, b = 5, 4

    def one(x):
        left, right = divmod(x, b)
        for for_left, for_right in secrets.tolist():
            left = (left + ((mixed(right ^ for_left) >> 16) * a >> 16)) % a
            right = (right + ((mixed(left ^ for_right) >> 16) * b >> 16)) % b
        return left * b + right

    every = jnp.arange(a * b, dtype=jnp.uint32)
    found = _network(jnp.asarray(secrets), every, a, b).tolist()
    assert found == [one(x) for x in range(a * b)]
    assert sorted(found) == [*range(a * b)]


# ---- the whole


def cycles(orders):
    """How many cycles each of (…, n) permutations has: their own least members."""
    least, jump = np.broadcast_to(np.arange(orders.shape[-1]), orders.shape), orders
    for _ in range(int(orders.shape[-1]).bit_length()):
        least = np.minimum(least, np.take_along_axis(least, jump, -1))
        jump = np.take_along_axis(jump, jump, -1)
    return (least == np.arange(orders.shape[-1])).sum(-1)


@pytest.mark.long(1)
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
def test_it_is_a_permutation_and_odd_as_often_as_even(sizes):
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
        ((KEY, 3, 10), r"positions: expected shape \(m,\), got \(\)"),
        ((KEY, [[3]], 10), r"positions: expected shape \(m,\), got \(1, 1\)"),
        ((jnp.zeros(2, jnp.uint32), jnp.arange(3), 3), "key: expected a typed key"),
        ((KEY, jnp.arange(4), 3), "positions: expected numbers from 0 to 2, got 3"),
        ((KEY, jnp.array([0, -1]), 3), "positions: expected numbers from 0 to 2, got -1"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        jb.shuffled(*arguments)


def test_as_many_examples_as_int32_can_count():
    n = 2**31 - 1
    (found,) = jb.shuffled(KEY, [n - 1], n).tolist()
    assert 0 <= found < n


def test_a_traced_position_out_of_range_is_no_plausible_number():
    order = jax.jit(lambda positions: jb.shuffled(KEY, positions, 3))(jnp.array([0, 3, -1, 7]))
    assert order[1:].tolist() == [-1, -1, -1]
