"""A pass in a smaller dtype than the parameters': half the memory, and on accelerators less time.

Weights and inputs are rounded to it, and with them every z, a and δ; the products between them are
added up in float32. z^L, y, the cost, δ^L, norms, sums and the gradient stay what they are for the
parameters' own dtype. bfloat16 has the range of float32. float16 has not: what is beyond 65,504
is infinite there, and below 6e-8 nothing. "Loss scaling" moves all δ by one large factor into the
range, and has to find it by trial (Micikevicius et al., "Mixed Precision Training", 2018,
arXiv:1710.03740). The recursion is linear in δ, so that here each example has at each layer a power
of two of its own, δ^l = 2^k δ̂^l with 1 ≤ max |δ̂^l| < 2: nothing leaves the range, no step is
skipped, and there is nothing to remember.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jbackprop.core.arrays import as_floating, fitted
from jbackprop.core.backward import Deltas, backpropagation, propagate
from jbackprop.core.maps import shaped
from jbackprop.core.network import Layer, Network, Params, Tape, pooled
from jbackprop.core.numerics import power_of_two, wide
from jbackprop.core.rules import Rule, Signal


def as_compute_dtype(compute_dtype: Any, dtype: Any) -> np.dtype | None:
    """That of a pass, for parameters of `dtype`; None where it is their own."""
    if compute_dtype is None:
        return None
    chosen, dtype = as_floating("compute_dtype", compute_dtype), np.dtype(dtype)
    if chosen == dtype:
        return None
    if chosen.itemsize >= dtype.itemsize:
        raise ValueError(
            f"compute_dtype: expected a floating dtype smaller than the parameters' {dtype}, "
            f"got {chosen}"
        )
    return chosen


def rounded(tree: Any, dtype: Any) -> Any:
    """The floating leaves in that dtype; as they are where it is None."""
    if dtype is None:
        return tree

    def cast(leaf: Any) -> Any:
        return leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(cast, tree)


def with_exact_end(net: Network, tape: Tape, last: Layer) -> Tape:
    """z^L and y by the last layer as it is, not rounded, in its dtype.

    Of a z^L of 10 that is rounded to 8 digits a probability near 1 is off by a twentieth of what it
    lacks, and so is δ^L."""
    linear, pool = net.maps[-1], net.pools[-1]
    z = linear.apply(last.w, tape.a[-2].astype(last.w.dtype))
    z = shaped(linear, "apply(w, a)", z, net.z_shapes[-1])
    z = z + jnp.broadcast_to(last.b, z.shape)
    y = fitted(f"activation {net.output.name}", net.output.f(pooled(pool, z)), pooled(pool, z))
    return Tape((*tape.z[:-1], z), (*tape.a[:-1], y))


def is_scaled(rule: Rule, compute_dtype: Any) -> bool:
    """Whether `scaled` is the recursion: of another rule it is not known whether it is linear."""
    return compute_dtype == jnp.float16 and rule == backpropagation


def scaled(
    net: Network, params: Params, tape: Tape, delta_L: Any, *, rule: Rule, **given: Any
) -> Deltas:
    """`propagate` of a rule that is linear in δ, with a power of two for every layer; δ in float32
    at least."""
    powers: list[Array] = []

    def back(s: Signal) -> Array:
        return _apart(rule.delta(s), powers)

    start = _apart(wide(delta_L), powers)
    deltas = propagate(net, params, tape, start, rule=replace(rule, delta=back), **given)
    total, found = jnp.ones((), powers[0].dtype), ()
    for delta, power in zip(reversed(deltas), powers, strict=True):
        total = total * power
        found = (wide(delta) * total, *found)
    return found


def _apart(delta: Array, powers: list[Array]) -> Array:
    """δ̂ of δ = 2^k δ̂; the power is added to the list."""
    powers.append(power_of_two(jnp.max(wide(jnp.abs(delta)))))
    return (wide(delta) / powers[-1]).astype(delta.dtype)
