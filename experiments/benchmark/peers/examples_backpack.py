"""BackPACK: norms and second moments as extensions of PyTorch's backward pass."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false
import warnings
from typing import Any

import torch
from backpack import backpack, extend
from backpack.extensions import BatchL2Grad, SumGradSquared

from experiments.benchmark.examples import Peer
from experiments.benchmark.peers.by_torch import pairs, sequential
from experiments.benchmark.work import Problem, Work


def of_model(model: Any, x: Any, t: Any, read: Any) -> list[Peer]:
    """Beside the gradient. Its losses are means: g_i comes out divided by B."""
    warnings.filterwarnings("ignore", module="torch|experiments")
    model, loss, batch = extend(model), extend(torch.nn.CrossEntropyLoss()), len(t)

    def backward(extension: Any) -> None:
        model.zero_grad()
        with backpack(extension):
            loss(model(x), t).backward()

    def norms() -> Any:
        backward(BatchL2Grad())
        squares: Any = sum(p.batch_l2 for p in model.parameters())
        return read([p.grad for p in model.parameters()]), (squares * batch**2).numpy()

    def second_moment() -> Any:
        backward(SumGradSquared())
        moments = [p.sum_grad_squared * batch for p in model.parameters()]
        return read([p.grad for p in model.parameters()]), read(moments)

    return [
        Peer("BackPACK, norms", "norms", norms, lambda: backward(BatchL2Grad())),
        Peer(
            "BackPACK, second moment", "second moment", second_moment,
            lambda: backward(SumGradSquared()),
        ),
    ]  # fmt: skip


def candidates(work: Work, numbers: Problem, max_norm: float, *, small: bool) -> list[Peer]:
    """Of a dense network."""
    x, t = torch.tensor(numbers.x[0]), torch.tensor(numbers.labels[0]).long()
    return of_model(sequential(work, numbers, torch.nn.Tanh), x, t, pairs)
