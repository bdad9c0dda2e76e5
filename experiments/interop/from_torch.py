"""A small convolutional network of PyTorch: every example's gradient norm, by jbackprop."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
import sys

import jax
import numpy as np

import jbackprop as jb
from jbackprop.convert import from_torch

try:
    import torch
    from torch import nn
except ImportError:
    sys.exit(print("PyTorch is not installed: pip install torch"))

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 10),
)  # fmt: skip
images, labels = torch.randn(32, 1, 12, 12), torch.randint(10, (32,))

# channels last is our order; the module ends in logits
net, params = from_torch(model, (12, 12, 1), output=jb.softmax, cost=jb.cross_entropy)
x, t = images.permute(0, 2, 3, 1).numpy(), labels.numpy()
factors = jax.jit(lambda params: jb.backprop(net, params, x, t))(params)
norms = np.sqrt(jb.squared_norms(factors))
print(f"norms of 32 gradients: {norms.min():.3f} to {norms.max():.3f}")

# PyTorch's own gradient of the sum, put in the place of the weights, converts as they do
nn.CrossEntropyLoss(reduction="sum")(model(images), labels).backward()
for p in model.parameters():
    p.data = p.grad
theirs, ours = from_torch(model, (12, 12, 1))[1], jb.sum_gradient(factors)
pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
error = max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)
print(f"their sum beside PyTorch's gradient: largest relative difference {error:.1e}")
sys.exit(error > 1e-4)
