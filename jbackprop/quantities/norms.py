"""The norm of every example's gradient, from its factors: ‖g_i^l‖ = ‖δ_i^l‖ ‖ã_i^{l-1}‖.

With ã = (a, 1), for w and b together. No gradient is formed: the backward pass stops at δ. Where
weights are shared by positions, `ghost.py` has the norm.
Goodfellow, "Efficient Per-Example Gradient Computations", 2015, arXiv:1510.01799.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jbackprop.core.factors import Factors
from jbackprop.core.numerics import (
    hypot,
    norm,
    norms_of_rows,
    root,
    safe_range,
    square,
    squared_rows,
    unless,
    wide,
)
from jbackprop.core.placement import by_example, placed
from jbackprop.quantities.ghost import norms_of
from jbackprop.quantities.layers import RankOne, Shared, Some, by_kind, flat_pairs, layers_of

Pairs = list[tuple[Array, Array]]  # (δ^l, a^{l-1}) of every layer, all of an example in a row


def _squares(pairs: Pairs) -> tuple[Array, Array]:
    """‖δ_i^l‖² and 1 + ‖a_i^{l-1}‖², (B, L) each."""
    delta = jnp.stack([squared_rows(d) for d, _ in pairs], axis=-1)
    return delta, 1 + jnp.stack([squared_rows(a) for _, a in pairs], axis=-1)


def _fine(delta: Array, a: Array) -> Bool[Array, "B L"]:
    low, high = safe_range(delta.dtype)
    return (delta >= low) & (delta <= high / a)


def pairs_in_range(pairs: Pairs) -> Bool[Array, "B L"]:
    """Whether squares of δ and a, and their products, lose nothing. (A δ of 0 is doubted.)"""
    return _fine(*_squares(pairs))


def in_range(factors: Factors) -> Bool[Array, ""]:
    """Whether that is so for every row that is present."""
    return all_in_range(layers_of(factors), factors.weight != 0)


def all_in_range(layers: Sequence[Some], present: Bool[Array, " B"]) -> Bool[Array, ""]:
    """Whether it is so of these layers."""
    return jnp.all(pairs_in_range(flat_pairs([*layers])) | ~present[:, None])


class Lengths(NamedTuple):
    """The norms of every example and layer, right over the whole range of a dtype; (B, L) each.

    Attributes:
        delta: ‖δ_i^l‖.
        a: ‖ã_i^{l-1}‖.
        gradient: ‖g_i^l‖, their product where a matrix is used once.
        hidden: how much longer a sum over positions may be than rounding lets it look.
    """

    delta: Float[Array, "..."]
    a: Float[Array, "..."]
    gradient: Float[Array, "..."]
    hidden: Float[Array, "..."]


@jax.jit
def lengths(factors: Factors, held: Any = None) -> Lengths:
    """By squares, or the longer way where a square would be out of range; `held` as in `held_of`
    of every layer."""
    layers, present = layers_of(factors), factors.weight != 0

    def of_vectors(layers: list[RankOne], _: Any) -> list[Lengths]:
        delta, a = _lengths_of_pairs(flat_pairs(layers), present)
        # a δ of 0 passes nothing on, however long a is
        gradient = delta * jnp.where(delta == 0, 1, a)
        columns = Lengths(delta, a, gradient, jnp.zeros_like(delta))
        return [Lengths(*(v[:, l] for v in columns)) for l in range(len(layers))]

    def of_shared(layer: Shared, own: Any) -> Lengths:
        found = norms_of(layer, present, own)
        augmented = hypot(found.a, jnp.ones_like(found.a))
        return Lengths(found.delta, augmented, found.gradient, found.hidden)

    columns = by_kind(layers, of_vectors, of_shared, held or [None] * len(layers))
    return Lengths(*(jnp.stack(each, axis=-1) for each in zip(*columns, strict=True)))


def _lengths_of_pairs(pairs: Pairs, present: Bool[Array, " B"]) -> tuple[Array, Array]:
    """‖δ_i^l‖ and ‖ã_i^{l-1}‖."""
    delta, a = _squares(pairs)

    def careful() -> tuple[Array, Array]:
        columns = lambda norms: jnp.stack([*norms], axis=-1)
        # the 1 that was added to a square matters to no choice of a scale
        d = columns(norms_of_rows(v, s) for (v, _), s in zip(pairs, delta.T, strict=True))
        b = columns(norms_of_rows(v, s) for (_, v), s in zip(pairs, a.T, strict=True))
        return d, hypot(b, jnp.ones_like(b))

    fine = jnp.all(_fine(delta, a) | ~present[:, None])
    return unless(fine, lambda: (root(delta), jnp.sqrt(a)), careful)


def example_norms(factors: Factors) -> Float[Array, " B"]:
    """‖g_i‖ of every example, right wherever it is a number of the dtype."""
    return norm(lengths(factors).gradient)


@placed(by_example("factors"))
@jax.jit
def layer_squared_norms(factors: Factors) -> Float[Array, "B L"]:
    """Squared gradient norms by example and layer:
    ‖g_i^l‖² = ‖δ_i^l‖² (1 + ‖a_i^{l-1}‖²), (B, L). Cost: 2/3.

    Of a convolution ‖Σ_p δ_ip r_p(a_i)ᵀ‖² + ‖Σ_p δ_ip‖², at about the cost of a gradient. Infinite
    or 0 only where the square itself is out of range. Goodfellow, 2015, arXiv:1510.01799.
    """
    return jnp.square(lengths(factors).gradient)


@placed(by_example("factors"))
@jax.jit
def squared_norms(factors: Factors) -> Float[Array, " B"]:
    """Squared gradient norms of all examples:
    ‖g_i‖² = Σ_l ‖δ_i^l‖² (1 + ‖a_i^{l-1}‖²), (B,). Cost: 2/3.

    Of convolutions see `layer_squared_norms`. Goodfellow, 2015, arXiv:1510.01799.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((2, 1))
    >>> params = [(jnp.ones((1, 2)), jnp.zeros(1))]
    >>> factors = jb.backprop(net, params, jnp.array([[2.0, 0.0]]), jnp.array([[1.0]]))
    >>> jb.squared_norms(factors).round(4).tolist()  # δ = 1 and ã = (2, 0, 1)
    [5.0]
    """
    return jnp.sum(layer_squared_norms(factors), axis=-1)


def squared_norm(gradient: Any) -> Float[Array, " L"]:
    """‖g^l‖² of every layer, w and b together, of one gradient."""
    return jnp.stack([sum(jnp.sum(square(leaf)) for leaf in layer) for layer in gradient])


@jax.jit
def norm_of_layers(gradient: Any) -> Float[Array, " L"]:
    """‖g^l‖ of every layer, w and b together, of one gradient of any size."""
    low, high = safe_range(wide(jax.tree.leaves(gradient)[0]).dtype)

    def careful() -> Array:
        flat = [jnp.stack([norms_of_rows(v.ravel()) for v in layer]) for layer in gradient]
        return norm(jnp.stack(flat))

    squared = squared_norm(gradient)
    return unless(jnp.all((squared >= low) & (squared <= high)), lambda: root(squared), careful)
