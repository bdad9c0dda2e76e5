"""This checkout beside an earlier commit of the package, in pairs: what a change costs.

Both are imported into one process and run by turns over the same batches, in a compiled loop with
an update, as in an epoch; what is printed are the medians of their ratios.
"""

import importlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

import jbackprop as jb
from experiments.benchmark.timing import in_turn, ratio
from experiments.benchmark.work import WORK, problem

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Options:
    """Time the pass and the quantities against those of an earlier commit."""

    commit: str = "HEAD~1"
    """The commit to compare with."""
    sizes: tuple[str, ...] = ("S", "M", "W")
    """Networks, by their names in the benchmark."""
    rounds: int = 41
    """Pairs of runs for every ratio."""


def package(commit: str, folder: Path) -> Any:
    """The package as it was at a commit, imported under another name."""
    git = ["git", "-C", str(ROOT)]
    listed = subprocess.run(
        [*git, "ls-tree", "-r", "--name-only", commit, "jbackprop"], capture_output=True, check=True
    )
    for path in listed.stdout.decode().split():
        if path.endswith(".py"):
            shown = subprocess.run(
                [*git, "show", f"{commit}:{path}"], capture_output=True, check=True
            )
            copy = folder / path.replace("jbackprop", "jbackprop_before", 1)
            copy.parent.mkdir(parents=True, exist_ok=True)
            text = shown.stdout.decode("utf-8")
            copy.write_text(text.replace("from jbackprop", "from jbackprop_before"), "utf-8")
    sys.path.insert(0, str(folder))
    return importlib.import_module("jbackprop_before")


def quantities(jb: Any, net: Any) -> dict[str, Callable[[Any, Any], Any]]:
    """(params, factors) -> (gradient, what else is looked at)."""
    state = lambda p: jb.TrainState(p, (), (), jax.random.key(0), jnp.int32(0))
    beside = lambda f: lambda p, factors: (jb.mean_gradient(factors), f(factors))
    return {
        "gradient": lambda p, factors: (jb.mean_gradient(factors), ()),
        "norms": beside(jb.squared_norms),
        "clipped mean": lambda p, factors: (jb.clipped_mean(1.0)(factors), ()),
        "norms, noise scale, norm test": beside(
            lambda f: (jb.squared_norms(f), jb.noise_scale(f), jb.norm_test(f))
        ),
        "panel": lambda p, factors: (
            jb.mean_gradient(factors), jb.observe_all(net)(factors, state(p), p)),
        "second moment": beside(jb.second_moment),
        "variance": beside(jb.variance),
        "gram": beside(jb.gram),
    }  # fmt: skip


def loops(jb: Any, work: Any) -> dict[str, Callable[[], Any]]:
    """A compiled loop over the batches of one work, for every quantity."""
    net = jb.Network(work.sizes, jb.tanh, jb.softmax, jb.cross_entropy)
    numbers = problem(work)
    params = tuple(jb.Layer(jnp.asarray(w), jnp.asarray(b)) for w, b in numbers.params)
    batches = jnp.asarray(numbers.x), jnp.asarray(numbers.labels)

    def loop(quantity: Callable[[Any, Any], Any]) -> Callable[[], Any]:
        def step(params: Any, batch: Any) -> Any:
            gradient, seen = quantity(params, jb.backprop(net, params, *batch))
            return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient), seen

        run = jax.jit(lambda params, batches: jax.lax.scan(step, params, batches))
        return lambda: jax.block_until_ready(run(params, batches))

    return {name: loop(quantity) for name, quantity in quantities(jb, net).items()}


def main(options: Options) -> int:
    """Prints this checkout's time over the commit's, and the commit's."""
    table = Table(title=f"this checkout / {options.commit}, {jax.devices()[0].device_kind}")
    for heading in ("", *options.sizes):
        table.add_column(heading, justify="right" if heading else "left")
    with tempfile.TemporaryDirectory() as folder:
        before = package(options.commit, Path(folder))
        cells: dict[str, list[str]] = {}
        for size in options.sizes:
            work = WORK[size]
            ours, theirs = loops(jb, work), loops(before, work)
            for name in ours:
                seconds = in_turn({"ours": ours[name], "theirs": theirs[name]}, options.rounds)
                found = ratio(seconds["ours"], seconds["theirs"])
                us = 1e6 * float(jnp.median(seconds["theirs"])) / work.steps
                cells.setdefault(name, []).append(f"{found.median:.3f}  ({us:,.1f} µs)")
    for name, row in cells.items():
        table.add_row(name, *row)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
