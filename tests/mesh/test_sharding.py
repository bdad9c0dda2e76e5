"""Training on a mesh by every style: the numbers of one device, each device its share of the arrays
and its own rows of every batch, and what moves between devices."""

import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiled import gathered, products
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_placement import assert_same

import jbackprop as jb
from experiments.common.cost_model import compiled_bytes
from jbackprop.core import examples
from jbackprop.training import train
from jbackprop.training.devices import placement_of
from jbackprop.training.step import How

sys.path.append(str(Path(__file__).parents[1]))
from test_optimizers import CASES

DENSE = jb.Network((16, 24, 40, 8), jb.tanh, jb.softmax, jb.cross_entropy)
SPATIAL = jb.Network(
    ((5, 5, 1), jb.Conv(8, 3), jb.Conv(16, 3), 24, 8), jb.tanh, jb.softmax, jb.cross_entropy
)
NETS = {"dense": DENSE, "spatial": SPATIAL}
STYLES = {
    "data": {"data": 8},
    "fsdp": {"data": 8},
    "tensor": {"data": 2, "model": 4},
    "fsdp+tensor": {"data": 2, "model": 4},
}
KINDS = {"auto": False, "explicit": True}
SGD, ADAM, KEY = optax.sgd(0.1), optax.adam(1e-2), jax.random.key(0)
N, BATCH = 176, 88  # 8 devices have 11 rows of a batch each: no width is a multiple of 11


def data(net, n=N):
    """Some labels more often than others: sums of y - t that cancel have few digits anywhere."""
    x = jax.random.normal(jax.random.key(1), (n, *net.shapes[0]))
    return x, jnp.minimum(jnp.arange(n) % 8, 4)


def started(net, style, explicit, optimizer):
    """(mesh, a state on one device, the same on the mesh, where it lies)."""
    mesh = jb.make_mesh(explicit=explicit, **STYLES[style])
    state = jb.init_state(net, optimizer, KEY)
    lies = jb.shardings_for(net, mesh, style, optimizer=optimizer)
    return mesh, state, jax.device_put(state, lies), lies


def lowered(net, optimizer, state, x, t, *batch_size):
    """The compiled step, or with a batch size epoch, for arrays that lie where these do."""
    jitted = (train._epochs if batch_size else train._steps)[False]
    how = How(place=placement_of(state.params[0].w, state, x, t, None))
    return jitted.lower(net, optimizer, state, x, t, None, how, *batch_size).compile()


def assert_lies(found, lies):
    """Every array has of each device the share that its sharding says, and no more."""
    shardings = jax.tree.leaves(lies)
    for leaf, sharding in zip(jax.tree.leaves(found), shardings, strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        shape = sharding.shard_shape(leaf.shape)
        assert {shard.data.shape for shard in leaf.addressable_shards} == {shape}


@pytest.mark.long(10)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("optimizer", "tolerance"), [(SGD, 1e-5), (ADAM, 1e-4)], ids=["sgd", "adam"]
)
def test_twenty_steps_give_the_numbers_of_one_device(net, style, kind, optimizer, tolerance):
    net = NETS[net]
    mesh, alone, state, lies = started(net, style, KINDS[kind], optimizer)
    batch = data(net, 32)
    rows = jb.shard_batch(mesh, batch)
    for _ in range(20):
        state, _ = jb.train_step(net, optimizer, state, *rows)
        alone, _ = jb.train_step(net, optimizer, alone, *batch)
    assert_same(state.params, alone.params, tolerance)
    for found, expected in zip(state[:2], lies[:2], strict=True):
        assert_lies(found, expected)


@pytest.mark.long(4)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("style", STYLES)
def test_gradients_are_those_of_one_device(style, net, kind):
    net = NETS[net]
    mesh, alone, state, _ = started(net, style, KINDS[kind], SGD)
    batch = data(net, 32)
    rows = jb.shard_batch(mesh, batch)
    for gradient in (jb.mean_gradient, jb.clipped_mean(0.1), jb.second_moment, jb.squared_norms):
        of = jax.jit(lambda params, x, t, of=gradient: of(jb.backprop(net, params, x, t)))
        assert_same(of(state.params, *rows), of(alone.params, *batch), 1e-6)


