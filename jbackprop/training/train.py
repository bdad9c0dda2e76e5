"""Training: jitted steps, and again; the state goes in and comes out, what is read comes beside it.

`train_epoch` is one compiled loop over shuffled batches in which every example counts once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from jbackprop.core.arrays import check_size
from jbackprop.core.backward import backpropagation
from jbackprop.core.checks import as_input, as_target
from jbackprop.core.factors import Factors, mean_gradient
from jbackprop.core.network import Network, as_layers
from jbackprop.core.placement import placed
from jbackprop.core.rules import Rule
from jbackprop.training.devices import everywhere_on, rows_at, varying
from jbackprop.training.optimizer import Optimizer, takes_optimizer
from jbackprop.training.state import Info, TrainState, epoch_order
from jbackprop.training.step import How, as_the_state, border, step_of


def _jitted(function: Callable[..., Any], static: tuple[int, ...]) -> dict[bool, Any]:
    """Once with the caller's state alive, and once with its memory used again: by `donate`."""
    return {
        donate: jax.jit(function, static_argnums=static, donate_argnums=(2,) if donate else ())
        for donate in (False, True)
    }


_steps = _jitted(step_of, (0, 1, 6))


@takes_optimizer
def train_step(
    net: Network,
    optimizer: Optimizer,
    state: TrainState,
    x: Any,
    t: Any,
    *,
    weight: Any = None,
    rule: Rule = backpropagation,
    gradient: Callable[[Factors], Any] = mean_gradient,
    observe: Callable[[Factors, TrainState, Any], Any] | None = None,
    compute_dtype: Any = None,
    microbatches: Any = 1,
    remat: Any = None,
    donate: bool = False,
) -> tuple[TrainState, Info]:
    """One update from one batch: factors, gradient, optimizer, new parameters. Jitted.

    The state that goes in stays as it is. Make `optimizer`, `gradient` and `observe` once, outside
    the loop: they are compiled in, and a fresh lambda or a fresh `optax.sgd(…)` at every call
    compiles anew. Learning rates to be mapped over go through `optax.inject_hyperparams`.

    Args:
        net: the network.
        optimizer: any optax transformation; one with extra arguments is given what it takes of
            `factors`, `value` (the cost), `grad`, `value_fn` (the cost of this batch as a function
            of parameters), `obj_fn` (the same) and `grad_fn`. Noise belongs here too:
            `optax.add_noise`, `gaussian_noise`.
        state: from `init_state`, or a step before.
        x: inputs of shape (B, n_0).
        t: ground truth of shape (B, n_L), or labels of shape (B,), as for `backprop`.
        weight: of shape (B,); by default 1. A row of weight 0 is absent.
        rule: how δ is carried back; the one that the state was made for.
        gradient: `Factors` to a gradient: (w, b) per layer.
        observe: (factors, state, updates) to any pytree of arrays, with the state that the factors
            came from.
        compute_dtype: bfloat16 or float16 for the pass, beside parameters, cost, sums and optimizer
            in a wider dtype; see `backprop`.
        microbatches: parts of the batch, each of which has the device to itself, for the numbers of
            the whole. `gradient` says by its attribute `combines`, "mean" or "sum", how those of
            the parts do: `mean_gradient`, `sum_gradient`, `clipped_mean` and `clipped_sum` have it.
            Nothing can be observed, and no optimizer is given factors.
        remat: layers from one whose activation is kept to the next; see `backprop`.
        donate: whether the new state may take the old one's memory, for networks that fill the
            device: then the old one's arrays are deleted.

    Returns:
        The next state, and the `Info` of this step.

    Raises:
        ValueError: an argument does not fit the network; the batch is empty; a weight is negative
            or infinite (the new parameters are NaN instead where its value is traced); with
            microbatches, a `gradient` that does not say how it combines, an `observe`, or a rule
            with an update of its own.

    >>> import jax, jax.numpy as jnp, optax
    >>> import jbackprop as jb
    >>> net, optimizer = jb.Network((2, 1)), optax.sgd(0.1)
    >>> params = [(jnp.array([[1.0, 1.0]]), jnp.array([0.0]))]
    >>> state = jb.init_state(net, optimizer, jax.random.key(0), params=params)
    >>> x, t = jnp.array([[1.0, 0.0]]), jnp.array([[3.0]])
    >>> state, info = jb.train_step(net, optimizer, state, x, t)
    >>> float(info.cost), state.params[0].w.tolist()
    (2.0, [[1.2000000476837158, 1.0]])
    """
    how = How(rule, gradient, observe, compute_dtype, microbatches, remat)
    state, x, t, weight, how = border(net, state, x, t, weight, how)
    return _steps[bool(donate)](net, optimizer, state, x, t, weight, how)


