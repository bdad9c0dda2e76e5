"""Activations by name: f and f' of `formulas.py`, their constants, and what others call them.

`help(jb.tanh)` tells it; `leaky_relu_of` and `elu_of` make others of their kinds.
"""

from typing import Any

from jbackprop.core import formulas
from jbackprop.core.records import Activation, Constants, as_constant, written


def _activation(name: str, f: Any, df: Any, formula: str, elsewhere: str) -> Activation:
    return Activation(name, f, df, formula=formula, elsewhere=elsewhere)


def leaky_relu_of(slope: Any) -> Activation:
    """The leaky ReLU of another slope:
    z for z ≥ 0 and slope · z below. `leaky_relu` is the one of 0.01.

    Raises `ValueError` where slope is no finite number.

    >>> import jbackprop as jb
    >>> jb.leaky_relu_of(0.2)
    <Activation leaky_relu_of(0.2): z for z ≥ 0, 0.2 z below>
    >>> jb.leaky_relu_of(0.01) == jb.leaky_relu
    True
    """
    slope = as_constant("slope", slope)
    return _activation(
        "leaky_relu" if slope == 0.01 else f"leaky_relu_of({slope:g})",
        Constants(formulas.leaky_relu, (slope,)),
        Constants(formulas.d_leaky_relu, (slope,)),
        f"z for z ≥ 0, {slope:g} z below",
        f"torch.nn.LeakyReLU({slope:g}), jax.nn.leaky_relu",
    )


def elu_of(alpha: Any) -> Activation:
    """The ELU of another constant: z for z > 0 and α (e^z - 1) below. `elu` is the one of α = 1.

    Raises `ValueError` where alpha is no finite number.

    >>> import jbackprop as jb
    >>> jb.elu_of(0.5)
    <Activation elu_of(0.5): z for z > 0, 0.5 (e^z - 1) below>
    >>> jb.elu_of(1) == jb.elu
    True
    """
    alpha = as_constant("alpha", alpha)
    return _activation(
        "elu" if alpha == 1 else f"elu_of({alpha:g})",
        Constants(formulas.elu, (alpha,)),
        Constants(formulas.d_elu, (alpha,)),
        f"z for z > 0, {written(alpha)}(e^z - 1) below",
        f"torch.nn.ELU({alpha:g}), jax.nn.elu",
    )


