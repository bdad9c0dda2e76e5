"""The spread of the examples' gradients about their mean: the noise of a mini-batch.

With p_i = w_i / Σ w, ḡ = Σ p_i g_i and κ = Σ p_i² (1/B without weights):

    Σ p_i ‖g_i - ḡ‖² = Σ p_i ‖g_i‖² - ‖ḡ‖²,    and over 1 - κ it is unbiased: tr Σ

Where the mean dwarfs the spread, nothing is left of that difference. Then δ_i = δ̄ + d_i and
a_i = ā + e_i are taken apart by their means, and what is subtracted is as small as the spread:

    for w:  Σ p_i [‖d_i‖² ‖a_i‖² + 2 (δ̄ · d_i)(a_i · e_i) + ‖δ̄‖² ‖e_i‖²] - ‖Σ p_i d_i e_iᵀ‖²
    for b:  Σ p_i ‖d_i‖²

Where large δ meet small a (an outlier that saturates) the terms of the second form are the large
ones. Both say how large their terms are, and the one with smaller terms is taken, layer by layer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.factors import Factors, mean_gradient
from jbackprop.core.network import Params
from jbackprop.core.numerics import (
    SEEN,
    norms_of_rows,
    power_of_two,
    ratio,
    root,
    safe_range,
    shares,
    square,
    squared_rows,
    unless,
    wide,
)
from jbackprop.core.placement import everywhere, placed
from jbackprop.quantities.layers import Shared, Some, flat_pairs, layers_of
from jbackprop.quantities.matrices import deviations_of
from jbackprop.quantities.norms import Lengths, lengths, squared_norm

Scalar = Float[Array, "*nets"]


class Share(NamedTuple):
    """How the weights are shared out.

    Attributes:
        p: w_i / Σ w, (B,).
        kappa: κ = Σ p_i².
        rest: 1 - κ; NaN where one example holds all the weight, which tells nothing of a spread,
            and 1 where there is none.
    """

    p: Float[Array, " B"]
    kappa: Float[Array, ""]
    rest: Float[Array, ""]


def share(factors: Factors) -> Share:
    """p, κ and 1 - κ = Σ p_i (1 - p_i), in which the largest 1 - p_i is the sum of the others."""
    p = shares(factors.weight)
    largest = jnp.arange(len(p)) == jnp.argmax(p)
    others = jnp.sum(jnp.where(largest, 0, p))
    rest = jnp.sum(p * jnp.where(largest, others, 1 - p))
    rest = jnp.where(others == 0, jnp.where(jnp.max(p) == 0, 1, jnp.nan), rest)
    return Share(p, jnp.sum(p**2), rest)


class Noise(NamedTuple):
    """What a batch tells of its noise; by layer, (L,), in units whose squares are in range.

    Attributes:
        share: p, κ and 1 - κ.
        lengths: ‖δ_i^l‖, ‖ã_i^{l-1}‖ and ‖g_i^l‖, (B, L).
        around: Σ p_i ‖g_i^l - ḡ^l‖² / unit².
        mean: ‖ḡ^l‖² / unit².
        unit: 1, or a power of two where the squares would be out of range.
    """

    share: Share
    lengths: Lengths
    around: Float[Array, " L"]
    mean: Float[Array, " L"]
    unit: Float[Array, " L"]

    def total(self, values: Float[Array, " L"]) -> Array:
        """Σ_l of squares, in the largest unit."""
        return jnp.sum(values * (self.unit / jnp.max(self.unit)) ** 2)

    @property
    def traces(self) -> Float[Array, " L"]:
        """tr Σ^l of every layer: the unbiased variance of an example's gradient."""
        return self.around / self.share.rest * self.unit * self.unit

    @property
    def norms_of_mean(self) -> Float[Array, " L"]:
        """‖ḡ^l‖ of every layer."""
        return root(self.mean) * self.unit


@jax.jit
def spread(factors: Factors) -> Noise:
    """Σ p_i ‖g_i^l - ḡ^l‖² and ‖ḡ^l‖² of every layer. Cost: 1 beside the gradient, or 4/3."""
    shared, mean, of_rows = share(factors), mean_gradient(factors), lengths(factors)
    low, high = safe_range(shared.p.dtype)
    norms = of_rows.gradient
    small = norms < high**0.5
    s, m = shared.p @ jnp.square(jnp.where(small, norms, 0)), squared_norm(mean)
    plain = s - m
    # ‖ḡ‖² counts down to a millionth of s; a layer whose gradients are 0 is doubted, and 0 again
    fine = (plain >= SEEN * s) & (s >= low * 2**20) & jnp.all(small, axis=0)
    by_layer = unless(
        jnp.all(fine) | jnp.all(factors.weight == 0),
        lambda: (plain, m, jnp.ones_like(s)),
        lambda: _careful_spread(factors, shared.p, mean, norms),
    )
    return Noise(shared, of_rows, *by_layer)


