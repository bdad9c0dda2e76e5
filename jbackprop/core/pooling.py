"""Pooling: a^l = P(f(z^l)), and its adjoint P'ᵀ by hand, for ONE example.

    (P u)_p = max over the window at p, or the mean;    P'ᵀ e: e_p to where the maximum was first,
                                                        or shared by the whole window

`jax.grad` of a maximum over windows is a scatter of winners that a CPU takes 7 to 20 times longer
for than for comparing, entry by entry of the windows, what is there with the maximum.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array

from jbackprop.core.numerics import wide
from jbackprop.core.windows import Shape, Windows, as_padding, as_wholes, windows


@runtime_checkable
class Pool(Protocol):
    """What a network asks of a pooling: pure functions of ONE example."""

    def out_shape(self, in_shape: Shape) -> Shape:
        """The shape of a^l, where f(z^l) has this one."""
        ...

    def apply(self, u: Array) -> Array:
        """P u."""
        ...

    def transpose(self, u: Array, e: Array) -> Array:
        """P'ᵀ e, in the shape of u, at the u that was pooled."""
        ...


@dataclass(frozen=True)
class MaxPool:
    """A pooling:
    the largest of every window. Of equal ones the first counts, as elsewhere in this field.

    Attributes:
        size: of a window: a number for all dimensions, or one each.
        stride: from window to window; by default their size, so that none overlap.
        padding: as in `Conv`; what is padded with is -∞, which is nobody's maximum.

    Raises:
        ValueError: a number is none or out of range.

    >>> import jax.numpy as jnp
    >>> from jbackprop import MaxPool
    >>> u = jnp.array([[1.0], [3.0], [3.0], [2.0]])
    >>> MaxPool(2).apply(u).tolist(), MaxPool(4).transpose(u, jnp.array([[5.0]])).tolist()
    ([[3.0], [3.0]], [[0.0], [5.0], [0.0], [0.0]])
    """

    size: Any
    stride: Any = field(default=None, kw_only=True)
    padding: Any = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        size = as_wholes("size", self.size)
        stride = size if self.stride is None else as_wholes("stride", self.stride)
        self.__dict__.update(size=size, stride=stride, padding=as_padding(self.padding))

    def _windows(self, in_shape: Shape) -> Windows:
        g = windows(self, in_shape, self.size, self.stride, self.padding)
        sides = zip(g.low, g.reach, g.spread, g.positions, strict=True)
        if any(lo > r or n - lo > m for lo, r, n, m in sides):
            raise ValueError(
                f"{self}: expected every window to see some of the input, got one of padding alone "
                f"for {in_shape}"
            )
        return g

    def out_shape(self, in_shape: Shape) -> Shape:
        """(*windows, channels)."""
        return (*self._windows(in_shape).out, in_shape[-1])

    def apply(self, u: Array) -> Array:
        """The maximum of every window."""
        for stage in self._windows(u.shape).by_dimension():
            u = _largest([*stage.seen(stage.padded(u, -jnp.inf))])
        return u

    def transpose(self, u: Array, e: Array) -> Array:
        """e_p at the first maximum of window p, 0 elsewhere; added up where windows overlap."""
        stages, pooled = self._windows(u.shape).by_dimension(), []
        for stage in stages:
            pooled.append([*stage.seen(stage.padded(u, -jnp.inf))])
            u = _largest(pooled[-1])
        # the first of the rows that hold the maximum, and in it the first entry
        for stage, entries in zip(reversed(stages), reversed(pooled), strict=True):
            e = stage.back(_to_the_first(entries, e))
        return e


def _to_the_first(entries: list[Array], e: Array) -> list[Array]:
    """e for the first of the entries that is as large as the largest, 0 for the others."""
    largest, free, shares = _largest(entries), jnp.ones(e.shape, bool), []
    for entry in entries:
        wins = free & ~(entry < largest)  # NaN wins too, so that it is seen in δ
        shares.append(jnp.where(wins, e, 0))
        free &= ~wins
    return shares


def _largest(entries: list[Array]) -> Array:
    largest = entries[0]
    for entry in entries[1:]:
        # of equal ones the first, for autodiff too, which `jnp.maximum` would have share; NaN stays
        largest = jnp.where((entry > largest) | jnp.isnan(entry), entry, largest)
    return largest


@dataclass(frozen=True)
class MeanPool:
    """A pooling:
    the mean of every window; without a size, of all positions: one number for each channel.

    Attributes:
        size, stride: as in `MaxPool`. There is no padding.

    Raises:
        ValueError: a number is none or out of range.

    >>> import jax.numpy as jnp
    >>> from jbackprop import MeanPool
    >>> u = jnp.array([[1.0], [3.0], [5.0], [7.0]])
    >>> MeanPool(2).apply(u).tolist(), MeanPool().apply(u).tolist()
    ([[2.0], [6.0]], [4.0])
    """

    size: Any = None
    stride: Any = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        size = None if self.size is None else as_wholes("size", self.size)
        stride = size if self.stride is None else as_wholes("stride", self.stride)
        if size is None and stride is not None:
            raise ValueError(f"stride: expected a size with it, got {self.stride!r} alone")
        self.__dict__.update(size=size, stride=stride)

    def _windows(self, in_shape: Shape) -> Windows:
        size = in_shape[:-1] if self.size is None else self.size
        return windows(self, in_shape, size, size if self.stride is None else self.stride, 0)

    def out_shape(self, in_shape: Shape) -> Shape:
        """(*windows, channels), or (channels,)."""
        out = self._windows(in_shape).out
        return (in_shape[-1],) if self.size is None else (*out, in_shape[-1])

    def apply(self, u: Array) -> Array:
        """The mean of every window."""
        g = self._windows(u.shape)
        if self.size is None:
            return jnp.mean(wide(u), axis=range(u.ndim - 1)).astype(u.dtype)
        total = wide(u)
        for stage in g.by_dimension():
            total = sum(stage.seen(total), jnp.zeros((), total.dtype))
        return (total / math.prod(g.size)).astype(u.dtype)

    def transpose(self, u: Array, e: Array) -> Array:
        """e_p over the number of entries, to each of window p; added up where windows overlap."""
        g = self._windows(u.shape)
        share = e / math.prod(g.size)
        if self.size is None:
            return jnp.broadcast_to(share, u.shape)
        for stage in reversed(g.by_dimension()):
            share = stage.back([share] * math.prod(stage.size))
        return share
