"""Modules of Equinox as steps: `MLP`, and `Sequential` of layers and functions."""

# pyright: reportMissingImports=false
from collections.abc import Iterator
from typing import Any

import jax

from jbackprop.conversion.functions import name_of
from jbackprop.conversion.reasons import why_not
from jbackprop.conversion.steps import (
    Adaptive,
    Affine,
    Function,
    Step,
    as_leaf,
    conv_of,
    fail,
    moved,
    place_of,
)
from jbackprop.core import activations as ours
from jbackprop.core.linear import Dense
from jbackprop.core.pooling import MaxPool, MeanPool


def steps(module: Any) -> Iterator[Step]:
    """Every layer, in order; a function as one, known by what it does."""
    import equinox as eqx

    if not isinstance(module, eqx.Module):
        fail("module", f"expected an equinox.Module, got {type(module).__name__}")
    for path, layer in _leaves(module, ()):
        kind = type(layer).__name__
        if isinstance(layer, eqx.Module):
            place = place_of("module", path, kind)
            # Conv2d and the like set options of a class above them, and nothing else
            known = type(layer) is getattr(eqx.nn, kind, None)
            part = _part(place, kind, layer) if known else None
            if part is None:
                fail(place, why_not(kind))
        else:
            place = place_of("module", path, name_of(layer))
            part = Function(layer, channels_first=True)
        yield Step(place, part)


def _leaves(module: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    import equinox as eqx

    if type(module) is eqx.nn.MLP:
        yield from _mlp(module, path)
    elif type(module) is eqx.nn.Lambda:
        yield from _leaves(module.fn, path)
    elif isinstance(module, eqx.nn.Sequential) and (
        type(module).__call__ is eqx.nn.Sequential.__call__
    ):
        for i, layer in enumerate(module.layers):
            yield from _leaves(layer, (*path, i))
    else:
        yield path, module


def _mlp(module: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Its maps, and its activations behind them, which act on every number by itself."""
    layers = [*module.layers]
    if module.scan and module.depth > 1:  # the hidden maps are one, with an axis for their number
        first, stacked, last = layers
        between = [jax.tree.map(lambda v, i=i: v[i], stacked) for i in range(module.depth - 1)]
        layers = [first, *between, last]
    names = ["activation"] * (len(layers) - 1) + ["final_activation"]
    for i, (layer, name) in enumerate(zip(layers, names, strict=True)):
        yield (*path, i), layer
        if module.depth > 0:  # a single map is followed by nothing
            f = getattr(module, name)
            if f is jax.nn.softmax:
                place = place_of("module", (*path, name), "softmax")
                fail(place, "an MLP applies it to every number by itself")
            yield from _leaves(f, (*path, name))


def _part(place: str, kind: str, layer: Any) -> Any:
    """What a layer of eqx.nn is; None where it has no counterpart."""
    if kind == "Identity" or (kind == "Dropout" and layer.p == 0):
        return ours.identity
    if kind == "Linear":
        if "scalar" in (layer.in_features, layer.out_features):
            fail(place, 'expected vectors, got "scalar": 1 in its place is the same map')
        return Affine(Dense(layer.out_features), *_numbers(place, layer))
    if kind in ("Conv", "Conv1d", "Conv2d", "Conv3d"):
        return _convolution(place, layer)
    if kind.startswith(("MaxPool", "AvgPool")):
        if layer.use_ceil:
            fail(place, "expected windows within the input, got use_ceil=True")
        size, stride, padding = layer.kernel_size, layer.stride, layer.padding
        if kind.startswith("Max"):
            return MaxPool(size, stride=stride, padding=padding)
        if any(map(any, padding)):
            fail(place, f"expected a mean without padding, got padding={layer.padding}")
        return MeanPool(size, stride=stride)
    if kind.startswith(("AdaptiveMaxPool", "AdaptiveAvgPool")):
        return Adaptive(MaxPool if "Max" in kind else MeanPool, tuple(layer.target_shape))
    return None


def _numbers(place: str, layer: Any) -> tuple[Any, Any]:
    """(w, b); channels of a convolution last."""
    w = moved(as_leaf(place, layer.weight), 1, -1)
    b = layer.bias if layer.use_bias else None
    return w, None if b is None else as_leaf(place, b).reshape(-1)


def _convolution(place: str, layer: Any) -> Affine:
    if layer.groups != 1:
        fail(place, f"expected groups=1, since a map sees all channels, got groups={layer.groups}")
    if layer.padding_mode != "ZEROS":
        fail(place, f"expected padding_mode='ZEROS', got {layer.padding_mode!r}")
    if layer.padding == "SAME_LOWER":
        fail(place, "expected an odd row of padding behind, 'SAME', got 'SAME_LOWER'")
    linear = conv_of(
        layer.out_channels, layer.kernel_size, stride=layer.stride, padding=layer.padding,
        dilation=layer.dilation,
    )  # fmt: skip
    return Affine(linear, *_numbers(place, layer))
