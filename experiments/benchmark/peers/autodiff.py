"""`jax.value_and_grad` of the same network: both layouts of w, stepped and in compiled loops."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jbackprop as jb
from experiments.benchmark.peers import EPOCHS, Candidate, Params, scanned, stepped
from experiments.benchmark.work import Problem, Work


def cost(apply: Callable[..., Any], params: Any, x: Any, labels: Any) -> Any:
    """Mean cross-entropy of a batch, from logits, as a user of JAX writes it."""
    log_y = jax.nn.log_softmax(apply(params, x))
    return -jnp.mean(jnp.sum(jax.nn.one_hot(labels, log_y.shape[-1]) * log_y, axis=-1))


def forward(f: Callable[[Any], Any], out_in: bool, params: Any, a: Any) -> Any:
    """Logits of a batch; w of shape (n_out, n_in) or (n_in, n_out)."""
    for w, b in params[:-1]:
        a = f((a @ w.T if out_in else a @ w) + b)
    w, b = params[-1]
    return (a @ w.T if out_in else a @ w) + b


def candidates(
    work: Work, problem: Problem, hidden: jb.Activation, optimizer: optax.GradientTransformation
) -> list[Candidate]:
    """Both layouts: in a compiled loop, in one of which every second step is unrolled, stepped."""
    x, labels = jnp.asarray(problem.x), jnp.asarray(problem.labels)
    f = {"tanh": jnp.tanh, "relu": jax.nn.relu}[hidden.name]
    made = []
    for out_in in (True, False):
        turn = (lambda w: w) if out_in else (lambda w: w.T)
        start = [(jnp.array(turn(w)), jnp.array(b)) for w, b in problem.params]
        made += _layout(turn, start, partial(forward, f, out_in), x, labels, optimizer, out_in)
    return made


def _layout(
    turn: Any, start: Any, apply: Any, x: Any, labels: Any, optimizer: Any, out_in: bool
) -> list[Candidate]:
    slope = jax.value_and_grad(partial(cost, apply))

    def gradient() -> Params:
        _, grads = jax.jit(slope)(start, x[0], labels[0])
        return [(turn(w), b) for w, b in grads]

    def step(state: Any, batch: Any) -> Any:
        params, opt_state = state
        value, grads = slope(params, *batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    state = (start, optimizer.init(start))
    layout = "w (out, in)" if out_in else "w (in, out)"
    return [
        *(
            Candidate(
                f"jax.value_and_grad, {named}, {layout}",
                gradient,
                scanned(step, state, (x, labels), unroll),
                "jax.grad",
            )
            for unroll, named in EPOCHS.items()
        ),
        Candidate(
            f"jax.value_and_grad, stepped from Python, {layout}",
            gradient,
            stepped(jax.jit(step, donate_argnums=0), state, (x, labels)),
            "jax.grad stepped",
        ),
    ]
