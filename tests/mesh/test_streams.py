"""Batches from the host onto a mesh: the numbers of one device, each device its own rows."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P
from test_placement import assert_same

import jbackprop as jb

NET = jb.Network((16, 24, 8), jb.tanh, jb.softmax, jb.cross_entropy)
ADAM, KEY = optax.adam(1e-2), jax.random.key(0)
N, BATCH = 100, 32  # 4 rows are left


def data():
    x = jax.random.normal(jax.random.key(1), (N, 16))
    return np.asarray(x), np.minimum(np.arange(N) % 8, 4)


@pytest.mark.long(6)
@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("style", ["data", "fsdp"])
@pytest.mark.parametrize("weighted", [False, True], ids=["", "weights"])
@pytest.mark.parametrize("spread", [False, True], ids=["left to the step", "shard_batch"])
def test_a_stream_is_that_of_one_device(spread, weighted, style, explicit):
    mesh = jb.make_mesh(explicit=explicit)
    alone = jb.init_state(NET, ADAM, KEY)
    lies = jb.shardings_for(NET, mesh, style, optimizer=ADAM)
    state = jax.device_put(alone, lies)
    weight = np.arange(N) % 5 if weighted else None
    seen = []

    def put(batch):
        batch = jb.shard_batch(mesh, batch)
        seen.extend(leaf.sharding.spec for leaf in jax.tree.leaves(batch))
        return batch

    see = lambda factors, state, updates: factors.cost
    given = {"batch_size": BATCH, "weight": weight}
    for _ in range(2):
        batches = jb.epoch_batches(state, *data(), **given)
        state, info = jb.train_stream(
            NET, ADAM, state, batches, put=put if spread else None, observe=see
        )
        alone, told = jb.train_epoch(NET, ADAM, alone, *data(), **given, observe=see)
        assert_same(state.params, alone.params, 1e-5)
        assert_same(info, told, 1e-5)
        assert int(state.step) == int(alone.step)
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(lies), strict=False):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert len(seen) == spread * 2 * (4 * (2 + weighted) + (not weighted))
    assert set(seen) <= {P("data")}


def test_batches_go_where_the_state_lies():
    device = jax.devices()[3]
    alone = jb.init_state(NET, ADAM, KEY)
    state = jax.device_put(alone, device)
    batches = partial(jb.epoch_batches, batch_size=BATCH, weight=np.arange(N) % 5)
    state, info = jb.train_stream(NET, ADAM, state, batches(state, *data()))
    alone, told = jb.train_stream(NET, ADAM, alone, batches(alone, *data()))
    assert {leaf.device for leaf in jax.tree.leaves(state)} == {device}
    assert_same(state.params, alone.params, 0)
    assert_same(info, told, 0)
    assert isinstance(info.cost, jnp.ndarray)