def _careful_spread(
    factors: Factors, p: Array, mean: Params, norms: Float[Array, "B L"]
) -> tuple[Array, Array, Array]:
    sizes = jnp.max(norms, axis=0)
    units = power_of_two(jnp.where(sizes == 0, jnp.max(sizes), sizes))
    columns = []
    layers = layers_of(factors)
    found = centred(layers, p), mean, units, norms.T
    for layer, (delta, a), g, unit, column in zip(layers, *found, strict=True):
        s = p @ jnp.square(column / unit)
        m = sum(jnp.sum(square(wide(leaf) / unit)) for leaf in g)
        of_b = jnp.square(delta.unit / unit)
        of_w = jnp.square(delta.unit / unit * a.unit)
        if isinstance(layer, Shared):
            apart = deviations_of(layer, p, delta, a)
            of_bias = of_b * jnp.sum(apart.b)
            size = of_w * jnp.sum(apart.terms) + of_bias
            by_parts = of_w * jnp.sum(apart.w) + of_bias
            columns.append((jnp.where(size < s, by_parts, jnp.maximum(s - m, 0)), m))
            continue
        parts = [
            of_b * (p @ squared_rows(delta.away)),
            of_w * (p @ (squared_rows(delta.away) * squared_rows(a.rows))),
            of_w * 2 * (p @ ((delta.away @ delta.mean) * jnp.sum(a.rows * a.away, axis=1))),
            of_w * jnp.sum(delta.mean**2) * (p @ squared_rows(a.away)),
        ]
        both = of_w * jnp.sum(square(product_of_deviations(p, delta, a)))
        size, by_parts = sum(map(jnp.abs, parts)), sum(parts) - both
        columns.append((jnp.maximum(jnp.where(size < s, by_parts, s - m), 0), m))
    around, squared_mean = (jnp.stack(column) for column in zip(*columns, strict=True))
    return around, squared_mean, units


class Centred(NamedTuple):
    """Rows v_i / unit, their weighted mean, and how far each is away from it, absent ones too."""

    rows: Float[Array, "B n"]
    mean: Float[Array, " n"]
    away: Float[Array, "B n"]
    unit: Float[Array, ""]


def centred(layers: Sequence[Some], p: Float[Array, " B"]) -> list[tuple[Centred, Centred]]:
    """δ^l and a^{l-1} of these layers, about their means, all of an example in a row."""

    def about_mean(rows: Array) -> Centred:
        unit = power_of_two(jnp.max(norms_of_rows(rows)))
        rows = wide(rows) / unit
        # by deviations from one row: the mean of equal rows is that row, to the bit
        pivot = rows[jnp.argmax(p)]
        mean = pivot + p @ (rows - pivot[None])
        return Centred(rows, mean, rows - mean[None], unit)

    return [(about_mean(delta), about_mean(a)) for delta, a in flat_pairs([*layers])]


def product_of_deviations(p: Any, delta: Centred, a: Centred) -> Float[Array, "n_out n_in"]:
    """Σ p_i d_i e_iᵀ, in units of both. (It is ḡ - δ̄ āᵀ too, but for the rounding of ḡ.)"""
    return jnp.einsum("bj,bk->jk", p[:, None] * delta.away, a.away)


class NoiseScale(NamedTuple):
    """What `noise_scale` tells: the noise of a mini-batch's gradient.

    Attributes:
        trace: tr Σ, the variance of one example's gradient, summed over parameters; unbiased, and
            never below 0.
        squared_gradient: |G|², the squared norm of the population's gradient; unbiased, and so
            below 0 for some batches where noise outweighs it.
        scale: tr Σ / |G|², in examples: the batch size at which noise and gradient weigh the same.
            Neither unbiased nor always positive: average the other two over steps, then divide.
    """

    trace: Scalar
    squared_gradient: Scalar
    scale: Scalar


@placed(everywhere)
def noise_scale(factors: Factors) -> NoiseScale:
    """From which batch size on more examples buy little:
    tr Σ and |G|², both unbiased, and their ratio. Cost: 1 beside the gradient.

    With ḡ = Σ w_i g_i / Σ w, s = Σ w_i ‖g_i‖² / Σ w and κ = Σ w² / (Σ w)², which is 1/B without
    weights: tr Σ = (s - ‖ḡ‖²) / (1 - κ) and |G|² = (‖ḡ‖² - κ s) / (1 - κ). With a single
    example κ = 1, and all three are NaN; with none all are 0. McCandlish et al., "An Empirical
    Model of Large-Batch Training", 2018, arXiv:1812.06162, appendix A.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((2, 1))
    >>> params = [(jnp.zeros((1, 2)), jnp.zeros(1))]
    >>> factors = jb.backprop(net, params, jnp.zeros((2, 2)), jnp.array([[1.0], [3.0]]))
    >>> jb.noise_scale(factors)._asdict()  # g = -1 and -3, in b alone
    {'trace': Array(2., dtype=float32), 'squared_gradient': Array(3., dtype=float32), ...}
    """
    return noise_scale_of(spread(factors))


def noise_scale_of(found: Noise) -> NoiseScale:
    """tr Σ, |G|² and their ratio."""
    trace, squared_mean = found.total(found.around) / found.share.rest, found.total(found.mean)
    squared_gradient = squared_mean - found.share.kappa * trace
    unit = jnp.max(found.unit)
    scale = ratio(trace, squared_gradient)
    # one after the other: the square of a unit may be out of range where 0 of it is not
    return NoiseScale(trace * unit * unit, squared_gradient * unit * unit, scale)
