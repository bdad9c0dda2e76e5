"""What is asked of g_i itself where weights are shared by positions: squares, products, spread.

Σ_p δ_p r_pᵀ has no rank to speak of, and its square does not factor. But one example's matrix is
soon made, and of a block of examples they are held at once; of all of them never.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.examples import sum_over_blocks
from jbackprop.core.maps import rows_of
from jbackprop.core.network import Layer
from jbackprop.core.numerics import power_of_two, wide
from jbackprop.core.sums import bias_sum
from jbackprop.quantities.layers import Shared

# matrices held at once, for all examples of a batch, in multiples of what the layer has on its tape
HELD = 4


def by_position(delta: Array) -> Float[Array, "B T n"]:
    """Every position's δ in a row, in float32 at least."""
    return wide(delta).reshape(len(delta), -1, delta.shape[-1])


def moment_of(layer: Shared, p: Float[Array, " B"]) -> tuple[Layer, Layer]:
    """Σ p_i g_i ⊙ g_i / unit² of w and b, and both units: in range, whatever δ and a are."""
    largest = lambda rows: power_of_two(jnp.max(jnp.abs(rows), axis=range(1, rows.ndim)))
    sums = by_position(layer.delta).sum(axis=1)
    of_delta, of_a, of_b = map(largest, (wide(layer.delta), wide(layer.a), sums))
    half = power_of_two(jnp.max(jnp.sqrt(of_delta) * jnp.sqrt(of_a)))
    least = float(jnp.finfo(half.dtype).tiny) ** 0.5
    half = jnp.clip(half, least, 1 / least)  # so that its square is a number too

    def one(delta: Array, a: Array, of_delta: Array, of_a: Array) -> Array:
        w, _ = layer.gradient(wide(delta) / of_delta, wide(a) / of_a)
        return jnp.square(w * (of_delta / half) * (of_a / half))

    w = layer.in_w_shape(layer.summed(p, one, layer.delta, layer.a, of_delta, of_a))
    b = jnp.max(of_b)
    return Layer(w, p @ jnp.square(sums / b)), Layer(half * half, b)


