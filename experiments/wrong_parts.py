"""Does `verify` find what is wrong? Random networks, each right, and again with one part wrong.

A part is what a user supplies: f', ∇_y C, an output's pull, a map's transpose, weighted sum or
rows, a pooling's transpose. Wrong is wrong by a hundredth at least, in one place or in all. Every
right network must pass; of every wrong one the part and its layer must be named.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jbackprop as jb

HIDDEN = (
    jb.tanh, jb.relu, jb.gelu, jb.silu, jb.softplus, jb.elu, jb.sigmoid, jb.softsign, jb.mish,
    jb.leaky_relu_of(0.3),
)  # fmt: skip
HEADS = (
    (jb.softmax, jb.cross_entropy), (jb.sigmoid, jb.binary_cross_entropy),
    (jb.identity, jb.squared_error), (jb.tanh, jb.huber), (jb.softmax, jb.squared_error),
    (jb.identity, jb.log_cosh),
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Verify random networks, right and wrong."""

    networks: int = 200
    seed: int = 0
    out: Path | None = None
    """A folder for what was missed, as JSON."""
    quick: bool = False
    """Two networks, only to see that everything works."""


def network(rng: np.random.Generator) -> jb.Network:
    """Dense, or with one or two convolutions in one or two dimensions."""
    draw = lambda values: values[int(rng.integers(len(values)))]
    whole = lambda low, high: int(rng.integers(low, high))
    output, cost = draw(HEADS)
    sizes: list[Any] = [whole(2, 8)]
    if rng.random() < 0.5:
        rank = whole(1, 3)
        sizes = [(*(whole(6, 9) for _ in range(rank)), whole(1, 3))]
        padding = draw((0, 1, "SAME"))
        sizes.append(jb.Conv(whole(2, 5), whole(1, 4), stride=whole(1, 3), padding=padding))
        sizes += draw(([], [jb.MaxPool(2)], [jb.MeanPool(2)], [jb.MaxPool(2, stride=1)]))
        if rng.random() < 0.3:
            sizes.append(jb.Conv(whole(2, 4), 1))
    sizes += [whole(3, 9) for _ in range(whole(0, 3))]
    sizes.append(whole(2, 5))
    depth = sum(not isinstance(s, jb.MaxPool | jb.MeanPool) for s in sizes[1:])
    return jb.Network(sizes, [draw(HIDDEN) for _ in range(depth - 1)], output, cost)


def problem(net: jb.Network, rng: np.random.Generator) -> tuple[Any, Any, Any]:
    """Parameters with biases, inputs, and targets that the cost takes."""
    key = jax.random.key(int(rng.integers(2**31)))
    params = [(w, jnp.asarray(rng.normal(size=b.shape), b.dtype)) for w, b in jb.init(net, key)]
    n, x = net.shapes[-1][0], rng.normal(size=(6, *net.shapes[0])).astype(np.float32)
    if net.cost == jb.cross_entropy:
        return params, x, np.eye(n, dtype=np.float32)[rng.integers(0, n, 6)]
    return params, x, rng.uniform(0.1, 0.9, (6, n)).astype(np.float32)


def wrong_methods(entry: Any, **methods: Any) -> Any:
    """The same record with other methods."""
    kind = type(entry)
    given = {f.name: getattr(entry, f.name) for f in dataclasses.fields(kind)}
    return type(f"Wrong{kind.__name__}", (kind,), methods)(**given)


def _slightly(rng: np.random.Generator, value: Any) -> Any:
    """Wrong by a hundredth and more: all of it, one entry, or in another order."""
    way = int(rng.integers(3))
    if way == 0 or value.size == 1:
        return 1.01 * value
    if way == 1:  # in the middle: at the border stands padding, of which -1.5 times is right
        return value.at[tuple(n // 2 for n in value.shape)].multiply(-1.5)
    return jnp.roll(value, 1, axis=int(np.argmax(value.shape)))


def _wrong(method: Any, seed: int) -> Any:
    return lambda self, *given: _slightly(np.random.default_rng(seed), method(self, *given))


def broken(net: jb.Network, rng: np.random.Generator) -> tuple[jb.Network, str]:
    """The network with one wrong part, and what `verify` has to call it."""
    seed = int(rng.integers(2**31))
    sizes, hidden = list(net.sizes), list(net.activations[:-1])
    places = [
        (i, entry) for i, entry in enumerate(sizes) if isinstance(entry, jb.Conv | jb.MaxPool)
    ]
    kinds = ["cost", "output", *["hidden"] * (2 * bool(hidden)), *["place"] * (3 * bool(places))]
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind == "hidden":
        l = int(rng.integers(len(hidden)))
        f = hidden[l]
        hidden[l] = jb.Activation(f"wrong {f.name}", f.f, lambda z: f.df(z) + 0.01)
        return jb.Network(sizes, hidden, net.output, net.cost), f"f' of layer {l + 1}, wrong"
    if kind == "place":
        i, entry = places[int(rng.integers(len(places)))]
        layer = sum(not isinstance(s, jb.MaxPool | jb.MeanPool) for s in sizes[1 : i + 1])
        names = ("transpose", "weighted_sum", "rows")[: 3 if isinstance(entry, jb.Conv) else 1]
        name = names[int(rng.integers(len(names)))]
        sizes[i] = wrong_methods(entry, **{name: _wrong(getattr(type(entry), name), seed)})
        wrong = jb.Network(sizes, hidden, net.output, net.cost)
        return wrong, f"{name} of layer {layer}, Wrong"
    layer, f, cost = len(net.maps), net.output, net.cost
    if kind == "cost":
        other = jb.Cost("wrong", cost.value, lambda y, t: cost.grad(y, t) * 1.01)
        return jb.Network(sizes, hidden, f, other), "∇_y C of wrong"
    if f.pull is None:
        wrong_f = jb.Activation("wrong", f.f, lambda z: f.df(z) * 1.01)
    else:
        pull = f.pull
        wrong_f = jb.Activation("wrong", f.f, None, lambda z, e: 1.01 * pull(z, e))
    return jb.Network(sizes, hidden, wrong_f, cost), f"f' of layer {layer}, wrong"


def main(options: Options) -> int:
    """Prints what was missed and refused; 1 if there is any."""
    rng, found = np.random.default_rng(options.seed), []
    count = 2 if options.quick else options.networks
    for i in range(count):
        net = network(rng)
        given = problem(net, rng)
        wrong, culprit = broken(net, rng)
        right, other = jb.verify(net, *given), jb.verify(wrong, *given)
        named = any(culprit in row.blame for row in other.failures)
        if not right.passed:
            found.append({"network": repr(net.sizes), "refused": str(right)})
        if other.passed or not named:
            found.append({"network": repr(wrong.sizes), "culprit": culprit, "said": str(other)})
        verdict = f"{'' if named else ': MISSED'}{'' if right.passed else ': REFUSED'}"
        print(f"{i + 1:4}: {culprit}{verdict}", flush=True)
    print(f"{count} right networks and {count} wrong ones: {len(found)} mistakes")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "wrong_parts.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
