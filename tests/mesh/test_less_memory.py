"""Mixed precision, a batch in parts and a tape worked out again, on eight devices."""

import jax
import numpy as np
import optax
import pytest
from test_placement import assert_same
from test_sharding import BATCH, DENSE, KEY, KINDS, SPATIAL, data

import jbackprop as jb

MOMENTUM = optax.sgd(0.1, 0.9)
HOWS = {
    "bfloat16": ({"compute_dtype": "bfloat16"}, 0.02),
    "float16": ({"compute_dtype": "float16"}, 0.005),
    "parts": ({"microbatches": 4}, 1e-5),
    "ragged parts": ({"microbatches": 3, "gradient": jb.clipped_mean(0.3)}, 1e-5),
    "again": ({"remat": 1}, 1e-5),
    "all": ({"remat": 2, "microbatches": 2, "compute_dtype": "float16"}, 0.005),
}


@pytest.mark.long(4)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", [DENSE, SPATIAL], ids=["dense", "spatial"])
@pytest.mark.parametrize(("how", "tolerance"), HOWS.values(), ids=HOWS)
def test_an_epoch_gives_the_numbers_of_one_device(net, how, tolerance, kind):
    mesh = jb.make_mesh(explicit=KINDS[kind])
    state = jb.init_state(net, MOMENTUM, KEY)
    x, t = data(net)
    lies = jb.shardings_for(net, mesh, "data", optimizer=MOMENTUM)
    there = jax.device_put(state, lies)
    alone, info = jb.train_epoch(net, MOMENTUM, state, x, t, batch_size=BATCH, **how)
    ours, told = jb.train_epoch(
        net, MOMENTUM, there, *jb.shard_batch(mesh, (x, t)), batch_size=BATCH, **how
    )
    assert_same(ours.params, alone.params, tolerance)
    np.testing.assert_allclose(told.cost, info.cost, rtol=tolerance)


@pytest.mark.parametrize("check_vma", [True, False])
def test_within_shard_map_a_tape_is_worked_out_again(check_vma):
    mesh = jb.make_mesh()
    params = jb.init(DENSE, KEY)
    x, t = data(DENSE, 16)
    whole = jb.mean_gradient(jb.backprop(DENSE, params, x, t))

    def own(x, t):
        gradient = jb.mean_gradient(jb.backprop(DENSE, params, x, t, remat=1))
        return jax.lax.pmean(gradient, "data")

    specs = {"in_specs": (jax.P("data"), jax.P("data")), "out_specs": jax.P()}
    shared = jax.jit(jax.shard_map(own, mesh=mesh, check_vma=check_vma, **specs))
    assert_same(shared(x, t), whole, 1e-5)
