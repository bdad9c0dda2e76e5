"""Where a network is verified: a few examples and its parameters, in float64, off every kink.

At a kink of f or a tie in a maximum a derivative is a convention, and two right ones may differ; so
every number is moved by a hundredth of its array's spread first. What is no number stays away.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbackprop.core.checks import as_input, as_target
from jbackprop.core.factors import Factors, backprop
from jbackprop.core.network import Layer, Network, Params, as_layers
from jbackprop.core.rules import Rule

EXAMPLES = 6
NUMBERS = 2**24  # of all examples' gradients together, which are written out
WEIGHTS = 1.0, 0.5, 2.0, 0.0, 3.0, 1.0


@dataclass(frozen=True)
class Point:
    """All that a pass takes, in float64; `dtype` is the caller's."""

    net: Network
    params: Params
    x: Any
    t: Any
    weight: Any
    rule: Rule
    feedback: Any
    key: Any
    dtype: Any

    def factors(self, params: Any, x: Any, t: Any) -> Factors:
        """What the library makes of it."""
        return backprop(
            self.net, params, x, t, weight=self.weight.astype(params[0].w.dtype),
            rule=self.rule, feedback=self.feedback, key=self.key,
        )  # fmt: skip


def point_of(net: Network, params: Any, x: Any, t: Any, rule: Rule) -> tuple[Point, list[str]]:
    """That point, and what to note. Raises `ValueError` where an argument does not fit, or no
    example is of numbers alone. In 64-bit mode."""
    layers = as_layers(net, params)
    dtype = layers[0].w.dtype
    x, given = as_input(net, x, dtype, lead=1), np.asarray(t)
    t = as_target(net, t, dtype, lead=x.shape[:1])
    notes = []
    for l, layer in enumerate(layers, start=1):
        for name, leaf in layer._asdict().items():
            if not np.isfinite(np.asarray(leaf, np.float64)).all():
                at = np.argwhere(~np.isfinite(np.asarray(leaf, np.float64)))[0].tolist()
                raise ValueError(
                    f"params: expected numbers, got {leaf[tuple(at)]} at {name}^{l}{at}"
                )
    rows = {name: np.asarray(v, np.float64) for name, v in (("x", x), ("t", t))}
    good = np.ones(len(x), bool)
    for name, values in rows.items():
        bad = ~np.isfinite(values)
        if bad.any():
            at = np.argwhere(bad)[0]
            what = f"{values[tuple(at)]} at {at.tolist()}"
            if name == "t" and given.ndim == 1:  # made NaN here
                what = f"label {given[at[0]]} at row {at[0]}, which is out of range"
            notes.append(f"{name}: {what}: such rows are left out")
            good &= ~bad.reshape(len(values), -1).any(axis=1)
    if not good.any():
        raise ValueError(
            f"x, t: expected an example of numbers alone, got none: {'; '.join(notes)}"
        )
    size = sum(leaf.size for leaf in jax.tree.leaves(layers))
    kept = np.flatnonzero(good)[: max(1, min(EXAMPLES, NUMBERS // size))]
    if len(kept) < len(x):
        notes.append(f"{len(kept)} of {len(x)} examples were looked at")
    rng = np.random.default_rng(0)

    def moved(values: Any) -> Any:
        values = np.asarray(values, np.float64)
        spread, size = np.std(values), np.max(np.abs(values))
        if spread <= 1e-6 * size:  # all of one value
            spread = size or 1.0
        values = values + 0.01 * spread * rng.uniform(-1, 1, values.shape)
        return jnp.asarray(values).astype(dtype).astype(np.float64)  # of the caller's numbers

    wide = tuple(Layer(moved(w), moved(b)) for w, b in layers)
    weight = jnp.asarray(np.resize(WEIGHTS, len(kept)) if len(kept) > 1 else np.ones(1))
    feedback, key = rule.init(net, wide, jax.random.key(0)), jax.random.key(1)
    at = Point(
        net, wide, moved(rows["x"][kept]), jnp.asarray(rows["t"][kept]), weight, rule, feedback,
        key, dtype,
    )  # fmt: skip
    return at, notes
