"""Element by element: the second moment of the examples' gradients, and their variance.

    g_i ⊙ g_i = (δ_i ⊙ δ_i) (ã_i ⊙ ã_i)ᵀ, and with δ_i = δ̄ + d_i, ã_i = ā + e_i about their means
    Σ p_i (g_i - ḡ)² = Σ p_i d_i² ã_i² + 2 δ̄ Σ p_i d_i ã_i e_i + δ̄² Σ p_i e_i² - (Σ p_i d_i e_i)²

Where the mean dwarfs the spread the second line keeps what Σ p_i g_i² - ḡ² loses. As in
`spread.py`, it is asked for only where that loss is seen, and of the two the one whose terms are
smaller is taken: here entry by entry.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.factors import Factors, mean_gradient, rank_one, weighted_sum
from jbackprop.core.network import Layer, Params
from jbackprop.core.numerics import (
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
from jbackprop.quantities.norms import in_range, lengths
from jbackprop.quantities.spread import SEEN, centred, product_of_deviations, with_one


@jax.jit
def second_moment(factors: Factors) -> Params:
    """Σ_i w_i g_i ⊙ g_i / Σ_i w_i, element by element: the mean square, not centred. Cost: 4/3.

    Its sum over elements is the numerator of the diagonal Takeuchi criterion: see `takeuchi`. Of a
    population it is an unbiased estimate; 0 where all weights are 0.
    """
    return unless(
        in_range(factors),
        lambda: _squares(factors),
        lambda: tuple(
            _layer(squares * of_layer**2) for squares, of_layer in _balanced_squares(factors)
        ),
    )


def _squares(factors: Factors) -> Params:
    squares = [(square(delta), square(a)) for delta, a in rank_one(factors)]
    weight = unit(factors.weight)
    return jax.tree.map(lambda g: g * over_total(weight), weighted_sum(squares, weight))


def _layer(matrix: Float[Array, "n_out n_in1"]) -> Layer:
    return Layer(matrix[:, :-1], matrix[:, -1])


def _balanced_squares(factors: Factors) -> list[tuple[Array, Array]]:
    """(Σ p_i g_i² / unit², unit) of every layer: both factors of an example made equally long."""
    norms, p = lengths(factors).product, shares(factors.weight)
    found = []
    for (delta, a), column in zip(rank_one(factors), norms.T, strict=True):
        of_layer = power_of_two(jnp.max(column))
        length = root(column / of_layer)

        def of_length(rows: Array, length: Array = length) -> Array:
            size = norms_of_rows(rows)
            return rows / jnp.where(size == 0, 1, size)[:, None] * length[:, None]

        rows, columns = square(of_length(wide(delta))), square(of_length(with_one(a)))
        found.append((jnp.einsum("b,bj,bk->jk", p, rows, columns), of_layer))
    return found


class Deviations(NamedTuple):
    """Element by element: Σ p_i (g_i - ḡ)² / unit² beside ḡ, with a unit for every layer."""

    mean: Params
    variance: Params
    unit: Float[Array, " L"]


@jax.jit
def deviations(factors: Factors) -> Deviations:
    """The mean of the examples' gradients and their variance, element by element."""
    mean, moment = jax.tree.map(wide, mean_gradient(factors)), _squares(factors)
    # worked out twice, once to look at: what passes through a condition is copied
    leaves = zip(jax.tree.leaves(moment), jax.tree.leaves(mean), strict=True)
    clear = jnp.stack([jnp.all(m - g**2 >= SEEN * m) for m, g in leaves]).all()
    variance, units = unless(
        clear & in_range(factors) | jnp.all(factors.weight == 0),
        lambda: (
            jax.tree.map(lambda m, g: m - g**2, moment, mean),
            jnp.ones_like(factors.weight, shape=len(mean)),
        ),
        lambda: _careful_variance(factors, mean),
    )
    return Deviations(mean, variance, units)


def _careful_variance(factors: Factors, mean: Params) -> tuple[Params, Float[Array, " L"]]:
    p = shares(factors.weight)
    products = lambda rows, columns: jnp.einsum("bj,bk->jk", p[:, None] * rows, columns)
    variances, units = [], []
    layers = zip(centred(factors, p), mean, _balanced_squares(factors), strict=True)
    for (delta, a), layer, (moment, of_layer) in layers:
        of_mean = jnp.concatenate([layer.w, layer.b[:, None]], axis=1) / of_layer
        scale = jnp.square(delta.unit / of_layer * a.unit)
        own = scale * products(delta.away**2, a.rows**2)
        mixed = scale * 2 * delta.mean[:, None] * products(delta.away, a.rows * a.away)
        other = scale * jnp.outer(delta.mean**2, p @ a.away**2)
        both = jnp.square(product_of_deviations(delta, a, layer) / of_layer)
        smaller = own + jnp.abs(mixed) + other < moment
        variance = jnp.where(smaller, own + mixed + other - both, moment - of_mean**2)
        variances.append(_layer(jnp.maximum(variance, 0)))
        units.append(of_layer)
    return tuple(variances), jnp.stack(units)


def variance(factors: Factors) -> Params:
    """Σ_i w_i (g_i - ḡ) ⊙ (g_i - ḡ) / Σ_i w_i, element by element. Cost: 4/3, or 7/3.

    The variance within the batch; as an estimate of a population's it is too small by the factor
    1 - 1/B (1 - κ with weights, κ as in `noise_scale`). It is the second moment minus ḡ ⊙ ḡ, unless
    an entry's variance is below a sixteenth of its second moment: then every entry is worked out
    from deviations as well, by three more products.
    """
    found = deviations(factors)
    return tuple(
        Layer(layer.w * of_layer**2, layer.b * of_layer**2)
        for layer, of_layer in zip(found.variance, found.unit, strict=True)
    )
