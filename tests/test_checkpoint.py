"""Checkpoints: what comes back is what was saved, to the bit, or what is wrong is named."""

import collections
import functools
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import problem

import jbackprop as jb
from jbackprop.training import checkpoint, likeness, sealed, storage
from jbackprop.training.checksums import checksums

KEY = jax.random.key(0)
NET = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)
SPATIAL = jb.Network(
    ((8, 8, 1), jb.Conv(3, 3, stride=2), jb.MaxPool(2), jb.Conv(4, 1), jb.MeanPool(), 3),
    jb.relu, jb.softmax, jb.cross_entropy,
)  # fmt: skip
ADAM, SGD = optax.adam(1e-3), optax.sgd(0.1)
PRIVATE = optax.chain(jb.gaussian_noise(1.0, 1.0, 4, KEY), optax.sgd(0.1, momentum=0.9))


def random_matrices(net, params, key):
    keys = jax.random.split(key, len(params) - 1)
    shapes = [layer.w.shape for layer in params[1:]]
    return tuple(jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True))


def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


ALIGNMENT = jb.Rule("alignment", lambda s: (s.feedback.T @ s.delta) * s.slope, random_matrices)
KINDS = {
    "sgd": (NET, SGD, {}),
    "adam": (NET, ADAM, {}),
    "momentum": (SPATIAL, optax.sgd(0.1, momentum=0.9), {}),
    "convolution": (SPATIAL, ADAM, {}),
    "rates": (NET, optax.inject_hyperparams(optax.adam)(learning_rate=0.1), {}),
    "private": (NET, PRIVATE, {}),
    "several": (NET, optax.MultiSteps(ADAM, 2), {}),
    "schedule": (NET, optax.adamw(optax.cosine_decay_schedule(0.1, 100)), {}),
    "masked": (NET, optax.masked(ADAM, matrices), {}),
    "feedback": (NET, SGD, {"rule": ALIGNMENT}),
}


def random_bits(leaf, rng):
    """Any bits at all, NaNs and subnormal numbers among them."""
    if storage.is_key(leaf):
        bits = random_bits(jax.random.key_data(leaf), rng)
        return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
    if leaf.dtype == bool:
        return jnp.asarray(rng.integers(0, 2, leaf.shape).astype(bool))
    size = leaf.size * leaf.dtype.itemsize
    bits = np.frombuffer(rng.bytes(size), leaf.dtype).reshape(leaf.shape)
    return jnp.asarray(bits)


def state_of(net=NET, optimizer=SGD, *, step=0, dtype=jnp.float32, key=KEY, **rest):
    """Of random bits, but for its step."""
    rng = np.random.default_rng(step)
    params, _, _ = problem(net, dtype=dtype)
    with jax.numpy_dtype_promotion("standard"):
        state = jb.init_state(net, optimizer, key, params=params, **rest)
    return jax.tree.map(lambda leaf: random_bits(leaf, rng), state)._replace(step=jnp.int32(step))


def bits(tree):
    leaves = [storage.data(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
    return [(leaf.dtype.name, leaf.shape, np.asarray(leaf).tobytes()) for leaf in leaves]


def same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [
        leaf.dtype for leaf in jax.tree.leaves(expected)
    ]
    assert bits(found) == bits(expected)


def saved(folder, *states, net=NET, optimizer=SGD, **rest):
    with jb.Checkpoints(folder, net, optimizer, **rest) as checkpoints:
        for state in states:
            checkpoints.save(state)


def restored(folder, state, net=NET, optimizer=SGD, *, step=None, **rest):
    with jb.Checkpoints(folder, net, optimizer, **rest) as checkpoints:
        return checkpoints.restore(state, step=step).state


def steps_in(folder):
    return jb.Checkpoints(folder, NET, SGD).steps


@pytest.mark.long(8)
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(kind, "float32") for kind in KINDS]
    + [(k, d) for k in ("adam", "convolution") for d in ("bfloat16", "float16", "float64")],
)
def test_what_comes_back_is_what_was_saved(kind, dtype, tmp_path):
    net, optimizer, rule = KINDS[kind]
    with jax.enable_x64(True) if dtype == "float64" else nullcontext():
        state = state_of(net, optimizer, step=7, dtype=jnp.dtype(dtype), **rule)
        start = state_of(net, optimizer, dtype=jnp.dtype(dtype), **rule)
        saved(tmp_path, state, net=net, optimizer=optimizer, **rule)
        same(restored(tmp_path, start, net, optimizer, **rule), state)


