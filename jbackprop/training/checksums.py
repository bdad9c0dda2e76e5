"""A checksum of every array, the same however it is spread over devices.

The bits of an array are unsigned words u_i, at positions i. With a mixing m of 32 bits, one to one,

    Σ_i m(u_i ⊕ m(i + s))  mod 2^32,

for two seeds s. A word that changes changes its own term, and so the sum: no single one is missed,
and several are where two sums of 32 bits agree by chance. (With odd weights in place of m, two
signs that flip would cancel.) Sums of whole numbers come out the same in any order.

m is the last step of MurmurHash3 (Appleby).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

from jbackprop.core.placement import everywhere, placed

_SEEDS = 0x9E3779B9, 0x7F4A7C15


def checksums(leaves: dict[str, Any]) -> dict[str, UInt32[Array, "2"]]:
    """Of arrays of any dtype but keys, by name; on every device."""
    return {name: _checksum(leaf) for name, leaf in leaves.items()}


@jax.jit  # leaf by leaf: those of one shape, as of many layers, are compiled once
@placed(everywhere)
def _checksum(leaf: Array) -> UInt32[Array, "2"]:
    u = _words(leaf)
    i = _positions(u.shape)
    terms = (_mixed(u ^ _mixed(i + jnp.uint32(seed))) for seed in _SEEDS)
    return jnp.stack([jnp.sum(term, dtype=jnp.uint32) for term in terms])


def _words(leaf: Array) -> UInt32[Array, "..."]:
    """Its bits; a number of 8 bytes is two words."""
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    bits = jnp.dtype(f"uint{8 * min(leaf.dtype.itemsize, 4)}")
    return jax.lax.bitcast_convert_type(leaf, bits).astype(jnp.uint32)


def _positions(shape: tuple[int, ...]) -> UInt32[Array, "..."]:
    """0, 1, 2, … row by row, mod 2^32."""
    i, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in reversed(range(len(shape))):
        i += jnp.uint32(stride % 2**32) * jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        stride *= shape[axis]
    return i


def _mixed(h: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
    h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
    return h ^ (h >> 16)
