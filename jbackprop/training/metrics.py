"""How good the parameters are: cost and accuracy over a dataset, by the forward pass only."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jbackprop.core.arrays import check_size, fitted
from jbackprop.core.batch import as_batch, example_costs
from jbackprop.core.checks import as_target, as_weight, storable_input, storable_target
from jbackprop.core.costs import binary_cross_entropy, cross_entropy
from jbackprop.core.examples import sum_over_blocks
from jbackprop.core.network import Network, Params, as_layers
from jbackprop.core.numerics import over_total, unit
from jbackprop.core.placement import everywhere, placed


class Metrics(NamedTuple):
    """What `evaluate` tells: weighted means over examples, each of shape ().

    Attributes:
        cost: the mean cost.
        accuracy: the share of examples classified rightly, from 0 to 1.
    """

    cost: Float[Array, "*nets"]
    accuracy: Float[Array, "*nets"]


def every_label(y: Float[Array, " n"], t: Float[Array, " n"]) -> Bool[Array, ""]:
    """A `right=` for several labels at once:
    whether each output of one example lies on t's side of ½.

    For several labels at once, each of them there or not.

    >>> import jax.numpy as jnp
    >>> import jbackprop as jb
    >>> bool(jb.every_label(jnp.array([0.9, 0.2, 0.6]), jnp.array([1.0, 0.0, 1.0])))
    True
    """
    return jnp.all((y > 0.5) == (t > 0.5))


@placed(everywhere)
def evaluate(
    net: Network,
    params: Any,
    x: Any,
    t: Any,
    *,
    weight: Any = None,
    batch_size: Any = None,
    right: Callable[[Any, Any], Any] | None = None,
) -> Metrics:
    """Cost and accuracy over a dataset: Σ w_i C_i / Σ w_i and Σ w_i [right_i] / Σ w_i. Jitted.

    An example is right where argmax y = argmax t, if t is labels, the cost is `cross_entropy`, or
    every row of t that is present is one-hot; with one output and `binary_cross_entropy`, where y
    and t lie on the same side of ½. In all other cases nothing is classified, and the accuracy is
    NaN, unless `right` says what it is. It is NaN too where a cost is.

    Args:
        net: the network.
        params: (w^l, b^l) per layer.
        x: inputs of shape (N, n_0).
        t: ground truth of shape (N, n_L), or labels of shape (N,), as for `backprop`.
        weight: of shape (N,); by default 1. A row of weight 0 is absent.
        batch_size: examples held in memory at a time; by default all.
        right: (y, t) of one example, t a vector, to whether it is right; such as `every_label`.
            Make it once: a fresh lambda at every call compiles anew.

    Raises:
        ValueError: an argument does not fit the network; x is empty; batch_size below 1; `right`
            returns no single number.

    >>> import jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((2, 2), output=jb.softmax, cost=jb.cross_entropy)
    >>> params = [(jnp.eye(2), jnp.zeros(2))]
    >>> metrics = jb.evaluate(net, params, 100 * jnp.eye(2), jnp.array([0, 0]))
    >>> float(metrics.cost), float(metrics.accuracy)
    (50.0, 0.5)
    """
    layers = as_layers(net, params)
    dtype = layers[0].w.dtype
    x = jnp.asarray(storable_input(net, x, dtype))
    n = len(x)
    size = n if batch_size is None else batch_size
    check_size("batch_size", size)
    t = storable_target(net, t, dtype, (n,))
    as_target(net, t, dtype, lead=(n,))
    weight = None if weight is None else as_weight(weight, n, dtype)
    return _evaluate(net, layers, x, t, weight, int(size), right)


@partial(jax.jit, static_argnums=(0, 5, 6))
def _evaluate(
    net: Network, layers: Params, x: Any, t: Any, weight: Any, size: int, right: Any
) -> Metrics:
    weight = None if weight is None else unit(weight)

    def sums(x: Any, t: Any, weight: Any) -> Any:
        batch = as_batch(net, layers, x, t, weight)
        cost, y, t = example_costs(net, layers, batch)
        weight = batch.weight
        verdict = _right(net, y, t) if right is None else _verdict(right, y, t)
        terms = (
            jnp.ones_like(weight),
            cost,
            jnp.where(jnp.isnan(cost), jnp.nan, verdict.astype(weight.dtype)),
        )
        # 0 · NaN: a row of weight 0 has cost 0, but its accuracy may be NaN
        return [jnp.sum(jnp.where(weight == 0, 0, weight * v.astype(weight.dtype))) for v in terms]

    present, cost, right = sum_over_blocks(sums, x, t, weight, size=size)
    return Metrics(cost * over_total(present), right * over_total(present))


def _right(net: Network, y: Array, t: Array) -> Array:
    """Whether each example is classified rightly; NaN where nothing is classified."""
    if net.shapes[-1] == (1,):
        if net.cost == binary_cross_entropy:
            return jax.vmap(every_label)(y, t)
        return jnp.full(len(y), jnp.nan)
    found = jnp.argmax(y, -1) == jnp.argmax(t, -1)
    if net.cost == cross_entropy:
        return found
    one_hot = (jnp.sum(t == 1, -1) == 1) & jnp.all((t == 0) | (t == 1), -1)
    return jnp.where(one_hot, found.astype(jnp.float32), jnp.nan)


def _verdict(right: Callable[[Any, Any], Any], y: Array, t: Array) -> Array:
    """What a user's function says of each example."""
    number = jax.ShapeDtypeStruct((), jnp.float32)
    return jax.vmap(lambda y, t: fitted("right", right(y, t), number))(y, t)