identity: Activation = _activation(
    "identity", formulas.identity, formulas.d_identity, "z", "torch.nn.Identity"
)
sigmoid: Activation = _activation(
    "sigmoid",
    formulas.sigmoid,
    formulas.d_sigmoid,
    "σ(z) = 1 / (1 + e^-z)",
    "torch.nn.Sigmoid, jax.nn.sigmoid",
)
tanh: Activation = _activation(
    "tanh", formulas.tanh, formulas.d_tanh, "tanh z", "torch.nn.Tanh, jax.nn.tanh"
)
relu: Activation = _activation(
    "relu", formulas.relu, formulas.d_relu, "max(z, 0)", "torch.nn.ReLU, jax.nn.relu"
)
leaky_relu: Activation = leaky_relu_of(0.01)
elu: Activation = elu_of(1.0)
selu: Activation = _activation(
    "selu",
    formulas.selu,
    formulas.d_selu,
    "1.0507 z for z > 0, 1.0507 · 1.6733 (e^z - 1) below",
    "torch.nn.SELU, jax.nn.selu",
)
celu: Activation = _activation(
    "celu",
    formulas.celu,
    formulas.exp_where_negative,
    "z for z > 0, e^z - 1 below: elu's values, with α = 1",
    "torch.nn.CELU(), jax.nn.celu",
)
softplus: Activation = _activation(
    "softplus",
    formulas.softplus,
    formulas.sigmoid,
    "ln(1 + e^z)",
    "torch.nn.Softplus(), jax.nn.softplus",
)
silu: Activation = _activation(
    "silu",
    formulas.silu,
    formulas.d_silu,
    "z σ(z), also called swish",
    "torch.nn.SiLU, jax.nn.silu",
)
gelu: Activation = _activation(
    "gelu",
    formulas.gelu,
    formulas.d_gelu,
    "½ z (1 + tanh(√(2/π) (z + 0.044715 z³))), the tanh form",
    'torch.nn.GELU(approximate="tanh"), jax.nn.gelu',
)
gelu_exact: Activation = _activation(
    "gelu_exact",
    formulas.gelu_exact,
    formulas.d_gelu_exact,
    "z Φ(z), Φ the normal distribution's",
    "torch.nn.GELU(), jax.nn.gelu(approximate=False)",
)
mish: Activation = _activation(
    "mish", formulas.mish, formulas.d_mish, "z tanh(ln(1 + e^z))", "torch.nn.Mish, jax.nn.mish"
)
softsign: Activation = _activation(
    "softsign",
    formulas.softsign,
    formulas.d_softsign,
    "z / (1 + |z|)",
    "torch.nn.Softsign, jax.nn.soft_sign",
)
hard_tanh: Activation = _activation(
    "hard_tanh",
    formulas.hard_tanh,
    formulas.d_hard_tanh,
    "z, but at least -1 and at most 1",
    "torch.nn.Hardtanh(), jax.nn.hard_tanh",
)
hard_sigmoid: Activation = _activation(
    "hard_sigmoid",
    formulas.hard_sigmoid,
    formulas.d_hard_sigmoid,
    "z/6 + ½, but at least 0 and at most 1",
    "torch.nn.Hardsigmoid, jax.nn.hard_sigmoid",
)
relu6: Activation = _activation(
    "relu6",
    formulas.relu6,
    formulas.d_relu6,
    "z, but at least 0 and at most 6",
    "torch.nn.ReLU6, jax.nn.relu6",
)
squareplus: Activation = _activation(
    "squareplus",
    formulas.squareplus,
    formulas.d_squareplus,
    "½ (z + √(z² + 4))",
    "jax.nn.squareplus",
)
log_sigmoid: Activation = _activation(
    "log_sigmoid",
    formulas.log_sigmoid,
    formulas.d_log_sigmoid,
    "ln σ(z) = -ln(1 + e^-z)",
    "torch.nn.LogSigmoid, jax.nn.log_sigmoid",
)

# An output only: its derivative is a full Jacobian, diag(y) - y yᵀ, which `df` gives for looking.
softmax: Activation = Activation(
    "softmax",
    formulas.softmax,
    formulas.d_softmax,
    formulas.pull_softmax,
    formula="y_k = e^(z_k) / Σ_j e^(z_j), an output only",
    elsewhere="torch.nn.Softmax(dim=-1), jax.nn.softmax",
)

BUILT_IN = (
    identity,
    sigmoid,
    tanh,
    relu,
    leaky_relu,
    elu,
    selu,
    celu,
    softplus,
    silu,
    gelu,
    gelu_exact,
    mish,
    softsign,
    hard_tanh,
    hard_sigmoid,
    relu6,
    squareplus,
    log_sigmoid,
    softmax,
)

# Layers that rectify halve the second moment of what passes through them, and start at twice the
# variance: He et al., "Delving Deep into Rectifiers", 2015, arXiv:1502.01852
_RECTIFIERS = (relu, leaky_relu, relu6, elu, celu, silu, gelu, gelu_exact, mish, squareplus)


def function_of(activation: Activation) -> Any:
    """f without its constants."""
    f = activation.f
    return f.function if isinstance(f, Constants) else f


def rectifies(activation: Activation) -> bool:
    """Whether it is one of those, whatever its constants."""
    return any(function_of(activation) is function_of(each) for each in _RECTIFIERS)


def gives_probabilities(activation: Activation) -> bool:
    """Whether all of its values are probabilities. A user's own activation is trusted."""
    known = BUILT_IN
    if isinstance(activation.f, Constants):
        known += tuple(of(*activation.f.constants) for of in (leaky_relu_of, elu_of))
    return activation not in known or activation in (softmax, sigmoid, hard_sigmoid)
