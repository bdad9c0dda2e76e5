"""PyTorch: eager, and the whole step's forward and backward under `torch.compile`."""

# pyright: reportMissingImports=false
from typing import Any

import numpy as np
import optax
import torch

import jbackprop as jb
from experiments.benchmark.peers import Candidate, Params
from experiments.benchmark.work import LEARNING_RATE, Problem, Work


def candidates(
    work: Work, problem: Problem, hidden: jb.Activation, optimizer: optax.GradientTransformation
) -> list[Candidate]:
    """Plain gradient descent, with PyTorch's own SGD."""
    # what was compiled for other sizes counts towards a limit, beyond which nothing is compiled
    torch._dynamo.reset()
    return [_candidate(work, problem, hidden, compiled) for compiled in (False, True)]


def sequential(work: Work, problem: Problem, act: Any, tensor: Any = torch.tensor) -> Any:
    """The network of the work, its last layer's outputs logits."""
    layers: list[torch.nn.Module] = []
    for (w, b), n_in, n_out in zip(problem.params, work.sizes, work.sizes[1:], strict=False):
        linear = torch.nn.Linear(n_in, n_out)
        linear.weight.data, linear.bias.data = tensor(w), tensor(b)
        layers += [linear, act()]
    return torch.nn.Sequential(*layers[:-1])


def pairs(leaves: Any) -> Params:
    """[(w, b), …] in NumPy from a list w, b, w, b, …"""
    arrays = [leaf.detach().float().cpu().numpy() for leaf in leaves if leaf is not None]
    return list(zip(arrays[::2], arrays[1::2], strict=True))


def _candidate(work: Work, problem: Problem, hidden: jb.Activation, compiled: bool) -> Candidate:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, problem.x.dtype.name)
    # by way of float32, since PyTorch does not read NumPy's bfloat16
    tensor = lambda array: torch.tensor(np.asarray(array, np.float32), dtype=dtype, device=device)
    act = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}[hidden.name]
    model = sequential(work, problem, act, tensor).to(device)
    sgd = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    x = tensor(problem.x)
    labels = torch.tensor(problem.labels, device=device).long()
    batches = [(x[i], labels[i]) for i in range(len(x))]

    def cost(x: Any, labels: Any) -> Any:
        return torch.nn.functional.cross_entropy(model(x), labels)

    forward = torch.compile(cost) if compiled else cost

    def gradient() -> Params:
        set_precision("highest")
        sgd.zero_grad()
        forward(*batches[0]).backward()
        return pairs([p.grad for p in model.parameters()])

    def run() -> Any:
        set_precision("high")  # what JAX's default is
        for batch in batches:
            sgd.zero_grad()
            forward(*batch).backward()
            sgd.step()
        if device == "cuda":
            torch.cuda.synchronize()

    def set_precision(name: str) -> None:
        if device == "cuda":  # elsewhere it changes nothing, but compiles anew
            torch.set_float32_matmul_precision(name)

    name = "PyTorch, torch.compile" if compiled else "PyTorch, eager"
    return Candidate(name, gradient, run, "PyTorch")


def many(work: Work, nets: int, problem: Problem) -> Any:
    """All networks stacked, by batched matrix products and autograd; no shuffle."""
    layers = [
        (torch.tensor(w).T.repeat(nets, 1, 1), torch.tensor(b).repeat(nets, 1, 1))
        for w, b in problem.params
    ]
    leaves = [leaf.requires_grad_() for layer in layers for leaf in layer]
    rates = torch.logspace(-3, -1, nets)[:, None, None]
    batches = [
        (torch.tensor(x), torch.tensor(t).long())
        for x, t in zip(problem.x, problem.labels, strict=True)
    ]

    def run() -> None:
        for x, t in batches:
            a = x.expand(nets, -1, -1)
            for w, b in layers[:-1]:
                a = torch.tanh(torch.baddbmm(b, a, w))
            w, b = layers[-1]
            logits = torch.baddbmm(b, a, w).flatten(0, 1)
            cost = torch.nn.functional.cross_entropy(logits, t.repeat(nets), reduction="sum")
            grads = torch.autograd.grad(cost / work.batch, leaves)
            with torch.no_grad():
                for leaf, grad in zip(leaves, grads, strict=True):
                    leaf -= rates * grad

    return run
