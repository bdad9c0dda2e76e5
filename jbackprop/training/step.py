"""One step: the factors of a batch, a gradient made of them, an optimizer's update."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jbackprop.core.arrays import check_size
from jbackprop.core.backward import backpropagation
from jbackprop.core.batch import mean_cost
from jbackprop.core.checks import as_weight, in_the_structure_of, storable_input, storable_target
from jbackprop.core.factors import Factors, backprop, keys_of, mean_gradient
from jbackprop.core.network import Layer, Network
from jbackprop.core.numerics import weighted_mean
from jbackprop.core.placement import everywhere, like, placed
from jbackprop.core.precision import as_compute_dtype
from jbackprop.core.remat import as_remat
from jbackprop.core.rules import Rule, keep
from jbackprop.training.devices import (
    Placement,
    as_opt_state,
    as_params,
    gathered,
    own_rows,
    placement_of,
)
from jbackprop.training.microbatches import check_parts, over_parts
from jbackprop.training.optimizer import Optimizer, updates_of
from jbackprop.training.state import Info, TrainState


def as_the_state(given: dict[str, Any], shapes: Any) -> Any:
    """Where (the next state, what is told) lie: as the state before, and everywhere."""
    return like(given["state"], shapes[0]), everywhere(given, shapes[1])


class How(NamedTuple):
    """All that a step is compiled for beside network and optimizer."""

    rule: Rule = backpropagation
    gradient: Callable[[Factors], Any] = mean_gradient
    observe: Callable[[Factors, TrainState, Any], Any] | None = None
    compute_dtype: Any = None
    microbatches: int = 1
    remat: int | None = None
    place: Placement | None = None


@placed(as_the_state)
def step_of(
    net: Network,
    optimizer: Optimizer,
    state: TrainState,
    x: Any,
    t: Any,
    weight: Any,
    how: How,
) -> tuple[TrainState, Info]:
    """(the next state, what is told of the step) of a batch that passed the `border`."""
    rule, gradient, observe, compute_dtype, microbatches, remat, place = how
    x, t, weight = own_rows(place, x, t, weight)
    params, opt_state, feedback, key, step = state
    # backpropagation draws nothing, and keys that nobody reads would be traced and compiled
    draws = rule != backpropagation
    k = jax.random.fold_in(key, step) if draws else key
    noise = keys_of(jax.random.fold_in(k, 1), len(x)) if draws else None
    exact = {"compute_dtype": compute_dtype}

    def pass_at(params: Any) -> tuple[Any, Any, Factors | None]:
        """(gradient, cost, factors): None in parts."""
        whole = gathered(place, params)

        def factors_of(x: Any, t: Any, weight: Any, key: Any) -> Factors:
            given = {"weight": weight, "rule": rule, "feedback": feedback, "key": key}
            return backprop(net, whole, x, t, **given, **exact, remat=remat)

        if microbatches > 1:
            dtype = jax.tree.leaves(params)[0].dtype
            batch = x, t, weight, noise
            layers, cost = over_parts(microbatches, factors_of, gradient, batch, dtype)
            factors = None
        else:
            factors = factors_of(x, t, weight, noise)
            layers, cost = gradient(factors), weighted_mean(factors.cost, factors.weight)
        grads = as_params(place, in_the_structure_of("gradient", params, layers))
        return grads, cost, factors

    value_fn = lambda params: mean_cost(net, gathered(place, params), x, t, weight=weight, **exact)
    grads, cost, factors = pass_at(params)
    offered = {
        "value": cost,
        "grad": grads,
        "value_fn": value_fn,
        "obj_fn": value_fn,
        "grad_fn": lambda params, *_: pass_at(params)[0],
    } | ({} if factors is None else {"factors": factors})
    updates, opt_state = updates_of(optimizer, grads, opt_state, params, offered)
    opt_state = as_opt_state(place, opt_state)
    if rule.update is not keep:
        k = jax.random.fold_in(k, 2)
        feedback = rule.update(net, params, feedback, updates, factors, k)
    observed = None if observe is None else _arrays(observe(factors, state, updates))  # pyright: ignore
    params: Any = as_params(place, optax.apply_updates(params, updates))
    return TrainState(params, opt_state, feedback, key, step + 1), Info(cost, observed)


def _arrays(observed: Any) -> Any:
    """What `observe` returned, which leaves the compiled step as arrays."""
    try:
        return jax.tree.map(jnp.asarray, observed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"observe: expected a pytree of arrays, got {observed!r}") from error


def border(net: Network, state: Any, x: Any, t: Any, weight: Any, how: How) -> tuple[Any, ...]:
    """(state, x, t, weight) as a user hands them over, before `jax.jit` may wrap 64-bit integers or
    see no values, and how a step is made, by where they lie on a mesh too."""
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
    how = how._replace(place=placement_of(first, state, x, t, weight))
    return state, x, t, weight, how if how[3:6] == _PLAIN[3:6] else _checked(how, dtype)


_PLAIN = How()


def _checked(how: How, dtype: Any) -> How:
    """The options that few steps have, as they are compiled in."""
    check_size("microbatches", how.microbatches)
    updates = how.rule.update is not keep
    check_parts(int(how.microbatches), how.gradient, how.observe, updates)
    return how._replace(
        compute_dtype=as_compute_dtype(how.compute_dtype, dtype),
        microbatches=int(how.microbatches),
        remat=as_remat(how.remat),
    )
