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
from jbackprop.core.network import Network, Params, as_layers, forward
from jbackprop.quantities.norms import pairs_in_range
from jbackprop.quantities.statistics import products_of_all


def empirical_ntk(
    net: Network,
    params: Any,
    x: Any,
    other: Any = None,
    *,
    per_output: bool = False,
    block_size: Any = 256,
) -> Float[Array, "..."]:
    """Θ(x, x') = Σ_k Θ_k(x, x') for all pairs of two sets of inputs, (N, N'); or every Θ_k.

    Blocks of block_size × block_size pairs are computed one after the other, each with a pass of
    its own, so that only the result grows with N N'.

    Args:
        net: the network.
        params: (w^l, b^l) per layer.
        x: inputs of shape (N, n_0).
        other: inputs of shape (N', n_0); by default x.
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
    if not net.flat:
        raise ValueError(f"net: expected a dense network of vectors, so far, got sizes {net.sizes}")
    layers = as_layers(net, params)
    x = as_input(net, x, layers[0].w.dtype, lead=1)
    other = x if other is None else as_input(net, other, x.dtype, lead=1)
    return _kernel(net, layers, x, other, bool(per_output), int(block_size))


@partial(jax.jit, static_argnums=(0, 4, 5))
def _kernel(net: Network, layers: Params, x: Any, other: Any, apart: bool, size: int) -> Array:
    sides = [_blocks(side, size) for side in (x, other)]
    jacobian = jax.vmap(partial(_jacobian_factors, net, layers))

    def block(rows: Array, columns: Array) -> Array:
        one, other = jacobian(rows), jacobian(columns)
        side_by_side = lambda pairs: [(d.reshape(len(d), -1), a) for d, a in pairs]
        every = [pairs_in_range(side_by_side(pairs)).all() for pairs in (one, other)]
        fine = every[0] & every[1]
        if not apart:  # Σ_k δ_k · δ'_k is one product of all outputs' δ side by side
            return products_of_all(side_by_side(one), side_by_side(other), fine)
        (deltas, a), (deltas2, a2) = (zip(*pairs, strict=True) for pairs in (one, other))
        of_output = lambda ds, ds2: products_of_all(
            [*zip(ds, a, strict=True)], [*zip(ds2, a2, strict=True)], fine
        )
        return jax.vmap(of_output, in_axes=1)(deltas, deltas2)

    per_row = lambda rows: jax.lax.map(lambda columns: block(rows, columns), sides[1])
    blocks = jax.lax.map(per_row, sides[0])  # (rows, columns, [k], i, j)
    blocks = jnp.moveaxis(blocks, -2, 1)  # (rows, i, columns, [k], j)
    if apart:
        blocks = jnp.moveaxis(blocks, 3, 0)
    shape = blocks.shape
    whole = blocks.reshape(*shape[:-4], shape[-4] * shape[-3], shape[-2] * shape[-1])
    return whole[..., : len(x), : len(other)]


def _blocks(x: Array, size: int) -> Array:
    """(blocks, size, n_0), the last one filled up with zeros."""
    size = min(size, len(x))
    filled = jnp.pad(x, ((0, -len(x) % size), (0, 0)))
    return filled.reshape(-1, size, x.shape[1])


def _jacobian_factors(net: Network, layers: Params, x: Array) -> list[tuple[Array, Array]]:
    """(δ_k^l of every output k, a^{l-1}) of every layer, of ONE example."""
    tape = forward(net, layers, x)
    z, output = tape.z[-1], net.output
    if output.pull is None:
        starts = jnp.diag(output.slope(z))  # row k is ∂y_k/∂z^L
    else:
        starts = jax.vmap(lambda e: output.back(z, e))(jnp.eye(len(z), dtype=z.dtype))
    deltas = jax.vmap(lambda start: propagate(net, layers, tape, start))(starts)
    return [*zip(deltas, tape.a[:-1], strict=True)]
