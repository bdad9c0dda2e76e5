"""The empirical neural tangent kernel: products of the outputs' gradients, from their factors.

For output k of example i the recursion starts with ∂y_k/∂z^L in place of δ^L. What it leaves are
the rank-one factors of ∂y_k/∂w^l, and their products are those of `gram`:

    Θ_k(x, x') = ⟨∂y_k/∂θ(x), ∂y_k/∂θ(x')⟩ = Σ_l (δ_k^l · δ'_k^l) (1 + a^{l-1} · a'^{l-1})

Jacot et al., "Neural Tangent Kernel", 2018, arXiv:1806.07572.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.arrays import check_size
from jbackprop.core.backward import propagate
from jbackprop.core.checks import as_input
from jbackprop.core.network import Network, Params, as_layers, forward, pooled, unpooled
from jbackprop.core.placement import by_example, placed
from jbackprop.quantities.layers import RankOne, layer_of
from jbackprop.quantities.statistics import products_of_all


@placed(by_example("x"))
def empirical_ntk(
    net: Network,
    params: Any,
    x: Any,
    other: Any = None,
    *,
    per_output: bool = False,
    block_size: Any = 256,
) -> Float[Array, "..."]:
    """The tangent kernel of two sets of inputs:
    Θ(x, x') = Σ_k Θ_k(x, x') for all pairs, (N, N'); or every Θ_k.

    Blocks of block_size × block_size pairs are computed one after the other, each with a pass of
    its own, so that only the result grows with N N'.

    Args:
        net: the network.
        params: (w^l, b^l) per layer.
        x: inputs of shape (N, n_0), or (N, *shape of one).
        other: N' of them; by default x.
        per_output: whether to keep the outputs apart: then (n_L, N, N').
        block_size: rows of a block, and columns.

    Raises:
        ValueError: an argument does not fit the network; block_size below 1.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((2, 1))  # y = w x + b, whose gradient is (x, 1)
    >>> params = [(jnp.ones((1, 2)), jnp.zeros(1))]
    >>> jb.empirical_ntk(net, params, jnp.array([[1.0, 2.0], [0.0, 3.0]])).tolist()
    [[6.0, 7.0], [7.0, 10.0]]
    """
    check_size("block_size", block_size)
    layers = as_layers(net, params)
    x = as_input(net, x, layers[0].w.dtype, lead=1)
    other = x if other is None else as_input(net, other, x.dtype, lead=1)
    return _kernel(net, layers, x, other, bool(per_output), int(block_size))


@partial(jax.jit, static_argnums=(0, 4, 5))
def _kernel(net: Network, layers: Params, x: Any, other: Any, apart: bool, size: int) -> Array:
    sides = [_blocks(side, size) for side in (x, other)]
    of_block = _products_of_vectors if net.flat else _products_by_output
    block = partial(of_block, net, layers, apart)
    per_row = lambda rows: jax.lax.map(lambda columns: block(rows, columns), sides[1])
    blocks = jax.lax.map(per_row, sides[0])  # (rows, columns, [k], i, j)
    blocks = jnp.moveaxis(blocks, -2, 1)  # (rows, i, columns, [k], j)
    if apart:
        blocks = jnp.moveaxis(blocks, 3, 0)
    shape = blocks.shape
    whole = blocks.reshape(*shape[:-4], shape[-4] * shape[-3], shape[-2] * shape[-1])
    return whole[..., : len(x), : len(other)]


def _products_of_vectors(
    net: Network, layers: Params, apart: bool, rows: Array, columns: Array
) -> Array:
    """Of a pass for all outputs at once."""
    outputs = jnp.arange(net.shapes[-1][0])
    factors = partial(_factors_of_output, net, layers)
    jacobian = jax.vmap(lambda x: [(d, a[0]) for d, a in jax.vmap(partial(factors, x))(outputs)])
    one, other = jacobian(rows), jacobian(columns)
    present = jnp.ones(len(rows), bool), jnp.ones(len(columns), bool)
    if not apart:  # Σ_k δ_k · δ'_k is one product of all outputs' δ side by side
        side_by_side = lambda pairs: [RankOne(d.reshape(len(d), -1), a) for d, a in pairs]
        return products_of_all(side_by_side(one), side_by_side(other), *present)
    (deltas, a), (deltas2, a2) = (zip(*pairs, strict=True) for pairs in (one, other))
    of_output = lambda ds, ds2: products_of_all(
        [*map(RankOne, ds, a)], [*map(RankOne, ds2, a2)], *present
    )
    return jax.vmap(of_output, in_axes=1)(deltas, deltas2)


def _products_by_output(
    net: Network, layers: Params, apart: bool, rows: Array, columns: Array
) -> Array:
    """Of a pass for each output, one after the other."""

    def of_output(k: Array) -> Array:
        factors = jax.vmap(lambda x: _factors_of_output(net, layers, x, k))
        one, other = (
            [layer_of(linear, *pair) for linear, pair in zip(net.maps, factors(x), strict=True)]
            for x in (rows, columns)
        )
        return products_of_all(one, other, jnp.ones(len(rows), bool), jnp.ones(len(columns), bool))

    every = jax.lax.map(of_output, jnp.arange(net.shapes[-1][0]))
    return every if apart else every.sum(axis=0)


def _blocks(x: Array, size: int) -> Array:
    """(blocks, size, *shape), the last one filled up with zeros."""
    size = min(size, len(x))
    filled = jnp.pad(x, ((0, -len(x) % size), *[(0, 0)] * (x.ndim - 1)))
    return filled.reshape(-1, size, *x.shape[1:])


def _factors_of_output(
    net: Network, layers: Params, x: Array, k: Array
) -> list[tuple[Array, Array]]:
    """(δ_k^l, a^{l-1}) of every layer, of output k of ONE example: δ_k^L is ∂y_k/∂z^L."""
    tape = forward(net, layers, x)
    pool, output = net.pools[-1], net.output
    z = pooled(pool, tape.z[-1])
    e = (jnp.arange(len(z)) == k).astype(z.dtype)
    start = e * output.slope(z) if output.pull is None else output.back(z, e)
    start = unpooled(pool, tape.z[-1], start)
    return [*zip(propagate(net, layers, tape, start), tape.a[:-1], strict=True)]
