"""Opacus on convolutional networks: clipped means by hooks, by functorch, and by ghost clipping."""

from functools import partial

from experiments.benchmark.examples import Peer
from experiments.benchmark.peers.conv_torch import as_ours, batches, sequential
from experiments.benchmark.peers.examples_opacus import by_examples, by_ghosts
from experiments.benchmark.peers.spatial import Case


def quantities(case: Case, max_norm: float) -> list[Peer]:
    """Each of its ways, for the first batch."""
    given = (*batches(case)[0], max_norm, partial(as_ours, case))
    runs = {
        "Opacus, hooks": by_examples(sequential(case), *given),
        "Opacus, functorch": by_examples(sequential(case), *given, functorch=True),
        "Opacus, ghost clipping": by_ghosts(sequential(case), *given),
    }
    return [Peer(name, "clipped mean", run, run) for name, run in runs.items()]
