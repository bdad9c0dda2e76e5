"""What a smaller dtype costs in accuracy, and a step in parts saves in memory: `make precision`.

The digits are learned in float32, bfloat16 and float16 from the same seeds, with parameters in
float32 throughout, and the norms of examples' gradients compared. Then the memory of a compiled
step, in parts and with a tape that is worked out again, and how far its numbers are from the whole.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
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
from experiments.benchmark.timing import fastest
from experiments.common import run
from experiments.common.data import load

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """Compare dtypes of the pass, and the memory of a step in parts."""

    sizes: tuple[int, ...] = (512, 512)
    """Widths of the hidden layers of the network that learns the digits: those of M."""
    learning_rate: float = 1e-3
    batch_size: int = 128
    epochs: int = 60
    seeds: int = 10
    """Of the split, the parameters and the order of the examples."""
    depth: int = 255
    """Layers of the network whose memory is measured, 64 wide, with a batch of 256."""
    out: Path = Path("runs/precision")
    """Where the run's folder is made."""
    quick: bool = False
    """Little of everything, only to see that it works."""


def main(options: Options) -> int:
    """Both tables, and their numbers in metrics.jsonl."""
    console = Console(markup=False, highlight=False)
    if options.quick:
        options = replace(options, sizes=(16,), epochs=1, seeds=2, depth=16)
    folder = run.new_folder(options.out)
    run.write_config(folder, options)
    rows = []
    for row in learned(options):
        rows.append(row)
        run.append(folder, row)
    console.print(accuracy_table(options, rows))
    saved = [*memory(options.depth, 64 if options.quick else 1024)]
    for row in saved:
        run.append(folder, row)
    console.print(memory_table(saved))
    console.print(f"Written to {folder}", soft_wrap=True)
    return 0


def learned(options: Options) -> Iterator[dict[str, Any]]:
    """Of every seed and dtype: test accuracy, and how far norms are from float32's, before any step
    and after the last, both at the parameters that were learned in float32."""
    optimizer = optax.adam(options.learning_rate)
    for seed in range(options.seeds):
        data = load(None, seed)
        (x, t), (x_test, t_test) = data.train, data.test
        sizes = (x.shape[1], *options.sizes, data.classes)
        net = jb.Network(sizes, jb.tanh, jb.softmax, jb.cross_entropy)
        start = jb.init_state(net, optimizer, jax.random.key(seed))
        met = [start.params]
        for dtype in DTYPES:
            state = start
            for _ in range(options.epochs):
                state, _ = jb.train_epoch(
                    net, optimizer, state, x, t, batch_size=options.batch_size, compute_dtype=dtype
                )
            met += [state.params] * (dtype == "float32")
            accuracy = float(jb.evaluate(net, state.params, x_test, t_test).accuracy)
            batch = x[:256], t[:256]
            far = [norms_apart(net, params, *batch, dtype) for params in met]
            yield {"dtype": dtype, "seed": seed, "accuracy": accuracy, "norms": far}


def norms_apart(net: jb.Network, params: jb.Params, x: Any, t: Any, dtype: str) -> dict[str, float]:
    """How far ‖g_i‖ is from float32's, relative to it: of their mean, half and all of them."""
    norms = lambda dtype: np.sqrt(
        jb.squared_norms(jb.backprop(net, params, x, t, compute_dtype=dtype))
    )
    ours, exact = norms(dtype), norms(None)
    each = np.abs(ours / exact - 1)
    mean = abs(float(ours.mean() / exact.mean()) - 1)
    return {"mean": mean, "median": float(np.median(each)), "largest": float(each.max())}


