"""Peers: the same training step as others would write it, each at its own best form.

Every module has `candidates(work, problem, hidden, optimizer) -> list[Candidate]` and may raise
ImportError where its library is absent.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

Params = list[tuple[Any, Any]]


class Candidate(NamedTuple):
    """One way to train.

    Attributes:
        name: what the tables call it.
        gradient: no arguments, to the gradient of the first batch as [(w (n_out, n_in), b), …].
        run: trains over all batches of the work, and returns when it is done.
        group: candidates of one group are forms of one peer, of which the best counts.
    """

    name: str
    gradient: Callable[[], Params]
    run: Callable[[], object]
    group: str
