"""A batch: which of its rows are present, and what they cost by the forward pass alone.

A row of weight 0 is absent: its cost, tape and δ are 0, whatever is in it. Everywhere else a weight
is a factor in a sum or a mean, and nothing more.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.checks import as_input, as_target, as_weight, is_label
from jbackprop.core.costs import head
from jbackprop.core.network import Network, Params, Tape, as_layers, forward

Scalar = Float[Array, ""]


class Batch(NamedTuple):
    """x, t and weight made to fit; the rows that are absent, or None; whether t was labels."""

    x: Any
    t: Any
    weight: Any
    absent: Any
    label: bool


def as_batch(net: Network, layers: Params, x: Any, t: Any, weight: Any) -> Batch:
    """The border of every function of a batch."""
    dtype = layers[0].w.dtype
    x = as_input(net, x, dtype, rank=2)
    label, t = is_label(t, x.shape[:1]), as_target(net, t, dtype, lead=x.shape[:1])
    weights = as_weight(weight, len(x), dtype)
    if weight is None:
        return Batch(x, t, weights, None, label)
    # An absent row passes through as if it were the first one present. Were it 0, an output of 0
    # could stand where the cost's derivative is infinite, and spoil `jax.grad` of the masked cost.
    absent = weights == 0
    first, none_present = jnp.argmin(absent), jnp.all(absent)
    x, t = _replace_rows(absent, (x, t), lambda leaf: jnp.where(none_present, 0, leaf[first]))
    return Batch(x, t, weights, absent, label)


def _replace_rows(absent: Any, tree: Any, by: Callable[[Array], Any]) -> Any:
    """Other values in every absent row. A product with 0 would keep NaN."""
    return jax.tree.map(
        lambda leaf: jnp.where(jnp.expand_dims(absent, range(1, leaf.ndim)), by(leaf), leaf), tree
    )


def blank(absent: Any, tree: Any) -> Any:
    """0 in every absent row."""
    return tree if absent is None else _replace_rows(absent, tree, lambda leaf: 0)


def example_cost(net: Network, tape: Tape, t: Any) -> Any:
    """C of one example."""
    cost = head(net.output, net.cost).value(tape.z[-1], tape.a[-1], t)
    if jnp.shape(cost) != ():
        raise ValueError(
            f"cost: expected {net.cost.name}.value(y, t) of shape (), got {jnp.shape(cost)}"
        )
    return cost


def over_total(weight: Float[Array, " B"]) -> Scalar:
    """1 / Σ w. Where all weights are 0, so is every sum that it multiplies."""
    total = jnp.sum(weight)
    return 1 / jnp.where(total == 0, 1, total)


def weighted_mean(values: Float[Array, " B"], weight: Float[Array, " B"]) -> Scalar:
    """Σ_i w_i v_i / Σ_i w_i; 0 where all weights are 0."""
    return jnp.sum(weight * values.astype(weight.dtype)) * over_total(weight)


def example_costs(net: Network, params: Any, x: Any, t: Any, weight: Any) -> Any:
    """The forward pass of a batch: (C_i, y_i, t_i, w_i), with 0 in the rows of weight 0."""
    layers = as_layers(net, params)
    x, t, weight, absent, _ = as_batch(net, layers, x, t, weight)

    def example(x: Any, t: Any) -> Any:
        tape = forward(net, layers, x)
        return example_cost(net, tape, t), tape.a[-1]

    cost, y, t = blank(absent, (*jax.vmap(example)(x, t), t))
    return cost, y, t, weight


def mean_cost(net: Network, params: Any, x: Any, t: Any, *, weight: Any = None) -> Scalar:
    """The weighted mean cost of a batch, by the forward pass only: the thing to hand to `jax.grad`.

    Arguments and errors are those of `backprop`.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((3, 2))
    >>> params, x, t = jb.init(net, jax.random.key(0)), jnp.eye(3), jnp.ones((3, 2))
    >>> theirs = jax.grad(jb.mean_cost, argnums=1)(net, params, x, t)
    >>> ours = jb.mean_gradient(jb.backprop(net, params, x, t))
    >>> all(jnp.allclose(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)))
    True
    """
    cost, _, _, weight = example_costs(net, params, x, t, weight)
    return weighted_mean(cost, weight)
