"""What it costs to keep the state that goes into a step: `donate=False` beside `donate=True`.

Both take the same steps by turns, one call at a time or an epoch in one call; what is printed are
the medians of their ratios.
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
from experiments.benchmark.timing import in_turn, ratio
from experiments.benchmark.work import WORK, network, problem


@dataclass(frozen=True)
class Options:
    """Time steps and epochs that keep their state against those that use its memory again."""

    sizes: tuple[str, ...] = ("S", "M", "W")
    """Networks, by their names in the benchmark."""
    rounds: int = 25
    """Pairs of runs for every ratio."""


def runs(work: Any, donate: bool, *, epoch: bool) -> Callable[[], Any]:
    """The steps of one work, from where the last round ended."""
    net, numbers, optimizer = network(work, jb.tanh), problem(work), optax.sgd(1e-3)
    x, t = jnp.asarray(numbers.x), jnp.asarray(numbers.labels)
    held = [jb.init_state(net, optimizer, jax.random.key(0), params=numbers.params)]
    if epoch:
        x, t = x.reshape(-1, x.shape[-1]), t.reshape(-1)

    def run() -> Any:
        state = held.pop()
        if epoch:
            state, _ = jb.train_epoch(
                net, optimizer, state, x, t, batch_size=work.batch, donate=donate
            )
        else:
            for batch in zip(x, t, strict=True):
                state, _ = jb.train_step(net, optimizer, state, *batch, donate=donate)
        held.append(jax.block_until_ready(state))

    return run


def main(options: Options) -> int:
    """Prints the time that keeps over the time that donates, and that."""
    table = Table(title=f"kept / donated, {jax.devices()[0].device_kind}")
    for heading in ("", *options.sizes):
        table.add_column(heading, justify="right" if heading else "left")
    for name, epoch in (("stepped", False), ("in an epoch", True)):
        row = []
        for size in options.sizes:
            work = WORK[size]
            candidates = {
                key: runs(work, donate, epoch=epoch)
                for key, donate in (("kept", False), ("donated", True))
            }
            seconds = in_turn(candidates, options.rounds)
            found = ratio(seconds["kept"], seconds["donated"])
            us = 1e6 * float(jnp.median(seconds["donated"])) / work.steps
            row.append(f"{found.median:.3f}  ({us:,.1f} µs)")
        table.add_row(name, *row)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
