"""`verify`: right networks pass, and of a wrong one the part and its layer are named."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import HEADS, head_name, problem
from maps import Banded, Circulant
from materialised import NETS

import jbackprop as jb
from jbackprop import __main__ as command
from jbackprop.verification import comparisons, told
from jbackprop.verification.report import Row, compared

alignment = jb.Rule(
    "alignment",
    lambda s: (s.feedback.T @ s.delta) * s.slope,
    init=lambda net, params, key: tuple(jnp.cos(w) for w, _ in params[1:]),
)
sign = jb.Rule("sign", lambda s: (jax.tree.map(jnp.sign, s.w).T @ s.delta) * s.slope)
direct = jb.Rule(
    "direct",
    lambda s: (s.feedback.T @ s.output_delta) * s.slope,
    init=lambda net, params, key: tuple(
        jnp.sin(jnp.arange(float(net.shapes[-1][0] * np.prod(z))).reshape(net.shapes[-1][0], *z))
        for z in net.z_shapes[:-1]
    ),
)
noisy = jb.Rule("noisy", lambda s: jax.random.normal(s.key, s.slope.shape) * s.slope)
toward_t = jb.Rule("toward t", lambda s: jnp.sum(s.t) * s.slope)
POOLED = jb.Network(
    ((6, 5, 2), jb.Conv(4, 3, padding=1), jb.MaxPool(2), jb.Conv(3, 2), jb.MeanPool()),
    jb.relu,
    jb.softmax,
    jb.cross_entropy,
)


def verified(net, rule=None, **changes):
    params, x, t = problem(net)
    return jb.verify(net, params, changes.get("x", x), changes.get("t", t), rule=rule)


@pytest.mark.long(1)
@pytest.mark.parametrize("name", ["convolutions", "a map of one's own", "linear"])
def test_a_right_network_passes(name):
    report = verified(NETS[name])
    assert report.passed, report
    assert len(report.rows) > 30
    assert "in float32" in report.rows[-1].what
    assert "all" in str(report)
    assert max(map(len, str(report).splitlines()[len(NETS[name].maps) + 6 :])) < 80


@pytest.mark.long
@pytest.mark.parametrize("head", HEADS[:8:3], ids=head_name)  # the fused ones, and a Jacobian
def test_every_head_passes(head):
    assert verified(jb.Network((4, 5, 3), jb.silu, *head)).passed


@pytest.mark.long
def test_kinks_are_no_faults():
    """Where z is 0, as in absent rows, f' of the one and f'' of the other are a convention."""
    assert verified(jb.Network((4, 5, 3), (jb.leaky_relu_of(0.3),), jb.softsign)).passed


@pytest.mark.long
def test_labels_one_example_other_dtypes_and_other_structures():
    net = NETS["softmax"]
    params, x, _ = problem(net)
    assert jb.verify(net, [list(layer) for layer in params], x, jnp.arange(6) % 3).passed
    assert jb.verify(net, params, x[:1], jnp.array([2])).passed
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), params)
    assert jb.verify(net, half, x, jnp.arange(6) % 3).passed
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda v: np.asarray(v, np.float64), params)
        assert jb.verify(net, wide, x, jnp.arange(6) % 3).passed


