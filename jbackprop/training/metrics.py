"""How good the parameters are: cost and accuracy over a dataset, by the forward pass only."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.batch import as_batch, example_costs
from jbackprop.core.checks import as_input, as_real, as_target, as_weight, check_size
from jbackprop.core.costs import binary_cross_entropy
from jbackprop.core.network import Network, as_layers
from jbackprop.core.numerics import over_total, unit


class Metrics(NamedTuple):
    """Weighted means over examples, each of shape ().

    Attributes:
        cost: the mean cost.
        accuracy: the share of examples classified rightly, from 0 to 1.
    """

    cost: Float[Array, "*nets"]
    accuracy: Float[Array, "*nets"]


@partial(jax.jit, static_argnames=("net", "batch_size"))
def evaluate(
    net: Network,
    params: Any,
    x: Any,
    t: Any,
    *,
    weight: Any = None,
    batch_size: Any = None,
) -> Metrics:
    """The weighted mean cost Σ w_i C_i / Σ w_i, and the accuracy Σ w_i [right_i] / Σ w_i. Jitted.

    An example is right where argmax y = argmax t (or the label). With one output and
    `binary_cross_entropy`, where y and t lie on the same side of ½. With one output and any other
    cost nothing is classified, and the accuracy is NaN; it is NaN too where a cost is.

    Args:
        net: the network.
        params: (w^l, b^l) per layer.
        x: inputs of shape (N, n_0).
        t: ground truth of shape (N, n_L), or labels of shape (N,) with `cross_entropy`.
        weight: of shape (N,); by default 1. A row of weight 0 is absent.
        batch_size: examples held in memory at a time; by default all.

    Raises:
        ValueError: an argument does not fit the network; x is empty; batch_size below 1.

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
    x = as_input(net, x, None, rank=2)
    n = len(x)
    size = n if batch_size is None else batch_size
    check_size("batch_size", size)
    t = as_real("t", t)
    as_target(net, t, dtype, lead=(n,))
    weight = None if weight is None else unit(as_weight(weight, n, dtype))

    def sums(rows: Any) -> Any:
        batch = as_batch(net, layers, *rows)
        cost, y, t = example_costs(net, layers, batch)
        weight = batch.weight
        right = _right(net, y, t).astype(weight.dtype)
        right = jnp.where(jnp.isnan(cost), jnp.nan, right)
        terms = (jnp.ones_like(weight), cost.astype(weight.dtype), right)
        # 0 · NaN: a row of weight 0 has cost 0, but its accuracy may be NaN
        return [jnp.sum(jnp.where(weight == 0, 0, weight * term)) for term in terms]

    whole = n - n % size
    head, tail = [
        jax.tree.map(lambda a, s=s: a[s], (x, t, weight)) for s in (slice(whole), slice(whole, n))
    ]
    batches = jax.tree.map(lambda a: a.reshape(-1, size, *a.shape[1:]), head)
    totals = jax.tree.map(lambda a: jnp.sum(a, 0), jax.lax.map(sums, batches))
    if whole < n:
        totals = jax.tree.map(jnp.add, totals, sums(tail))
    present, cost, right = totals
    return Metrics(cost * over_total(present), right * over_total(present))


def _right(net: Network, y: Array, t: Array) -> Array:
    """Whether each example is classified rightly; NaN where nothing is classified."""
    if net.sizes[-1] > 1:
        return jnp.argmax(y, -1) == jnp.argmax(t, -1)
    if net.cost == binary_cross_entropy:
        return ((y > 0.5) == (t > 0.5))[:, 0]
    return jnp.full(len(y), jnp.nan)
