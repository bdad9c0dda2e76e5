"""A small convolutional network of Flax NNX: every example's gradient norm, by jbackprop."""

# pyright: reportMissingImports=false, reportArgumentType=false, reportAttributeAccessIssue=false
import sys

import jax
import numpy as np
import optax

import jbackprop as jb
from jbackprop.convert import from_flax

try:
    from flax import nnx
except ImportError:
    sys.exit(print("Flax is not installed: pip install flax"))

rngs, keys = nnx.Rngs(0), jax.random.split(jax.random.key(0))
model = nnx.Sequential(
    nnx.Conv(1, 8, (3, 3), rngs=rngs), nnx.relu, lambda x: nnx.max_pool(x, (2, 2), (2, 2)),
    lambda x: x.reshape(len(x), -1), nnx.Linear(288, 10, rngs=rngs),
)  # fmt: skip
x, t = jax.random.normal(keys[0], (32, 12, 12, 1)), jax.random.randint(keys[1], (32,), 0, 10)

net, params = from_flax(model, (12, 12, 1), output=jb.softmax, cost=jb.cross_entropy)
factors = jax.jit(lambda params: jb.backprop(net, params, x, t))(params)
norms = np.sqrt(jb.squared_norms(factors))
print(f"norms of 32 gradients: {norms.min():.3f} to {norms.max():.3f}")

# Flax's own gradient of the sum, put in the place of the weights, converts as they do
cost = lambda model: optax.softmax_cross_entropy_with_integer_labels(model(x), t).sum()
nnx.update(model, nnx.grad(cost)(model))
theirs, ours = from_flax(model, (12, 12, 1))[1], jb.sum_gradient(factors)
pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
error = max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)
print(f"their sum beside Flax's gradient: largest relative difference {error:.1e}")
sys.exit(error > 1e-4)