@pytest.mark.parametrize("small", [0, 40, 2**20])
def test_it_does_not_matter_which_arrays_are_written_as_one(small, tmp_path, monkeypatch):
    start = state_of(NET, ADAM)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "SMALL", small)
        with jb.Checkpoints(tmp_path, NET, ADAM) as checkpoints:
            checkpoints.save(state_of(NET, ADAM, step=7), extra={"none": np.ones((0, 3)), "a": 2.0})
    joined = sealed.described(*tmp_path.iterdir())["joined"]
    assert ("params.0.b" in joined, "params.0.w" in joined) == (small >= 40, small > 40)
    with jb.Checkpoints(tmp_path, NET, ADAM) as checkpoints:
        found, extra = checkpoints.restore(start)
    same(found, state_of(NET, ADAM, step=7))
    assert extra["none"].shape == (0, 3)
    assert (extra["a"].shape, float(extra["a"])) == ((), 2.0)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_every_kind(impl, tmp_path):
    key = jax.random.key(3, impl=impl)
    state = jb.init_state(NET, SGD, key)
    saved(tmp_path, state)
    same(restored(tmp_path, jb.init_state(NET, SGD, jax.random.key(4, impl=impl))), state)
    other = "rbg" if impl == "threefry2x32" else "threefry2x32"
    with pytest.raises(
        ValueError, match=r"state: expected key key<\w+>\[\], as here, got key key<"
    ):
        restored(tmp_path, jb.init_state(NET, SGD, jax.random.key(4, impl=other)))


def test_many_networks_at_once_and_their_keys(tmp_path):
    states = jax.vmap(lambda key: jb.init_state(NET, SGD, key))(jax.random.split(KEY, 4))
    with pytest.raises(ValueError, match=r"^state: expected one step of shape \(\), got \(4,\)"):
        saved(tmp_path, states)
    states = states._replace(step=states.step[0])
    saved(tmp_path, states)
    same(restored(tmp_path, states), states)


def test_shapes_alone_say_what_is_expected(tmp_path):
    state = state_of(NET, ADAM, step=3)
    saved(tmp_path, state, optimizer=ADAM)
    shapes = jax.eval_shape(functools.partial(jb.init_state, NET, ADAM), KEY)
    same(restored(tmp_path, shapes, NET, ADAM), state)


def test_arrays_are_committed_to_a_device_where_the_given_ones_are(tmp_path):
    state = state_of()
    saved(tmp_path, state)
    here = jax.device_put(state, jax.devices()[0])
    for given, committed in (state, False), (here, True):
        found = restored(tmp_path, given)
        assert {leaf.committed for leaf in jax.tree.leaves(found)} == {committed}
        same(found, state)


def test_arrays_of_numpy_are_saved_as_jax_has_them(tmp_path):
    state = state_of()
    wide = state._replace(params=jax.tree.map(lambda v: np.asarray(v, np.float64), state.params))
    with jax.numpy_dtype_promotion("standard"):
        saved(tmp_path, wide)
    same(restored(tmp_path, state), jax.tree.map(jnp.asarray, wide))


EXTRA = {
    "number": 2.5,
    "whole": 7,
    "of jax": jnp.arange(3.0),
    "wide": np.arange(4.0) / 3,
    "": np.array([True, False]),
    "a/b.c": np.zeros((0, 3), np.float32),
    "..": np.arange(6, dtype=np.uint8).reshape(2, 3).T,
    "ü %2F": np.int64(2**40),
    "small": jnp.ones((2,), jnp.bfloat16),
    "list": [[1, 2], [3, 4]],
}


def test_what_else_is_kept_comes_back_as_arrays_of_numpy(tmp_path):
    with jb.Checkpoints(tmp_path, NET, SGD) as checkpoints:
        checkpoints.save(state_of(), extra=EXTRA)
        extra = checkpoints.restore(state_of()).extra
        checkpoints.save(state_of(step=1))
        assert checkpoints.restore(state_of()).extra == {}
    assert [*extra] == [*EXTRA]
    for name, value in EXTRA.items():
        value = np.asarray(value)
        assert type(extra[name]) is np.ndarray
        assert (extra[name].dtype, extra[name].shape) == (value.dtype, value.shape)
        assert extra[name].tobytes() == value.tobytes()


@pytest.mark.parametrize("extra", [[1, 2], {1: 2.0}, {"a": "text"}, {"a": {"b": 1}}, {"a": KEY}])
def test_what_else_has_to_be_arrays_by_name(extra, tmp_path):
    with jb.Checkpoints(tmp_path, NET, SGD) as checkpoints:
        with pytest.raises(ValueError, match=r"^extra"):
            checkpoints.save(state_of(), extra=extra)
        assert checkpoints.steps == ()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["0/w", "..", "", "a.b", "ü %2F", "x" * 300, "zarr.json"])
