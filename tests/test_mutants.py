"""Proof that the battery can fail: deliberate faults in the pass, each of which it must find.

A mutant is a copy of the package, imported under another name, with one line of one file changed.
The line must stand there exactly once, so that no mutant goes stale unseen. It counts as killed
only by a failed comparison: one that crashes would prove nothing about the battery.
"""

import importlib
import sys
from pathlib import Path
from typing import Any

import battery
import jax
import jax.numpy as jnp
import optax
import pytest

import jbackprop

PACKAGE = Path(jbackprop.__file__).parent

MUTANTS = {
    # the recursion
    "f' dropped": ("backward", "(s.w.T @ s.delta) * s.slope", "s.w.T @ s.delta"),
    "w not transposed": ("backward", "(s.w.T @ s.delta)", "(s.w @ s.delta)"),
    "f for f'": ("backward", "f.slope(z), k", "f.f(z), k"),
    "w^l for w^{l+1}": ("backward", "zip(layers[1:], places", "zip(layers[:-1], places"),
    "f' of the layer above": ("backward", "net.activations[:-1], t", "net.activations[1:], t"),
    "z^{l+1} for z^l": ("backward", "tape.z[:-1], tape", "tape.z[1:], tape"),
    "δ^L for δ^{l+1}": ("backward", "b, deltas[0], delta_L", "b, delta_L, delta_L"),
    "layers in the wrong order": ("backward", "in reversed([*hidden])", "in [*hidden]"),
    "δ out of order": (
        "backward", "deltas = (delta, *", "deltas = (lambda *d: d[1:] + d[:1])(delta, *"),
    # the outer products and their sums
    "a^l for a^{l-1} in an example": ("backward", "tape.a[:-1], strict", "tape.a[1:], strict"),
    "outer product transposed": ("backward", "jnp.outer(delta, a)", "jnp.outer(a, delta)"),
    "a^l for a^{l-1} in a batch": (
        "factors", "found = zip(factors.delta, factors.tape.a[:-1]",
        "found = zip(factors.delta, factors.tape.a[1:]"),
    "contraction transposed": ("sums", "bj,bk->jk", "bj,bk->kj"),
    "sum for mean": ("factors", "(g * share).astype(dtype)", "g.astype(dtype)"),
    "mean of B, not of weights": (
        "numerics", "total = jnp.sum(weight)", "total = 1.0 * weight.size"),
    "∂C/∂b forgotten": ("sums", "return jnp.sum(jnp.expand", "return 0 * jnp.sum(jnp.expand"),
    "weights not in the gradient": (
        "sums", "by_c = jnp.expand_dims(c,", "by_c = jnp.expand_dims(c[:1],"),
    # the forward pass
    "b forgotten": ("network", "jnp.broadcast_to(b, z.shape)", "jnp.zeros_like(z)"),
    "every layer reads x": ("network", "linear.apply(w, a)", "linear.apply(w, tape.a[0])"),
    # the output
    "δ^L without ∇_y C": ("heads", "product(e, output.slope(z)) if", "output.slope(z) if"),
    "δ^L without f'": ("heads", "product(e, output.slope(z)) if", "e if"),
    "softmax as if diagonal": (
        "formulas", "return passed - y * jnp.sum(passed)", "return passed * (1 - y)"),
    "t need not sum to one": ("heads", "return y * jnp.sum(t) - t", "return y - t"),
    "the slide's sign": (
        "heads", "return jnp.sum(times(t, softplus", "return -jnp.sum(times(t, softplus"),
    "heads do not fuse": (
        "heads", "_CLOSED.get((output, cost, label), Head(value, delta))", "Head(value, delta)"),
    # the batch
    "mask ignored": ("batch", "else weights == 0", "else weights < 0"),
    "mask by a product": (
        "batch", "jnp.where(jnp.expand_dims(absent, range(1, leaf.ndim)), by(leaf), leaf)",
        "leaf * jnp.expand_dims(~absent, range(1, leaf.ndim))"),
    "a label out of range is silent": (
        "checks", "zero, jnp.nan)", "zero, zero)"),
    # the examples' gradients
    "b forgotten in norms": (
        "norms", "return delta, 1 + jnp", "return delta, jnp"),
    "b forgotten in products": (
        "statistics", "(1 + keep(_products(one.a, other.a)))", "keep(_products(one.a, other.a))"),
    "a not squared": ("moments", "square(layer.delta), square(layer.a)",
                      "square(layer.delta), layer.a"),
    "1/n for κ": (
        "spread", "jnp.sum(p**2), rest", "1 / jnp.sum(p > 0), rest"),
    "the mean's square not taken off": (
        "moments", "Layer(w - g.w**2, b - g.b**2), Layer(one", "Layer(w, b), Layer(one"),
    "weights not in A": ("matrices", "expand_dims(p, range(1, v.ndim)) * v", "ones_like(v) * v"),
    "clipped by the square": (
        "clipping", "jnp.where(inside, 1, norms))", "jnp.where(inside, 1, norms**2))"),
    "small gradients clipped too": ("clipping", "inside = norms <= max_norm", "inside = norms < 0"),
    "γ forgotten": ("clipping", "lengths(factors)) + gamma", "lengths(factors)) + 0 * gamma"),
    "one weight for two": ("groups", "(weight[:, None] * weight[None, :])", "weight[:, None]"),
    "groups mixed": ("groups", "together = groups[:, None] == groups[None, :]", "together = True"),
    "not centred": ("batch_size", "1, squared_mean)) - 1", "1, squared_mean))"),
    "parameters for the test gradient": ("scores", "x, t), direction)", "x, t), layers)"),
    # convolution and pooling
    "kernel not flipped": (
        "linear", "jnp.flip(jnp.moveaxis(w, 0, -2), range(len(g.size)))", "jnp.moveaxis(w, 0, -2)"),
    "padding swapped": (
        "linear", "pads = [*zip(g.low, g.high, strict=True)]", "pads = [*zip(g.high, g.low)]"),
    "the sum starts a row late": (
        "linear", "low = [min(lo, n) for lo, n in zip(g.low, met, strict=True)]",
        "low = [min(lo, n) for lo, n in zip(g.high, met, strict=True)]"),
    "∂C/∂b of one position": (
        "sums", "* wide(delta), range(delta.ndim - 1))",
        "* wide(delta) / delta[0, ..., 0].size, range(delta.ndim - 1))"),
    "ties shared": ("pooling", "wins = free & ~(entry < largest)", "wins = ~(entry < largest)"),
    "a maximum's error to the first": (
        "operators", "at.pool, at.u, e", "at.pool, at.pool and 0 * at.u, e"),
    "another maximum": ("operators", "is None else f.f(z)", "is None else -z"),
    "windows without their stride": (
        "windows", "yield padded[tuple(slice(i, i + n, s) for i, n, s in spans)]",
        "yield jnp.roll(padded, 1, 0)[tuple(slice(i, i + n, s) for i, n, s in spans)]"),
    # sums over positions
    "direct without the bias term": (
        "ghost", "hypot(product(w, g.of_w), b * g.of_b)",
        "hypot(product(w, g.of_w), 0 * g.of_b)"),
    "ghost without the bias term": (
        "ghost", "Norms(hypot(product(w, of_w), of_b)", "Norms(hypot(product(w, of_w), 0 * of_b)"),
    "pairs of one position alone": (
        "ghost", "jnp.sum(of_deltas * of_rows)", "jnp.trace(of_deltas * of_rows)"),
    "one position dropped": (
        "layers", "by_position.T @ seen,", "by_position[1:].T @ seen[1:],"),
    "T forgotten in a mean": (
        "matrices", "outer(p, deltas) / layer.positions", "outer(p, deltas)"),
    "a slice of w counted twice": (
        "matrices", "cut = lambda v, i: jax", "cut = lambda v, i: 2**0.5 * jax"),
    "squares without their weights": (
        "layers", "jnp.tensordot(p, v, 1,", "jnp.tensordot(jnp.ones_like(p) / len(p), v, 1,"),
    # the epoch
    "the short batch is not masked": ("train", "< n - whole", "< batch_size"),
    "the short batch is dropped": ("train", "    if whole < n:\n", "    if whole < 0:\n"),
    "every batch is the first": (
        "train", "x_at(rows), t_at(rows)", "x[: len(rows)], t[: len(rows)]"),
    "t does not follow the shuffle": (
        "train", "x_at(rows), t_at(rows)", "x_at(rows), t[: len(rows)]"),
}  # fmt: skip


