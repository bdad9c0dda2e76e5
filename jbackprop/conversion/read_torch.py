"""Modules of PyTorch as steps."""

# pyright: reportMissingImports=false
from collections.abc import Iterator
from typing import Any

from jbackprop.conversion.reasons import why_not
from jbackprop.conversion.state_torch import tensor_leaf
from jbackprop.conversion.steps import (
    Adaptive,
    Affine,
    Flatten,
    Pad,
    Step,
    conv_of,
    each,
    fail,
    moved,
    place_of,
)
from jbackprop.core import activations as ours
from jbackprop.core.linear import Dense
from jbackprop.core.pooling import MaxPool, MeanPool

_ACTIVATIONS = {
    "Identity": ours.identity,
    "Sigmoid": ours.sigmoid,
    "Tanh": ours.tanh,
    "ReLU": ours.relu,
    "SELU": ours.selu,
    "SiLU": ours.silu,
    "Mish": ours.mish,
    "Softsign": ours.softsign,
    "Hardsigmoid": ours.hard_sigmoid,
    "ReLU6": ours.relu6,
    "LogSigmoid": ours.log_sigmoid,
}


def steps(module: Any) -> Iterator[Step]:
    """Every layer of nested `Sequential`s, in order."""
    from torch import nn

    if not isinstance(module, nn.Module):
        fail("module", f"expected a torch.nn.Module, got {type(module).__name__}")
    for path, layer in _leaves(module, ()):
        kind = type(layer).__name__
        place = place_of("module", path, kind)
        known = type(layer) is getattr(nn, kind, None)
        part = _part(place, kind, layer) if known else None
        if part is None:
            fail(place, why_not(kind))
        if layer._forward_hooks or layer._forward_pre_hooks:
            fail(place, "it has hooks, which may change what it gives: remove them first")
        if "forward" in vars(layer):
            fail(place, "it has a forward of its own, which is not that of its class")
        yield Step(place, part)


def _leaves(module: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    from torch import nn

    chain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    chain &= "forward" not in vars(module)
    if not chain or module._forward_hooks or module._forward_pre_hooks:
        yield path, module
        return
    for name, layer in module._modules.items():  # named_children leaves out what comes twice
        yield from _leaves(layer, (*path, name))


def _part(place: str, kind: str, layer: Any) -> Any:
    """What a layer of torch.nn is; None where it has no counterpart."""
    if kind in _ACTIVATIONS:
        return _ACTIVATIONS[kind]
    if kind == "Linear":
        return Affine(Dense(layer.out_features), *_numbers(place, layer), layer.weight)
    if kind in ("Conv1d", "Conv2d", "Conv3d"):
        return _convolution(place, layer)
    if kind == "Flatten":
        if (layer.start_dim, layer.end_dim) != (1, -1):
            got = f"start_dim={layer.start_dim}, end_dim={layer.end_dim}"
            fail(place, f"expected all axes but the first, start_dim=1, end_dim=-1, got {got}")
        return Flatten()
    if kind.startswith("Dropout") and layer.p == 0:
        return ours.identity
    if kind.startswith(("MaxPool", "AvgPool")):
        return _pooling(place, layer, _rank(kind), maximum=kind.startswith("Max"))
    if kind.startswith(("AdaptiveMaxPool", "AdaptiveAvgPool")):
        if getattr(layer, "return_indices", False):
            fail(place, "expected the maxima alone, got return_indices=True")
        return Adaptive(
            MaxPool if "Max" in kind else MeanPool, each(layer.output_size, _rank(kind))
        )
    if kind.startswith(("ZeroPad", "ConstantPad")):
        flat = [int(p) for p in layer.padding]  # from the last dimension to the first
        if min(flat) < 0:
            fail(place, f"expected numbers of at least 0, got padding={tuple(flat)}")
        return Pad(tuple(zip(flat[-2::-2], flat[::-2], strict=True)), float(layer.value))
    return _with_parameters(place, kind, layer)


def _rank(kind: str) -> int:
    """MaxPool2d to 2."""
    return int(kind[-2])


def _with_parameters(place: str, kind: str, layer: Any) -> Any:
    """An activation with constants of its own: ours with the same, or an error."""

    def only(**wanted: Any) -> None:
        for name, value in wanted.items():
            if getattr(layer, name) != value:
                fail(place, f"expected {name}={value}, got {getattr(layer, name)}")

    if kind == "LeakyReLU":
        return ours.leaky_relu_of(layer.negative_slope)
    if kind == "ELU":
        return ours.elu_of(layer.alpha)
    if kind == "CELU":
        only(alpha=1.0)
        return ours.celu
    if kind == "Softplus":
        only(beta=1.0)
        if layer.threshold < 20:  # beyond it PyTorch takes z itself
            fail(place, f"expected a threshold of at least 20, got {layer.threshold}")
        return ours.softplus
    if kind == "GELU":
        return ours.gelu if layer.approximate == "tanh" else ours.gelu_exact
    if kind == "Hardtanh":
        limits = (layer.min_val, layer.max_val)
        if limits not in ((-1, 1), (0, 6)):
            fail(place, f"expected limits (-1, 1) or (0, 6), got {limits}")
        return ours.hard_tanh if limits == (-1, 1) else ours.relu6
    if kind == "Softmax":
        if layer.dim not in (None, 1, -1):
            fail(place, f"expected dim=-1, over all outputs, got dim={layer.dim}")
        return ours.softmax
    return None


def _numbers(place: str, layer: Any) -> tuple[Any, Any]:
    """(w, b); channels of a convolution last."""
    w = moved(tensor_leaf(place, layer.weight), 1, -1)
    return w, None if layer.bias is None else tensor_leaf(place, layer.bias)


def _convolution(place: str, layer: Any) -> Affine:
    if layer.groups != 1:
        fail(place, f"expected groups=1, since a map sees all channels, got groups={layer.groups}")
    if layer.padding_mode != "zeros":
        fail(place, f"expected padding_mode='zeros', got {layer.padding_mode!r}")
    linear = conv_of(
        layer.out_channels, layer.kernel_size, stride=layer.stride, padding=layer.padding,
        dilation=layer.dilation,
    )  # fmt: skip
    return Affine(linear, *_numbers(place, layer), layer.weight)


def _pooling(place: str, layer: Any, rank: int, *, maximum: bool) -> Any:
    if layer.ceil_mode:
        fail(place, "expected windows within the input, got ceil_mode=True")
    size, stride, padding = (
        each(value, rank) for value in (layer.kernel_size, layer.stride, layer.padding)
    )
    if maximum:
        if layer.return_indices:
            fail(place, "expected the maxima alone, got return_indices=True")
        if {*each(layer.dilation, rank)} != {1}:
            fail(place, f"expected windows without gaps, got dilation={layer.dilation}")
        return MaxPool(size, stride=stride, padding=padding)
    if any(padding):
        fail(place, f"expected a mean without padding, got padding={layer.padding}")
    if getattr(layer, "divisor_override", None) is not None:
        fail(place, f"expected a mean, got divisor_override={layer.divisor_override}")
    return MeanPool(size, stride=stride)
