"""The library's pass, its gradient and its quantities, each a row beside its reference."""

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbackprop.core.backward import backpropagation
from jbackprop.core.factors import Factors, mean_gradient
from jbackprop.core.network import Layer, Params
from jbackprop.quantities.norms import squared_norms
from jbackprop.verification.parts import Draw
from jbackprop.verification.point import Point
from jbackprop.verification.reference import Reference, output_of
from jbackprop.verification.report import Row, compared
from jbackprop.verification.told import told_of
from jbackprop.verification.written import limits_of, ours, theirs, written_out

TOLERANCE = 1e-8  # of float64, after sums over a network's depth and width
RATIOS = ("norm, inner-product, orthogonality tests",)
DIFFERENCES = ("variance", "noise_scale", "noise_scale: |G|²")


def in_float64(at: Point, found: Reference, notes: list[str]) -> Iterator[Row]:
    """Tape, cost, δ from the top, the gradient; and where those are right, every quantity."""

    @jax.jit
    def both(params: Any, feedback: Any, x: Any, t: Any) -> Any:
        factors = replace(at, feedback=feedback).factors(params, x, t)
        return factors, mean_gradient(factors)

    factors, gradient = both(at.params, at.feedback, at.x, at.t)
    rows = [*_pass(at, found, factors, gradient)]
    yield from rows
    if all(row.passed for row in rows):
        yield from _quantities(at, found, factors, notes)


def _pass(at: Point, found: Reference, factors: Factors, gradient: Params) -> Iterator[Row]:
    """Tape, cost, δ from the top, and the gradient."""
    present = np.asarray(at.weight) > 0
    blank = lambda tree: jax.tree.map(
        lambda v: np.where(present.reshape(-1, *[1] * (v.ndim - 1)), v, 0), tree
    )
    tape = blank((found.z, found.a))
    yield compared("z and a, by the forward functions", tuple(factors.tape), tape, TOLERANCE)
    yield compared("cost", factors.cost, found.cost, TOLERANCE)
    each = [
        compared(f"δ^{l}", factors.delta[l - 1], found.delta[l - 1], TOLERANCE)
        for l in range(len(at.net.maps), 0, -1)
    ]
    first = next((row for row in each if not row.passed), max(each, key=lambda row: row.error))
    where = f"{first.what}: {first.where}"
    yield first._replace(what="δ, layer by layer from the top", where=where)
    if at.rule == backpropagation:
        yield _by_autodiff(at, gradient)
        yield _by_differences(at, gradient)


def _quantities(at: Point, found: Reference, factors: Factors, notes: list[str]) -> Iterator[Row]:
    """Every quantity, beside all gradients written out."""
    all_ = written_out(at, found)
    limits, draw = limits_of(all_), Draw()
    direction = tuple(Layer(draw(w.shape), draw(b.shape)) for w, b in at.params)

    @jax.jit
    def told(params: Any, factors: Any, direction: Any) -> Any:
        return ours(replace(at, params=params), factors, direction, limits)

    expected = theirs(at, found, all_, direction, limits)
    size = float(np.max(np.sum(all_.g**2, axis=1), initial=0))
    if size == 0:
        notes.append("every gradient is 0: ratios of them were not compared")
    for name, value in told(at.params, factors, direction).items():
        if size == 0 and name in RATIOS:
            continue
        of_params = isinstance(value, tuple) and all(isinstance(v, Layer) for v in value)
        # what is left of a difference of equal numbers is rounding, of theirs or of ours
        least = 1e-6 * (size if name in DIFFERENCES else name in RATIOS)
        yield compared(name, value, expected[name], TOLERANCE, by_layer=of_params, least=least)
    for name, (value, same) in told_of(at, found, factors, all_.g).items():
        yield compared(name, value, same, TOLERANCE, least=1e-6 * size)


def _mean_cost(at: Point, params: Any, x: Any, t: Any) -> Any:
    """By the forward functions alone."""
    kept = np.flatnonzero(np.asarray(at.weight) > 0)  # another's cost may have no derivative
    y = jax.vmap(functools.partial(output_of, at.net, params))(x[kept])
    costs = jax.vmap(at.net.cost.value)(y, t[kept])
    p = at.weight[kept] / jnp.sum(at.weight)
    return jnp.sum(costs * p.astype(costs.dtype))


def _by_autodiff(at: Point, gradient: Params) -> Row:
    slope = jax.jit(jax.grad(functools.partial(_mean_cost, at)))(at.params, at.x, at.t)
    return compared("gradient, by jax.grad", gradient, slope, TOLERANCE, by_layer=True)


def _by_differences(at: Point, gradient: Params) -> Row:
    """⟨∂C/∂w, v⟩ = dC(w + s v)/ds, for every w and b by itself and a v not across its gradient."""
    what, h, draw = "gradient, by central differences", 1e-6, Draw()
    cost = jax.jit(functools.partial(_mean_cost, at))
    leaves, structure = jax.tree.flatten(at.params)
    size = float(jnp.abs(cost(at.params, at.x, at.t)))
    lost = 8 * float(jnp.finfo(jnp.float64).eps) * max(size, 1e-300) / h  # of C, at every step
    found, expected = [], []
    for k, (leaf, g) in enumerate(zip(leaves, jax.tree.leaves(gradient), strict=True)):
        v = draw(leaf.shape)
        v = v / jnp.linalg.norm(v) + g / jnp.maximum(jnp.linalg.norm(g), 1e-300)
        moved = lambda s, k=k, v=v: structure.unflatten(
            [u + s * v if i == k else u for i, u in enumerate(leaves)]
        )
        found.append(jnp.sum(g * v))
        expected.append((cost(moved(h), at.x, at.t) - cost(moved(-h), at.x, at.t)) / (2 * h))
    pairs = lambda flat: tuple(Layer(*flat[k : k + 2]) for k in range(0, len(flat), 2))
    tolerance, given = 1e-5, (pairs(found), pairs(expected))
    return compared(what, *given, tolerance, by_layer=True, least=lost / tolerance)


def in_its_own_dtype(at: Point, found: Reference, notes: list[str]) -> list[Row]:
    """The gradient and the norms as the caller has them, allowed four times autodiff's error."""
    dtype = at.dtype
    if dtype == jnp.float64 or at.rule != backpropagation:
        return []
    params, x, t = jax.tree.map(lambda v: v.astype(dtype), (at.params, at.x, at.t))
    all_ = written_out(at, found)
    mean, square = all_.leaves(all_.p @ all_.g), (all_.g**2).sum(axis=1)

    @jax.jit
    def both(params: Any, x: Any, t: Any) -> Any:
        factors = at.factors(params, x, t)
        slope = jax.grad(functools.partial(_mean_cost, at))(params, x, t)
        return mean_gradient(factors), squared_norms(factors), slope

    ours_, norms, theirs_ = both(params, x, t)
    # a few roundings of a result, and of float32 those of sums, that low precisions take in it
    eps = float(jnp.finfo(dtype).eps)
    what, base = f"in {jnp.dtype(dtype).name}", max(4 * eps, 64 * float(jnp.finfo(jnp.float32).eps))
    off = compared("", theirs_, mean, 0.0).error
    if not off < 0.1:
        notes.append(f"{what} autodiff's gradient is off by {off:.1e}: it was not compared there")
        return []
    allowed = max(base, 4 * off)
    return [
        compared(f"mean_gradient, {what}", ours_, mean, allowed, by_layer=True),
        compared(f"squared_norms, {what}", norms, square, 2 * allowed),
    ]
