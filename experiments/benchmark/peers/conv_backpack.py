"""BackPACK on convolutional networks: norms and second moments beside the gradient."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false
import warnings
from typing import Any

import torch
from backpack import backpack, extend
from backpack.extensions import BatchL2Grad, SumGradSquared

from experiments.benchmark.examples import Peer
from experiments.benchmark.peers.conv_torch import as_ours, batches, sequential
from experiments.benchmark.peers.spatial import Case


def quantities(case: Case, max_norm: float) -> list[Peer]:
    """Its losses are means: g_i comes out divided by B."""
    warnings.filterwarnings("ignore", module="torch|experiments")
    model, loss = extend(sequential(case)), extend(torch.nn.CrossEntropyLoss())
    x, t = batches(case)[0]
    batch = len(t)

    def backward(extension: Any) -> None:
        model.zero_grad()
        with backpack(extension):
            loss(model(x), t).backward()

    def norms() -> Any:
        backward(BatchL2Grad())
        squares: Any = sum(p.batch_l2 for p in model.parameters())
        return as_ours(case, [p.grad for p in model.parameters()]), (squares * batch**2).numpy()

    def second_moment() -> Any:
        backward(SumGradSquared())
        moments = [p.sum_grad_squared * batch for p in model.parameters()]
        return as_ours(case, [p.grad for p in model.parameters()]), as_ours(case, moments)

    of_norms, of_moments = lambda: backward(BatchL2Grad()), lambda: backward(SumGradSquared())
    return [
        Peer("BackPACK, norms", "norms", norms, of_norms),
        Peer("BackPACK, second moment", "second moment", second_moment, of_moments),
    ]
