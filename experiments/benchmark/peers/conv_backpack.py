"""BackPACK on convolutional networks: norms and second moments beside the gradient."""

from functools import partial

from experiments.benchmark.examples import Peer
from experiments.benchmark.peers.conv_torch import as_ours, batches, sequential
from experiments.benchmark.peers.examples_backpack import of_model
from experiments.benchmark.peers.spatial import Case


def quantities(case: Case, max_norm: float) -> list[Peer]:
    """Of the first batch."""
    return of_model(sequential(case), *batches(case)[0], partial(as_ours, case))
