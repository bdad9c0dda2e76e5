"""Epochs from the host: the numbers of the resident one, and the next batch on its way."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, problem

import jbackprop as jb

KEY = jax.random.key(0)
NET = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)
SPATIAL = jb.Network(
    ((6, 6, 1), jb.Conv(4, 3), jb.MaxPool(2), 3), jb.tanh, jb.softmax, jb.cross_entropy
)
SGD, ADAM = optax.sgd(0.1), optax.adam(1e-2)
N = 22
CASES = {
    "dense, what is left": (NET, SGD, 4, False, False),
    "a batch size that divides": (NET, SGD, 11, True, False),
    "fewer examples than a batch": (NET, SGD, 40, False, False),
    "weights": (NET, SGD, 4, True, True),
    "weights, one batch": (NET, SGD, 40, True, True),
    "adam": (NET, ADAM, 4, True, False),
    "adam, weights": (NET, ADAM, 11, False, True),
    "convolution": (SPATIAL, SGD, 4, True, False),
    "convolution, adam, weights": (SPATIAL, ADAM, 4, False, True),
}


@pytest.fixture(autouse=True)
def _standard_promotion():
    """Optax's own transformations mix dtypes."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def data(net=NET, *, labels=True, seed=0):
    _, x, t = problem(net, batch=N, seed=seed)
    return np.asarray(x), np.asarray(jnp.argmax(t, -1) if labels else t)


def cut(rows, *arrays):
    """Batches of these sizes."""
    ends = np.cumsum(rows)
    return [tuple(a[end - n : end] for a in arrays) for n, end in zip(rows, ends, strict=True)]


def stepped(net, optimizer, state, batches, size, **options):
    """The loop by hand."""
    costs = []
    for x, t in batches:
        weight = None
        if len(x) < size:
            x, t, weight = jb.pad_batch(x, t, size)
        state, info = jb.train_step(net, optimizer, state, x, t, weight=weight, **options)
        costs.append(float(info.cost))
    return state, costs


