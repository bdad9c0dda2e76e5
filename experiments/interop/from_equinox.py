"""A multilayer perceptron of Equinox: every example's gradient norm, by jbackprop."""

# pyright: reportMissingImports=false
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbackprop as jb
from jbackprop.convert import from_equinox

try:
    import equinox as eqx
except ImportError:
    sys.exit(print("Equinox is not installed: pip install equinox"))

keys = jax.random.split(jax.random.key(0), 3)
model = eqx.nn.MLP(64, 10, width_size=32, depth=2, activation=jnp.tanh, key=keys[0])
x, t = jax.random.normal(keys[1], (32, 64)), jax.random.randint(keys[2], (32,), 0, 10)

net, params = from_equinox(model, output=jb.softmax, cost=jb.cross_entropy)
factors = jb.backprop(net, params, x, t)
norms = np.sqrt(jb.squared_norms(factors))
print(f"norms of 32 gradients: {norms.min():.3f} to {norms.max():.3f}")


def cost(model: eqx.nn.MLP) -> jax.Array:
    """Equinox's own gradient of the sum is of this, by jax.grad."""
    return optax.softmax_cross_entropy_with_integer_labels(jax.vmap(model)(x), t).sum()


theirs = [(layer.weight, layer.bias) for layer in eqx.filter_grad(cost)(model).layers]
pairs = zip(jax.tree.leaves(jb.sum_gradient(factors)), jax.tree.leaves(theirs), strict=True)
error = max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)
print(f"their sum beside Equinox's gradient: largest relative difference {error:.1e}")
sys.exit(error > 1e-4)
