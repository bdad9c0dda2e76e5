"""What `apply` costs inside somebody else's program: beside the native step, and Flax's layers.

    native     jb.value_and_grad, cost and output the network's own
    apply      jax.value_and_grad of optax's loss of jb.apply
    Flax       the same program with Flax's layers, in the same compiled loop (P alone)

All are plain descent in a compiled loop, by turns; gradients are compared first.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console
from rich.table import Table

import jbackprop as jb
from experiments.benchmark.compare import GradientsDiffer, relative_difference
from experiments.benchmark.convolution import NETS
from experiments.benchmark.peers.conv_jax import back, loops, turned
from experiments.benchmark.peers.spatial import Case, case
from experiments.benchmark.timing import in_turn, ratio
from experiments.benchmark.work import WORK, network

WAYS = "native", "apply", "Flax"
GOALS = {"apply / native": 1.05, "apply / Flax": 0.35}


@dataclass(frozen=True)
class Options:
    """Time `apply` in a compiled loop."""

    nets: tuple[str, ...] = ("M", "P")
    rounds: int = 15
    """Rounds in which every candidate runs once."""


def case_of(name: str) -> Case:
    """A network of either benchmark."""
    if name in NETS:
        return case(name, *NETS[name])
    work = WORK[name]
    return case(name, network(work), work.batch, work.steps)


def logits_of(net: jb.Network) -> jb.Network:
    """The network without its last activation, which the loss brings."""
    return jb.Network(net.sizes, net.hidden)


def gradients(of: Case) -> dict[str, tuple[Callable[..., Any], Any, Callable[[Any], Any]]]:
    """(params, x, t) to the gradient, where to start, and how to read it as ours."""
    start = tuple(jb.Layer(jnp.asarray(w), jnp.asarray(b)) for w, b in of.params)
    logits, pairs = logits_of(of.net), lambda gradient: [*map(tuple, gradient)]

    def plugged(params: Any, x: Any, t: Any) -> Any:
        y = jb.apply(logits, params, x)
        return optax.softmax_cross_entropy_with_integer_labels(y, t).mean()

    native = lambda params, x, t: jb.value_and_grad(of.net, params, x, t)[1]
    found: dict[str, Any] = {
        "native": (native, start, pairs),
        "apply": (jax.grad(plugged), start, pairs),
    }
    if of.name in NETS:
        try:
            from experiments.benchmark.peers.conv_flax import Model
        except ImportError as error:
            print(f"Flax: skipped, {error.name} is not installed", file=sys.stderr)
            return found
        model, depth = Model(of.net), len(of.params)
        layers = [{"kernel": w, "bias": b} for w, b in turned(of.params)]

        def with_flax(params: Any, x: Any, t: Any) -> Any:
            y: Any = model.apply(params, x)
            return optax.softmax_cross_entropy_with_integer_labels(y, t).mean()

        def read(gradient: Any) -> Any:
            layers = [gradient["params"][f"l{l}"] for l in range(depth)]
            return back([(layer["kernel"], layer["bias"]) for layer in layers])

        variables = {"params": {f"l{l}": layer for l, layer in enumerate(layers)}}
        found["Flax"] = jax.grad(with_flax), variables, read
    return found


def measured(of: Case, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step of each, and the ratios that have goals."""
    ways = gradients(of)
    first = {
        name: read(jax.jit(slope)(start, of.x[0], of.labels[0]))
        for name, (slope, start, read) in ways.items()
    }
    for name, gradient in first.items():
        off = relative_difference(first["native"], gradient)
        if not off <= 1e-3:  # NaN too
            raise GradientsDiffer(f"{name} at {of.name}: its gradient differs by {off:.1e}")
    runs = {name: loops(slope, start, of)["epoch"] for name, (slope, start, _) in ways.items()}
    seconds = in_turn(runs, rounds)
    ms = {name: 1e3 * float(jnp.median(times)) / len(of.x) for name, times in seconds.items()}
    ratios = {
        f"apply / {name}": ratio(seconds["apply"], seconds[name]).median
        for name in seconds
        if name != "apply"
    }
    return {"ms": ms, "ratios": ratios}


def main(options: Options) -> int:
    """Prints a table of times and ratios."""
    table = Table(title=f"ms a step in a compiled loop, {jax.devices()[0].device_kind}")
    for heading in ("", *WAYS, *(f"{k} (goal {v})" for k, v in GOALS.items())):
        table.add_column(heading, justify="right" if heading else "left")
    for name in options.nets:
        found = measured(case_of(name), options.rounds)
        ms = [f"{found['ms'][k]:.3g}" if k in found["ms"] else "–" for k in WAYS]
        of_goals = [f"{found['ratios'][k]:.3f}" if k in found["ratios"] else "–" for k in GOALS]
        table.add_row(name, *ms, *of_goals)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
