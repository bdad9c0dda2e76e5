"""Activations: f and its derivative f', side by side.

`f` maps the weighted input z^l to the activation a^l, element by element; `df` is f', written as
the formula of z that keeps its accuracy where f saturates. (a(1 - a) for the sigmoid is exactly 0
in float32 from z = 17 on; σ(z) σ(-z) is right until it underflows.) Both keep shape and dtype.

At a kink f' takes the value that `jax.grad` gives for the function of the same name in `jax.nn`:
relu'(0) = 0, leaky_relu'(0) = 1, and a clamp's slope at its own limits is that of the flat part,
except for hard_tanh, whose slope at ±1 is 1.

Both are right over the whole range of every floating dtype, and at ±∞ where they have a limit:
float16 and bfloat16 are computed in float32, and nothing is squared that might overflow.

Every f and f' is a module-level function, so that an `Activation` pickles and compares by value.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.numerics import wide

Z = Float[Array, "*shape"]  # of any shape: f acts element by element


@dataclass(frozen=True)
class Activation:
    """f and f'. Your own is a record of two functions of z and nothing else.

    Attributes:
        name: what tables, figures and errors call it.
        f: z of shape (n,) to a of shape (n,).
        df: z of shape (n,) to f'(z) of shape (n,).

    `Activation` is a static description: hashable, never a pytree. Define f and df once, at module
    level: a network made of fresh lambdas compiles anew each time.

    >>> import jax.numpy as jnp
    >>> from jbackprop import Activation, Network
    >>> cube = Activation("cube", lambda z: z**3, lambda z: 3 * z**2)
    >>> cube.df(jnp.array([2.0]))
    Array([12.], dtype=float32)
    >>> Network((2, 3, 1), cube).activations[0].name
    'cube'
    """

    name: str
    f: Callable[[Any], Any]
    df: Callable[[Any], Any]


def _widened(f: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function, computed in float32 at least."""

    @functools.wraps(f)
    def widened(z: Any) -> Any:
        return f(wide(z)).astype(z.dtype)

    return widened


def _finite(z: Z) -> Z:
    """±∞ as the largest numbers, where f has the same limit and ∞/∞ none."""
    largest = jnp.finfo(z.dtype).max
    return jnp.clip(z, -largest, largest)


def _identity(z: Z) -> Z:
    return z


def _d_identity(z: Z) -> Z:
    return jnp.ones_like(z)


@_widened
def _sigmoid(z: Z) -> Z:
    return jax.nn.sigmoid(z)


@_widened
def _d_sigmoid(z: Z) -> Z:
    return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)


@_widened
def _tanh(z: Z) -> Z:
    return jnp.tanh(z)


@_widened
def _d_tanh(z: Z) -> Z:
    # As `jax.grad` has it: the compiler shares tanh(z) with the forward pass. 4σ(2z)σ(-2z) would
    # keep the tail, lost here below 5e-7 of f'(0), but makes a small network's step 6 % slower.
    a = jnp.tanh(z)
    return (1 - a) * (1 + a)


def _relu(z: Z) -> Z:
    return jax.nn.relu(z)


def _d_relu(z: Z) -> Z:
    return (z > 0).astype(z.dtype)


@_widened
def _leaky_relu(z: Z) -> Z:
    return jax.nn.leaky_relu(z, 0.01)


@_widened
def _d_leaky_relu(z: Z) -> Z:
    return jnp.where(z >= 0, jnp.ones_like(z), 0.01)


@_widened
def _exp_where_negative(z: Z) -> Z:
    """e^z for z ≤ 0 and 1 above, without an overflow on the side that is not taken."""
    return jnp.exp(jnp.minimum(z, 0))


@_widened
def _elu(z: Z) -> Z:
    return jax.nn.elu(z)


@_widened
def _celu(z: Z) -> Z:
    return jax.nn.celu(z)


# Klambauer et al., "Self-Normalizing Neural Networks", 2017, arXiv:1706.02515
_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946


@_widened
def _selu(z: Z) -> Z:
    return jax.nn.selu(z)


@_widened
def _d_selu(z: Z) -> Z:
    return _SELU_SCALE * jnp.where(z > 0, 1, _SELU_ALPHA * _exp_where_negative(z))


@_widened
def _softplus(z: Z) -> Z:
    return jax.nn.softplus(z)


# σ(z) is 0 or 1 long before ±_FAR in every dtype: z may stop there, so that ∞ · 0 does not arise.
_FAR = 1000.0


@_widened
def _silu(z: Z) -> Z:
    return jnp.maximum(z, -_FAR) * jax.nn.sigmoid(z)


@_widened
def _d_silu(z: Z) -> Z:
    z = jnp.clip(z, -_FAR, _FAR)
    return jax.nn.sigmoid(z) * (1 + z * jax.nn.sigmoid(-z))


# Hendrycks and Gimpel, "Gaussian Error Linear Units", 2016, arXiv:1606.08415. Their
# ½ (1 + tanh u) is σ(2u), which does not cancel for z < 0.
_GELU_C = math.sqrt(2 / math.pi)


def _two_u(z: Z) -> Z:
    z = jnp.clip(z, -40, 40)  # σ is 0 or 1 long before, and z³ would overflow
    return 2 * _GELU_C * (z + 0.044715 * z**3)


@_widened
def _gelu(z: Z) -> Z:
    return jnp.maximum(z, -40) * jax.nn.sigmoid(_two_u(z))


