"""Flax NNX + optax, stepped from Python as its documentation does."""

# pyright: reportMissingImports=false
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import jbackprop as jb
from experiments.benchmark.peers import Candidate, Params
from experiments.benchmark.work import Problem, Work


class Mlp(nnx.Module):
    """Linear layers with one activation between them."""

    def __init__(self, problem: Problem, f: Any) -> None:
        self.f = f
        layers = []
        for w, b in problem.params:
            layer = nnx.Linear(w.shape[1], w.shape[0], rngs=nnx.Rngs(0))
            layer.kernel[...] = jnp.array(w.T)
            assert layer.bias is not None
            layer.bias[...] = jnp.array(b)
            layers.append(layer)
        self.layers = nnx.List(layers)

    def __call__(self, a: Any) -> Any:
        """Logits of a batch."""
        for layer in self.layers[:-1]:
            a = self.f(layer(a))
        return self.layers[-1](a)


def _cost(model: Mlp, x: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()


@nnx.jit
def _step(model: Mlp, optimizer: Any, x: Any, labels: Any) -> Any:
    value, grads = nnx.value_and_grad(_cost)(model, x, labels)
    optimizer.update(model, grads)
    return value


def candidates(
    work: Work, problem: Problem, hidden: jb.Activation, optimizer: optax.GradientTransformation
) -> list[Candidate]:
    """One jitted step at a time; the call's graph is traversed once, by nnx.cached_partial."""
    f = {"tanh": jnp.tanh, "relu": jax.nn.relu}[hidden.name]
    model = Mlp(problem, f)
    x, labels = jnp.asarray(problem.x), jnp.asarray(problem.labels)
    batches = [(x[i], labels[i]) for i in range(len(x))]

    def gradient() -> Params:
        grads = nnx.jit(nnx.grad(_cost))(Mlp(problem, f), *batches[0])
        return [(layer.kernel[...].T, layer.bias[...]) for _, layer in sorted(grads.layers.items())]

    step = nnx.cached_partial(_step, model, nnx.Optimizer(model, optimizer, wrt=nnx.Param))

    def run() -> Any:
        for batch in batches:
            step(*batch)
        jax.block_until_ready(jax.tree.leaves(nnx.state(model)))

    return [Candidate("Flax NNX + optax, stepped", gradient, run, "Flax NNX")]
