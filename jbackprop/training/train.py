"""Training: the factors of a batch, a gradient made of them, an optimizer's update; and again.

State goes in and comes out; what a person reads comes beside it. `train_epoch` is one compiled loop
over shuffled batches in which every example counts once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jbackprop.core.backward import Rule, backpropagation, keep
from jbackprop.core.checks import as_input, as_real, as_target, as_weight, check_key, check_size
from jbackprop.core.factors import Factors, backprop, mean_gradient
from jbackprop.core.network import Network, Params, as_layers, init
from jbackprop.core.numerics import weighted_mean
from jbackprop.training.shuffle import shuffled


class TrainState(NamedTuple):
    """All that training needs to go on.

    Attributes:
        params: the parameters.
        opt_state: the optimizer's state.
        feedback: what the rule keeps.
        key: a typed key that never changes; every draw is folded from it and `step`.
        step: the number of updates made, int32.
    """

    params: Params
    opt_state: Any
    feedback: Any
    key: Array
    step: Int[Array, "*nets"]


class Info(NamedTuple):
    """What a person reads of a step; `train_epoch` stacks it over its steps.

    Attributes:
        cost: the weighted mean cost of the batch, before the update.
        observed: what `observe` returned, or None.
    """

    cost: Float[Array, "*steps"]
    observed: Any


def sgd_step(params: Any, grads: Any, learning_rate: Any) -> Any:
    """Gradient descent: w ← w - η ∂C/∂w and b ← b - η ∂C/∂b.

    >>> import jax.numpy as jnp
    >>> import jbackprop as jb
    >>> params = [jb.Layer(jnp.ones((1, 1)), jnp.zeros(1))]
    >>> jb.sgd_step(params, params, 0.5)[0].w.tolist()
    [[0.5]]
    """
    return jax.tree.map(lambda p, g: p - jnp.asarray(learning_rate, p.dtype) * g, params, grads)


def init_state(
    net: Network,
    optimizer: optax.GradientTransformation,
    key: Any,
    *,
    rule: Rule = backpropagation,
    params: Any = None,
) -> TrainState:
    """The state before the first step.

    Args:
        net: the network.
        optimizer: any optax transformation.
        key: a typed key; params, feedback and training get keys split from it.
        rule: how δ is carried back; its `init` makes the feedback.
        params: (w^l, b^l) per layer, copied; by default drawn by `init`.

    Raises:
        ValueError: params do not fit the network; key is no typed key.

    >>> import jax, optax
    >>> import jbackprop as jb
    >>> state = jb.init_state(jb.Network((64, 32, 10)), optax.sgd(0.1), jax.random.key(0))
    >>> int(state.step)
    0
    """
    check_key(key)
    for_params, for_feedback, for_training = jax.random.split(key, 3)
    layers = init(net, for_params) if params is None else as_layers(net, params)
    feedback = rule.init(net, layers, for_feedback)
    state = TrainState(layers, optimizer.init(layers), feedback, for_training, jnp.int32(0))
    # Steps donate the state. A buffer of the caller's, or one that stands in two places, must not
    # go with it; and a weak type would change at the first step, which would then compile twice.
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=jnp.asarray(leaf).dtype), state)


_STATIC = ("net", "optimizer", "rule", "gradient", "observe")


def _step(
    net: Network,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    x: Any,
    t: Any,
    weight: Any,
    rule: Rule,
    gradient: Callable[[Factors], Params],
    observe: Callable[[Factors, TrainState, Any], Any] | None,
) -> tuple[TrainState, Info]:
    params, opt_state, feedback, key, step = state
    # backpropagation draws nothing, and keys that nobody reads would be traced and compiled
    draws = rule != backpropagation
    k = jax.random.fold_in(key, step) if draws else key
    noise = jax.random.fold_in(k, 1) if draws else None
    factors = backprop(net, params, x, t, weight=weight, rule=rule, feedback=feedback, key=noise)
    cost = weighted_mean(factors.cost, factors.weight)
    grads = gradient(factors)
    update = optax.with_extra_args_support(optimizer).update
    updates, opt_state = update(grads, opt_state, params, factors=factors, value=cost, grad=grads)
    if rule.update is not keep:
        k = jax.random.fold_in(k, 2)
        feedback = rule.update(net, params, feedback, updates, factors, k)
    observed = None if observe is None else observe(factors, state, updates)
    params: Any = optax.apply_updates(params, updates)
    return TrainState(params, opt_state, feedback, key, step + 1), Info(cost, observed)


@partial(jax.jit, static_argnames=_STATIC, donate_argnames="state")
def train_step(
    net: Network,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    x: Any,
    t: Any,
    *,
    weight: Any = None,
    rule: Rule = backpropagation,
    gradient: Callable[[Factors], Params] = mean_gradient,
    observe: Callable[[Factors, TrainState, Any], Any] | None = None,
) -> tuple[TrainState, Info]:
    """One update from one batch: factors, gradient, optimizer, new parameters. Jitted.

    `state` is donated: use the one returned; the old one's arrays are deleted. Make `optimizer`,
    `gradient` and `observe` once, outside the loop: they are compiled in, and a fresh lambda or a
    fresh `optax.sgd(…)` at every call compiles anew. Learning rates to be mapped over go through
    `optax.inject_hyperparams`.

    Args:
        net: the network.
        optimizer: any optax transformation; one with extra arguments is given `factors`, `value`
            (the cost) and `grad`. Noise belongs here too: `optax.add_noise`.
        state: from `init_state`, or a step before.
        x: inputs of shape (B, n_0).
        t: ground truth of shape (B, n_L), or labels of shape (B,) with `cross_entropy`.
        weight: of shape (B,); by default 1. A row of weight 0 is absent. One that is negative or
            NaN makes the new parameters NaN, since no value is known while this is traced.
        rule: how δ is carried back; the one that the state was made for.
        gradient: `Factors` to a gradient of type `Params`.
        observe: (factors, state, updates) to any pytree, with the state that the factors came from.

    Returns:
        The next state, and the `Info` of this step.

    Raises:
        ValueError: an argument does not fit the network; the batch is empty.

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
    return _step(net, optimizer, state, x, t, weight, rule, gradient, observe)


