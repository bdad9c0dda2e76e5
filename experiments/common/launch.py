"""Several ranks of a program on this machine: `make distributed`.

python -m experiments.common.launch --processes 2 -- -m experiments.digits --distributed

What each writes comes with its rank. When one fails the others have some seconds to end by
themselves, then they are killed, and so they are when this program is stopped.
"""

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import tyro


@dataclass(frozen=True)
class Options:
    """Start several ranks of a Python program on this machine; its arguments stand behind `--`."""

    processes: int = 2
    devices: int = 2
    """Of the CPU, in every process."""
    port: int = 0
    """Where rank 0 listens, at 127.0.0.1 only; by default one that is free."""
    grace: float = 15.0
    """Seconds that the others have when one has failed."""


def free_port() -> int:
    """One that nobody listens at; somebody may, before rank 0 does, which it then says."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(options: Options, rank: int, port: int) -> dict[str, str]:
    """What `processes.start` reads, CPU devices, and this program's number."""
    chosen = {"JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}  # a GPU is not to be shared
    return (
        chosen
        | os.environ
        | {
            "JAX_NUM_CPU_DEVICES": str(options.devices),
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(options.processes),
            "JAX_PROCESS_ID": str(rank),
            "LOCAL_LAUNCHER": str(os.getpid()),
        }
    )


def how(status: int) -> str:
    """The end of a process in words."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def say(message: str) -> None:
    print(f"launch: {message}", file=sys.stderr, flush=True)


class Ranks:
    """The processes, each in a group of its own, so that what they start is killed with them."""

    def __init__(self, options: Options, command: list[str]) -> None:
        port = options.port or free_port()
        self.ended: queue.Queue[tuple[int, int]] = queue.Queue()
        self.running: dict[int, subprocess.Popen[str]] = {}
        self.readers: list[threading.Thread] = []
        try:
            for rank in range(options.processes):
                self.running[rank] = self._started(command, environment(options, rank, port))
                self._thread(self._wait, rank, self.running[rank])
                self.readers.append(self._thread(self._read, rank, self.running[rank]))
        except BaseException:
            self.kill()
            raise

    def _started(self, command: list[str], env: dict[str, str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, *command],
            env=env,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )

    def _thread(self, function: Any, *args: Any) -> threading.Thread:
        thread = threading.Thread(target=function, args=args, daemon=True)
        thread.start()
        return thread

    def _wait(self, rank: int, process: "subprocess.Popen[str]") -> None:
        self.ended.put((rank, process.wait()))

    def _read(self, rank: int, process: "subprocess.Popen[str]") -> None:
        for line in process.stdout or ():
            if line.startswith("[Gloo] Rank"):
                continue  # that it is connected
            sys.stdout.write(f"[{rank}] {line}")
            sys.stdout.flush()

    def signal(self, number: int) -> None:
        for process in list(self.running.values()):
            if process.poll() is None:
                process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, which a stopped process obeys too, to all that runs and what it started."""
        for process in self.running.values():
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # nobody is left of it
                continue


def watch(ranks: Ranks, grace: float) -> int:
    """Waits for all; the first status that is not 0, as a shell has it."""
    first, until = 0, float("inf")
    while ranks.running:
        try:
            # a short wait: a signal is heard between two of them
            rank, status = ranks.ended.get(timeout=0.2)
        except queue.Empty:
            if time.monotonic() > until:
                for rank in ranks.running:
                    say(f"rank {rank} did not end within {grace:g} s of that: it is killed")
                ranks.kill()
                until = float("inf")
            continue
        del ranks.running[rank]
        if status:
            say(f"rank {rank} {how(status)}")
            if not first:
                first, until = status, time.monotonic() + grace
    for reader in ranks.readers:
        reader.join(timeout=2)
    return first if first >= 0 else 128 - first


def main(options: Options, command: list[str]) -> int:
    """Starts, forwards Ctrl-C and SIGTERM once, and leaves nobody behind."""
    asked: list[int] = []
    ranks = Ranks(options, command)

    def forward(number: int, frame: Any) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        ranks.signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    try:
        return watch(ranks, options.grace)
    except KeyboardInterrupt:
        say("stopped at once: all ranks are killed")
        return 130
    finally:
        ranks.kill()


if __name__ == "__main__":
    here = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, command = tyro.cli(Options, args=sys.argv[1:here]), sys.argv[here + 1 :]
    if not command:
        sys.exit("launch: expected a program behind --, such as -- -m experiments.digits")
    sys.exit(main(options, command))
