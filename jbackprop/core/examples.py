"""One block of examples after the other: as many as a processor has room for close at hand.

What is worked out of a whole batch passes through memory; of a few examples it stays in the cache.
A convolution's weight gradient, summed over blocks, takes a third to a half of the time so on a
CPU. An accelerator is given larger blocks: it has more to fill. Here alone is that decided.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

# bytes of a block: what a CPU's core keeps next to itself; what makes an accelerator busy
ROOM = {"cpu": 2**20}
ACCELERATORS_ROOM = 2**27


def block_size(batch: int, bytes_of_one: int, *, least: int = 1) -> int:
    """Examples of a block, of which each takes so many bytes; blocks of one size where they can."""
    room = ROOM.get(jax.default_backend(), ACCELERATORS_ROOM) * jax.local_device_count()
    # a block of a batch that is spread over devices has as many rows on each, and every block's sum
    # is a sum over devices: the fewer the better
    unit = jax.device_count() if batch % jax.device_count() == 0 else 1
    units, least = batch // unit, max(least, room // max(bytes_of_one, 1))
    most = min(units, -(-least // unit))
    even = max(size for size in range(1, most + 1) if units % size == 0)
    return unit * (even if 2 * even > most else most)


def bytes_of_example(tree: Any) -> int:
    """What one example of these batches takes."""
    return sum(leaf.nbytes // len(leaf) for leaf in jax.tree.leaves(tree))


def in_blocks(tree: Any, size: int) -> tuple[Any, Any]:
    """Whole blocks of a batch, (blocks, size, …), and what is left, or None.

    Of a batch that may be spread over devices row by row, every block, and what is left, has as
    many rows of each device: no row has to move."""
    batch = len(jax.tree.leaves(tree)[0])
    lanes, own = _lanes(batch, size)
    whole = batch // lanes - batch // lanes % own

    def cut(rows: Array) -> Array:
        of_lanes = rows.reshape(lanes, -1, *rows.shape[1:])[:, :whole]
        blocks = of_lanes.reshape(lanes, -1, own, *rows.shape[1:]).swapaxes(0, 1)
        return blocks.reshape(-1, size, *rows.shape[1:])

    def left(rows: Array) -> Array:
        of_lanes = rows.reshape(lanes, -1, *rows.shape[1:])
        return of_lanes[:, whole:].reshape(-1, *rows.shape[1:])

    rest = None if whole * lanes == batch else jax.tree.map(left, tree)
    return jax.tree.map(cut, tree), rest


def out_of_blocks(blocks: Array, *rest: Array) -> Array:
    """The rows of whole blocks, and what was left, in the order that they had."""
    count, size, *shape = blocks.shape
    lanes, own = _lanes(count * size + sum(map(len, rest)), size)
    of_lanes = blocks.reshape(count, lanes, own, *shape).swapaxes(0, 1)
    parts = [part.reshape(lanes, -1, *shape) for part in (of_lanes, *rest)]
    return jnp.concatenate(parts, axis=1).reshape(-1, *shape)


def _lanes(batch: int, size: int) -> tuple[int, int]:
    """Over how many devices a batch may be spread, and how many rows of a block are on each."""
    devices = jax.device_count()
    lanes = 1 if batch % devices or size % devices else devices
    return lanes, size // lanes


def sum_over_blocks(f: Callable[..., Any], *batched: Any, size: int) -> Any:
    """Σ f(block), f itself a sum over examples."""
    if size >= len(jax.tree.leaves(batched)[0]):
        return f(*batched)
    blocks, rest = in_blocks(batched, size)
    shapes = jax.eval_shape(f, *jax.tree.map(lambda v: v[0], blocks))
    # of a shape, zeros that vary over devices where what is added to them does
    start = jax.tree.map(jnp.zeros_like, shapes)
    add = lambda total, block: (jax.tree.map(jnp.add, total, f(*block)), ())
    total, _ = jax.lax.scan(add, start, blocks)
    return total if rest is None else add(total, rest)[0]


def over_blocks(f: Callable[..., Any], *batched: Any, size: int) -> Any:
    """f(block), which has a row for every example, of all of them."""
    if size >= len(jax.tree.leaves(batched)[0]):
        return f(*batched)
    blocks, rest = in_blocks(batched, size)
    found = jax.lax.map(lambda block: f(*block), blocks)
    return jax.tree.map(out_of_blocks, found, *(() if rest is None else (f(*rest),)))


def over_examples(f: Callable[..., Any], *batched: Any, size: int) -> Any:
    """f of every example, stacked; those of a block at once."""
    return over_blocks(jax.vmap(f), *batched, size=size)
