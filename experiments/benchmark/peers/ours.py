"""jbackprop: in a compiled loop over the same batches, and stepped from Python."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import jbackprop as jb
from experiments.benchmark.peers import Candidate, Params
from experiments.benchmark.work import Problem, Work, network


def candidates(
    work: Work, problem: Problem, hidden: jb.Activation, optimizer: optax.GradientTransformation
) -> list[Candidate]:
    """A scan of train_step, and train_step at a time."""
    net = network(work, hidden)
    x, labels = jnp.asarray(problem.x), jnp.asarray(problem.labels)
    params = jax.tree.map(jnp.asarray, problem.params)

    def gradient() -> Params:
        _, layers = jax.jit(jb.value_and_grad, static_argnums=0)(net, params, x[0], labels[0])
        return [tuple(layer) for layer in layers]

    @jax.jit
    def epoch(state: jb.TrainState) -> jb.TrainState:
        return jax.lax.scan(
            lambda state, batch: (jb.train_step(net, optimizer, state, *batch)[0], None),
            state,
            (x, labels),
        )[0]

    scanned = stepped = jb.init_state(net, optimizer, jax.random.key(0), params=params)
    stepped = jax.tree.map(jnp.copy, stepped)
    batches = [(x[i], labels[i]) for i in range(len(x))]

    def run_scan() -> Any:
        nonlocal scanned
        scanned = jax.block_until_ready(epoch(scanned))

    def run_steps() -> Any:
        nonlocal stepped
        for batch in batches:
            stepped, _ = jb.train_step(net, optimizer, stepped, *batch)
        jax.block_until_ready(stepped)

    return [
        Candidate("jbackprop, compiled epoch", gradient, run_scan, "jbackprop"),
        Candidate("jbackprop, stepped from Python", gradient, run_steps, "jbackprop stepped"),
    ]
