"""The recursion under somebody else's loss: ∂C_i/∂y_i comes from outside, and `Factors` go back.

    δ^L      = ∂C/∂y ⊙ f'(z^L), or Jᵀ ∂C/∂y
    ∂C/∂x    = (w^1)ᵀ δ^1

The rest is `propagate`, as under a cost of the network's own.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.arrays import as_real, fitted
from jbackprop.core.backward import backpropagation, propagate
from jbackprop.core.batch import as_batch, blank, without_absent
from jbackprop.core.checks import as_input, fail
from jbackprop.core.factors import Factors, feedback_of, keys_of, maps_of
from jbackprop.core.heads import through
from jbackprop.core.maps import shaped
from jbackprop.core.network import Network, Params, Tape, as_layers, forward, pooled, unpooled
from jbackprop.core.numerics import at_least_float32, wide
from jbackprop.core.placement import by_example, everywhere, like, placed, rows_like
from jbackprop.core.rules import Rule


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["layers", "tape", "weight", "feedback", "keys"],
    meta_fields=["net", "rule", "masked"],
)
@dataclass(frozen=True, eq=False)
class Pull:
    """What `vjp` gives beside y: called with ∂C_i/∂y_i, (B, n_L), it gives `Factors`, at the
    pass that it came from. A pytree, like the function that `jax.vjp` returns, so that it passes
    a `jax.jit` border."""

    net: Network
    rule: Rule
    masked: bool
    layers: Params
    tape: Tape
    weight: Any  # as a pytree it may hold shapes, or where arrays lie
    feedback: Any
    keys: Any

    @placed(by_example("cotangent"))
    def __call__(self, cotangent: Any) -> Factors:
        """The factors of ∂C_i/∂w^l, with cost and t 0."""
        y, net = self.tape.a[-1], self.net
        cotangent = as_real("cotangent", cotangent, y.dtype)
        if cotangent.shape != y.shape:
            raise ValueError(
                f"cotangent: expected ∂C_i/∂y_i of shape {y.shape}, as y of this pass, "
                f"got {cotangent.shape}"
            )
        absent = self.weight == 0 if self.masked else None

        def example(tape: Tape, e: Any, key: Any) -> Any:
            pool = net.pools[-1]
            z = pooled(pool, tape.z[-1])
            delta = fitted("cotangent", through(net.output, wide(z), wide(e)), z)
            delta_L = unpooled(pool, tape.z[-1], delta)
            return propagate(
                net, self.layers, tape, delta_L, rule=self.rule, feedback=self.feedback, key=key
            )

        deltas = jax.vmap(example)(self.tape, blank(absent, cotangent), self.keys)
        tape, deltas = blank(absent, (self.tape, deltas))
        cost = jnp.zeros(len(y), at_least_float32(y.dtype))
        return Factors(cost, tape, deltas, jnp.zeros_like(y), self.weight, maps_of(net))


def _as_given(given: dict[str, Any], shapes: Any) -> Any:
    """y and what is kept of every example lie as x does, parameters as they do."""
    y, pull = shapes
    rows = lambda kept: rows_like(given["x"], kept)
    layers = like(given["params"], pull.layers)
    kept = {name: rows(getattr(pull, name)) for name in ("tape", "weight", "keys")}
    feedback = everywhere(given, pull.feedback)
    return rows(y), replace(pull, layers=layers, feedback=feedback, **kept)


@placed(_as_given)
def vjp(
    net: Network,
    params: Any,
    x: Any,
    *,
    weight: Any = None,
    rule: Rule = backpropagation,
    feedback: Any = None,
    key: Any = None,
) -> tuple[Float[Array, "B n_out"], Pull]:
    """The pass under a loss of your own:
    y_i, and the function that takes ∂C_i/∂y_i back; `jax.vjp` that keeps the examples apart.

    A loss of your own, of whatever there is beside y, gives ∂C_i/∂y_i; then norms, clipping and
    every other quantity of its examples' gradients are those of the factors. Where your loss is a
    mean, its derivative holds 1/B already: `sum_gradient` of the factors is its gradient. The cost
    of `net` is not looked at.

    Args:
        net, params, x, weight, rule, feedback, key: as in `backprop`. A rule that reads t raises.

    Returns:
        y of shape (B, n_L), 0 in rows of weight 0; and `pull`, from ∂C_i/∂y_i of the shape of y to
        `Factors` whose cost and t are 0.

    Raises:
        ValueError: an argument does not fit the network; a cotangent does not have the shape of y.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((3, 8, 2))
    >>> params, x = jb.init(net, jax.random.key(0)), jnp.ones((5, 3))
    >>> y, pull = jb.vjp(net, params, x)
    >>> loss = lambda y: jnp.sum(jnp.log(jnp.cosh(y)))
    >>> factors = pull(jax.grad(loss)(y))
    >>> jb.squared_norms(factors).shape
    (5,)
    """
    layers = as_layers(net, params)
    x = as_input(net, x, layers[0].w.dtype, lead=1)
    no_t = jnp.zeros((len(x), *net.shapes[-1]), x.dtype)
    batch = without_absent(as_batch(net, layers, x, no_t, weight))
    feedback = feedback_of(net, layers, rule, feedback)
    tape = jax.vmap(partial(forward, net, layers))(batch.x)
    masked = batch.absent is not None
    pull = Pull(net, rule, masked, layers, tape, batch.weight, feedback, keys_of(key, len(x)))
    return blank(batch.absent, tape.a[-1]), pull


@placed(by_example("factors"))
def input_gradient(net: Network, params: Any, factors: Factors) -> Float[Array, "B *in_shape"]:
    """The gradient in the inputs:
    ∂C_i/∂x_i = (w^1)ᵀ δ_i^1 of every example, what it would take to change each input.

    Under another rule it is the same of that rule's δ^1.

    Args:
        net, params: those that the factors came from.
        factors: of a batch.

    Returns:
        (B, *shape of one example), in the dtype of δ.

    Raises:
        ValueError: params or factors do not fit the network.

    Source: for images, Simonyan et al., "Deep Inside Convolutional Networks", 2014,
    arXiv:1312.6034.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((3, 8, 2))
    >>> params, x, t = jb.init(net, jax.random.key(0)), jnp.ones((5, 3)), jnp.ones((5, 2))
    >>> jb.input_gradient(net, params, jb.backprop(net, params, x, t)).shape
    (5, 3)
    """
    w, linear, shape = as_layers(net, params)[0].w, net.maps[0], net.shapes[0]
    delta = factors.delta[0]
    if delta.shape[1:] != net.z_shapes[0]:
        of_one = ", ".join(map(str, net.z_shapes[0]))
        fail(net, "factors", f"δ^1 of shape (B, {of_one})", delta)

    def back(delta: Array) -> Array:
        e = linear.transpose(w.astype(delta.dtype), delta, shape)
        return shaped(linear, "transpose(w, delta, in_shape)", e, shape)

    return jax.vmap(back)(delta)
