"""A batch: which of its rows are present, and what they cost by the forward pass alone.

A row of weight 0 is absent: its cost, tape and δ are 0, whatever is in it. Everywhere else a weight
is a factor in a sum or a mean, and nothing more.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jbackprop.core.arrays import as_numbers, check_size
from jbackprop.core.backward import output_delta
from jbackprop.core.checks import as_input, as_target, as_weight, is_label
from jbackprop.core.heads import head
from jbackprop.core.network import Layer, Network, Params, Tape, as_layers, at_output, forward
from jbackprop.core.numerics import weighted_mean, wide
from jbackprop.core.placement import everywhere, placed
from jbackprop.core.precision import as_compute_dtype, rounded, with_exact_end

Scalar = Float[Array, ""]


class Batch(NamedTuple):
    """x, t and weight made to fit; the rows that are absent, or None; whether t was labels."""

    x: Any
    t: Any
    weight: Any
    absent: Any
    label: bool


def as_batch(
    net: Network, layers: Params, x: Any, t: Any, weight: Any, *, compute_dtype: Any = None
) -> Batch:
    """The border of every function of a batch; x for a pass in another dtype than the layers'."""
    dtype = layers[0].w.dtype
    x = as_input(net, x, compute_dtype or dtype, lead=1)
    label, t = is_label(net, t, x.shape[:1]), as_target(net, t, dtype, lead=x.shape[:1])
    weights = as_weight(weight, len(x), dtype)
    return Batch(x, t, weights, None if weight is None else weights == 0, label)


def pad_batch(x: Any, t: Any, size: Any, *, weight: Any = None) -> tuple[Any, Any, Any]:
    """Makes ragged batches one shape, which compiles once:
    (x, t, weight) with rows of zeros and of weight 0 up to `size`.

    Args:
        x: inputs, of shape (B, …).
        t: ground truth, of shape (B, …).
        size: the rows that come back, at least B.
        weight: of shape (B,); by default 1.

    Returns:
        Arrays in the dtypes that they have, NumPy's where they are none of JAX; weight of shape
        (size,).

    Raises:
        ValueError: x, t and weight differ in length; there are more than size rows.

    >>> import numpy as np
    >>> import jbackprop as jb
    >>> x, t, weight = jb.pad_batch(np.ones((3, 2)), np.array([0, 1, 1]), 4)
    >>> x.shape, t.tolist(), weight.tolist()
    ((4, 2), [0, 1, 1, 0], [1.0, 1.0, 1.0, 0.0])
    """
    check_size("size", size)
    x, t = as_numbers("x", x), as_numbers("t", t)
    if x.ndim == 0 or x.shape[:1] != t.shape[:1]:
        raise ValueError(f"t: expected one row for each of x, {x.shape[:1]}, got shape {t.shape}")
    if len(x) > size:
        raise ValueError(f"size: expected at least the {len(x)} rows of x, got {size}")
    given = np.ones(len(x), np.float32) if weight is None else as_numbers("weight", weight)
    if given.shape != (len(x),):
        raise ValueError(f"weight: expected shape {(len(x),)}, got {given.shape}")

    def filled(rows: Any) -> Any:
        pad = jnp.pad if isinstance(rows, jax.Array) else np.pad
        return pad(rows, [(0, size - len(rows))] + [(0, 0)] * (rows.ndim - 1))

    return filled(x), filled(t), filled(given)


def without_absent(batch: Batch) -> Batch:
    """An absent row passes through as if it were the first one present.

    Were it 0, an output of 0 could stand where the cost's derivative is infinite, and spoil
    `jax.grad` of the masked cost."""
    if batch.absent is None:
        return batch
    first, none_present = jnp.argmin(batch.weight == 0), jnp.all(batch.weight == 0)
    x, t = _replace_rows(
        batch.absent, (batch.x, batch.t), lambda leaf: jnp.where(none_present, 0, leaf[first])
    )
    return batch._replace(x=x, t=t)


