"""What the peers of convolutional networks are given, and how they read its geometry."""

from typing import Any, NamedTuple

import numpy as np

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
    import jax

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
    size, stride = (each(getattr(record, "kernel", None) or record.size, rank),
                    each(record.stride, rank))  # fmt: skip
    missing = [
        max((-(-m // s) - 1) * s + k - m, 0)
        for m, s, k in zip(in_shape, stride, size, strict=False)
    ]
    return [(m // 2, m - m // 2) for m in missing]