@pytest.mark.long(6)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [False, True], ids=["everywhere", "along its examples"])
@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("net", NETS)
def test_an_epoch_is_that_of_one_device_and_every_device_has_its_own_rows(net, style, spread, kind):
    """A short last batch and weights included."""
    net = NETS[net]
    mesh, alone, state, lies = started(net, style, KINDS[kind], SGD)
    given = data(net)
    x, t = (jb.shard_batch if spread else everywhere)(mesh, given)
    text = lowered(net, SGD, state, x, t, BATCH).as_text()
    own = BATCH // mesh.shape["data"]
    for shapes in products(text):
        sizes = {size for shape in shapes for size in shape if size % 11 == 0}
        assert sizes, "a product without examples"
        assert all(size % BATCH for size in sizes), f"the whole batch: {shapes}"
        assert all(size % own == 0 for size in sizes)
    weight = (jnp.arange(N) % 5).astype(jnp.float32)
    weights = (jb.shard_batch if spread else everywhere)(mesh, weight)
    after, _ = jb.train_epoch(net, SGD, state, x, t, weight=weights, batch_size=50)
    expected, _ = jb.train_epoch(net, SGD, alone, *given, weight=weight, batch_size=50)
    assert_same(after.params, expected.params, 1e-5)
    assert_lies(after.params, lies.params)


def everywhere(mesh, tree):
    return jax.device_put(tree, NamedSharding(mesh, P()))


@pytest.mark.long(6)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spread", [False, True], ids=["everywhere", "along its examples"])
@pytest.mark.parametrize("style", STYLES)
def test_within_a_program_of_ones_own_every_device_has_its_own_rows(style, spread, kind):
    """There an array does not say how it lies on an Auto mesh, but on which."""
    mesh, alone, state, _ = started(DENSE, style, KINDS[kind], SGD)
    x, t = (jb.shard_batch if spread else everywhere)(mesh, data(DENSE))
    program = jax.jit(partial(jb.train_epoch, DENSE, SGD, batch_size=BATCH)).lower(state, x, t)
    compiled = program.compile()
    for shapes in products(compiled.as_text()):
        sizes = [size for shape in shapes for size in shape if size % 11 == 0]
        assert sizes
        assert all(size % BATCH for size in sizes), f"the whole batch: {shapes}"
    expected, _ = jb.train_epoch(DENSE, SGD, alone, *data(DENSE), batch_size=BATCH)
    assert_same(compiled(state, x, t)[0].params, expected.params, 1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", NETS)
def test_what_moves_in_a_data_parallel_step(net, kind):
    """As `train_epoch` says: the gradient; of spread data, a batch; no parameter is gathered."""
    net = NETS[net]
    mesh, _, state, _ = started(net, "data", KINDS[kind], ADAM)
    x, t = data(net)
    x = (100 * x).astype(jnp.uint8)
    numbers = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    step = compiled_bytes(lowered(net, ADAM, state, *jb.shard_batch(mesh, (x, t))).as_text())
    assert 4 * numbers <= step.pop("all-reduce") <= 4 * numbers + 16  # cost and weight beside it
    assert not any(step.values())
    for batch, moved in ((everywhere(mesh, (x, t)), 0), (jb.shard_batch(mesh, (x, t)), 1)):
        text = lowered(net, ADAM, state, *batch, N).as_text()
        of_rows = (x[0].nbytes + 4) * N // 8 * moved
        assert compiled_bytes(text).get("reduce-scatter", 0) == of_rows
        assert not gathered(text)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("style", STYLES)
def test_each_device_holds_its_share(style, net):
    """From shapes, and from the memory that the compiled step takes for its arguments."""
    net = NETS[net]
    mesh, _, state, lies = started(net, style, False, ADAM)
    rows = jb.shard_batch(mesh, data(net, 32))
    own = lambda tree: sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))
    memory = lowered(net, ADAM, state, *rows).memory_analysis()
    kept = own((state.params, state.opt_state, rows))
    assert kept <= memory.argument_size_in_bytes <= kept + 64
    if "fsdp" in style:  # what divides is spread over all devices
        whole = sum(leaf.nbytes for leaf in jax.tree.leaves((state.params, state.opt_state)))
        assert own((state.params, state.opt_state)) < whole / 8 + 300
    spread = [name for spec in specs(lies.params) for name in spec]
    assert ("model" in spread) == ("tensor" in style)
    assert ("data" in spread) == ("fsdp" in style)


def specs(tree):
    return [tuple(sharding.spec) for sharding in jax.tree.leaves(tree)]


