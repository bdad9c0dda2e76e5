"""Opacus on convolutional networks: clipped means by hooks, by functorch, and by ghost clipping."""

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
from experiments.benchmark.peers.conv_torch import as_ours, batches, sequential
from experiments.benchmark.peers.spatial import Case


def quantities(case: Case, max_norm: float) -> list[Peer]:
    """Each of its ways, for the first batch."""
    warnings.filterwarnings("ignore", module="torch|opacus|experiments")
    x, t = batches(case)[0]
    costs, found = torch.nn.CrossEntropyLoss(reduction="none"), []
    for name, functorch in (("hooks", False), ("functorch", True)):
        every = GradSampleModule(sequential(case), loss_reduction="sum", force_functorch=functorch)

        def by_examples(every: Any = every) -> Any:
            every.zero_grad(set_to_none=True)
            costs(every(x), t).sum().backward()
            grads: Any = [p.grad_sample for p in every.parameters()]
            square: Any = sum(g.reshape(len(g), -1).square().sum(1) for g in grads)
            c = (max_norm / square.sqrt()).clamp(max=1)
            return as_ours(case, [torch.einsum("b,b...->...", c, g) / len(c) for g in grads])

        found.append(Peer(f"Opacus, {name}", "clipped mean", by_examples, by_examples))
    ghost = GradSampleModuleFastGradientClipping(
        sequential(case), max_grad_norm=max_norm, use_ghost_clipping=True, loss_reduction="sum"
    )

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
        return as_ours(case, [p.grad for p in ghost.parameters()])

    return [*found, Peer("Opacus, ghost clipping", "clipped mean", by_ghosts, by_ghosts)]
