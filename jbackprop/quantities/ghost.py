"""The norm of g_i = Σ_p δ_ip r_p(a_i)ᵀ, where a weight is used at many positions.

Two ways lead there, of which the shapes say which is the shorter:

    ‖g_i‖² = Σ (Σ_p δ_p r_pᵀ)²               direct: g_i itself, T n n_in products
    ‖g_i‖² = Σ_pq (δ_p · δ_q)(r_p · r_q)     ghost: T² (n + n_in), where that is less than half

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

from jbackprop.core.linear import sees_at_most
from jbackprop.core.maps import rows_of
from jbackprop.core.numerics import (
    SEEN,
    hypot,
    power_of_two,
    product,
    root,
    rounding,
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
        delta, a: ‖δ_i‖ and ‖a_i‖, of all that an example has.
    """

    gradient: Float[Array, " B"]
    hidden: Float[Array, " B"]
    delta: Float[Array, " B"]
    a: Float[Array, " B"]


def prefers_ghost(layer: Shared) -> bool:
    """Whether products of positions are fewer by half than those that make a matrix: they are small
    ones, and where they are as many they took longer on a CPU."""
    n, n_in = layer.matrix_shape
    return rows_of(layer.map) is not None and 2 * layer.positions * (n + n_in) < n * n_in


class Held(NamedTuple):
    """The g_i of a layer, each in units of its own: g_i is w_i of_w_i and b_i of_b_i, (B, …).

    Beside them ‖δ_i‖ and ‖a_i‖, taken while a block is close at hand: a pass over the whole batch
    for them would need all of δ at a time when poolings hold thrice as much."""

    w: Array
    b: Array
    of_w: Float[Array, " B"]
    of_b: Float[Array, " B"]
    delta: Float[Array, " B"]
    a: Float[Array, " B"]


def held_of(layer: Any) -> Held | None:
    """Those of a layer whose matrices, of all examples, are at most half of what its tape holds:
    whoever wants them twice need not make them twice."""
    if not isinstance(layer, Shared) or prefers_ghost(layer):
        return None
    if 2 * layer.w_size > (layer.delta.size + layer.a.size) // len(layer.a):
        return None
    return layer.of_each(lambda *pair: _in_units_of_its_own(layer, *pair), layer.delta, layer.a)


def _in_units_of_its_own(layer: Shared, delta: Array, a: Array) -> Held:
    (delta, of_delta), (a, of_a) = in_units(delta), in_units(a)
    lengths = _length(delta) * of_delta, _length(a) * of_a
    return Held(*layer.gradient(delta, a), of_delta * of_a, of_delta, *lengths)


def norms_of(layer: Shared, present: Bool[Array, " B"], held: Any = None) -> Norms:
    """‖g_i‖ of a layer, right over the whole range of a dtype: δ_i and a_i are taken in units of
    their own."""
    dtype, positions = wide(layer.delta).dtype, layer.positions

    def direct() -> Norms:
        # what a weight is a sum over; without rows it may be in every output
        terms = positions if rows_of(layer.map) else layer.delta[0].size
        norms, delta, a = _direct_norms(layer, held)
        return Norms(norms, rounding(terms, dtype) * _absolute(layer, delta, a), delta, a)

    if not prefers_ghost(layer):
        return direct()
    found = layer.of_each(lambda *pair: _ghost(layer, *pair), layer.delta, layer.a)
    squared, most, of_w, of_b, b_most, delta, a = found

    def ghost() -> Norms:
        w, of_sum = root(squared), rounding(positions, dtype)
        lost = rounding(max(positions**2, *layer.matrix_shape), dtype) * most
        hidden = product(root(squared + lost) - w + of_sum * root(most), of_w) + of_sum * b_most
        return Norms(hypot(product(w, of_w), of_b), hidden, delta, a)

    clear = (squared >= SEEN**2 * most) | ~present
    # each by itself: what one example is may not change how another is clipped
    either = lambda: jax.tree.map(lambda u, v: jnp.where(clear, u, v), ghost(), direct())
    return unless(jnp.all(clear), ghost, either)


def _ghost(layer: Shared, delta: Array, a: Array) -> tuple[Array, ...]:
    """Of ONE example: Σ_pq (δ_p · δ_q)(r_p · r_q) and its most, (Σ_p ‖δ_p‖ ‖r_p‖)², in a unit
    squared; that unit; ‖Σ_p δ_p‖ and its most; ‖δ‖ and ‖a‖."""
    rows: Any = rows_of(layer.map)
    (delta, of_delta), (a, of_a) = in_units(delta), in_units(a)
    length_delta, length_a = _length(delta) * of_delta, _length(a) * of_a
    by_position, seen = delta.reshape(-1, delta.shape[-1]), rows(a)
    of_deltas, of_rows = by_position @ by_position.T, seen @ seen.T
    lengths = root(jnp.diagonal(of_deltas))
    most = jnp.square(jnp.sum(lengths * root(jnp.diagonal(of_rows))))
    b = _length(by_position.sum(axis=0))
    of_both = of_delta * of_a, b * of_delta, jnp.sum(lengths) * of_delta
    return jnp.sum(of_deltas * of_rows), most, *of_both, length_delta, length_a


def _absolute(layer: Shared, of_delta: Array, of_a: Array) -> Float[Array, " B"]:
    """At least Σ_p ‖δ_p‖ ‖r̃_p‖ of every example."""
    sees = math.sqrt(sees_at_most(layer.map, layer.a.shape[1:]))
    ones = jnp.full_like(of_a, math.sqrt(layer.positions))
    return of_delta * jnp.where(of_delta == 0, 1, hypot(sees * of_a, ones))


def _direct_norms(layer: Shared, held: Held | None) -> tuple[Array, Array, Array]:
    """‖g_i‖ by g_i itself; ‖δ_i‖ and ‖a_i‖."""

    def of_one(g: Held) -> tuple[Array, Array, Array]:
        w, b = _length(g.w), _length(g.b)
        return hypot(product(w, g.of_w), b * g.of_b), g.delta, g.a

    if held is not None:
        return jax.vmap(of_one)(held)
    one = lambda *pair: of_one(_in_units_of_its_own(layer, *pair))
    return layer.of_each(one, layer.delta, layer.a)


def _length(values: Array) -> Array:
    """‖v‖ of ONE example, near 1 in size."""
    return root(jnp.sum(jnp.square(values)))


def in_units(values: Array) -> tuple[Array, Array]:
    """v / unit of ONE example, and that power of two, near the largest of them."""
    unit = power_of_two(jnp.max(jnp.abs(wide(values))))
    return wide(values) / unit, unit
