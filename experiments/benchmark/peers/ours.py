"""jbackprop: in compiled loops over the same batches, and stepped from Python."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jbackprop as jb
from experiments.benchmark.peers import EPOCHS, Candidate, Params, scanned, stepped
from experiments.benchmark.work import Problem, Work, network


def candidates(
    work: Work, problem: Problem, hidden: jb.Activation, optimizer: optax.GradientTransformation
) -> list[Candidate]:
    """A scan of train_step, plain and unrolled as in train_epoch, and train_step at a time."""
    net = network(work, hidden)
    batches = jnp.asarray(problem.x), jnp.asarray(problem.labels)
    params = jax.tree.map(jnp.asarray, problem.params)
    state = jb.init_state(net, optimizer, jax.random.key(0), params=params)

    def gradient() -> Params:
        x, labels = batches
        _, grads = jax.jit(partial(jb.value_and_grad, net))(params, x[0], labels[0])
        return [(w, b) for w, b in grads]

    def step(state: jb.TrainState, batch: Any) -> tuple[jb.TrainState, Any]:
        state, info = jb.train_step(net, optimizer, state, *batch)
        return state, info.cost

    return [
        *(
            Candidate(
                f"jbackprop, {named}", gradient, scanned(step, state, batches, unroll), "jbackprop"
            )
            for unroll, named in EPOCHS.items()
        ),
        Candidate(
            "jbackprop, stepped from Python",
            gradient,
            stepped(step, state, batches),
            "jbackprop stepped",
        ),
    ]
