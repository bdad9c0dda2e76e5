"""A run in several processes: the numbers of one; and whatever goes wrong, all end and say why.

The table of faults is the one of docs/faults.md. Each is brought about by a script that patches
the experiment; several pairs of processes run at a time, since most of them mostly wait.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np
import optax
import pytest
from rich.console import Console

import jbackprop as jb
from experiments import digits
from experiments.common import agreement, launch, processes, resuming
from experiments.common.watchdog import Store, Watchdog

ROOT = Path(__file__).parents[2]
PATIENCE = 10  # seconds; three times that by default
OPTIONS = ("--sizes", 16, "--optimizer", "sgd", "--learning-rate", 0.1, "--batch-size", 96)
GONE = "killed, stopped or cut off"

# What a rank does in place of `experiments.digits`: what is spared, then the fault, then the run.
# `at` puts a fault before an epoch of one rank.
SCRIPT = """
import os, resource, signal, sys, time
from pathlib import Path
from types import SimpleNamespace

import jax, numpy as np, optax, tyro
import jbackprop as jb

RANK, NOTES = int(os.environ["JAX_PROCESS_ID"]), Path(__file__).parent
(NOTES / f"{RANK}.pid").write_text(str(os.getpid()))
SPARED
from experiments import digits

load, train_epoch, epochs = digits.load, jb.train_epoch, 0

def now():
    (NOTES / "struck").write_text(str(time.time()))

def at(rank, epoch, fault):
    def patched(net, optimizer, state, x, t, **options):
        global epochs
        epochs += 1
        if (RANK, epochs) == (rank, epoch):
            now()
            state = fault(state) or state
        return train_epoch(net, optimizer, state, x, t, **options)
    jb.train_epoch = patched

def send(number, to=None):
    return lambda state: os.kill(os.getpid() if to is None else to, number)

def options(*more):
    if RANK == 1:
        sys.argv += more

def fewer(*arguments):
    data = load(*arguments)
    return data._replace(train=type(data.train)(data.train.x[:-1], data.train.labels[:-1]))

def other_step(state):
    return state._replace(step=state.step + 1)

def one_bit(state):
    first, *rest = state.params
    bits = np.array(first.w)
    bits.view(np.uint32)[3, 1] ^= 1 << 12
    w = jax.make_array_from_callback(bits.shape, first.w.sharding, lambda index: bits[index])
    return state._replace(params=(first._replace(w=w), *rest))

def leave_out(state):
    global train_epoch
    whole = train_epoch
    def none(*arguments, **options):
        global train_epoch
        train_epoch = whole
        return state, SimpleNamespace(observed=np.zeros(1))
    train_epoch = none

def fail(state):
    raise ValueError("a fault of rank 1 alone")

def full(state):
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

FAULT
sys.exit(digits.main(tyro.cli(digits.Options)))
"""
# What no fault is about takes most of the time: scikit-learn, costs, pictures of random numbers.
SPARED = """
from collections import namedtuple
from types import ModuleType

Part = namedtuple("Part", "x labels")
Data = namedtuple("Data", "train validation test image_shape classes")
part = Part(np.ones((96, 4), np.float32), np.arange(96, dtype=np.int32) % 2)
data = ModuleType("experiments.common.data")
data.Part, data.Data, data.load = Part, Data, lambda *_: Data(part, part, part, (2, 2), 2)
sys.modules[data.__name__] = data

init_state, evaluate = jb.init_state, jb.Metrics(1.0, 0.5)
params = [(np.full(shape, 0.1, np.float32), np.ones(shape[0], np.float32)) for shape in SHAPES]
jb.init_state = lambda *arguments: init_state(*arguments, params=params)
jb.evaluate = lambda *arguments, **options: evaluate
jb.check_batch = lambda *arguments: None

from experiments import digits

