"""The norm of g_i = Σ_p δ_ip r_p(a_i)ᵀ, where a weight is used at many positions.

Two ways lead there, of which the shapes say which is the shorter:

    ‖g_i‖² = Σ (Σ_p δ_p r_pᵀ)²               direct: g_i itself, T n n_in products
    ‖g_i‖² = Σ_pq (δ_p · δ_q)(r_p · r_q)     ghost: T² (n + n_in), where T (n + n_in) < n n_in

The second adds up numbers that may cancel: where they do, it is the first after all. Li et al.,
"Large Language Models Can Be Strong Differentially Private Learners", 2022, arXiv:2110.05679; Bu et
al., "Scalable and Efficient Training of Large Convolutional Neural Networks with Differential
Privacy", 2022, arXiv:2205.10683.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jbackprop.core.linear import rows_of, sees_at_most
from jbackprop.core.numerics import (
    SEEN,
    hypot,
    norm,
    norms_of_rows,
    power_of_two,
    root,
    rounding,
    safe_range,
    unless,
    wide,
)
from jbackprop.quantities.layers import Shared


class Norms(NamedTuple):
    """Of every example, (B,) each.

    Attributes:
        gradient: ‖g_i‖, w and b together.
        hidden: how much longer it may be: what rounding may have taken from a sum over positions,
            which cancel, and what it may add where δ is scaled.
    """

    gradient: Float[Array, " B"]
    hidden: Float[Array, " B"]


def prefers_ghost(layer: Shared) -> bool:
    """Whether products of positions are fewer than those that make a matrix."""
    n, n_in = layer.matrix_shape
    return rows_of(layer.map) is not None and layer.positions * (n + n_in) < n * n_in


def held_of(layer: Any) -> tuple[Array, Array] | None:
    """The g_i of a layer whose matrices, those of all examples, are less than what it has on its
    tape: whoever wants them twice need not make them twice."""
    if not isinstance(layer, Shared) or prefers_ghost(layer):
        return None
    if layer.w_size > (layer.delta.size + layer.a.size) // len(layer.a):
        return None
    return layer.of_each(layer.gradient, layer.delta, layer.a)


def norms_of(layer: Shared, present: Bool[Array, " B"], held: Any = None) -> Norms:
    """‖g_i‖ of a layer, right over the whole range of a dtype."""
    dtype, positions = wide(layer.delta).dtype, layer.positions

    def direct() -> Norms:
        lost = rounding(positions, dtype) * _absolute(layer)
        return Norms(_direct_norms(layer, present, held), lost)

    if not prefers_ghost(layer):
        return direct()
    squared, most = layer.of_each(lambda *pair: _ghost(layer, *pair), layer.delta, layer.a)
    low, high = safe_range(dtype)
    clear = (squared >= SEEN**2 * most) & (squared >= low) & (most <= high) | ~present

    def ghost() -> Norms:
        lost = rounding(max(positions**2, *layer.matrix_shape), dtype) * most
        return Norms(root(squared), root(squared + lost) - root(squared))

    return unless(jnp.all(clear), ghost, direct)


def _ghost(layer: Shared, delta: Array, a: Array) -> tuple[Array, Array]:
    """Σ_pq (δ_p · δ_q)(1 + r_p · r_q) of ONE example, and its most, (Σ_p ‖δ_p‖ ‖r̃_p‖)²."""
    rows: Any = rows_of(layer.map)
    by_position, seen = wide(delta).reshape(-1, delta.shape[-1]), rows(wide(a))
    of_delta, of_rows = by_position @ by_position.T, 1 + seen @ seen.T
    longest = jnp.sum(root(jnp.diagonal(of_delta) * jnp.diagonal(of_rows)))
    return jnp.sum(of_delta * of_rows), jnp.square(longest)


def _absolute(layer: Shared) -> Float[Array, " B"]:
    """At least Σ_p ‖δ_p‖ ‖r̃_p‖ of every example."""
    sees = math.sqrt(sees_at_most(layer.map, layer.a.shape[1:]))
    of_delta, of_a = (norms_of_rows(v.reshape(len(v), -1)) for v in (layer.delta, layer.a))
    ones = jnp.full_like(of_a, math.sqrt(layer.positions))
    return of_delta * jnp.where(of_delta == 0, 1, hypot(sees * of_a, ones))


def _direct_norms(layer: Shared, present: Bool[Array, " B"], held: Any) -> Float[Array, " B"]:
    """‖g_i‖ by g_i itself; of numbers whose squares leave the range, in units of their own."""
    low, high = safe_range(wide(layer.delta).dtype)

    def squared(w: Array, b: Array) -> Array:
        return jnp.sum(jnp.square(w)) + jnp.sum(jnp.square(b))

    def careful(delta: Array, a: Array) -> Array:
        (delta, of_delta), (a, of_a) = in_units(delta), in_units(a)
        w, b = (norms_of_rows(g.ravel()) for g in layer.gradient(delta, a))
        return norm(jnp.stack([w * (of_delta * of_a), b * of_delta]))

    if held is None:
        s = layer.of_each(lambda *pair: squared(*layer.gradient(*pair)), layer.delta, layer.a)
    else:
        s = jax.vmap(squared)(*held)
    fine = (s >= low) & (s <= high) | ~present
    one = lambda row: unless(row[0], lambda: root(row[1]), lambda: careful(*row[2:]))
    each = lambda: jax.lax.map(one, (fine, s, layer.delta, layer.a))
    return unless(jnp.all(fine), lambda: root(s), each)


def in_units(values: Array) -> tuple[Array, Array]:
    """v / unit, and that power of two, near the largest of them."""
    unit = power_of_two(jnp.max(jnp.abs(wide(values))))
    return wide(values) / unit, unit
