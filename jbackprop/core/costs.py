"""Costs: C and its gradient ∇_y C, side by side. Where C meets the output is `heads.py`.

Erratum: the slide "The Cost Function" lacks a minus sign; C = -[t ln y + (1 - t) ln(1 - y)].
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.numerics import ratio
from jbackprop.core.records import Constants, Cost, as_constant, written

Y = Float[Array, " n"]
Scalar = Float[Array, ""]


def _squared_error(y: Y, t: Y) -> Scalar:
    return jnp.sum((y - t) ** 2) / 2


def _d_squared_error(y: Y, t: Y) -> Y:
    return y - t


def times(t: Y, f: Callable[[Any], Any], v: Y, pole: float) -> Y:
    """t ⊙ f(v), and 0 where t is 0 and f infinite, at its pole: 0 · ln 0 = 0, its slope too."""
    return t * f(jnp.where((t == 0) & (v == pole), 0.5, v))


def _binary_cross_entropy(y: Y, t: Y) -> Scalar:
    return -jnp.sum(times(t, jnp.log, y, 0.0) + times(1 - t, jnp.log1p, -y, -1.0))


def _d_binary_cross_entropy(y: Y, t: Y) -> Y:
    return ratio(1 - t, 1 - y) - ratio(t, y)


def _cross_entropy(y: Y, t: Y) -> Scalar:
    return -jnp.sum(times(t, jnp.log, y, 0.0))


def _d_cross_entropy(y: Y, t: Y) -> Y:
    return -ratio(t, y)


def _huber(y: Y, t: Y, delta: float) -> Scalar:
    e = jnp.abs(y - t)
    return jnp.sum(jnp.where(e < delta, jnp.minimum(e, delta) ** 2 / 2, delta * (e - delta / 2)))


def _d_huber(y: Y, t: Y, delta: float) -> Y:
    return jnp.clip(y - t, -delta, delta)


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


def huber_of(delta: Any) -> Cost:
    """The Huber cost of another δ:
    Σ_k of ½ e² where |e| ≤ δ and δ (|e| - ½ δ) beyond, e = y - t. `huber` is the one of δ = 1.

    Raises `ValueError` where delta is no finite number above 0.

    >>> import jbackprop as jb
    >>> jb.huber_of(0.5)
    <Cost huber_of(0.5): Σ_k ½ e² where |e| ≤ 0.5, 0.5 (|e| - 0.25) beyond; e = y_k - t_k>
    >>> jb.huber_of(1) == jb.huber
    True
    """
    delta = as_constant("delta", delta, positive=True)
    return Cost(
        "huber" if delta == 1 else f"huber_of({delta:g})",
        Constants(_huber, (delta,)),
        Constants(_d_huber, (delta,)),
        formula=f"Σ_k ½ e² where |e| ≤ {delta:g}, {written(delta)}(|e| - {delta / 2:g}) beyond; "
        "e = y_k - t_k",
        elsewhere=f'torch.nn.HuberLoss(reduction="sum", delta={delta:g}), optax.huber_loss',
    )


squared_error: Cost = Cost(
    "squared_error",
    _squared_error,
    _d_squared_error,
    formula="½ ‖y - t‖²",
    elsewhere='half of torch.nn.MSELoss(reduction="sum")',
)
binary_cross_entropy: Cost = Cost(
    "binary_cross_entropy",
    _binary_cross_entropy,
    _d_binary_cross_entropy,
    formula="-Σ_k [t_k ln y_k + (1 - t_k) ln(1 - y_k)], of probabilities y",
    elsewhere='torch.nn.BCELoss(reduction="sum"); of z, torch.nn.BCEWithLogitsLoss',
)
cross_entropy: Cost = Cost(
    "cross_entropy",
    _cross_entropy,
    _d_cross_entropy,
    formula="-Σ_k t_k ln y_k, of probabilities y",
    elsewhere="torch.nn.CrossEntropyLoss, which takes z where this takes y",
)
huber: Cost = huber_of(1.0)
log_cosh: Cost = Cost(
    "log_cosh",
    _log_cosh,
    _d_log_cosh,
    formula="Σ_k ln cosh(y_k - t_k)",
    elsewhere="optax.losses.log_cosh",
)
