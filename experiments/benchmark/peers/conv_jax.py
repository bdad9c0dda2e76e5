"""Convolutional networks by `jax.grad`: whole batches, kernels in the order `lax` likes best."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jbackprop as jb
from experiments.benchmark.examples import Peer, kept
from experiments.benchmark.peers import Candidate
from experiments.benchmark.peers.examples_jax import clipped
from experiments.benchmark.peers.spatial import RATE, Case, each, sides
from jbackprop import Conv, MaxPool

F = {"tanh": jnp.tanh, "relu": jax.nn.relu}


def by_window(pool: MaxPool, u: Any) -> Any:
    """Max pooling of a batch as `lax` has it, and with it Flax and Equinox."""
    rank = u.ndim - 2
    pads = [(0, 0), *sides(pool, u.shape[1:]), (0, 0)]
    size, stride = each(pool.size, rank), each(pool.stride, rank)
    return lax.reduce_window(u, -jnp.inf, lax.max, (1, *size, 1), (1, *stride, 1), pads)


def by_slices(pool: MaxPool, u: Any) -> Any:
    """The same as the largest of shifted slices."""
    rank = u.ndim - 2
    size, stride = each(pool.size, rank), each(pool.stride, rank)
    pads = [(0, 0), *sides(pool, u.shape[1:]), (0, 0)]
    u = jnp.pad(u, pads, constant_values=-jnp.inf)
    out = [(n - k) // s + 1 for n, k, s in zip(u.shape[1:-1], size, stride, strict=True)]
    seen = [
        u[(slice(None), *[
            slice(i, i + (n - 1) * s + 1, s) for i, n, s in zip(at, out, stride, strict=True)])]
        for at in np.ndindex(*size)
    ]  # fmt: skip
    return jax.tree.reduce(jnp.maximum, seen)


FORMS = {"reduce_window": by_window, "slices": by_slices}


def cost(net: jb.Network, pool_by: Any, params: Any, x: Any, labels: Any) -> Any:
    """Mean cross-entropy of a batch, as a user of JAX writes it; kernels (*kernel, channels, n)."""
    f = F[net.activations[0].name]
    for l, ((w, b), linear, pool) in enumerate(zip(params, net.maps, net.pools, strict=True)):
        if isinstance(linear, Conv):
            rank, pads = x.ndim - 2, sides(linear, x.shape[1:])
            letters = "HW"[:rank]
            names = f"N{letters}C", f"{letters}IO", f"N{letters}C"
            stride = each(linear.stride, rank)
            x = lax.conv_general_dilated(x, w, stride, pads, dimension_numbers=names)
        else:
            x = x.reshape(len(x), -1) @ w
        x = x + b
        if l < len(params) - 1:
            x = f(x)
        if pool is not None:
            x = pool_by(pool, x)
    log_y = jax.nn.log_softmax(x)
    return -jnp.mean(jnp.sum(jax.nn.one_hot(labels, log_y.shape[-1]) * log_y, axis=-1))


def turned(params: Any) -> Any:
    """Kernels and matrices with their outputs last."""
    return [(jnp.moveaxis(jnp.asarray(w), 0, -1), jnp.asarray(b)) for w, b in params]


def back(gradient: Any) -> Any:
    """And first again."""
    return [(jnp.moveaxis(w, -1, 0), b) for w, b in gradient]


def loops(gradient: Callable[..., Any], start: Any, case: Case) -> dict[str, Callable[[], Any]]:
    """A compiled loop over all batches, and one jitted step at a time; plain descent."""
    update = lambda p, g: p - RATE * g
    step = lambda p, batch: (jax.tree.map(update, p, gradient(p, *batch)), ())
    batches = jnp.asarray(case.x), jnp.asarray(case.labels)
    unroll = min(2, len(case.x))
    loop = jax.jit(lambda p, batches: lax.scan(step, p, batches, unroll=unroll)[0])
    one = jax.jit(lambda p, x, t: step(p, (x, t))[0])
    listed = [jax.tree.map(lambda v, i=i: v[i], batches) for i in range(len(case.x))]

    def stepped() -> None:
        p = start
        for batch in listed:
            p = one(p, *batch)
        jax.block_until_ready(p)

    return {"epoch": lambda: jax.block_until_ready(loop(start, batches)), "stepped": stepped}


def candidates(case: Case) -> list[Candidate]:
    """Both forms of pooling, in a compiled epoch and stepped."""
    found = []
    for form, pool_by in FORMS.items():
        slope, start = jax.grad(partial(cost, case.net, pool_by)), turned(case.params)
        first = lambda slope=slope, start=start: back(
            jax.jit(slope)(start, case.x[0], case.labels[0])
        )
        for how, run in loops(slope, start, case).items():
            found.append(Candidate(f"jax.grad, {form}, {how}", first, run, "jax.grad"))
    return found


def quantities(case: Case, max_norm: float) -> list[Peer]:
    """Clipped means by every example's gradient: all at once, and one after the other."""
    params, found = turned(case.params), []

    def at_once(one: Any, params: Any, x: Any, t: Any) -> Any:
        return back(clipped(jax.vmap(jax.grad(one), (None, 0, 0))(params, x, t), max_norm))

    def in_turn(one: Any, params: Any, x: Any, t: Any) -> Any:
        def add(total: Any, example: Any) -> Any:
            gradient = jax.grad(one)(params, *example)
            square = sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(gradient))
            c = jnp.minimum(1, max_norm / jnp.sqrt(square)) / len(x)
            return jax.tree.map(lambda total, g: total + c * g, total, gradient), ()

        return back(lax.scan(add, jax.tree.map(jnp.zeros_like, params), (x, t))[0])

    for form, pool_by in FORMS.items():
        one = lambda p, x, t, pool_by=pool_by: cost(case.net, pool_by, p, x[None], t[None])
        for name, way in (("vmap(grad)", at_once), ("scan of grad", in_turn)):
            k = kept(partial(way, one), params, jnp.asarray(case.x), jnp.asarray(case.labels))
            found.append(
                Peer(f"{name}, {form}", "clipped mean", k.result, k.run, k.temporary_bytes, k.steps)
            )
    return found