digits.delta_norms = lambda factors, *rest: factors.cost[:1]
digits.difference_from_autodiff = lambda *arguments: 0.0
""".replace("SHAPES", "((16, 4), (2, 16))")


class Fault(NamedTuple):
    """A fault, what happens then for people to read, how it is made, and what each has to say."""

    name: str
    happens: str
    made: str
    says: dict[str, str]  # by who says it: "0", "1" or "launch"


SILENT = "the others hear nothing of it for the patience, name it and end; the launcher kills it"
FAULTS = [
    Fault(
        "a worker is killed",
        "the collective of the others fails at once; they name it and end",
        "at(1, 3, send(signal.SIGKILL))",
        {"0": rf"rank 1 was last heard of .* {GONE}", "launch": "rank 1 was ended by SIGKILL"},
    ),
    Fault(
        "rank 0 is killed",
        "the coordination service is gone with it: JAX ends the others and says that a task died; "
        "the launcher names rank 0",
        "at(0, 3, send(signal.SIGKILL))",
        {"1": "another task died|rank 0", "launch": "rank 0 was ended by SIGKILL"},
    ),
    Fault(
        "a worker is stopped",
        SILENT,
        "at(1, 3, send(signal.SIGSTOP))",
        {"0": rf"rank 1 was last heard of \d+ s ago, at step \d: {GONE}", "launch": "rank 1 did"},
    ),
    Fault(
        "rank 0 is stopped",
        SILENT,
        "at(0, 3, send(signal.SIGSTOP))",
        {"1": rf"rank 0, with the coordination .* at step \d: {GONE}", "launch": "rank 0 did not"},
    ),
    Fault(
        "a worker comes too late",
        "the others wait for the patience, and say who did not come",
        f"RANK == 1 and (now(), time.sleep({3 * PATIENCE}))",
        {"0": rf"not all 2 ranks came to 127.0.0.1:\d+ within {PATIENCE} s", "launch": "rank 1"},
    ),
    Fault(
        "a rank has other data",
        "before the first step all say which array differs, and how",
        "now(); digits.load = fewer if RANK == 1 else load",
        dict.fromkeys("01", r"rank 1 disagrees with rank 0: data: .*95, 4.* there, .*96, 4"),
    ),
    Fault(
        "a rank has another seed",
        "before the first step all say which option differs, with both values",
        "now(); options('--seed', '1')",
        dict.fromkeys("01", "rank 1 disagrees with rank 0: configuration: seed is 1 there, 0 on"),
    ),
    Fault(
        "a rank is to do more epochs",
        "the same",
        "now(); options('--epochs', '9')",
        dict.fromkeys("01", "rank 1 disagrees .* configuration: epochs is 9 there, 4 on rank 0"),
    ),
    Fault(
        "a rank's step becomes another",
        "after the epoch all say whose, with both numbers",
        "at(1, 3, other_step)",
        dict.fromkeys("01", "rank 1 disagrees with rank 0: step: 4 there, 3 on rank 0"),
    ),
    Fault(
        "a rank leaves out an epoch",
        "all wait for each other; after the patience they end, and say the line that each is at",
        "at(1, 3, leave_out)",
        dict.fromkeys("01", r"nothing has moved for .* digits.py:\d+; rank 1 .*, digits.py:\d+"),
    ),
    Fault(
        "a bit of one rank's parameters flips",
        "after the epoch all say whose, and in which arrays",
        "at(1, 3, one_bit)",
        dict.fromkeys("01", r"rank 1 disagrees with rank 0: parameters: params.0.w is "),
    ),
    Fault(
        "the port is in use",
        "rank 0 says so at once, the launcher ends the others",
        "now()",
        {"0": r"it cannot listen at 127.0.0.1:\d+: Address already in use", "launch": "rank 0"},
    ),
    Fault(
        "a rank raises an exception",
        "it shows where; the others hear of it, say so and end",
        "at(1, 3, fail)",
        dict.fromkeys("01", "rank 1 raised ValueError: a fault of rank 1 alone"),
    ),
    Fault(
        "a checkpoint cannot be written",
        "rank 0 says where and why; the others hear of it, and end",
        "at(0, 3, full)",
        dict.fromkeys("01", r"rank 0: .*File too large.*checkpoint"),
    ),
    Fault(
        "a rank is stuck, but alive",
        "after the patience all end, and say the line that each is at",
        "at(1, 3, lambda state: time.sleep(600))",
        dict.fromkeys(
            "01",
            r"nothing has moved for \d+ s: rank 1 is behind; .*rank 1 is at step 2, rank.py:\d+",
        ),
    ),
    Fault(
        "the launcher is killed",
        "its ranks see it and end",
        "at(1, 3, send(signal.SIGKILL, int(os.environ['LOCAL_LAUNCHER'])))",
        {},
    ),
]


class Outcome(NamedTuple):
    status: int
    output: str
    seconds: float  # from the fault to the end of all
    left: list[int]  # ranks whose process was still there

    def of(self, who: str) -> str:
        """The lines of a rank or of the launcher."""
        start = "launch: " if who == "launch" else f"[{who}] "
        return "\n".join(line for line in self.output.splitlines() if line.startswith(start))


def started(folder, made, *options, port=0, devices=1, spared=SPARED):
    script = SCRIPT.replace("\nSPARED\n", f"\n{spared}\n").replace("\nFAULT\n", f"\n{made}\n")
    (folder / "rank.py").write_text(script)
    more = (*OPTIONS, "--epochs", 4, "--patience", PATIENCE, "--out", folder / "runs", *options)
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / "build/compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [
            sys.executable, "-m", "experiments.common.launch", "--grace", "8", "--port", str(port),
            "--devices", str(devices), "--", "-W", "error", folder / "rank.py", "--distributed",
            *map(str, more),
        ],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, env=cache | os.environ | {"COLUMNS": "200", "PYTHONPATH": path},
    )  # fmt: skip


def alive(folder):
    """Ranks whose process is there."""
    found = []
    for note in folder.glob("*.pid"):
        with suppress(ProcessLookupError):
            os.kill(int(note.read_text()), 0)
            found.append(int(note.stem))
    return found


def ended(folder, process, limit=100.0):
    """What came of it. Nobody is left, whatever happens."""
    try:
        output, _ = process.communicate(timeout=limit)
        until = time.time() + 20  # for those whose launcher was killed
        while alive(folder) and time.time() < until and process.returncode < 0:
            time.sleep(0.1)
        note = folder / "struck"
        struck = float(note.read_text()) if note.exists() else time.time()
        return Outcome(process.returncode, output, time.time() - struck, alive(folder))
    finally:
        for note in folder.glob("*.pid"):
            with suppress(ProcessLookupError):
                os.killpg(int(note.read_text()), signal.SIGKILL)
        process.kill()
        process.wait()


def in_a_port_that_is_taken(folder, made):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        return ended(folder, started(folder, made, port=taken.getsockname()[1]))


@pytest.fixture(scope="module", autouse=True)
def outcomes(tmp_path_factory):
    """Of every fault, as it comes: three pairs at a time."""

    def of(fault, folder):
        if "port" in fault.name:
            return in_a_port_that_is_taken(folder, fault.made)
        return ended(folder, started(folder, fault.made))

    with ThreadPoolExecutor(3) as pool:
        yield {
            fault.name: pool.submit(of, fault, tmp_path_factory.mktemp("fault")) for fault in FAULTS
        }


# Parameters after one step of this length are the gradient's.
LONG = 1e4
FIRST_STEP = f"""
def first(net, optimizer, state, x, t, **options):
    after, _ = jb.train_step(net, optax.sgd({LONG}), state, x, t)
    if RANK == 0:
        jb.save(NOTES / "first.npz", net, after.params)
    return train_epoch(net, optimizer, state, x, t, **options)
