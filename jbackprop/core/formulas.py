"""The formulas of the activations: f and its derivative f', side by side.

`f` maps the weighted input z^l to the activation a^l, element by element; `df` is f', written as
the formula of z that keeps its accuracy where f saturates. (a(1 - a) for the sigmoid is exactly 0
in float32 from z = 17 on; σ(z) σ(-z) is right until it underflows.) Both keep shape and dtype.

At a kink f' takes the value that `jax.grad` gives for the function of the same name in `jax.nn`:
relu'(0) = 0, leaky_relu'(0) = 1, and a clamp's slope at its own limits is that of the flat part,
except for hard_tanh, whose slope at ±1 is 1.

Both are right over the whole range of every floating dtype, and at ±∞ where they have a limit:
float16 and bfloat16 are computed in float32, and nothing is squared that might overflow.

Every one is a module-level function, so that an `Activation` pickles and compares by value.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.numerics import product, wide

Z = Float[Array, "*shape"]  # of any shape: f acts element by element


def _widened(f: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, computed in float32 at least."""

    @functools.wraps(f)
    def widened(z: Any, *constants: Any) -> Any:
        return f(wide(z), *constants).astype(z.dtype)

    return widened


def _finite(z: Z) -> Z:
    """±∞ as the largest numbers, where f has the same limit and ∞/∞ none."""
    largest = jnp.finfo(z.dtype).max
    return jnp.clip(z, -largest, largest)


def identity(z: Z) -> Z:
    """f(z) = z."""
    return z


def d_identity(z: Z) -> Z:
    """f'(z) = 1."""
    return jnp.ones_like(z)


@_widened
def sigmoid(z: Z) -> Z:
    """f(z) = σ(z) = 1 / (1 + e^{-z})."""
    return jax.nn.sigmoid(z)


@_widened
def d_sigmoid(z: Z) -> Z:
    """f'(z) = σ(z) σ(-z)."""
    return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)


@_widened
def tanh(z: Z) -> Z:
    """f(z) = tanh z."""
    return jnp.tanh(z)


@_widened
def d_tanh(z: Z) -> Z:
    """f'(z) = 1 - tanh² z."""
    # As `jax.grad` has it: the compiler shares tanh(z) with the forward pass. 4σ(2z)σ(-2z) would
    # keep the tail, lost here below 5e-7 of f'(0), but makes a small network's step 6 % slower.
    a = jnp.tanh(z)
    return (1 - a) * (1 + a)


def relu(z: Z) -> Z:
    """f(z) = max(z, 0)."""
    return jax.nn.relu(z)


def d_relu(z: Z) -> Z:
    """f'(z) = 1 for z > 0, else 0."""
    return (z > 0).astype(z.dtype)


@_widened
def leaky_relu(z: Z, slope: float) -> Z:
    """f(z) = z for z ≥ 0, else slope · z."""
    return jax.nn.leaky_relu(z, slope)


@_widened
def d_leaky_relu(z: Z, slope: float) -> Z:
    """f'(z) = 1 for z ≥ 0, else slope."""
    return jnp.where(z >= 0, jnp.ones_like(z), slope)


@_widened
def exp_where_negative(z: Z) -> Z:
    """e^z for z ≤ 0 and 1 above, without an overflow on the side that is not taken."""
    return jnp.exp(jnp.minimum(z, 0))


@_widened
def elu(z: Z, alpha: float) -> Z:
    """f(z) = z for z > 0, else α (e^z - 1)."""
    return jax.nn.elu(z, alpha)


@_widened
def d_elu(z: Z, alpha: float) -> Z:
    """f'(z) = 1 for z > 0, else α e^z."""
    return jnp.where(z > 0, 1, alpha * exp_where_negative(z))


@_widened
def celu(z: Z) -> Z:
    """f(z) = z for z > 0, else e^z - 1."""
    return jax.nn.celu(z)


