"""A checkpoint knows no mesh: saved on one, restored on any other, by any number of processes."""

import functools
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_two_processes import HERE, free_address

import jbackprop as jb
from jbackprop.training import storage
from jbackprop.training.checksums import checksums

NET = jb.Network((16, 32, 10), jb.tanh, jb.softmax, jb.cross_entropy)
PRIVATE = optax.chain(jb.gaussian_noise(1.0, 1.0, 4, jax.random.key(5)), optax.adam(1e-2))
MESHES = {
    "fsdp": {"data": 8},
    "tensor": {"data": 2, "model": 4},
    "fsdp+tensor": {"data": 4, "model": 2},
}
ELSEWHERE = {
    "fsdp": {"data": 2},
    "tensor": {"data": 1, "model": 8},
    "fsdp+tensor": {"data": 2, "model": 2},
}


def checkpoints(folder, **rest):
    return jb.Checkpoints(folder, NET, PRIVATE, **rest)


@functools.cache
def alone(step=0):
    """Of random numbers all over, on one device."""
    state = jb.init_state(NET, PRIVATE, jax.random.key(step))
    rng = np.random.default_rng(step)
    drawn = lambda v: v if storage.is_key(v) else jnp.asarray(rng.normal(size=v.shape), v.dtype)
    return jax.tree.map(drawn, state)._replace(step=jnp.int32(step))


def started(style, mesh, step=0):
    """The same, spread over a mesh."""
    shardings = jb.shardings_for(NET, mesh, style, optimizer=PRIVATE)
    numbers = jax.tree.map(lambda v: np.asarray(storage.data(v)), alone(step))
    typed = lambda v, like: jax.random.wrap_key_data(v) if storage.is_key(like) else jnp.asarray(v)
    make = lambda: jax.tree.map(typed, numbers, alone(step))
    return jax.jit(make, out_shardings=shardings)()


def digests(state):
    """Of every leaf, wherever it lies."""
    found = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        value = storage.as_extra({"": storage.data(leaf)})[""]
        found[jax.tree_util.keystr(path)] = hashlib.sha256(value.tobytes()).hexdigest()
    return found


def specs(state):
    return [leaf.sharding.spec for leaf in jax.tree.leaves(state)]


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("style", MESHES)
def test_saved_on_one_mesh_and_restored_on_any(style, explicit, tmp_path):
    mesh = jb.make_mesh(explicit=explicit, **MESHES[style])
    state = started(style, mesh, step=3)
    with checkpoints(tmp_path) as saved:
        saved.save(state)
        assert digests(saved.restore(alone()).state) == digests(alone(3))
        for other, axes in ELSEWHERE.items():
            devices = jax.devices()[: math.prod(axes.values())]
            there = jb.make_mesh(explicit=not explicit, devices=devices, **axes)
            start = started(other, there)
            found = saved.restore(start).state
            assert digests(found) == digests(alone(3))
            assert specs(found) == specs(start)
            assert {leaf.sharding.mesh for leaf in jax.tree.leaves(found)} == {there}


def test_saved_on_one_device_and_restored_as_shapes_say(tmp_path):
    lies = jb.shardings_for(NET, jb.make_mesh(), "fsdp", optimizer=PRIVATE)
    start = jax.jit(lambda key: jb.init_state(NET, PRIVATE, key), out_shardings=lies)
    with checkpoints(tmp_path) as saved:
        saved.save(alone(3))
        found = saved.restore(start.eval_shape(jax.random.key(0))).state
    assert digests(found) == digests(alone(3))
    assert found.params[0].w.sharding == lies.params[0].w
    assert found.key.sharding == lies.key


def test_keys_that_are_spread_stay_so(tmp_path):
    mesh = jb.make_mesh()
    rule = jb.Rule("keyed", lambda s: s.delta, lambda *_: jax.random.split(jax.random.key(1), 8))
    state = jb.init_state(NET, PRIVATE, jax.random.key(0), rule=rule)
    spread = state._replace(feedback=jax.device_put(state.feedback, NamedSharding(mesh, P("data"))))
    with checkpoints(tmp_path, rule=rule) as saved:
        saved.save(spread._replace(params=jax.device_put(state.params, NamedSharding(mesh, P()))))
        found = saved.restore(spread).state.feedback
    assert found.sharding == spread.feedback.sharding
    assert (jax.random.key_data(found) == jax.random.key_data(state.feedback)).all()


@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool", "float64"])
def test_a_checksum_does_not_depend_on_the_mesh(dtype, explicit):
    mesh = jb.make_mesh(explicit=explicit, data=4, model=2)
    with jax.enable_x64(True):
        value = jax.random.normal(jax.random.key(0), (16, 3, 8)).astype(dtype)
        expected = checksums({"a": value})["a"].tolist()
        for spec in (P(), P("data"), P(None, None, "model"), P("model", None, "data")):
            spread = jax.device_put(value, NamedSharding(mesh, spec))
            found = checksums({"a": spread})["a"]
            assert found.tolist() == expected
            assert found.sharding.is_fully_replicated


START = """
import sys, jax
address, rank, folder, out = sys.argv[1:]
jax.distributed.initialize(address, 2, int(rank), coordinator_bind_address=address)
import checkpoint_rank
checkpoint_rank.main(folder, out)
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """A folder, and what each process found."""
    folder, address = tmp_path_factory.mktemp("ranks"), free_address()
    with checkpoints(folder / "alone") as saved:
        saved.save(started("fsdp", jb.make_mesh(), step=5))
    paths = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
    env = os.environ | {"PYTHONPATH": paths, "JAX_NUM_CPU_DEVICES": "2"}
    said = [(folder / f"{rank}.txt").open("w+", encoding="utf-8") for rank in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", START, address, str(r), str(folder), str(folder / f"{r}.json")],
            env=env, stdout=said[r], stderr=subprocess.STDOUT, start_new_session=True,
        )
        for r in range(2)
    ]  # fmt: skip
    try:
        codes = [process.wait(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
        words = []
        for file in said:
            file.seek(0)
            words.append(file.read()[-3000:])
            file.close()
    assert codes == [0, 0], "\n".join(words)
    return folder, [json.loads((folder / f"{r}.json").read_text("utf-8")) for r in range(2)]


def test_what_one_process_saved_two_restore(ranks):
    for found in ranks[1]:
        assert found["from one process"] == digests(alone(5))


def test_what_two_processes_saved_they_restore(ranks):
    for found in ranks[1]:
        assert found["from two"] == digests(alone(3))
        assert found["steps"] == [2, 3]
        assert found["spread"] == alone().params[1].w.tolist()
        assert found["missing"].startswith("step: expected one of [2, 3] in ")


def test_damage_is_told_by_both(ranks):
    told = sorted(found["damaged"].split("is damaged, ")[1] for found in ranks[1])
    assert told[0] == "another process finds it so"
    assert "bytes, and had" in told[1]


@pytest.mark.parametrize("devices", [1, 8])
def test_what_two_processes_saved_one_restores(ranks, devices):
    start = alone()
    if devices > 1:
        start = started("fsdp", jb.make_mesh())
    with checkpoints(Path(ranks[0]) / "two") as saved:
        found = saved.restore(start, step=2)
    assert digests(found.state) == digests(alone(2))
    assert found.extra["whole"].tolist() == [0, 1, 2]
    assert found.extra["spread"].tolist() == alone().params[1].w.tolist()
