"""Saved networks: what comes back is what went in, or an error that names the file."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import problem
from maps import Banded, Circulant

import jbackprop as jb

cube = jb.Activation("cube", lambda z: z**3, lambda z: 3 * z**2)
other_cube = jb.Activation("cube", lambda z: z**3, lambda z: 3 * z * z)
fourth = jb.Cost("fourth", lambda y, t: jnp.sum((y - t) ** 4), lambda y, t: 4 * (y - t) ** 3)
own_tanh = jb.Activation("tanh", jnp.tanh, lambda z: 1 - jnp.tanh(z) ** 2)
NETS = {
    "dense": jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy),
    "several": jb.Network((4, 5, 6, 3), (jb.relu, jb.gelu_exact), jb.sigmoid, jb.log_cosh),
    "constants": jb.Network((4, 5, 3), jb.leaky_relu_of(0.2), jb.elu_of(0.5), jb.huber_of(2.0)),
    "convolution": jb.Network(
        ((9, 8, 2), jb.Conv(3, (3, 2), stride=2, padding=((1, 0), 1), dilation=(1, 2)),
         jb.MaxPool(2, stride=1, padding="SAME"), jb.Conv(4, 2, padding="VALID"), jb.MeanPool(), 3),
        jb.silu, jb.softmax, jb.cross_entropy),
    "linear": jb.Network((4, 3)),
}  # fmt: skip
YOURS = jb.Network(((8,), Circulant(), Banded(6), 2), (cube, own_tanh), jb.identity, fourth)


def same(net, params, found):
    other, read = found
    assert other == net
    assert jax.tree.structure(read) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(read), jax.tree.leaves(params), strict=True):
        assert a.dtype == b.dtype
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", NETS)
def test_what_comes_back_is_what_went_in(name, dtype, tmp_path):
    params, _, _ = problem(NETS[name], dtype=jnp.dtype(dtype))
    jb.save(tmp_path / "net.npz", NETS[name], params)
    same(NETS[name], params, jb.load(tmp_path / "net.npz"))
    assert [p.name for p in tmp_path.iterdir()] == ["net.npz"]


def test_your_own_parts_are_found_by_name(tmp_path):
    path = f"{tmp_path}/net"  # the name stays as it is
    params, _, _ = problem(YOURS)
    jb.save(path, YOURS, params)
    same(YOURS, params, jb.load(path, known=[cube, own_tanh, fourth, Circulant, Banded(9)]))
    for known, missing in [
        ([own_tanh, fourth, Circulant, Banded], "Activation called 'cube'"),
        ([cube, fourth, Circulant, Banded], "Activation called 'tanh'"),
        ([cube, own_tanh, Circulant, Banded], "Cost called 'fourth'"),
        ([cube, own_tanh, fourth, Circulant], "class called 'Banded'"),
        ([cube, other_cube, own_tanh, fourth, Circulant, Banded], "one Activation called 'cube'"),
    ]:
        with pytest.raises(ValueError, match=f"{path}: expected .*{missing}"):
            jb.load(path, known=known)


def test_a_class_of_yours_is_never_taken_for_one_of_ours(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Conv(jb.Conv):
        def apply(self, w, a):
            return 2 * super().apply(w, a)

    path, net = tmp_path / "net.npz", jb.Network(((6, 6, 1), Conv(2, 3), 3))
    params, _, _ = problem(net)
    jb.save(path, net, params)
    with pytest.raises(ValueError, match=r"one class called .Conv. in known"):
        jb.load(path)
    same(net, params, jb.load(path, known=[Conv]))


def test_known_is_a_list_of_what_is_yours(tmp_path):
    path, net = tmp_path / "net.npz", jb.Network((4, 5, 5, 3), cube)
    params, _, _ = problem(net)
    jb.save(path, net, params)
    same(net, params, jb.load(path, known=net.activations))  # twice the same is one
    for known in (cube, Circulant, 3):
        with pytest.raises(ValueError, match=r"^known: expected a list of what is yours"):
            jb.load(path, known=known)


def test_a_link_stays_a_link(tmp_path):
    net = NETS["linear"]
    (tmp_path / "link.npz").symlink_to(tmp_path / "net.npz")
    jb.save(tmp_path / "link.npz", net, problem(net)[0])
    assert (tmp_path / "link.npz").is_symlink()
    assert jb.load(tmp_path / "net.npz")[0] == net


def test_float64_needs_its_mode(tmp_path):
    with jax.enable_x64(True):
        params, _, _ = problem(NETS["dense"], dtype=jnp.float64)
        jb.save(tmp_path / "net.npz", NETS["dense"], params)
        same(NETS["dense"], params, jb.load(tmp_path / "net.npz"))
    with pytest.raises(ValueError, match=r"net\.npz: its parameters are float64, .*jax_enable_x64"):
        jb.load(tmp_path / "net.npz")


def test_numpy_reads_the_arrays_too(tmp_path):
    params, _, _ = problem(NETS["dense"])
    jb.save(tmp_path / "net.npz", NETS["dense"], params)
    with np.load(tmp_path / "net.npz", allow_pickle=False) as file:
        assert sorted(file.files) == ["b1", "b2", "description", "w1", "w2"]
        assert (file["w2"] == np.asarray(params[1].w)).all()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "net.npz"
    net = NETS["dense"]
    jb.save(path, net, problem(net)[0])
    return path.read_bytes()


def read_or_refused(path, data):
    """Whether a changed file was refused; if it was read, nothing of it may have changed."""
    path.write_bytes(data)
    try:
        found = jb.load(path)
    except ValueError as error:
        return str(error).startswith(f"{path}: ")
    same(NETS["dense"], problem(NETS["dense"])[0], found)
    return False


def test_a_file_cut_anywhere_is_refused(whole, tmp_path):
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        assert read_or_refused(tmp_path / "net.npz", whole[:length]), length


def test_a_flipped_bit_changes_no_number(whole, tmp_path):
    """What is left of a flip is what nobody reads, such as the hour that stands in a header."""
    rng = np.random.default_rng(0)
    refused = 0
    places = [int(i) for i in rng.integers(0, len(whole), 300)]
    for i in places:
        flipped = bytearray(whole)
        flipped[i] ^= 1 << int(rng.integers(8))
        refused += read_or_refused(tmp_path / "net.npz", bytes(flipped))
    assert refused > len(places) / 2


def described(path, change):
    """The file with another description."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    told = json.loads(arrays.pop("description").tobytes())
    change(told, arrays)
    np.savez(path, description=np.frombuffer(json.dumps(told).encode(), np.uint8), **arrays)


