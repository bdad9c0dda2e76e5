"""A layer of a batch: δ_i and a_i, and how the gradient of every example comes of them.

    used once     g_i = δ_i a_iᵀ             `RankOne`: what is asked of g_i is asked of its factors
    used at many  g_i = Σ_p δ_ip r_p(a_i)ᵀ   `Shared`: no rank to speak of; g_i itself is looked at,
                                             a block of examples at a time

Both are bilinear in (δ, a), and ⟨g_i, V⟩ = δ_i · (V a_i): a forward pass through V.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.examples import block_size, over_examples, sum_over_blocks
from jbackprop.core.factors import Factors
from jbackprop.core.linear import Dense
from jbackprop.core.maps import over_positions, rows_of, shaped
from jbackprop.core.numerics import wide


@dataclass(frozen=True, eq=False)
class RankOne:
    """Of a matrix that is used once: δ_i (B, n) and a_i (B, m)."""

    delta: Array
    a: Array

    def through(self, w: Array, a: Float[Array, "B _"]) -> Float[Array, "B _"]:
        """w a of every row."""
        return jnp.einsum("bk,jk->bj", wide(a), wide(w))

    def back(self, w: Array, delta: Float[Array, " _"]) -> Float[Array, " _"]:
        """wᵀ δ."""
        return delta @ w

    def at_positions(self, b: Array) -> Array:
        """b, once."""
        return b


@dataclass(frozen=True, eq=False)
class Shared:
    """Of a matrix that is used at many positions: δ_i (B, *positions, n) and a_i (B, *in_shape).

    Rows that come flattened, as those of `flat_pairs`, are (B, all of it)."""

    map: Any
    delta: Array
    a: Array

    @property
    def positions(self) -> int:
        """T."""
        return math.prod(self.delta.shape[1:-1])

    @property
    def w_size(self) -> int:
        """How many numbers w has."""
        return math.prod(self.map.w_shape(self.a.shape[1:]))

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """(n, n_in), as if there were rows."""
        n = self.delta.shape[-1]
        return n, self.w_size // n

    @property
    def block(self) -> int:
        """Examples whose rows and matrices are held at once."""
        n, n_in = self.matrix_shape
        numbers = self.positions * (n + n_in) + self.w_size
        return block_size(len(self.a), 4 * numbers, least=4)

    def of_each(self, f: Callable[..., Any], *batched: Any) -> Any:
        """f of every example, stacked."""
        return over_examples(f, *batched, size=self.block)

    def summed(self, p: Float[Array, " B"], f: Callable[..., Any], *batched: Any) -> Any:
        """Σ_i p_i f(example i): as a product with p, since XLA takes a CPU ten times as long to add
        up over examples what it has just multiplied."""

        def of_block(p: Array, *block: Any) -> Any:
            weighted = lambda v: jnp.tensordot(p, v, 1, precision="highest")
            return jax.tree.map(weighted, jax.vmap(f)(*block))

        return sum_over_blocks(of_block, p, *batched, size=self.block)

    def in_w_shape(self, w: Array) -> Array:
        """A matrix as w is shaped."""
        return w.reshape(self.map.w_shape(self.a.shape[1:]))

    def gradient(self, delta: Array, a: Array) -> tuple[Array, Array]:
        """(g, ∂C/∂b) of ONE example, in float32 at least: as a matrix (n, n_in), or in the shape of
        w where the map has no rows."""
        rows = rows_of(self.map)
        if rows is None:
            return over_positions(self.map, wide(delta), wide(a))
        by_position = wide(delta).reshape(-1, delta.shape[-1])
        seen = (len(by_position), self.matrix_shape[1])
        seen = shaped(self.map, "rows(a)", rows(wide(a)), seen)
        return by_position.T @ seen, by_position.sum(axis=0)

    def through(self, w: Array, a: Float[Array, "B _"]) -> Float[Array, "B _"]:
        """w a of every row."""
        inputs = wide(a).reshape(len(a), *self.a.shape[1:])
        return jax.vmap(self.map.apply, (None, 0))(wide(w), inputs).reshape(len(a), -1)

    def back(self, w: Array, delta: Float[Array, " _"]) -> Float[Array, " _"]:
        """wᵀ δ."""
        delta = delta.reshape(self.delta.shape[1:])
        return self.map.transpose(w, delta, self.a.shape[1:]).ravel()

    def at_positions(self, b: Array) -> Array:
        """b at each of them."""
        return jnp.tile(b, self.positions)


Some = RankOne | Shared


def layers_of(factors: Factors) -> list[Some]:
    """Every layer of a batch."""
    maps = [used.map for used in factors.maps] or [None] * len(factors.delta)
    return [*map(layer_of, maps, factors.delta, factors.tape.a)]


def layer_of(linear: Any, delta: Array, a: Array) -> Some:
    """One of them; no map stands for a matrix between vectors."""
    if linear is None or type(linear) is Dense:
        return RankOne(delta, a if a.ndim == 2 else a.reshape(len(a), -1))
    return Shared(linear, delta, a)


def by_kind(layers: list[Some], of_vectors: Any, of_shared: Any, *beside: Any) -> list[Any]:
    """What `of_vectors` says of all that are used once, together, and `of_shared` of each other
    layer, in their order; each is given the same of the lists beside them."""
    rows = [*zip(layers, *beside, strict=True)]
    once = [row for row in rows if isinstance(row[0], RankOne)]
    told = iter(of_vectors(*map(list, zip(*once, strict=True))) if once else ())
    return [of_shared(*row) if isinstance(row[0], Shared) else next(told) for row in rows]


def flat_pairs(layers: list[Any]) -> list[tuple[Array, Array]]:
    """(δ, a) of every layer, all of an example's numbers in a row."""
    flat = lambda rows: rows if rows.ndim == 2 else rows.reshape(len(rows), -1)
    return [(flat(layer.delta), flat(layer.a)) for layer in layers]
