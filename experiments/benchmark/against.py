"""This checkout beside an earlier commit of the package, in pairs: what a change costs.

Both are imported into one process and run by turns over the same batches: every quantity in a
compiled loop with an update, and training as users call it. Printed are medians of their ratios,
and a "=" where the compiled programs are the same to the letter: what a ratio is then is noise.
"""

import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console
from rich.table import Table

import jbackprop as jb
from experiments.benchmark.convolution import NETS
from experiments.benchmark.peers.spatial import case
from experiments.benchmark.timing import in_turn, ratio
from experiments.benchmark.work import WORK, problem

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Options:
    """Time the pass and the quantities against those of an earlier commit."""

    commit: str = "HEAD~1"
    """The commit to compare with."""
    sizes: tuple[str, ...] = ("S", "P", "M", "W")
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


def problem_of(jb: Any, name: str) -> tuple[Any, Any, Any, Any]:
    """(network of this package, params, x, labels), with all batches; P is convolutional."""
    if name in WORK:
        work, numbers = WORK[name], problem(WORK[name])
        net = jb.Network(work.sizes, jb.tanh, jb.softmax, jb.cross_entropy)
        given, x, labels = numbers.params, numbers.x, numbers.labels
    else:
        conv = lambda map: jb.Conv(map.n, map.kernel, stride=map.stride, padding=map.padding)
        pool = lambda map: jb.MaxPool(map.size, stride=map.stride)
        kinds = {"Conv": conv, "MaxPool": pool}
        like, batch, steps = NETS[name]
        sizes = [kinds.get(type(size).__name__, lambda size: size)(size) for size in like.sizes]
        net = jb.Network(sizes, jb.tanh, jb.softmax, jb.cross_entropy)
        of = case(name, like, batch, steps)
        given, x, labels = of.params, of.x, of.labels
    params = tuple(jb.Layer(jnp.asarray(w), jnp.asarray(b)) for w, b in given)
    return net, params, jnp.asarray(x), jnp.asarray(labels)


class Loop(NamedTuple):
    """What is timed, and its program; "" of what is called from Python step by step."""

    run: Callable[[], Any]
    program: str


def program(compiled: Any) -> str:
    """The instructions, without the names that they have and the lines that they came from."""
    lines = [line for line in compiled.as_text().splitlines() if "%" in line]
    bare = re.sub(r", metadata=\{[^}]*\}|stack_frame_id=\d+", "", "\n".join(lines))
    return re.sub(r"%[\w.-]+", lambda name: re.sub(r"[.\d_]+$", "", name[0]), bare)


def loops(jb: Any, name: str) -> dict[str, Loop]:
    """A compiled loop over the batches of one work, for every quantity."""
    net, params, *batches = problem_of(jb, name)

    def loop(quantity: Callable[[Any, Any], Any]) -> Loop:
        def step(params: Any, batch: Any) -> Any:
            gradient, seen = quantity(params, jb.backprop(net, params, *batch))
            return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient), seen

        run = jax.jit(lambda params, batches: jax.lax.scan(step, params, batches))
        compiled = run.lower(params, batches).compile()
        return Loop(lambda: jax.block_until_ready(compiled(params, batches)), program(compiled))

    return {
        **{name: loop(quantity) for name, quantity in quantities(jb, net).items()},
        **training(jb, net, params, batches),
    }


def training(jb: Any, net: Any, params: Any, batches: Any) -> dict[str, Loop]:
    """Steps called from Python one by one, and a shuffled epoch."""
    optimizer = optax.sgd(1e-3)
    start = jb.init_state(net, optimizer, jax.random.key(0), params=params)
    x, t = (rows.reshape(-1, *rows.shape[2:]) for rows in batches)
    one_by_one = [*zip(*batches, strict=True)]

    def stepped() -> Any:
        state = start
        for batch in one_by_one:
            state, _ = jb.train_step(net, optimizer, state, *batch)
        return jax.block_until_ready(state)

    def epoch() -> Any:
        size = batches[0].shape[1]
        return jax.block_until_ready(jb.train_epoch(net, optimizer, start, x, t, batch_size=size))

    whole = jax.jit(lambda state, x, t: jb.train_epoch(
        net, optimizer, state, x, t, batch_size=batches[0].shape[1]))  # fmt: skip
    of_epoch = program(whole.lower(start, x, t).compile())
    return {"train_step, called": Loop(stepped, ""), "train_epoch": Loop(epoch, of_epoch)}


def main(options: Options) -> int:
    """Prints this checkout's time over the commit's, and the commit's."""
    table = Table(title=f"this checkout / {options.commit}, {jax.devices()[0].device_kind}")
    for heading in ("", *options.sizes):
        table.add_column(heading, justify="right" if heading else "left")
    with tempfile.TemporaryDirectory() as folder:
        before = package(options.commit, Path(folder))
        cells: dict[str, list[str]] = {}
        for size in options.sizes:
            ours, theirs = loops(jb, size), loops(before, size)
            steps = len(problem_of(jb, size)[2])
            for name in ours:
                runs = {"ours": ours[name].run, "theirs": theirs[name].run}
                seconds = in_turn(runs, options.rounds)
                found = ratio(seconds["ours"], seconds["theirs"])
                same = " =" * (ours[name].program == theirs[name].program != "")
                us = 1e6 * float(jnp.median(seconds["theirs"])) / steps
                cells.setdefault(name, []).append(f"{found.median:.3f}{same}  ({us:,.1f} µs)")
    for name, row in cells.items():
        table.add_row(name, *row)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
