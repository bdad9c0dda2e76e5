"""A network as a `torch.nn.Sequential`."""

# pyright: reportMissingImports=false
from typing import Any

import jax.numpy as jnp
import numpy as np

from jbackprop.conversion.assembly import dismantled
from jbackprop.conversion.steps import Affine, Flatten, fail, moved
from jbackprop.core import activations as ours
from jbackprop.core.linear import Conv
from jbackprop.core.network import Network
from jbackprop.core.pooling import MaxPool
from jbackprop.core.records import Activation
from jbackprop.core.windows import Shape, Windows, windows

_ACTIVATIONS = {
    ours.sigmoid: ("Sigmoid", {}),
    ours.tanh: ("Tanh", {}),
    ours.relu: ("ReLU", {}),
    ours.selu: ("SELU", {}),
    ours.celu: ("CELU", {}),
    ours.softplus: ("Softplus", {}),
    ours.silu: ("SiLU", {}),
    ours.gelu: ("GELU", {"approximate": "tanh"}),
    ours.gelu_exact: ("GELU", {}),
    ours.mish: ("Mish", {}),
    ours.softsign: ("Softsign", {}),
    ours.hard_tanh: ("Hardtanh", {}),
    ours.hard_sigmoid: ("Hardsigmoid", {}),
    ours.relu6: ("ReLU6", {}),
    ours.log_sigmoid: ("LogSigmoid", {}),
    ours.softmax: ("Softmax", {"dim": -1}),
}


def sequential(net: Network, params: Any) -> Any:
    """The module, channels first."""
    from torch import nn

    found = []
    for part, shape in dismantled(net, params, "PyTorch", channels_first=True):
        found += _modules(part, shape)
    return nn.Sequential(*found)


def _modules(part: Any, shape: Shape) -> list[Any]:
    from torch import nn

    rank = len(shape) - 1
    if isinstance(part, Flatten):
        return [nn.Flatten()]
    if isinstance(part, Activation):
        return [_activation(part)]
    if isinstance(part, Affine):
        return _affine(part, shape)
    if part.size is None:
        return [getattr(nn, f"AdaptiveAvgPool{rank}d")(1), nn.Flatten()]
    if isinstance(part, MaxPool):
        pad, g, padding = _sides(part, shape, part.size)
        return [*pad, getattr(nn, f"MaxPool{rank}d")(g.size, g.stride, padding)]
    g = windows(part, shape, part.size, part.stride, 0)
    return [getattr(nn, f"AvgPool{rank}d")(g.size, g.stride)]


def _activation(f: Activation) -> Any:
    from torch import nn

    if f in _ACTIVATIONS:
        name, options = _ACTIVATIONS[f]
        return getattr(nn, name)(**options)
    if ours.function_of(f) is ours.function_of(ours.leaky_relu):
        return nn.LeakyReLU(f.f.constants[0])
    if ours.function_of(f) is ours.function_of(ours.elu):
        return nn.ELU(f.f.constants[0])
    fail("net", f"the activation {f.name} has no counterpart in PyTorch")


def _affine(part: Affine, shape: Shape) -> list[Any]:
    """The layer, made without numbers, so that none of PyTorch's random ones are drawn."""
    from torch import nn

    linear, w, pad = part.linear, part.w, []
    if isinstance(linear, Conv):
        rank = len(shape) - 1
        pad, g, padding = _sides(linear, shape, linear.kernel, linear.dilation)
        if linear.padding == "SAME" and {*g.stride} == {1}:
            pad, padding = [], "same"
        layer: Any = getattr(nn, f"Conv{rank}d")(
            shape[-1], linear.n, g.size, g.stride, padding, g.dilation, device="meta"
        )
        w = moved(w, -1, 1)
    else:
        layer = nn.Linear(w.shape[1], linear.n, device="meta")
    layer.weight, layer.bias = nn.Parameter(as_tensor(w)), nn.Parameter(as_tensor(part.b))
    return [*pad, layer]


def _sides(record: Any, shape: Shape, size: Any, dilation: Any = 1) -> tuple[Any, Windows, Any]:
    """(a module that pads where the layer itself cannot, the windows, the layer's padding)."""
    from torch import nn

    maximum = isinstance(record, MaxPool)
    g = windows(record, shape, size, record.stride, record.padding, dilation)
    # a maximum's padding is half a window at most
    fits = not maximum or all(lo <= k // 2 for lo, k in zip(g.low, g.size, strict=True))
    if g.low == g.high and fits:
        return [], g, g.low
    flat = [p for pair in reversed([*zip(g.low, g.high, strict=True)]) for p in pair]
    value = -np.inf if maximum else 0.0
    return [getattr(nn, f"ConstantPad{len(g.low)}d")(flat, value)], g, 0


def as_tensor(array: Any) -> Any:
    """Numbers bit by bit, in memory of their own."""
    import torch

    numbers = np.array(array)
    if numbers.dtype == jnp.bfloat16:
        return torch.from_numpy(numbers.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(numbers)
