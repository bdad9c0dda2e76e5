"""Costs: C and its gradient ∇_y C, side by side; and the output heads, where C meets f.

At the output the backward pass starts with δ^L = ∇_y C ⊙ f'(z^L). For two pairs of output and cost
the product has a closed form, δ^L = y - t, where the two factors alone would be ∞ · 0; and C comes
from z^L without passing through log(y) = log(0). A `Head` is that start of the backward pass.

Erratum: the slide "The Cost Function" lacks a minus sign; C = -[t ln y + (1 - t) ln(1 - y)].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import xlog1py, xlogy
from jaxtyping import Array, Float

from jbackprop.core.activations import Activation, sigmoid, softmax

Y = Float[Array, " n"]
Scalar = Float[Array, ""]


@dataclass(frozen=True)
class Cost:
    """C and ∇_y C of one example. Your own is a record of two functions of (y, t) and nothing else.

    Attributes:
        name: what tables, figures and errors call it.
        value: (y, t), both of shape (n_L,), to C of shape ().
        grad: (y, t) to ∇_y C of shape (n_L,).

    >>> import jax.numpy as jnp
    >>> from jbackprop import squared_error
    >>> y, t = jnp.array([3.0, 0.0]), jnp.array([1.0, 0.0])
    >>> float(squared_error.value(y, t)), squared_error.grad(y, t).tolist()
    (2.0, [2.0, 0.0])
    """

    name: str
    value: Callable[[Any, Any], Any]
    grad: Callable[[Any, Any], Any]


def _squared_error(y: Y, t: Y) -> Scalar:
    return jnp.sum((y - t) ** 2) / 2


def _d_squared_error(y: Y, t: Y) -> Y:
    return y - t


# A term whose coefficient is 0 counts as 0 even where its logarithm is infinite (0 · ln 0 = 0).
def _binary_cross_entropy(y: Y, t: Y) -> Scalar:
    return -jnp.sum(xlogy(t, y) + xlog1py(1 - t, -y))


def _ratio(t: Y, y: Y) -> Y:
    """t / y, and 0 where t is 0."""
    return jnp.where(t == 0, 0, t / jnp.where(t == 0, 1, y))


def _d_binary_cross_entropy(y: Y, t: Y) -> Y:
    return _ratio(1 - t, 1 - y) - _ratio(t, y)


def _cross_entropy(y: Y, t: Y) -> Scalar:
    return -jnp.sum(xlogy(t, y))


def _d_cross_entropy(y: Y, t: Y) -> Y:
    return -_ratio(t, y)


def _huber(y: Y, t: Y) -> Scalar:
    e = jnp.abs(y - t)
    return jnp.sum(jnp.where(e <= 1, e**2 / 2, e - 0.5))


def _d_huber(y: Y, t: Y) -> Y:
    return jnp.clip(y - t, -1, 1)


# ln cosh e = ln(1 + 2 sinh²(e/2)), which keeps small e,
#           = |e| + ln(1 + e^(-2|e|)) - ln 2, which keeps large e
def _log_cosh(y: Y, t: Y) -> Scalar:
    e = y - t
    small = jnp.abs(e) < 1
    near = jnp.log1p(2 * jnp.sinh(jnp.where(small, e, 0) / 2) ** 2)
    far = jnp.abs(e) + jnp.log1p(jnp.exp(-2 * jnp.abs(e))) - math.log(2)
    return jnp.sum(jnp.where(small, near, far))


def _d_log_cosh(y: Y, t: Y) -> Y:
    return jnp.tanh(y - t)


squared_error = Cost("squared_error", _squared_error, _d_squared_error)  # C = ½ ‖y - t‖²
binary_cross_entropy = Cost("binary_cross_entropy", _binary_cross_entropy, _d_binary_cross_entropy)
cross_entropy = Cost("cross_entropy", _cross_entropy, _d_cross_entropy)  # C = -Σ_k t_k ln y_k
huber = Cost("huber", _huber, _d_huber)  # ½ e² up to |e| = 1, |e| - ½ beyond; summed over outputs
log_cosh = Cost("log_cosh", _log_cosh, _d_log_cosh)  # Σ ln cosh(y - t)


class Head(NamedTuple):
    """C and δ^L of one example as functions of (z^L, y, t)."""

    value: Callable[[Any, Any, Any], Any]
    delta: Callable[[Any, Any, Any], Any]


# With y = σ(z): ln y = -softplus(-z) and ln(1 - y) = -softplus(z)
def _sigmoid_value(z: Y, y: Y, t: Y) -> Scalar:
    return jnp.sum(t * jax.nn.softplus(-z) + (1 - t) * jax.nn.softplus(z))


def _y_minus_t(z: Y, y: Y, t: Y) -> Y:
    return y - t


def _softmax_value(z: Y, y: Y, t: Y) -> Scalar:
    return -jnp.sum(t * jax.nn.log_softmax(z))


def _softmax_delta(z: Y, y: Y, t: Y) -> Y:
    return y * jnp.sum(t) - t


# By output, cost, and whether t is a label made one-hot, which sums to one: nobody need add it up.
# identity with squared_error needs no row: its product (y - t) ⊙ 1 is the closed form already.
_FUSED = {
    (sigmoid, binary_cross_entropy, False): Head(_sigmoid_value, _y_minus_t),
    (softmax, cross_entropy, False): Head(_softmax_value, _softmax_delta),
    (softmax, cross_entropy, True): Head(_softmax_value, _y_minus_t),
}


def head(output: Activation, cost: Cost, *, label: bool = False) -> Head:
    """C and the start of the backward pass: δ^L = ∇_y C ⊙ f'(z^L), or its closed form."""

    def value(z: Y, y: Y, t: Y) -> Any:
        return cost.value(y, t)

    def delta(z: Y, y: Y, t: Y) -> Any:
        slope = cost.grad(y, t)
        if jnp.shape(slope) != y.shape:
            raise ValueError(
                f"cost {cost.name}: expected grad(y, t) of shape {y.shape}, got {jnp.shape(slope)}"
            )
        if output == softmax:
            return y * (slope - jnp.sum(slope * y))  # (diag(y) - y yᵀ) ∇_y C
        return slope * output.df(z)

    return _FUSED.get((output, cost, label), Head(value, delta))
