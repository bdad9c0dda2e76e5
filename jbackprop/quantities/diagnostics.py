"""The state of the layers, and the panel: what to look at in every step of a compiled epoch.

All of it is computed from the factors inside the loop. `observe_all(net)` is an `observe`.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.factors import Factors
from jbackprop.core.network import Network
from jbackprop.core.numerics import (
    SEEN,
    norm,
    over_total,
    power_of_two,
    ratio,
    root,
    shares,
    unless,
    weighted_mean,
    wide,
)
from jbackprop.core.placement import everywhere, placed
from jbackprop.quantities.arguments import as_edges
from jbackprop.quantities.batch_size import norm_test_of, split_tests_of
from jbackprop.quantities.norms import lengths, norm_of_layers
from jbackprop.quantities.spread import NoiseScale, noise_scale_of, spread


class Spread(NamedTuple):
    """The mean and standard deviation of a number over a batch, weighted, of every layer:
    each of shape (L,)."""

    mean: Float[Array, "*steps L"]
    deviation: Float[Array, "*steps L"]


@placed(everywhere)
@jax.jit
def delta_norms(factors: Factors) -> Spread:
    """How large the error is in every layer: mean and spread of ‖δ_i^l‖ over the batch, (L,)."""
    return _spread_of(factors, lengths(factors).delta, shares(factors.weight))


@jax.jit
def _spread_of(factors: Factors, norms: Float[Array, "B L"], p: Float[Array, " B"]) -> Spread:
    mean = p @ norms
    away = norms - mean[None]

    def careful() -> Array:
        # what one norm is longer than another is no difference of norms: for a row r of them all,
        # ‖δ‖ - ‖r‖ = (δ - r) · (δ + r) / (‖δ‖ + ‖r‖)
        columns = []
        for delta, column in zip(factors.delta, norms.T, strict=True):
            size = power_of_two(jnp.max(column))
            rows, of_rows = wide(delta).reshape(len(delta), -1) / size, column / size
            r, of_r = rows[jnp.argmax(p)], of_rows[jnp.argmax(p)]
            longer = ratio(jnp.sum((rows - r[None]) * (rows + r[None]), axis=1), of_rows + of_r)
            columns.append((longer - p @ longer) * size)
        return jnp.stack(columns, axis=-1)

    present = jnp.where((p > 0)[:, None], away, 0)
    clear = jnp.all(jnp.max(jnp.abs(present), axis=0) >= SEEN**2 * mean)
    away = unless(clear, lambda: present, careful)
    size = power_of_two(jnp.max(jnp.abs(away), axis=0))
    return Spread(mean, root(p @ jnp.square(away / size[None])) * size)


class Units(NamedTuple):
    """What `units` tells: shares of a hidden layer's units, from 0 to 1, each of shape (L - 1,).

    Attributes:
        dead: units that pass no error back for any example: |f'(z)| below the threshold for all. Of
            a convolution a unit is a channel, at all its positions.
        saturated: |f'(z)| below the threshold, on average over units and examples.
    """

    dead: Float[Array, "*steps L1"]
    saturated: Float[Array, "*steps L1"]


@placed(everywhere)
def units(net: Network, factors: Factors, *, threshold: float = 1e-3) -> Units:
    """Dead and saturated units of every hidden layer, by |f'(z^l)| < threshold."""
    present = factors.weight > 0
    dtype = factors.weight.dtype
    share = over_total(present.astype(dtype))
    dead, saturated = [], []
    for f, z in zip(net.activations[:-1], factors.tape.z[:-1], strict=True):
        slopes = wide(jax.vmap(f.slope)(z))
        slopes = slopes.reshape(len(z), -1, z.shape[-1])  # one position, or all of a channel
        here = present[:, None, None]
        flat = (jnp.abs(slopes) < threshold) & here
        always = jnp.all(flat | ~here, axis=(0, 1)) & jnp.any(present)
        dead.append(jnp.mean(always.astype(dtype)))
        # counted in whole numbers: a million float32 shares do not add up to 1
        saturated.append(jnp.mean(jnp.sum(flat, axis=0).astype(dtype)) * share)
    nothing = jnp.zeros((0,), dtype)
    return Units(*(jnp.stack(v) if v else nothing for v in (dead, saturated)))


@placed(everywhere)
def update_ratio(params: Any, updates: Any) -> Float[Array, " L"]:
    """How far a step moves the parameters of every layer: ‖Δθ^l‖ / ‖θ^l‖, (L,), w and b together.

    Infinite where a layer leaves 0, and 0 where it stays there.
    """
    norms = norm_of_layers((*updates, *params))
    return ratio(norms[: len(updates)], norms[len(updates) :])


class Histograms(NamedTuple):
    """What `histograms` counts in every layer's bins;
    below the first edge and above the last come first and last.

    NaN is in none of them.

    Attributes:
        a: of a^1 … a^L, (L, bins + 2).
        delta: of δ^1 … δ^L, (L, bins + 2).
    """

    a: Float[Array, "*steps L bins"]
    delta: Float[Array, "*steps L bins"]


@placed(everywhere)
def histograms(factors: Factors, a_edges: Any, delta_edges: Any) -> Histograms:
    """How often a^l and δ^l fall between given edges: weighted counts over examples and units.

    Args:
        factors: of a batch.
        a_edges, delta_edges: increasing numbers (bins + 1,), the same in every layer and step.

    Raises:
        ValueError: edges are no increasing numbers (every count is NaN instead where traced).
    """
    dtype = factors.weight.dtype
    a_edges = as_edges("a_edges", a_edges, dtype)
    delta_edges = as_edges("delta_edges", delta_edges, dtype)

    def counts(values: Array, edges: Array) -> Array:
        # at the value's own bin, one after the other: a difference of counts would round
        values = wide(values).reshape(len(values), -1)
        inside = [values < edges[0]]
        inside += [(values >= low) & (values < high) for low, high in pairwise(edges)]
        inside += [values >= edges[-1]]
        found = jnp.stack([jnp.sum(factors.weight @ each.astype(dtype)) for each in inside])
        return jnp.where(jnp.isnan(edges[0]), jnp.nan, found)

    return Histograms(
        jnp.stack([counts(a, a_edges) for a in factors.tape.a[1:]]),
        jnp.stack([counts(d, delta_edges) for d in factors.delta]),
    )


class Panel(NamedTuple):
    """What `observe_all` tells of one step; `train_epoch` stacks it over steps.

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


@dataclass(frozen=True)
class ObserveAll:
    """`observe_all` of a network: equal networks, equal functions, and it pickles."""

    net: Network

    @placed(everywhere)
    def __call__(self, factors: Factors, state: Any, updates: Any) -> Panel:
        found = spread(factors)
        along, across = split_tests_of(factors, found)
        return Panel(
            cost=weighted_mean(factors.cost, factors.weight),
            norms=norm(found.lengths.gradient),
            noise=noise_scale_of(found),
            norm_test=norm_test_of(found),
            inner_product_test=along,
            orthogonality_test=across,
            gradient_norm=found.norms_of_mean,
            variance=found.traces,
            delta=_spread_of(factors, found.lengths.delta, found.share.p),
            units=units(self.net, factors),
            update_ratio=update_ratio(state.params, updates),
        )


def observe_all(net: Network) -> ObserveAll:
    """An `observe=` that tells all of it: (factors, state, updates) -> `Panel`. Cost: ≤ 5/3.

    Equal functions for equal networks, so that it compiles once.

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
    return ObserveAll(net)
