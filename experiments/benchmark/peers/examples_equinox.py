"""Clipping by Equinox: `vmap` of `filter_grad` over a model."""

# pyright: reportMissingImports=false
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from experiments.benchmark.examples import Peer, kept
from experiments.benchmark.peers.by_equinox import sequential
from experiments.benchmark.peers.examples_jax import clipped
from experiments.benchmark.work import Problem, Work


def candidates(work: Work, numbers: Problem, max_norm: float, *, small: bool) -> list[Peer]:
    """Where B × P is small enough."""
    if not small:
        return []
    arrays, static = eqx.partition(sequential(work, numbers, jnp.tanh), eqx.is_array)

    def cost(arrays: Any, x: Any, t: Any) -> Any:
        logits = eqx.combine(arrays, static)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, t)

    def form(arrays: Any, x: Any, t: Any) -> Any:
        grads = jax.vmap(jax.grad(cost), (None, 0, 0))(arrays, x, t)
        mean = clipped(grads, max_norm)
        return [(layer.weight, layer.bias) for layer in mean.layers[::2]]

    k = kept(form, arrays, jnp.asarray(numbers.x), jnp.asarray(numbers.labels))
    return [
        Peer("Equinox, vmap(grad)", "clipped mean", k.result, k.run, k.temporary_bytes, k.steps)
    ]
