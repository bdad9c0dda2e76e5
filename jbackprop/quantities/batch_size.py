"""Is the batch large enough? Tests of its gradient's noise, and what the noise says of the fit.

With p_i = w_i / Σ w, ḡ = Σ p_i g_i and κ = Σ p_i² (1/B without weights), κ/(1 - κ) times the
weighted variance of the g_i estimates the variance of ḡ itself. Split along ḡ and across it,
relative to ‖ḡ‖², it gives three numbers, of which the first is the sum of the others:

    norm test           κ/(1-κ) (Σ p_i ‖g_i‖² - ‖ḡ‖²) / ‖ḡ‖²
    inner-product test  κ/(1-κ) (Σ p_i ⟨g_i, ḡ⟩² - ‖ḡ‖⁴) / ‖ḡ‖⁴
    orthogonality test  κ/(1-κ) (Σ p_i ‖g_i‖² - Σ p_i ⟨g_i, ḡ⟩² / ‖ḡ‖²) / ‖ḡ‖²

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

from jbackprop.core.batch import over_total, weighted_mean
from jbackprop.core.factors import Factors, mean_gradient, rank_one
from jbackprop.core.network import Params
from jbackprop.quantities.arguments import as_direction
from jbackprop.quantities.statistics import (
    gram,
    inner_products,
    kappa_and_spread,
    ratio,
    second_moment,
    square,
    squared_norm,
    squared_norms,
    variance,
)

Scalar = Float[Array, "*nets"]


def norm_test(factors: Factors) -> Scalar:
    """The variance of ḡ over its squared norm: κ/(1-κ) (Σ p_i ‖g_i‖² - ‖ḡ‖²) / ‖ḡ‖². Cost: 1."""
    squared_mean = jnp.sum(squared_norm(mean_gradient(factors)))
    kappa, spread = kappa_and_spread(factors, squared_mean)
    return ratio(kappa * spread, squared_mean)


def inner_product_test(factors: Factors) -> Scalar:
    """Its part along ḡ: κ/(1-κ) (Σ p_i ⟨g_i, ḡ⟩² - ‖ḡ‖⁴) / ‖ḡ‖⁴. Cost: ≤ 4/3."""
    return split_tests(factors)[0]


def orthogonality_test(factors: Factors) -> Scalar:
    """Its part across ḡ: κ/(1-κ) (Σ p_i ‖g_i‖² - Σ p_i ⟨g_i, ḡ⟩² / ‖ḡ‖²) / ‖ḡ‖². Cost: ≤ 4/3."""
    return split_tests(factors)[1]


def split_tests(factors: Factors) -> tuple[Scalar, Scalar]:
    """The inner-product test and the orthogonality test at the price of one."""
    products = products_with_mean(factors)
    weight = factors.weight
    squared_mean = weighted_mean(products, weight)
    kappa, spread = kappa_and_spread(factors, squared_mean)
    # of the deviations, since a difference of squares would cancel
    along = weighted_mean((products - squared_mean) ** 2, weight)
    alone = jnp.isnan(spread)
    along = ratio(along, squared_mean) / jnp.where(alone, jnp.nan, 1 - kappa)
    return ratio(kappa * along, squared_mean), ratio(kappa * (spread - along), squared_mean)


def products_with_mean(factors: Factors) -> Float[Array, " B"]:
    """⟨g_i, ḡ⟩, by whichever takes less arithmetic: the products of all pairs, or ḡ itself."""
    batch = len(factors.weight)
    by_pairs = batch * sum(d.shape[1] + a.shape[1] for d, a in rank_one(factors))
    if by_pairs < sum(d.shape[1] * a.shape[1] for d, a in rank_one(factors)):
        weight = factors.weight
        products = gram(factors)
        # NaN of an absent row is 0 already; 0 · inf of a present one is right to be NaN
        return products @ (weight * over_total(weight))
    return inner_products(factors, mean_gradient(factors))


def signal_to_noise(factors: Factors) -> Params:
    """ḡ ⊙ ḡ / variance, element by element: the gradient signal-to-noise ratio. Cost: 4/3.

    Infinite where a gradient is the same for every example, and 0 where it is 0. Liu et al.,
    "Understanding Why Neural Networks Generalize Well Through GSNR of Parameters", 2020,
    arXiv:2001.07384.
    """
    squared_mean = jax.tree.map(square, mean_gradient(factors))
    return jax.tree.map(ratio, squared_mean, variance(factors))


def takeuchi(factors: Factors, curvature: Any = None) -> Scalar:
    """Σ_j E[g_j²] / h_j: the Takeuchi information criterion with diagonals only. Cost: 4/3.

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
    return sum(jnp.sum(ratio(m, h.astype(m.dtype))) for m, h in parts)  # pyright: ignore
