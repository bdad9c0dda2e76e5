"""A million small steps, to see that nothing piles up: `make soak`.

`train_step` called from Python, then as many steps of `train_epoch`. Between them the memory that
is resident, the arrays that are alive and the traces made are counted. What they were after a tenth
of the steps is what they may stay at: memory up to a bound, the others exactly.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import jbackprop as jb
from experiments.common import run

SIZES, BATCH, EXAMPLES = (8, 8, 4), 8, 800
LOOKS = 100  # at memory, arrays and traces, evenly over the steps


@dataclass(frozen=True)
class Options:
    """Make many small steps, and fail where memory grows, arrays stay or a step is traced again."""

    steps: int = 1_000_000
    """Of each way."""
    bound: float = 8.0
    """MiB that resident memory may grow by after a tenth of the steps: of a million, 9 bytes each,
    which is less than any Python object."""
    out: Path = Path("runs/soak")
    """Where the run's folder is made."""
    quick: bool = False
    """Ten thousand steps, only to see that everything works."""


class Look(NamedTuple):
    """What there was after so many steps."""

    steps: int
    seconds: float
    resident: int  # bytes
    arrays: int
    traces: int


class Verdict(NamedTuple):
    """How much more there was at most than after a tenth of the steps, and whether that is well."""

    way: str
    steps: int
    microseconds: float  # a step
    resident: float  # MiB, after a tenth
    grown: float  # MiB
    arrays: int
    more_arrays: int
    traces: int
    well: bool


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def looked_at(way: str, steps: int) -> Iterator[Look]:
    """The looks at one way of making steps."""
    x = np.random.default_rng(0).normal(size=(EXAMPLES, SIZES[0])).astype(np.float32)
    t = np.arange(EXAMPLES, dtype=np.int32) % SIZES[-1]
    net = jb.Network(SIZES, jb.tanh, jb.softmax, jb.cross_entropy)
    optimizer = optax.sgd(0.01)
    state = jb.init_state(net, optimizer, jax.random.key(0))
    x, t = jax.device_put((x, t))
    batches = [(x[i : i + BATCH], t[i : i + BATCH]) for i in range(0, EXAMPLES, BATCH)]
    traces = 0

    def gradient(factors: jb.Factors) -> jb.Params:
        nonlocal traces
        traces += 1  # at every trace, and at no step
        return jb.mean_gradient(factors)

    start, done, every = time.perf_counter(), 0, max(len(batches), steps // LOOKS)
    while done < steps:
        until = done + every
        while done < until:
            if way == "train_step":
                for batch in batches:
                    state, _ = jb.train_step(net, optimizer, state, *batch, gradient=gradient)
            else:
                state, _ = jb.train_epoch(
                    net, optimizer, state, x, t, batch_size=BATCH, gradient=gradient
                )
            done += len(batches)
        jax.block_until_ready(state)
        gc.collect()
        seconds = time.perf_counter() - start
        yield Look(done, seconds, resident(), len(jax.live_arrays()), traces)


def verdict(way: str, looks: list[Look], bound: float) -> Verdict:
    """The most after a tenth of the looks, beside what there was then."""
    warm, *rest = looks[len(looks) // 10 :]
    mib = lambda size: size / 2**20
    grown = mib(max(look.resident for look in rest) - warm.resident)
    more = max(look.arrays for look in rest) - warm.arrays
    last = looks[-1]
    microseconds = 1e6 * (last.seconds - warm.seconds) / (last.steps - warm.steps)
    return Verdict(
        way, last.steps, microseconds, mib(warm.resident), grown,
        warm.arrays, more, last.traces, grown <= bound and more <= 0 and last.traces == 1,
    )  # fmt: skip


def table_of(verdicts: list[Verdict], bound: float) -> Table:
    """A row for every way."""
    table = Table(title=f"After a tenth of the steps, and at most more; MiB up to {bound:g} more")
    for heading in ("", "steps", "µs each", "MiB", "more", "arrays", "more", "traces"):
        table.add_column(heading, justify="right" if heading else "left")
    for v in verdicts:
        table.add_row(
            v.way, f"{v.steps:,}", f"{v.microseconds:.1f}", f"{v.resident:.1f}", f"{v.grown:+.2f}",
            str(v.arrays), f"{v.more_arrays:+d}", str(v.traces), style="" if v.well else "red",
        )  # fmt: skip
    return table


def main(options: Options) -> int:
    """Counts, tells, writes, and returns an exit status: 0, 1 where something grew."""
    console = Console(markup=False, highlight=False)
    if options.quick:
        options = replace(options, steps=min(options.steps, 10_000))
    try:
        if options.steps < 1000:
            raise ValueError(f"steps: expected at least 1000, got {options.steps}")
        resident()
        folder = run.new_folder(options.out)
    except (ValueError, OSError) as error:
        console.print(str(error), style="red", soft_wrap=True)
        return 2
    looks = {way: list(looked_at(way, options.steps)) for way in ("train_step", "train_epoch")}
    verdicts = [verdict(way, found, options.bound) for way, found in looks.items()]
    run.write_config(folder, options)
    found = {
        "verdicts": [v._asdict() for v in verdicts],
        "looks": {way: [look._asdict() for look in found] for way, found in looks.items()},
    }
    (folder / "soak.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    console.print(table_of(verdicts, options.bound))
    console.print(f"Written to {folder}", soft_wrap=True)
    return 0 if all(v.well for v in verdicts) else 1


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
