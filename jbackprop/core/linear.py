"""Linear maps: one matrix w^l, used at one position or at many.

Of w^l the slides need only that z^l is linear in a^{l-1}. A dense map uses its matrix once. A
convolution uses its own, (n, k·k·channels), at every position p, on the row r_p(a) of the inputs
that it sees there:

    z_p = w r_p(a) + b,    ∂C/∂w = Σ_p δ_p r_p(a)ᵀ,    ∂C/∂b = Σ_p δ_p,    wᵀ δ = Σ_p r_pᵀ(wᵀ δ_p)

All three are convolutions again. They are written in the one layout that XLA computes quickly on a
CPU inside a loop too, (rows, *positions, channels) with a kernel (*kernel, channels, channels) and
every other order by a transposition before and after: left to itself, as in what `jax.grad` makes
of a convolution, one in a `lax.scan` becomes a plain nest of loops, seven times slower.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.examples import block_size, bytes_of_example, sum_over_blocks
from jbackprop.core.maps import rows_of
from jbackprop.core.numerics import at_least_float32
from jbackprop.core.sums import outer_sum, scaled
from jbackprop.core.windows import Shape, Windows, as_padding, as_whole, as_wholes, windows


@dataclass(frozen=True)
class Dense:
    """A dense layer:
    w^l is a matrix, (n, n_{l-1}), every output sees every input. An int n in `sizes` is this.

    Attributes:
        n: outputs.

    Raises:
        ValueError: n is no whole number of at least 1.

    >>> from jbackprop import Dense
    >>> Dense(10).w_shape((4, 4, 8))  # inputs of any shape are flattened
    (10, 128)
    """

    n: Any

    def __post_init__(self) -> None:
        self.__dict__.update(n=as_whole("n", self.n))

    def z_shape(self, in_shape: Shape) -> Shape:
        """(n,)."""
        return (self.n,)

    def w_shape(self, in_shape: Shape) -> Shape:
        """(n, all inputs)."""
        return (self.n, math.prod(in_shape))

    def apply(self, w: Array, a: Array) -> Array:
        """w a."""
        return w @ a.ravel()

    def transpose(self, w: Array, delta: Array, in_shape: Shape) -> Array:
        """wᵀ δ."""
        return (w.T @ delta).reshape(in_shape)

    def rows(self, a: Array) -> Float[Array, "1 n_in"]:
        """The one row that there is: a itself."""
        return a.reshape(1, -1)

    def weighted_sum(self, c: Array, delta: Array, a: Array) -> Array:
        """Σ_i c_i δ_i a_iᵀ."""
        return outer_sum(c, delta, a.reshape(len(a), -1))


@dataclass(frozen=True)
class Conv:
    """A convolution in 1 to 3 dimensions:
    one small matrix w^l, (n, *kernel, channels), used at every position.

    Inputs have the shape (*positions, channels), which says how many dimensions there are, and
    z^l the shape (*positions, n). As everywhere in this field it is a correlation: no kernel is
    flipped. A kernel of 1 is a dense map shared by all positions.

    Attributes:
        n: channels of z^l.
        kernel, stride, dilation: a number for all dimensions, or one each.
        padding: rows of zeros around the input: a number for all sides, a number or a pair (before,
            behind) for each dimension, "VALID" (none) or "SAME" (⌈positions / stride⌉ remain, an
            odd row goes behind, as in `jax.lax`; PyTorch's `padding=1` is the number 1).

    Raises:
        ValueError: a number is none or out of range. What does not fit the input raises where it is
            known: in `Network`.

    >>> from jbackprop import Conv
    >>> conv = Conv(16, 8, stride=2, padding=3)
    >>> conv.z_shape((28, 28, 1)), conv.w_shape((28, 28, 1))
    ((14, 14, 16), (16, 8, 8, 1))
    """

    n: Any
    kernel: Any
    stride: Any = field(default=1, kw_only=True)
    padding: Any = field(default=0, kw_only=True)
    dilation: Any = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            name: as_wholes(name, getattr(self, name)) for name in ("kernel", "stride", "dilation")
        }
        self.__dict__.update(n=as_whole("n", self.n), padding=as_padding(self.padding), **checked)

    def _windows(self, in_shape: Shape) -> Windows:
        return windows(
            self, in_shape, self.kernel, self.stride, self.padding, self.dilation, called="kernel"
        )

    def z_shape(self, in_shape: Shape) -> Shape:
        """(*positions, n)."""
        return (*self._windows(in_shape).out, self.n)

    def w_shape(self, in_shape: Shape) -> Shape:
        """(n, *kernel, channels)."""
        return (self.n, *self._windows(in_shape).size, in_shape[-1])

    def apply(self, w: Array, a: Array) -> Array:
        """z_p - b = w r_p(a)."""
        g = self._windows(a.shape)
        if a.shape[-1] == 1:  # XLA reads channels side by side: of one it takes thrice as long
            return (self.rows(a) @ w.reshape(len(w), -1).T).reshape(*g.out, len(w))
        pads = [*zip(g.low, g.high, strict=True)]
        kernel = jnp.moveaxis(w, 0, -1)  # (*kernel, channels, n)
        return _convolved(a[None], kernel, g.stride, pads, rhs_dilation=g.dilation)[0]

    def transpose(self, w: Array, delta: Array, in_shape: Shape) -> Array:
        """Every δ_p back along the kernel to the inputs that it came from: the kernel flipped, δ
        spread by the stride."""
        g = self._windows(in_shape)
        kernel = jnp.flip(jnp.moveaxis(w, 0, -2), range(len(g.size)))  # (*kernel, n, channels)
        low = [r - lo for r, lo in zip(g.reach, g.low, strict=True)]
        sides = zip(g.positions, g.spread, g.reach, low, strict=True)
        high = [m - n + r - lo for m, n, r, lo in sides]
        # where the padding is wider than the kernel reaches, what fell on it is cut off
        pads = [(max(lo, 0), max(hi, 0)) for lo, hi in zip(low, high, strict=True)]
        back = _convolved(
            delta[None], kernel, (1,) * len(low), pads, lhs_dilation=g.stride,
            rhs_dilation=g.dilation,
        )[0]  # fmt: skip
        start = [max(-lo, 0) for lo in low]
        return back[tuple(slice(i, i + m) for i, m in zip(start, g.positions, strict=True))]

    def rows(self, a: Array) -> Float[Array, "T n_in"]:
        """r_p(a) for every position p, (T, kernel · channels): `w.reshape(n, -1)` is the matrix."""
        g = self._windows(a.shape)
        for stage in g.by_dimension():  # k + k slices and not k · k
            entries = jnp.stack([*stage.seen(stage.padded(a))], axis=-2)
            a = entries.reshape(*entries.shape[:-2], -1)
        return a.reshape(math.prod(g.out), -1)

    def weighted_sum(self, c: Array, delta: Array, a: Array) -> Array:
        """Σ_i c_i Σ_p δ_ip r_p(a_i)ᵀ: a convolution over the input with δ as its kernel, whose
        channels are the examples of a block."""
        size = block_size(len(a), bytes_of_example((delta, a)))
        return sum_over_blocks(self._sum_of_block, c, delta, a, size=size)

    def _sum_of_block(self, c: Array, delta: Array, a: Array) -> Array:
        g = self._windows(a.shape[1:])
        delta, a = scaled(c, delta, a)
        lhs, rhs = jnp.moveaxis(a, 0, -1), jnp.moveaxis(delta, 0, -2)
        # up to the last row that a kernel meets, of which all may be padding
        met = [n + r for n, r in zip(g.spread, g.reach, strict=True)]
        low = [min(lo, n) for lo, n in zip(g.low, met, strict=True)]
        seen = [min(m, n - lo) for m, n, lo in zip(g.positions, met, low, strict=True)]
        pads = [(lo, n - lo - m) for lo, n, m in zip(low, met, seen, strict=True)]
        lhs = jnp.moveaxis(lhs[tuple(map(slice, seen))], -2, 0)  # (channels, *positions, examples)
        dtype = at_least_float32(delta.dtype)
        summed = _convolved(lhs, rhs, g.dilation, pads, rhs_dilation=g.stride, dtype=dtype)
        return jnp.moveaxis(jnp.moveaxis(summed, 0, -2), -1, 0)


def _convolved(
    a: Array, kernel: Array, stride: Any, pads: Any, *, lhs_dilation: Any = None,
    rhs_dilation: Any = None, dtype: Any = None,
) -> Array:  # fmt: skip
    """(rows, *positions, channels) with a kernel (*kernel, channels, n): the canonical layout."""
    letters = "DHW"[3 - len(pads) :]
    names = f"N{letters}C", f"{letters}IO", f"N{letters}C"
    return jax.lax.conv_general_dilated(
        a, kernel, stride, pads, lhs_dilation, rhs_dilation, names, preferred_element_type=dtype
    )


def sees_at_most(linear: Any, in_shape: Shape) -> int:
    """ν, of which Σ_p ‖r_p(a)‖² ≤ ν ‖a‖² is known: how many rows may hold one and the same input.

    Of a map without rows, in how many outputs it may be: then ‖Σ‖² ≤ ν ‖δ‖² ‖a‖² holds for the
    sum of absolute products too."""
    z_shape = linear.z_shape(in_shape)
    if type(linear) is Conv:
        return linear._windows(in_shape).overlap
    return math.prod(z_shape[:-1] if rows_of(linear) else z_shape)
