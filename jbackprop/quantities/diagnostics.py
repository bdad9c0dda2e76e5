"""The state of the layers, and the panel: what to look at in every step of a compiled epoch.

All of it is computed from the factors inside the loop. `observe_all(net)` is an `observe`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.batch import over_total, weighted_mean
from jbackprop.core.factors import Factors, mean_gradient
from jbackprop.core.network import Network
from jbackprop.quantities.batch_size import norm_test, split_tests
from jbackprop.quantities.statistics import (
    NoiseScale,
    layer_squared_norms,
    noise_scale,
    squared_norm,
    squared_rows,
    wide,
)


class Spread(NamedTuple):
    """Weighted mean and standard deviation over a batch, of every layer: each of shape (L,)."""

    mean: Float[Array, "*steps L"]
    deviation: Float[Array, "*steps L"]


def delta_norms(factors: Factors) -> Spread:
    """Mean and spread of ‖δ_i^l‖ over the batch, of every layer, (L,)."""
    norms = jnp.stack([jnp.sqrt(squared_rows(d)) for d in factors.delta], axis=-1)
    share = (factors.weight * over_total(factors.weight))[:, None]
    mean = jnp.sum(share * norms, axis=0)
    return Spread(mean, jnp.sqrt(jnp.sum(share * (norms - mean[None]) ** 2, axis=0)))


class Units(NamedTuple):
    """Shares of a hidden layer's units, from 0 to 1: each of shape (L - 1,).

    Attributes:
        dead: units that pass no error back for any example: |f'(z)| below the threshold for all.
        saturated: |f'(z)| below the threshold, on average over units and examples.
    """

    dead: Float[Array, "*steps L1"]
    saturated: Float[Array, "*steps L1"]


def units(net: Network, factors: Factors, *, threshold: float = 1e-3) -> Units:
    """Dead and saturated units of every hidden layer, by |f'(z^l)| < threshold."""
    present = (factors.weight > 0).astype(factors.weight.dtype)
    share = present * over_total(present)
    dead, saturated = [], []
    for f, z in zip(net.activations[:-1], factors.tape.z[:-1], strict=True):
        flat = jnp.abs(wide(f.df(z))) < threshold
        # over examples: 1 where every one of them is flat
        of_unit = share @ flat.astype(share.dtype)
        dead.append(jnp.mean((of_unit > 1 - 0.5 * jnp.max(share)).astype(share.dtype)))
        saturated.append(jnp.mean(of_unit))
    nothing = jnp.zeros((0,), share.dtype)
    return Units(*(jnp.stack(v) if v else nothing for v in (dead, saturated)))


def update_ratio(params: Any, updates: Any) -> Float[Array, " L"]:
    """‖Δθ^l‖ / ‖θ^l‖ of every layer, (L,): how far a step moves w and b together, relatively."""
    norms = jnp.sqrt(squared_norm(params))
    return jnp.sqrt(squared_norm(updates)) / jnp.where(norms == 0, 1, norms)


class Histograms(NamedTuple):
    """Counts in every layer's bins; below the first edge and above the last come first and last.

    Attributes:
        a: of a^1 … a^L, (L, bins + 2).
        delta: of δ^1 … δ^L, (L, bins + 2).
    """

    a: Float[Array, "*steps L bins"]
    delta: Float[Array, "*steps L bins"]


def histograms(factors: Factors, a_edges: Any, delta_edges: Any) -> Histograms:
    """How often a^l and δ^l fall between given edges: weighted counts over examples and units.

    Args:
        factors: of a batch.
        a_edges, delta_edges: increasing numbers (bins + 1,), the same in every layer and step.
    """

    def counts(values: Array, edges: Array) -> Array:
        # the number below every edge; the bins are its differences
        weight, values = factors.weight, wide(values)
        below = [jnp.sum(weight @ (values < edge).astype(weight.dtype)) for edge in edges]
        total = jnp.sum(weight) * values.shape[1]
        return jnp.diff(jnp.stack([jnp.zeros_like(total), *below, total]))

    return Histograms(
        jnp.stack([counts(a, jnp.asarray(a_edges)) for a in factors.tape.a[1:]]),
        jnp.stack([counts(d, jnp.asarray(delta_edges)) for d in factors.delta]),
    )


class Panel(NamedTuple):
    """What one step tells of itself; `train_epoch` stacks it over steps.

    Attributes:
        cost: mean cost, ().
        norms: ‖g_i‖ of every example, (B,); 0 in absent rows.
        noise: `noise_scale`.
        norm_test, inner_product_test, orthogonality_test: of `batch_size.py`, () each.
        gradient_norm: ‖ḡ^l‖ of every layer, (L,).
        variance: tr Σ^l, the unbiased variance of an example's gradient by layer, (L,).
        delta: `delta_norms`.
        units: dead and saturated units.
        update_ratio: ‖Δθ^l‖ / ‖θ^l‖, (L,).
    """

    cost: Array
    norms: Array
    noise: NoiseScale
    norm_test: Array
    inner_product_test: Array
    orthogonality_test: Array
    gradient_norm: Array
    variance: Array
    delta: Spread
    units: Units
    update_ratio: Array


@functools.cache
def observe_all(net: Network) -> Callable[..., Panel]:
    """(factors, state, updates) -> `Panel`: to be written as `observe=`. Cost: ≤ 5/3.

    The same function for the same network, so that it compiles once.

    >>> import jax, jax.numpy as jnp, optax
    >>> import jbackprop as jb
    >>> net, optimizer = jb.Network((3, 4, 2)), optax.sgd(0.1)
    >>> state = jb.init_state(net, optimizer, jax.random.key(0))
    >>> x, t = jax.random.normal(jax.random.key(1), (8, 3)), jnp.ones((8, 2))
    >>> state, info = jb.train_epoch(
    ...     net, optimizer, state, x, t, batch_size=4, observe=jb.observe_all(net))
    >>> info.observed.norms.shape, info.observed.delta.mean.shape  # (steps, B), (steps, L)
    ((2, 4), (2, 2))
    """

    def observe(factors: Factors, state: Any, updates: Any) -> Panel:
        squared = layer_squared_norms(factors)
        of_mean = squared_norm(mean_gradient(factors))
        weight = factors.weight
        noise = noise_scale(factors)
        share = weight * over_total(weight)
        kappa = jnp.sum(share**2)
        bessel = jnp.where(jnp.isnan(noise.trace), jnp.nan, 1 - kappa)
        along, across = split_tests(factors)
        return Panel(
            cost=weighted_mean(factors.cost, weight),
            norms=jnp.sqrt(jnp.sum(squared, axis=-1)),
            noise=noise,
            norm_test=norm_test(factors),
            inner_product_test=along,
            orthogonality_test=across,
            gradient_norm=jnp.sqrt(of_mean),
            variance=(share @ squared - of_mean) / bessel,
            delta=delta_norms(factors),
            units=units(net, factors),
            update_ratio=update_ratio(state.params, updates),
        )

    return observe