jb.train_epoch = first
"""


def assert_close(found, expected, tolerance):
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = np.max(np.abs(theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


@pytest.mark.long
def test_two_processes_of_two_devices_give_the_parameters_of_one(tmp_path):
    process = started(tmp_path, FIRST_STEP, "--batch-size", 54, "--epochs", 1, devices=2, spared="")
    outcome = ended(tmp_path, process)
    assert outcome.status == 0, outcome.output
    assert outcome.left == []
    (folder,) = (tmp_path / "runs").iterdir()
    expected = ["curves.png", "deltas.png", "hardest.png", "metrics.jsonl", "net.npz"]
    assert sorted(path.name for path in folder.iterdir()) == [
        "checkpoints", "config.json", *expected,
    ]  # fmt: skip
    assert "4 devices: cpu" in outcome.of("0")
    assert outcome.of("1") == ""

    options = digits.Options(
        sizes=(16,), batch_size=54, optimizer="sgd", learning_rate=0.1, epochs=1
    )
    net, optimizer, state, _, parts = digits.prepare(options, Console(), processes.Alone())[2:7]
    x, t = parts["train"]
    one, _ = jb.train_step(net, optax.sgd(LONG), state, x, t)
    assert_close(jb.load(tmp_path / "first.npz")[1], one.params, 1e-6)
    epoch, _ = jb.train_epoch(net, optimizer, state, x, t, batch_size=54)
    assert int(epoch.step) == 20
    assert_close(jb.load(folder / "net.npz")[1], epoch.params, 1e-5)


@pytest.mark.long
@pytest.mark.parametrize("who", ["the launcher", "a worker"])
def test_asked_to_stop_all_stop_after_the_same_epoch(who, tmp_path):
    process = started(tmp_path, "", "--epochs", 100_000)
    try:
        while not list(tmp_path.glob("runs/*/metrics.jsonl")):
            assert process.poll() is None
            time.sleep(0.1)
        worker = int((tmp_path / "1.pid").read_text())
        os.kill(*((process.pid, signal.SIGINT) if "l" in who else (worker, signal.SIGTERM)))
    finally:
        outcome = ended(tmp_path, process)
    status = 130 if who == "the launcher" else 143
    assert outcome.status == status, outcome.output
    assert outcome.left == []
    assert "Stopped after epoch" in outcome.of("0")
    for rank in range(2):
        assert f"rank {rank} ended with status {status}" in outcome.of("launch")
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "net.npz").is_file()


def numbers(folder):
    """What the last checkpoint of the only run holds, bit by bit, and the metrics."""
    (found,) = (folder / "runs").iterdir()
    options = resuming.options_of(found, digits.Options())
    net, optimizer = jb.Network((4, 16, 2), jb.relu, jb.softmax, jb.cross_entropy), optax.sgd(0.1)
    state = jb.init_state(net, optimizer, jax.random.key(options.seed))
    checkpoints = jb.Checkpoints(found / "checkpoints", net, optimizer)
    state = checkpoints.restore(state).state
    assert checkpoints.steps == (2, 3, 4)
    rows = [json.loads(line) for line in (found / "metrics.jsonl").read_text().splitlines()]
    leaves = jax.tree.leaves(state._replace(key=jax.random.key_data(state.key)))
    timeless = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    return [np.asarray(leaf).tobytes() for leaf in leaves], timeless


@pytest.mark.long
def test_killed_in_one_process_a_run_goes_on_in_all_to_the_same_bits(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder, made in ((whole, ""), (cut, "at(1, 4, send(signal.SIGKILL))")):
        folder.mkdir()
        status = ended(folder, started(folder, made)).status
        assert (status == 0) == (folder == whole)
    outcome = ended(cut, started(cut, "", "--resume", cut / "runs"))
    assert outcome.status == 0, outcome.output
    assert re.search("It goes on in .*, after epoch [23]", outcome.of("0"))
    assert numbers(cut) == numbers(whole)


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
def test_a_fault_ends_all_and_is_named(fault, outcomes):
    outcome = outcomes[fault.name].result()
    assert outcome.status != 0, outcome.output
    assert outcome.left == [], outcome.output
    assert outcome.seconds < 60, outcome.output
    for who, words in fault.says.items():
        assert re.search(words, outcome.of(who)), f"{who}: {words}\n{outcome.output}"


def test_the_page_of_faults_has_the_rows_of_this_table():
    page = (ROOT / "docs/faults.md").read_text("utf-8")
    rows = [f"| {fault.name} | {fault.happens} |" for fault in FAULTS]
    table = "\n".join(["| fault | what happens |", "| --- | --- |", *rows])
    assert page.endswith(f"\n\n{table}\n"), f"the table is:\n{table}"


def rows_of(*facts):
    every = {"configuration": {"a": 1}, "data": {}, "step": 7, "parameters": {"w": "x"}}
    return np.stack([agreement.row(every | fact, asked=[]) for fact in facts])


def test_every_rank_that_disagrees_is_named_and_every_part():
    assert agreement.disagreement(rows_of({}, {}, {})) == ""
    found = agreement.disagreement(
        rows_of({}, {"step": 8, "configuration": {"a": 2, "b": None}}, {}, {"parameters": {}})
    )
    assert found.splitlines() == [
        "rank 1 disagrees with rank 0: configuration: a is 2 there, 1 on rank 0, "
        "b is None there, not on rank 0; step: 8 there, 7 on rank 0",
        "rank 3 disagrees with rank 0: parameters: w is not there, x on rank 0",
    ]
    many = {"configuration": {str(n): n for n in range(2000)}}  # more than is told
    found = agreement.disagreement(rows_of({}, many))
    assert found == "rank 1 disagrees with rank 0: configuration"


def test_copies_that_differ_within_a_rank_are_no_copies_of_the_others():
    device = jax.local_devices()[0]
    one = jax.make_array_from_single_device_arrays(
        (2,), jax.sharding.SingleDeviceSharding(device), [jax.device_put(np.ones(2), device)]
    )
    assert agreement.described({"w": one}) == agreement.described({"w": np.ones(2, np.float32)})
    assert agreement.described([jax.random.key(0)]) != agreement.described([jax.random.key(1)])


def test_without_the_store_that_jax_keeps_private_a_watchdog_still_has_its_patience():
    assert not Store(object())
    watchdog = Watchdog(0, 2, patience=30, store=Store())
    try:
        now = time.monotonic()
        assert watchdog.verdict(now + 500) == ""  # it may be compiling
        watchdog.reached(5)
        assert watchdog.verdict(now + 25) == ""
        assert "nothing has moved for 4" in watchdog.verdict(now + 40)
        assert watchdog.silent(now + 1000, 30) == ""
    finally:
        watchdog.stop()


def test_who_is_silent_is_named_where_nothing_moves_either():
    """A beat comes after the last move: so that limit is reached first."""
    watchdog = Watchdog(1, 3, patience=30, store=Store())
    try:
        watchdog.reached(5)
        watchdog.store, now = cast(Any, object()), time.monotonic()
        watchdog._hear({0: (1, 1, 5, "a.py:1"), 2: (1, 1, 5, "a.py:1")}, {}, now + 0.5)
        assert watchdog.silent(now + 30.2, 30) == ""
        assert re.match("rank 0, with the coordination service, was", watchdog.verdict(now + 30.2))
        watchdog._hear({0: (2, 1, 5, "a.py:1"), 2: (1, 1, 5, "a.py:1")}, {}, now + 29)
        assert re.match(r"rank 2 was last heard of 30 s", watchdog.verdict(now + 30.2))
        watchdog._hear({0: (3, 1, 5, "a.py:1"), 2: (2, 1, 5, "a.py:1")}, {}, now + 29)
        assert "nothing has moved for 30 s: " in watchdog.verdict(now + 30.2)
    finally:
        watchdog.stop()


@pytest.mark.parametrize(
    ("status", "words"),
    [(3, "ended with status 3"), (-9, "was ended by SIGKILL"), (-200, "was ended by signal 200")],
)
def test_how_a_process_ended_is_said_in_words(status, words):
    assert launch.how(status) == words
