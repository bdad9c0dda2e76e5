"""Sums over a batch, in float32 at least: c_i δ_i and what it meets, ready to be added up."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.numerics import at_least_float32, wide


def outer_sum(c: Array, delta: Array, a: Array) -> Float[Array, "n_out n_in"]:
    """Σ_i c_i δ_i a_iᵀ of vectors, in float32 at least."""
    by_c, a = scaled(c, delta, a)
    return jnp.einsum("bj,bk->jk", by_c, a, preferred_element_type=at_least_float32(c.dtype))


def bias_sum(c: Array, delta: Array) -> Array:
    """Σ_i c_i Σ_p δ_ip, in float32 at least."""
    return jnp.sum(jnp.expand_dims(c, range(1, delta.ndim)) * wide(delta), range(delta.ndim - 1))


def scaled(c: Array, delta: Array, a: Array) -> tuple[Array, Array]:
    """(c_i δ_i, a_i), ready to be multiplied and added up in float32 at least.

    The smaller δ is scaled. bfloat16 has the range of float32, and machines that multiply it and
    add in float32; a float16 would overflow or vanish on the way."""
    by_c = jnp.expand_dims(c, range(1, delta.ndim)) * wide(delta)
    if delta.dtype == a.dtype == jnp.bfloat16:
        return by_c.astype(a.dtype), a
    return by_c, wide(a)