def assert_same(ours, theirs):
    """To the bit."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.long(2)
@pytest.mark.parametrize("case", CASES)
def test_a_stream_is_the_resident_epoch(case, tmp_path):
    net, optimizer, batch_size, labels, weighted = CASES[case]
    given = data(net, labels=labels)
    kept = []
    for name, numbers in zip("xt", given, strict=True):
        numbers.tofile(tmp_path / name)
        kept.append(np.memmap(tmp_path / name, numbers.dtype, "r", shape=numbers.shape))
    size = {"batch_size": batch_size, "weight": np.arange(N) % 4 if weighted else None}
    see = lambda factors, state, updates: {"costs": factors.cost, "step": state.step}
    ours = theirs = jb.init_state(net, optimizer, KEY)
    for _ in range(3):
        batches = jb.epoch_batches(ours, *kept, **size)
        ours, told = jb.train_stream(net, optimizer, ours, batches, observe=see)
        theirs, expected = jb.train_epoch(net, optimizer, theirs, *given, **size, observe=see)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(told))
        assert told.observed.pop("step").tolist() == expected.observed.pop("step").tolist()
        # a compiled loop of them may round otherwise than steps one by one
        assert_close(told, expected, 1e-6)
        assert_close(ours.params, theirs.params, 1e-6)
    assert int(ours.step) == int(theirs.step)


def test_ragged_batches_anywhere_and_all_that_a_step_takes():
    batches = cut((8, 3, 8, 1, 2), *data())
    sign = jb.Rule("sign", lambda s: (jnp.sign(s.w).T @ s.delta) * s.slope)
    options = {"rule": sign, "gradient": jb.clipped_mean(0.1)}
    state = jb.init_state(NET, SGD, KEY)
    ours, info = jb.train_stream(NET, SGD, state, iter(batches), **options)
    theirs, costs = stepped(NET, SGD, state, batches, 8, **options)
    assert_same(ours.params, theirs.params)
    assert info.cost.tolist() == costs
    assert info.observed is None
    plain, _ = jb.train_stream(NET, SGD, state, batches)
    assert not np.array_equal(plain.params[0].w, ours.params[0].w)
    # a size that none of them has, batches of JAX's arrays, lists
    ours, _ = jb.train_stream(NET, SGD, state, batches, batch_size=9, **options)
    assert_close(ours.params, theirs.params)
    for made in (jnp.asarray, np.ndarray.tolist):
        again = [[made(leaf) for leaf in batch] for batch in batches]
        ours, _ = jb.train_stream(NET, SGD, state, again, **options)
        assert_same(ours.params, theirs.params)


def test_two_programs_whatever_the_sizes():
    traces = []

    def f(z):
        traces.append(z.shape)
        return jnp.tanh(z)

    net = jb.Network((4, 5, 3), jb.Activation("counted", f, jb.tanh.df))
    x, t = data(labels=False)
    state = jb.init_state(net, ADAM, KEY)
    for size, rows in enumerate([(8, 8, 6), (8, 1, 8, 5), (8, 2, 2, 2, 8), (8, 8)]):
        state, _ = jb.train_stream(net, ADAM, state, cut(rows, x, t))
        assert len(traces) == 2, size
    state, _ = jb.train_stream(net, ADAM, state, cut((2, 1), x, t), batch_size=8)
    state, _ = jb.train_step(net, ADAM, state, x[:8], t[:8])
    assert len(traces) == 2


def test_images_of_bytes_stay_bytes_and_long_integers_do_not_wrap():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (N, 6, 6, 1), np.uint8)
    t = rng.integers(0, 3, N)
    seen = []

    def put(batch):
        seen.append(tuple(leaf.dtype.name for leaf in batch[:2]))
        return jax.device_put(batch)

    state = jb.init_state(SPATIAL, SGD, KEY)
    expected, _ = jb.train_epoch(SPATIAL, SGD, state, x, t, batch_size=8)
    for given in ({}, {"put": put}):
        batches = jb.epoch_batches(state, x, t, batch_size=8)
        ours, _ = jb.train_stream(SPATIAL, SGD, state, batches, **given)
        assert_close(ours.params, expected.params, 1e-6)
        _, info = jb.train_stream(SPATIAL, SGD, state, [(x, t), (x, t + 2**32)], **given)
        assert jnp.isnan(info.cost).tolist() == [False, True]
    assert set(seen) == {("uint8", "int32")}


def test_the_state_stays_alive_unless_it_is_donated():
    batches = cut((8, 8, 6), *data())
    state = jb.init_state(NET, SGD, KEY)
    first, _ = jb.train_stream(NET, SGD, state, batches)
    again, _ = jb.train_stream(NET, SGD, state, batches)
    assert_same(first.params, again.params)
    new, _ = jb.train_stream(NET, SGD, state, batches, donate=True)
    assert_close(new.params, first.params)
    assert state.params[0].w.is_deleted()
    assert not any(leaf.is_deleted() for leaf in (new.params[0].w, first.params[0].w, KEY))


def test_an_iterator_may_use_its_memory_again():
    """What begins at a multiple of 64 bytes, JAX on a CPU reads where it lies, and later."""
    net = jb.Network((16, 256, 16))
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(2, 40, 64, 16)).astype(np.float32)
    room = np.empty(2 * x[0].nbytes + 64, np.uint8)
    room = room[-room.ctypes.data % 64 :][: 2 * x[0].nbytes].view(np.float32).reshape(2, 64, 16)

    def reusing():
        for batch in zip(x, t, strict=True):
            room[...] = batch
            yield tuple(room)
            room[...] = np.nan

    state = jb.init_state(net, SGD, KEY)
    ours, info = jb.train_stream(net, SGD, state, reusing())
    theirs, expected = jb.train_stream(net, SGD, state, zip(x, t, strict=True))
    assert_same((ours.params, info), (theirs.params, expected))


def test_batches_are_gathered_into_memory_that_no_step_reads_any_more():
    net = jb.Network((16, 256, 16))
    x, t = np.random.default_rng(0).normal(size=(2, 64 * 40, 16)).astype(np.float32)
    state = jb.init_state(net, SGD, KEY)
    batches = jb.epoch_batches(state, x, t, batch_size=64)
    ours, info = jb.train_stream(net, SGD, state, batches)
    kept = [*jb.epoch_batches(state, x, t, batch_size=64)]
    theirs, expected = jb.train_stream(net, SGD, state, kept)
    assert_same((ours.params, info), (theirs.params, expected))


def test_the_next_batch_is_read_while_steps_compute_and_two_at_most():
    """Of every step under way the costs are not there yet."""
    net = jb.Network((600, 601, 3))
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(2000, 600)).astype(np.float32), np.zeros((2000, 3), np.float32)
    awaited = []

    def batches(n):
        for _ in range(n):
            costs = [a for a in jax.live_arrays() if a.shape == (2000,)]
            awaited.append(sum(not a.is_ready() for a in costs))
            yield x, t

    stream = functools.partial(jb.train_stream, net, SGD, observe=lambda f, s, u: f.cost)
    state, _ = jax.block_until_ready(stream(jb.init_state(net, SGD, KEY), batches(2)))
    awaited.clear()
    jax.block_until_ready(stream(state, batches(8)))
    assert awaited[0] == 0
    assert 1 <= max(awaited) <= 2


def test_what_is_told_waits_on_the_host():
    held = []

    def batches(n):
        for _, batch in zip(range(n), itertools.cycle(cut((8,), *data())), strict=False):
            held.append(sum(a.nbytes for a in jax.live_arrays()))
            yield batch

    see = lambda factors, state, updates: factors.tape.a
    state = jb.init_state(NET, SGD, KEY)
    _, info = jb.train_stream(NET, SGD, state, batches(60), observe=see)
    assert info.observed[0].shape == (60, 8, 4)
    assert held[-1] == held[10] < info.observed[0].nbytes / 2 + held[0]


def test_what_is_told_may_be_any_array():
    see = lambda factors, state, updates: (state.key, factors.cost.astype(jnp.bfloat16), state.step)
    state = jb.init_state(NET, SGD, KEY)
    x, t = data()
    batches = jb.epoch_batches(state, x, t, batch_size=8)
    _, ours = jb.train_stream(NET, SGD, state, batches, observe=see)
    _, theirs = jb.train_epoch(NET, SGD, state, x, t, batch_size=8, observe=see)
    types = [[(a.shape, a.dtype) for a in jax.tree.leaves(info)] for info in (ours, theirs)]
    assert types[0] == types[1]
    assert (ours.observed[0] == state.key).all()
    assert_close(ours.observed[1], theirs.observed[1])
    with jax.enable_x64(True):
        state = jb.init_state(NET, SGD, KEY, params=jb.init(NET, KEY, dtype=jnp.float64))
        _, ours = jb.train_stream(NET, SGD, state, [(x, t)])
        assert ours.cost.dtype == jnp.float64
        assert_close(ours.cost[0], jb.mean_cost(NET, state.params, x, t))


def test_an_epoch_goes_on_from_its_middle():
    x, t = data()
    state = jb.init_state(NET, ADAM, KEY)
    state, _ = jb.train_stream(NET, ADAM, state, jb.epoch_batches(state, x, t, batch_size=4))
    first = int(state.step)
    whole, _ = jb.train_stream(NET, ADAM, state, jb.epoch_batches(state, x, t, batch_size=4))
    part = itertools.islice(jb.epoch_batches(state, x, t, batch_size=4), 2)
    state, info = jb.train_stream(NET, ADAM, state, part)
    assert info.cost.shape == (2,)
    again = jb.epoch_batches(state._replace(step=first), x, t, batch_size=4)
    rest = itertools.islice(again, int(state.step) - first, None)
    state, info = jb.train_stream(NET, ADAM, state, rest, batch_size=4)
    assert info.cost.shape == (4,)
    assert_same(state.params, whole.params)


class OfAFile:
    """As h5py has it: a shape, and rows by increasing indices alone."""

    def __init__(self, data):
        self.data, self.shape, self.dtype = data, data.shape, data.dtype

    def __getitem__(self, rows):
        assert (np.diff(rows) > 0).all()
        return self.data[rows]


def test_batches_are_read_from_anything_with_rows(tmp_path):
    x, t = data()
    state = jb.init_state(NET, SGD, KEY)
    order = np.asarray(jb.epoch_order(state, N))
    x.tofile(tmp_path / "x")
    mapped = np.memmap(tmp_path / "x", x.dtype, "r", shape=x.shape)
    for kept in (x, mapped, OfAFile(x), x.tolist(), jnp.asarray(x)):
        batches = [*jb.epoch_batches(state, kept, t, batch_size=np.int64(8), weight=t)]
        assert [[len(leaf) for leaf in batch] for batch in batches] == [[8] * 3, [8] * 3, [6] * 3]
        for rows, (a, b, weight) in zip(np.split(order, [8, 16]), batches, strict=True):
            assert type(a) is np.ndarray
            np.testing.assert_array_equal(a, x[rows])
            np.testing.assert_array_equal(b, t[rows])
            np.testing.assert_array_equal(weight, t[rows])


def test_batches_of_a_state_that_is_donated_are_those_of_its_epoch():
    x, t = data()
    state = jb.init_state(NET, SGD, KEY)
    expected = [*jb.epoch_batches(state, x, t, batch_size=4)]
    batches = jb.epoch_batches(state, x, t, batch_size=4)
    jb.train_step(NET, SGD, state, x, t, donate=True)
    assert_same([*batches], expected)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, OSError])
def test_what_an_iterator_raises_comes_as_it_is(error):
    raised = error("of the disk")

    def batches():
        yield from cut((8, 8), *data())
        raise raised

    state = jb.init_state(NET, SGD, KEY)
    with pytest.raises(error) as caught:
        jb.train_stream(NET, SGD, state, batches())
    assert caught.value is raised
    assert not getattr(raised, "__notes__", None)
    jb.train_stream(NET, SGD, state, cut((8,), *data()))


X, T = data()
BAD = {
    "none at all": ([], {}, r"batches: expected at least one, got none"),
    "no iterable": (7, {}, r"batches: expected an iterable of \(x, t\) or .*, got int"),
    "inputs alone": ([(X, T), X], {}, r"batches: expected \(x, t\) or .* ndarray as batch 1"),
    "too many parts": ([(X, T, T, T)], {}, r"batches: expected .*, got tuple of 4 as batch 0"),
    "a dictionary": ([{"x": X, "t": T}], {}, r"batches: expected .*, got dict as batch 0"),
    "no rows": ([(X, T), (X[:0], T[:0])], {},
                r"batches: expected 1 to 22 rows, as .* the first has, got 0 in batch 1"),
    "no rows at first": ([(X[:0], T[:0])], {}, r"batches: expected rows, got 0 in batch 0"),
    "a number": ([(1.0, 1)], {}, r"batches: expected rows, got 0 in batch 0"),
    "a larger one": (cut((8, 9), X, T), {}, r"batches: expected 1 to 8 rows, .* got 9 in batch 1"),
    "larger than asked": ([(X, T)], {"batch_size": 7}, r"batches: .* 7 rows, .* 22 in batch 0"),
    "a size that is none": ([(X, T)], {"batch_size": 0}, r"batch_size: expected a whole number"),
    "weights beside": ([(X, T)], {"weight": T}, r"weight: expected in every batch"),
    "a put that gives less": ([(X, T)], {"put": lambda batch: batch[:2]},
                              r"put: expected \(x, t, weight\) back, got"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_batches_say_what_came_and_what_was_expected(name):
    batches, options, message = BAD[name]
    state = jb.init_state(NET, SGD, KEY)
    with pytest.raises(ValueError, match=f"^{message}"):
        jb.train_stream(NET, SGD, state, batches, **options)


def test_what_a_step_refuses_has_the_number_of_its_batch():
    state = jb.init_state(NET, SGD, KEY)
    for bad, message in (
        ((X[:, :3], T), r"x: expected shape \(B, 4\)"),
        ((X, T[:5]), r"t: expected"),
        ((X[:3], T[:2]), r"t: expected one row for each of x"),
        ((X, T, -T), r"weight: expected finite numbers"),
        ((["a"], T), r"x: expected an array of real numbers"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            jb.train_stream(NET, SGD, state, [(X, T), bad])
        assert caught.value.__notes__ == ["in batch 1"]


def test_bad_data_say_what_came_and_what_was_expected():
    state = jb.init_state(NET, SGD, KEY)
    for given, message in (
        ((X[:0], T[:0]), r"x: expected a row for every example, got 0"),
        ((1.0, T), r"x: expected a row for every example, got 0"),
        ((X, T[:5]), r"t: expected a row for every example, got 5, and 22 of x"),
        ((X, 3), r"t: expected a row for every example, got 0, and 22 of x"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            jb.epoch_batches(state, *given, batch_size=4)
    with pytest.raises(ValueError, match=r"^weight: expected a row for every example, got 4"):
        jb.epoch_batches(state, X, T, batch_size=4, weight=np.ones(4))
    with pytest.raises(ValueError, match=r"^batch_size: expected a whole number"):
        jb.epoch_batches(state, X, T, batch_size=0)
