"""Where the time of a convolutional step goes: products a second of every layer, and of PyTorch's.

Forward pass, wᵀ δ and the weight gradient of each convolution by themselves, ours in a compiled
loop as in an epoch, PyTorch's eager and channels last, beside the rate of a large product.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import jbackprop as jb
from experiments.benchmark.convolution import NETS
from experiments.benchmark.machine import products
from experiments.benchmark.peers.spatial import each, sides
from experiments.benchmark.timing import in_turn

PARTS = "forward", "wᵀ δ", "weights"
TIMES = 8  # in one run


@dataclass(frozen=True)
class Options:
    """Time the convolutions of the benchmark's networks one by one."""

    nets: tuple[str, ...] = ("P", "C", "V")
    rounds: int = 9
    """Rounds in which every candidate runs once."""


def looped(f: Callable[..., Any], first: Any, *rest: Any) -> Callable[[], Any]:
    """f some times, one after the other; what comes out is needed, so that none is left out."""

    def again(total: Any, _: Any) -> Any:
        return total + 1e-30 * f(first + total, *rest).ravel()[0], ()

    run = jax.jit(lambda: jax.lax.scan(again, jnp.float32(0), None, TIMES)[0])
    return lambda: jax.block_until_ready(run())


def ours(linear: jb.Conv, in_shape: Any, a: Any, w: Any, delta: Any) -> list[Callable[[], Any]]:
    """Our three parts."""
    c = jnp.full(len(a), 1 / len(a))
    return [
        looped(lambda a, w: jax.vmap(linear.apply, (None, 0))(w, a), a, w),
        looped(lambda d, w: jax.vmap(lambda d: linear.transpose(w, d, in_shape))(d), delta, w),
        looped(lambda d, a: linear.weighted_sum(c, d, a), delta, a),
    ]


def theirs(linear: jb.Conv, in_shape: Any, *given: Any) -> list[Callable[[], Any]]:
    """PyTorch's, of the same numbers; () where it is not installed."""
    try:
        import torch
    except ImportError:
        return []
    last = torch.channels_last
    a, w, delta = (
        torch.tensor(np.moveaxis(np.asarray(v), -1, 1).copy()).contiguous(memory_format=last)
        for v in given
    )
    pads, stride = sides(linear, in_shape), each(linear.stride, 2)
    own = [lo for lo, _ in pads]
    if any(lo != hi for lo, hi in pads):
        a, own = torch.nn.functional.pad(a, [p for pair in reversed(pads) for p in pair]), [0, 0]

    def back(*wanted: bool) -> Callable[[], Any]:
        return lambda: torch.ops.aten.convolution_backward(
            delta, a, w, None, stride, own, [1, 1], False, [0, 0], 1, [*wanted, False]
        )

    forward = lambda: torch.nn.functional.conv2d(a, w, None, stride, own)
    parts = [forward, back(True, False), back(False, True)]

    def times(one: Callable[[], Any]) -> None:
        with torch.no_grad():
            for _ in range(TIMES):
                one()

    return [lambda one=one: times(one) for one in parts]


def main(options: Options) -> int:
    """Prints a table of GF/s."""
    count, runs = products(1024, jnp.float32)
    seconds = in_turn(runs, options.rounds)
    rates = [f"{name} {1e-9 * count / np.median(s):.0f} GF/s" for name, s in seconds.items()]
    table = Table(title=f"GF/s of convolutions; {', '.join(rates)}", title_justify="left")
    for heading in ("", "GF", *(f"{part}: ours" for part in PARTS), *PARTS):
        table.add_column(heading, justify="right" if heading else "left")
    for name in options.nets:
        net, batch, _ = NETS[name]
        layers = zip(net.maps, net.shapes, net.z_shapes, strict=False)
        for l, (linear, in_shape, z_shape) in enumerate(layers, start=1):
            if not isinstance(linear, jb.Conv):
                continue
            rng = np.random.default_rng(l)
            shapes = (batch, *in_shape), linear.w_shape(in_shape), (batch, *z_shape)
            given = [jnp.asarray(rng.normal(size=s), jnp.float32) for s in shapes]
            operations = 2 * batch * math.prod(z_shape[:-1]) * math.prod(shapes[1])
            both = ours(linear, in_shape, *given) + theirs(linear, in_shape, *given)
            found = in_turn({str(i): run for i, run in enumerate(both)}, options.rounds)
            rates = [1e-9 * TIMES * operations / np.median(s) for s in found.values()]
            table.add_row(f"{name}{l}", f"{1e-9 * operations:.2f}", *(f"{r:.0f}" for r in rates))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
