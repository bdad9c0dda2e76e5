"""Backpropagation, by hand: the δ recursion, for ONE example. `jax.vmap` makes the batch.

    symbol                      code                  shape           meaning
    x = a^0                     x, tape.a[0]          (n_0,)          input
    w^l, b^l                    w, b                  (n_l, n_{l-1})  weights and bias, l = 1 … L
    z^l = w^l a^{l-1} + b^l     z                     (n_l,)          weighted input
    a^l = f(z^l)                a                     (n_l,)          activation
    y = a^L                     y                     (n_L,)          output
    t                           t                     (n_L,)          ground truth
    C                           cost                  ()              cost of one example
    δ^l = ∂C/∂z^l               delta                 (n_l,)          error
    P, or nothing               pool                                  pooling, a^l = P(f(z^l))

    δ^L      = ∇_y C ⊙ f'(z^L)                                        `backward`
    δ^l      = (w^{l+1})ᵀ δ^{l+1} ⊙ f'(z^l)      l = L-1 … 1          `propagate`
    ∂C/∂w^l  = δ^l (a^{l-1})ᵀ                    l = 1 … L            `gradients`
    ∂C/∂b^l  = δ^l

A convolution is the matrix w^l used at many positions p, each on the row r_p(a^{l-1}) that it sees:

    δ^l      = P'ᵀ (w^{l+1})ᵀ δ^{l+1} ⊙ f'(z^l)
    ∂C/∂w^l  = Σ_p δ_p^l r_p(a^{l-1})ᵀ,   ∂C/∂b^l = Σ_p δ_p^l

Erratum: one slide's general line has a_{jk}^{l-1} for a_k^{l-1}.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.arrays import fitted
from jbackprop.core.checks import (
    as_target,
    check_deltas,
    check_tape,
    is_label,
    per_hidden_layer,
)
from jbackprop.core.heads import head
from jbackprop.core.maps import over_positions
from jbackprop.core.network import Layer, Network, Params, Tape, as_layers, at_output, unpooled
from jbackprop.core.numerics import wide
from jbackprop.core.operators import places
from jbackprop.core.rules import Rule, Signal

Deltas = tuple[Float[Array, "..."], ...]


def _backpropagation(s: Signal) -> Float[Array, "..."]:
    return (s.w.T @ s.delta) * s.slope


backpropagation: Rule = Rule("backpropagation", _backpropagation)
"""The rule of the slides, by which a network learns unless it is given another:
δ^l = (w^{l+1})ᵀ δ^{l+1} ⊙ f'(z^l)."""


def propagate(
    net: Network,
    params: Any,
    tape: Tape,
    delta_L: Any,
    *,
    rule: Rule = backpropagation,
    feedback: Any = (),
    t: Any = None,
    key: Any = None,
) -> Deltas:
    """The recursion alone: δ^l = (w^{l+1})ᵀ δ^{l+1} ⊙ f'(z^l) for l = L-1 … 1, from a given δ^L.

    `rule` replaces its line, and may read `feedback` (one entry per hidden layer), `t` and `key`.
    Returns (δ^1 … δ^L). Raises `ValueError` where an argument does not fit the network.
    """
    layers = as_layers(net, params)
    check_tape(net, tape)
    delta_L = fitted("delta_L", delta_L, tape.z[-1])
    t = None if t is None else as_target(net, t, tape.z[-1].dtype)
    kept, keys = per_hidden_layer(net, feedback, key)

    deltas = (delta_L,)
    fs, zs, activations = net.activations[:-1], tape.z[:-1], tape.a[1:-1]
    hidden = zip(layers[1:], places(net, tape), fs, zs, activations, kept, keys, strict=True)
    for above, at, f, z, a, b, k in reversed([*hidden]):
        w, b = at.weights(above.w), at.feedback(b)
        delta = rule.back(Signal(w, b, deltas[0], delta_L, t, a, f.slope(z), k))
        deltas = (delta, *deltas)
    return deltas


def backward(net: Network, params: Any, tape: Tape, t: Any) -> Deltas:
    """The backward pass: δ^L = ∇_y C ⊙ f'(z^L), then `propagate`.

    Where output and cost fuse, δ^L is the closed form of `heads.head`, such as y - t.
    Returns (δ^1 … δ^L). Raises `ValueError` where an argument does not fit the network.
    """
    check_tape(net, tape)
    label, t = is_label(net, t), as_target(net, t, tape.z[-1].dtype)
    return propagate(net, params, tape, output_delta(net, tape, t, label=label))


def output_delta(net: Network, tape: Tape, t: Any, *, label: bool) -> Float[Array, "..."]:
    """δ^L = ∇_y C ⊙ f'(z^L), for t made to fit, and whether it was a label; behind a pooling,
    y = f(P(z^L)), P'ᵀ of that. In float32 at least."""
    pool, (z, y) = net.pools[-1], at_output(net, tape)
    delta_L = head(net.output, net.cost, label=label).delta(z, y, wide(t))
    delta_L = fitted(f"cost {net.cost.name}", delta_L, z)
    return unpooled(pool, wide(tape.z[-1]), delta_L)


def gradients(tape: Tape, deltas: Deltas, maps: Any = ()) -> Params:
    """The gradient of ONE example, the outer products of the last slide:
    ∂C/∂w^l = δ^l (a^{l-1})ᵀ and ∂C/∂b^l = δ^l.

    A network that is not `flat` needs its `net.maps`: with them they are summed over positions.

    >>> import jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((2, 1, 1))
    >>> params = [(jnp.ones((1, 2)), jnp.zeros(1)), (jnp.ones((1, 1)), jnp.zeros(1))]
    >>> tape = jb.forward(net, params, jnp.array([1.0, -1.0]))
    >>> jb.gradients(tape, jb.backward(net, params, tape, jnp.array([2.0])))[0].w.tolist()
    [[-2.0, 2.0]]
    """
    check_deltas("deltas", deltas, tape.z, flat=not maps)
    pairs = zip(deltas, tape.a[:-1], strict=True)
    if not maps:
        return tuple(Layer(jnp.outer(delta, a), delta) for delta, a in pairs)
    layers = zip(maps, pairs, strict=True)
    return tuple(Layer(*over_positions(linear, delta, a)) for linear, (delta, a) in layers)