def _mutant(monkeypatch, folder, name, file, old, new):
    """The package with one change, imported as `name`."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text().replace("from jbackprop", f"from {name}")
        if path.stem == file:
            assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {file}.py"
            text = text.replace(old, new)
        copy = folder / name / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(text)
    monkeypatch.syspath_prepend(folder)
    return importlib.import_module(name)


def _battery(jb):
    net = lambda *pair: jb.Network((3, 3, 3, 3), (jb.tanh, jb.sigmoid), *pair)
    battery.gradient_is_that_of_autodiff(jb, net(jb.sigmoid, jb.squared_error))
    battery.gradient_is_that_of_autodiff(jb, net(jb.sigmoid, jb.binary_cross_entropy))
    battery.gradient_is_that_of_autodiff(jb, net(jb.softmax, jb.squared_error))
    battery.gradient_is_that_of_autodiff(jb, net(jb.softmax, jb.cross_entropy), t_sum=2.0)
    battery.absent_rows_change_nothing(jb, net())
    battery.saturated_heads_are_right(jb)
    battery.labels_are_one_hot_or_nan(jb)
    battery.an_epoch_is_its_steps(jb, optax.sgd(0.01))


def _convolution(jb):
    """An even kernel padded on one side, strides that differ, a maximum of many ties."""
    first = jb.Conv(3, 2, stride=(1, 2), padding="SAME")
    sizes = ((6, 9, 2), first, jb.MaxPool(2), jb.Conv(2, 2), 3)
    net = jb.Network(sizes, (jb.relu, jb.tanh), jb.softmax, jb.cross_entropy)
    battery.gradient_is_that_of_autodiff(jb, net)
    back = jb.MaxPool(2).transpose(jnp.zeros((2, 2, 1)), jnp.ones((1, 1, 1)))
    assert back.ravel().tolist() == [1, 0, 0, 0], "of equal ones the first counts"


def _quantities(jb):
    net = jb.Network((3, 4, 3))  # whose gradients differ much, so that no spread cancels
    battery.quantities_are_those_of_all_gradients(jb, net)


def _shared(jb):
    """Norms by both ways: the first convolution's directly, the second's by pairs of positions."""
    sizes = ((7, 2), jb.Conv(3, 2), jb.Conv(16, 5), jb.MeanPool(), 2)
    battery.quantities_are_those_of_all_gradients(jb, jb.Network(sizes, jb.tanh))


@pytest.fixture
def _quiet():
    """Products with NaN are what some mutants are about."""
    with jax.numpy_dtype_promotion("standard"):
        yield
    for name in [name for name in sys.modules if name.startswith("mutant_")]:
        del sys.modules[name]


@pytest.mark.long
@pytest.mark.usefixtures("_quiet")
def test_the_package_itself_survives(monkeypatch, tmp_path):
    text = "linear.apply(w, a)"
    same = _mutant(monkeypatch, tmp_path, "mutant_none", "network", text, text)
    _battery(same)
    _convolution(same)
    _quantities(same)
    _shared(same)


@pytest.mark.long(3)
@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize("fault", MUTANTS)
def test_the_battery_kills(fault, monkeypatch, tmp_path):
    name = f"mutant_{list(MUTANTS).index(fault)}"
    mutant = _mutant(monkeypatch, tmp_path, name, *MUTANTS[fault])
    file = MUTANTS[fault][0]
    by_file: dict[str, Any] = {
        **dict.fromkeys(("linear", "operators", "pooling", "sums", "windows"), _convolution),
        **dict.fromkeys(("ghost", "layers", "matrices"), _shared),
    }
    above = (PACKAGE / "quantities" / f"{file}.py").exists()
    kill = by_file.get(file, _quantities if above else _battery)
    with pytest.raises(AssertionError):
        kill(mutant)
