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
from jaxtyping import Array

from jbackprop.core.factors import Factors, mean_gradient
from jbackprop.core.linear import bias_sum, outer_sum
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
from jbackprop.quantities.ghost import in_units, norms_of
from jbackprop.quantities.layers import Shared, Some, layers_of
from jbackprop.quantities.matrices import by_position, deviations_of, sum_of_squares
from jbackprop.quantities.norms import in_range
from jbackprop.quantities.spread import centred, product_of_deviations


@jax.jit
def second_moment(factors: Factors) -> Params:
    """Σ_i w_i g_i ⊙ g_i / Σ_i w_i, element by element: the mean square, not centred. Cost: 4/3.

    Its sum over elements is the numerator of the diagonal Takeuchi criterion: see `takeuchi`. Of a
    population it is an unbiased estimate; 0 where all weights are 0.
    """
    careful = lambda: tuple(_in_units(*found) for found in _balanced_squares(factors))
    return unless(in_range(factors), lambda: _squares(factors), careful)


def _squares(factors: Factors) -> Params:
    weight = unit(factors.weight)

    def of_layer(layer: Some) -> Layer:
        if isinstance(layer, Shared):
            return Layer(*sum_of_squares(layer, weight))
        delta, a = square(layer.delta), square(layer.a)
        return Layer(outer_sum(weight, delta, a), bias_sum(weight, delta))

    sums = tuple(of_layer(layer) for layer in layers_of(factors))
    return jax.tree.map(lambda g: g * over_total(weight), sums)


def _in_units(layer: Layer, units: Layer) -> Layer:
    """Squares times units²; one after the other, since a unit's square may be out of range."""
    return jax.tree.map(lambda v, u: v * u * u, layer, units)


def _balanced_squares(factors: Factors) -> list[tuple[Layer, Layer]]:
    """(Σ p_i g_i² / unit², unit) of every layer, w and b: both factors of w made equally long."""
    p, found = shares(factors.weight), []

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

    def of_matrices(layer: Shared) -> tuple[Array, Array]:
        largest = power_of_two(jnp.max(norms_of(layer, factors.weight != 0).gradient))
        half = root(largest)

        def one(share: Array, delta: Array, a: Array) -> Array:
            (delta, of_delta), (a, of_a) = in_units(delta), in_units(a)
            w, _ = layer.gradient(delta, a)
            return share * jnp.square(w * (of_delta / half) * (of_a / half))

        return layer.in_w_shape(layer.summed(one, p, layer.delta, layer.a)), largest

    for layer in layers_of(factors):
        if isinstance(layer, Shared):
            w, of_w = of_matrices(layer)
            delta = by_position(layer.delta).sum(axis=1)
        else:
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
    mean, moment = jax.tree.map(wide, mean_gradient(factors)), _squares(factors)
    # worked out twice, once to look at: what passes through a condition is copied
    leaves = zip(jax.tree.leaves(moment), jax.tree.leaves(mean), strict=True)
    clear = jnp.stack([jnp.all(m - g**2 >= SEEN * m) for m, g in leaves]).all()
    one = jnp.ones_like(factors.weight, shape=())
    variance, units = unless(
        clear & in_range(factors) | jnp.all(factors.weight == 0),
        lambda: (
            jax.tree.map(lambda m, g: m - g**2, moment, mean),
            tuple(Layer(one, one) for _ in mean),
        ),
        lambda: _careful_variance(factors, mean),
    )
    return Deviations(mean, variance, units)


def _careful_variance(factors: Factors, mean: Params) -> tuple[Params, Any]:
    p = shares(factors.weight)
    products = lambda rows, columns: jnp.einsum("bj,bk->jk", p[:, None] * rows, columns)
    variances, units = [], []
    found = centred(factors, p), mean, _balanced_squares(factors)
    for layer, (delta, a), g, (moment, units_of) in zip(layers_of(factors), *found, strict=True):
        scale = jnp.square(delta.unit / units_of.w * a.unit)
        plain = moment.w - jnp.square(g.w / units_of.w)
        if isinstance(layer, Shared):
            apart = deviations_of(layer, p, delta, a)
            w = jnp.where(scale * apart.terms < moment.w, scale * apart.w, jnp.maximum(plain, 0))
            b = jnp.square(delta.unit / units_of.b) * apart.b
            variances.append(Layer(w, b))
            units.append(units_of)
            continue
        own = scale * products(delta.away**2, a.rows**2)
        mixed = scale * 2 * delta.mean[:, None] * products(delta.away, a.rows * a.away)
        other = scale * jnp.outer(delta.mean**2, p @ a.away**2)
        both = scale * jnp.square(product_of_deviations(p, delta, a))
        smaller = own + jnp.abs(mixed) + other < moment.w
        by_parts = own + mixed + other - both
        w = jnp.maximum(jnp.where(smaller, by_parts, plain), 0)
        variances.append(Layer(w, p @ jnp.square(delta.away * (delta.unit / units_of.b))))
        units.append(units_of)
    return tuple(variances), tuple(units)


def variance(factors: Factors) -> Params:
    """Σ_i w_i (g_i - ḡ) ⊙ (g_i - ḡ) / Σ_i w_i, element by element. Cost: 4/3, or 8/3.

    The variance within the batch; as an estimate of a population's it is too small by the factor
    1 - 1/B (1 - κ with weights, κ as in `noise_scale`). It is the second moment minus ḡ ⊙ ḡ, unless
    an entry's variance is below a sixteenth of its second moment: then every entry is worked out
    from deviations as well, by four more products.
    """
    _, variances, units = deviations(factors)
    return tuple(_in_units(v, u) for v, u in zip(variances, units, strict=True))
