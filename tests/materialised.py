"""Every example's gradient, written out: B × P numbers in float64, by `jax.grad` of the textbook.

The quantities of the package are compared with plain reductions of this matrix, in NumPy.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import references
from helpers import problem
from maps import Circulant

import jbackprop as jb


class Case:
    """A network, a batch, its factors, and the matrix of its gradients.

    Attributes:
        g: (B, P), 0 in the rows of weight 0.
        p: weights divided by their sum, (B,).
        layers: the columns of every layer.
    """

    def __init__(self, net, weight=None, batch=6, seed=0):
        self.net, self.weight = net, weight
        self.params, self.x, self.t = problem(net, batch=batch, seed=seed)
        self.factors = jb.backprop(net, self.params, self.x, self.t, weight=weight)
        w = np.ones(batch) if weight is None else np.asarray(weight, np.float64)
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda v: jnp.asarray(np.asarray(v), jnp.float64), self.params)
            layers = [tuple(layer) for layer in wide]
            xs, ts = (jnp.asarray(np.asarray(v), jnp.float64) for v in (self.x, self.t))
            cost = lambda p, x, t: references.cost(net, p, x, t)
            slope = jax.jit(jax.vmap(jax.grad(cost), (None, 0, 0)))
            self.leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(slope(layers, xs, ts))]
        self.g = self.flat(self.leaves, batch) * (w > 0)[:, None]
        total = w.sum()
        self.w, self.p = w, w / (total if total > 0 else 1)
        sizes = [leaf[0].size for leaf in self.leaves]
        widths = [w + b for w, b in zip(sizes[::2], sizes[1::2], strict=True)]
        ends = np.cumsum(widths)
        self.layers = [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
        self.mean = self.p @ self.g

    @staticmethod
    def flat(leaves, rows):
        flat = [np.asarray(leaf, np.float64).reshape(rows, -1) for leaf in leaves]
        return np.concatenate(flat, axis=1)

    def vector(self, gradient):
        """A gradient of the package as (P,)."""
        return self.flat(jax.tree.leaves(gradient), 1)[0]

    def rows(self, gradients):
        """Gradients with a leading axis as (rows, P)."""
        leaves = jax.tree.leaves(gradients)
        return self.flat(leaves, len(leaves[0]))


NETS = {
    "softmax": jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy),
    "deep": jb.Network((3, 6, 5, 4, 2), jb.gelu, jb.sigmoid, jb.binary_cross_entropy),
    "linear": jb.Network((4, 3)),
    "convolutions": jb.Network(  # the first goes direct, the second by ghost norms
        ((7, 6, 2), jb.Conv(3, 3, padding=1), jb.MaxPool(2), jb.Conv(30, 2), jb.MeanPool(), 3),
        jb.tanh,
        jb.softmax,
        jb.cross_entropy,
    ),
    "a map of one's own": jb.Network(((8,), Circulant(), jb.Dense(5), 2), jb.tanh),
}
WEIGHTS = {
    "none": None,
    "masks": [1, 0, 1, 1, 0, 1],
    "real": [0.5, 0.0, 2.0, 1.0, 0.25, 3.0],
}


def close(ours, theirs, tolerance=2e-6):
    """Equal shapes, and entries equal up to a tolerance times the largest."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max(initial=0))


@functools.cache
def case(net, weight):
    """The case of two names, made once: a gradient of float64 takes longer than what uses it."""
    weight = WEIGHTS[weight]
    return Case(NETS[net], None if weight is None else jnp.array(weight, jnp.float32))


# weights are the same mechanism for every map
DENSE = ("softmax", "deep", "linear")
CASES = [(net, weight) for net in NETS for weight in (WEIGHTS if net in DENSE else ["real"])]
