"""Is it right, on your network, here? Everything beside a reference that shares none of its code.

First every part by itself (f', ∇_y C, each map, each pooling), so that what is wrong has a name;
then δ, layer by layer from the top; then the gradient, by autodiff and by central differences; then
every quantity beside all gradients written out. Under another rule δ is compared with a recursion
written once more, and the rest with that.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbackprop.core.backward import backpropagation
from jbackprop.core.network import Network
from jbackprop.core.rules import Rule
from jbackprop.verification.comparisons import TOLERANCE, in_float64, in_its_own_dtype
from jbackprop.verification.parts import parts_of
from jbackprop.verification.point import Point, point_of
from jbackprop.verification.reference import Reference, reference_of
from jbackprop.verification.report import Report, Row

OF_THE_LIBRARY = "the library's own formulas: please report it"
FLAT = 1e-6


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
        for stage in (in_float64, in_its_own_dtype):
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
    blame = OF_THE_LIBRARY if at.rule == backpropagation else f"rule {at.rule.name}, or the library"
    return [row if row.passed else row._replace(blame=blame) for row in rows]


def _about(net: Network) -> str:
    """Device, versions and network."""
    from jbackprop import __version__  # known when all is imported

    told = f"jbackprop {__version__}, JAX {jax.__version__}, {jax.devices()[0].device_kind}"
    return f"{told}\n{net}\n"
