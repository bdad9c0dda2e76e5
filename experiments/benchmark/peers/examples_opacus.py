"""Opacus: clipped gradients, by ghost clipping and by every example's gradient."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false
import warnings
from collections.abc import Callable
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
    GradSampleModuleFastGradientClipping,
)

from experiments.benchmark.examples import Peer
from experiments.benchmark.peers.by_torch import pairs, sequential
from experiments.benchmark.work import Problem, Work

COSTS = torch.nn.CrossEntropyLoss(reduction="none")


def by_ghosts(model: Any, x: Any, t: Any, max_norm: float, read: Any) -> Callable[[], Any]:
    """Ghost clipping: norms by a first backward pass, the weighted sum by a second one."""
    warnings.filterwarnings("ignore", module="torch|opacus|experiments")
    ghost = GradSampleModuleFastGradientClipping(
        model, max_grad_norm=max_norm, use_ghost_clipping=True, loss_reduction="sum"
    )

    def run() -> Any:
        ghost.zero_grad(set_to_none=True)
        each = COSTS(ghost(x), t)
        ghost.enable_hooks()
        each.sum().backward(retain_graph=True)
        c = ghost.get_clipping_coef()
        ghost.zero_grad(set_to_none=True)
        ghost.disable_hooks()
        (c * each).mean().backward()
        ghost.enable_hooks()
        return read([p.grad for p in ghost.parameters()])

    return run


def by_examples(
    model: Any, x: Any, t: Any, max_norm: float, read: Any, *, functorch: bool = False
) -> Callable[[], Any]:
    """Every example's gradient, by hooks or by functorch."""
    warnings.filterwarnings("ignore", module="torch|opacus|experiments")
    every = GradSampleModule(model, loss_reduction="sum", force_functorch=functorch)

    def run() -> Any:
        every.zero_grad(set_to_none=True)
        COSTS(every(x), t).sum().backward()
        grads: Any = [p.grad_sample for p in every.parameters()]
        square: Any = sum(g.reshape(len(g), -1).square().sum(1) for g in grads)
        c = (max_norm / square.sqrt()).clamp(max=1)
        return read([torch.einsum("b,b...->...", c, g) / len(c) for g in grads])

    return run


def candidates(work: Work, numbers: Problem, max_norm: float, *, small: bool) -> list[Peer]:
    """Of a dense network; every example's gradient where it is small."""
    model = lambda: sequential(work, numbers, torch.nn.Tanh)
    given = torch.tensor(numbers.x[0]), torch.tensor(numbers.labels[0]).long(), max_norm, pairs
    ways = {"Opacus, ghost clipping": by_ghosts}
    if small:
        ways["Opacus, every example"] = by_examples
    runs = {name: way(model(), *given) for name, way in ways.items()}
    return [Peer(name, "clipped mean", run, run) for name, run in runs.items()]
