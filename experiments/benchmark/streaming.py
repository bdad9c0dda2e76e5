"""Batches from a file beside data on the device: `train_stream` and `train_epoch`, by turns.

Both make the same steps in the same order; the file is a memory map. What is printed are the
medians of the ratios of pairs.
"""

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import jbackprop as jb
from experiments.benchmark import machine
from experiments.benchmark.timing import in_turn, ratio
from experiments.benchmark.work import WORK, network, problem


@dataclass(frozen=True)
class Options:
    """Time epochs that are read from a file against those whose data are on the device."""

    sizes: tuple[str, ...] = ("S", "M", "W")
    """Networks, by their names in the benchmark."""
    examples: int = 12800
    """In an epoch, at most; a whole number of batches."""
    rounds: int = 15
    """Pairs of epochs for every ratio."""


def epochs(work: Any, folder: Path) -> dict[str, Callable[[], Any]]:
    """The epochs of one work, each from where its last ended."""
    net, numbers, optimizer = network(work, jb.tanh), problem(work), optax.sgd(1e-3)
    x, t = np.asarray(numbers.x), np.asarray(numbers.labels).ravel()
    np.save(folder / "x.npy", x.reshape(-1, x.shape[-1]))
    mapped = np.load(folder / "x.npy", mmap_mode="r")
    there = jnp.asarray(mapped), jnp.asarray(t)
    start = jb.init_state(net, optimizer, jax.random.key(0), params=numbers.params)
    held = {"resident": start, "streamed": start, "streamed, donated": start}

    def resident() -> None:
        state, _ = jb.train_epoch(net, optimizer, held["resident"], *there, batch_size=work.batch)
        held["resident"] = jax.block_until_ready(state)

    def streamed(name: str, donate: bool) -> None:
        batches = jb.epoch_batches(held[name], mapped, t, batch_size=work.batch)
        state, _ = jb.train_stream(net, optimizer, held[name], batches, donate=donate)
        held[name] = jax.block_until_ready(state)

    held["streamed, donated"] = jax.tree.map(jnp.array, start)
    return {
        "resident": resident,
        "streamed": lambda: streamed("streamed", False),
        "streamed, donated": lambda: streamed("streamed, donated", True),
    }


def main(options: Options) -> int:
    """Prints the time of a streamed epoch over that of a resident one."""
    table = Table(
        title=f"streamed / resident, {machine.told(machine.name())}", title_justify="left"
    )
    for heading in ("", *options.sizes):
        table.add_column(heading, justify="right" if heading else "left")
    found: dict[str, list[str]] = {}
    for size in options.sizes:
        work = WORK[size]
        work = work._replace(steps=max(1, options.examples // work.batch))
        with tempfile.TemporaryDirectory() as folder:
            seconds = in_turn(epochs(work, Path(folder)), options.rounds)
        us = 1e6 * float(np.median(seconds["resident"])) / work.steps
        found.setdefault("resident, µs a step", []).append(f"{us:,.1f}")
        for name in ("streamed", "streamed, donated"):
            of = ratio(seconds[name], seconds["resident"])
            found.setdefault(name, []).append(f"{of.median:.3f}")
    for name, row in found.items():
        table.add_row(name, *row)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
