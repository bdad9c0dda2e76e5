"""Is it right, on your network, here? Everything beside a reference that shares none of its code.

First every part by itself (f', ∇_y C, each map, each pooling), so that what is wrong has a name;
then δ, layer by layer from the top; then the gradient, by autodiff and by central differences; then
every quantity beside all gradients written out. Under another rule δ is compared with a recursion
written once more, and the rest with that.
"""

import functools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbackprop.core.backward import backpropagation
from jbackprop.core.factors import Factors, mean_gradient
from jbackprop.core.network import Layer, Network, Params
from jbackprop.core.rules import Rule
from jbackprop.quantities.norms import squared_norms
from jbackprop.verification.parts import Draw, parts_of
from jbackprop.verification.point import Point, point_of
from jbackprop.verification.reference import Reference, output_of, reference_of
from jbackprop.verification.report import Report, Row, compared
from jbackprop.verification.written import limits_of, ours, theirs, written_out

TOLERANCE = 1e-8  # of float64, after sums over a network's depth and width
OF_THE_LIBRARY = "the library's own formulas: please report it"
FLAT = 1e-6
RATIOS = ("norm, inner-product, orthogonality tests",)
DIFFERENCES = ("variance", "noise_scale", "noise_scale: |G|²")


def verify(net: Network, params: Any, x: Any, t: Any, *, rule: Rule | None = None) -> Report:
    """Compares the gradient and every quantity of your network with references, on your device.

    In float64 by independent code, at a point next to yours: every number is moved by a hundredth,
    off kinks and ties, where a derivative is a convention. Then the gradient and the norms once
    more in your dtype, allowed what autodiff's own rounding comes to there.

    Args:
        net, params, x, t: as in `backprop`. A few of the examples are looked at.
        rule: how δ is carried back; by default backpropagation.

    Returns:
        A `Report`: `passed`, the rows, and a table when printed. A row that fails tells the layer
        and entry, and whose fault it is as far as that can be told: f', ∇_y C, a map's or a
        pooling's function, the rule, or the library.

    Raises:
        ValueError: an argument does not fit the network; params hold NaN or infinity; no example
            is of numbers alone.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((4, 8, 3), jb.tanh, jb.softmax, jb.cross_entropy)
    >>> x = jax.random.normal(jax.random.key(1), (5, 4))
    >>> report = jb.verify(net, jb.init(net, jax.random.key(0)), x, jnp.array([0, 1, 2, 0, 1]))
    >>> report.passed
    True
    """
    rule = backpropagation if rule is None else rule
    with jax.enable_x64(True), jax.default_matmul_precision("highest"):
        at, notes = point_of(net, params, x, t, rule)
        try:
            reference = reference_of(at)
        except Exception as error:  # whatever a user's function raises
            where = f"{type(error).__name__}: {error}"
            row = Row("the pass", np.inf, TOLERANCE, where, "a function that the network was given")
            return Report((row,), tuple(notes), _about(net))
        at, reference, lost = _of_numbers(at, reference)
        notes += [*lost, *_saturated(at, reference)]
        if not (at.weight > 0).any():
            where = "no example has a cost and δ that autodiff finds to be numbers in float64"
            blame = "the output saturates, or autodiff cannot derive f or C; nothing was compared"
            row = Row("the pass", np.inf, TOLERANCE, where, blame)
            return Report((row,), tuple(notes), _about(net))
        rows = parts_of(at, reference)
        for stage in (_pass, _quantities, _in_its_own_dtype):
            if not all(row.passed for row in rows):
                break
            rows += _attempted(stage, at, reference, notes)
        if not all(row.passed for row in rows):
            notes.append("what rests on that was not compared")
    return Report(tuple(rows), tuple(notes), _about(net))


def _of_numbers(at: Point, found: Reference) -> tuple[Point, Reference, list[str]]:
    """Without the examples whose cost or δ is infinite: there is nothing to compare."""
    parts = [np.asarray(v).reshape(len(at.x), -1) for v in (found.cost, *found.delta)]
    good = np.all([np.isfinite(v).all(axis=1) for v in parts], axis=0)
    if good.all():
        return at, found, []
    share = f"{int((~good & (np.asarray(at.weight) > 0)).sum())} of {len(good)} examples"
    note = f"C or δ of {share} is no number, by autodiff in float64: they are left out"
    at = replace(at, weight=jnp.where(good, at.weight, 0.0))
    found = jax.tree.map(lambda v: np.where(good.reshape(-1, *[1] * (v.ndim - 1)), v, 0), found)
    return at, found, [note]


def _saturated(at: Point, found: Reference) -> list[str]:
    """Layers that pass next to nothing on."""
    notes, present = [], np.asarray(at.weight) > 0
    if not present.any():
        return []
    for l, (f, z) in enumerate(zip(at.net.activations[:-1], found.z, strict=False), start=1):
        try:
            flat = float(np.mean(np.abs(np.asarray(f.slope(jnp.asarray(z))))[present] < FLAT))
        except Exception:  # a row of its own says so
            continue
        if flat > 0.5:
            notes.append(f"layer {l}: f' of {f.name} is 0, or nearly, at {flat:.0%} of its z")
    return notes


def _attempted(stage: Any, at: Point, found: Reference, notes: list[str]) -> list[Row]:
    """Rows of a stage; what it raises is one too. Every part is right by itself by now, and so what
    is wrong is ours."""
    try:
        rows = [*stage(at, found, notes)]
    except Exception as error:
        rows = [Row("the pass", np.inf, TOLERANCE, f"{type(error).__name__}: {error}")]
    blame = OF_THE_LIBRARY if at.rule is backpropagation else f"rule {at.rule.name}, or the library"
    return [row if row.passed else row._replace(blame=blame) for row in rows]


def _pass(at: Point, found: Reference, notes: list[str]) -> Iterator[Row]:
    """Tape, cost, δ from the top, and the gradient."""
    factors, gradient = _factors(at)
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
    if at.rule is backpropagation:
        yield _by_autodiff(at, gradient)
        yield _by_differences(at, gradient)


def _factors(at: Point) -> tuple[Factors, Params]:
    """The library's pass, and its gradient."""

    @jax.jit
    def both(params: Any, feedback: Any, x: Any, t: Any) -> Any:
        factors = replace(at, feedback=feedback).factors(params, x, t)
        return factors, mean_gradient(factors)

    return both(at.params, at.feedback, at.x, at.t)


def _quantities(at: Point, found: Reference, notes: list[str]) -> Iterator[Row]:
    """Every quantity, beside all gradients written out."""
    factors, _ = _factors(at)
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


def _in_its_own_dtype(at: Point, found: Reference, notes: list[str]) -> list[Row]:
    """The gradient and the norms as the caller has them, allowed four times autodiff's error."""
    dtype = at.dtype
    if dtype == jnp.float64 or at.rule is not backpropagation:
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


def _about(net: Network) -> str:
    """Device, versions and network."""
    from jbackprop import __version__  # known when all is imported

    told = f"jbackprop {__version__}, JAX {jax.__version__}, {jax.devices()[0].device_kind}"
    return f"{told}\n{net}\n"
