"""One run in several processes: all of them agree, or all of them end and say why.

JAX notices neither ranks that disagree, when it prints a wrong number, nor one that is stuck.
So they compare digests of what they were told, what they hold and how far they are, and each has
a watchdog. Started by SLURM, MPI, Kubernetes, a TPU's VM, or `experiments.common.launch`.
"""

import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.common import agreement
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

    def told(self, options: dict[str, Any]) -> None:
        """Compares what each was told, before they do anything together."""

    def begin(self, data: Any, state: Any) -> None:
        """Compares all else that a run begins with."""

    def agree(self, state: Any, asked: list[int]) -> list[int]:
        """Compares the states; by which signals anybody was asked to stop."""
        return asked

    def everywhere(self, tree: Any) -> Any:
        """Arrays of this process, for programs that run on the devices of all."""
        return tree

    def here(self, tree: Any) -> Any:
        """Arrays of all devices, for what this process does by itself."""
        return tree

    def of_lead(self, text: str) -> str:
        """What the lead has here, up to 4 kB."""
        return text

    def part(self) -> None:
        """What follows each process does by itself, and the others wait until it is done."""


class Team(Alone):
    """All the ranks, seen from one. Rank 0 leads."""

    def __init__(self, watch: Watchdog) -> None:
        self.watch, self.lead = watch, watch.rank == 0
        devices = jax.devices()  # waits for all
        self.mesh = jax.make_mesh((len(devices),), ("data",), (AxisType.Auto,), devices=devices)
        self._facts: dict[str, Any] = {"data": {}, "step": 0, "parameters": {}}

    def told(self, options: dict[str, Any]) -> None:
        self._facts["configuration"] = options
        self._compare([], COMPILING)

    def begin(self, data: Any, state: Any) -> None:
        self._facts["data"] = agreement.described(data)
        self.agree(state, [], within=COMPILING)

    def agree(self, state: Any, asked: list[int], within: float | None = None) -> list[int]:
        step = int(self.here(state.step))
        self.watch.reached(step, within)
        self._facts |= {
            "step": step,
            "parameters": agreement.described(state._replace(step=None)),
        }
        return self._compare(asked, within)

    def _compare(self, asked: list[int], within: float | None) -> list[int]:
        rows = multihost_utils.process_allgather(agreement.row(self._facts, asked))
        if found := agreement.disagreement(rows):
            raise Disagreement(found)
        self.watch.reached(self._facts["step"], within)
        return agreement.asked_of_any(rows)

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

    def of_lead(self, text: str) -> str:
        row = np.frombuffer(text.encode().ljust(4096, b"\0"), np.uint8)
        return multihost_utils.broadcast_one_to_all(row).tobytes().rstrip(b"\0").decode()

    def part(self) -> None:
        self.watch.reached(self.watch.step, COMPILING)


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
