"""Equinox + optax, stepped from Python as its documentation does."""

# pyright: reportMissingImports=false
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import jbackprop as jb
from experiments.benchmark.peers import Candidate, Params
from experiments.benchmark.work import Problem, Work


def sequential(work: Work, problem: Problem, f: Any) -> Any:
    """The network of the work, its last layer's outputs logits."""
    layers: list[Any] = []
    for (w, b), n_in, n_out in zip(problem.params, work.sizes, work.sizes[1:], strict=False):
        linear = eqx.nn.Linear(n_in, n_out, key=jax.random.key(0))
        where = lambda m: (m.weight, m.bias)
        layers += [
            eqx.tree_at(where, linear, (jnp.array(w), jnp.array(b))),
            eqx.nn.Lambda(f),
        ]
    return eqx.nn.Sequential(layers[:-1])


def candidates(
    work: Work, problem: Problem, hidden: jb.Activation, optimizer: optax.GradientTransformation
) -> list[Candidate]:
    """One jitted step at a time, its arguments donated."""
    f = {"tanh": jnp.tanh, "relu": jax.nn.relu}[hidden.name]
    model = sequential(work, problem, f)

    def cost(model: Any, x: Any, labels: Any) -> Any:
        logits = jax.vmap(model)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    @eqx.filter_jit(donate="all-except-first")
    def step(batch: Any, model: Any, opt_state: Any) -> Any:
        value, grads = eqx.filter_value_and_grad(cost)(model, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, eqx.filter(model, eqx.is_array))
        return eqx.apply_updates(model, updates), opt_state, value

    x, labels = jnp.asarray(problem.x), jnp.asarray(problem.labels)
    batches = [(x[i], labels[i]) for i in range(len(x))]

    def gradient() -> Params:
        grads = eqx.filter_jit(eqx.filter_grad(cost))(model, *batches[0])
        return [(layer.weight, layer.bias) for layer in grads.layers[::2]]

    arrays, static = eqx.partition(model, eqx.is_array)
    current = eqx.combine(jax.tree.map(jnp.copy, arrays), static)
    opt_state = optimizer.init(eqx.filter(current, eqx.is_array))

    def run() -> Any:
        nonlocal current, opt_state
        for batch in batches:
            current, opt_state, _ = step(batch, current, opt_state)
        jax.block_until_ready(eqx.filter(current, eqx.is_array))

    return [Candidate("Equinox + optax, stepped", gradient, run, "Equinox")]
