"""A classifier of scikit-learn: every example's gradient norm, by jbackprop."""

# pyright: reportMissingImports=false, reportArgumentType=false
import sys

import jax
import numpy as np

import jbackprop as jb
from jbackprop.convert import from_sklearn

try:
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier
except ImportError:
    sys.exit(print("scikit-learn is not installed: pip install scikit-learn"))

x, t = load_digits(return_X_y=True)
x = (x / 16).astype(np.float32)  # on float64 it would learn in float64
# plain descent on all examples at once: a step of it shows scikit-learn's own gradient
model = MLPClassifier(
    (32,), "tanh", solver="sgd", momentum=0, alpha=0, batch_size=len(x), learning_rate_init=1.0,
    random_state=0,
)  # fmt: skip
for _ in range(20):
    model.partial_fit(x, t, classes=np.arange(10))

net, params = from_sklearn(model)  # softmax and cross-entropy, as it is
factors = jax.jit(lambda params: jb.backprop(net, params, x, t))(params)
norms = np.sqrt(jb.squared_norms(factors))
print(f"norms of {len(x)} gradients: {norms.min():.3f} to {norms.max():.3f}")

after = from_sklearn(model.partial_fit(x, t))[1]
theirs = jax.tree.map(lambda before, after: (before - after) * len(x), params, after)
pairs = zip(jax.tree.leaves(jb.sum_gradient(factors)), jax.tree.leaves(theirs), strict=True)
error = max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)
print(f"their sum beside scikit-learn's step: largest relative difference {error:.1e}")
sys.exit(error > 1e-4)
