"""What the peers of convolutional networks are given, and how they read its geometry."""

from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

import jbackprop as jb

RATE = 1e-3


class Case(NamedTuple):
    """A network, parameters, and batches: x (steps, B, *shape), labels (steps, B)."""

    name: str
    net: jb.Network
    params: Any
    x: np.ndarray
    labels: np.ndarray


def case(name: str, net: jb.Network, batch: int, steps: int) -> Case:
    """Random inputs and labels."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(steps, batch, *net.shapes[0])).astype(np.float32)
    labels = rng.integers(0, net.shapes[-1][0], (steps, batch)).astype(np.int32)
    params = [(np.asarray(w), np.asarray(b)) for w, b in jb.init(net, jax.random.key(0))]
    return Case(name, net, params, x, labels)


def each(value: Any, rank: int) -> tuple[int, ...]:
    """One for every dimension."""
    return (value,) * rank if isinstance(value, int) else tuple(value)


def sides(record: Any, in_shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Rows of padding before and behind, of a convolution or a pooling; "SAME" made numbers."""
    rank, pads = len(in_shape) - 1, record.padding
    if not isinstance(pads, str):
        return [(p, p) if isinstance(p, int) else tuple(p) for p in each(pads, rank)]
    size = each(record.kernel if isinstance(record, jb.Conv) else record.size, rank)
    return lax.padtype_to_pads(in_shape[:-1], size, each(record.stride, rank), pads)
