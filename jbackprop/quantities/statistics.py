"""Products of a batch's gradients g_i, from their factors: no example's gradient is formed.

Products of rank-one matrices are products of their factors. With ã = (a, 1) for w and b together:

    ⟨g_i, g_j⟩ = Σ_l (δ_i^l · δ_j^l) (ã_i^{l-1} · ã_j^{l-1}),  so ‖g_i‖² = Σ_l ‖δ_i^l‖² ‖ã_i^{l-1}‖²
    g_i ⊙ g_i  = (δ_i^l ⊙ δ_i^l) (ã_i^{l-1} ⊙ ã_i^{l-1})ᵀ

`cost` in a docstring is in multiples of the plain gradient's arithmetic, forward and backward, at a
network of equal widths n ≥ B. Squares and sums are taken in float32 at least. A row of weight 0 has
δ = 0 and so contributes nothing; else a weight enters means only, never g_i.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jbackprop.core.factors import Factors, rank_one
from jbackprop.core.numerics import (
    norms_of_rows,
    shares,
    unless,
    wide,
)
from jbackprop.quantities.arguments import as_direction, check_same_network
from jbackprop.quantities.norms import Pairs, in_range


def with_one(a: Float[Array, "B n"]) -> Float[Array, "B n1"]:
    """ã = (a, 1), in float32 at least."""
    return jnp.concatenate([wide(a), jnp.ones((len(a), 1), wide(a).dtype)], axis=1)


def directions(rows: Float[Array, "B n"]) -> tuple[Array, Array]:
    """v_i / ‖v_i‖ and ‖v_i‖."""
    size = norms_of_rows(rows)
    return wide(rows) / jnp.where(size == 0, 1, size)[:, None], size


def inner_products(factors: Factors, direction: Any) -> Float[Array, " B"]:
    """⟨g_i, v⟩ = Σ_l δ_i^l · (V^l a_i^{l-1} + v^l) for a direction v = (V^l, v^l), (B,). Cost: 1.

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
    layers = [*zip(rank_one(factors), direction, strict=True)]
    plain = plain_inner_products(factors, direction)

    def careful() -> Array:
        """The same as ‖g_i‖ times a projection of its direction."""
        total = jnp.zeros_like(factors.weight)
        for (delta, a), (w, b) in layers:
            (d, size), (augmented, length) = directions(delta), directions(with_one(a))
            shift = jnp.einsum("bk,jk->bj", augmented, jnp.concatenate([w, b[:, None]], axis=1))
            length = jnp.where(size == 0, 1, length)  # a δ of 0 passes no infinity on
            total += jnp.einsum("bj,bj->b", d, shift) * size * length
        return total

    return unless(in_range(factors), lambda: plain, careful)


def plain_inner_products(factors: Factors, direction: Any) -> Float[Array, " B"]:
    """Σ_l δ_i^l · (V^l a_i^{l-1} + v^l), where that is in range."""
    total = jnp.zeros_like(factors.weight)
    for (delta, a), (w, b) in zip(rank_one(factors), direction, strict=True):
        shift = jnp.einsum("bk,jk->bj", wide(a), wide(w)) + wide(b)[None]
        total += jnp.einsum("bj,bj->b", wide(delta), shift)
    return total


def gram(factors: Factors, other: Factors | None = None) -> Float[Array, "B B2"]:
    """⟨g_i, g_j⟩ = Σ_l (δ_i^l · δ_j^l) (1 + a_i^{l-1} · a_j^{l-1}), (B, B). Cost: ≤ 4/3 for B ≤ n.

    Args:
        factors: of a batch of B.
        other: of a batch of B' under the same network: then ⟨g_i, g'_j⟩, (B, B').

    Raises:
        ValueError: other belongs to a network of other sizes.
    """
    other = factors if other is None else other
    check_same_network(factors, other)
    return _gram(factors, other)


@jax.jit
def _gram(factors: Factors, other: Factors) -> Float[Array, "B B2"]:
    fine = in_range(factors) & in_range(other)
    return products_of_all(rank_one(factors), rank_one(other), fine)


def products_of_all(one: Pairs, other: Pairs, fine: Bool[Array, ""]) -> Float[Array, "B B2"]:
    """Σ_l (δ_i · δ'_j)(1 + a_i · a'_j); `fine` where the squares are in range."""
    pairs = [(*pair, *pair2) for pair, pair2 in zip(one, other, strict=True)]
    plain = sum(rank_one_products(*pair, fine) for pair in pairs)
    return unless(fine, lambda: plain, lambda: sum(_careful_products(*pair) for pair in pairs))


def _products(rows: Array, others: Array) -> Array:
    return jnp.einsum("in,jn->ij", rows, others, preferred_element_type=wide(rows).dtype)


def rank_one_products(delta: Array, a: Array, delta2: Array, a2: Array, fine: Any) -> Array:
    """(δ_i · δ'_j)(1 + a_i · a'_j) of all pairs; 0 where that is not in range."""
    keep = lambda products: jnp.where(fine, products, 0)
    return keep(_products(delta, delta2)) * (1 + keep(_products(a, a2)))


def _careful_products(delta: Array, a: Array, delta2: Array, a2: Array) -> Array:
    """The same as ‖g_i‖ ‖g'_j‖ times two cosines."""
    cosines, sizes = [], []
    for rows, others in ((delta, delta2), (with_one(a), with_one(a2))):
        (one, size), (two, size2) = directions(rows), directions(others)
        cosines.append(_products(one, two))
        sizes.append((size, size2))
    (d, d2), (n, n2) = sizes
    norms, norms2 = (x * jnp.where(x == 0, 1, y) for x, y in ((d, n), (d2, n2)))
    return cosines[0] * cosines[1] * norms[:, None] * norms2[None, :]


def kronecker_factors(factors: Factors) -> tuple[tuple[Array, Array], ...]:
    """(A_l, D_l) of every layer: E[ã ãᵀ] with ã = (a^{l-1}, 1), and E[δ^l (δ^l)ᵀ]. Cost: 2.

    Shapes (n_{l-1} + 1, n_{l-1} + 1) and (n_l, n_l); weighted means over the batch. δ belongs to
    the targets t of the batch, so A ⊗ D stands for the *empirical* Fisher matrix E[g gᵀ]. The
    Fisher matrix itself, and with it the Gauss-Newton matrix, takes t from the network's own
    output: pass factors of targets drawn from it. Martens and Grosse, "Optimizing Neural Networks
    with Kronecker-factored Approximate Curvature", 2015, arXiv:1503.05671; Kunstner et al.,
    "Limitations of the Empirical Fisher Approximation", 2019, arXiv:1905.12558.
    """
    p = shares(factors.weight)

    def mean_outer(v: Array) -> Array:
        return jnp.einsum("bi,bj->ij", p[:, None] * v, v)

    return tuple((mean_outer(with_one(a)), mean_outer(wide(d))) for d, a in rank_one(factors))
