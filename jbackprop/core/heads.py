"""Where C meets the output: the start of the backward pass, δ^L = ∇_y C ⊙ f'(z^L), and C itself.

Two factors that are ∞ and 0 have a product nonetheless. Cross-entropy knows of its output only
ln y and ln(1 - y), which z^L gives where y itself has become 0 or 1. So those pairs have a form of
their own: finite and exact for |z| up to 1e4 and beyond, with a class switched off by z = -∞ too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.activations import sigmoid, softmax
from jbackprop.core.costs import binary_cross_entropy, cross_entropy, times
from jbackprop.core.numerics import product
from jbackprop.core.records import Activation, Cost

Y = Float[Array, " n"]
Scalar = Float[Array, ""]


class Head(NamedTuple):
    """C and δ^L of one example as functions of (z^L, y, t)."""

    value: Callable[[Any, Any, Any], Any]
    delta: Callable[[Any, Any, Any], Any]


# With y = σ(z): ln y = -softplus(-z) and ln(1 - y) = -softplus(z)
def _sigmoid_binary(z: Y, y: Y, t: Y) -> Scalar:
    softplus = jax.nn.softplus
    return jnp.sum(times(t, softplus, -z, jnp.inf) + times(1 - t, softplus, z, jnp.inf))


def _y_minus_t(z: Y, y: Y, t: Y) -> Y:
    return y - t


def _sigmoid_categorical(z: Y, y: Y, t: Y) -> Scalar:
    return jnp.sum(times(t, jax.nn.softplus, -z, jnp.inf))


def _d_sigmoid_categorical(z: Y, y: Y, t: Y) -> Y:
    return -t * jax.nn.sigmoid(-z)


def _itself(v: Y) -> Y:
    return v


def _softmax_categorical(z: Y, y: Y, t: Y) -> Scalar:
    return -jnp.sum(times(t, _itself, jax.nn.log_softmax(z), -jnp.inf))


def _d_softmax_categorical(z: Y, y: Y, t: Y) -> Y:
    return y * jnp.sum(t) - t


# With y = softmax(z), 1 - y_k is what the others have. Of the largest output, which may round to 1,
# it is added up from them; the rest have y ≤ ½.
def _without_top(z: Y) -> tuple[Array, Y]:
    top = jnp.arange(len(z)) == jnp.argmax(z)
    return top, jnp.where(top, -jnp.inf, z)


def _softmax_binary(z: Y, y: Y, t: Y) -> Scalar:
    top, others = _without_top(z)
    log_y = jax.nn.log_softmax(z)
    alone = jnp.all(others == -jnp.inf)
    among_others = jax.nn.logsumexp(jnp.where(alone, 0, others))
    of_top = jnp.where(alone, -jnp.inf, among_others - jax.nn.logsumexp(z))
    log_not = jnp.where(top, of_top, jnp.log1p(-jnp.exp(jnp.where(top, -1, log_y))))
    return -jnp.sum(times(t, _itself, log_y, -jnp.inf) + times(1 - t, _itself, log_not, -jnp.inf))


# δ_k = (1 - t_k) y_k - t_k (1 - y_k) + y_k Σ_{j≠k} t_j - Σ_{j≠k} (1 - t_j) y_j y_k / (1 - y_j).
# There y_k / (1 - y_j) is the share of k among all but j: a softmax of the others, for the largest.
def _d_softmax_binary(z: Y, y: Y, t: Y) -> Y:
    top, others = _without_top(z)
    alone = jnp.all(others == -jnp.inf)
    among_others = jnp.where(top | alone, 0, jax.nn.softmax(jnp.where(alone, 0, others)))
    not_y = jnp.where(top, jnp.sum(jnp.where(top, 0, y)), 1 - y)
    odds = jnp.where(top, 0, (1 - t) * y / jnp.where(top, 1, not_y))
    of_top = jnp.sum(jnp.where(top, (1 - t) * y, 0)) * among_others
    given_up = of_top + y * (jnp.sum(odds) - odds)
    return (1 - t) * y - t * not_y + y * (jnp.sum(t) - t) - given_up


# By output, cost, and whether t is a label made one-hot, which sums to one: nobody need add it up.
# identity with squared_error needs no row: its product (y - t) ⊙ 1 is the closed form already.
_CLOSED = {
    (sigmoid, binary_cross_entropy, False): Head(_sigmoid_binary, _y_minus_t),
    (sigmoid, cross_entropy, False): Head(_sigmoid_categorical, _d_sigmoid_categorical),
    (sigmoid, cross_entropy, True): Head(_sigmoid_categorical, _d_sigmoid_categorical),
    (softmax, cross_entropy, False): Head(_softmax_categorical, _d_softmax_categorical),
    (softmax, cross_entropy, True): Head(_softmax_categorical, _y_minus_t),
    (softmax, binary_cross_entropy, False): Head(_softmax_binary, _d_softmax_binary),
}


def head(output: Activation, cost: Cost, *, label: bool = False) -> Head:
    """C and the start of the backward pass: δ^L = ∇_y C ⊙ f'(z^L), or its closed form."""

    def value(z: Y, y: Y, t: Y) -> Any:
        return cost.value(y, t)

    def delta(z: Y, y: Y, t: Y) -> Any:
        slope = jnp.asarray(cost.grad(y, t), y.dtype)
        if slope.shape != y.shape:
            raise ValueError(
                f"cost {cost.name}: expected grad(y, t) of shape {y.shape}, got {slope.shape}"
            )
        return through(output, z, slope)

    return _CLOSED.get((output, cost, label), Head(value, delta))


def through(output: Activation, z: Y, e: Y) -> Y:
    """∂C/∂z of e = ∂C/∂y: e ⊙ f'(z), or Jᵀ e of an output whose Jacobian is not diagonal."""
    return product(e, output.slope(z)) if output.pull is None else output.back(z, e)
