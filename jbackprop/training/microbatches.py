"""A batch in parts: the factors of one part at a time, and the gradient of the whole.

A sum over examples is the sum of its parts, a mean the mean of theirs, each with its share of all
weight. So a step takes the memory of a part, for a gradient that says which of the two it is, in
its attribute `combines`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jbackprop.core.checks import as_weight
from jbackprop.core.examples import sum_over_blocks
from jbackprop.core.factors import Factors
from jbackprop.core.numerics import shares, wide

WAYS = ("mean", "sum")


def check_parts(microbatches: Any, gradient: Any, observe: Any, updates_feedback: bool) -> None:
    """What cannot be had where the factors of a batch are never together."""
    if microbatches == 1:
        return
    found = getattr(gradient, "combines", None)
    if found not in WAYS:
        raise ValueError(
            "gradient: expected one that says how those of microbatches combine, by an attribute "
            f"combines of 'mean' or 'sum', as mean_gradient has, got {gradient!r} with {found!r}"
        )
    if observe is not None:
        raise ValueError(
            "observe: expected None, since with microbatches the factors of a batch are never "
            f"together, got {observe!r}"
        )
    if updates_feedback:
        raise ValueError(
            "rule: expected one without an update of its own, which takes the factors of a batch, "
            "and with microbatches they are never together"
        )


def over_parts(
    microbatches: int,
    factors_of: Callable[..., Factors],
    gradient: Callable[[Factors], Any],
    batch: tuple[Any, Any, Any, Any],
    dtype: Any,
) -> tuple[Any, Array]:
    """(gradient, mean cost) of a batch (x, t, weight, keys), a part at a time.

    `factors_of` takes a part of it; dtype is the parameters'."""
    x, t, weight, keys = batch
    size, weights = len(x), as_weight(weight, len(x), dtype)
    if microbatches > size:
        raise ValueError(f"microbatches: expected at most the {size} rows of x, got {microbatches}")
    mean = getattr(gradient, "combines", None) == "mean"

    def part(x: Any, t: Any, weight: Any, keys: Any, share: Array) -> Any:
        factors = factors_of(x, t, weight, keys)
        total = jnp.sum(share)
        by = total if mean else jnp.ones_like(total)
        grads = jax.tree.map(lambda g: wide(g) * by.astype(wide(g).dtype), gradient(factors))
        own = share.astype(factors.cost.dtype)
        return grads, jnp.sum(jnp.where(own == 0, 0, own * factors.cost))

    each = -(-size // microbatches)
    return sum_over_blocks(part, x, t, weight, keys, shares(weights), size=each)
