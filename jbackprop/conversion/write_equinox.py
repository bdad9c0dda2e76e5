"""A network as an `equinox.nn.Sequential`."""

# pyright: reportMissingImports=false
from typing import Any

import jax
import jax.numpy as jnp

from jbackprop.conversion.assembly import dismantled
from jbackprop.conversion.functions import jax_of
from jbackprop.conversion.steps import Affine, Flatten, moved
from jbackprop.core.linear import Conv
from jbackprop.core.network import Network
from jbackprop.core.pooling import MaxPool
from jbackprop.core.records import Activation
from jbackprop.core.windows import Shape, windows


def sequential(net: Network, params: Any) -> Any:
    """The module of one example, channels first."""
    import equinox as eqx

    found = []
    for part, shape in dismantled(net, params, "Equinox", channels_first=True):
        found += _modules(part, shape)
    return eqx.nn.Sequential(found)


def _modules(part: Any, shape: Shape) -> list[Any]:
    import equinox as eqx

    rank = len(shape) - 1
    if isinstance(part, Flatten):
        return [eqx.nn.Lambda(jnp.ravel)]
    if isinstance(part, Activation):
        return [eqx.nn.Lambda(jax_of(part))]
    if isinstance(part, Affine):
        return [_affine(part, shape)]
    if part.size is None:
        return [getattr(eqx.nn, f"AdaptiveAvgPool{rank}d")(1), eqx.nn.Lambda(jnp.ravel)]
    maximum = isinstance(part, MaxPool)
    g = windows(part, shape, part.size, part.stride, part.padding if maximum else 0)
    sides = tuple(zip(g.low, g.high, strict=True))
    kind = getattr(eqx.nn, f"{'Max' if maximum else 'Avg'}Pool{rank}d")
    return [kind(g.size, g.stride, sides)]


def _affine(part: Affine, shape: Shape) -> Any:
    """The layer, made without numbers, and then these."""
    import equinox as eqx

    linear, w, b, key = part.linear, part.w, part.b, jax.random.key(0)
    if isinstance(linear, Conv):
        rank = len(shape) - 1
        g = windows(linear, shape, linear.kernel, linear.stride, linear.padding, linear.dilation)
        pads = "SAME" if linear.padding == "SAME" else tuple(zip(g.low, g.high, strict=True))
        layer = eqx.filter_eval_shape(
            getattr(eqx.nn, f"Conv{rank}d"), shape[-1], linear.n, g.size, g.stride, pads,
            g.dilation, key=key,
        )  # fmt: skip
        w, b = moved(w, -1, 1), b.reshape(-1, *(1,) * rank)
    else:
        layer = eqx.filter_eval_shape(eqx.nn.Linear, w.shape[1], linear.n, key=key)
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, (jnp.asarray(w), jnp.asarray(b)))
