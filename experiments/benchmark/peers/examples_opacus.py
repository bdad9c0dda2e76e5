"""Opacus: clipped gradients, by ghost clipping and by every example's gradient."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false
import warnings
from typing import Any

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
    GradSampleModuleFastGradientClipping,
)

from experiments.benchmark.examples import Peer
from experiments.benchmark.peers.by_torch import pairs, sequential
from experiments.benchmark.work import Problem, Work


def candidates(work: Work, numbers: Problem, max_norm: float, *, small: bool) -> list[Peer]:
    """Ghost clipping: norms by a first backward pass, the weighted sum by a second one."""
    warnings.filterwarnings("ignore", module="torch|opacus|experiments")
    x, t = torch.tensor(numbers.x[0]), torch.tensor(numbers.labels[0]).long()
    costs = torch.nn.CrossEntropyLoss(reduction="none")
    ghost = GradSampleModuleFastGradientClipping(
        sequential(work, numbers, torch.nn.Tanh), max_grad_norm=max_norm, use_ghost_clipping=True,
        loss_reduction="sum",
    )  # fmt: skip

    def by_ghosts() -> Any:
        ghost.zero_grad(set_to_none=True)
        each = costs(ghost(x), t)
        ghost.enable_hooks()
        each.sum().backward(retain_graph=True)
        c = ghost.get_clipping_coef()
        ghost.zero_grad(set_to_none=True)
        ghost.disable_hooks()
        (c * each).mean().backward()
        ghost.enable_hooks()
        return pairs([p.grad for p in ghost.parameters()])

    made = [Peer("Opacus, ghost clipping", "clipped mean", by_ghosts, by_ghosts)]
    if small:
        every = GradSampleModule(sequential(work, numbers, torch.nn.Tanh), loss_reduction="sum")

        def by_examples() -> Any:
            every.zero_grad(set_to_none=True)
            costs(every(x), t).sum().backward()
            grads: Any = [p.grad_sample for p in every.parameters()]
            square: Any = sum(g.reshape(len(g), -1).square().sum(1) for g in grads)
            c = (max_norm / square.sqrt()).clamp(max=1)
            return pairs([torch.einsum("b,b...->...", c, g) / len(c) for g in grads])

        made.append(Peer("Opacus, every example", "clipped mean", by_examples, by_examples))
    return made
