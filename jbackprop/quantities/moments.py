"""Element by element: the second moment of the examples' gradients, and their variance.

    g_i ⊙ g_i = (δ_i ⊙ δ_i) (a_i ⊙ a_i)ᵀ, and with δ_i = δ̄ + d_i, a_i = ā + e_i about their means
    Σ p_i (g_i - ḡ)² = Σ p_i d_i² a_i² + 2 δ̄ Σ p_i d_i a_i e_i + δ̄² Σ p_i e_i² - (Σ p_i d_i e_i)²

Where the mean dwarfs the spread the second line keeps what Σ p_i g_i² - ḡ² loses. As in
`spread.py`, it is asked for only where that loss is seen, and of the two the one whose terms are
smaller is taken: here entry by entry.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.factors import Factors, mean_gradient
from jbackprop.core.network import Layer, Params
from jbackprop.core.numerics import (
    SEEN,
    norms_of_rows,
    over_total,
    power_of_two,
    root,
    shares,
    square,
    unit,
    unless,
    wide,
)
from jbackprop.core.placement import everywhere, placed
from jbackprop.core.sums import bias_sum, outer_sum
from jbackprop.quantities.layers import RankOne, Shared, by_kind, layers_of
from jbackprop.quantities.matrices import deviations_of, moment_of
from jbackprop.quantities.norms import all_in_range
from jbackprop.quantities.spread import centred, product_of_deviations


@placed(everywhere)
@jax.jit
def second_moment(factors: Factors) -> Params:
    """The mean square of the examples' gradients, entry by entry, not centred:
    Σ_i w_i g_i ⊙ g_i / Σ_i w_i. Cost: 4/3.

    Its sum over elements is the numerator of the diagonal Takeuchi criterion: see `takeuchi`. Of a
    population it is an unbiased estimate; 0 where all weights are 0.
    """
    p, weight = shares(factors.weight), factors.weight

    def of_vectors(layers: list[RankOne]) -> tuple[Layer, ...]:
        careful = lambda: tuple(_in_units(*found) for found in _balanced_squares(layers, p))
        return unless(all_in_range(layers, weight != 0), lambda: _squares(layers, weight), careful)

    of_shared = lambda layer: _in_units(*moment_of(layer, p))
    return tuple(by_kind(layers_of(factors), of_vectors, of_shared))


def _squares(layers: list[RankOne], weight: Float[Array, " B"]) -> tuple[Layer, ...]:
    weight = unit(weight)

    def of_layer(layer: RankOne) -> Layer:
        delta, a = square(layer.delta), square(layer.a)
        return Layer(outer_sum(weight, delta, a), bias_sum(weight, delta))

    return jax.tree.map(lambda g: g * over_total(weight), tuple(map(of_layer, layers)))


def _in_units(layer: Layer, units: Layer) -> Layer:
    """Squares times units²; one after the other, since a unit's square may be out of range."""
    return jax.tree.map(lambda v, u: v * u * u, layer, units)


def _balanced_squares(layers: list[RankOne], p: Float[Array, " B"]) -> list[tuple[Layer, Layer]]:
    """(Σ p_i g_i² / unit², unit) of every layer, w and b: both factors of w made equally long."""
    found = []

    def balanced(delta: Array, a: Array) -> tuple[Array, Array]:
        sizes = norms_of_rows(delta), norms_of_rows(a)
        product = sizes[0] * jnp.where(sizes[0] == 0, 1, sizes[1])
        largest = power_of_two(jnp.max(product))
        length = root(product / largest)
        halves = (
            square(v / jnp.where(size == 0, 1, size)[:, None] * length[:, None])
            for v, size in zip((delta, a), sizes, strict=True)
        )
        return jnp.einsum("b,bj,bk->jk", p, *halves), largest

    for layer in layers:
        delta, a = wide(layer.delta), wide(layer.a)
        w, of_w = balanced(delta, a)
        of_b = power_of_two(jnp.max(norms_of_rows(delta)))
        found.append((Layer(w, p @ jnp.square(delta / of_b)), Layer(of_w, of_b)))
    return found


