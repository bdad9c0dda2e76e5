"""The border of the quantities: limits, groups and directions, made to fit their factors."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jbackprop.core.arrays import (
    as_indices,
    as_numbers,
    as_real,
    check_rows,
    check_size,
    is_concrete,
)
from jbackprop.quantities.layers import RankOne, layers_of


def gradient_shapes(factors: Any) -> list[tuple[Any, Any]]:
    """Those of (w, b) per layer."""
    shapes = []
    for layer in layers_of(factors):
        n = layer.delta.shape[-1]
        plain = isinstance(layer, RankOne)
        w = (n, layer.a.shape[1]) if plain else layer.map.w_shape(layer.a.shape[1:])
        shapes.append((w, (n,)))
    return shapes


def as_direction(
    factors: Any, direction: Any, *, name: str = "direction"
) -> tuple[tuple[Array, Array], ...]:
    """(V, v) per layer, shaped as the gradient of these factors, in float32 at least."""
    dtype = factors.weight.dtype
    shapes = gradient_shapes(factors)
    try:
        pairs = tuple((as_real(name, w, dtype), as_real(name, b, dtype)) for w, b in direction)
        got: Any = [(w.shape, b.shape) for w, b in pairs]
    except (TypeError, ValueError):
        pairs, got = (), type(direction).__name__
    if got != shapes:
        raise ValueError(
            f"{name}: expected (w, b) per layer of the gradient's shapes {shapes}, got {got}"
        )
    return pairs


def check_same_network(factors: Any, other: Any) -> None:
    """Two batches whose gradients can be multiplied."""
    if not factors.maps and not other.maps:
        one, two = (tuple(a.shape[1] for a in f.tape.a) for f in (factors, other))
        if one != two:
            raise ValueError(f"other: expected factors of a network with sizes {one}, got {two}")
    shapes = lambda f: [v.shape[1:] for v in (*f.delta, *f.tape.a)]
    if factors.maps != other.maps or shapes(factors) != shapes(other):
        maps = [[used.map for used in f.maps] for f in (factors, other)]
        raise ValueError(
            f"other: expected factors of a network with the maps {maps[0]} and inputs "
            f"{shapes(factors)[len(factors.delta)]}, got {maps[1]} and "
            f"{shapes(other)[len(other.delta)]}"
        )


def as_limit(name: str, limit: Any, shape: tuple[int, ...], dtype: Any) -> Array:
    """A bound on norms: at least 0, or infinite. A bad one raises, or becomes NaN where traced."""
    limit = as_numbers(name, limit)
    if limit.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {limit.shape}")
    if is_concrete(limit):
        values = np.asarray(limit)
        if not (values >= 0).all():
            raise ValueError(f"{name}: expected at least 0, got {values}")
    limit = jnp.asarray(limit, dtype)
    return jnp.where(limit >= 0, limit, jnp.nan)


def as_groups(factors: Any, groups: Any, num_groups: Any) -> tuple[Array, Array]:
    """Group ids (B,), int32; and which of the rows that are present have one out of range.

    Such an id raises where ids and weights are concrete."""
    check_size("num_groups", num_groups)
    given, batch = as_numbers("groups", groups), factors.weight.shape
    if not jnp.issubdtype(given.dtype, jnp.integer) or given.shape != batch:
        raise ValueError(
            f"groups: expected integers of shape {batch}, got {given.dtype} {given.shape}"
        )
    groups, inside = as_indices("groups", given, num_groups)
    if is_concrete(groups) and is_concrete(factors.weight):
        fine = np.asarray(inside) | (np.asarray(factors.weight) == 0)
        check_rows("groups", f"ids from 0 to {num_groups - 1}", np.asarray(given), fine)
    return jnp.asarray(groups, jnp.int32), jnp.asarray(~inside) & (factors.weight != 0)


def as_edges(name: str, edges: Any, dtype: Any) -> Array:
    """Increasing numbers, one at least; others raise, or all become NaN where they are traced."""
    edges = as_numbers(name, edges)
    if edges.ndim != 1 or len(edges) == 0:
        raise ValueError(f"{name}: expected a row of increasing numbers, got shape {edges.shape}")
    if is_concrete(edges):
        values = np.asarray(edges).astype(np.dtype(dtype))
        if not (values[1:] > values[:-1]).all() or np.isnan(values[0]):
            raise ValueError(f"{name}: expected increasing numbers, got {values}")
    edges = jnp.asarray(edges, dtype)
    return jnp.where(jnp.all(jnp.diff(edges) > 0), edges, jnp.nan)
