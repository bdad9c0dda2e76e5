"""Bad input: a `ValueError` that begins with the argument; what was expected, and what came."""

import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import problem

import jbackprop as jb
from jbackprop.core import checks

NET = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)
REGRESSION = jb.Network((4, 5, 3))
PARAMS, X, T = problem(NET)
TAPE = jb.forward(NET, PARAMS, X[0])
DELTAS = jb.backward(NET, PARAMS, TAPE, T[0])
SGD = optax.sgd(0.1)
LABELS = jnp.zeros(6, int)
BATCHED = jb.backprop(NET, PARAMS, X, T).tape
TURNED: Any = lambda key, shape, dtype: jnp.ones(shape[::-1], dtype)
KEPT = jb.Rule("kept", lambda s: s.feedback, init=lambda net, params, key: (params[1].w,))


def state():
    return jb.init_state(NET, SGD, jax.random.key(0))


def epoch(size, x=X, t=T, **kwargs):
    return jb.train_epoch(NET, SGD, state(), x, t, batch_size=size, **kwargs)


CASES = {
    # the network
    "sizes of one": (lambda: jb.Network((4,)), "sizes: expected at least two sizes"),
    "size 0": (lambda: jb.Network((4, 0, 3)), "sizes: .* got (4, 0, 3)"),
    "sizes of floats": (lambda: jb.Network((4.0, 3)), "sizes: expected whole numbers"),
    "sizes no sequence": (lambda: jb.Network(4), "sizes: expected whole numbers"),
    "hidden softmax": (lambda: jb.Network((4, 5, 3), jb.softmax), "hidden: .* softmax"),
    "hidden softmax listed": (lambda: jb.Network((4, 5, 3), [jb.softmax]), "hidden: .* softmax"),
    "too few hidden": (lambda: jb.Network((4, 5, 5, 3), [jb.tanh]), "hidden: expected 2 .* got 1"),
    "hidden is a function": (lambda: jb.Network((4, 5, 3), jnp.tanh), "hidden: expected an Act"),
    "output is a name": (lambda: jb.Network((4, 3), output="tanh"), "output: .* got 'tanh'"),
    "cost is a function": (lambda: jb.Network((4, 3), cost=jnp.sum), "cost: expected one Cost"),
    # init
    "integer dtype": (
        lambda: jb.init(NET, jax.random.key(0), dtype=int), "dtype: .* floating dtype, got int"),
    "a dtype that is none": (
        lambda: jb.init(NET, jax.random.key(0), dtype="float33"),
        "dtype: expected a floating dtype, got float33"),
    "float64 without x64": (
        lambda: jb.init(NET, jax.random.key(0), dtype="float64"), "dtype: float64 needs 64-bit"),
    "raw key": (lambda: jb.init(NET, jax.random.PRNGKey(0)), "key: .* got uint32"),
    "seed for key": (lambda: jb.init_state(NET, SGD, 0), "key: expected a typed key.* got int"),
    "two keys": (
        lambda: jb.init(NET, jax.random.split(jax.random.key(0))), "key: .* one key .* (2,)"),
    # params
    "params for another network": (
        lambda: jb.predict(jb.Network((4, 6, 3)), PARAMS, X),
        "params: expected w^1 of shape (6, 4) for .* sizes (4, 6, 3), got (5, 4)"),
    "w transposed": (
        lambda: jb.predict(NET, [(w.T, b) for w, b in PARAMS], X), "params: .* got (4, 5)"),
    "b of a wrong shape": (
        lambda: jb.predict(NET, [(w, b[:, None]) for w, b in PARAMS], X), "params: .* b^1"),
    "a layer missing": (lambda: jb.predict(NET, PARAMS[:1], X), "params: expected 2 .* got 1"),
    "params None": (lambda: jb.predict(NET, None, X), "params: .* got NoneType"),
    "w without b": (lambda: jb.predict(NET, [w for w, _ in PARAMS], X), "params: "),
    "no b": (lambda: jb.predict(NET, [(w,) for w, _ in PARAMS], X), "params: .* got no b^1"),
    "b None": (
        lambda: jb.predict(NET, [PARAMS[0], (PARAMS[1].w, None)], X), "params: .* got no b^2"),
    "an empty layer": (lambda: jb.predict(NET, [(), ()], X), "params: .* 0 parts in layer 1"),
    "three parts": (
        lambda: jb.predict(NET, [PARAMS[0], (1, None, 3)], X), "params: .* 3 parts in layer 2"),
    "words for w": (
        lambda: jb.predict(NET, [PARAMS[0], ("w", "b")], X), "params: w^2: expected an array"),
    "words for b": (
        lambda: jb.predict(NET, [(PARAMS[0].w, "b"), PARAMS[1]], X), "params: b^1: expected an"),
    "w of another network above": (
        lambda: jb.predict(jb.Network((4, 5, 2)), PARAMS, X), "params: expected w^2 of shape"),
    "integer params": (
        lambda: jb.predict(NET, [(w.astype(int), b.astype(int)) for w, b in PARAMS], X),
        "params: expected one floating dtype throughout .* got int32"),
    "mixed params": (
        lambda: jb.predict(NET, [(w, b.astype(jnp.bfloat16)) for w, b in PARAMS], X),
        "params: .* got bfloat16, float32"),
    "params to init_state": (
        lambda: jb.init_state(NET, SGD, jax.random.key(0), params=PARAMS[:1]), "params: "),
    # x
    "features": (
        lambda: jb.backprop(NET, PARAMS, X[:, :3], T),
        "x: expected shape (B, 4) for a network with sizes (4, 5, 3), got (6, 3)"),
    "a batch for an example": (
        lambda: jb.forward(NET, PARAMS, X), "x: expected one example of shape (4,) .* got (6, 4)"),
    "an example for a batch": (lambda: jb.backprop(NET, PARAMS, X[0], T), "x: .* got (4,)"),
    "an example to mean_cost": (lambda: jb.mean_cost(NET, PARAMS, X[0], T), "x: .* got (4,)"),
    "features to predict": (lambda: jb.predict(NET, PARAMS, X.T), "x: .* (..., 4) .* got (4, 6)"),
    "a number to predict": (lambda: jb.predict(NET, PARAMS, 1.0), "x: .* got ()"),
    "complex x": (
        lambda: jb.predict(NET, PARAMS, X.astype(complex)), "x: .* real .* got complex64"),
    "x of words": (lambda: jb.predict(NET, PARAMS, "digits"), "x: expected .* real .* got str"),
    "ragged x": (lambda: jb.backprop(NET, PARAMS, [[1.0], [1.0, 2.0]], T), "x: .* got list"),
    "x of numbers in words": (lambda: jb.predict(NET, PARAMS, ["1"] * 4), "x: .* got list"),
    "x of dates": (lambda: jb.predict(NET, PARAMS, np.zeros(4, "M8[s]")), "x: .* got datetime64"),
    "x of objects": (lambda: jb.predict(NET, PARAMS, np.array([1, None] * 2)), "x: .* got object"),
    "empty batch": (
        lambda: jb.value_and_grad(NET, PARAMS, X[:0], T[:0]), "x: expected at least one example"),
    "empty step": (lambda: jb.train_step(NET, SGD, state(), X[:0], T[:0]), "x: .* at least one"),
    "empty epoch": (lambda: epoch(2, X[:0], T[:0]), "x: .* at least one"),
    "empty evaluation": (lambda: jb.evaluate(NET, PARAMS, X[:0], T[:0]), "x: .* at least one"),
    # t
    "t of a wrong width": (
        lambda: jb.backprop(NET, PARAMS, X, T[:, :2]),
        "t: expected shape (6, 3) or integer labels of shape (6,) .* got (6, 2)"),
    "t of another length": (lambda: jb.backprop(NET, PARAMS, X, T[:5]), "t: .* got (5, 3)"),
    "labels in a column": (lambda: jb.backprop(NET, PARAMS, X, LABELS[:, None]), "t: .* (6, 1)"),
    "float labels": (lambda: jb.backprop(NET, PARAMS, X, T[:, 0]), "t: .* got (6,)"),
    "bool labels": (lambda: jb.backprop(NET, PARAMS, X, LABELS > 0), "t: .* got (6,)"),
    "labels for a regression": (
        lambda: jb.backprop(REGRESSION, PARAMS, X, LABELS),
        "t: expected shape (6, 3), since the cost squared_error takes no integer labels"),
    "flat t for one output": (
        lambda: jb.backprop(jb.Network((4, 1)), [(X[:1], X[0, :1])], X, T[:, 0]),
        "t: expected shape (6, 1) .* got (6,)"),
    "a label for one example of a regression": (
        lambda: jb.backward(REGRESSION, PARAMS, TAPE, 2), "t: expected shape (3,), since"),
    "a batch of t for one example": (lambda: jb.backward(NET, PARAMS, TAPE, T), "t: .* (6, 3)"),
    "t of an epoch": (lambda: epoch(2, X, T[:5]), "t: .* got (5, 3)"),
    "t of an evaluation": (lambda: jb.evaluate(NET, PARAMS, X, T[:5]), "t: .* got (5, 3)"),
    "t of a step": (lambda: jb.train_step(NET, SGD, state(), X, T[:5]), "t: .* got (5, 3)"),
    # weight
    "weight of a wrong shape": (
        lambda: jb.backprop(NET, PARAMS, X, T, weight=jnp.ones(5)), "weight: .* (6,).* got (5,)"),
    "weight in a column": (
        lambda: jb.mean_cost(NET, PARAMS, X, T, weight=jnp.ones((6, 1))), "weight: .* (6, 1)"),
    "negative weight": (
        lambda: jb.backprop(NET, PARAMS, X, T, weight=[1, 1, 1, -2, 1, 1]),
        "weight: expected finite numbers of at least 0, got -2 at row 3"),
    "NaN weight": (
        lambda: jb.backprop(NET, PARAMS, X, T, weight=[np.nan] * 6), "weight: .* nan at row 0"),
    "weight of an epoch": (lambda: epoch(2, weight=jnp.ones(5)), "weight: .* got (5,)"),
    # batch_size
    "batch_size 0": (lambda: epoch(0), "batch_size: .* at least 1, got 0"),
    "batch_size a float": (lambda: epoch(2.0), "batch_size: .* got 2.0"),
    "batch_size of an evaluation": (
        lambda: jb.evaluate(NET, PARAMS, X, T, batch_size=-1), "batch_size: .* got -1"),
    # the pass
    "the tape of a batch": (lambda: jb.backward(NET, PARAMS, BATCHED, T[0]), "tape: .* (6, 5)"),
    "the tape of another network": (
        lambda: jb.backward(jb.Network((4, 3)), PARAMS[:1], TAPE, T[0]), "tape: "),
    "delta_L of a batch": (
        lambda: jb.propagate(NET, PARAMS, TAPE, T), "delta_L: expected shape (3,), got (6, 3)"),
    "a delta missing": (lambda: jb.gradients(TAPE, DELTAS[:1]), "deltas: expected those of ONE"),
    "deltas of a batch": (
        lambda: jb.gradients(BATCHED, BATCHED.z), "deltas: .* ONE example.* a batch: jax.vmap"),
    "feedback for one layer more": (
        lambda: jb.propagate(NET, PARAMS, TAPE, DELTAS[-1], feedback=(1, 2)),
        "feedback: expected a tuple of 1, .* got tuple of 2"),
    "feedback that is no tuple": (
        lambda: jb.propagate(NET, PARAMS, TAPE, DELTAS[-1], feedback=3), "feedback: .* got int"),
    "feedback forgotten": (
        lambda: jb.backprop(NET, PARAMS, X, T, rule=KEPT),
        "feedback: expected what rule.init gives for kept, .* got []"),
    "a state made for another rule": (
        lambda: jb.train_step(NET, SGD, state(), X, T, rule=KEPT), "feedback: .* kept, .* got []"),
    "raw key for one example's rule": (
        lambda: jb.propagate(NET, PARAMS, TAPE, DELTAS[-1], key=3), "key: .* typed key.* got int"),
    "raw key for a rule": (
        lambda: jb.backprop(NET, PARAMS, X, T, key=jax.random.PRNGKey(0)), "key: .* typed key"),
    "a seed for a rule": (
        lambda: jb.backprop(NET, PARAMS, X, T, key=0), "key: expected a typed key.* got int"),
    "keys for a rule": (
        lambda: jb.backprop(NET, PARAMS, X, T, key=jax.random.split(jax.random.key(0))),
        "key: expected one key of shape ()"),
    "a rule of a wrong shape": (
        lambda: jb.backprop(NET, PARAMS, X, T, rule=jb.Rule("wide", lambda s: s.delta)),
        "rule wide: expected shape (5,), got (3,)"),
    "an activation of a wrong shape": (
        lambda: jb.predict(
            jb.Network((4, 5, 3), jb.Activation("max", jnp.max, jnp.max)), PARAMS, X),
        "activation max: expected shape (5,), got ()"),
    "an initializer of a wrong shape": (
        lambda: jb.init(NET, jax.random.key(0), initializer=TURNED),
        "initializer: expected shape (5, 4), got (4, 5)"),
    "a cost's gradient of a wrong shape": (
        lambda: jb.backprop(
            jb.Network((4, 5, 3), cost=jb.Cost("sum", lambda y, t: y[0], lambda y, t: y[0])),
            PARAMS, X, T),
        "cost sum: expected grad(y, t) of shape (3,), got ()"),
    "params with other leaves": (
        lambda: jb.value_and_grad(NET, [(w.tolist(), b) for w, b in PARAMS], X, T),
        "params: expected a pytree whose leaves are"),
    "a cost that is no number": (
        lambda: jb.value_and_grad(
            jb.Network((4, 5, 3), cost=jb.Cost("each", lambda y, t: y - t, lambda y, t: y)),
            PARAMS, X, T),
        "cost: expected each.value(y, t) of shape (), got (3,)"),
    # check_batch
    "label 3 of 3": (
        lambda: jb.check_batch(NET, X, [0, 1, 3, 0, 9, 0]),
        "t: expected labels from 0 to 2, got 3 at row 2"),
    "label -1": (lambda: jb.check_batch(NET, X, [0, -1, 2, 0, 0, 0]), "t: .* got -1 at row 1"),
    "label beyond int32 in a list": (
        lambda: jb.check_batch(NET, X, [0, 0, 1, 2**40, 0, 0]), "t: .* got 1099511627776 at row 3"),
    "x infinite in float32": (
        lambda: jb.check_batch(NET, np.asarray(X, float) * 1e39, T), "x: expected finite .* row 0"),
    "label beyond int32": (
        lambda: jb.check_batch(NET, X, np.array([0, 0, 2**32 + 1, 0, 0, 0])), "t: .* at row 2"),
    "x infinite": (lambda: jb.check_batch(NET, X.at[4, 1].set(jnp.inf), T), "x: .* inf at row 4"),
    "t NaN": (lambda: jb.check_batch(REGRESSION, X, T.at[5, 0].set(jnp.nan)), "t: .* at row 5"),
    "t negative": (lambda: jb.check_batch(NET, X, T.at[1, 2].set(-1)), "t: .* got -1.0 at row 1"),
    "t beyond 1": (
        lambda: jb.check_batch(
            jb.Network((4, 3), output=jb.sigmoid, cost=jb.binary_cross_entropy), X, 2 * T.round()),
        "t: expected numbers from 0 to 1, got 2.0"),
    "shape of x": (lambda: jb.check_batch(NET, X[:, :3], T), "x: expected shape (B, 4)"),
    "shape of t": (lambda: jb.check_batch(NET, X, T[:5]), "t: .* got (5, 3)"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_names_the_argument(name):
    call, message = CASES[name]
    pattern = ".*".join(map(re.escape, message.split(".*")))
    with pytest.raises(ValueError, match=f"^{pattern}"):
        call()


BINARY = jb.Network((4, 1), output=jb.sigmoid, cost=jb.binary_cross_entropy)


def test_an_array_of_jax_passes_a_jit_border_as_it_is():
    assert checks.storable_input(NET, X, jnp.float32) is X
    for net, t in [(NET, T), (NET, LABELS), (BINARY, LABELS), (BINARY, LABELS > 0)]:
        assert checks.storable_target(net, t, jnp.float32, (6,)) is t


@pytest.mark.parametrize("net", [NET, BINARY])
def test_labels_pass_it_as_int32_and_as_minus_1_where_they_are_none(net):
    n = max(net.sizes[-1], 2)
    t = checks.storable_target(net, np.array([0, 1, n - 1, n, -1, 2**32]), jnp.float32, (6,))
    assert t.dtype == np.int32
    assert t.tolist() == [0, 1, n - 1, -1, -1, -1]


def test_bools_and_images_of_bytes_pass_it_small():
    assert checks.storable_target(BINARY, np.ones(6, bool), jnp.float32, (6,)).dtype == bool
    assert checks.storable_input(NET, np.ones((6, 4), np.uint8), jnp.float32).dtype == np.uint8
    assert checks.storable_input(NET, np.ones((6, 4)), jnp.float16).dtype == jnp.float16


def test_labels_become_vectors_of_the_parameters_dtype():
    for net, labels, expected in [
        (NET, [0, 2, 3], [[1, 0, 0], [0, 0, 1], [jnp.nan] * 3]),
        (BINARY, [0, 1, 2], [[0], [1], [jnp.nan]]),
        (BINARY, [False, True, True], [[0], [1], [1]]),
    ]:
        t = checks.as_target(net, labels, jnp.float16, lead=(3,))
        assert t.dtype == jnp.float16
        np.testing.assert_array_equal(t, np.float16(expected))
        one = checks.as_target(net, labels[1], jnp.float16)
        np.testing.assert_array_equal(one, np.float16(expected[1]))


@pytest.mark.parametrize("given", [None, [1, 2], [True, False], np.array([1, 2.0])])
def test_weights_are_float32_at_least(given):
    for dtype in (jnp.float16, jnp.bfloat16, jnp.float32):
        weight = checks.as_weight(given, 2, dtype)
        assert weight.dtype == jnp.float32
        assert weight.tolist() == ([1, 1] if given is None else [float(w) for w in given])
    with jax.enable_x64(True):
        assert checks.as_weight(given, 2, jnp.float64).dtype == jnp.float64


def test_weights_lie_within_their_dtype():
    least, most = (float(getattr(jnp.finfo(jnp.float32), end)) for end in ("tiny", "max"))
    for good in ([0, 1], [least, most], np.array([0, 60_000], np.float16), [0.0, -0.0]):
        assert checks.as_weight(good, 2, jnp.float32).tolist() == [float(w) for w in good]
    for bad in ([1, least / 2], [1, 2 * most], [1, -1], [1, np.nan], [1, np.inf]):
        expected = "0 or numbers" if bad[1] == least / 2 else "finite numbers"
        with pytest.raises(ValueError, match=f"^weight: expected {expected}.* at row 1$"):
            checks.as_weight(np.array(bad), 2, jnp.float32)
        with np.errstate(over="ignore"):
            narrow = np.array(bad, np.float32)
        found = jax.jit(lambda w: checks.as_weight(w, 2, jnp.float32))(narrow)
        assert jnp.isnan(found).tolist() == [False, bad[1] != least / 2]


def test_what_is_traced_raises_when_it_is_traced():
    with pytest.raises(ValueError, match="x: expected shape"):
        jax.eval_shape(lambda x: jb.backprop(NET, PARAMS, x, T), X[:, :3])


@pytest.mark.parametrize("good", [(X, T), (X.tolist(), [0, 1, 2, 0, 1, 2]), (X > 0, LABELS)])
def test_check_batch_is_silent_on_good_values(good):
    assert jb.check_batch(NET, *good) is None
    assert jb.check_batch(REGRESSION, X, -5 * T) is None


def test_import_is_silent_and_needs_only_the_core():
    """Nothing of the extras, with warnings as errors."""
    code = (
        "import sys\n"
        "for name in ['sklearn', 'matplotlib', 'tyro', 'rich', 'beartype', 'pytest']:\n"
        "    sys.modules[name] = None\n"
        "import jbackprop\n"
        "assert jbackprop.__all__ and jbackprop.__version__\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_every_public_name_is_there_and_documented():
    for name in jb.__all__:
        value = getattr(jb, name)
        assert (
            callable(value)
            or isinstance(value, jb.Activation | jb.Cost | jb.Rule)
            or (name == "Params")
        )
        if callable(value) and name != "Params":
            assert value.__doc__


def test_only_a_batch_is_called_one():
    other = jb.Network((4, 6, 3))
    tape = jb.forward(other, jb.init(other, jax.random.key(0)), X[0])
    with pytest.raises(ValueError, match=r"^tape: .* from forward") as error:
        jb.backward(NET, PARAMS, tape, T[0])
    assert "batch" not in str(error.value)
    with pytest.raises(ValueError, match=r"^tape: .* from forward.* got int$"):
        checks.check_tape(NET, 3)
    with pytest.raises(ValueError, match=r", a batch: jax.vmap makes"):
        jb.backward(NET, PARAMS, BATCHED, T[0])


def test_the_shapes_of_deltas_and_z_are_told_apart():
    said = r"^deltas: .*got {'deltas': \[\(3,\)\], 'z': \[\(5,\), \(3,\)\]}$"
    with pytest.raises(ValueError, match=said):
        jb.gradients(TAPE, DELTAS[1:])


@jax.tree_util.register_pytree_node_class
class Unlike:
    """Says that it is (w, b), and has another leaf beside."""

    def __init__(self, *parts):
        self.parts = parts

    def __iter__(self):
        return iter(self.parts[:2])

    def tree_flatten(self):
        return self.parts, None

    @classmethod
    def tree_unflatten(cls, _, parts):
        return cls(*parts)


def test_a_gradient_has_the_structure_of_what_it_is_of():
    found = [(1, 2), (3, 4)]
    like = [{"w": 0, "b": 0}, {"w": 0, "b": 0}]
    assert checks.in_the_structure_of("g", [(0, 0), (0, 0)], found) == found
    reordered = jax.tree.map(lambda v: v, [Unlike(0, 0), Unlike(0, 0)])
    assert [layer.parts for layer in checks.in_the_structure_of("g", reordered, found)] == found
    for wrong in (like, [((0,), 0), (0, 0)], [Unlike(0, 0, 0), (0, 0)], [(0, [0, 0]), (0, 0)]):
        with pytest.raises(ValueError, match=r"^params: expected a pytree whose leaves are"):
            checks.in_the_structure_of("g", wrong, found)
    for wrong in (3, [1, 2], found[:1], [(1, 2, 3)] * 2):
        with pytest.raises(ValueError, match=r"^g: expected \(w, b\) per layer, got "):
            checks.in_the_structure_of("g", [(0, 0), (0, 0)], wrong)
