"""Costs: C and its gradient ∇_y C, side by side. Where C meets the output is `heads.py`.

Erratum: the slide "The Cost Function" lacks a minus sign; C = -[t ln y + (1 - t) ln(1 - y)].
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.numerics import ratio

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


def times(t: Y, f: Callable[[Any], Any], v: Y, pole: float) -> Y:
    """t ⊙ f(v), and 0 where t is 0 and f infinite, at its pole: 0 · ln 0 = 0, its slope too."""
    absent = (t == 0) & (v == pole)
    return jnp.where(absent, 0, t * f(jnp.where(absent, 0.5, v)))


def _binary_cross_entropy(y: Y, t: Y) -> Scalar:
    return -jnp.sum(times(t, jnp.log, y, 0.0) + times(1 - t, jnp.log1p, -y, -1.0))


def _d_binary_cross_entropy(y: Y, t: Y) -> Y:
    return ratio(1 - t, 1 - y) - ratio(t, y)


def _cross_entropy(y: Y, t: Y) -> Scalar:
    return -jnp.sum(times(t, jnp.log, y, 0.0))


def _d_cross_entropy(y: Y, t: Y) -> Y:
    return -ratio(t, y)


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