def products_of_matrices(one: Shared, other: Shared) -> tuple[Array, Array]:
    """⟨g_i, g'_j⟩ of w and of b, for all pairs of two batches, (B, B').

    By rows of w, as many at a time as may be held for all examples; of a map without rows by so
    many of its numbers."""
    sides = (one,) if one is other else (one, other)
    sums = [by_position(side.delta).sum(axis=1) for side in sides]
    has_rows = rows_of(one.map) is not None
    whole, length = one.matrix_shape if has_rows else (one.w_size, 1)
    on_tape = (one.delta.size + one.a.size) // len(one.a)
    parts = -(-whole // max(HELD * on_tape // length, 1))
    size = -(-whole // parts)
    filled = lambda v: jnp.pad(v, [(0, 0)] * (v.ndim - 1) + [(0, parts * size - v.shape[-1])])
    cut = lambda v, i: jax.lax.dynamic_slice_in_dim(v, i * size, size, axis=-1)

    def part(side: Shared, i: Array) -> Array:
        if has_rows:
            of_one, delta = lambda d, a: side.gradient(d, a)[0], cut(filled(side.delta), i)
        else:
            of_one, delta = lambda d, a: cut(filled(side.gradient(d, a)[0].ravel()), i), side.delta
        return side.of_each(of_one, delta, side.a).reshape(len(side.a), -1)

    def add(total: Array, i: Array) -> tuple[Array, tuple[()]]:
        found = [part(side, i) for side in sides]
        return total + found[0] @ found[-1].T, ()

    # zeros that vary over devices where what is added to them does
    nothing = jnp.zeros_like(sums[0][:, :1] * sums[-1][None, :, 0])
    of_w, _ = jax.lax.scan(add, nothing, jnp.arange(parts))
    return of_w, sums[0] @ sums[-1].T


class Apart(NamedTuple):
    """How far the g_i are from their mean, by how far δ_i and a_i are from theirs.

    Attributes:
        w, b: Σ p_i (g_i - ḡ)², of w in its shape.
        terms: Σ p_i of the squares of what was added up, with no sign: those of w.
    """

    w: Array
    b: Array
    terms: Array


def deviations_of(layer: Shared, p: Array, delta: Any, a: Any) -> Apart:
    """From δ_i = δ̄ + d_i and a_i = ā + e_i: with S(δ, a) = Σ_p δ_p r_p(a)ᵀ, which is bilinear,

    g_i = S(δ̄, ā) + S(d_i, a_i) + S(δ̄, e_i), and ḡ = S(δ̄, ā) + Σ p_i S(d_i, e_i)."""
    shaped = lambda rows, like: rows.reshape(-1, *like.shape[1:])
    d, e = shaped(delta.away, layer.delta), shaped(a.away, layer.a)
    mean = shaped(delta.mean, layer.delta)[0]
    of_all = layer.map.weighted_sum(p, d, e)

    def one(d: Array, a: Array, e: Array) -> tuple[Array, Array]:
        own, other = layer.gradient(d, a)[0], layer.gradient(mean, e)[0]
        away = own + other - of_all.reshape(own.shape)
        return jnp.square(away), jnp.square(jnp.abs(own) + jnp.abs(other))

    w, terms = layer.summed(p, one, d, shaped(a.rows, layer.a), e)
    sums = by_position(d).sum(axis=1) - bias_sum(p, d)[None]
    return Apart(layer.in_w_shape(w), p @ jnp.square(sums), layer.in_w_shape(terms))


def kronecker_of_positions(layer: Shared, p: Array, *, reduce: bool) -> tuple[Array, Array]:
    """(A, D) of rows and δ at all positions: each by itself, or all of an example's together."""
    rows = rows_of(layer.map)
    if rows is None:
        raise ValueError(
            f"factors: expected maps with rows, of whose products A is a mean, got {layer.map}"
        )
    deltas, a = by_position(layer.delta), wide(layer.a)

    def seen(a: Array) -> Array:
        found = wide(rows(a))
        return jnp.concatenate([found, jnp.ones((len(found), 1), found.dtype)], axis=1)

    if reduce:
        mean_row = layer.of_each(lambda a: seen(a).mean(axis=0), a)
        return mean_outer(p, mean_row), mean_outer(p, deltas.sum(axis=1))
    unit = jnp.max(column_units(p, a))
    of_block = lambda p, a: _outer(p, jax.vmap(seen)(present_rows(p, a) / unit))
    of_rows = sum_over_blocks(of_block, p, a, size=layer.block)
    units = jnp.full((1, len(of_rows)), unit).at[0, -1].set(1)
    return of_rows * units.T * units, mean_outer(p, deltas) / layer.positions


def mean_outer(p: Array, v: Float[Array, "B *T n"]) -> Float[Array, "n n"]:
    """Σ p_i v_i v_iᵀ: columns in units of their own, since a sum of products with both signs that
    are out of range would be no number."""
    unit = column_units(p, v)
    units = unit.reshape(1, -1)
    return _outer(p, present_rows(p, v) / unit) * units.T * units


def column_units(p: Array, v: Float[Array, "B *T n"]) -> Float[Array, "*ones n"]:
    """A power of two for every column, near the largest of its entries."""
    sizes = jnp.abs(present_rows(p, v))
    return power_of_two(jnp.max(sizes, axis=range(v.ndim - 1), keepdims=True))


def present_rows(p: Array, v: Array) -> Array:
    """Rows without weight are 0: in others' units they may be anything."""
    return jnp.where(jnp.expand_dims(p, range(1, v.ndim)) != 0, v, 0)


def _outer(p: Array, v: Array) -> Array:
    rows = lambda v: v.reshape(-1, v.shape[-1])
    return rows(jnp.expand_dims(p, range(1, v.ndim)) * v).T @ rows(v)