@partial(jax.jit, static_argnames=(*_STATIC, "batch_size"), donate_argnames="state")
def train_epoch(
    net: Network,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    x: Any,
    t: Any,
    *,
    batch_size: Any,
    weight: Any = None,
    rule: Rule = backpropagation,
    gradient: Callable[[Factors], Params] = mean_gradient,
    observe: Callable[[Factors, TrainState, Any], Any] | None = None,
) -> tuple[TrainState, Info]:
    """Steps over all N examples once, in an order drawn from the state. One compiled loop.

    The last batch is filled up with rows of weight 0 where batch_size does not divide N, and is the
    only one masked. Everything else is as in `train_step`, with ⌈N / batch_size⌉ steps.

    Many networks at once are a `jax.vmap` over the state. With one key and step for all of them,
    `in_axes=TrainState(0, 0, 0, None, None)`, they see the examples in one order, and the products
    with x become one: about half the time of an order each at the smallest sizes.

    Args:
        net, optimizer, state, weight, rule, gradient, observe: as in `train_step`.
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
    """
    check_size("batch_size", batch_size)
    dtype = state.params[0].w.dtype
    x = as_input(net, x, None, rank=2)
    n = len(x)
    t = as_real("t", t)
    as_target(net, t, dtype, lead=(n,))  # checked here as a whole, made to fit batch by batch
    weight = None if weight is None else as_weight(weight, n, dtype)
    k = jax.random.fold_in(state.key, state.step)
    order = shuffled(jax.random.fold_in(k, 0), jnp.arange(n), n)

    def step(state: TrainState, rows: Array, weight: Any) -> tuple[TrainState, Info]:
        return _step(net, optimizer, state, x[rows], t[rows], weight, rule, gradient, observe)

    def full(state: TrainState, rows: Array) -> tuple[TrainState, Info]:
        return step(state, rows, None if weight is None else weight[rows])

    batch_size = min(batch_size, n)
    whole = n - n % batch_size
    infos = []
    if whole:
        # Two steps in the loop's body let the parameters alternate between two buffers. With one,
        # XLA copies them at every step: the recursion may still read w where its update is written.
        batches = order[:whole].reshape(-1, batch_size)
        state, info = jax.lax.scan(full, state, batches, unroll=min(2, len(batches)))
        infos.append(info)
    if whole < n:
        present = jnp.arange(batch_size) < n - whole
        rows = jnp.pad(order[whole:], (0, batch_size - (n - whole)))
        state, info = step(
            state, rows, jnp.where(present, 1 if weight is None else weight[rows], 0)
        )
        infos.append(jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], info))
    return state, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *infos)
