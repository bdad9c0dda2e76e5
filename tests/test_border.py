"""What users hand over: numbers of every kind, the same value or the same sentence everywhere."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close

import jbackprop as jb

NET = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)
REGRESSION = jb.Network((4, 5, 3))
SGD = optax.sgd(0.1)
PARAMS = jb.init(NET, jax.random.key(0))
X = np.arange(24).reshape(6, 4) % 5
LABELS = np.array([0, 1, 2, 0, 1, 2])
T = np.eye(3, dtype=int)[LABELS]
WEIGHT = np.array([1, 2, 0, 1, 1, 3])


class Tensor:
    """An array of another library; one that needs a gradient may refuse to be read."""

    def __init__(self, values, refuses=None):
        self.values, self.refuses = values, refuses

    def __array__(self, dtype=None, copy=None):
        if self.refuses:
            raise self.refuses
        return np.asarray(self.values, dtype)


KINDS = {
    "int8": lambda v: v.astype(np.int8),
    "uint8": lambda v: v.astype(np.uint8),
    "int64": lambda v: v.astype(np.int64),
    "uint64": lambda v: v.astype(np.uint64),
    "big-endian int": lambda v: v.astype(">i8"),
    "big-endian short": lambda v: v.astype(">u2"),
    "list": lambda v: v.tolist(),
    "tensor": Tensor,
    "strided": lambda v: np.repeat(v, 2, axis=0)[::2],
    "read-only": lambda v: np.frombuffer(v.astype(np.int64).tobytes(), np.int64).reshape(v.shape),
    "JAX": jnp.asarray,
}
FLOATS = {
    "float16": lambda v: v.astype(np.float16),
    "bfloat16": lambda v: jnp.asarray(v, jnp.bfloat16),
    "float64": lambda v: v.astype(np.float64),
    "longdouble": lambda v: v.astype(np.longdouble),
    "big-endian float": lambda v: v.astype(">f4"),
    "big-endian double": lambda v: v.astype(">f8"),
    "tensor of floats": lambda v: Tensor(v.astype(float)),
}
REFUSED = {
    "object": lambda v: v.astype(object),
    "complex": lambda v: v.astype(complex),
    "words": lambda v: v.astype(str),
    "dates": lambda v: v.astype("M8[s]"),
    "a tensor that needs a gradient": lambda v: Tensor(v, RuntimeError("call detach()")),
    "None within": lambda v: [*v.tolist()[:-1], None],
}


def state(net=NET, **kwargs):
    return jb.init_state(net, SGD, jax.random.key(1), params=PARAMS, **kwargs)


def epoch(net, x, t, **kwargs):
    return jb.train_epoch(net, SGD, state(net), x, t, batch_size=4, **kwargs)


OF_X = {
    "forward": lambda x: jb.forward(NET, PARAMS, x[0]),
    "predict": lambda x: jb.predict(NET, PARAMS, x),
    "backprop": lambda x: jb.backprop(NET, PARAMS, x, T),
    "mean_cost": lambda x: jb.mean_cost(NET, PARAMS, x, T),
    "value_and_grad": lambda x: jb.value_and_grad(NET, PARAMS, x, T),
    "train_step": lambda x: jb.train_step(NET, SGD, state(), x, T),
    "train_epoch": lambda x: epoch(NET, x, T),
    "evaluate": lambda x: jb.evaluate(NET, PARAMS, x, T),
    "influence": lambda x: jb.influence(NET, PARAMS, x, T, x, T, block_size=4),
    "empirical_ntk": lambda x: jb.empirical_ntk(NET, PARAMS, x),
    "check_batch": lambda x: jb.check_batch(NET, x, T),
    "pad_batch": lambda x: jb.backprop(NET, PARAMS, *jb.pad_batch(x, T, 6)[:2]),
}
OF_T = {
    "mean_cost": lambda net, t: jb.mean_cost(net, PARAMS, X, t),
    "backprop": lambda net, t: jb.backprop(net, PARAMS, X, t),
    "value_and_grad": lambda net, t: jb.value_and_grad(net, PARAMS, X, t),
    "train_step": lambda net, t: jb.train_step(net, SGD, state(net), X, t),
    "train_epoch": lambda net, t: epoch(net, X, t),
    "evaluate": lambda net, t: jb.evaluate(net, PARAMS, X, t),
    "influence": lambda net, t: jb.influence(net, PARAMS, X, t, X, t, block_size=4),
    "check_batch": lambda net, t: jb.check_batch(net, X, t),
    "pad_batch": lambda net, t: jb.backprop(net, PARAMS, *jb.pad_batch(X, t, 6)[:2]),
}
OF_WEIGHT = {
    "backprop": lambda w: jb.backprop(NET, PARAMS, X, T, weight=w),
    "mean_cost": lambda w: jb.mean_cost(NET, PARAMS, X, T, weight=w),
    "value_and_grad": lambda w: jb.value_and_grad(NET, PARAMS, X, T, weight=w),
    "train_step": lambda w: jb.train_step(NET, SGD, state(), X, T, weight=w),
    "train_epoch": lambda w: epoch(NET, X, T, weight=w),
    "evaluate": lambda w: jb.evaluate(NET, PARAMS, X, T, weight=w),
    "pad_batch": lambda w: jb.mean_cost(
        NET, PARAMS, X, T, weight=jb.pad_batch(X, T, 6, weight=w)[2]
    ),
}
FACTORS = jb.backprop(NET, PARAMS, X, T)
ONES = jax.tree.map(jnp.ones_like, PARAMS)
# (what is given, its values, a function of it); whole numbers only where ids are meant
OTHERS = {
    "c": (WEIGHT, lambda c: jb.scale(FACTORS, c)),
    "max_norms": (np.array([1, 2]), lambda m: jb.clip_layers(FACTORS, m)),
    "a_edges": (np.array([0, 1, 2]), lambda e: jb.histograms(FACTORS, e, e)),
    "groups": (np.array([0, 1, 2, 0, 1, 2]), lambda g: jb.group_gradients(FACTORS, g, 300)),
    "groups of norms": (LABELS, lambda g: jb.group_squared_norms(FACTORS, g, 3)),
    "groups of a clip": (LABELS, lambda g: jb.group_clip(FACTORS, g, 3, 0.1)),
    "positions": (LABELS, lambda p: jb.shuffled(jax.random.key(0), p, 300)),
}
WHOLE = {"groups", "groups of norms", "groups of a clip", "positions"}


def same(ours, theirs):
    numbers = [
        [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        for tree in (ours, theirs)
    ]
    assert_close(*numbers)
    whole = [
        [leaf.tolist() for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.integer)]
        for tree in (ours, theirs)
    ]
    assert whole[0] == whole[1]


@functools.cache
def meant(table, name, *net):
    """What a function gives for its values as they are usually kept."""
    if table == "others":
        values, call = OTHERS[name]
        return call(values.astype(np.int32))
    functions, values = {"x": (OF_X, X), "t": (OF_T, T), "weight": (OF_WEIGHT, WEIGHT)}[table]
    return functions[name](*net, np.float32(values))


@pytest.mark.long(1)
@pytest.mark.parametrize("kind", [*KINDS, *FLOATS])
def test_numbers_of_every_kind_mean_the_same_everywhere(kind):
    made = {**KINDS, **FLOATS}[kind]
    for name, of_x in OF_X.items():
        if name == "forward" and "tensor" in kind:
            continue  # has no rows to take
        same(of_x(made(X)), meant("x", name))
    for name, of_t in OF_T.items():
        for net in (REGRESSION, NET):
            same(of_t(net, made(T)), meant("t", name, net))
        if kind in KINDS:
            same(of_t(NET, made(LABELS)), meant("t", name, NET))
    for name, of_weight in OF_WEIGHT.items():
        same(of_weight(made(WEIGHT)), meant("weight", name))
    for name, (values, of_it) in OTHERS.items():
        if kind in KINDS or name not in WHOLE:
            same(of_it(made(values)), meant("others", name))
    params = [(made(np.ones((3, 4), int)), made(np.ones(3, int)))]
    net = jb.Network((4, 3))
    if kind in FLOATS:
        as_float = [(np.ones((3, 4), np.float32), np.ones(3, np.float32))]
        assert_close(np.float32(jb.predict(net, params, X)), jb.predict(net, as_float, X))
        given = jb.train_step(
            net, SGD, jb.init_state(net, SGD, jax.random.key(0), params=params), X, T
        )
        assert np.isfinite(np.float32(given[1].cost))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_number_gets_one_sentence_everywhere(kind):
    made = REFUSED[kind]
    for tables, values, name in [
        (OF_X, X, "x"),
        (OF_WEIGHT, WEIGHT, "weight"),
        ({k: lambda t, f=f: f(NET, t) for k, f in OF_T.items()}, T, "t"),
        ({k: lambda t, f=f: f(NET, t) for k, f in OF_T.items()}, LABELS, "t"),
    ]:
        said = {}
        for function, call in tables.items():
            if function == "forward":
                continue
            with pytest.raises(ValueError, match=f"^{name}: expected") as error:
                call(made(values))
            said[function] = str(error.value)
        assert len(set(said.values())) == 1, said
    for name, (values, call) in OTHERS.items():
        with pytest.raises(ValueError, match=f"^{name.split()[0]}: expected"):
            call(made(values))


@pytest.mark.parametrize("bad", [[1, 1, -1, 1, 1, 1], [1, 1, np.nan, 1, 1, 1], [np.inf] * 6])
@pytest.mark.parametrize("made", [list, np.array, jnp.array])
def test_a_bad_weight_raises_wherever_its_value_is_known(bad, made):
    said = set()
    for call in OF_WEIGHT.values():
        with pytest.raises(ValueError, match=r"^weight: expected finite") as error:
            call(made(bad))
        said.add(str(error.value))
    assert len(said) == 1


def test_a_label_never_wraps():
    """2^32 + 1 is no class 1, nor -1 the last, nor 300 of 256 classes number 44."""
    for labels in ([0, 1, 2**32 + 1, 0, 1, 2], np.array([0, 1, 2**32 + 2, 0, 1, 2], np.uint64)):
        for name, call in OF_T.items():
            if name == "check_batch":
                with pytest.raises(ValueError, match="row 2"):
                    call(NET, labels)
            else:
                assert any(jnp.isnan(leaf).any() for leaf in numbers(call(NET, labels))), name
    wide = jb.Network((4, 300), output=jb.softmax, cost=jb.cross_entropy)
    params = jb.init(wide, jax.random.key(0))
    for labels in (np.arange(6, dtype=np.uint8) + 250, jnp.arange(6, dtype=jnp.uint8) + 250):
        same(
            jb.evaluate(wide, params, X, labels),
            jb.evaluate(wide, params, X, np.asarray(labels, int)),
        )


def numbers(tree):
    return [v for v in jax.tree.leaves(tree) if jnp.issubdtype(v.dtype, jnp.floating)]


def test_ids_and_positions_never_wrap_and_are_whole():
    ids = np.array([0, 1, 299, 0, 1, 299])
    same(
        jb.group_gradients(FACTORS, jnp.array(ids, jnp.uint16), 300),
        jb.group_gradients(FACTORS, ids, 300),
    )
    small = np.array([0, 1, 2, 0, 1, 2], np.uint8)
    for groups in (small, jnp.asarray(small)):
        found = jax.jit(lambda g: jb.group_squared_norms(FACTORS, g, 300))(groups)
        assert jnp.isfinite(found).all()
        same(found, jb.group_squared_norms(FACTORS, small.astype(int), 300))
    key, few = jax.random.key(0), np.array([3, 100, 7], np.int8)
    expected = jb.shuffled(key, few.astype(int), 1000)
    for positions in (few, jnp.asarray(few), few.tolist()):
        assert (jb.shuffled(key, positions, 1000) == expected).all()
        traced = jax.jit(lambda p: jb.shuffled(key, p, 1000))(positions)
        assert (traced == expected).all()
    for bad in ([0.5], np.array([1.0, 2.0]), jnp.array([1.0])):
        with pytest.raises(ValueError, match=r"^positions: expected integers, got float"):
            jb.shuffled(key, bad, 10)
    with pytest.raises(
        ValueError, match=r"^positions: expected numbers from 0 to 9, got 4294967297"
    ):
        jb.shuffled(key, [2**32 + 1], 10)
    with pytest.raises(ValueError, match=r"^positions: expected shape \(m,\), got \(\)"):
        jb.shuffled(key, 3, 10)


BINARY = jb.Network((4, 5, 1), output=jb.sigmoid, cost=jb.binary_cross_entropy)
OF_ONE = jb.init(BINARY, jax.random.key(2))


@pytest.mark.parametrize("made", [list, np.array, jnp.array, lambda v: np.array(v, bool)])
def test_one_output_takes_labels_of_0_and_1(made):
    labels = [0, 1, 1, 0, 1, 0]
    t = np.array(labels, np.float32)[:, None]
    calls = [
        lambda t: jb.backprop(BINARY, OF_ONE, X, t),
        lambda t: jb.mean_cost(BINARY, OF_ONE, X, t),
        lambda t: jb.evaluate(BINARY, OF_ONE, X, t),
        lambda t: jb.check_batch(BINARY, X, t),
        lambda t: jb.train_step(BINARY, SGD, jb.init_state(BINARY, SGD, jax.random.key(0)), X, t),
        lambda t: jb.train_epoch(
            BINARY, SGD, jb.init_state(BINARY, SGD, jax.random.key(0)), X, t, batch_size=4
        ),
        lambda t: jax.jit(lambda t: jb.backprop(BINARY, OF_ONE, X, t))(t),
    ]
    for call in calls[: 6 if made is list else 7]:
        same(call(made(labels)), call(t))
    tape = jb.forward(BINARY, OF_ONE, X[0])
    same(
        jb.backward(BINARY, OF_ONE, tape, made(labels)[1]), jb.backward(BINARY, OF_ONE, tape, t[1])
    )


def test_labels_of_one_output_out_of_range_are_nan_and_named():
    factors = jb.backprop(BINARY, OF_ONE, X, np.array([0, 1, 2, -1, 2**32 + 1, 1]))
    assert jnp.isnan(factors.cost).tolist() == [False, False, True, True, True, False]
    assert jnp.isnan(factors.delta[0]).all(axis=1).tolist() == [
        False,
        False,
        True,
        True,
        True,
        False,
    ]
    with pytest.raises(ValueError, match=r"^t: expected labels from 0 to 1, got 2 at row 2"):
        jb.check_batch(BINARY, X, np.array([0, 1, 2, -1, 1, 1]))


@pytest.mark.parametrize(
    ("net", "t", "said"),
    [
        (
            BINARY,
            np.zeros(6),
            "t: .* or integer or bool labels of shape (6,) .* got (6,) of float64",
        ),
        (jb.Network((4, 5, 1)), np.zeros(6, int), "t: expected shape (6, 1), since .* of int64"),
        (NET, np.zeros(6, np.float32), "t: expected .* got (6,) of float32"),
        (NET, np.zeros(6, bool), "t: expected .* got (6,) of bool"),
        (NET, np.zeros((6, 1), int), "t: expected .* got (6, 1) of int64"),
        (NET, ["a"] * 6, "t: expected an array of real numbers, got list"),
        (NET, np.array(["a"] * 6), "t: expected an array of real numbers, got <U1"),
    ],
)
def test_other_labels_raise_with_their_dtype(net, t, said):
    pattern = ".*".join(map(re.escape, said.split(".*")))
    params = jb.init(net, jax.random.key(0))
    for call in (
        lambda: jb.backprop(net, params, X, t),
        lambda: jb.evaluate(net, params, X, t),
        lambda: jb.train_step(net, SGD, jb.init_state(net, SGD, jax.random.key(0)), X, t),
        lambda: jb.check_batch(net, X, t),
    ):
        with pytest.raises(ValueError, match=f"^{pattern}"):
            call()