# Klambauer et al., "Self-Normalizing Neural Networks", 2017, arXiv:1706.02515
_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946


@_widened
def selu(z: Z) -> Z:
    """f(z) = λ z for z > 0, else λ α (e^z - 1)."""
    return jax.nn.selu(z)


@_widened
def d_selu(z: Z) -> Z:
    """f'(z) = λ for z > 0, else λ α e^z."""
    return _SELU_SCALE * jnp.where(z > 0, 1, _SELU_ALPHA * exp_where_negative(z))


@_widened
def softplus(z: Z) -> Z:
    """f(z) = ln(1 + e^z)."""
    return jax.nn.softplus(z)


# σ(z) and erfc(z) are at their limits long before ±_FAR in every dtype: z may stop there, so that
# ∞ · 0 does not arise.
_FAR = 1000.0


@_widened
def silu(z: Z) -> Z:
    """f(z) = z σ(z)."""
    return jnp.maximum(z, -_FAR) * jax.nn.sigmoid(z)


@_widened
def d_silu(z: Z) -> Z:
    """f'(z) = σ(z) + z σ(z) σ(-z)."""
    z = jnp.clip(z, -_FAR, _FAR)
    return jax.nn.sigmoid(z) * (1 + z * jax.nn.sigmoid(-z))


# Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, arXiv:1606.08415. Their
# ½ (1 + tanh u) is σ(2u), which does not cancel for z < 0.
_GELU_C = math.sqrt(2 / math.pi)


def _two_u(z: Z) -> Z:
    z = jnp.clip(z, -_FAR, _FAR)  # z³ would overflow
    return 2 * _GELU_C * (z + 0.044715 * z**3)


@_widened
def gelu(z: Z) -> Z:
    """f(z) = z σ(2u), with 2u = 2 √(2/π) (z + 0.044715 z³), near z Φ(z)."""
    return jnp.maximum(z, -_FAR) * jax.nn.sigmoid(_two_u(z))


@_widened
def d_gelu(z: Z) -> Z:
    """f'(z) = σ(2u) + z (2u)' σ(2u) σ(-2u)."""
    two_u, z = _two_u(z), jnp.clip(z, -_FAR, _FAR)
    slope = 2 * _GELU_C * (1 + 3 * 0.044715 * z**2)
    return jax.nn.sigmoid(two_u) * (1 + z * slope * jax.nn.sigmoid(-two_u))


@_widened
def gelu_exact(z: Z) -> Z:
    """f(z) = z Φ(z), with Φ the normal distribution function."""
    return jnp.maximum(z, -_FAR) * (jax.lax.erfc(-z * math.sqrt(0.5)) / 2)


@_widened
def d_gelu_exact(z: Z) -> Z:
    """f'(z) = Φ(z) + z φ(z), with φ the normal density."""
    z = jnp.clip(z, -_FAR, _FAR)
    cdf = jax.lax.erfc(-z * math.sqrt(0.5)) / 2
    return cdf + z * jnp.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


# Misra, "Mish: A Self Regularized Non-Monotonic Activation Function", 2019, arXiv:1908.08681. With
# q = σ(-z) = e^(-softplus(z)): tanh(softplus(z)) = σ(z) (1 + q) / (1 + q²), and its sech² is
# 4q² / (1 + q²)²; neither cancels.
@_widened
def mish(z: Z) -> Z:
    """f(z) = z tanh(ln(1 + e^z))."""
    q = jax.nn.sigmoid(-z)
    return jnp.maximum(z, -_FAR) * jax.nn.sigmoid(z) * (1 + q) / (1 + q**2)


@_widened
def d_mish(z: Z) -> Z:
    """f'(z) = tanh s + z σ(z) (1 - tanh² s), with s = ln(1 + e^z)."""
    z = jnp.clip(z, -_FAR, _FAR)
    q = jax.nn.sigmoid(-z)
    return jax.nn.sigmoid(z) * ((1 + q) / (1 + q**2) + z * (2 * q / (1 + q**2)) ** 2)


