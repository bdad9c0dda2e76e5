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
    slopes = _slopes(at, found)
    threshold = _middle(slopes)
    moved = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), found.gradient)
    present = np.asarray(at.weight) > 0
    # `influence` takes the gradients of backpropagation under every rule
    of_examples = at.rule == backpropagation

    @jax.jit  # one program: many small ones take longer to compile than to compare
    def ours(params: Any, factors: Factors, moved: Any, x: Any, t: Any) -> dict[str, Any]:
        told = {
            "update_ratio": diagnostics.update_ratio(params, moved),
            "units": tuple(diagnostics.units(at.net, factors, threshold=threshold)),
            "histograms": tuple(diagnostics.histograms(factors, *EDGES)),
            "empirical_ntk": kernel.empirical_ntk(at.net, params, x[:ROWS]),
        }
        if of_examples:
            told["influence"] = scores.influence(at.net, params, x, t, x, t)
        return told

    of = g[present]
    theirs = {
        "update_ratio": _ratios(at.params, moved),
        "units": _units([s[present] for s in slopes], threshold),
        "histograms": _counts(at, found),
        "empirical_ntk": _kernel(at, at.x[present][:ROWS]),
        "influence": of @ of.mean(axis=0),
    }
    told = ours(at.params, factors, moved, at.x[present], at.t[present])
    return {name: (value, theirs[name]) for name, value in told.items()}


def _ratios(params: Any, moved: Any) -> np.ndarray:
    size = lambda layer: np.sqrt(sum(np.sum(np.square(leaf)) for leaf in layer))
    return np.array([size(d) / size(p) for d, p in zip(moved, params, strict=True)])


def _slopes(at: Point, found: Reference) -> list[np.ndarray]:
    """|f'(z^l)| of every hidden layer by autodiff, (B, units, features)."""
    fs = at.net.activations[:-1]

    @jax.jit
    def all_of(zs: Any) -> Any:
        return [jax.vjp(f.f, z)[1](jnp.ones_like(z))[0] for f, z in zip(fs, zs, strict=True)]

    slopes = map(np.abs, map(np.asarray, all_of(found.z[:-1])))
    return [s.reshape(len(s), -1, s.shape[-1]) for s in slopes]


def _middle(slopes: list[np.ndarray]) -> float:
    """Half of them lie below it, and none near."""
    every = np.unique(np.concatenate([s.ravel() for s in slopes] or [np.zeros(1)]))
    gaps = np.diff(every)
    if not len(gaps):
        return 1e-3
    k = min(len(gaps) - 1, len(every) // 2)
    k = k if gaps[k] > 1e-6 else int(np.argmax(gaps))
    return float(every[k] + gaps[k] / 2)


def _units(slopes: list[np.ndarray], threshold: float) -> Pair:
    """Shares of units that are flat for all examples, and on average."""
    flat = [s < threshold for s in slopes]
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


def _kernel(at: Point, x: Any) -> np.ndarray:
    """Σ_k ⟨∂y_k(x)/∂θ, ∂y_k(x')/∂θ⟩."""
    of = lambda params, x, k: output_of(at.net, params, x).ravel()[k]

    @jax.jit
    def of_output(params: Any, x: Any, k: Any) -> Any:
        gradients = jax.vmap(jax.grad(of), (None, 0, None))(params, x, k)
        flat = [leaf.reshape(len(leaf), -1) for leaf in jax.tree.leaves(gradients)]
        return sum(leaf @ leaf.T for leaf in flat)

    outputs = range(int(np.prod(at.net.shapes[-1])))
    return np.sum([np.asarray(of_output(at.params, x, k)) for k in outputs], axis=0)
