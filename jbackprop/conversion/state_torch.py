"""Tensors of PyTorch as arrays; and a state dict, which has no layers, as parameters."""

# pyright: reportMissingImports=false
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jbackprop.conversion.steps import as_leaf, columns_last, fail, moved
from jbackprop.core.linear import Conv, Dense
from jbackprop.core.network import Layer, Network, Params, as_layers


def tensor_leaf(place: str, tensor: Any) -> Any:
    """Numbers of a tensor, or an error that says where it stands."""
    try:
        return as_leaf(place, _as_numpy(tensor))
    except (TypeError, RuntimeError) as error:  # one without numbers, or of a dtype of PyTorch's
        fail(place, f"its numbers cannot be read: {error}")


def _as_numpy(tensor: Any) -> np.ndarray:
    """Bit by bit: NumPy has no bfloat16 of its own, so that its bits are read."""
    if isinstance(tensor, np.ndarray) or not hasattr(tensor, "detach"):
        return np.asarray(tensor)
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def from_state(net: Network, state: Any) -> Params:
    """The entries in their order, matched with the layers: weight and bias, by shape."""
    if not isinstance(state, Mapping):
        fail("state_dict", f"expected module.state_dict(), got {type(state).__name__}")
    found: dict[str, dict[str, Any]] = {}
    for name, value in state.items():
        prefix, _, last = str(name).rpartition(".")
        if last not in ("weight", "bias") or np.ndim(value) == 0:
            fail("state_dict", f"expected entries called weight and bias, got {name!r}")
        found.setdefault(prefix, {})[last] = value
    wanted = [*zip(net.maps, net.shapes, net.z_shapes, strict=False)]
    if len(found) != len(wanted):
        fail(
            "state_dict",
            f"expected weights of {len(wanted)} layers for a network with sizes {net.sizes}, "
            f"got {len(found)}: {[*found]}",
        )
    layers = []
    for l, (prefix, (linear, in_shape, z_shape)) in enumerate(
        zip(found, wanted, strict=True), start=1
    ):
        if type(linear) not in (Dense, Conv):
            fail("net", f"layer {l}: {linear} is your own, and has no counterpart in PyTorch")
        place, entry = f"state_dict: {prefix}", found[prefix]
        shape = linear.w_shape(in_shape)
        shape = (shape[0], *shape[-1:], *shape[1:-1]) if len(shape) > 2 else shape
        for name, of in (("weight", shape), ("bias", z_shape[-1:])):
            if name in entry and tuple(entry[name].shape) != of:
                fail(place, f"expected {name} of shape {of}, got {tuple(entry[name].shape)}")
        if "weight" not in entry:
            fail(place, "expected a weight with the bias, got none")
        w = tensor_leaf(place, entry["weight"])
        if isinstance(linear, Dense):
            w = columns_last(w, in_shape) if len(in_shape) > 1 else w
        else:
            w = moved(w, 1, -1)
        b = entry.get("bias")
        b = np.zeros(len(w), w.dtype) if b is None else tensor_leaf(place, b)
        layers.append(Layer(jnp.array(w), jnp.array(b)))  # in memory of their own
    return as_layers(net, layers)
