"""What the tests compare with: the formulas of the textbook, written independently of the package.

`mpmath` evaluates them with 60 digits, where they cannot cancel or overflow; `jax.nn` and plain
`jax.numpy` give a forward pass for `jax.grad` to differentiate.
"""

from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
from jax import lax

mp.mp.dps = 60


def _logistic(z):
    return 1 / (1 + mp.exp(-z))


def _elu(z, alpha: Any = 1):
    return z if z > 0 else alpha * (mp.exp(z) - 1)


# f with 60 digits, by name. f' comes from it by mpmath's own numerical differentiation.
EXACT = {
    "identity": lambda z: z,
    "sigmoid": _logistic,
    "tanh": lambda z: 1 - 2 / (1 + mp.exp(2 * z)),
    "relu": lambda z: max(z, mp.mpf(0)),
    "leaky_relu": lambda z: z if z >= 0 else z / 100,
    "elu": _elu,
    "selu": lambda z: mp.mpf("1.05070098735548049342") * _elu(z, mp.mpf("1.67326324235437728482")),
    "celu": _elu,
    "softplus": lambda z: mp.log(1 + mp.exp(z)),
    "silu": lambda z: z * _logistic(z),
    "gelu": lambda z: z / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (z + mp.mpf("0.044715") * z**3))),
    "gelu_exact": lambda z: (  # beyond 200 it is z or 0 to 8,000 digits
        z / 2 * mp.erfc(-z / mp.sqrt(2)) if abs(z) < 200 else max(z, mp.mpf(0))
    ),
    "mish": lambda z: z * mp.tanh(mp.log(1 + mp.exp(z))),
    "softsign": lambda z: z / (1 + abs(z)),
    "hard_tanh": lambda z: min(max(z, mp.mpf(-1)), mp.mpf(1)),
    "hard_sigmoid": lambda z: min(max(z + 3, mp.mpf(0)), mp.mpf(6)) / 6,
    "relu6": lambda z: min(max(z, mp.mpf(0)), mp.mpf(6)),
    "squareplus": lambda z: (z + mp.sqrt(z**2 + 4)) / 2 if z > 0 else 2 / (mp.sqrt(z**2 + 4) - z),
    "log_sigmoid": lambda z: -mp.log(1 + mp.exp(-z)),
}

# z at which f has a kink, where f' is a convention (that of `jax.nn`) and not a limit
KINKS = {
    "relu": [0],
    "leaky_relu": [0],
    "selu": [0],
    "hard_tanh": [-1, 1],
    "hard_sigmoid": [-3, 3],
    "relu6": [0, 6],
}

# The same functions as `jax.nn` has them, for `jax.grad`.
JAX = {name: getattr(jax.nn, name) for name in [*EXACT, "softmax"] if hasattr(jax.nn, name)} | {
    "identity": lambda z: z,
    "gelu": lambda z: jax.nn.gelu(z, approximate=True),
    "gelu_exact": lambda z: jax.nn.gelu(z, approximate=False),
    "softsign": jax.nn.soft_sign,
    "tanh": jnp.tanh,
}

# C of one example, as on the slide (with its minus sign) and in the textbooks.
COSTS = {
    "squared_error": lambda y, t: 0.5 * jnp.sum((y - t) ** 2),
    "binary_cross_entropy": lambda y, t: -jnp.sum(t * jnp.log(y) + (1 - t) * jnp.log(1 - y)),
    "cross_entropy": lambda y, t: -jnp.sum(t * jnp.log(y)),
    "huber": lambda y, t: jnp.sum(
        jnp.where(jnp.abs(y - t) <= 1, 0.5 * (y - t) ** 2, jnp.abs(y - t) - 0.5)
    ),
    "log_cosh": lambda y, t: jnp.sum(jnp.log(jnp.cosh(y - t))),
}


def exact(name, z):
    """(f(z), f'(z)) as Python floats, right to the last digit."""
    z, f = mp.mpf(float(z)), EXACT[name]
    h = mp.mpf(10) ** -25 * (abs(z) or 1)
    # the tails need every digit until they are below any float, and near 0 the slope does
    tail = int(min(abs(z), 1000) ** (3 if name == "gelu" else 1))
    near = max(0, -int(mp.log10(abs(z)))) if z else 0
    with mp.workdps(60 + 2 * near + (2 * tail if tail < 30_000 and abs(z) < 1000 else 0)):
        return float(f(z)), float((f(z + h) - f(z - h)) / (2 * h))


def mapped(linear, w, x):
    """w x: a matrix, a convolution as XLA has it, or what a map of a test's own says."""
    kind = type(linear).__name__  # a faulty copy of the package has classes of its own
    if kind == "Dense":
        return jnp.dot(w, x.ravel())
    if kind != "Conv":
        return linear.apply(w, x)
    rank = x.ndim - 1
    each = lambda v: (v,) * rank if isinstance(v, int) else v
    pads = linear.padding
    pads = (
        pads if isinstance(pads, str) else [(p, p) if isinstance(p, int) else p for p in each(pads)]
    )
    letters = "DHW"[3 - rank :]
    names = f"N{letters}C", f"O{letters}I", f"N{letters}C"
    return lax.conv_general_dilated(
        x[None], w, each(linear.stride), pads, rhs_dilation=each(linear.dilation),
        dimension_numbers=names,
    )[0]  # fmt: skip


def weighted_input(linear, w, b, x):
    """w x + b."""
    z = mapped(linear, w, x)
    return z + jnp.expand_dims(b, range(z.ndim - 1))


def pooled(pool, u):
    """P u by XLA's windows."""
    if pool is None:
        return u
    rank = u.ndim - 1
    each = lambda v: (v,) * rank if isinstance(v, int) else v
    if pool.size is None:
        return jnp.mean(u, axis=range(rank))
    window = (*each(pool.size), 1), (*each(pool.stride), 1)
    if type(pool).__name__ == "MeanPool":
        total = lax.reduce_window(u, np.zeros((), u.dtype), lax.add, *window, "VALID")
        return total / float(np.prod(window[0]))
    pads = pool.padding
    if not isinstance(pads, str):
        pads = [(p, p) if isinstance(p, int) else p for p in each(pads)] + [(0, 0)]
    return lax.reduce_window(u, np.array(-np.inf, u.dtype), lax.max, *window, pads)


def output(net, params, x):
    """y of one example, by a forward pass of its own."""
    layers = [*zip(params, net.activations, net.maps, net.pools, strict=True)]
    for (w, b), f, linear, pool in layers[:-1]:
        x = pooled(pool, JAX[f.name](weighted_input(linear, w, b, x)))
    (w, b), f, linear, pool = layers[-1]
    return JAX[f.name](pooled(pool, weighted_input(linear, w, b, x)))


def cost(net, params, x, t):
    """The textbook's cost of one example."""
    return COSTS[net.cost.name](output(net, params, x), t)


def mean_cost(net, params, xs, ts, weight=None):
    """The weighted mean of `cost` over a batch, by a Python loop."""
    weight = np.ones(len(xs)) if weight is None else weight
    kept = [(float(w), x, t) for w, x, t in zip(weight, xs, ts, strict=True) if w > 0]
    total = sum(w for w, _, _ in kept)
    return jnp.sum(jnp.stack([w / total * cost(net, params, x, t) for w, x, t in kept]))
