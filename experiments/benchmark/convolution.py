"""Convolutional networks: the recursion beside `jax.grad`, in a compiled epoch and stepped.

`jax.grad` is given what a user of JAX writes: whole batches, kernels in the order that `lax` likes
best, and max pooling both by `reduce_window`, which Flax and Equinox have, and by slices.
"""

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
from jax import lax

import jbackprop as jb
from experiments.benchmark import machine, report
from experiments.benchmark.timing import in_turn, ratio
from experiments.common import networks
from jbackprop import Conv, MaxPool

P, C = networks.tanh_cnn((28, 28)), networks.c3d3()
V, D1 = networks.six_convolutions(), networks.one_dimensional(40)
NETS = {"P": (P, 128, 10), "C": (C, 64, 2), "V": (V, 64, 2), "D1": (D1, 100, 40)}
SAID = {
    "P": "P: the tanh CNN of private training, batch 128",
    "C": "C: 3c3d, batch 64",
    "V": "V: six 3×3 convolutions, batch 64",
    "D1": "D1: one-dimensional, batch 100",
}
MARK = "convolution"
F = {"tanh": jnp.tanh, "relu": jax.nn.relu}


@dataclass(frozen=True)
class Options:
    """Time a step of every network."""

    nets: tuple[str, ...] = tuple(NETS)
    rounds: int = 11
    """Rounds in which every candidate runs once."""
    readme: Path | None = None
    """A README whose table is to be replaced."""


def by_window(pool: MaxPool, u: Any) -> Any:
    """Max pooling of a batch as `lax` has it."""
    size, stride, pads = _of_pool(pool, u)
    pads = pads if isinstance(pads, str) else [(0, 0), *pads, (0, 0)]
    return lax.reduce_window(u, -jnp.inf, lax.max, (1, *size, 1), (1, *stride, 1), pads)


def by_slices(pool: MaxPool, u: Any) -> Any:
    """The same as the largest of shifted slices."""
    size, stride, pads = _of_pool(pool, u)
    if isinstance(pads, str):
        pads = lax.padtype_to_pads(u.shape[1:-1], size, stride, pads)
    u = jnp.pad(u, [(0, 0), *pads, (0, 0)], constant_values=-jnp.inf)
    out = [(n - k) // s + 1 for n, k, s in zip(u.shape[1:-1], size, stride, strict=True)]
    seen = [
        u[(slice(None), *[
            slice(i, i + (n - 1) * s + 1, s) for i, n, s in zip(at, out, stride, strict=True)])]
        for at in np.ndindex(*size)
    ]  # fmt: skip
    return jax.tree.reduce(jnp.maximum, seen)


def _of_pool(pool: MaxPool, u: Any) -> Any:
    rank = u.ndim - 2
    each = lambda v: (v,) * rank if isinstance(v, int) else v
    pads = pool.padding
    if not isinstance(pads, str):
        pads = [(p, p) if isinstance(p, int) else p for p in each(pads)]
    return each(pool.size), each(pool.stride), pads


def cost(net: jb.Network, pool_by: Any, params: Any, x: Any, labels: Any) -> Any:
    """Mean cross-entropy of a batch, as a user of JAX writes it; kernels (*kernel, channels, n)."""
    f = F[net.activations[0].name]
    for l, ((w, b), linear, pool) in enumerate(zip(params, net.maps, net.pools, strict=True)):
        if isinstance(linear, Conv):
            rank = x.ndim - 2
            each = lambda v, rank=rank: (v,) * rank if isinstance(v, int) else v
            pads = linear.padding
            if not isinstance(pads, str):
                pads = [(p, p) if isinstance(p, int) else p for p in each(pads)]
            letters = "HW"[:rank]
            names = f"N{letters}C", f"{letters}IO", f"N{letters}C"
            x = lax.conv_general_dilated(x, w, each(linear.stride), pads, dimension_numbers=names)
        else:
            x = x.reshape(len(x), -1) @ w
        x = x + b
        if l < len(params) - 1:
            x = f(x)
        if pool is not None:
            x = pool_by(pool, x)
    log_y = jax.nn.log_softmax(x)
    return -jnp.mean(jnp.sum(jax.nn.one_hot(labels, log_y.shape[-1]) * log_y, axis=-1))


def candidates(net: jb.Network, batch: int, steps: int) -> dict[str, Callable[[], Any]]:
    """Compiled loops and stepped ones, every gradient compared first."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(steps, batch, *net.shapes[0])), jnp.float32)
    labels = jnp.asarray(rng.integers(0, 10, (steps, batch)), jnp.int32)
    params = jb.init(net, jax.random.key(0))
    turned = [jb.Layer(jnp.moveaxis(w, 0, -1), b) for w, b in params]
    ours = lambda params, x, t: jb.mean_gradient(jb.backprop(net, params, x, t))
    slopes = {
        "grad, reduce_window": jax.grad(partial(cost, net, by_window)),
        "grad, slices": jax.grad(partial(cost, net, by_slices)),
    }
    expected = jax.jit(ours)(params, x[0], labels[0])
    for name, slope in slopes.items():
        for (w, b), (v, c) in zip(jax.jit(slope)(turned, x[0], labels[0]), expected, strict=True):
            for one, other in ((jnp.moveaxis(w, -1, 0), v), (b, c)):
                off = float(jnp.abs(one - other).max() / jnp.abs(other).max())
                assert off < 1e-3, f"{name}: differs by {off}"

    def runs(slope: Any, start: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
        update = lambda p, g: p - 1e-3 * g
        step = lambda p, b: (jax.tree.map(update, p, slope(p, *b)), ())
        loop = jax.jit(lambda p, batches: lax.scan(step, p, batches, unroll=min(2, steps))[0])
        one = jax.jit(lambda p, x, t: step(p, (x, t))[0])
        each = [(x[i], labels[i]) for i in range(steps)]

        def stepped() -> None:
            p = start
            for batch in each:
                p = one(p, *batch)
            jax.block_until_ready(p)

        return lambda: jax.block_until_ready(loop(start, (x, labels))), stepped

    found: dict[str, Callable[[], Any]] = {}
    for name, slope, start in [
        ("ours", ours, params),
        *((n, s, turned) for n, s in slopes.items()),
    ]:
        found[f"{name}, epoch"], found[f"{name}, stepped"] = runs(slope, start)
    return found


def main(options: Options) -> int:
    """Prints milliseconds a step, and how much of them our epoch takes; a Markdown table."""
    if options.readme is not None:
        report.split(options.readme.read_text("utf-8"), MARK)
    rows: dict[str, list[str]] = {}
    for name in options.nets:
        net, batch, steps = NETS[name]
        seconds = in_turn(candidates(net, batch, steps), options.rounds)
        for each, times in seconds.items():
            found = ratio(seconds["ours, epoch"], times)
            ms = 1e3 * float(np.median(times)) / steps
            rows.setdefault(each, []).append(f"{ms:,.3g} ({found.median:.2f})")
    heads = [SAID[name] for name in options.nets]
    summary = (
        f"ms a step on {machine.name()} (gradient and plain descent, float32; in brackets our "
        f"epoch over it, the median of {options.rounds} paired ratios; "
        f"{date.today().isoformat()}):\n\n"
        + report.markdown(["", *heads], [[n, *row] for n, row in rows.items()])
    )
    print(summary)
    if options.readme is not None:
        text = options.readme.read_text("utf-8")
        options.readme.write_text(report.into_readme(text, summary, MARK), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
