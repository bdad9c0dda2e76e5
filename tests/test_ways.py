"""The plain way is taken wherever it is right, and the longer one from there on: where each turns.

Of a layer of one weight and one bias with a = 1, whose gradients are (δ_i, δ_i), every condition is
a number that can be worked out: each is tried on either side of it.
"""

import importlib
import math

import battery
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbackprop as jb
from jbackprop.core.numerics import safe_range
from jbackprop.quantities.norms import norm_of_layers

MODULES = [
    importlib.import_module(f"jbackprop.quantities.{name}")
    for name in (
        "batch_size", "diagnostics", "ghost", "groups", "moments", "norms", "spread", "statistics",
    )
]  # fmt: skip
LOW, HIGH = safe_range(jnp.float32)
ROOT_LOW, ROOT_HIGH = LOW**0.5, HIGH**0.5
ONE = (jb.Layer(jnp.ones((1, 1)), jnp.ones(1)),)


def taking(monkeypatch, unless):
    """The quantities choose their way by this function."""
    for module in MODULES:
        monkeypatch.setattr(module, "unless", unless)


@pytest.fixture
def taken(monkeypatch):
    """Whether each condition met was fine, in turn."""
    seen = []

    def unless(fine, plain, careful):
        seen.append(bool(fine))
        return plain() if fine else careful()

    taking(monkeypatch, unless)

    def of(function, factors):
        seen.clear()
        with jax.disable_jit():
            function(factors)
        return [*seen]

    return of


def of_rows(*layers, weight=None):
    """Factors of rows of δ and of a, (B, n), of every layer."""
    deltas, activations = (
        tuple(jnp.asarray(np.array(v, np.float32)) for v in rows)
        for rows in zip(*layers, strict=True)
    )
    batch = len(deltas[0])
    y = jnp.zeros_like(deltas[-1])
    weight = jnp.ones(batch) if weight is None else jnp.array(weight, jnp.float32)
    tape = jb.Tape(tuple(jnp.zeros_like(d) for d in deltas), (*activations, y))
    return jb.Factors(jnp.zeros(batch), tape, deltas, y, weight)


def of_deltas(*deltas, a=1.0):
    return of_rows((np.array(deltas)[:, None], np.full((len(deltas), 1), a)))


def apart(m, d):
    """Gradients m + d and m - d."""
    return of_deltas(m + d, m - d)


