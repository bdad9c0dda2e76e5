"""Products of a batch's gradients g_i, from their factors: no example's gradient is formed.

Products of rank-one matrices are products of their factors. With ã = (a, 1) for w and b together:

    ⟨g_i, g_j⟩ = Σ_l (δ_i^l · δ_j^l) (ã_i^{l-1} · ã_j^{l-1}),  so ‖g_i‖² = Σ_l ‖δ_i^l‖² ‖ã_i^{l-1}‖²
    g_i ⊙ g_i  = (δ_i^l ⊙ δ_i^l) (ã_i^{l-1} ⊙ ã_i^{l-1})ᵀ

`cost` in a docstring is in multiples of the plain gradient's arithmetic, forward and backward, at a
network of equal widths n ≥ B. Squares and sums are taken in float32 at least. A row of weight 0 has
δ = 0 and so contributes nothing; else a weight enters means only, never g_i.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.factors import Factors
from jbackprop.core.numerics import (
    norms_of_rows,
    shares,
    unless,
    wide,
)
from jbackprop.core.placement import by_example, everywhere, placed
from jbackprop.quantities.arguments import as_direction, check_same_network
from jbackprop.quantities.ghost import in_units
from jbackprop.quantities.layers import RankOne, Shared, Some, flat_pairs, layers_of
from jbackprop.quantities.matrices import kronecker_of_positions, mean_outer, products_of_matrices
from jbackprop.quantities.norms import all_in_range, in_range


def with_one(a: Float[Array, "B n"]) -> Float[Array, "B n1"]:
    """ã = (a, 1), in float32 at least."""
    return jnp.concatenate([wide(a), jnp.ones((len(a), 1), wide(a).dtype)], axis=1)


def directions(rows: Float[Array, "B n"]) -> tuple[Array, Array]:
    """v_i / ‖v_i‖ and ‖v_i‖."""
    size = norms_of_rows(rows)
    return wide(rows) / jnp.where(size == 0, 1, size)[:, None], size


@placed(by_example("factors"))
def inner_products(factors: Factors, direction: Any) -> Float[Array, " B"]:
    """Products of every example's gradient with a direction:
    ⟨g_i, v⟩ = Σ_l δ_i^l · (V^l a_i^{l-1} + v^l) for v = (V^l, v^l), (B,). Cost: 1.

    That is a forward pass of a^{l-1} through V^l: with the δ's, 1/3 more than the pass alone.

    Args:
        factors: of a batch.
        direction: (V^l, v^l) per layer, shaped as the parameters.

    Raises:
        ValueError: direction has other shapes than a gradient of these factors.
    """
    return _inner_products(factors, as_direction(factors, direction))


@jax.jit
def _inner_products(factors: Factors, direction: Any) -> Float[Array, " B"]:
    layers = layers_of(factors)
    plain = plain_inner_products(layers, direction)

    def careful() -> Array:
        """The same as ‖δ_i‖ ‖ã_i‖ times what their directions give."""
        total = jnp.zeros_like(factors.weight)
        triples = zip(layers, flat_pairs(layers), direction, strict=True)
        for layer, (delta, a), (w, b) in triples:
            (d, size), (augmented, length) = directions(delta), directions(with_one(a))
            shift = layer.through(w, augmented[:, :-1])
            shift += augmented[:, -1:] * layer.at_positions(wide(b))[None]
            length = jnp.where(size == 0, 1, length)  # a δ of 0 passes no infinity on
            total += jnp.einsum("bj,bj->b", d, shift) * size * length
        return total

    return unless(in_range(factors), lambda: plain, careful)


def plain_inner_products(layers: list[Some], direction: Any) -> Float[Array, " B"]:
    """Σ_l δ_i^l · (V^l a_i^{l-1} + v^l), where that is in range."""
    total = jnp.zeros((), wide(layers[0].delta).dtype)
    triples = zip(layers, flat_pairs(layers), direction, strict=True)
    for layer, (delta, a), (w, b) in triples:
        shift = layer.through(w, a) + layer.at_positions(wide(b))[None]
        total += jnp.einsum("bj,bj->b", wide(delta), shift)
    return total


@placed(by_example("factors"))
def gram(factors: Factors, other: Factors | None = None) -> Float[Array, "B B2"]:
    """Products of all pairs of examples' gradients:
    ⟨g_i, g_j⟩ = Σ_l (δ_i^l · δ_j^l) (1 + a_i^{l-1} · a_j^{l-1}), (B, B). Cost: ≤ 4/3 for B ≤ n.

    Args:
        factors: of a batch of B.
        other: of a batch of B' under the same network: then ⟨g_i, g'_j⟩, (B, B').

    Raises:
        ValueError: other belongs to a network of other sizes.
    """
    if other is not None:
        check_same_network(factors, other)
    return _gram(factors, other)


@jax.jit
def _gram(factors: Factors, other: Factors | None) -> Float[Array, "B B2"]:
    layers, present = layers_of(factors), factors.weight != 0
    if other is None:
        return products_of_all(layers, layers, present, present)
    return products_of_all(layers, layers_of(other), present, other.weight != 0)


def products_of_all(
    one: Sequence[Some], other: Sequence[Some], present: Any, present2: Any
) -> Float[Array, "B B2"]:
    """Σ_l ⟨g_i^l, g'_j^l⟩."""
    pairs = [*zip(one, other, strict=True)]
    total = sum(_products_in_units(u, v) for u, v in pairs if isinstance(u, Shared))
    once: list[Any] = [(u, v) for u, v in pairs if isinstance(u, RankOne)]
    if once:
        sides = [*zip(*once, strict=True)]
        fine = all_in_range(sides[0], present) & all_in_range(sides[1], present2)
        plain = sum(plain_products(u, v, fine) for u, v in once)
        careful = lambda: sum(_careful_products(u, v) for u, v in once)
        total += unless(fine, lambda: plain, careful)
    return total  # pyright: ignore


def _products(rows: Array, others: Array) -> Array:
    return jnp.einsum("in,jn->ij", rows, others, preferred_element_type=wide(rows).dtype)


def plain_products(one: RankOne, other: RankOne, fine: Any) -> Array:
    """(δ_i · δ'_j)(1 + a_i · a'_j) of all pairs; 0 where that is not in range."""
    keep = lambda products: jnp.where(fine, products, 0)
    return keep(_products(one.delta, other.delta)) * (1 + keep(_products(one.a, other.a)))


def _careful_products(one: RankOne, other: RankOne) -> Array:
    """The same as ‖g_i‖ ‖g'_j‖ times two cosines."""
    cosines, sizes = [], []
    for rows, others in ((one.delta, other.delta), (with_one(one.a), with_one(other.a))):
        (u, size), (v, size2) = directions(rows), directions(others)
        cosines.append(_products(u, v))
        sizes.append((size, size2))
    (d, d2), (n, n2) = sizes
    norms, norms2 = (x * jnp.where(x == 0, 1, y) for x, y in ((d, n), (d2, n2)))
    return cosines[0] * cosines[1] * norms[:, None] * norms2[None, :]


def _products_in_units(one: Shared, other: Any) -> Array:
    """By matrices of δ_i and a_i, each in units of its own."""
    units = lambda side: [jax.vmap(in_units)(rows) for rows in (side.delta, side.a)]
    (d, of_d), (a, of_a) = units(one)
    scaled = scaled2 = replace(one, delta=d, a=a)
    of_d2, of_a2 = of_d, of_a
    if other is not one:
        (d2, of_d2), (a2, of_a2) = units(other)
        scaled2 = replace(other, delta=d2, a=a2)
    w, b = products_of_matrices(scaled, scaled2)
    of_w = w * (of_d * of_a)[:, None] * (of_d2 * of_a2)[None, :]
    return of_w + b * of_d[:, None] * of_d2[None, :]


@placed(everywhere)
def kronecker_factors(
    factors: Factors, *, sharing: str = "expand"
) -> tuple[tuple[Array, Array], ...]:
    """K-FAC's two matrices of every layer, (A_l, D_l):
    E[ã ãᵀ] with ã = (a^{l-1}, 1), and E[δ^l (δ^l)ᵀ]. Cost: 2.

    Shapes (n_in + 1, n_in + 1) and (n_l, n_l); weighted means over the batch. δ belongs to the
    targets t of the batch, so A ⊗ D stands for the empirical Fisher matrix E[g gᵀ]. The Fisher
    matrix itself, and with it the Gauss-Newton matrix, takes t from the network's own output: pass
    factors of targets drawn from it. Martens and Grosse, "Optimizing Neural Networks with
    Kronecker-factored Approximate Curvature", 2015, arXiv:1503.05671; Kunstner et al., "Limitations
    of the Empirical Fisher Approximation", 2019, arXiv:1905.12558.

    Args:
        factors: of a batch.
        sharing: what stands for the T positions of a convolution, whose rows are r̃_p = (r_p, 1).
            "expand", each of them by itself: E[Σ_p r̃_p r̃_pᵀ] and E[Σ_p δ_p δ_pᵀ] / T (Grosse and
            Martens, 2016, arXiv:1602.01407). "reduce", all of them together: E[r̄ r̄ᵀ] of the mean
            r̄ over positions, and E[s sᵀ] of the sum s of δ (Eschenhagen et al., 2023,
            arXiv:2311.00636).

    Raises:
        ValueError: sharing is another word; a map of one's own has no rows.
    """
    if sharing not in ("expand", "reduce"):
        raise ValueError(f'sharing: expected "expand" or "reduce", got {sharing!r}')
    p = shares(factors.weight)

    def of_layer(layer: Some) -> tuple[Array, Array]:
        if isinstance(layer, RankOne):
            return mean_outer(p, with_one(layer.a)), mean_outer(p, wide(layer.delta))
        return kronecker_of_positions(layer, p, reduce=sharing == "reduce")

    return tuple(of_layer(layer) for layer in layers_of(factors))
