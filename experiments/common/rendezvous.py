"""The ranks of a run find each other, under any launcher that JAX knows, or do not and say so."""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax

from experiments.common.watchdog import Store, leave, tell


def start(patience: float) -> tuple[int, int, Store]:
    """This rank, how many there are, and what they can leave words in. Or the process ends."""
    if patience < 1:
        give_up(f"patience: expected at least 1 second, got {patience:g}")
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    given: dict[str, Any] = {}
    if address and "JAX_NUM_PROCESSES" in os.environ and "JAX_PROCESS_ID" in os.environ:
        given = {
            "coordinator_address": address,
            "num_processes": int(os.environ["JAX_NUM_PROCESSES"]),
            "process_id": int(os.environ["JAX_PROCESS_ID"]),
            "cluster_detection_method": "deactivate",
        }
        if address.rsplit(":", 1)[0] in ("localhost", "127.0.0.1"):
            given["coordinator_bind_address"] = address  # else every interface is listened at
            if given["process_id"] == 0:
                _check_free(address)
    name = f"rank {given['process_id']}" if given else "this rank"
    late = (
        f"{name}: not all {given.get('num_processes', '')} ranks came to "
        f"{address or 'the coordinator'} within {patience:g} s: one was not started, came late, "
        "died, or cannot reach it"
    )
    try:
        # JAX's own timeout is no exception but an abort without a cause
        with limit(patience, late):
            jax.distributed.initialize(
                **given,
                initialization_timeout=round(2 * patience) + 1,
                # the last heartbeat may be half of that old: the watchdog, with words, is first
                heartbeat_timeout_seconds=round(3 * patience),
                shutdown_timeout_seconds=round(2 * patience) + 1,
            )
    except (RuntimeError, ValueError) as error:
        give_up(
            f"{name} could not be started: {error} It takes SLURM, MPI, another launcher that JAX "
            "knows, or `python -m experiments.common.launch`"
        )
    try:
        from jax._src.distributed import global_state

        return global_state.process_id, global_state.num_processes, Store(global_state.client)
    except (ImportError, AttributeError):
        return jax.process_index(), jax.process_count(), Store()


def _check_free(address: str) -> None:
    """JAX would share the port or crash."""
    host, port = address.rsplit(":", 1)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            give_up(f"rank 0: it cannot listen at {address}: {error.strerror}")


@contextmanager
def limit(seconds: float, message: str) -> Iterator[None]:
    """For calls that wait inside JAX, where no exception of ours would reach."""
    timer = threading.Timer(seconds, give_up, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def give_up(message: str) -> NoReturn:
    tell(message)
    leave()
