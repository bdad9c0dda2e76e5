"""Numbers about a batch's gradients g_i, from their factors: no example's gradient is formed.

Products of rank-one matrices are products of their factors. With ã = (a, 1) for w and b together:

    ⟨g_i, g_j⟩ = Σ_l (δ_i^l · δ_j^l) (ã_i^{l-1} · ã_j^{l-1}),  so ‖g_i‖² = Σ_l ‖δ_i^l‖² ‖ã_i^{l-1}‖²
    g_i ⊙ g_i  = (δ_i^l ⊙ δ_i^l) (ã_i^{l-1} ⊙ ã_i^{l-1})ᵀ

`cost` in a docstring is in multiples of the plain gradient's arithmetic, forward and backward, at a
network of equal widths n ≥ B. Squares and sums are taken in float32 at least. A row of weight 0 has
δ = 0 and so contributes nothing; else a weight enters means only, never g_i.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.batch import over_total, weighted_mean
from jbackprop.core.factors import Factors, mean_gradient, rank_one, weighted_sum
from jbackprop.core.network import Params
from jbackprop.quantities.arguments import as_direction, check_same_network

Scalar = Float[Array, "*nets"]


def wide(values: Array) -> Array:
    """In float32 at least, for squares and sums."""
    return values if jnp.finfo(values.dtype).bits >= 32 else values.astype(jnp.float32)


def square(values: Array) -> Float[Array, "..."]:
    """v ⊙ v in float32 at least."""
    return jnp.square(wide(values))


def squared_rows(values: Float[Array, "B n"]) -> Float[Array, " B"]:
    """‖v_i‖² of every row, in float32 at least."""
    # a product with ones: XLA's sums along rows took a seventh of a step at size L on a CPU
    ones = jnp.ones(values.shape[1], wide(values).dtype)
    return jnp.matmul(square(values), ones, precision=jax.lax.Precision.HIGHEST)


def squared_norm(gradient: Any) -> Float[Array, " L"]:
    """‖g^l‖² of every layer, w and b together, of one gradient."""
    return jnp.stack([sum(jnp.sum(square(leaf)) for leaf in layer) for layer in gradient])


def layer_squared_norms(factors: Factors) -> Float[Array, "B L"]:
    """‖g_i^l‖² = ‖δ_i^l‖² (1 + ‖a_i^{l-1}‖²) of every example and layer, (B, L). Cost: 2/3.

    The backward pass stops at δ: no weight gradient is formed. Goodfellow, "Efficient Per-Example
    Gradient Computations", 2015, arXiv:1510.01799.
    """
    return jnp.stack(
        [squared_rows(delta) * (1 + squared_rows(a)) for delta, a in rank_one(factors)],
        axis=-1,
    )


def squared_norms(factors: Factors) -> Float[Array, " B"]:
    """‖g_i‖² = Σ_l ‖δ_i^l‖² (1 + ‖a_i^{l-1}‖²) of every example, (B,). Cost: 2/3.

    Goodfellow, 2015, arXiv:1510.01799.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((2, 1))
    >>> params = [(jnp.ones((1, 2)), jnp.zeros(1))]
    >>> factors = jb.backprop(net, params, jnp.array([[2.0, 0.0]]), jnp.array([[1.0]]))
    >>> jb.squared_norms(factors).tolist()  # δ = 1 and ã = (2, 0, 1)
    [5.0]
    """
    return jnp.sum(layer_squared_norms(factors), axis=-1)


def second_moment(factors: Factors) -> Params:
    """Σ_i w_i g_i ⊙ g_i / Σ_i w_i, element by element: the mean square, not centred. Cost: 4/3.

    Its sum over elements is the numerator of the diagonal Takeuchi criterion: see `takeuchi`. Of a
    population it is an unbiased estimate; 0 where all weights are 0.
    """
    squares = [(square(delta), square(a)) for delta, a in rank_one(factors)]
    total = weighted_sum(squares, factors.weight)
    return jax.tree.map(lambda g: g * over_total(factors.weight), total)


def variance(factors: Factors) -> Params:
    """Σ_i w_i g_i ⊙ g_i / Σ_i w_i - ḡ ⊙ ḡ, element by element, and never below 0. Cost: 4/3.

    The variance within the batch; as an estimate of a population's it is too small by the factor
    1 - 1/B (1 - κ with weights, κ as in `noise_scale`).
    """
    return jax.tree.map(
        lambda moment, mean: jnp.maximum(moment - square(mean), 0),
        second_moment(factors),
        mean_gradient(factors),
    )


def inner_products(factors: Factors, direction: Any) -> Float[Array, " B"]:
    """⟨g_i, v⟩ = Σ_l δ_i^l · (V^l a_i^{l-1} + v^l) for a direction v = (V^l, v^l), (B,). Cost: 1.

    That is a forward pass of a^{l-1} through V^l: with the δ's, 1/3 more than the pass alone.

    Args:
        factors: of a batch.
        direction: (V^l, v^l) per layer, shaped as the parameters.

    Raises:
        ValueError: direction has other shapes than a gradient of these factors.
    """
    total = jnp.zeros_like(factors.weight)
    layers = as_direction(factors, direction)
    for (delta, a), (w, b) in zip(rank_one(factors), layers, strict=True):
        shift = jnp.einsum("bk,jk->bj", a, w) + b[None]
        total += jnp.einsum("bj,bj->b", wide(delta), wide(shift))
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
    total = jnp.zeros((len(factors.weight), len(other.weight)), factors.weight.dtype)
    for (delta, a), (delta2, a2) in zip(rank_one(factors), rank_one(other), strict=True):
        total += _products(delta, delta2, total.dtype) * (1 + _products(a, a2, total.dtype))
    return total


def _products(rows: Array, others: Array, dtype: Any) -> Array:
    return jnp.einsum("in,jn->ij", rows, others, preferred_element_type=dtype)


class NoiseScale(NamedTuple):
    """The noise of a mini-batch's gradient.

    Attributes:
        trace: tr Σ, the variance of one example's gradient, summed over parameters; unbiased.
        squared_gradient: |G|², the squared norm of the population's gradient; unbiased, and so
            below 0 for some batches where noise outweighs it.
        scale: tr Σ / |G|², in examples: the batch size at which noise and gradient weigh the same.
            Neither unbiased nor always positive: average the other two over steps, then divide.
    """

    trace: Scalar
    squared_gradient: Scalar
    scale: Scalar


def noise_scale(factors: Factors) -> NoiseScale:
    """tr Σ and |G|², both unbiased, and their ratio. Cost: 1 beside the gradient.

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
    squared_mean = jnp.sum(squared_norm(mean_gradient(factors)))
    kappa, spread = kappa_and_spread(factors, squared_mean)
    squared_gradient = squared_mean - kappa * spread
    return NoiseScale(spread, squared_gradient, ratio(spread, squared_gradient))


def ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where a is 0: no gradient has no noise."""
    return jnp.where(a == 0, 0, a / jnp.where(a == 0, 1, b))


def kappa_and_spread(factors: Factors, squared_mean: Array) -> tuple[Array, Array]:
    """κ = Σ w² / (Σ w)², and tr Σ = (s - ‖ḡ‖²) / (1 - κ)."""
    weight = factors.weight
    kappa = jnp.sum(weight**2) * over_total(weight) ** 2
    s = weighted_mean(squared_norms(factors), weight)
    # one example that holds all the weight says nothing of a spread; κ may round to just below 1
    alone = (jnp.sum(weight > 0) == 1) | (kappa >= 1)
    return kappa, (s - squared_mean) / jnp.where(alone, jnp.nan, 1 - kappa)


def kronecker_factors(factors: Factors) -> tuple[tuple[Array, Array], ...]:
    """(A_l, D_l) of every layer: E[ã ãᵀ] with ã = (a^{l-1}, 1), and E[δ^l (δ^l)ᵀ]. Cost: 2.

    Shapes (n_{l-1} + 1, n_{l-1} + 1) and (n_l, n_l); weighted means over the batch. Martens and
    Grosse, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature", 2015,
    arXiv:1503.05671.
    """
    share = factors.weight * over_total(factors.weight)

    def mean_outer(v: Array) -> Array:
        weighted = (share[:, None] * wide(v)).astype(v.dtype)
        return jnp.einsum("bi,bj->ij", weighted, v, preferred_element_type=share.dtype)

    pairs = []
    for delta, a in rank_one(factors):
        one = jnp.ones((len(a), 1), a.dtype)
        pairs.append((mean_outer(jnp.concatenate([a, one], axis=1)), mean_outer(delta)))
    return tuple(pairs)