@_widened
def _d_gelu(z: Z) -> Z:
    two_u, z = _two_u(z), jnp.clip(z, -40, 40)
    slope = 2 * _GELU_C * (1 + 3 * 0.044715 * z**2)
    return jax.nn.sigmoid(two_u) * (1 + z * slope * jax.nn.sigmoid(-two_u))


@_widened
def _gelu_exact(z: Z) -> Z:
    return jnp.maximum(z, -40) * (jax.lax.erfc(-z * math.sqrt(0.5)) / 2)


@_widened
def _d_gelu_exact(z: Z) -> Z:
    z = jnp.clip(z, -40, 40)
    cdf = jax.lax.erfc(-z * math.sqrt(0.5)) / 2
    return cdf + z * jnp.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


# Misra, "Mish: A Self Regularized Non-Monotonic Activation Function", 2019, arXiv:1908.08681. With
# q = σ(-z) = e^(-softplus(z)): tanh(softplus(z)) = σ(z) (1 + q) / (1 + q²), and its sech² is
# 4q² / (1 + q²)²; neither cancels.
@_widened
def _mish(z: Z) -> Z:
    q = jax.nn.sigmoid(-z)
    return jnp.maximum(z, -_FAR) * jax.nn.sigmoid(z) * (1 + q) / (1 + q**2)


@_widened
def _d_mish(z: Z) -> Z:
    z = jnp.clip(z, -_FAR, _FAR)
    q = jax.nn.sigmoid(-z)
    return jax.nn.sigmoid(z) * ((1 + q) / (1 + q**2) + z * (2 * q / (1 + q**2)) ** 2)


@_widened
def _softsign(z: Z) -> Z:
    z = _finite(z)
    return z / (1 + jnp.abs(z))


@_widened
def _d_softsign(z: Z) -> Z:
    return (1 / (1 + jnp.abs(z))) ** 2


def _hard_tanh(z: Z) -> Z:
    return jax.nn.hard_tanh(z)


def _d_hard_tanh(z: Z) -> Z:
    return ((z >= -1) & (z <= 1)).astype(z.dtype)


@_widened
def _hard_sigmoid(z: Z) -> Z:
    return jax.nn.hard_sigmoid(z)


@_widened
def _d_hard_sigmoid(z: Z) -> Z:
    return jnp.where((z > -3) & (z < 3), jnp.full_like(z, 1 / 6), 0)


def _relu6(z: Z) -> Z:
    return jax.nn.relu6(z)


def _d_relu6(z: Z) -> Z:
    return ((z > 0) & (z < 6)).astype(z.dtype)


# ½ (z + r) with r = √(z² + 4) cancels for z < 0; there it is 2 / (r - z). Then f' = f / r. Barron,
# "Squareplus: A Softplus-Like Algebraic Rectifier", 2021, arXiv:2112.11687
def _r(magnitude: Z) -> Z:
    # beyond 1e9, where z² might overflow, r is |z| in every dtype
    return jnp.maximum(magnitude, jnp.sqrt(jnp.minimum(magnitude, 1e9) ** 2 + 4))


@_widened
def _squareplus(z: Z) -> Z:
    z = _finite(z)
    magnitude = jnp.where(
        z > 0, z, -z
    )  # not abs: its derivative at 0 would be wrong for either side
    r = _r(magnitude)
    return jnp.where(z > 0, r / 2 + magnitude / 2, 1 / (r / 2 + magnitude / 2))


@_widened
def _d_squareplus(z: Z) -> Z:
    return _squareplus(_finite(z)) / _r(jnp.abs(_finite(z)))


@_widened
def _log_sigmoid(z: Z) -> Z:
    return -jax.nn.softplus(-z)


@_widened
def _d_log_sigmoid(z: Z) -> Z:
    return jax.nn.sigmoid(-z)


@_widened
def _softmax(z: Z) -> Z:
    return jax.nn.softmax(z)


@_widened
def _d_softmax(z: Float[Array, " n"]) -> Float[Array, "n n"]:
    y = jax.nn.softmax(z)
    return jnp.diag(y) - jnp.outer(y, y)


identity = Activation("identity", _identity, _d_identity)
sigmoid = Activation("sigmoid", _sigmoid, _d_sigmoid)
tanh = Activation("tanh", _tanh, _d_tanh)
relu = Activation("relu", _relu, _d_relu)
leaky_relu = Activation("leaky_relu", _leaky_relu, _d_leaky_relu)
elu = Activation("elu", _elu, _exp_where_negative)
selu = Activation("selu", _selu, _d_selu)
celu = Activation("celu", _celu, _exp_where_negative)
softplus = Activation("softplus", _softplus, _sigmoid)
silu = Activation("silu", _silu, _d_silu)
gelu = Activation("gelu", _gelu, _d_gelu)
gelu_exact = Activation("gelu_exact", _gelu_exact, _d_gelu_exact)
mish = Activation("mish", _mish, _d_mish)
softsign = Activation("softsign", _softsign, _d_softsign)
hard_tanh = Activation("hard_tanh", _hard_tanh, _d_hard_tanh)
hard_sigmoid = Activation("hard_sigmoid", _hard_sigmoid, _d_hard_sigmoid)
relu6 = Activation("relu6", _relu6, _d_relu6)
squareplus = Activation("squareplus", _squareplus, _d_squareplus)
log_sigmoid = Activation("log_sigmoid", _log_sigmoid, _d_log_sigmoid)

# An output only: its derivative is a full Jacobian, diag(y) - y yᵀ, which `df` gives for looking.
# The output heads in costs.py multiply by it without forming it.
softmax = Activation("softmax", _softmax, _d_softmax)