GROUPS = np.zeros(2, int)
FUNCTIONS = {  # and which of the conditions met is its own
    "squared_norms": (jb.squared_norms, 0),
    "gram": (jb.gram, 0),
    "second_moment": (jb.second_moment, 0),
    "inner_products": (lambda f: jb.inner_products(f, ONE), 0),
    "variance": (jb.variance, 0),
    "noise_scale": (jb.noise_scale, 1),
    "delta_norms": (jb.delta_norms, 1),
    "inner_product_test": (jb.inner_product_test, 2),
    "group_squared_norms": (lambda f: jb.group_squared_norms(f, GROUPS, 1), 2),
    "norm_of_layers": (lambda f: norm_of_layers(jb.sum_gradient(f)), 0),
}
CANCEL = (-2 + math.sqrt(124)) / 30  # e with e² = (1 + (1 - e)²) / 16
TURNS = [
    # function, its factors for a number, the number, and whether it is fine above it
    *(
        (name, of_deltas_alike, number, above)
        for name in ("squared_norms", "gram", "second_moment", "inner_products")
        for of_deltas_alike, number, above in [
            (lambda v: of_deltas(v, v), ROOT_LOW, True),
            (lambda v: of_deltas(v, v), ROOT_HIGH / 2**0.5, False),
            (lambda v: of_deltas(1.0, v), ROOT_LOW, True),
            (lambda v: of_deltas(v, 1.0), ROOT_HIGH / 2**0.5, False),
            (lambda v: of_deltas(0.5, 0.5, a=v), 2 * ROOT_HIGH, False),
        ]
    ),
    ("variance", lambda d: apart(1, d), 15**-0.5, True),
    ("variance", lambda v: of_deltas(v, -v), ROOT_LOW, True),
    ("noise_scale", lambda d: apart(1, d), 15**-0.5, True),
    ("noise_scale", lambda v: of_deltas(v, -v), ROOT_LOW * 2**9.5, True),
    ("noise_scale", lambda v: of_deltas(v, -v), ROOT_HIGH / 2**0.5, False),
    ("noise_scale", lambda v: of_deltas(v, 0.1 * v), ROOT_HIGH / 2**0.5, False),
    ("delta_norms", lambda d: apart(1, d), 1 / 256, True),
    ("inner_product_test", lambda d: apart(1, d), 65535**-0.5, True),
    ("inner_product_test", lambda d: apart(1, d), 4095**0.5, False),
    ("inner_product_test", lambda m: apart(m, 8 * m), ROOT_LOW / 2**0.5, True),
    ("inner_product_test", lambda v: of_deltas(v, 0.1 * v), ROOT_HIGH / 2**0.5, False),
    ("group_squared_norms", lambda e: of_deltas(1, e - 1), CANCEL, True),
    ("group_squared_norms", lambda v: of_deltas(v, v), ROOT_LOW / 2, True),
    ("group_squared_norms", lambda v: of_deltas(0.1 * v, v), ROOT_HIGH / 2**0.5, False),
    ("norm_of_layers", lambda v: of_deltas(v), ROOT_LOW / 2**0.5, True),
    ("norm_of_layers", lambda v: of_deltas(v), ROOT_HIGH / 2**0.5, False),
]  # fmt: skip


@pytest.mark.long(17)
@pytest.mark.parametrize(
    ("name", "made", "number", "above"),
    TURNS,
    ids=[f"{name} {number:.3g} {i}" for i, (name, _, number, _) in enumerate(TURNS)],
)
def test_each_way_turns_where_its_condition_does(name, made, number, above, taken):
    function, own = FUNCTIONS[name]
    assert taken(function, made(number * 1.01))[own] == above
    assert taken(function, made(number * 0.99))[own] != above


@pytest.mark.long
def test_the_longer_way_gives_the_same_of_an_ordinary_batch(monkeypatch):
    taking(monkeypatch, lambda fine, plain, careful: careful())
    with jax.disable_jit():
        battery.quantities_are_those_of_all_gradients(jb, jb.Network((3, 4, 3)))


@pytest.mark.long(1)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_longer_way_takes_small_floats_as_float32(dtype, monkeypatch):
    taking(monkeypatch, lambda fine, plain, careful: careful())
    cast = lambda rows, dtype: tuple(v.astype(dtype) for v in rows)
    factors, found = ORDINARY, []
    for each in (dtype, jnp.float32):
        tape = factors.tape._replace(a=cast(factors.tape.a, each))
        factors = factors._replace(delta=cast(factors.delta, each), tape=tape)
        with jax.disable_jit():
            found.append([jax.tree.leaves(function(factors)) for function in OF_MANY.values()])
    for small, large in zip(*map(jax.tree.leaves, found), strict=True):
        scale = float(jnp.abs(large).max())
        np.testing.assert_allclose(small, large, rtol=0, atol=3e-2 * scale)


RNG = np.random.default_rng(0)
SHAPES = [(64, 5), (64, 4)], [(64, 3), (64, 5)]
ORDINARY = of_rows(*([RNG.normal(size=shape) for shape in layer] for layer in SHAPES))
TWO = jax.tree.map(lambda v: jnp.ones(v.shape[1:]), jb.example_gradients(ORDINARY))
IN_EIGHT = np.arange(64) % 8
OF_MANY = {
    **{name: function for name, (function, _) in FUNCTIONS.items()},
    "inner_products": lambda f: jb.inner_products(f, TWO),
    "group_squared_norms": lambda f: jb.group_squared_norms(f, IN_EIGHT, 8),
    "observe_all": lambda f: jb.observe_all(jb.Network((4, 5, 3)))(
        f, jb.TrainState(TWO, (), (), jax.random.key(0), jnp.zeros((), int)), TWO
    ),
}


