"""Every quantity, beside the same of all gradients written out: g, of shape (B, P), in NumPy."""

from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jbackprop.core.factors import (
    Factors,
    example_gradients,
    mean_gradient,
    sum_gradient,
)
from jbackprop.core.maps import rows_of
from jbackprop.core.vjp import input_gradient
from jbackprop.quantities import (
    batch_size,
    clipping,
    diagnostics,
    groups,
    moments,
    norms,
    scores,
    spread,
    statistics,
)
from jbackprop.verification.point import Point
from jbackprop.verification.reference import Reference

GROUPS = 2
GAMMA = 0.01


class Written(NamedTuple):
    """All gradients, and what the formulas share.

    Attributes:
        g: (B, P), 0 in rows of weight 0.
        p: w_i / Σ w.
        kappa: Σ p².
        layers: the columns of every layer; parts: of every w and b.
        shapes: of every w and b.
    """

    g: np.ndarray
    p: np.ndarray
    weight: np.ndarray
    kappa: float
    layers: list[slice]
    parts: list[slice]
    shapes: list[tuple[int, ...]]

    def leaves(self, values: np.ndarray) -> list[np.ndarray]:
        """(…, P) as the arrays w^1, b^1, … that it is made of, with its leading axes."""
        lead = values.shape[:-1]
        pairs = zip(self.parts, self.shapes, strict=True)
        return [values[..., part].reshape(*lead, *shape) for part, shape in pairs]


def written_out(at: Point, found: Reference) -> Written:
    """From every example's gradient."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(found.gradient)]
    g = np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
    ends = np.cumsum([0, *(leaf[0].size for leaf in leaves)])
    parts = [slice(int(a), int(b)) for a, b in pairwise(ends)]
    layers = [slice(w.start, b.stop) for w, b in zip(parts[::2], parts[1::2], strict=True)]
    weight = np.asarray(at.weight)
    p = weight / weight.sum()
    shapes = [leaf.shape[1:] for leaf in leaves]
    return Written(g, p, weight, float((p**2).sum()), layers, parts, shapes)


class Limits(NamedTuple):
    """Where the clips cut: about half of what there is."""

    of_all: float
    of_layers: np.ndarray
    of_groups: float


def limits_of(all_: Written) -> Limits:
    """Medians of norms, and less than the shortest of the groups' sums; 1 where there is none."""
    present = all_.weight > 0
    middle = lambda v: float(np.median(v[v > 0])) if (v > 0).any() else 1.0
    norm = np.linalg.norm(all_.g[present], axis=1)
    by_layer = [middle(np.linalg.norm(all_.g[present][:, layer], axis=1)) for layer in all_.layers]
    sums = np.linalg.norm(_group_sums(all_), axis=1)
    of_groups = 0.9 * float(min(sums[sums > 0], default=1.0))
    return Limits(middle(norm), np.array(by_layer), of_groups)


def _groups(batch: int) -> np.ndarray:
    return np.arange(batch) % GROUPS


def _group_sums(all_: Written) -> np.ndarray:
    of = _groups(len(all_.p))
    return np.stack([(all_.weight * (of == u)) @ all_.g for u in range(GROUPS)])


def ours(at: Point, factors: Factors, direction: Any, limits: Limits) -> dict[str, Any]:
    """What the library says, by name."""
    of = jnp.asarray(_groups(len(at.x)))
    clip_groups = groups.group_clip(factors, of, GROUPS, limits.of_groups)
    noise = spread.noise_scale(factors)
    tests = batch_size.norm_test, batch_size.inner_product_test, batch_size.orthogonality_test
    all_ = {
        "mean_gradient": mean_gradient(factors),
        "sum_gradient": sum_gradient(factors),
        "example_gradients": example_gradients(factors),
        "input_gradient": input_gradient(at.net, at.params, factors),
        "squared_norms": norms.squared_norms(factors),
        "layer_squared_norms": norms.layer_squared_norms(factors),
        "grand, el2n": (scores.grand(factors), scores.el2n(factors)),
        "inner_products": statistics.inner_products(factors, direction),
        "gram": statistics.gram(factors),
        "second_moment": moments.second_moment(factors),
        "variance": moments.variance(factors),
        "noise_scale": (noise.trace,),
        "noise_scale: |G|²": _beside_mean(noise.squared_gradient, factors),
        "norm, inner-product, orthogonality tests": tuple(test(factors) for test in tests),
        "takeuchi": batch_size.takeuchi(factors),
        "clip": example_gradients(clipping.clip(factors, limits.of_all)),
        "clip_layers": example_gradients(
            clipping.clip_layers(factors, jnp.asarray(limits.of_layers))
        ),
        "normalize": example_gradients(clipping.normalize(factors, gamma=GAMMA)),
        "clipped_mean": clipping.clipped_mean(limits.of_all)(factors),
        "clipped_sum": clipping.clipped_sum(limits.of_all, 4.0)(factors),
        "scale": example_gradients(clipping.scale(factors, at.weight)),
        "group_gradients": groups.group_gradients(factors, of, GROUPS),
        "group_squared_norms": groups.group_squared_norms(factors, of, GROUPS),
        "group_clip": groups.group_gradients(clip_groups, of, GROUPS),
        "delta_norms": tuple(diagnostics.delta_norms(factors)),
    }
    if all(rows_of(linear) for linear in at.net.maps):
        for sharing in ("expand", "reduce"):
            all_[f"kronecker_factors, {sharing}"] = statistics.kronecker_factors(
                factors, sharing=sharing
            )
    return all_


