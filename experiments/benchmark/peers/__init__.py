"""Peers: the same training step as others would write it, each at its own best form.

Every module has `candidates(work, problem, hidden, optimizer) -> list[Candidate]` and may raise
ImportError where its library is absent.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Params = list[tuple[Any, Any]]


class Candidate(NamedTuple):
    """One way to train.

    Attributes:
        name: what the tables call it.
        gradient: no arguments, to the gradient of the first batch as [(w (n_out, n_in), b), …].
        run: trains over all batches of the work, and returns when it is done.
        group: candidates of one group are forms of one peer, of which the best counts.
    """

    name: str
    gradient: Callable[[], Params]
    run: Callable[[], object]
    group: str


# The steps of a loop that stand in its body. Two let the parameters go back and forth between two
# buffers, where one makes the compiler copy those that it still reads when it writes the new ones.
EPOCHS = {1: "compiled epoch", 2: "compiled epoch, two steps unrolled"}


def scanned(step: Callable[..., Any], state: Any, batches: Any, unroll: int) -> Callable[[], Any]:
    """A run of one compiled loop over batches, which keeps the state, and the costs for a reader.

    `step` is (state, (x, labels)) -> (state, cost)."""
    epoch = jax.jit(
        lambda state, batches: jax.lax.scan(step, state, batches, unroll=unroll), donate_argnums=0
    )
    state = jax.tree.map(jnp.copy, state)

    def run() -> Any:
        nonlocal state
        state, costs = jax.block_until_ready(epoch(state, batches))
        return costs

    return run


def stepped(one: Callable[..., Any], state: Any, batches: Any) -> Callable[[], Any]:
    """A run of one step at a time, from Python; `one` is jitted."""
    listed = [jax.tree.map(lambda leaf, i=i: leaf[i], batches) for i in range(len(batches[0]))]
    state = jax.tree.map(jnp.copy, state)

    def run() -> Any:
        nonlocal state
        for batch in listed:
            state, _ = one(state, batch)
        return jax.block_until_ready(state)

    return run