@pytest.mark.parametrize("name", OF_MANY)
@pytest.mark.parametrize("weight", ["ones", "masks", "nobody", "tiny", "huge"])
def test_an_ordinary_batch_takes_the_plain_way_throughout(name, weight, taken):
    weight = {
        "ones": np.ones(64), "masks": IN_EIGHT > 0, "nobody": np.zeros(64),
        "tiny": np.full(64, 1e-30), "huge": np.full(64, 1e30),
    }[weight]  # fmt: skip
    blank = lambda v: jnp.where(weight[:, None] > 0, v, 0)
    tape = ORDINARY.tape._replace(a=tuple(map(blank, ORDINARY.tape.a)))
    factors = ORDINARY._replace(
        delta=tuple(map(blank, ORDINARY.delta)), tape=tape, weight=jnp.asarray(weight, jnp.float32)
    )
    if name != "norm_of_layers":
        assert all(taken(OF_MANY[name], factors))


def changed(layer, row, by):
    """The ordinary batch with one row of δ in one layer multiplied."""
    deltas = [*ORDINARY.delta]
    deltas[layer] = deltas[layer].at[row].multiply(by)
    return ORDINARY._replace(delta=tuple(deltas))


@pytest.mark.parametrize(
    "name", [n for n in FUNCTIONS if n not in ("norm_of_layers", "delta_norms")]
)
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("absent", [False, True])
def test_one_row_of_one_layer_out_of_range_takes_the_longer_way(name, layer, absent, taken):
    """Also where another row is absent."""
    factors = changed(layer, 7, 1e25)
    if absent:
        factors = factors._replace(weight=factors.weight.at[3].set(0))
    assert not taken(OF_MANY[name], factors)[FUNCTIONS[name][1]]


@pytest.mark.parametrize("which", [0, 1])
def test_one_of_two_batches_out_of_range_takes_the_longer_way(which, taken):
    batches = [ORDINARY, changed(0, 7, 1e25)]
    assert not all(taken(lambda f: jb.gram(f, batches[1 - which]), batches[which]))
    assert all(taken(lambda f: jb.gram(f, ORDINARY), ORDINARY))


@pytest.mark.parametrize("name", ["variance", "noise_scale", "delta_norms"])
@pytest.mark.parametrize("layer", [0, 1])
def test_one_layer_without_a_spread_takes_the_longer_way(name, layer, taken):
    deltas, activations = [*ORDINARY.delta], [*ORDINARY.tape.a]
    for rows in (deltas, activations):
        rows[layer] = jnp.broadcast_to(rows[layer][:1], rows[layer].shape)
    tape = ORDINARY.tape._replace(a=tuple(activations))
    alike = ORDINARY._replace(delta=tuple(deltas), tape=tape)
    for weight in (alike.weight, alike.weight.at[3].set(0)):
        assert not all(taken(OF_MANY[name], alike._replace(weight=weight)))


def test_one_entry_without_a_spread_takes_the_longer_way_for_all(taken):
    deltas = (ORDINARY.delta[0].at[:, 2].set(3.0), ORDINARY.delta[1])
    assert taken(jb.variance, ORDINARY._replace(delta=deltas)) == [False]


def test_a_group_whose_members_cancel_is_added_up_alone(taken):
    deltas = tuple(d.at[3].set(1.0).at[11:64:8].set(0.0).at[11].set(-0.999) for d in ORDINARY.delta)
    tape = ORDINARY.tape._replace(a=tuple(jnp.ones_like(a) for a in ORDINARY.tape.a))
    _, _, all_clear, *each = taken(
        OF_MANY["group_squared_norms"], ORDINARY._replace(delta=deltas, tape=tape)
    )
    assert not all_clear
    assert [own for own in each if not own] == [False]
