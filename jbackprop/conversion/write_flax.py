"""A network as a `Sequential` of Flax: of NNX, or of Linen with its variables."""

# pyright: reportMissingImports=false
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from jbackprop.conversion.assembly import dismantled
from jbackprop.conversion.functions import jax_of
from jbackprop.conversion.steps import Affine, Flatten, moved
from jbackprop.core.linear import Conv
from jbackprop.core.network import Network
from jbackprop.core.pooling import MaxPool
from jbackprop.core.records import Activation
from jbackprop.core.windows import Shape, windows


def flat(x: Array, rank: int) -> Array:
    """Examples of so many axes as vectors, behind any leading axes."""
    return x.reshape(*x.shape[: x.ndim - rank], -1)


def mean(x: Array, rank: int) -> Array:
    """The mean over so many dimensions of positions."""
    return jnp.mean(x, axis=range(-1 - rank, -1))


def nnx_sequential(net: Network, params: Any) -> Any:
    """The module of NNX, channels last."""
    from flax import nnx

    rngs, found = nnx.Rngs(0), []
    for part, shape in dismantled(net, params, "Flax", channels_first=False):
        if not isinstance(part, Affine):
            found.append(_function(part, shape))
            continue
        kernel, options = _numbers(part, shape)
        zeros: dict[str, Any] = {
            "kernel_init": lambda key, shape, dtype: jnp.zeros(shape, dtype),
            "param_dtype": kernel.dtype,
            "rngs": rngs,
        }
        if isinstance(part.linear, Conv):
            layer = nnx.Conv(shape[-1], part.linear.n, **options, **zeros)
        else:
            layer = nnx.Linear(kernel.shape[0], part.linear.n, **zeros)
        layer.kernel[...], layer.bias[...] = kernel, jnp.asarray(part.b)  # pyright: ignore
        found.append(layer)
    return nnx.Sequential(*found)


def linen_sequential(net: Network, params: Any) -> tuple[Any, Any]:
    """The module of Linen, channels last, and its variables."""
    from flax import linen

    found, variables = [], {}
    for part, shape in dismantled(net, params, "Flax", channels_first=False):
        if isinstance(part, Affine):
            kernel, options = _numbers(part, shape)
            variables[f"layers_{len(found)}"] = {"kernel": kernel, "bias": jnp.asarray(part.b)}
            options["param_dtype"] = kernel.dtype
            kind = linen.Conv if isinstance(part.linear, Conv) else linen.Dense
            found.append(kind(part.linear.n, **options))
        else:
            found.append(_function(part, shape))
    return linen.Sequential(found), {"params": variables}


def _numbers(part: Affine, shape: Shape) -> tuple[Array, dict[str, Any]]:
    """(kernel, with its outputs last; what a convolution is told)."""
    kernel, linear = jnp.asarray(moved(part.w, 0, -1)), part.linear
    if not isinstance(linear, Conv):
        return kernel, {}
    g = windows(linear, shape, linear.kernel, linear.stride, linear.padding, linear.dilation)
    return kernel, {
        "kernel_size": g.size,
        "strides": g.stride,
        "padding": "SAME" if linear.padding == "SAME" else tuple(zip(g.low, g.high, strict=True)),
        "kernel_dilation": g.dilation,
    }


def _function(part: Any, shape: Shape) -> Any:
    """Activations, poolings and flattening are functions there."""
    from flax import linen

    if isinstance(part, Activation):
        return jax_of(part)
    if isinstance(part, Flatten):
        return partial(flat, rank=len(shape))
    if part.size is None:
        return partial(mean, rank=len(shape) - 1)
    maximum = isinstance(part, MaxPool)
    g = windows(part, shape, part.size, part.stride, part.padding if maximum else 0)
    options: dict[str, Any] = {"window_shape": g.size, "strides": g.stride}
    if maximum:
        options["padding"] = tuple(zip(g.low, g.high, strict=True))
    return partial(linen.max_pool if maximum else linen.avg_pool, **options)
