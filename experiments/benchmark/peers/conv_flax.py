"""Convolutional networks in Flax, stepped from Python: `nn.Conv` and `nn.max_pool`."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import jbackprop as jb
from experiments.benchmark.peers import Candidate
from experiments.benchmark.peers.conv_jax import F, back, loops, turned
from experiments.benchmark.peers.spatial import Case, each, sides
from jbackprop import Conv


class Model(nn.Module):
    """The network, its last layer's outputs logits."""

    net: jb.Network

    @nn.compact
    def __call__(self, x: Any) -> Any:
        """Logits of a batch."""
        net = self.net
        for l, (linear, pool) in enumerate(zip(net.maps, net.pools, strict=True)):
            rank = x.ndim - 2
            if isinstance(linear, Conv):
                stride, pads = each(linear.stride, rank), sides(linear, x.shape[1:])
                x = nn.Conv(linear.n, each(linear.kernel, rank), stride, pads, name=f"l{l}")(x)
            else:
                x = nn.Dense(linear.n, name=f"l{l}")(x.reshape(len(x), -1))
            if l < len(net.maps) - 1:
                x = F[net.activations[0].name](x)
            if pool is not None:
                size, stride = each(pool.size, rank), each(pool.stride, rank)
                x = nn.max_pool(x, size, stride, sides(pool, x.shape[1:]))
        return x


def candidates(case: Case) -> list[Candidate]:
    """One jitted step at a time."""
    model = Model(case.net)
    layers = [{"kernel": w, "bias": b} for w, b in turned(case.params)]
    start = {"params": {f"l{l}": layer for l, layer in enumerate(layers)}}

    def cost(params: Any, x: Any, labels: Any) -> Any:
        logits = model.apply(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def gradient() -> Any:
        found = jax.jit(jax.grad(cost))(start, jnp.asarray(case.x[0]), jnp.asarray(case.labels[0]))
        layers = [found["params"][f"l{l}"] for l in range(len(case.params))]
        return back([(layer["kernel"], layer["bias"]) for layer in layers])

    run = loops(jax.grad(cost), start, case)["stepped"]
    return [Candidate("Flax, stepped", gradient, run, "Flax")]