RULES = {
    "alignment": (alignment, POOLED), "sign": (sign, POOLED), "direct": (direct, POOLED),
    "noisy": (noisy, NETS["deep"]), "toward t": (toward_t, NETS["softmax"]),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_compared_with_a_recursion_of_its_own(name):
    rule, net = RULES[name]
    report = verified(net, rule)
    assert report.passed, report
    assert not [row for row in report.rows if "jax.grad" in row.what]


# ---- what a user gets wrong


def wrong_slope(f):
    return dataclasses.replace(f, name=f"wrong {f.name}", df=lambda z: f.df(z) * (1 + 1e-3 * z))


def wrong_pool(pool):
    class Wrong(type(pool)):
        def transpose(self, u, e):
            return 1.01 * super().transpose(u, e)

    return Wrong(pool.size)


def first_of_sixteen(self, u, e):
    """Wrong at one position, which is the largest of its window in one input of sixteen."""
    right = jb.MaxPool(16).transpose(u, e)
    return right.at[(0,) * right.ndim].multiply(-1.5)


def wrong_map(linear, **methods):
    kind = type(linear)
    fields = {f.name: getattr(linear, f.name) for f in dataclasses.fields(kind)}
    return type(f"Wrong{kind.__name__}", (kind,), methods)(**fields)


def off_by_one(self, w, delta, in_shape):
    return jnp.roll(type(self).__mro__[1].transpose(self, w, delta, in_shape), 1)


def half_summed(self, c, delta, a):
    return type(self).__mro__[1].weighted_sum(self, c.at[0].mul(0.5), delta, a)


def twice_the_rows(self, a):
    return 2 * jb.Conv(3, 2).rows(a)


def rows_of_another(self, a):
    return jnp.roll(jb.Conv(3, 2).rows(a), 1, axis=0)


def and_one(self, w, a):
    return Circulant().apply(w, a) + 1


def _two_arguments(z, other):
    return z


warm = jb.Activation(
    "warm",
    lambda z: jax.nn.softmax(z / 2),
    None,
    lambda z, e: jax.nn.softmax(z / 2) * (e - jnp.dot(jax.nn.softmax(z / 2), e)),  # no / 2
)
cost = jb.Cost("cubic", lambda y, t: jnp.sum((y - t) ** 3), lambda y, t: 2 * (y - t) ** 2)
WRONG = {
    "f' of a hidden layer": (
        jb.Network((4, 5, 6, 3), (jb.tanh, wrong_slope(jb.gelu))), "f' of layer 2, wrong gelu"),
    "f' of the output": (
        jb.Network((4, 5, 3), jb.tanh, wrong_slope(jb.softplus)), "f' of layer 2, wrong softplus"),
    "an output's pull": (jb.Network((4, 5, 3), jb.tanh, warm), "f' of layer 2, warm"),
    "∇_y C": (jb.Network((4, 5, 3), jb.tanh, jb.identity, cost), "∇_y C of cubic"),
    "a transpose": (
        jb.Network(((8,), Circulant(), wrong_map(Banded(6), transpose=off_by_one), 2)),
        "transpose of layer 2, WrongBanded"),
    "a weighted sum": (
        jb.Network(((8,), wrong_map(Circulant(), weighted_sum=half_summed), 2)),
        "weighted_sum of layer 1, WrongCirculant"),
    "rows of a convolution": (
        jb.Network(((6, 2), wrong_map(jb.Conv(3, 2), rows=twice_the_rows), 2)),
        "rows of layer 1, WrongConv"),
    "rows that apply uses": (
        jb.Network(((6, 1), wrong_map(jb.Conv(3, 2), rows=rows_of_another), 2)),
        "apply or rows of layer 1, WrongConv"),
    "a pooling at one position": (
        jb.Network(
            ((18, 2), jb.Conv(3, 3), wrong_map(jb.MaxPool(16), transpose=first_of_sixteen), 2)),
        "transpose of layer 1, WrongMaxPool"),
    "a pooling": (
        jb.Network(((6, 2), jb.Conv(3, 2), wrong_pool(jb.MaxPool(2)), 2)),
        "transpose of layer 1, Wrong"),
    "a map that is not linear": (
        jb.Network(((8,), wrong_map(Circulant(), apply=and_one), 2)),
        "apply of layer 1, WrongCirculant"),
    "a function that raises": (
        jb.Network((4, 5, 3), jb.Activation("broken", jnp.tanh, _two_arguments)),
        "f' of layer 1, broken"),
}  # fmt: skip


@pytest.mark.long(3)
@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_named(what):
    net, culprit = WRONG[what]
    report = verified(net)
    assert not report.passed
    assert {row.blame for row in report.failures} == {culprit}, report
    assert "what rests on that was not compared" in str(report)
    assert culprit in str(report)


def test_a_rule_that_raises_is_a_finding():
    report = verified(NETS["softmax"], jb.Rule("broken", lambda s: s.delta + s.slope))
    assert not report.passed
    assert "incompatible shapes" in str(report)


# ---- what cannot be compared


@pytest.mark.long
def test_numbers_that_are_none_are_told():
    net = NETS["softmax"]
    params, x, t = problem(net)
    report = jb.verify(net, params, x.at[2, 1].set(jnp.nan), t)
    assert report.passed
    assert any(note.startswith("x: nan at [2, 1]") for note in report.notes)
    with pytest.raises(ValueError, match=r"^x, t: expected an example of numbers alone"):
        jb.verify(net, params, x * jnp.inf, t)
    broken = (jb.Layer(params[0].w.at[1, 2].set(jnp.nan), params[0].b), params[1])
    with pytest.raises(ValueError, match=r"^params: expected numbers, got nan at w\^1\[1, 2\]"):
        jb.verify(net, broken, x, t)
    with pytest.raises(ValueError, match=r"^x: expected shape \(B, 4\)"):
        jb.verify(net, params, x[0], t[0])


@pytest.mark.long
def test_a_saturated_layer_is_told():
    net = jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy)
    params, x, t = problem(net)
    params = (jb.Layer(100 * params[0].w, params[0].b), params[1])
    report = jb.verify(net, params, x, t)
    assert any("layer 1: f' of tanh is 0, or nearly" in note for note in report.notes), report
    assert report.passed, report


