"""Rematerialisation: of a deep network's tape every k-th a^l is kept, the rest worked out again.

A pass keeps z^l and a^l of all L layers until δ^l has come down to them. Kept at every k-th layer
alone they take 1/k of that; on the way back one segment of k layers is worked out again at a time,
from the a^l below it, for less than one more forward pass in all. With k = √L both are √L layers.
Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016, arXiv:1604.06174.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from jbackprop.core.arrays import check_size, fitted
from jbackprop.core.backward import Deltas
from jbackprop.core.checks import as_target, per_hidden_layer
from jbackprop.core.network import Network, Params, Tape, between, forward
from jbackprop.core.operators import places
from jbackprop.core.rules import Rule


def as_remat(remat: Any) -> int | None:
    """Layers from one a^l that is kept to the next."""
    if remat is None:
        return None
    check_size("remat", remat)
    return int(remat)


def by_segments(
    recursion: Callable[..., Deltas],
    every: int,
    net: Network,
    layers: Params,
    tape: Tape,
    delta_L: Any,
    *,
    rule: Rule,
    feedback: Any,
    t: Any,
    key: Any,
) -> tuple[Tape, Deltas]:
    """(tape, deltas) of ONE example, from a^0, a^k, a^2k … of `tape`: the rest of it need not last.

    `recursion` is called as `propagate`. A segment has the layer above it as its top, whose δ came
    from there and whose w takes it down."""
    depth, last = len(net.maps), tape.z[-1]
    kept, keys = per_hidden_layer(net, feedback, key)
    kept = tuple(at.direct(b) for at, b in zip(places(net, tape), kept, strict=True))
    # what a rule is told of the network's end, which a segment does not know
    end = {
        "output_delta": fitted("delta_L", delta_L, last),
        "t": None if t is None else as_target(net, t, last.dtype),
    }
    whole = replace(rule, delta=lambda s: rule.delta(s._replace(**end)))

    def down(low: int, count: int, tape: Tape, above: Any) -> tuple[Any, Any, Deltas]:
        """z, a and δ of the layers low + 1 … low + count, whose tape this is."""
        top = min(low + count + 1, depth)
        own_keys = None if key is None else tuple(keys[low : top - 1])
        given = {"rule": whole, "feedback": kept[low : top - 1], "key": own_keys}
        found = recursion(between(net, low, top), layers[low:top], tape, above, **given)
        return tape.z[:count], tape.a[1 : count + 1], found[:count]

    def again(low: int, count: int, above: Any) -> tuple[Any, Any, Deltas]:
        top = low + count + 1

        def segment(a: Any, above: Any) -> tuple[Any, Any, Deltas]:
            anew = forward(between(net, low, top), layers[low:top], a)
            return down(low, count, anew, above)

        return _by_itself(segment, layers[low].b, tape.a[low], above)

    last_low = (depth - 1) // every * every
    rest = Tape(tape.z[last_low:], tape.a[last_low:])
    z, a, deltas = down(last_low, depth - last_low, rest, delta_L)
    for low in reversed(range(0, last_low, every)):
        below = again(low, every, deltas[0])
        z, a, deltas = below[0] + z, below[1] + a, below[2] + deltas
    return Tape(z, (tape.a[0], *a)), deltas


def _by_itself(segment: Callable[..., Any], b: Any, *given: Any) -> Any:
    """What it returns, worked out when δ is there, and not shared with the pass before.

    A compiler merges what is worked out twice, and starts it early. On CPUs XLA does not heed a
    barrier; what may not run at all it leaves where it is. It does not where a b is NaN, and then
    everything is."""
    if jax.default_backend() != "cpu":
        return segment(*jax.lax.optimization_barrier(given))
    shapes = jax.eval_shape(segment, *given)
    spoilt = lambda *_: jax.tree.map(lambda shape: jnp.full_like(shape, jnp.nan), shapes)
    return jax.lax.cond(jnp.isnan(b.ravel()[0]), spoilt, segment, *given)
