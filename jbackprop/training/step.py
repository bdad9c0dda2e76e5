"""One step: the factors of a batch, a gradient made of them, an optimizer's update."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jbackprop.core.backward import backpropagation
from jbackprop.core.batch import mean_cost
from jbackprop.core.checks import as_weight, in_the_structure_of, storable_input, storable_target
from jbackprop.core.factors import Factors, backprop
from jbackprop.core.network import Layer, Network
from jbackprop.core.numerics import weighted_mean
from jbackprop.core.placement import everywhere, like, placed
from jbackprop.core.rules import Rule, keep
from jbackprop.training.devices import (
    Placement,
    as_opt_state,
    as_params,
    gathered,
    own_rows,
    placement_of,
)
from jbackprop.training.optimizer import Optimizer, updates_of
from jbackprop.training.state import Info, TrainState


def as_the_state(given: dict[str, Any], shapes: Any) -> Any:
    """Where (the next state, what is told) lie: as the state before, and everywhere."""
    return like(given["state"], shapes[0]), everywhere(given, shapes[1])


@placed(as_the_state)
def step_of(
    net: Network,
    optimizer: Optimizer,
    state: TrainState,
    x: Any,
    t: Any,
    weight: Any,
    rule: Rule,
    gradient: Callable[[Factors], Any],
    observe: Callable[[Factors, TrainState, Any], Any] | None,
    place: Placement | None = None,
) -> tuple[TrainState, Info]:
    x, t, weight = own_rows(place, x, t, weight)
    params, opt_state, feedback, key, step = state
    # backpropagation draws nothing, and keys that nobody reads would be traced and compiled
    draws = rule != backpropagation
    k = jax.random.fold_in(key, step) if draws else key
    noise = jax.random.fold_in(k, 1) if draws else None

    def factors_at(params: Any) -> Factors:
        whole = gathered(place, params)
        return backprop(net, whole, x, t, weight=weight, rule=rule, feedback=feedback, key=noise)

    def gradient_of(params: Any, factors: Factors) -> Any:
        return as_params(place, in_the_structure_of("gradient", params, gradient(factors)))

    value_fn = lambda params: mean_cost(net, gathered(place, params), x, t, weight=weight)
    factors = factors_at(params)
    cost = weighted_mean(factors.cost, factors.weight)
    grads = gradient_of(params, factors)
    offered = {
        "factors": factors,
        "value": cost,
        "grad": grads,
        "value_fn": value_fn,
        "obj_fn": value_fn,
        "grad_fn": lambda params, *_: gradient_of(params, factors_at(params)),
    }
    updates, opt_state = updates_of(optimizer, grads, opt_state, params, offered)
    opt_state = as_opt_state(place, opt_state)
    if rule.update is not keep:
        k = jax.random.fold_in(k, 2)
        feedback = rule.update(net, params, feedback, updates, factors, k)
    observed = None if observe is None else _arrays(observe(factors, state, updates))
    params: Any = as_params(place, optax.apply_updates(params, updates))
    return TrainState(params, opt_state, feedback, key, step + 1), Info(cost, observed)


def _arrays(observed: Any) -> Any:
    """What `observe` returned, which leaves the compiled step as arrays."""
    try:
        return jax.tree.map(jnp.asarray, observed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"observe: expected a pytree of arrays, got {observed!r}") from error


def border(net: Network, state: Any, x: Any, t: Any, weight: Any) -> tuple[Any, ...]:
    """(state, x, t, weight) as a user hands them over, before `jax.jit` may wrap 64-bit integers or
    see no values, and how they lie on a mesh."""
    if not isinstance(state, TrainState):
        raise ValueError(
            f"state: expected a TrainState, from init_state, got {type(state).__name__}"
        )
    layers = state.params  # as `init_state` has them, or anything that unpacks to (w, b)
    known = type(layers) is tuple and layers and type(layers[0]) is Layer
    first = layers[0].w if known else jax.tree.leaves(layers)[0]
    dtype = getattr(first, "dtype", jnp.float32)
    x = storable_input(net, x, dtype)
    t = storable_target(net, t, dtype, x.shape[:1])
    if weight is not None:
        weight = as_weight(weight, len(x), dtype)
    return state, x, t, weight, placement_of(first, state, x, t, weight)
