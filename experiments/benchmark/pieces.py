"""One product at a time: the rate of every matrix product of a step, alone, and of the update."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.timing import in_turn
from experiments.benchmark.work import LEARNING_RATE, Work


def pieces(work: Work, rounds: int) -> dict[str, Any]:
    """By kind, over all layers: ms, and GFLOP/s of the products or GB/s of the update.

    The buffers of one call are those of the next, as in a compiled loop: nothing is allocated."""
    runs, amount = {}, {}
    layers = [*zip(work.sizes, work.sizes[1:], strict=False)]
    for l, (n_in, n_out) in enumerate(layers):
        rows = (work.batch, n_in), (work.batch, n_out)
        w, a, delta, z = (jnp.ones(shape) for shape in ((n_out, n_in), *rows, rows[1]))
        made: dict[str, Any] = {"z = a wᵀ": (lambda z, a, w: a @ w.T, z, a, w)}
        if l:
            made["δ w"] = (lambda a, delta, w: delta @ w, jnp.copy(a), delta, w)
        made["∂C/∂w = δᵀ a"] = (
            lambda w, delta, a: jnp.einsum("bj,bk->jk", delta, a), jnp.copy(w), delta, a
        )  # fmt: skip
        made["update of w"] = (
            lambda w, g, _: w - LEARNING_RATE * g, jnp.copy(w), jnp.copy(w), None
        )  # fmt: skip
        for kind, (f, *arguments) in made.items():
            runs[f"{kind} {l}"] = _keeping(f, arguments)
            update = kind.startswith("update")
            bytes_or_operations = 12 * w.size if update else 2 * work.batch * w.size
            amount.setdefault(kind, []).append((l, bytes_or_operations))
    seconds = in_turn(runs, rounds)
    table = {}
    for kind, parts in amount.items():
        total = np.sum([seconds[f"{kind} {l}"] for l, _ in parts], axis=0)
        table[kind] = {
            "ms": 1e3 * float(np.median(total)),
            "per_second": 1e-9 * sum(n for _, n in parts) / float(np.median(total)),
        }
    return table


def _keeping(f: Any, arguments: list[Any]) -> Any:
    """A run whose result takes the place of its first argument."""
    call = jax.jit(f, donate_argnums=0, keep_unused=True)
    arguments = [None if v is None else jnp.copy(v) for v in arguments]

    def run() -> None:
        arguments[0] = jax.block_until_ready(call(*arguments))

    return run