@takes_optimizer
def train_epoch(
    net: Network,
    optimizer: Optimizer,
    state: TrainState,
    x: Any,
    t: Any,
    *,
    batch_size: Any,
    weight: Any = None,
    rule: Rule = backpropagation,
    gradient: Callable[[Factors], Any] = mean_gradient,
    observe: Callable[[Factors, TrainState, Any], Any] | None = None,
    compute_dtype: Any = None,
    microbatches: Any = 1,
    remat: Any = None,
    donate: bool = False,
) -> tuple[TrainState, Info]:
    """Steps over all N examples once, in an order drawn from the state. One compiled loop.

    The last batch is filled up with rows of weight 0 where batch_size does not divide N, and is the
    only one masked. Everything else is as in `train_step`, with ⌈N / batch_size⌉ steps.

    On a mesh of D devices each computes its own rows of every batch. Of data that are on every
    device, a step of data parallel training moves the gradient alone: P numbers of 4 bytes, added
    up over devices. Of data that are spread along their examples it moves one batch of x and t
    besides, in their own dtypes, of which every device keeps a D-th. No parameter is gathered,
    but those that are spread along the same axis as the examples (`shardings_for`).

    Args:
        net, optimizer, state, weight, rule, gradient, observe, donate: as in `train_step`.
        compute_dtype, microbatches, remat: as there; the parts are those of each batch.
        x: all inputs, of shape (N, n_0).
        t: all ground truth, of shape (N, n_L), or labels of shape (N,).
        batch_size: examples in a step, at least 1; all where there are fewer.

    Returns:
        The next state, and an `Info` whose leaves have a leading axis: the steps.

    Raises:
        ValueError: as in `train_step`; batch_size below 1.

    >>> import jax, jax.numpy as jnp, optax
    >>> import jbackprop as jb
    >>> net, optimizer = jb.Network((3, 2)), optax.sgd(0.1)
    >>> state = jb.init_state(net, optimizer, jax.random.key(0))
    >>> x, t = jnp.ones((10, 3)), jnp.ones((10, 2))
    >>> state, info = jb.train_epoch(net, optimizer, state, x, t, batch_size=4)
    >>> info.cost.shape, int(state.step)
    ((3,), 3)

    Many networks at once, a sweep of learning rates for instance, are a `jax.vmap` over the state.
    With one key and step for all of them they see the examples in one order, and the products with
    x become one: about half the time of an order each at the smallest sizes.

    >>> optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    >>> def start(key, rate):
    ...     state = jb.init_state(net, optimizer, key)
    ...     state.opt_state.hyperparams["learning_rate"] = rate
    ...     return state
    >>> states = jax.vmap(start)(jax.random.split(jax.random.key(0), 3), jnp.array([0.01, 0.1, 1]))
    >>> states = states._replace(key=states.key[0], step=states.step[0])
    >>> axes = jb.TrainState(params=0, opt_state=0, feedback=0, key=None, step=None)
    >>> epoch = lambda state: jb.train_epoch(net, optimizer, state, x, t, batch_size=4)
    >>> states, info = jax.vmap(epoch, in_axes=(axes,), out_axes=(axes, 0))(states)
    >>> info.cost.shape  # (networks, steps)
    (3, 3)
    """
    how = How(rule, gradient, observe, compute_dtype, microbatches, remat)
    state, x, t, weight, how = border(net, state, x, t, weight, how)
    check_size("batch_size", batch_size)
    return _epochs[bool(donate)](net, optimizer, state, x, t, weight, how, int(batch_size))


@placed(as_the_state)
def _epoch(
    net: Network,
    optimizer: Optimizer,
    state: TrainState,
    x: Any,
    t: Any,
    weight: Any,
    how: How,
    batch_size: int,
) -> tuple[TrainState, Info]:
    place, x = how.place, as_input(net, x, None, lead=1)
    n, t = len(x), jnp.asarray(t)
    as_target(net, t, as_layers(net, state.params)[0].w.dtype, lead=(n,))  # here as a whole
    order = everywhere_on(place, epoch_order(state, n))

    lies = (P(), P(), P()) if place is None else (place.x, place.t, place.weight)
    x_at, t_at, weight_at = (
        partial(rows_at, place, data, spec) for data, spec in zip((x, t, weight), lies, strict=True)
    )

    def step(state: TrainState, rows: Array, weight: Any) -> tuple[TrainState, Info]:
        batch = x_at(rows), t_at(rows), weight
        return step_of(net, optimizer, state, *batch, how)

    def full(state: TrainState, rows: Array) -> tuple[TrainState, Info]:
        return step(state, rows, None if weight is None else weight_at(rows))

    batch_size = min(batch_size, n)
    whole = n - n % batch_size
    infos = []
    if whole:
        # Two steps in the loop's body let the parameters alternate between two buffers. With one,
        # XLA copies them at every step: the recursion may still read w where its update is written.
        batches = order[:whole].reshape(-1, batch_size)
        state = varying(full, state, batches[0])
        state, info = jax.lax.scan(full, state, batches, unroll=min(2, len(batches)))
        infos.append(info)
    if whole < n:
        present = jnp.arange(batch_size) < n - whole
        rows = jnp.pad(order[whole:], (0, batch_size - (n - whole)))
        state, info = step(
            state, rows, jnp.where(present, 1 if weight is None else weight_at(rows), 0)
        )
        infos.append(jax.tree.map(lambda leaf: leaf[None], info))
    return state, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *infos)


_epochs = _jitted(_epoch, (0, 1, 6, 7))