def test_an_output_that_saturates_is_told():
    net = jb.Network((4, 3), output=jb.sigmoid, cost=jb.binary_cross_entropy)
    params, x, t = problem(net)
    report = jb.verify(net, [(1e5 * w, b) for w, b in params], x, jnp.round(t))
    assert any("no number" in note or "nearly" in note for note in report.notes), report


@pytest.mark.long
@pytest.mark.parametrize("name", ["saturated", "vanishing", "large", "dead"])
def test_extremes_are_no_faults(name):
    """What autodiff or a difference loses there is theirs."""
    nets = {
        "saturated": jb.Network((4, 5, 2), jb.relu, jb.sigmoid, jb.binary_cross_entropy),
        "vanishing": jb.Network((4, *[5] * 9, 2), jb.sigmoid),
        "large": jb.Network((4, 5, 1), jb.relu),
        "dead": jb.Network((4, 5, 2), jb.relu),
    }
    net = nets[name]
    params, x, t = problem(net)
    if name == "saturated":
        params = jax.tree.map(lambda v: 12 * v, params)
    if name == "dead":
        params = (jb.Layer(params[0].w, params[0].b - 100), params[1])
        t = jnp.ones_like(t)
    report = jb.verify(net, params, x, 3e5 * t if name == "large" else t)
    assert report.passed, str(report)


def test_a_slope_that_is_wrong_in_a_narrow_place_is_named():
    narrow = jb.Activation(
        "narrow", jnp.tanh, lambda z: jnp.where((z > 1) & (z < 1.005), 0, 1 - jnp.tanh(z) ** 2)
    )
    report = verified(jb.Network((4, 1500, 2), narrow))
    assert {row.blame for row in report.failures} == {"f' of layer 1, narrow"}, str(report)


@pytest.mark.long
def test_low_precision_is_compared_too(monkeypatch):
    net = NETS["softmax"]
    params, x, t = problem(net)
    half = jax.tree.map(lambda v: v.astype(jnp.bfloat16), params)
    right = jb.mean_gradient

    def wrong(factors):
        found = right(factors)
        low = factors.tape.z[0].dtype == jnp.bfloat16
        return jax.tree.map(lambda g: g * 0.6, found) if low else found

    monkeypatch.setattr(comparisons, "mean_gradient", wrong)
    report = jb.verify(net, half, x, t)
    assert [row.what for row in report.failures] == ["mean_gradient, in bfloat16"]


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["update_ratio", "units", "histograms", "empirical_ntk", "influence"]
)
def test_what_is_told_of_layers_and_outputs_is_compared(name, monkeypatch):
    rooms = told.diagnostics, told.kernel, told.scores
    (room,) = [room for room in rooms if name in vars(room)]
    right = getattr(room, name)
    slightly = lambda *of, **how: jax.tree.map(lambda v: 1.01 * v, right(*of, **how))
    monkeypatch.setattr(room, name, slightly)
    report = verified(NETS["softmax"])
    assert [row.what for row in report.failures] == [name]


# ---- the table, the command


def test_a_row_knows_layer_and_entry():
    zeros = (jb.Layer(jnp.zeros((2, 2)), jnp.zeros(2)),) * 2
    wrong = (zeros[0], jb.Layer(zeros[1].w.at[1, 0].set(3.0), zeros[1].b))
    row = compared("g", wrong, (zeros[0], jb.Layer(jnp.eye(2), jnp.zeros(2))), 0.1, by_layer=True)
    assert (row.error, row.passed) == (3.0, False)
    assert row.where == "layer 2: w[1, 0] is 3, expected 0"
    assert not compared("g", jnp.array([jnp.nan]), jnp.array([1.0]), 1e9).passed
    assert not compared("g", jnp.ones(2), jnp.ones(3), 1e9).passed
    assert not Row("", float("nan"), 1.0).passed


def test_the_command_verifies_a_saved_network(tmp_path, capsys, monkeypatch):
    net = NETS["linear"]
    params, _, _ = problem(net)
    jb.save(tmp_path / "net.npz", net, params)
    done = subprocess.run(
        [sys.executable, "-m", "jbackprop", tmp_path / "net.npz"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "all agree" in done.stdout
    assert jax.__version__ in done.stdout

    jb.save(tmp_path / "nan.npz", net, jax.tree.map(lambda v: v * jnp.nan, params))
    for name, said in (("no.npz", "no.npz"), ("nan.npz", "params: expected numbers, got nan")):
        assert command.main([str(tmp_path / name)]) == 1
        assert said in capsys.readouterr().err
    monkeypatch.setattr(command, "NETWORKS", {"a wrong one": WRONG["∇_y C"][0]})
    assert command.main([]) == 1
    assert "a wrong one: jbackprop" in capsys.readouterr().out


def test_the_commands_targets_suit_every_cost():
    for head in HEADS:
        net = jb.Network((4, 3), jb.tanh, *head)
        x, t = command.examples(net)
        jb.check_batch(net, x, t)
