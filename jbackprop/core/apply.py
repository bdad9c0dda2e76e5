"""The network as an ordinary function of JAX, whose derivative is this recursion.

`jax.grad` of a program that calls it goes through `backward.py`: under any rule, and on a CPU at
the speed of the convolutions written by hand. What it differentiates again it differentiates as
plain code, so that second derivatives are those of the first.
"""

from functools import partial
from typing import Any

import jax
from jaxtyping import Array, Float

from jbackprop.core.backward import backpropagation
from jbackprop.core.checks import as_input
from jbackprop.core.factors import sum_gradient
from jbackprop.core.network import Network, as_layers
from jbackprop.core.placement import like, placed, rows_like
from jbackprop.core.rules import Rule
from jbackprop.core.vjp import Pull, input_gradient, vjp


def apply(
    net: Network,
    params: Any,
    x: Any,
    *,
    rule: Rule = backpropagation,
    feedback: Any = None,
    key: Any = None,
) -> Float[Array, "*batch n_out"]:
    """The network as a function y = a^L inside any program:
    its `jax.grad` is our recursion, in the params and in x.

        ∂C/∂w^l = Σ_i δ_i^l (a_i^{l-1})ᵀ,   ∂C/∂x_i = (w^1)ᵀ δ_i^1

    Put it inside any program of JAX, Flax or Equinox; with a rule, its δ and not the derivative's
    goes back. Hand it a batch: under `jax.vmap` over x every example's gradient would be formed.

    Args:
        net: the network; its cost is not looked at.
        params: (w^l, b^l) per layer.
        x: inputs of shape (..., *shape of one), any leading axes.
        rule, feedback, key: as in `backprop`. A rule that reads t raises when differentiated.

    Returns:
        y of shape (..., n_L).

    Raises:
        ValueError: an argument does not fit the network; the batch is empty.
        TypeError: differentiated forwards (`jax.jvp`, `jax.jacfwd`), which a function with a
            backward pass of its own cannot be: use `jax.vjp`, `jax.grad`, `jax.jacrev`, and
            `jax.hessian`, which is forward over those; or `predict`, which autodiff differentiates.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((3, 8, 2))
    >>> params, x = jb.init(net, jax.random.key(0)), jnp.ones((5, 3))
    >>> loss = lambda params, apply: jnp.mean(apply(net, params, x) ** 4)
    >>> ours, theirs = jax.grad(loss)(params, jb.apply), jax.grad(loss)(params, jb.predict)
    >>> all(jnp.allclose(a, b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)))
    True
    """
    layers = as_layers(net, params)
    x = as_input(net, x, layers[0].w.dtype, lead=None)
    shape = net.shapes[0]
    lead = x.shape[: x.ndim - len(shape)]
    try:
        y: Any = _apply(net, rule, layers, x.reshape(-1, *shape), feedback, key)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise TypeError(
            "apply: expected reverse-mode differentiation, by jax.grad, jax.vjp, jax.jacrev or "
            "jax.hessian, since its derivative is a backward pass, got forward mode (jax.jvp, "
            "jax.jacfwd, jax.linearize); predict(net, params, x) has both"
        ) from error
    return y.reshape(*lead, *y.shape[1:])


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _apply(net: Network, rule: Rule, layers: Any, x: Any, feedback: Any, key: Any) -> Any:
    return _forwards(net, rule, layers, x, feedback, key)[0]


def _forwards(net: Network, rule: Rule, layers: Any, x: Any, feedback: Any, key: Any) -> Any:
    return vjp(net, layers, x, rule=rule, feedback=feedback, key=key)


def _as_given(given: dict[str, Any], shapes: Any) -> Any:
    """The gradients lie as the params and x do."""
    pull, (layers, x, _, _) = given["pull"], shapes
    return like(pull.layers, layers), rows_like(pull.tape, x), None, None


@placed(_as_given)
def _backwards(net: Network, rule: Rule, pull: Pull, cotangent: Any) -> Any:
    factors = pull(cotangent)
    summed = jax.tree.map(lambda g, w: g.astype(w.dtype), sum_gradient(factors), pull.layers)
    return summed, input_gradient(net, pull.layers, factors), None, None


_apply.defvjp(_forwards, _backwards)
