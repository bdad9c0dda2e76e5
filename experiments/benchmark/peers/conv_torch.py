"""Convolutional networks in PyTorch, eager: channels first, or last in memory."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from experiments.benchmark.peers import Candidate
from experiments.benchmark.peers.spatial import RATE, Case, each, sides
from jbackprop import Conv

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}
POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d}
PADS = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d}


def _padded(record: Any, in_shape: Any, value: float) -> tuple[list[nn.Module], tuple[int, ...]]:
    """The padding that a layer can do itself; else a module before it."""
    pads = sides(record, in_shape)
    if all(lo == hi for lo, hi in pads):
        return [], tuple(lo for lo, _ in pads)
    flat = tuple(p for pair in reversed(pads) for p in pair)
    return [PADS[len(pads)](flat, value)], (0,) * len(pads)


def sequential(case: Case) -> nn.Sequential:
    """The network, its last layer's outputs logits."""
    net, found = case.net, []
    layers = zip(case.params, net.maps, net.pools, net.shapes, net.z_shapes, strict=False)
    for (w, b), linear, pool, in_shape, z_shape in layers:
        rank = len(in_shape) - 1
        if isinstance(linear, Conv):
            pad, own = _padded(linear, in_shape, 0.0)
            stride = each(linear.stride, rank)
            layer: Any = CONVOLUTIONS[rank](
                w.shape[-1], len(w), w.shape[1:-1], stride=stride, padding=own
            )
            found += pad
            weight = np.moveaxis(w, -1, 1)
        else:
            layer = nn.Linear(w.shape[1], len(w))
            if rank:
                found.append(nn.Flatten())
            weight = np.moveaxis(w.reshape(len(w), *in_shape), -1, 1).reshape(len(w), -1)
        layer.weight.data = torch.tensor(np.ascontiguousarray(weight))
        layer.bias.data = torch.tensor(b)
        found += [layer, ACTIVATIONS[net.activations[0].name]()]
        if pool is not None:
            pad, own = _padded(pool, z_shape, -np.inf)
            size, stride = each(pool.size, rank), each(pool.stride, rank)
            found += [*pad, POOLS[rank](size, stride=stride, padding=own)]
    return nn.Sequential(*found[:-1])


def as_ours(case: Case, leaves: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """[(w, b), …] in our order of axes, from w, b, w, b, …"""
    arrays = [leaf.detach().numpy() for leaf in leaves]
    found = []
    for w, b, linear, in_shape in zip(
        arrays[::2], arrays[1::2], case.net.maps, case.net.shapes, strict=False
    ):
        if not isinstance(linear, Conv) and len(in_shape) > 1:
            w = w.reshape(len(w), in_shape[-1], *in_shape[:-1])
        w = np.moveaxis(w, 1, -1)
        flat = not isinstance(linear, Conv)
        found.append((w.reshape(len(w), -1) if flat else w, b))
    return found


def batches(case: Case) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Channels first."""
    first = np.ascontiguousarray(np.moveaxis(case.x, -1, 2)) if case.x.ndim > 3 else case.x
    labels = torch.tensor(case.labels).long()
    return [*zip(torch.tensor(first), labels, strict=True)]


def candidates(case: Case) -> list[Candidate]:
    """Plain descent, with PyTorch's own SGD."""
    formats: dict[str, Callable[[Any], Any]] = {"": lambda v: v}
    if case.x.ndim == 5:
        formats[", channels last"] = lambda v: v.to(memory_format=torch.channels_last)
    return [_candidate(case, name, to) for name, to in formats.items()]


def _candidate(case: Case, name: str, to: Callable[[Any], Any]) -> Candidate:
    model: Any = to(sequential(case))
    listed = [(to(x), t) for x, t in batches(case)]
    sgd = torch.optim.SGD(model.parameters(), lr=RATE)
    cost = nn.CrossEntropyLoss()

    def gradient() -> Any:
        sgd.zero_grad()
        cost(model(listed[0][0]), listed[0][1]).backward()
        return as_ours(case, [p.grad for p in model.parameters()])

    def run() -> None:
        for x, t in listed:
            sgd.zero_grad()
            cost(model(x), t).backward()
            sgd.step()

    return Candidate(f"PyTorch, eager{name}", gradient, run, "PyTorch")
