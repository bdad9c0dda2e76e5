"""Is the batch large enough? Tests of its gradient's noise, and what the noise says of the fit.

With p_i = w_i / Σ w, ḡ = Σ p_i g_i and κ = Σ p_i² (1/B without weights), κ/(1 - κ) times the
weighted variance of the g_i estimates the variance of ḡ itself. Split along ḡ and across it,
relative to ‖ḡ‖², it gives three numbers, of which the first is the sum of the others:

    norm test           κ/(1-κ) Σ p_i ‖g_i - ḡ‖² / ‖ḡ‖²
    inner-product test  κ/(1-κ) Σ p_i (⟨g_i, ḡ⟩ - ‖ḡ‖²)² / ‖ḡ‖⁴
    orthogonality test  κ/(1-κ) Σ p_i (‖g_i - ḡ‖² - (⟨g_i, ḡ⟩ - ‖ḡ‖²)² / ‖ḡ‖²) / ‖ḡ‖²

A test is passed where its number is at most the square of the θ or ν that one chose; where it is
not, a batch larger by number/θ² would do. Byrd et al., "Sample Size Selection in Optimization
Methods for Machine Learning", 2012, doi:10.1007/s10107-012-0572-5; Bollapragada et al., "Adaptive
Sampling Strategies for Stochastic Optimization", 2018, arXiv:1710.11258.

With a single example nothing is known of a spread, and all are NaN; with none, or where every
gradient is 0, they are 0.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.factors import Factors, mean_gradient
from jbackprop.core.network import Params
from jbackprop.core.numerics import (
    SEEN,
    hypot,
    norm,
    norms_of_rows,
    quotient,
    ratio,
    root,
    safe_range,
    unless,
    weighted_mean,
    wide,
)
from jbackprop.core.placement import everywhere, placed
from jbackprop.quantities.arguments import as_direction
from jbackprop.quantities.layers import RankOne, flat_pairs, layers_of
from jbackprop.quantities.moments import deviations, second_moment
from jbackprop.quantities.norms import in_range, norm_of_layers, squared_norm, squared_norms
from jbackprop.quantities.spread import Noise, centred, spread
from jbackprop.quantities.statistics import plain_inner_products, plain_products

Scalar = Float[Array, "*nets"]


@placed(everywhere)
def norm_test(factors: Factors) -> Scalar:
    """Whether a batch is large enough:
    the variance of ḡ over its squared norm, κ/(1-κ) Σ p_i ‖g_i - ḡ‖² / ‖ḡ‖². Cost: 1."""
    return norm_test_of(spread(factors))


def norm_test_of(found: Noise) -> Scalar:
    """κ/(1-κ) Σ p_i ‖g_i - ḡ‖² / ‖ḡ‖²."""
    around = found.share.kappa * found.total(found.around) / found.share.rest
    return ratio(around, found.total(found.mean))


@placed(everywhere)
def inner_product_test(factors: Factors) -> Scalar:
    """Whether a batch is large enough along ḡ:
    κ/(1-κ) Σ p_i (⟨g_i, ḡ⟩ - ‖ḡ‖²)² / ‖ḡ‖⁴. Cost: ≤ 4/3."""
    return split_tests(factors)[0]


@placed(everywhere)
def orthogonality_test(factors: Factors) -> Scalar:
    """Whether a batch is large enough across ḡ:
    the norm test's number less the inner-product test's. Cost: ≤ 4/3.

    Never below 0, and exact to the rounding of the norm test."""
    return split_tests(factors)[1]


def split_tests(factors: Factors) -> tuple[Scalar, Scalar]:
    """The inner-product test and the orthogonality test at the price of one."""
    return split_tests_of(factors, spread(factors))


def split_tests_of(factors: Factors, found: Noise) -> tuple[Scalar, Scalar]:
    """Both, beside what is known of the spread."""
    p, kappa, rest = found.share
    along = kappa * jnp.sum(p * jnp.square(along_mean(factors, found))) / rest
    return along, jnp.maximum(norm_test_of(found) - along, 0)


@jax.jit
def along_mean(factors: Factors, found: Noise) -> Float[Array, " B"]:
    """⟨g_i - ḡ, ḡ⟩ / ‖ḡ‖²: how far every example goes along the mean, less 1; 0 where ḡ is 0. (Of
    an absent row it is any number, and counts for none.)

    By whichever takes less arithmetic: the products of all pairs, or ḡ itself."""
    p = found.share.p
    batch, layers = len(p), layers_of(factors)
    fine = in_range(factors)
    once = [layer for layer in layers if isinstance(layer, RankOne)]
    sizes = [(d.shape[1], a.shape[1]) for d, a in flat_pairs(layers)]
    fewer = batch * sum(n + m for n, m in sizes) < sum(n * m for n, m in sizes)
    if fewer and len(once) == len(layers):
        products = sum(plain_products(layer, layer, fine) for layer in once) @ p
        squared_mean = p @ products
    else:
        mean = mean_gradient(factors)
        products = plain_inner_products(layers, mean)
        squared_mean = jnp.sum(squared_norm(mean))
    low, _ = safe_range(p.dtype)
    s = jnp.sum(p @ jnp.square(found.lengths.gradient))
    away = quotient(products, jnp.where(squared_mean == 0, 1, squared_mean)) - 1
    # what rounding leaves of ⟨g_i, ḡ⟩ is ε ‖g_i‖ ‖ḡ‖, and of ‖ḡ‖² by pairs, ε s
    clear = (p @ jnp.square(away)) * squared_mean >= s * SEEN**4
    clear &= (squared_mean >= s * SEEN**3) & (squared_mean >= low)
    return unless(
        clear & fine | jnp.all(factors.weight == 0),
        lambda: away,
        lambda: _careful_along_mean(factors, p),
    )


def _careful_along_mean(factors: Factors, p: Array) -> Array:
    """By deviations, layer by layer: ⟨g_i - ḡ, ḡ⟩ = d_i · Ḡ ã_i + δ̄ · Ḡ e_i, less its mean."""
    mean = jax.tree.map(wide, mean_gradient(factors))
    length = norm(norm_of_layers(mean))
    length = jnp.where(length == 0, 1, length)
    found = jnp.zeros_like(p)
    layers = layers_of(factors)
    for layer, (delta, a), g in zip(layers, centred(layers, p), mean, strict=True):
        w, b = quotient(g.w, length), quotient(g.b, length)
        shift = layer.through(w, a.rows * a.unit) + layer.at_positions(b)[None]
        plain = jnp.sum(delta.rows * shift, axis=1)
        back = layer.back(w, delta.mean)
        by_parts = jnp.sum(delta.away * shift, axis=1) + a.away @ back * a.unit
        rows, away = (hypot(norms_of_rows(v) * a.unit, jnp.ones_like(p)) for v in (a.rows, a.away))
        size = p @ (norms_of_rows(delta.rows) * rows)
        parts = p @ (norms_of_rows(delta.away) * rows) + norms_of_rows(delta.mean) * (p @ away)
        product = quotient(delta.unit * jnp.where(parts < size, by_parts, plain), length)
        found += product - p @ product
    return found


@placed(everywhere)
def signal_to_noise(factors: Factors) -> Params:
    """The gradient signal-to-noise ratio, entry by entry: ḡ ⊙ ḡ / variance. Cost: 4/3, or 8/3.

    Infinite where a gradient is the same for every example, and 0 where it is 0; its cost is that
    of `variance`. Liu et al., "Understanding Why Neural Networks Generalize Well Through GSNR of
    Parameters", 2020, arXiv:2001.07384.
    """
    signal = lambda g, v, u: jnp.square(ratio(g / u, root(v)))
    return jax.tree.map(signal, *deviations(factors))


@placed(everywhere)
def takeuchi(factors: Factors, curvature: Any = None) -> Scalar:
    """A measure of generalisation, the Takeuchi information criterion with diagonals only:
    Σ_j E[g_j²] / h_j. Cost: 4/3.

    How much the training cost understates the cost on new examples, times their number. Without a
    curvature h it is the numerator alone, tr E[g gᵀ], and costs 1: no second moment is formed.
    Thomas et al., "On the Interplay Between Noise and Curvature", 2020, arXiv:1906.07774.

    Args:
        factors: of a batch.
        curvature: (h for w, h for b) per layer, shaped as the parameters; the diagonal of a Hessian
            or of one of its substitutes.

    Raises:
        ValueError: curvature has other shapes than a gradient of these factors.
    """
    if curvature is None:
        return weighted_mean(squared_norms(factors), factors.weight)
    moments = jax.tree.leaves(second_moment(factors))
    parts = zip(
        moments, jax.tree.leaves(as_direction(factors, curvature, name="curvature")), strict=True
    )
    return sum(jnp.sum(ratio(m, h)) for m, h in parts)  # pyright: ignore
