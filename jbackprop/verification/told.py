"""What is told of layers, of outputs and of other examples, beside the same from the reference."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbackprop.core.backward import backpropagation
from jbackprop.core.factors import Factors
from jbackprop.quantities import diagnostics, kernel, scores
from jbackprop.verification.point import Point
from jbackprop.verification.reference import Reference, output_of

EDGES = (-0.5, 0.1, 0.7), (-0.1, 0.001, 0.1)  # of a and of δ
ROWS = 2  # of the kernel: a pass for every output and pair
Pair = tuple[Any, Any]


def told_of(at: Point, found: Reference, factors: Factors, g: np.ndarray) -> dict[str, Pair]:
    """(the library's, the reference's), by name; g has every example's gradient, (B, P)."""
    threshold = _middle_slope(at, found)
    moved = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), found.gradient)
    pairs = {
        "update_ratio": (diagnostics.update_ratio(at.params, moved), _ratios(at.params, moved)),
        "units": (
            tuple(diagnostics.units(at.net, factors, threshold=threshold)),
            _units(at, found, threshold),
        ),
        "histograms": (tuple(diagnostics.histograms(factors, *EDGES)), _counts(at, found)),
        "empirical_ntk": (
            kernel.empirical_ntk(at.net, at.params, at.x[:ROWS]),
            _kernel(at, at.x[:ROWS]),
        ),
    }
    if at.rule == backpropagation:  # whose gradients `influence` takes, under every rule
        present = np.asarray(at.weight) > 0
        rows = at.x[present], at.t[present]
        of = g[present]
        pairs["influence"] = scores.influence(at.net, at.params, *rows, *rows), of @ of.mean(axis=0)
    return pairs


def _ratios(params: Any, moved: Any) -> np.ndarray:
    size = lambda layer: np.sqrt(sum(np.sum(np.square(leaf)) for leaf in layer))
    return np.array([size(d) / size(p) for d, p in zip(moved, params, strict=True)])


def _slopes(at: Point, found: Reference) -> list[np.ndarray]:
    """|f'(z^l)| of every hidden layer by autodiff, (B, units, features)."""
    hidden = zip(at.net.activations[:-1], found.z[:-1], strict=True)
    slopes = [jax.vjp(f.f, z)[1](jnp.ones_like(z))[0] for f, z in hidden]
    return [np.abs(np.asarray(s)).reshape(len(s), -1, s.shape[-1]) for s in slopes]


def _middle_slope(at: Point, found: Reference) -> float:
    """Half of the slopes lie below it, and none near."""
    every = np.unique(np.concatenate([s.ravel() for s in _slopes(at, found)] or [np.zeros(1)]))
    gaps = np.diff(every)
    if not len(gaps):
        return 1e-3
    k = min(len(gaps) - 1, len(every) // 2)
    k = k if gaps[k] > 1e-6 else int(np.argmax(gaps))
    return float(every[k] + gaps[k] / 2)


def _units(at: Point, found: Reference, threshold: float) -> Pair:
    """Shares of units that are flat for all examples, and on average."""
    present = np.asarray(at.weight) > 0
    flat = [s[present] < threshold for s in _slopes(at, found)]
    return (
        np.array([f.all(axis=(0, 1)).mean() for f in flat]),
        np.array([f.mean() for f in flat]),
    )


def _counts(at: Point, found: Reference) -> Pair:
    """Sums of weights, bin by bin."""
    weight = np.asarray(at.weight)

    def counts(values: Any, edges: Any) -> np.ndarray:
        values = np.asarray(values).reshape(len(weight), -1)
        each = np.broadcast_to(weight[:, None], values.shape)
        bins = np.digitize(values, edges).ravel()
        return np.bincount(bins, each.ravel(), minlength=len(edges) + 1)

    layers = found.a[1:], found.delta
    return tuple(
        np.stack([counts(v, edges) for v in of]) for of, edges in zip(layers, EDGES, strict=True)
    )  # pyright: ignore


@jax.jit
def _summed(gradients: Any) -> Any:
    flat = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(gradients)]
    return sum(leaf @ leaf.T for leaf in flat)


def _kernel(at: Point, x: Any) -> np.ndarray:
    """Σ_k ⟨∂y_k(x)/∂θ, ∂y_k(x')/∂θ⟩."""
    of = lambda params, x, k: output_of(at.net, params, x).ravel()[k]
    gradients = jax.jit(jax.vmap(jax.grad(of), (None, 0, None)))
    outputs = range(int(np.prod(at.net.shapes[-1])))
    return np.asarray(sum(_summed(gradients(at.params, x, k)) for k in outputs))
