"""Many networks at once: 256 of size S, with seeds and learning rates of their own, in one vmap."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbackprop as jb
from experiments.benchmark.timing import in_turn, ratio
from experiments.benchmark.work import Work, problem


def many(work: Work, nets: int, rounds: int, say: Any) -> dict[str, Any]:
    """µs per network and step: one vmapped `train_epoch`, one network alone, and PyTorch's bmm.

    The networks differ in parameters and learning rate. With one order of examples for all of them,
    as PyTorch has it here, the first layer's product is one for all; with an order each it is not.
    """
    net, optimizer = work.net, optax.inject_hyperparams(optax.sgd)(0.0)
    numbers = problem(work)
    x = jnp.asarray(numbers.x.reshape(-1, work.sizes[0]))
    labels = jnp.asarray(numbers.labels.ravel())

    def start(seed: Any, rate: Any) -> jb.TrainState:
        state = jb.init_state(net, optimizer, jax.random.key(seed))
        state.opt_state.hyperparams["learning_rate"] = rate
        return state

    def epoch(state: jb.TrainState) -> jb.TrainState:
        return jb.train_epoch(net, optimizer, state, x, labels, batch_size=work.batch)[0]

    rates = jnp.geomspace(1e-3, 1e-1, nets)
    states = jax.jit(jax.vmap(start))(jnp.arange(nets), rates)
    one = start(0, jnp.float32(0.01))
    shared = jb.TrainState._make([0, 0, 0, None, None])  # params, opt_state, feedback

    def together(axes: Any, states: Any) -> Any:
        return jax.vmap(epoch, in_axes=(axes,), out_axes=axes)(states)

    runs = {
        "vmap": _keeping(partial(together, shared), states._replace(key=one.key, step=one.step)),
        "vmap, an order each": _keeping(partial(together, 0), states),
        "alone": _keeping(epoch, one),
    }
    try:
        from experiments.benchmark.peers import by_torch

        runs["PyTorch"] = by_torch.many(work, nets, numbers)
    except ImportError as error:
        say(f"  PyTorch: skipped, {error.name} is not installed")
    seconds = in_turn(runs, rounds)
    seconds |= {name: seconds[name] / nets for name in runs if name != "alone"}
    return {
        "nets": nets,
        "us_per_net_and_step": {
            name: 1e6 * float(np.median(s)) / work.steps for name, s in seconds.items()
        },
        "vmap_over": {
            name: ratio(seconds["vmap"], s)._asdict()
            for name, s in seconds.items()
            if name != "vmap"
        },
    }


def _keeping(epoch: Any, state: Any) -> Any:
    """A run that trains on from where the last one stopped."""
    compiled = jax.jit(epoch, donate_argnums=0)
    state = jax.tree.map(jnp.copy, state)

    def run() -> None:
        nonlocal state
        state = jax.block_until_ready(compiled(state))

    return run
