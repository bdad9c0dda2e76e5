"""What training needs to go on, and what a person reads of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jbackprop.core.arrays import as_real, check_key, check_size
from jbackprop.core.backward import backpropagation
from jbackprop.core.initial import init
from jbackprop.core.network import Network, as_layers
from jbackprop.core.rules import Rule
from jbackprop.training.optimizer import Optimizer, takes_optimizer
from jbackprop.training.shuffle import shuffled


class TrainState(NamedTuple):
    """All that training needs to go on.

    Attributes:
        params: the parameters: `Params`, or what unpacks to (w, b) per layer.
        opt_state: the optimizer's state.
        feedback: what the rule keeps.
        key: a typed key that never changes; every draw is folded from it and `step`.
        step: the number of updates made, int32.
    """

    params: Any
    opt_state: Any
    feedback: Any
    key: Array
    step: Int[Array, "*nets"]


class Info(NamedTuple):
    """What a step tells a person; `train_epoch` stacks it over its steps.

    Attributes:
        cost: the weighted mean cost of the batch, before the update.
        observed: what `observe` returned, or None.
    """

    cost: Float[Array, "*steps"]
    observed: Any


@takes_optimizer
def init_state(
    net: Network,
    optimizer: Optimizer,
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
        ValueError: params do not fit the network; key is no typed key; the optimizer is none.

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
    # Steps may donate the state. A buffer of the caller's, or one that stands in two places, must
    # not go with it; and a weak type would change at the first step, which would compile twice.
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype=jnp.asarray(leaf).dtype), state)


def epoch_order(state: TrainState, n: Any) -> Int[Array, " n"]:
    """Which of n examples each row of the coming `train_epoch` is: (n,) int32.

    Row r of the epoch's batches laid end to end is example `epoch_order(state, n)[r]`: with it what
    `observe` returned for every row, such as its norm, finds its example. Raises as `shuffled`.

    >>> import jax, optax
    >>> import jbackprop as jb
    >>> state = jb.init_state(jb.Network((3, 2)), optax.sgd(0.1), jax.random.key(0))
    >>> sorted(jb.epoch_order(state, 5).tolist())
    [0, 1, 2, 3, 4]
    """
    check_size("n", n)
    k = jax.random.fold_in(state.key, state.step)
    return shuffled(jax.random.fold_in(k, 0), jnp.arange(n), n)


def sgd_step(params: Any, grads: Any, learning_rate: Any) -> Any:
    """Gradient descent: w ← w - η ∂C/∂w and b ← b - η ∂C/∂b.

    The dtypes are those of params. Raises `ValueError` where a leaf is no array of real numbers.

    >>> import jax.numpy as jnp
    >>> import jbackprop as jb
    >>> params = [jb.Layer(jnp.ones((1, 1)), jnp.zeros(1))]
    >>> jb.sgd_step(params, params, 0.5)[0].w.tolist()
    [[0.5]]
    """

    def stepped(p: Any, g: Any) -> Array:
        p = as_real("params", p)
        return p - jnp.asarray(learning_rate, p.dtype) * as_real("grads", g, p.dtype)

    return jax.tree.map(stepped, params, grads)
