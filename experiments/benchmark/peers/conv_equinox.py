"""Convolutional networks in Equinox, stepped from Python: `eqx.nn.Conv` and `eqx.nn.MaxPool2d`."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from experiments.benchmark.peers import Candidate
from experiments.benchmark.peers.conv_jax import F, loops
from experiments.benchmark.peers.spatial import Case, each, sides
from jbackprop import Conv

POOLS: dict[int, Any] = {1: eqx.nn.MaxPool1d, 2: eqx.nn.MaxPool2d}


def sequential(case: Case) -> Any:
    """The network of one example, channels first."""
    net, found = case.net, []
    layers = zip(case.params, net.maps, net.pools, net.shapes, net.z_shapes, strict=False)
    for (w, b), linear, pool, in_shape, z_shape in layers:
        rank = len(in_shape) - 1
        where = lambda m: (m.weight, m.bias)
        if isinstance(linear, Conv):
            layer = eqx.nn.Conv(
                rank, w.shape[-1], len(w), w.shape[1:-1], each(linear.stride, rank),
                sides(linear, in_shape), key=jax.random.key(0),
            )  # fmt: skip
            new = jnp.moveaxis(w, -1, 1), jnp.asarray(b).reshape(-1, *(1,) * rank)
        else:
            if rank:
                found.append(eqx.nn.Lambda(jnp.ravel))
            layer = eqx.nn.Linear(w.shape[1], len(w), key=jax.random.key(0))
            matrix = jnp.moveaxis(w.reshape(len(w), *in_shape), -1, 1).reshape(len(w), -1)
            new = matrix, jnp.asarray(b)
        found += [eqx.tree_at(where, layer, new), eqx.nn.Lambda(F[net.activations[0].name])]
        if pool is not None:
            size, stride = each(pool.size, rank), each(pool.stride, rank)
            found.append(POOLS[rank](size, stride, sides(pool, z_shape)))
    return eqx.nn.Sequential(found[:-1])


def candidates(case: Case) -> list[Candidate]:
    """One jitted step at a time, vmapped over the batch."""
    arrays, static = eqx.partition(sequential(case), eqx.is_array)

    def cost(arrays: Any, x: Any, labels: Any) -> Any:
        model = eqx.combine(arrays, static)
        first = jnp.moveaxis(x, -1, 1) if x.ndim > 2 else x
        logits = jax.vmap(model)(first)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def gradient() -> Any:
        found = jax.jit(jax.grad(cost))(arrays, case.x[0], case.labels[0])
        layers = [layer for layer in found.layers if hasattr(layer, "weight")]
        pairs = []
        for layer, linear, in_shape in zip(layers, case.net.maps, case.net.shapes, strict=False):
            w = layer.weight
            if not isinstance(linear, Conv) and len(in_shape) > 1:
                w = w.reshape(len(w), in_shape[-1], *in_shape[:-1])
            w = jnp.moveaxis(w, 1, -1)
            w = w if isinstance(linear, Conv) else w.reshape(len(w), -1)
            pairs.append((w, layer.bias.ravel()))
        return pairs

    run = loops(jax.grad(cost), arrays, case)["stepped"]
    return [Candidate("Equinox, stepped", gradient, run, "Equinox")]
