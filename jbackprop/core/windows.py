"""Windows over the positions of an input: what a convolution and a pooling see, and where it lies.

An input has the shape (*positions, channels), with one to three dimensions of positions. A window
of a given size stands at every stride-th position of the padded input; with a dilation its entries
lie apart.
"""

import itertools
import math
import operator
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from jbackprop.core.arrays import check_size

Shape = tuple[int, ...]


class Windows(NamedTuple):
    """Those over an input of a given shape; every field has one entry for each dimension.

    Attributes:
        positions, out: of the input, and how many windows there are.
        size, stride, dilation: of a window.
        reach: (size - 1) · dilation, from a window's first entry to its last.
        low, high: rows of padding before and behind.
    """

    positions: Shape
    out: Shape
    size: Shape
    stride: Shape
    dilation: Shape
    reach: Shape
    low: Shape
    high: Shape

    @property
    def spread(self) -> Shape:
        """(out - 1) · stride + 1, from the first window's place to the last one's."""
        return tuple((m - 1) * s + 1 for m, s in zip(self.out, self.stride, strict=True))

    @property
    def overlap(self) -> int:
        """How many windows may hold one and the same entry of the input, at most."""
        sides = zip(self.size, self.stride, self.dilation, self.out, strict=True)
        return math.prod(min(-(-k // s) if d == 1 else k, m) for k, s, d, m in sides)

    def by_dimension(self) -> list["Windows"]:
        """The same one dimension after the other, from the last: what is pooled along one is the
        input along the next. A window of 8 × 8 has 16 entries so, and not 64."""
        stages = []
        for d in reversed(range(len(self.size))):
            of = lambda values, rest, d=d: (*rest[:d], values[d], *rest[d + 1 :])
            ones, zeros = (1,) * len(self.size), (0,) * len(self.size)
            before = (*self.positions[: d + 1], *self.out[d + 1 :])
            after = (*self.positions[:d], *self.out[d:])
            alone = [of(v, ones) for v in (self.size, self.stride, self.dilation)]
            sides = [of(v, zeros) for v in (self.reach, self.low, self.high)]
            stages.append(Windows(before, after, *alone, *sides))
        return stages

    def padded(self, a: Array, value: float = 0) -> Array:
        """The input with its padding."""
        pads = [*zip(self.low, self.high, strict=True), (0, 0)]
        return jnp.pad(a, pads, constant_values=value) if any(map(sum, pads)) else a

    def seen(self, padded: Array) -> Iterator[Array]:
        """For each entry of a window, in order: what all of them see there, (*out, channels)."""
        for at in itertools.product(*map(range, self.size)):
            starts = [i * d for i, d in zip(at, self.dilation, strict=True)]
            spans = zip(starts, self.spread, self.stride, strict=True)
            yield padded[tuple(slice(i, i + n, s) for i, n, s in spans)]

    def back(self, of_entries: Iterable[Array]) -> Array:
        """The adjoint of `seen` and `padded`: what entries get, added up where they were seen."""
        total: Any = None
        for at, found in zip(itertools.product(*map(range, self.size)), of_entries, strict=True):
            lows = [i * d - lo for i, d, lo in zip(at, self.dilation, self.low, strict=True)]
            sides = zip(lows, self.positions, self.spread, self.stride, strict=True)
            pads = [(lo, m - lo - n, s - 1) for lo, m, n, s in sides]
            placed = lax.pad(found, jnp.zeros((), found.dtype), [*pads, (0, 0, 0)])
            total = placed if total is None else total + placed
        return total


def windows(
    of: Any,
    in_shape: Shape,
    size: Any,
    stride: Any,
    padding: Any,
    dilation: Any = 1,
    *,
    called: str = "size",
) -> Windows:
    """Those of a record `of` over an input of this shape; `ValueError` where they do not fit."""
    positions = in_shape[:-1]
    rank = len(positions)
    if rank not in (1, 2, 3):
        raise ValueError(
            f"{of}: expected inputs of shape (*positions, channels) with 1 to 3 dimensions of "
            f"positions, got {in_shape}"
        )
    size = _of_rank(of, called, size, rank)
    stride = _of_rank(of, "stride", stride, rank)
    dilation = _of_rank(of, "dilation", dilation, rank)
    reach = tuple((k - 1) * d for k, d in zip(size, dilation, strict=True))
    if padding == "SAME":
        sides = zip(positions, stride, reach, strict=True)
        missing = [max((-(-m // s) - 1) * s + r + 1 - m, 0) for m, s, r in sides]
        pads = [(m // 2, m - m // 2) for m in missing]
    else:
        pads = [(p, p) if isinstance(p, int) else p for p in _of_rank(of, "padding", padding, rank)]
    low, high = (tuple(side) for side in zip(*pads, strict=True))
    sides = zip(positions, low, high, reach, stride, strict=True)
    out = tuple((m + lo + hi - r - 1) // s + 1 for m, lo, hi, r, s in sides)
    if min(out) < 1:
        least = tuple(r + 1 for r in reach)
        padded = tuple(m + lo + hi for m, lo, hi in zip(positions, low, high, strict=True))
        raise ValueError(
            f"{of}: expected inputs of at least {least} positions, with the padding, "
            f"got {padded} of {in_shape}"
        )
    return Windows(positions, out, size, stride, dilation, reach, low, high)


def as_whole(name: str, value: Any) -> int:
    """A whole number of at least 1."""
    check_size(name, value)
    return int(value)


def as_wholes(name: str, value: Any) -> int | Shape:
    """One for all dimensions, or one for each."""
    if isinstance(value, Iterable):
        return tuple(as_whole(name, one) for one in value)
    return as_whole(name, value)


def as_padding(value: Any) -> Any:
    """A number, a tuple with a pair for each dimension, or "SAME"."""
    expected = 'a number of at least 0, numbers or pairs of them, "SAME" or "VALID"'

    def number(one: Any) -> int:
        if not hasattr(one, "__index__") or one < 0:
            raise ValueError(f"padding: expected {expected}, got {value!r}")
        return operator.index(one)

    def pair(one: Any) -> tuple[int, int]:
        before, behind = one if isinstance(one, Iterable) and len([*one]) == 2 else (one, one)
        return number(before), number(behind)

    if isinstance(value, str):
        if value.upper() not in ("SAME", "VALID"):
            raise ValueError(f"padding: expected {expected}, got {value!r}")
        return "SAME" if value.upper() == "SAME" else 0
    return tuple(map(pair, value)) if isinstance(value, Iterable) else number(value)


def _of_rank(of: Any, name: str, value: Any, rank: int) -> Any:
    """One entry for each dimension."""
    value = value if isinstance(value, tuple) else (value,) * rank
    if len(value) != rank:
        raise ValueError(
            f"{of}: expected one {name} or {rank}, one for each dimension of the input's "
            f"positions, got {len(value)}"
        )
    return value