def test_layers_alternate_between_columns_and_rows():
    mesh = jb.make_mesh(data=2, model=4)
    found = jb.shardings_for(DENSE, mesh, "tensor")
    assert specs(found) == [("model", None), ("model",), (None, "model"), (None,),
                            ("model", None), ("model",)]  # fmt: skip
    found = jb.shardings_for(SPATIAL, mesh, "tensor")
    assert specs(found)[:4] == [("model", None, None, None), ("model",),
                                (None, None, None, "model"), (None,)]  # fmt: skip
    both = jb.shardings_for(DENSE, mesh, "fsdp+tensor")
    assert specs(both)[:4] == [("model", "data"), ("model",), ("data", "model"), ("data",)]
    odd = jb.Network((3, 5, 7))
    assert specs(jb.shardings_for(odd, mesh, "fsdp+tensor")) == [(None, None), (None,)] * 2


def test_a_dense_layer_behind_a_convolution_is_split_by_its_outputs():
    """Its inputs are channels of one position after the other: no device has a run of them."""
    net = jb.Network(((4, 4, 1), jb.Conv(8, 3), 16, 4))
    found = jb.shardings_for(net, jb.make_mesh(data=2, model=4), "tensor")
    assert specs(found)[2::2] == [("model", None), (None, "model")]


@pytest.mark.parametrize("name", CASES)
def test_what_an_optimizer_keeps_lies_as_its_parameter(name):
    net, optimizer = jb.Network((16, 24, 8)), CASES[name]()
    mesh = jb.make_mesh(data=8)
    state = jb.init_state(net, optimizer, KEY)
    lies = jb.shardings_for(net, mesh, "fsdp", optimizer=optimizer)
    placed = jax.device_put(state, lies)
    pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(lies.params), strict=True)
    shapes = {leaf.shape: sharding.spec for leaf, sharding in pairs}
    for leaf in jax.tree.leaves(placed.opt_state):
        if leaf.shape in shapes and name != "sm3":  # which keeps maxima of rows and of columns
            assert leaf.sharding.spec == shapes[leaf.shape]
        elif leaf.ndim == 0:
            assert leaf.sharding.spec == P()


def test_a_state_is_made_where_it_lies():
    _, state, _, lies = started(DENSE, "fsdp+tensor", False, ADAM)
    made = jax.jit(partial(jb.init_state, DENSE, ADAM), out_shardings=lies)(KEY)
    assert_same(made.params, state.params, 1e-6)
    assert_lies(made.opt_state, lies.opt_state)


def test_a_rule_with_feedback_trains_on_a_mesh():
    rule = jb.Rule(
        "alignment",
        lambda s: (s.feedback.T @ s.delta) * s.slope,
        lambda net, params, key: tuple(
            jax.random.normal(k, layer.w.shape)
            for k, layer in zip(jax.random.split(key, len(params) - 1), params[1:], strict=True)
        ),
    )
    alone = jb.init_state(DENSE, ADAM, KEY, rule=rule)
    mesh = jb.make_mesh(data=8)
    lies = jb.shardings_for(DENSE, mesh, "fsdp", optimizer=ADAM)
    state = jax.device_put(alone, lies)
    batch = data(DENSE, 32)
    state, _ = jb.train_step(DENSE, ADAM, state, *jb.shard_batch(mesh, batch), rule=rule)
    alone, _ = jb.train_step(DENSE, ADAM, alone, *batch, rule=rule)
    assert_same(state.params, alone.params, 1e-5)


def test_numpy_data_are_spread_by_where_the_state_lies():
    _, alone, state, _ = started(DENSE, "data", False, SGD)
    epoch = partial(jb.train_epoch, DENSE, SGD, batch_size=BATCH)
    x, t = map(np.asarray, data(DENSE))
    assert_same(epoch(state, x, t)[0].params, epoch(alone, x, t)[0].params, 1e-5)


def test_an_axis_of_another_name():
    mesh = jax.make_mesh((8,), ("rows",), (jax.sharding.AxisType.Auto,))
    state = jb.init_state(DENSE, SGD, KEY)
    placed = jax.device_put(
        state, jb.shardings_for(DENSE, mesh, "fsdp", optimizer=SGD, data="rows")
    )
    x, t = jb.shard_batch(mesh, data(DENSE), axis="rows")
    text = lowered(DENSE, SGD, placed, x, t, BATCH).as_text()
    assert all(size % BATCH for shapes in products(text) for shape in shapes for size in shape)
    whole = everywhere(mesh, (state, *data(DENSE)))
    text = lowered(DENSE, SGD, *whole, BATCH).as_text()
    assert all(size % BATCH for shapes in products(text) for shape in shapes for size in shape)