WRONG = {
    "a newer format": (lambda told, _: told.update(format=2), "expected format 1, got 2"),
    "an array too few": (lambda _, arrays: arrays.pop("b2"), r"expected arrays .*'b2'"),
    "another shape": (
        lambda _, arrays: arrays.update(w1=arrays["w1"][:, :3]), r"params: expected w\^1 of shape"),
    "another dtype": (
        lambda _, arrays: arrays.update(w1=arrays["w1"].astype(np.float64)), "expected w1 of"),
    "a name that is not known": (lambda told, _: told.update(output="sotfmax"), "called 'sotfmax'"),
    "no network": (lambda told, _: told.update(sizes=[4]), "sizes: expected at least two"),
    "no cost": (lambda told, _: told.pop("cost"), "cannot be read: KeyError"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_refused(what, whole, tmp_path):
    path = tmp_path / "net.npz"
    path.write_bytes(whole)
    described(path, WRONG[what][0])
    with pytest.raises(ValueError, match=f"{path}: .*{WRONG[what][1]}"):
        jb.load(path)


@pytest.mark.parametrize("data", [b"", b"text", b"PK\x03\x04 no archive"])
def test_another_file_is_refused(data, tmp_path):
    assert read_or_refused(tmp_path / "other", data)


def test_an_archive_of_pickles_is_refused(tmp_path):
    path = tmp_path / "net.npz"
    np.savez(path, description=np.array([{}], object))
    with pytest.raises(ValueError, match=r"net\.npz: .*[Pp]ickle|allow_pickle"):
        jb.load(path)


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"):
        jb.load(tmp_path / "missing.npz")


def test_what_cannot_be_described_is_not_saved(tmp_path):
    @dataclasses.dataclass(frozen=True)
    class Odd(Circulant):
        by: object = len

    net = jb.Network(((8,), Odd(), 2))
    with pytest.raises(ValueError, match=r"net: expected entries .* got .*Odd.* as entry 1"):
        jb.save(tmp_path / "net.npz", net, problem(net)[0])
    with pytest.raises(ValueError, match="params: expected"):
        jb.save(tmp_path / "net.npz", NETS["dense"], [])
    assert not [*tmp_path.iterdir()]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path, net = tmp_path / "net.npz", NETS["linear"]
    params, _, _ = problem(net)
    jb.save(path, net, params)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="space"):
        jb.save(path, net, jax.tree.map(jnp.zeros_like, params))
    monkeypatch.undo()
    same(net, params, jb.load(path))
    assert [p.name for p in tmp_path.iterdir()] == ["net.npz"]
