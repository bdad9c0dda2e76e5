"""Convolutional networks: the recursion and its quantities beside what others have.

Gradients in a compiled epoch and stepped from Python, beside `jax.grad`, Flax, Equinox and PyTorch;
clipped means, norms and second moments beside `vmap(grad)`, Opacus and BackPACK. Every peer's
numbers are compared with ours before it is timed.
"""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jbackprop as jb
from experiments.benchmark import examples, machine, report
from experiments.benchmark.compare import GradientsDiffer, relative_difference
from experiments.benchmark.examples import kept
from experiments.benchmark.peers import Candidate
from experiments.benchmark.peers.conv_jax import loops
from experiments.benchmark.peers.spatial import Case, case
from experiments.benchmark.timing import in_turn, ratio
from experiments.common import networks

P, C = networks.tanh_cnn((28, 28)), networks.c3d3()
V, D1 = networks.six_convolutions(), networks.one_dimensional(40)
# the batch, and how many of them: more than are unrolled, or a loop would be none
NETS = {"P": (P, 128, 10), "C": (C, 64, 4), "V": (V, 64, 4), "D1": (D1, 100, 40)}
SAID = {
    "P": "P: the tanh CNN of private training, batch 128",
    "C": "C: 3c3d, batch 64",
    "V": "V: six 3×3 convolutions, batch 64",
    "D1": "D1: one-dimensional, batch 100",
}
MARK = "convolution"
PEERS = "conv_jax", "conv_flax", "conv_equinox", "conv_torch"
OF_EXAMPLES = "conv_jax", "conv_backpack", "conv_opacus"


@dataclass(frozen=True)
class Options:
    """Time a step, and the quantities, of every network."""

    nets: tuple[str, ...] = tuple(NETS)
    rounds: int = 11
    """Rounds in which every candidate runs once."""
    examples: bool = True
    """Per-example quantities too."""
    out: Path | None = None
    """A folder for the results, as JSON."""
    readme: Path | None = None
    """A README whose table is to be replaced."""


def _import(names: tuple[str, ...]) -> list[Any]:
    """The peers whose library is installed."""
    found = []
    for name in names:
        try:
            found.append(importlib.import_module(f"experiments.benchmark.peers.{name}"))
        except ImportError as error:
            print(f"  {name}: skipped, {error.name} is not installed", file=sys.stderr)
    return found


def candidates(of: Case) -> list[Candidate]:
    """Ours first; every gradient compared with it."""
    net, params = of.net, tuple(jb.Layer(jnp.asarray(w), jnp.asarray(b)) for w, b in of.params)
    ours = lambda params, x, t: jb.mean_gradient(jb.backprop(net, params, x, t))
    first = lambda: [*map(tuple, jax.jit(ours)(params, of.x[0], of.labels[0]))]
    found = [
        Candidate(f"ours, {how}", first, run, "ours")
        for how, run in loops(ours, params, of).items()
    ]
    for peer in _import(PEERS):
        found += peer.candidates(of)
    expected: Any = found[0].gradient()
    for each in found[1:]:
        off = relative_difference(expected, each.gradient())
        if not off <= 1e-3:  # NaN too
            raise GradientsDiffer(f"{each.name} at {of.name}: its gradient differs by {off:.1e}")
    return found


def settled(of: Case) -> Case:
    """The batches in an order whose first is one on which all gradients agree.

    Where two inputs of a max pooling are all but equal, rounding may choose either, and a peer that
    is right has another entry. Who is wrong differs on every batch, and raises."""
    for turn in range(len(of.x)):
        turned = of._replace(x=np.roll(of.x, turn, 0), labels=np.roll(of.labels, turn, 0))
        try:
            candidates(turned)
        except GradientsDiffer as error:
            print(f"  batch {-turn % len(of.x)}: {error}", file=sys.stderr)
            if turn == len(of.x) - 1:
                raise
        else:
            return turned
    raise ValueError(f"of: expected batches, got x of shape {of.x.shape}")