def accuracy_table(options: Options, rows: list[dict[str, Any]]) -> Table:
    """Means over seeds, and of the norms the largest over seeds, before and after training."""
    widths = "-".join(map(str, options.sizes))
    title = f"The digits learned by a network of {widths}, means of {options.seeds} seeds"
    table = Table(title=title, title_justify="left")
    headings = "pass in", "test accuracy", "±", "norms apart: mean", "median", "largest"
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "pass in" else "right")
    for dtype in DTYPES:
        of = [row for row in rows if row["dtype"] == dtype]
        accuracy = np.array([row["accuracy"] for row in of])
        spread = accuracy.std(ddof=1) / len(accuracy) ** 0.5
        apart = [
            max(norms[what] for row in of for norms in row["norms"])
            for what in ("mean", "median", "largest")
        ]
        table.add_row(
            dtype, f"{accuracy.mean():.2%}", f"{spread:.2%}", *(f"{far:.3%}" for far in apart)
        )
    return table


def memory(depth: int, batch: int) -> Iterator[dict[str, Any]]:
    """Temporaries of a compiled step and its time; how far its gradient is from that of the whole,
    relative to each array's largest entry."""
    deep = jb.Network((64, *[64] * (depth - 1), 10), jb.tanh, jb.softmax, jb.cross_entropy)
    wide = jb.Network((784, 512, 512, 10), jb.tanh, jb.softmax, jb.cross_entropy)
    ways: dict[str, tuple[jb.Network, int, list[dict[str, Any]]]] = {
        f"{depth} layers of 64, batch 256": (
            deep, 256,
            [{}, *({"remat": k} for k in (4, 8, 16, 32, 64)), {"microbatches": 8},
             {"microbatches": 8, "remat": 16},
             {"gradient": jb.clipped_mean(0.1)}, {"gradient": jb.clipped_mean(0.1), "remat": 16},
             {"gradient": jb.clipped_mean(0.1), "microbatches": 8}],
        ),
        f"M: 784-512-512-10, batch {batch}": (
            wide, batch,
            [{}, *({"microbatches": k} for k in (2, 8, 32)),
             {"gradient": jb.clipped_mean(0.1)},
             {"gradient": jb.clipped_mean(0.1), "microbatches": 8}],
        ),
    }  # fmt: skip
    for name, (net, batch, hows) in ways.items():
        x = jax.random.normal(jax.random.key(1), (batch, *net.shapes[0]))
        t = jax.random.randint(jax.random.key(2), (batch,), 0, 10)
        trace = optax.trace(0.0)  # its state is the gradient
        state = jb.init_state(net, trace, jax.random.key(0))
        whole: Any = None
        for how in hows:
            step = lambda state, x, t: jb.train_step(net, trace, state, x, t, **how)  # noqa: B023
            compiled = jax.jit(step).lower(state, x, t).compile()
            analysis: Any = compiled.memory_analysis()
            gradient = compiled(state, x, t)[0].opt_state
            plain = not how.keys() - {"gradient"}
            whole = gradient if plain else whole
            yield {
                "network": name,
                "how": {k: str(v) for k, v in how.items()},
                "temporaries": analysis.temp_size_in_bytes,
                "seconds": fastest(compiled, state, x, t),
                "apart": 0.0 if plain else apart(gradient, whole),
            }


def apart(ours: Any, theirs: Any) -> float:
    """The largest difference, relative to the largest entry of its array."""
    far = lambda a, b: jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))
    return float(max(jax.tree.leaves(jax.tree.map(far, ours, theirs))))


def memory_table(rows: list[dict[str, Any]]) -> Table:
    """Temporaries in MiB."""
    device = jax.devices()[0].device_kind
    table = Table(title=f"Memory of a compiled step beside its state ({device})",
                  title_justify="left")  # fmt: skip
    for heading in ("network", "step", "MiB", "ms", "gradient apart by"):
        table.add_column(heading, justify="left" if heading in ("network", "step") else "right")
    for row in rows:
        how = ", ".join(f"{k}={v}" for k, v in row["how"].items()) or "as it comes"
        table.add_row(row["network"], how, f"{row['temporaries'] / 2**20:.2f}",
                      f"{1000 * row['seconds']:.3g}", f"{row['apart']:.1e}")  # fmt: skip
    return table


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
