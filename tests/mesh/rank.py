"""One of two processes with two devices each: every function of a batch, and steps, beside what it
makes of the whole batch by itself. Writes the largest relative difference of each."""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from test_placement import ADAM, CALLS, KEY, NETS

import jbackprop as jb

STEPS = "train_step", "train_epoch", "what is observed"  # which look at where their arguments lie
STYLES = {  # Auto and Explicit by turns
    "data": {"data": 4, "explicit": False},
    "fsdp": {"data": 4, "explicit": True},
    "tensor": {"data": 2, "model": 2, "explicit": False},
    "fsdp+tensor": {"data": 2, "model": 2, "explicit": True},
}
OPTIMIZERS = {"sgd": optax.sgd(0.1), "adam": ADAM}


def here(leaf):
    """All of an array, wherever it lies."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return np.asarray(leaf, np.float64)
    if leaf.is_fully_replicated:
        return np.asarray(leaf.addressable_shards[0].data, np.float64)
    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True), np.float64)


def difference(found, expected):
    """Relative to the largest entry of its array."""
    worst = 0.0
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for ours, theirs in ((here(f), here(e)) for f, e in pairs):
        scale = np.max(np.abs(theirs), initial=0, where=np.isfinite(theirs)) or 1
        assert (np.isfinite(ours) == np.isfinite(theirs)).all()
        gap = np.abs(ours - theirs)
        worst = max(worst, np.max(gap, initial=0, where=np.isfinite(gap)) / scale)
    return float(worst)


def own_rows(tree):
    """Those of this process: as numbers of a host, which is how a data loader has them."""
    half = lambda leaf: np.array_split(np.asarray(leaf), 2)[jax.process_index()]
    return jax.tree.map(half, tree)


def given(net):
    params = jb.init(net, KEY)
    x = jax.random.normal(jax.random.key(1), (32, *net.shapes[0]))
    t, weight = jnp.minimum(jnp.arange(32) % 8, 4), (jnp.arange(32) % 5).astype(jnp.float32)
    factors = jb.backprop(net, params, x, t, weight=weight)
    return params, x, t, weight, factors


def quantities(name):
    net = NETS[name]
    params, *rows = given(net)
    mesh = jb.make_mesh()
    whole = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))
    spread = jb.shard_batch(mesh, own_rows(rows), total=32)
    placed, found = whole(jax.tree.map(np.asarray, params)), {}
    for call in (call for call in CALLS if call not in STEPS):
        of = jax.jit(lambda *arguments, f=CALLS[call]: f(net, *arguments, None))
        found[f"{name}: {call}"] = difference(of(placed, *spread), of(params, *rows))
    return found


def steps(name, style, optimizer):
    """Twenty steps, and an epoch of data that are spread."""
    net, update = NETS[name], OPTIMIZERS[optimizer]
    _, *rows, _ = given(net)
    x, t, weight = rows
    mesh = jb.make_mesh(**STYLES[style])
    start = partial(jb.init_state, net, update)
    alone = start(KEY)
    state = jax.jit(start, out_shardings=jb.shardings_for(net, mesh, style, optimizer=update))(KEY)
    batch = jb.shard_batch(mesh, own_rows((x, t)))
    spread = jb.shard_batch(mesh, own_rows(rows))
    for _ in range(20):
        state, _ = jb.train_step(net, update, state, *batch)
        alone, _ = jb.train_step(net, update, alone, x, t)
    found = {f"{name}, {style}, {optimizer}: 20 steps": difference(state.params, alone.params)}
    epoch = partial(jb.train_epoch, net, update, batch_size=12)
    state, _ = epoch(state, *spread[:2], weight=spread[2])
    alone, _ = epoch(alone, x, t, weight=weight)
    return {**found, f"{name}, {style}, {optimizer}: epoch": difference(state.params, alone.params)}


def stream(style):
    """Batches that each process reads half of, the last one short."""
    net, update = NETS["dense"], OPTIMIZERS["sgd"]
    _, *rows, _ = given(net)
    halves = zip(*(np.array_split(np.asarray(leaf), 2) for leaf in rows), strict=True)
    cut = [[tuple(leaf[i : i + 6] for leaf in half) for i in (0, 6, 12)] for half in halves]
    whole = [tuple(map(np.concatenate, zip(*both, strict=True))) for both in zip(*cut, strict=True)]
    mesh = jb.make_mesh(**STYLES[style])
    start = partial(jb.init_state, net, update)
    state = jax.jit(start, out_shardings=jb.shardings_for(net, mesh, style, optimizer=update))(KEY)
    ways = (
        (state, cut[jax.process_index()], partial(jb.shard_batch, mesh)),
        (start(KEY), whole, None),
    )
    see = lambda factors, state, updates: factors.cost
    ours, theirs = (
        jb.train_stream(net, update, state, batches, put=put, observe=see)
        for state, batches, put in ways
    )
    pairs = ((after.params, info.cost) for after, info in (ours, theirs))
    assert ours[1].observed.shape == (3, 12)
    return {f"stream, {style}": difference(*pairs)}


def unequal():
    """What is said of 16 rows here and 15 there."""
    try:
        jb.shard_batch(jb.make_mesh(), np.ones((16 - jax.process_index(), 3)))
    except ValueError as error:
        return str(error)
    return "nothing"


def main(out):
    """After `jax.distributed.initialize`, which has to come before everything imported above."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_default_matmul_precision", "highest")
    found = {}
    for name in NETS:
        found |= quantities(name)
    for style in STYLES:
        for optimizer in OPTIMIZERS:
            found |= steps("dense", style, optimizer)
    found |= steps("spatial", "data", "sgd")
    for style in ("data", "fsdp+tensor"):
        found |= stream(style)
    said = unequal()
    Path(out).write_text(json.dumps({"found": found, "said": said}), encoding="utf-8")
    jax.distributed.shutdown()