def _beside_mean(value: Any, factors: Factors) -> Any:
    """A difference of two such numbers, beside one of their size."""
    return jnp.stack([value, jnp.sum(norms.squared_norm(mean_gradient(factors)))])


def theirs(
    at: Point, found: Reference, all_: Written, direction: Any, limits: Limits
) -> dict[str, Any]:
    """The same from the gradients written out, by name."""
    g, p, w, kappa = all_.g, all_.p, all_.weight, all_.kappa
    leaves = all_.leaves
    mean, square = p @ g, (g**2).sum(axis=1)
    norm, m = np.sqrt(square), float((p @ g) @ (p @ g))
    away = (g - mean) * (w > 0)[:, None]
    scatter = p @ (away**2).sum(axis=1)
    rest = 1 - kappa if (w > 0).sum() > 1 else np.nan
    trace = scatter / rest
    along = p @ (away @ mean) ** 2
    v = np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(direction)])
    by_layer = np.stack([(g[:, layer] ** 2).sum(axis=1) for layer in all_.layers], axis=1)
    shrunk = lambda norms, limit: np.minimum(1, limit / np.where(norms == 0, 1, norms))
    clipped = shrunk(norm, limits.of_all)[:, None] * g
    per_layer = shrunk(np.sqrt(by_layer), limits.of_layers)
    layered = np.concatenate(
        [per_layer[:, l, None] * g[:, layer] for l, layer in enumerate(all_.layers)], axis=1
    )
    sums = _group_sums(all_)
    of_sums = np.linalg.norm(sums, axis=1)
    y, deltas = np.asarray(found.a[-1]), [np.asarray(d) for d in found.delta]
    t = np.where((w > 0)[:, None], np.asarray(at.t), 0)
    lengths = np.stack([np.linalg.norm(d.reshape(len(d), -1), axis=1) for d in deltas], axis=1)
    of_mean = p @ lengths
    tests = [kappa * trace / m, kappa / rest * along / m**2] if m else [np.nan, np.nan]
    expected = {
        "mean_gradient": leaves(mean),
        "sum_gradient": leaves(w @ g),
        "example_gradients": leaves(g),
        "input_gradient": np.asarray(found.of_x),
        "squared_norms": square,
        "layer_squared_norms": by_layer,
        "grand, el2n": (norm, np.linalg.norm(y - t, axis=1)),
        "inner_products": g @ v,
        "gram": g @ g.T,
        "second_moment": leaves(p @ g**2),
        "variance": leaves(p @ away**2),
        "noise_scale": (trace,),
        "noise_scale: |G|²": np.array([m - kappa * trace, m]),
        "norm, inner-product, orthogonality tests": (*tests, tests[0] - tests[1]),
        "takeuchi": p @ square,
        "clip": leaves(clipped),
        "clip_layers": leaves(layered),
        "normalize": leaves(g / (norm + GAMMA)[:, None]),
        "clipped_mean": leaves(p @ clipped),
        "clipped_sum": leaves(w @ clipped / 4),
        "scale": leaves(w[:, None] * g),
        "group_gradients": leaves(sums),
        "group_squared_norms": of_sums**2,
        "group_clip": leaves(shrunk(of_sums, limits.of_groups)[:, None] * sums),
        "delta_norms": (of_mean, np.sqrt(p @ (lengths - of_mean) ** 2)),
    }
    for sharing in ("expand", "reduce"):
        if all(rows_of(linear) for linear in at.net.maps):
            expected[f"kronecker_factors, {sharing}"] = _kronecker(at, found, p, sharing)
    return expected


def _kronecker(at: Point, found: Reference, p: np.ndarray, sharing: str) -> list[Any]:
    """E Σ_p r̃ r̃ᵀ and E Σ_p δ δᵀ / T; or of the mean of r̃ and the sum of δ."""
    factors = []
    maps: Any = at.net.maps
    layers = zip(maps, found.a, found.delta, strict=False)
    for linear, a, delta in layers:
        r = np.stack([np.asarray(linear.rows(one)) for one in a])
        r = np.concatenate([r, np.ones((*r.shape[:2], 1))], axis=2)
        d = np.asarray(delta).reshape(*r.shape[:2], -1)
        positions = r.shape[1]
        if sharing == "reduce":
            r, d = r.mean(axis=1, keepdims=True), d.sum(axis=1, keepdims=True)
            positions = 1
        outer = lambda v: np.einsum("b,bti,btj->ij", p, v, v)
        factors += [outer(r), outer(d) / positions]
    return factors
