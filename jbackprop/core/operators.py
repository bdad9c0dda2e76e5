"""w^{l+1} on the way back: what `.T @ δ` can be asked of, whatever map it is and what stands below.

Where a dense map meets a flat layer that is the matrix itself. Elsewhere it is an `Operator`: the
map's weights, and with them the map, the pooling below it and the shapes. So every rule keeps its
one line, `(s.w.T @ s.delta) * s.slope`, and `jax.tree.map(jnp.sign, s.w)` is its sign for both.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jbackprop.core.linear import Dense
from jbackprop.core.maps import shaped
from jbackprop.core.network import Network, Tape, unpooled
from jbackprop.core.windows import Shape


@jax.tree_util.register_pytree_node_class
class Operator:
    """w at its place. As a pytree its only leaf is w."""

    w: Any
    at: "Place"

    def __init__(self, w: Any, at: "Place") -> None:
        self.w, self.at = w, at

    def tree_flatten(self) -> tuple[tuple[Any], "Place"]:
        """w, and where it is."""
        return (self.w,), self.at

    @classmethod
    def tree_unflatten(cls, at: "Place", leaves: Any) -> "Operator":
        """Other weights at that place."""
        (w,) = leaves
        return cls(w, at)

    @property
    def T(self) -> "Transposed":
        """What `@ δ` takes back to z^l, but for f'."""
        return Transposed(self)

    def __matmul__(self, a: Array) -> Array:
        return self.at.above.apply(self.w, a)


class Transposed:
    """P'ᵀ wᵀ."""

    def __init__(self, of: Operator) -> None:
        self.of = of

    def __matmul__(self, delta: Any) -> Array:
        at = self.of.at
        e = at.above.transpose(self.of.w, jnp.asarray(delta), at.shape)
        e = shaped(at.above, "transpose(w, delta, in_shape)", e, at.shape)
        return unpooled(at.pool, at.u, e)


@dataclass(frozen=True, eq=False)
class Place:
    """Between z^l and z^{l+1}, of one example.

    Attributes:
        above: the map from a^l to z^{l+1}.
        pool: from f(z^l) to a^l, or None.
        shape, z_shape: of a^l and of z^l.
        u: f(z^l), where it is pooled.
        outputs: n_L.
    """

    above: Any
    pool: Any
    shape: Shape
    z_shape: Shape
    u: Any
    outputs: int

    def weights(self, w: Any) -> Any:
        """w^{l+1} as a rule sees it."""
        plain = type(self.above) is Dense and self.pool is None and len(self.shape) == 1
        return w if plain else Operator(w, self)

    def feedback(self, b: Any) -> Any:
        """What a rule keeps for this layer: an array that is shaped as w^{l+1}, or as a matrix from
        all outputs to z^l, acts as such."""
        if b is None or isinstance(b, Operator) or not hasattr(b, "shape"):
            return b
        like_w = np.shape(b) == self.above.w_shape(self.shape)
        return self.weights(b) if like_w else self.direct(b)

    def direct(self, b: Any) -> Any:
        """A matrix from all outputs to z^l, which is not shaped as w^{l+1}, as an operator."""
        shape, like_w = getattr(b, "shape", None), self.above.w_shape(self.shape)
        if shape == (self.outputs, *self.z_shape) != like_w and len(self.z_shape) > 1:
            return Operator(b, Place(_Direct(), None, self.z_shape, self.z_shape, None, 0))
        return b


class _Direct:
    """A matrix from the outputs straight to z^l, (n_L, *positions, n_l). Where a pooling stands
    behind the last map, what δ^L adds up to over its positions goes through it."""

    def apply(self, w: Array, a: Array) -> Array:
        return jnp.tensordot(w, a, a.ndim)

    def transpose(self, w: Array, delta: Array, in_shape: Shape) -> Array:
        return jnp.tensordot(jnp.sum(delta.reshape(-1, delta.shape[-1]), axis=0), w, 1)


def places(net: Network, tape: Tape) -> list[Place]:
    """Of every hidden layer."""
    found = []
    layers = zip(net.maps[1:], net.pools, net.activations, tape.z[:-1], strict=False)
    for l, (above, pool, f, z) in enumerate(layers, start=1):
        u = None if pool is None else f.f(z)
        shape, z_shape = net.shapes[l], net.z_shapes[l - 1]
        found.append(Place(above, pool, shape, z_shape, u, net.shapes[-1][0]))
    return found