@_widened
def softsign(z: Z) -> Z:
    """f(z) = z / (1 + |z|)."""
    z = _finite(z)
    return z / (1 + jnp.abs(z))


@_widened
def d_softsign(z: Z) -> Z:
    """f'(z) = 1 / (1 + |z|)²."""
    return (1 / (1 + jnp.abs(z))) ** 2


def hard_tanh(z: Z) -> Z:
    """f(z) = z between -1 and 1, else the nearer of the two."""
    return jax.nn.hard_tanh(z)


def d_hard_tanh(z: Z) -> Z:
    """f'(z) = 1 for |z| ≤ 1, else 0."""
    return ((z >= -1) & (z <= 1)).astype(z.dtype)


@_widened
def hard_sigmoid(z: Z) -> Z:
    """f(z) = (z + 3) / 6 between 0 and 1, else the nearer of the two."""
    return jax.nn.hard_sigmoid(z)


@_widened
def d_hard_sigmoid(z: Z) -> Z:
    """f'(z) = 1/6 for |z| < 3, else 0."""
    return jnp.where((z > -3) & (z < 3), jnp.full_like(z, 1 / 6), 0)


def relu6(z: Z) -> Z:
    """f(z) = z between 0 and 6, else the nearer of the two."""
    return jax.nn.relu6(z)


def d_relu6(z: Z) -> Z:
    """f'(z) = 1 for 0 < z < 6, else 0."""
    return ((z > 0) & (z < 6)).astype(z.dtype)


# ½ (z + r) with r = √(z² + 4) cancels for z < 0; there it is 2 / (r - z). Then f' = f / r. Barron,
# "Squareplus: A Softplus-Like Algebraic Rectifier", 2021, arXiv:2112.11687
def _r(magnitude: Z) -> Z:
    # beyond 1e9, where z² might overflow, r is |z| in every dtype
    return jnp.maximum(magnitude, jnp.sqrt(jnp.minimum(magnitude, 1e9) ** 2 + 4))


@_widened
def squareplus(z: Z) -> Z:
    """f(z) = (z + √(z² + 4)) / 2."""
    z = _finite(z)
    magnitude = jnp.where(
        z > 0, z, -z
    )  # not abs: its derivative at 0 would be wrong for either side
    r = _r(magnitude)
    return jnp.where(z > 0, r / 2 + magnitude / 2, 1 / (r / 2 + magnitude / 2))


@_widened
def d_squareplus(z: Z) -> Z:
    """f'(z) = (1 + z / √(z² + 4)) / 2."""
    return squareplus(_finite(z)) / _r(jnp.abs(_finite(z)))


@_widened
def log_sigmoid(z: Z) -> Z:
    """f(z) = ln σ(z)."""
    return -jax.nn.softplus(-z)


@_widened
def d_log_sigmoid(z: Z) -> Z:
    """f'(z) = σ(-z)."""
    return jax.nn.sigmoid(-z)


@_widened
def softmax(z: Z) -> Z:
    """f(z) = e^z / Σ_k e^{z_k}."""
    return jax.nn.softmax(z)


@_widened
def d_softmax(z: Float[Array, " n"]) -> Float[Array, "n n"]:
    """f'(z) = diag(y) - y yᵀ, the Jacobian."""
    y = jax.nn.softmax(z)
    return jnp.diag(y) - jnp.outer(y, y)


def pull_softmax(z: Float[Array, " n"], e: Float[Array, " n"]) -> Float[Array, " n"]:
    """(diag(y) - y yᵀ) e. It takes no notice of a shift of e: by that of the largest output nothing
    cancels where that is near 1."""
    y = jax.nn.softmax(z)
    passed = product(e - e[jnp.argmax(y)], y)
    return passed - y * jnp.sum(passed)