def test_blocks_of_examples_stay_where_they_are(monkeypatch):
    """What runs over examples in blocks takes every device's own: no δ, no a is gathered."""
    monkeypatch.setitem(examples.ROOM, "cpu", 2**12)
    mesh = jb.make_mesh()
    params = jb.init(SPATIAL, KEY)
    factors = jb.backprop(SPATIAL, params, *data(SPATIAL))
    placed = jb.shard_batch(mesh, factors)
    for of in (jb.squared_norms, jb.mean_gradient, jb.second_moment, jb.takeuchi):
        compiled = jax.jit(lambda factors, of=of: of(factors)).lower(placed).compile()
        text = compiled.as_text() or ""
        assert "while" in text
        assert not gathered(text)
        assert_same(compiled(placed), of(factors), 1e-6)


@pytest.mark.parametrize("check_vma", [False, True])
def test_blocks_within_shard_map(check_vma, monkeypatch):
    monkeypatch.setitem(examples.ROOM, "cpu", 2**12)
    mesh = jb.make_mesh()
    factors = jb.backprop(SPATIAL, jb.init(SPATIAL, KEY), *data(SPATIAL))

    def local(factors):
        own = jb.squared_norms(factors), jb.gram(factors)
        return own, jax.lax.psum(jb.sum_gradient(factors), "data")

    mapped = jax.shard_map(local, mesh=mesh, in_specs=P("data"), check_vma=check_vma,
                           out_specs=((P("data"), P("data")), P()))  # fmt: skip
    (norms, products_), total = jax.jit(mapped)(jb.shard_batch(mesh, factors))
    assert_same(norms, jb.squared_norms(factors), 1e-6)
    assert_same(products_[:22], jb.gram(factors)[:22, :22], 1e-6)
    assert_same(total, jb.sum_gradient(factors), 1e-6)


PARAMS_OF = lambda **given: jb.shardings_for(**{"net": DENSE, "mesh": jb.make_mesh(), **given})
BAD = {
    "a style that is none": (lambda: PARAMS_OF(style="zero"), r"style: expected one of .*'zero'"),
    "no axis for the style": (lambda: PARAMS_OF(style="tensor"),
                              r"mesh: expected an axis 'model' for style 'tensor', got .*'data',"),
    "no such axis": (lambda: PARAMS_OF(style="fsdp", data="rows"),
                     r"mesh: expected an axis 'rows' for style 'fsdp', got axes .'data',"),
    "no mesh": (lambda: PARAMS_OF(mesh=8), r"mesh: expected a jax.sharding.Mesh, got int"),
    "no optimizer": (lambda: PARAMS_OF(optimizer=optax.sgd), r"optimizer: expected an optax"),
    "too many devices": (lambda: jb.make_mesh(data=3), r"axes: expected .* 8 devices, got data=3"),
    "two rests": (lambda: jb.make_mesh(data=-1, model=-1), r"axes: .* got data=-1, model=-1"),
    "a size that is none": (lambda: jb.make_mesh(data=0), r"data: expected a whole .* got 0"),
    "rows that do not divide": (lambda: jb.shard_batch(jb.make_mesh(), jnp.ones((30, 2))),
                                r"batch: expected rows that divide among the 8 devices .* got 30"),
    "no rows": (lambda: jb.shard_batch(jb.make_mesh(), 1.0), r"batch: expected arrays with a row"),
    "rows of two lengths": (lambda: jb.shard_batch(jb.make_mesh(), (jnp.ones(8), jnp.ones(16))),
                            r"batch: expected arrays with a row .*\[8, 16\]"),
    "an axis of a batch": (lambda: jb.shard_batch(jb.make_mesh(), jnp.ones(8), axis="x"),
                           r"mesh: expected an axis 'x', got axes .'data',"),
    "another total": (lambda: jb.shard_batch(jb.make_mesh(), jnp.ones(8), total=16),
                      r"batch: expected the 16 rows of total, got 8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_says_what_came_and_what_was_expected(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()
