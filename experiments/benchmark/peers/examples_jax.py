"""Per-example quantities by `jax.grad` alone: `vmap(grad)`, and by differentiating added zeros."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark.examples import Peer, kept
from experiments.benchmark.peers.autodiff import cost, forward
from experiments.benchmark.work import Problem, Work

COST = partial(cost, partial(forward, jnp.tanh, True))


def squares(grads: Any) -> Any:
    """‖g_i‖² from every example's gradient."""
    return sum(jnp.sum(jnp.square(g.reshape(len(g), -1)), 1) for g in jax.tree.leaves(grads))


def clipped(grads: Any, max_norm: float) -> Any:
    """The mean of every example's gradient, clipped."""
    c = jnp.minimum(1, max_norm / jnp.sqrt(squares(grads)))
    return jax.tree.map(lambda g: jnp.tensordot(c, g, 1) / len(c), grads)


def _one(params: Any, x: Any, t: Any) -> Any:
    """The cost of one example, as a vector passes through matrices."""
    for w, b in params[:-1]:
        x = jnp.tanh(w @ x + b)
    w, b = params[-1]
    log_y = jax.nn.log_softmax(w @ x + b)
    return -jnp.sum(jax.nn.one_hot(t, len(log_y)) * log_y)


def _one_as_batch(params: Any, x: Any, t: Any) -> Any:
    """The same by a cost of batches."""
    return COST(params, x[None], t[None])


def by_vmap(one: Callable[..., Any], max_norm: float, params: Any, x: Any, t: Any) -> Any:
    """Clipping the obvious way: B × P numbers are formed."""
    return clipped(jax.vmap(jax.grad(one), (None, 0, 0))(params, x, t), max_norm)


def _with_zeros(params: Any, zeros: Any, x: Any, t: Any) -> Any:
    """Σ_i C_i with a zero added to every z, and the activations."""
    z, activations = x, []
    for l, ((w, b), zero) in enumerate(zip(params, zeros, strict=True)):
        activations.append(jnp.tanh(z) if l else x)
        z = activations[-1] @ w.T + b + zero
    log_y = jax.nn.log_softmax(z)
    return -jnp.sum(jax.nn.one_hot(t, log_y.shape[1]) * log_y), activations


def factors(params: Any, x: Any, t: Any) -> Any:
    """[(δ, a)] of every layer, by autodiff: the gradient with respect to the zeros."""
    zeros = [jnp.zeros((len(x), len(b))) for _, b in params]
    deltas, activations = jax.grad(_with_zeros, argnums=1, has_aux=True)(params, zeros, x, t)
    return [*zip(deltas, activations, strict=True)]


def by_zeros(max_norm: float, params: Any, x: Any, t: Any) -> Any:
    """Clipping by hand from autodiff's δ."""
    pairs = factors(params, x, t)
    square = sum(jnp.sum(d**2, 1) * (1 + jnp.sum(a**2, 1)) for d, a in pairs)
    c = jnp.minimum(1, max_norm / jnp.sqrt(square)) / len(x)
    scaled = [(c[:, None] * d, a) for d, a in pairs]
    return [(jnp.einsum("bj,bk->jk", d, a), jnp.sum(d, 0)) for d, a in scaled]


def norms_by_zeros(params: Any, x: Any, t: Any) -> Any:
    """‖g_i‖² by hand from autodiff's δ."""
    return sum(jnp.sum(d**2, 1) * (1 + jnp.sum(a**2, 1)) for d, a in factors(params, x, t))


def candidates(work: Work, numbers: Problem, max_norm: float, *, small: bool) -> list[Peer]:
    """Each jitted; `vmap(grad)` in two forms where B × P is small enough."""
    params = [(jnp.asarray(w), jnp.asarray(b)) for w, b in numbers.params]
    batches = jnp.asarray(numbers.x), jnp.asarray(numbers.labels)
    forms = {
        ("zeros added to z, clipped by hand", "clipped mean"): partial(by_zeros, max_norm),
        ("zeros added to z, norms alone", "norms alone"): norms_by_zeros,
    }
    if small:
        for name, one in (("an example a vector", _one), ("an example a batch", _one_as_batch)):
            form = partial(by_vmap, one, max_norm)
            forms |= {(f"vmap(grad), {name}", "clipped mean"): form}
    made = []
    for (name, quantity), form in forms.items():
        k = kept(form, params, *batches)
        made.append(Peer(name, quantity, k.result, k.run, k.temporary_bytes, k.steps))
    return made