class Deviations(NamedTuple):
    """Element by element: Σ p_i (g_i - ḡ)² / unit² beside ḡ, a unit for every w and b."""

    mean: Params
    variance: Params
    unit: Any


@jax.jit
def deviations(factors: Factors) -> Deviations:
    """The mean of the examples' gradients and their variance, element by element."""
    mean = jax.tree.map(wide, mean_gradient(factors))
    layers, p, weight = layers_of(factors), shares(factors.weight), factors.weight
    nobody = jnp.all(weight == 0)
    none_lost = lambda moment, mean: jnp.all(moment - mean**2 >= SEEN * moment)

    def of_vectors(layers: list[RankOne], mean: list[Layer]) -> Any:
        moment = _squares(layers, weight)
        # worked out twice, once to look at: what passes through a condition is copied
        leaves = zip(jax.tree.leaves(moment), jax.tree.leaves(mean), strict=True)
        clear = jnp.stack([none_lost(*pair) for pair in leaves]).all()
        one = jnp.ones_like(weight, shape=())
        plain = lambda: [
            (Layer(w - g.w**2, b - g.b**2), Layer(one, one))
            for (w, b), g in zip(moment, mean, strict=True)
        ]
        fine = clear & all_in_range(layers, weight != 0) | nobody
        return unless(fine, plain, lambda: _careful_variance(layers, p, mean))

    def of_shared(layer: Shared, mean: Layer) -> tuple[Layer, Layer]:
        (w, b), units = moment_of(layer, p)
        g = jax.tree.map(lambda g, u: g / u, mean, units)
        clear = none_lost(w, g.w) & none_lost(b, g.b)

        def careful() -> Layer:
            ((delta, a),) = centred([layer], p)
            apart = deviations_of(layer, p, delta, a)
            of_w = jnp.square(delta.unit / units.w * a.unit)
            of_b = jnp.square(delta.unit / units.b)
            plain = jnp.maximum(w - g.w**2, 0)
            return Layer(jnp.where(of_w * apart.terms < w, of_w * apart.w, plain), of_b * apart.b)

        return unless(clear | nobody, lambda: Layer(w - g.w**2, b - g.b**2), careful), units

    found = by_kind(layers, of_vectors, of_shared, mean)
    variances, units = zip(*found, strict=True)
    return Deviations(mean, tuple(variances), tuple(units))


def _careful_variance(
    layers: list[RankOne], p: Float[Array, " B"], mean: list[Layer]
) -> list[tuple[Layer, Layer]]:
    products = lambda rows, columns: jnp.einsum("bj,bk->jk", p[:, None] * rows, columns)
    found = []
    of_layers = zip(centred(layers, p), mean, _balanced_squares(layers, p), strict=True)
    for (delta, a), layer, (moment, units_of) in of_layers:
        scale = jnp.square(delta.unit / units_of.w * a.unit)
        own = scale * products(delta.away**2, a.rows**2)
        mixed = scale * 2 * delta.mean[:, None] * products(delta.away, a.rows * a.away)
        other = scale * jnp.outer(delta.mean**2, p @ a.away**2)
        both = scale * jnp.square(product_of_deviations(p, delta, a))
        smaller = own + jnp.abs(mixed) + other < moment.w
        by_parts, plain = own + mixed + other - both, moment.w - jnp.square(layer.w / units_of.w)
        w = jnp.maximum(jnp.where(smaller, by_parts, plain), 0)
        b = p @ jnp.square(delta.away * (delta.unit / units_of.b))
        found.append((Layer(w, b), units_of))
    return found


@placed(everywhere)
def variance(factors: Factors) -> Params:
    """The variance of the examples' gradients, entry by entry:
    Σ_i w_i (g_i - ḡ) ⊙ (g_i - ḡ) / Σ_i w_i. Cost: 4/3, or 8/3.

    The variance within the batch; as an estimate of a population's it is too small by the factor
    1 - 1/B (1 - κ with weights, κ as in `noise_scale`). It is the second moment minus ḡ ⊙ ḡ, unless
    an entry's variance is below a sixteenth of its second moment: then every entry is worked out
    from deviations as well, by four more products.
    """
    _, variances, units = deviations(factors)
    return tuple(_in_units(v, u) for v, u in zip(variances, units, strict=True))