def steps(of: Case, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step, and how much of them our epoch takes."""
    seconds = in_turn({each.name: each.run for each in candidates(of)}, rounds)
    ours = seconds["ours, epoch"]
    return {
        name: {
            "ms": 1e3 * float(np.median(times)) / len(of.x),
            "ours_over_this": ratio(ours, times)._asdict(),
        }
        for name, times in seconds.items()
    }


def quantities(of: Case, rounds: int) -> dict[str, Any]:
    """Ours over the plain gradient; peers over ours."""
    net, params = of.net, tuple(jb.Layer(jnp.asarray(w), jnp.asarray(b)) for w, b in of.params)
    x, t = jnp.asarray(of.x), jnp.asarray(of.labels)

    def ours(quantity: Callable[..., Any], params: Any, x: Any, t: Any) -> Any:
        return quantity(net, params, jb.backprop(net, params, x, t))

    made = {name: kept(partial(ours, q), params, x, t) for name, q in examples.OURS.items()}
    first = of._replace(x=of.x[:1], labels=of.labels[:1])
    peers = [p for module in _import(OF_EXAMPLES) for p in module.quantities(first, 1.0)]
    peers, wrong = _right(of, peers, made)
    seconds = examples.turns({n: (k.run, k.steps) for n, k in made.items()}, 0.0, rounds)
    plain = seconds["gradient"]
    of_plain = made["gradient"].temporary_bytes
    found = {
        name: {
            "ms": 1e3 * float(np.median(seconds[name])),
            "over_gradient": ratio(seconds[name], plain)._asdict(),
            "temporaries_over_gradient": k.temporary_bytes / of_plain,
        }
        for name, k in made.items()
    }
    return {"ours": found, "peers": examples.beside(peers, made, rounds), "wrong": wrong}


def _right(of: Case, peers: list[Any], made: Any) -> tuple[list[Any], dict[str, str]]:
    """Those whose numbers are ours, and of the others what they differ by: what they would take
    to be right is not known."""
    right, wrong = [], {}
    for peer in peers:
        try:
            examples.check(of, peer, made[peer.quantity].result(), tolerance=1e-3)
            right.append(peer)
        except GradientsDiffer as error:
            print(f"  left out: {error}", file=sys.stderr)
            wrong[f"{peer.name}, over our {peer.quantity}"] = str(error)
    return right, wrong


# what a table calls the quantities whose names alone do not say it
CALLED = {"norms": "norms beside the gradient", "norms alone": "norms, with no gradient formed"}


def tables(results: dict[str, Any]) -> str:
    """Both Markdown tables."""
    return "\n\n".join(filter(None, (of_steps(results), of_quantities(results))))


def of_steps(results: dict[str, Any]) -> str:
    """The README's table: ms a step of each candidate, and our epoch's time over it."""
    by_name: dict[str, list[str]] = {}
    nets = [*results["nets"]]
    for name in nets:
        for each, row in results["nets"][name]["steps"].items():
            ms = f"{row['ms']:,.0f}" if row["ms"] >= 100 else f"{row['ms']:.3g}"
            told = f"{ms} ({row['ours_over_this']['median']:.2f})"
            by_name.setdefault(each, ["–"] * len(nets))[nets.index(name)] = told
    heads = [SAID[name] for name in nets]
    return (
        f"ms a step on {machine.told(results['machine'])} (gradient and plain descent, float32; in "
        f"brackets our epoch over it, the median of {results['rounds']} paired ratios; "
        f"{results['date']}):\n\n"
        + report.markdown(["", *heads], [[n, *row] for n, row in by_name.items()])
    )


def of_quantities(results: dict[str, Any]) -> str:
    """What quantities cost, in gradients, and what others take for the same."""
    nets = [*results["nets"]]
    measured = [name for name in nets if "quantities" in results["nets"][name]]
    if not measured:
        return ""
    of_ours: dict[str, list[str]] = {}
    of_peers: dict[str, list[str]] = {}
    for name in measured:
        at, found = measured.index(name), results["nets"][name]["quantities"]
        for each, row in found["ours"].items():
            told = f"{row['over_gradient']['median']:.2f}"
            if each == "clipped mean":
                told += f" (temporaries {row['temporaries_over_gradient']:.2f})"
            of_ours.setdefault(CALLED.get(each, each), ["–"] * len(measured))[at] = told
        for each in found["wrong"]:
            of_peers.setdefault(each, ["–"] * len(measured))[at] = "other numbers"
        for each, row in found["peers"].items():
            label = f"{each}, over our {row['quantity']}"
            of_peers.setdefault(label, ["–"] * len(measured))[at] = (
                f"{row['over_ours']['median']:.1f}"
            )
    return (
        "Times of a quantity over the plain gradient's, and of others over ours:\n\n"
        + report.markdown(
            ["", *measured], [[n, *row] for n, row in (*of_ours.items(), *of_peers.items())]
        )
    )


NOTE = (
    '"Other numbers": what a peer gives is not the gradient, by more than a thousandth. Opacus\' '
    "hooks do so where a stride leaves a remainder."
)


def page(results: dict[str, Any]) -> str:
    """The results as a page of their own."""
    title = f"# Convolutional networks on {machine.told(results['machine'])}"
    return f"{title}\n\n{tables(results)}\n\n{NOTE}\n"


def main(options: Options) -> int:
    """Prints and keeps what was measured."""
    if options.readme is not None:
        report.split(options.readme.read_text("utf-8"), MARK)
    results: dict[str, Any] = {
        "machine": machine.name(), "date": date.today().isoformat(), "rounds": options.rounds,
        "jax": jax.__version__, "nets": {},
    }  # fmt: skip
    for name in options.nets:
        of = settled(case(name, *NETS[name]))
        results["nets"][name] = {"steps": steps(of, options.rounds)}
        if options.examples and name != "D1":
            results["nets"][name]["quantities"] = quantities(of, options.rounds)
        print(f"{name}: done", file=sys.stderr)
    print(tables(results))
    if options.out is not None:
        file = options.out / f"{machine.name()}-convolution.json"
        file.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        file.with_suffix(".md").write_text(page(results), "utf-8")
    if options.readme is not None:
        text = options.readme.read_text("utf-8")
        options.readme.write_text(report.into_readme(text, of_steps(results), MARK), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
