"""The pass once more, by nobody's formulas: one layer after the other, each derived by autodiff.

Of what a network is made of only the forward functions are used here: f, P, w a, and C. Every
derivative of them is autodiff's, and every example's gradient is written out. Under another rule
its one line is kept, and what it is given is made here.
"""

from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jbackprop.core.linear import Dense
from jbackprop.core.network import Layer
from jbackprop.core.rules import Signal
from jbackprop.verification.point import Point


class Reference(NamedTuple):
    """Of a batch, with leading axis B.

    Attributes:
        z, a, delta: as in a tape.
        cost: C_i.
        gradient: g_i, a `Layer` for each.
        of_x: ∂C_i/∂x_i.
    """

    z: tuple[Array, ...]
    a: tuple[Array, ...]
    delta: tuple[Array, ...]
    cost: Array
    gradient: tuple[Layer, ...]
    of_x: Array


@jax.tree_util.register_pytree_node_class
class Forwards:
    """w^{l+1} as a forward function of f(z^l), whose `.T @` is autodiff's. Its only leaf is w."""

    w: Any
    of: Any

    def __init__(self, w: Any, of: Any) -> None:
        self.w, self.of = w, of

    def tree_flatten(self) -> tuple[Any, Any]:
        """w, and the function and where."""
        return (self.w,), self.of

    @classmethod
    def tree_unflatten(cls, of: Any, leaves: Any) -> "Forwards":
        """Other weights."""
        return cls(leaves[0], of)

    @property
    def T(self) -> "Backwards":
        """What takes δ^{l+1} back."""
        return Backwards(self)


class Backwards:
    """The adjoint of a `Forwards`."""

    def __init__(self, of: Forwards) -> None:
        self.of = of

    def __matmul__(self, delta: Any) -> Array:
        function, u = self.of.of
        return jax.vjp(lambda u: function(self.of.w, u), u)[1](delta)[0]


def pooled(pool: Any, u: Array) -> Array:
    """P u."""
    return u if pool is None else pool.apply(u)


def weighted_input(linear: Any, w: Array, b: Array, a: Array) -> Array:
    """w a + b."""
    z = linear.apply(w, a)
    return z + jnp.expand_dims(b, range(z.ndim - 1))


def output_of(net: Any, params: Any, x: Array) -> Array:
    """y of ONE example."""
    last = len(net.maps) - 1
    layers = zip(params, net.maps, net.activations, net.pools, strict=True)
    for l, ((w, b), linear, f, pool) in enumerate(layers):
        z = weighted_input(linear, w, b, x)
        x = pooled(pool, f.f(z)) if l < last else f.f(pooled(pool, z))
    return x


def reference_of(at: Point) -> Reference:
    """Every example by itself; 0 where its weight is."""

    @jax.jit  # what it takes are arguments, since XLA would work out at length what is constant
    def all_of(params: Any, feedback: Any, x: Any, t: Any, keys: Any) -> Reference:
        here = replace(at, params=params, feedback=feedback)
        return jax.vmap(lambda *one: _of_one(here, *one))(x, t, keys)

    keys = jax.random.split(at.key, len(at.x))
    found = all_of(at.params, at.feedback, at.x, at.t, keys)
    present = at.weight > 0
    return jax.tree.map(
        lambda v: jnp.where(jnp.expand_dims(present, range(1, v.ndim)), v, 0), found
    )


def _of_one(at: Point, x: Any, t: Any, key: Any) -> Reference:
    net, params, hidden = at.net, at.params, len(at.net.maps) - 1
    keys = jax.random.split(key, hidden) if hidden else ()
    zs, us, activations = [], [], [x]
    layers = zip(params, net.maps, net.activations, net.pools, strict=True)
    for l, ((w, b), linear, f, pool) in enumerate(layers):
        zs.append(weighted_input(linear, w, b, activations[-1]))
        us.append(f.f(zs[-1]))
        activations.append(pooled(pool, us[-1]) if l < hidden else f.f(pooled(pool, zs[-1])))

    def cost(z: Any) -> Any:
        return net.cost.value(net.output.f(pooled(net.pools[-1], z)), t)

    deltas = [jax.grad(cost)(zs[-1])]
    feedback = at.feedback or (None,) * hidden
    for l in reversed(range(hidden)):
        above, f, pool = net.maps[l + 1], net.activations[l], net.pools[l]
        slope = jax.vjp(f.f, zs[l])[1](jnp.ones_like(zs[l]))[0]
        of = _place(above, pool, us[l])
        flat = type(above) is Dense and pool is None and us[l].ndim == 1
        w = params[l + 1].w if flat else Forwards(params[l + 1].w, of)
        b = _feedback(feedback[l], params[l + 1].w, of, net, zs[l], flat=flat)
        signal = Signal(w, b, deltas[0], deltas[-1], t, activations[l + 1], slope, keys[l])
        deltas.insert(0, jnp.asarray(at.rule.delta(signal), zs[l].dtype).reshape(zs[l].shape))
    grads = []
    for linear, (w, _), delta, a in zip(net.maps, params, deltas, activations, strict=False):
        of_w = jax.vjp(lambda w, a=a, linear=linear: linear.apply(w, a), w)[1](delta)[0]
        grads.append(Layer(of_w, delta.sum(axis=range(delta.ndim - 1))))
    of_x = jax.vjp(lambda x: net.maps[0].apply(params[0].w, x), x)[1](deltas[0])[0]
    value = cost(zs[-1])
    return Reference(tuple(zs), tuple(activations), tuple(deltas), value, tuple(grads), of_x)


def _place(above: Any, pool: Any, u: Array) -> Any:
    return (lambda w, u: above.apply(w, pooled(pool, u))), u


def _feedback(b: Any, w: Array, of: Any, net: Any, z: Array, *, flat: bool) -> Any:
    """What a rule keeps for a layer, as it sees it."""
    if flat or not hasattr(b, "shape"):
        return b
    if np.shape(b) == w.shape:
        return Forwards(b, of)
    if np.shape(b) == (*net.shapes[-1], *z.shape) and z.ndim > 1:
        direct = lambda b, u: jnp.tensordot(b, u, u.ndim)
        # behind a pooled output δ^L has positions, of which their sum goes back
        return _Summed(Forwards(b, (direct, jnp.zeros_like(z))))
    return b


class _Summed:
    """A direct feedback: what it takes is added up over positions first."""

    def __init__(self, of: Forwards) -> None:
        self.of = of

    @property
    def T(self) -> "_Summed":
        """Itself: it is only ever asked to go back."""
        return self

    def __matmul__(self, delta: Any) -> Array:
        return self.of.T @ delta.reshape(-1, delta.shape[-1]).sum(axis=0)