def _replace_rows(absent: Any, tree: Any, by: Callable[[Array], Any]) -> Any:
    """Other values in every absent row. A product with 0 would keep NaN."""
    return jax.tree.map(
        lambda leaf: jnp.where(jnp.expand_dims(absent, range(1, leaf.ndim)), by(leaf), leaf), tree
    )


def blank(absent: Any, tree: Any) -> Any:
    """0 in every absent row."""
    return tree if absent is None else _replace_rows(absent, tree, lambda leaf: 0)


def example_cost(net: Network, tape: Tape, t: Any) -> Any:
    """C of one example, in float32 at least: it is a sum over outputs."""
    z, y = at_output(net, tape)
    cost = head(net.output, net.cost).value(z, y, wide(t))
    if jnp.shape(cost) != ():
        raise ValueError(
            f"cost: expected {net.cost.name}.value(y, t) of shape (), got {jnp.shape(cost)}"
        )
    return cost


def example_costs(net: Network, layers: Params, batch: Batch, last: Layer | None = None) -> Any:
    """The forward pass of a batch: (C_i, y_i, t_i), with 0 in the absent rows. `last` is the last
    layer where the others are rounded."""
    x, t, _, absent, _ = without_absent(batch)

    def example(x: Any, t: Any) -> Any:
        tape = forward(net, layers, x)
        tape = tape if last is None else with_exact_end(net, tape, last)
        return example_cost(net, tape, t), tape.a[-1]

    return blank(absent, (*jax.vmap(example)(x, t), t))


def _spoilt(net: Network, layers: Params, batch: Batch) -> Any:
    """The absent rows whose cost has no derivative: what is in them may not pass at all."""
    fixed, xs, ts = jax.lax.stop_gradient((layers, batch.x, batch.t))
    finite = lambda rows: jnp.isfinite(rows).all(axis=range(1, rows.ndim))
    whole = finite(xs) & finite(ts)
    xs, ts = _replace_rows(~whole, (xs, ts), lambda leaf: 0)

    def regular(x: Any, t: Any) -> Any:
        tape = forward(net, fixed, x)
        slopes = [f.slope(z) for f, z in zip(net.activations[:-1], tape.z[:-1], strict=True)]
        delta_L = output_delta(net, tape, t, label=batch.label)
        met = (tape, slopes, delta_L, example_cost(net, tape, t))
        return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(met)]).all()

    return batch.absent & ~(whole & jax.vmap(regular)(xs, ts))


@placed(everywhere)
def mean_cost(
    net: Network, params: Any, x: Any, t: Any, *, weight: Any = None, compute_dtype: Any = None
) -> Scalar:
    """The weighted mean cost of a batch, by the forward pass only: the thing to hand to `jax.grad`.

    Arguments and errors are those of `backprop`. Its derivative with respect to a weight is
    (C_i - C̄) / Σ w, also where that weight is 0 and the row has a cost.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((3, 2))
    >>> params, x, t = jb.init(net, jax.random.key(0)), jnp.eye(3), jnp.ones((3, 2))
    >>> theirs = jax.grad(jb.mean_cost, argnums=1)(net, params, x, t)
    >>> ours = jb.mean_gradient(jb.backprop(net, params, x, t))
    >>> all(jnp.allclose(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)))
    True
    """
    layers = as_layers(net, params)
    compute_dtype = as_compute_dtype(compute_dtype, layers[0].w.dtype)
    batch = as_batch(net, layers, x, t, weight, compute_dtype=compute_dtype)
    last = None if compute_dtype is None else layers[-1]
    layers = rounded(layers, compute_dtype)
    if batch.absent is not None:
        batch = batch._replace(absent=_spoilt(net, layers, batch))
    cost, _, _ = example_costs(net, layers, batch, last)
    return weighted_mean(cost, batch.weight)
