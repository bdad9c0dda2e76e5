"""What a network asks of w^l: a linear map, one of ours or one of your own."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array

from jbackprop.core.numerics import at_least_float32
from jbackprop.core.sums import bias_sum
from jbackprop.core.windows import Shape


@runtime_checkable
class Map(Protocol):
    """What a network asks of w^l: a few pure functions of ONE example, and one of a batch.

    A map of your own is a frozen dataclass with these. With `rows` (see `Conv`) its quantities take
    the ways that a convolution's do; without, those that a sum of one example allows.
    """

    def z_shape(self, in_shape: Shape) -> Shape:
        """The shape of z^l, features last, for inputs of this shape."""
        ...

    def w_shape(self, in_shape: Shape) -> Shape:
        """The shape of w^l; b^l has one entry for every feature."""
        ...

    def apply(self, w: Array, a: Array) -> Array:
        """w a, of shape z_shape."""
        ...

    def transpose(self, w: Array, delta: Array, in_shape: Shape) -> Array:
        """wᵀ δ, of shape in_shape."""
        ...

    def weighted_sum(self, c: Array, delta: Array, a: Array) -> Array:
        """Σ_i c_i Σ_p δ_ip r_ipᵀ over a batch, of shape w_shape."""
        ...


def over_positions(linear: Map, delta: Array, a: Array) -> tuple[Array, Array]:
    """Σ_p δ_p r_p(a)ᵀ and Σ_p δ_p of ONE example."""
    one, delta, a = jnp.ones(1, at_least_float32(delta.dtype)), delta[None], a[None]
    sums = linear.weighted_sum(one, delta, a), bias_sum(one, delta)
    return sums[0].astype(delta.dtype), sums[1].astype(delta.dtype)


def rows_of(linear: Any) -> Callable[[Array], Array] | None:
    """`rows`, where it says what `weighted_sum` says too: a class that inherits the one and has the
    other of its own may be of another kind than its parent."""
    rows = getattr(linear, "rows", None)
    names = "apply", "transpose", "weighted_sum", "rows"
    kinds = type(linear).__mro__
    at = [next((i for i, k in enumerate(kinds) if name in vars(k)), -1) for name in names]
    return rows if at[-1] <= min(at[:-1]) else None


def shaped(of: Any, what: str, value: Any, shape: Shape) -> Array:
    """What a map or a pooling of a user's own returned, which must have this shape."""
    if jnp.shape(value) != tuple(shape):
        raise ValueError(f"{of}: expected {what} of shape {tuple(shape)}, got {jnp.shape(value)}")
    return value