def test_names_within_a_state_may_be_any(name, tmp_path):
    rule = jb.Rule("named", lambda s: s.delta, lambda *_: {name: jnp.arange(3.0)})
    state = jb.init_state(NET, SGD, KEY, rule=rule)
    saved(tmp_path, state, rule=rule)
    same(restored(tmp_path, state, rule=rule), state)


def test_two_leaves_of_one_name(tmp_path):
    both = {"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}}
    rule = jb.Rule("named", lambda s: s.delta, lambda *_: both)
    with pytest.raises(ValueError, match=r"^state: .* got two 'feedback\.a\.b'"):
        saved(tmp_path, jb.init_state(NET, SGD, KEY, rule=rule), rule=rule)


def test_empty_arrays_come_back(tmp_path):
    rule = jb.Rule("empty", lambda s: s.delta, lambda *_: jnp.zeros((0, 3), jnp.bfloat16))
    state = jb.init_state(NET, SGD, KEY, rule=rule)
    saved(tmp_path, state, rule=rule)
    same(restored(tmp_path, state, rule=rule), state)


@pytest.mark.parametrize("state", [None, (1, 2), jb.TrainState(1, "text", 2, KEY, KEY)])
def test_a_state_is_one(state, tmp_path):
    with jb.Checkpoints(tmp_path, NET, SGD) as checkpoints:
        for call in checkpoints.save, checkpoints.restore:
            with pytest.raises(ValueError, match=r"^state: expected"):
                call(state)


def test_bad_arguments(tmp_path):
    for keep in (0, -1, 1.5, None):
        with pytest.raises(ValueError, match=r"^keep: expected a whole number of at least 1"):
            jb.Checkpoints(tmp_path, NET, SGD, keep=keep)
    with pytest.raises(ValueError, match=r"^folder: expected a path, got None"):
        jb.Checkpoints(None, NET, SGD)
    with pytest.raises(ValueError, match=r"^optimizer: expected an optax transformation"):
        jb.Checkpoints(tmp_path, NET, optax.sgd)


RUNS = {
    "sgd": (SGD, {}),
    "adam": (ADAM, {}),
    "private": (PRIVATE, {"gradient": jb.clipped_sum(1.0, 4)}),
    "feedback": (ADAM, {"rule": ALIGNMENT}),
}


@pytest.mark.parametrize("run", RUNS)
def test_training_goes_on_to_the_bit(run, tmp_path):
    optimizer, how = RUNS[run]
    rule = {"rule": how["rule"]} if "rule" in how else {}
    params, x, t = problem(NET, batch=10)
    with jax.numpy_dtype_promotion("standard"):
        state = jb.init_state(NET, optimizer, KEY, params=params, **rule)
        epoch = lambda state: jb.train_epoch(NET, optimizer, state, x, t, batch_size=4, **how)
        with jb.Checkpoints(tmp_path, NET, optimizer, keep=4, **rule) as checkpoints:
            for _ in range(4):
                state, _ = epoch(state)
                checkpoints.save(state)
        for stopped in (3, 6, 9):
            start = jb.init_state(NET, optimizer, jax.random.key(9), **rule)
            again = restored(tmp_path, start, NET, optimizer, step=stopped, keep=4, **rule)
            for _ in range((12 - stopped) // 3):
                again, _ = epoch(again)
            same(again, state)


def test_a_state_may_be_donated_while_it_is_written(tmp_path):
    net = jb.Network((300, 400, 3))
    _, x, t = problem(net, batch=2)
    expected = []
    with jb.Checkpoints(tmp_path, net, SGD, keep=5) as checkpoints:
        state = given = jb.init_state(net, SGD, KEY)
        for _ in range(5):
            expected.append(bits(state))
            checkpoints.save(state)
            given = state
            state, _ = jb.train_step(net, SGD, state, x, t, donate=True)
            assert given.params[0].w.is_deleted()
        for step in range(5):  # what was donated still says where arrays lie
            assert bits(checkpoints.restore(given, step=step).state) == expected[step]


def test_the_last_few_are_kept(tmp_path):
    for keep in (1, 2):
        folder = tmp_path / str(keep)
        with jb.Checkpoints(folder, NET, SGD, keep=keep) as checkpoints:
            for step in range(5):
                checkpoints.save(state_of(step=step))
            checkpoints.wait()
            assert steps_in(folder) == checkpoints.steps == (*range(5),)[-keep:]
            assert len([*folder.iterdir()]) == keep
        saved(folder, state_of(step=9), keep=1)
        assert steps_in(folder) == (9,)
        assert len([*folder.iterdir()]) == 1


def looking_on(monkeypatch, folder):
    """The names in the folder, whenever a checkpoint is written and has none yet."""
    seen = []

    def looking(*arguments, seal=checkpoint.seal, **rest):
        seal(*arguments, **rest)
        seen.append({path.name for path in folder.iterdir()})

    monkeypatch.setattr(checkpoint, "seal", looking)
    return seen


def test_the_last_goes_only_when_the_next_is_whole(tmp_path, monkeypatch):
    saved(tmp_path, state_of(step=1), keep=1)
    seen = looking_on(monkeypatch, tmp_path)
    saved(tmp_path, state_of(step=2), keep=1)
    assert seen == [{"000001-step-1", "000002-step-2.orbax-checkpoint-tmp"}]
    assert [path.name for path in tmp_path.iterdir()] == ["000002-step-2"]


def test_what_is_saved_last_comes_back(tmp_path):
    saved(tmp_path, *(state_of(step=step) for step in (1, 2, 3, 4)))
    assert steps_in(tmp_path) == (2, 3, 4)
    other = state_of(step=3)._replace(params=state_of(step=8).params)
    for newer in (other, state_of(step=3)):  # from an earlier one on, and the same step once more
        saved(tmp_path, newer)
        assert steps_in(tmp_path) == (2, 3)
        same(restored(tmp_path, newer), newer)
        assert len([*tmp_path.iterdir()]) == 2
    saved(tmp_path, state_of(step=0))
    assert steps_in(tmp_path) == (0,)


def test_a_step_that_is_not_there(tmp_path):
    saved(tmp_path, state_of(step=1), state_of(step=2))
    same(restored(tmp_path, state_of(), step=np.int64(1)), state_of(step=1))
    with pytest.raises(ValueError, match=rf"^step: expected one of \[1, 2\] in {tmp_path}, got 3"):
        restored(tmp_path, state_of(), step=3)


def test_what_is_no_folder_of_checkpoints_is_named(tmp_path):
    import orbax.checkpoint as ocp

    (tmp_path / "file").write_text("text")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("text")
    with ocp.CheckpointManager(tmp_path / "orbax") as manager:
        manager.save(3, args=ocp.args.StandardSave({"a": np.ones(3)}))
    for name, got in {
        "missing": "no folder", "file": "a file", "empty": "an empty one",
        "other": r"one with notes\.txt", "orbax": "one with 3",
    }.items():  # fmt: skip
        path = tmp_path / name
        expected = f"^folder: expected one with checkpoints of jbackprop, got {got}: {path}$"
        with pytest.raises(ValueError, match=expected):
            restored(path, state_of())
    assert not (tmp_path / "missing").exists()
    saved(tmp_path / "other", state_of())  # beside what is there
    assert (tmp_path / "other" / "notes.txt").exists()


def swapped(**parts):
    net = jb.Network(
        *(parts.get(n, getattr(NET, n)) for n in ("sizes", "hidden", "output", "cost"))
    )
    optimizer = parts.get("optimizer", SGD)
    rule = {"rule": parts["rule"]} if "rule" in parts else {}
    return net, optimizer, rule


MISMATCHES = {
    "sizes": (
        {"sizes": (4, 6, 3)}, {},
        r"net: expected sizes\[1\] 6, as here, got sizes\[1\] 5"),
    "depth": (
        {"sizes": (4, 5, 5, 3)}, {},
        r"net: expected sizes \[4, 5, 5, 3\], as here, got sizes \[4, 5, 3\]"),
    "hidden": ({"hidden": jb.relu}, {}, r"net: expected hidden relu, as here, got hidden tanh"),
    "constants": (
        {"hidden": jb.leaky_relu_of(0.2)}, {"hidden": jb.leaky_relu_of(0.3)},
        r"net: expected hidden constants\[0\] 0\.2, as here, got hidden constants\[0\] 0\.3"),
    "two": (
        {"hidden": jb.relu, "cost": jb.squared_error}, {},
        r"net: expected hidden relu, cost squared_error, as here, "
        r"got hidden tanh, cost cross_entropy"),
    "map": (
        {"sizes": ((8, 8, 1), jb.Conv(3, 3), 3)}, {"sizes": ((8, 8, 1), jb.Conv(3, 2), 3)},
        r"net: expected sizes\[1\] fields kernel 3, as here, got sizes\[1\] fields kernel 2"),
    "rule": ({"rule": ALIGNMENT}, {}, r"rule: expected alignment, as here, got backpropagation"),
    "optimizer": (
        {"optimizer": optax.sign_sgd(0.1)}, {},
        r"optimizer: expected transformations chain, scale_by_sign, scale, as here, "
        r"got transformations chain, identity, scale in"),
    "optimizer's state": (
        {"optimizer": ADAM}, {"optimizer": optax.rmsprop(0.1)},
        r"optimizer: expected states .*ScaleByAdamState.*, as here, got states .*ScaleByRms"),
    "net and rule": (
        {"hidden": jb.relu, "rule": ALIGNMENT}, {},
        r"net: expected hidden relu, .*; rule: expected alignment, .* got backpropagation"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISMATCHES)
def test_of_what_is_another_both_sides_are_named(what, tmp_path):
    here, there, expected = MISMATCHES[what]
    net, optimizer, rule = swapped(**there)
    for step in (1, 2):
        state = jb.init_state(net, optimizer, KEY, **rule)._replace(step=jnp.int32(step))
        saved(tmp_path, state, net=net, optimizer=optimizer, **rule)
    net, optimizer, rule = swapped(**here)
    with pytest.raises(ValueError, match=f"^{expected}") as caught:
        restored(tmp_path, jb.init_state(net, optimizer, KEY, **rule), net, optimizer, **rule)
    assert f"in the checkpoint of step 2 in {tmp_path}" in str(caught.value)
    for other in {"net", "rule", "optimizer", "state"} - {*expected.replace(":", "").split()}:
        assert f"{other}: " not in str(caught.value)


def test_leaves_of_another_dtype_or_shape(tmp_path):
    saved(tmp_path, state_of())
    half = state_of(dtype=jnp.bfloat16)
    with pytest.raises(
        ValueError, match=r"^state: expected params\.0\.w bfloat16\[5,4\], .* 1 more"
    ):
        restored(tmp_path, half)
    more = state_of()._replace(feedback=jnp.ones(2))
    expected = r"expected feedback float32\[2\], as here, got feedback absent in"
    with pytest.raises(ValueError, match=f"^state: {expected}"):
        restored(tmp_path, more)


def test_float64_needs_its_mode(tmp_path):
    with jax.enable_x64(True):
        saved(tmp_path, state_of(dtype=jnp.float64))
    with pytest.raises(ValueError, match=r"got params\.0\.w float64.*; 64-bit mode is off: jax\.c"):
        restored(tmp_path, state_of())


def test_numbers_of_an_optimizer_may_be_others(tmp_path):
    saved(tmp_path, state_of())
    same(restored(tmp_path, state_of(), optimizer=optax.sgd(0.5)), state_of())


def test_the_names_of_transformations():
    names = lambda optimizer: likeness.transformations(optimizer)
    assert names(ADAM) == ["chain", "scale_by_adam", "scale"]
    scheduled = ["chain", "identity", "scale_by_schedule"]
    assert names(optax.sgd(lambda step: 0.1)) == [*scheduled, "lambda", "lambda"]
    assert "scale_by_adam" in names(optax.MultiSteps(ADAM, 2))
    twice = optax.chain(optax.scale(2.0), optax.scale(2.0))
    assert names(twice) == ["chain", "scale", "scale"]

    class Odd:
        def __getattr__(self, name):
            raise RuntimeError

    def update(updates, state, params=None):
        return around, Odd, odd

    around, odd = [], Odd()
    around.extend([around, update, np.arange(3)])
    here, made = "test_the_names_of_transformations", cast(Any, optax.GradientTransformation)
    own = made(lambda params: (), update)
    assert names(own) == [here]
    plain = made(own.init, functools.partial(update, state=ADAM))
    assert names(plain) == [here, *names(ADAM)]
    decorated = functools.wraps(update)(lambda *arguments: (update, around))
    assert names(made(own.init, decorated)) == [here]
    deep = ADAM
    for _ in range(2000):
        deep = (deep,)
    bottomless = made(own.init, functools.partial(update, deep))
    assert names(bottomless) == [here]


def test_a_release_of_optax_may_name_its_parts_otherwise(tmp_path):
    saved(tmp_path, state_of())
    (folder,) = tmp_path.iterdir()
    redescribed(folder, lambda told: told["versions"].update(optax="0.0.1"))
    same(restored(tmp_path, state_of()), state_of())
    with pytest.warns(UserWarning, match=r"scale_by_sign, scale, as here, .*which optax 0\.0\.1"):
        same(restored(tmp_path, state_of(), optimizer=optax.sign_sgd(0.1)), state_of())
    with pytest.raises(ValueError, match=r"^optimizer: expected states"):
        restored(tmp_path, state_of(NET, ADAM), optimizer=ADAM)


def redescribed(folder, change):
    """As if it had been sealed so."""
    path = folder / "jbackprop.json"
    told = json.loads(path.read_text())["description"]
    change(told)
    del told["files"]
    path.unlink()
    sealed.seal(folder, told, without=["_CHECKPOINT_METADATA"])


def test_a_newer_format_is_named(tmp_path):
    saved(tmp_path, state_of(), state_of(step=1))

    def newer(told):
        told.update(format=2, versions={"jbackprop": "9.8.7"})

    redescribed(max(tmp_path.iterdir()), newer)
    expected = (
        r"expected format 1 in the checkpoint of step 1 .*, got 2: written by jbackprop 9\.8\.7"
    )
    with pytest.raises(ValueError, match=f"^folder: {expected}"):
        restored(tmp_path, state_of())


def test_numbers_that_are_not_those_saved_are_found_by_their_checksum(tmp_path):
    """Whatever the files say."""
    saved(tmp_path, state_of(), state_of(step=1))
    newest = max(tmp_path.iterdir())
    redescribed(newest, lambda told: told["checksums"]["params.0.w"].reverse())
    with pytest.warns(UserWarning, match=r"of step 1 is damaged, its params\.0\.w is not what was"):
        same(restored(tmp_path, state_of()), state_of())
    with jb.Checkpoints(tmp_path, NET, SGD) as checkpoints:
        checkpoints.save(state_of(step=2), extra={"best": 3.0})
    redescribed(max(tmp_path.iterdir()), lambda told: told["extra"]["best"].__setitem__(2, "0"))
    with pytest.raises(ValueError, match=r"step 2 is damaged, its extra best is not what was sav"):
        restored(tmp_path, state_of(), step=2)


def test_where_none_is_whole_each_is_named(tmp_path):
    saved(tmp_path, state_of(), state_of(step=1))
    older, newest = sorted(tmp_path.iterdir())
    (newest / "jbackprop.json").unlink()
    (older / "manifest.ocdbt").write_bytes(b"")
    expected = (
        f"^folder: expected a checkpoint that is whole, got none in {tmp_path}: that of step 1 is "
        r"damaged, its jbackprop\.json is missing; that of step 0 is damaged, its manifest\.ocdbt "
    )
    with pytest.raises(ValueError, match=expected):
        restored(tmp_path, state_of())
    with pytest.raises(ValueError, match=r"that of step 1 is damaged, its jbackprop\.json is miss"):
        restored(tmp_path, state_of(), step=1)
    saved(tmp_path, state_of(step=1))
    same(restored(tmp_path, state_of()), state_of(step=1))


def damages(folder, rng):
    """(what, file, its bytes then or None): of every file cuts, its loss, and flipped bits."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        for length in (0, len(data) // 2, len(data) - 1):
            yield f"cut to {length}", path, data[:length]
        yield "gone", path, None
        yield "longer", path, data + b"\0"
        for i in rng.integers(0, len(data), min(len(data), 10)):
            flipped = bytearray(data)
            flipped[i] ^= 1 << int(rng.integers(8))
            yield f"bit of byte {i}", path, bytes(flipped)


def test_no_damage_gives_wrong_numbers(tmp_path):
    """The newest, or the one before with a warning, or an error; whatever file it is in."""
    newest, before = state_of(NET, ADAM, step=2), state_of(NET, ADAM, step=1)
    saved(tmp_path, before, newest, optimizer=ADAM)
    folder = max(tmp_path.iterdir())
    outcomes = collections.Counter()
    unread = {"commit_success.txt", "_CHECKPOINT_METADATA", "jbackprop.json"}
    with jb.Checkpoints(tmp_path, NET, ADAM) as checkpoints:
        for what, path, data in damages(folder, np.random.default_rng(0)):
            whole = path.read_bytes()
            path.unlink() if data is None else path.write_bytes(data)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                found = checkpoints.restore(newest).state
            told = [str(w.message) for w in caught]
            same(found, before if told else newest)
            assert all("step 2 is damaged, its " in words for words in told), told
            assert told or path.name in unread, f"{path}, {what}"
            outcomes["before" if told else "newest"] += 1
            if told and what == "gone":
                with pytest.raises(ValueError, match="step 2 is damaged"):
                    checkpoints.restore(newest, step=2)
            path.write_bytes(whole)
        same(checkpoints.restore(newest).state, newest)
    assert outcomes["before"] > 100, outcomes
    assert outcomes["newest"] > 20, outcomes


def test_a_single_bit_changes_a_checksum():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.float16, jnp.bfloat16, np.int8, np.uint32, np.bool_):
        value = rng.integers(0, 2, (3, 5)).astype(dtype)
        sums = {tuple(np.asarray(checksums({"a": value})["a"]))}
        flips = [(i, bit) for i in range(value.nbytes) for bit in range(8)]
        if dtype == np.bool_:
            flips = [(i, 0) for i in range(value.nbytes)]
        changed = [bytearray(value.tobytes()) for _ in flips]
        for data, (i, bit) in zip(changed, flips, strict=True):
            data[i] ^= 1 << bit
        values = [np.frombuffer(bytes(data), dtype).reshape(value.shape) for data in changed]
        sums |= {tuple(np.asarray(checksums({"a": v})["a"])) for v in values}
        assert len(sums) == len(flips) + 1  # and all of them differ


def test_a_checksum_knows_the_order_and_signs():
    value = np.arange(1, 7, dtype=np.float32)
    of = lambda v: tuple(np.asarray(checksums({"a": jnp.asarray(v)})["a"]).tolist())
    assert of(value) == of(value.reshape(2, 3)) == of(value[None])
    others = -value, value[::-1], value[[1, 0, 2, 3, 4, 5]], 0 * value, -0.0 * value
    assert len({of(value), *map(of, others)}) == 6
    assert of(np.zeros((0, 3))) == (0, 0)
    with jax.enable_x64(True):
        assert len({*map(of, (np.float64(1), np.float64(2), np.int64(2**40), np.int64(2)))}) == 4


def test_a_checksum_is_that_of_its_formula():
    """In whole numbers of Python."""

    def mixed(h):
        h = (h ^ (h >> 16)) * 0x85EBCA6B % 2**32
        h = (h ^ (h >> 13)) * 0xC2B2AE35 % 2**32
        return h ^ (h >> 16)

    value = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    words = [int(u) for u in value.view(np.uint32).ravel()]
    expected = [
        sum(mixed(u ^ mixed((i + seed) % 2**32)) for i, u in enumerate(words)) % 2**32
        for seed in (0x9E3779B9, 0x7F4A7C15)
    ]
    assert np.asarray(checksums({"a": jnp.asarray(value)})["a"]).tolist() == expected


def test_without_orbax_the_extra_is_named(tmp_path, monkeypatch):
    def version(name, known=importlib.metadata.version):
        if name == "orbax-checkpoint":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    monkeypatch.setattr(importlib.metadata, "version", version)
    saved(tmp_path / "missing")  # nothing to do
    with pytest.raises(ImportError, match=r"checkpoints need orbax: pip install 'jbackprop\[check"):
        saved(tmp_path, state_of())
    with pytest.raises(ImportError, match=r"checkpoints need orbax"):
        restored(tmp_path, state_of())
    assert not [*tmp_path.iterdir()]


def test_it_is_silent_and_lets_go_of_all(tmp_path, capfd, caplog):
    saved(tmp_path, state_of())
    restored(tmp_path, state_of())
    opened = lambda: {os.readlink(p) for p in Path("/proc/self/fd").iterdir() if p.is_symlink()}
    threads, files = {*threading.enumerate()}, opened()
    for step in range(3):
        saved(tmp_path, state_of(step=step))
        restored(tmp_path, state_of())
    assert {*threading.enumerate()} == threads
    assert not {path for path in opened() - files if str(tmp_path) in path}
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.levelname != "INFO"]


def test_a_checkpoint_whose_arrays_orbax_cannot_read(tmp_path, monkeypatch):
    """It is whole, so that no other one is taken for it."""
    import orbax.checkpoint as ocp

    saved(tmp_path, state_of(), state_of(step=1))

    def fails(*_, **__):
        raise MemoryError("too large")

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", fails)
    with pytest.raises(MemoryError, match="too large") as caught:
        restored(tmp_path, state_of())
    assert f"read {max(tmp_path.iterdir())}, which is whole" in caught.value.__notes__[0]


def test_what_was_never_finished_is_removed_and_nothing_else(tmp_path, monkeypatch):
    saved(tmp_path, state_of())
    left = tmp_path / "000002-step-5.orbax-checkpoint-tmp"
    shutil.copytree(min(tmp_path.iterdir()), left)
    for name in ("000000-step-5.old", "000000-step-5.mine", "5", "mine"):
        (tmp_path / name).mkdir()
    assert steps_in(tmp_path) == (0,)
    same(restored(tmp_path, state_of()), state_of())
    seen = looking_on(monkeypatch, tmp_path)
    saved(tmp_path, state_of(step=1))
    assert left.name not in seen[0], "it may fill the disk"
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"000001-step-0", "000002-step-1", "000000-step-5.mine", "5", "mine"}


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("text")
    below = tmp_path / "file" / "below"
    checkpoints = jb.Checkpoints(below, NET, SGD)
    with pytest.raises(NotADirectoryError, match=f"of step 7 is not written: '{below}'"):
        checkpoints.save(state_of(step=7))
    (tmp_path / "file").unlink()
    checkpoints.save(state_of(step=7))
    checkpoints.close()
    assert checkpoints.steps == (7,)


def test_an_error_behind_surfaces_and_the_next_save_succeeds(tmp_path, monkeypatch):
    saved(tmp_path, state_of())
    fails = [OSError(28, "full"), RuntimeError("odd")]

    def failing(*arguments, seal=checkpoint.seal, **rest):
        if fails:
            raise fails.pop(0)
        seal(*arguments, **rest)

    monkeypatch.setattr(checkpoint, "seal", failing)
    checkpoints = jb.Checkpoints(tmp_path, NET, SGD)
    checkpoints.save(state_of(step=1))
    with pytest.raises(
        OSError, match=rf"the checkpoint of step 1 is not written: '{tmp_path}'"
    ) as e:
        checkpoints.save(state_of(step=2))
    assert e.value.errno == 28
    checkpoints.save(state_of(step=2))
    with pytest.raises(
        OSError, match=rf"^{tmp_path}: .* of step 2 is not written: RuntimeError: odd"
    ):
        checkpoints.close()
    assert checkpoints.steps == (0,)
    checkpoints.save(state_of(step=3))
    checkpoints.close()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["000001-step-0", "000002-step-3"]


PROGRAM = """
import os, resource, signal, sys
import jax, jax.numpy as jnp, optax
import orbax.checkpoint
import jbackprop as jb

net, optimizer = jb.Network((64, 100, 10)), optax.adam(0.1)
start = jb.init_state(net, optimizer, jax.random.key(0))
at = lambda step: jb.init_state(net, optimizer, jax.random.key(step))._replace(step=jnp.int32(step))
equal = lambda a, b: bool((a.params[0].w == b.params[0].w).all())
"""
LIMITED = """
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with jb.Checkpoints(sys.argv[1], net, optimizer) as checkpoints:
    checkpoints.save(at(0))
    checkpoints.wait()
    for size in 0, 100, 3000, 20000:  # none of them holds the largest file
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            checkpoints.save(at(1))
            checkpoints.wait()
        except OSError as error:
            print("said", size, error.errno, error)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        assert equal(checkpoints.restore(start).state, at(0))
        assert os.listdir(sys.argv[1]) == ["000001-step-0"]
    checkpoints.save(at(2))
    assert equal(checkpoints.restore(start).state, at(2))
if os.geteuid() == 0:
    os.seteuid(65534)
else:
    os.chmod(sys.argv[1], 0o500)
checkpoints = jb.Checkpoints(sys.argv[1], net, optimizer)
assert equal(checkpoints.restore(start).state, at(2))
try:
    checkpoints.save(at(3))
except OSError as error:
    print("said closed", error.errno, error)
checkpoints.close()
"""


def test_a_full_disk_and_a_closed_folder_are_named(tmp_path):
    """A limit to the size of files stands for a full disk."""
    folder = tmp_path / "open"
    for path in (*tmp_path.parents[:3], tmp_path):
        path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + LIMITED, str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("said")]
    assert done.returncode == 0, done.stderr[-2000:]
    told = f"is not written: '{folder}'"
    for size, line in zip((0, 100, 3000, 20000), said, strict=False):
        expected = f"said {size} 27 [Errno 27] File too large: the checkpoint of step 1 {told}"
        assert line == expected
    expected = f"said closed 13 [Errno 13] Permission denied: the checkpoint of step 3 {told}"
    assert said[4:] == [expected]


KILLED = """
step = 0
while True:
    with jb.Checkpoints(sys.argv[1], net, optimizer, keep=2) as checkpoints:
        for _ in range(20):
            checkpoints.save(at(step), extra={"step": step})
            step += 1
            print(step, flush=True)
"""


def test_a_program_that_is_killed_leaves_whole_checkpoints(tmp_path):
    net, optimizer = jb.Network((64, 100, 10)), optax.adam(0.1)
    start = jb.init_state(net, optimizer, KEY)
    reached = 0
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM + KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for _ in range(8):
            reached = int(process.stdout.readline())
        time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    with jb.Checkpoints(tmp_path, net, optimizer, keep=2) as checkpoints:
        found = checkpoints.restore(start)
        step = int(found.state.step)
        assert step >= reached - 2
        assert found.extra == {"step": step}
        own = jb.init_state(net, optimizer, jax.random.key(step))._replace(step=jnp.int32(step))
        same(found.state, own)
