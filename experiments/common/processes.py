"""One run in several processes: all of them agree, or all of them end and say why.

JAX notices neither ranks that disagree, when it prints a wrong number, nor one that is stuck.
So they compare digests of what they were told, what they hold and how far they are, and each has
a watchdog. Started by SLURM, MPI, Kubernetes, a TPU's VM, or `experiments.common.launch`.
"""

import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.common import agreement, run
from experiments.common.rendezvous import limit, start
from experiments.common.watchdog import COMPILING, Watchdog, tell

COLLECTIVE = ("Gloo", "gloo", "NCCL", "collective", "UNAVAILABLE", "DEADLINE", "coordination")


class Refusal(RuntimeError):
    """A fault of what was asked for, that needs no traceback."""


class Disagreement(RuntimeError):
    """Ranks that differ in configuration, data, step or parameters; all of them raise it."""


class Alone:
    """A run in one process: nothing to compare, to place or to wait for."""

    lead = True  # who writes and prints

    def begin(self, options: dict[str, Any], data: Any, state: Any) -> None:
        """Compares all that a run begins with."""

    def agree(self, state: Any, asked: list[int]) -> bool:
        """Compares the states; whether anybody was asked to stop."""
        return bool(asked)

    def everywhere(self, tree: Any) -> Any:
        """Arrays of this process, for programs that run on the devices of all."""
        return tree

    def here(self, tree: Any) -> Any:
        """Arrays of all devices, for what this process does by itself."""
        return tree

    def part(self) -> None:
        """What follows each process does by itself, and the others wait until it is done."""

    @contextmanager
    def stop_between_epochs(self) -> Iterator[list[int]]:
        """Ctrl-C fills the list."""
        with run.stop_between_epochs() as asked:
            yield asked


class Team(Alone):
    """All the ranks, seen from one. Rank 0 leads."""

    def __init__(self, watch: Watchdog) -> None:
        self.watch, self.lead = watch, watch.rank == 0
        devices = jax.devices()  # waits for all
        self.mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
        self._facts: dict[str, Any] = {}

    def begin(self, options: dict[str, Any], data: Any, state: Any) -> None:
        self._facts = {"configuration": options, "data": agreement.described(data)}
        self.agree(state, [], within=COMPILING)

    def agree(self, state: Any, asked: list[int], within: float | None = None) -> bool:
        step = int(self.here(state.step))
        self.watch.reached(step, within)
        parameters = agreement.described(state._replace(step=None))
        row = agreement.row(self._facts | {"step": step, "parameters": parameters}, bool(asked))
        rows = multihost_utils.process_allgather(row)
        if found := agreement.disagreement(rows):
            raise Disagreement(found)
        self.watch.reached(step, within)
        return agreement.anybody_asked(rows)

    def everywhere(self, tree: Any) -> Any:
        self.meet()  # gloo allows 30 s from the first rank's epoch to the last's
        return jax.tree.map(self._replicated, tree)

    def meet(self) -> None:
        """Waits until all ranks are here."""
        multihost_utils.process_allgather(np.uint8(0))

    def _replicated(self, leaf: Any) -> Any:
        """`begin` has compared it; `jax.device_put` would again, leaf by leaf, and takes no key."""
        sharding = NamedSharding(self.mesh, P())
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = self._replicated(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        array = np.asarray(leaf)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    def here(self, tree: Any) -> Any:
        self.watch.waits()
        return jax.tree.map(np.asarray, tree)

    def part(self) -> None:
        self.watch.reached(self.watch.step, COMPILING)

    @contextmanager
    def stop_between_epochs(self) -> Iterator[list[int]]:
        """SIGTERM too, which is how a cluster asks; JAX's own handler of it would only log it."""
        with run.stop_between_epochs() as asked:
            before = signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
            try:
                yield asked
            finally:
                signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def together(work: Callable[[Team], int], *, patience: float) -> int:
    """What this rank's `work` returns, when all ranks have done theirs; else this process ends.

    Args:
        work: gets the team; it returns the same status on every rank.
        patience: seconds after which a rank that is not there, silent or stuck ends the run.
    """
    rank, ranks, store = start(patience)
    watch = Watchdog(rank, ranks, patience, store)
    try:
        team = Team(watch)
        status = work(team)
        team.part()
        team.meet()
    except Disagreement as error:
        watch.end(str(error))
    except Refusal as error:
        watch.end(f"rank {rank}: {error}")
    except BaseException as error:
        if _of_a_collective(error) and (gone := watch.suspect()):
            tell(f"rank {rank}: {_first_line(error)}")
            watch.end(gone)
        traceback.print_exc()
        watch.end(f"rank {rank} raised {_first_line(error)}")
    watch.stop()
    with limit(patience, f"rank {rank}: the other ranks did not leave within {patience:g} s"):
        jax.distributed.shutdown()
    return status


def _of_a_collective(error: BaseException) -> bool:
    return isinstance(error, Exception) and any(word in str(error) for word in COLLECTIVE)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
