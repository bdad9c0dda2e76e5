"""Two processes with two devices each: the numbers of one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from test_placement import CALLS, LOOSE

HERE = Path(__file__).parent
START = """
import sys, jax
address, rank, out = sys.argv[1:]
jax.distributed.initialize(address, 2, int(rank), coordinator_bind_address=address)
import rank
rank.main(out)
"""
QUANTITIES = [
    call for call in CALLS if call not in ("train_step", "train_epoch", "what is observed")
]
STEPS = {"20 steps": {"sgd": 1e-5, "adam": 1e-4}, "epoch": {"sgd": 1e-5, "adam": 1e-4}}


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of them wrote."""
    folder, address = tmp_path_factory.mktemp("ranks"), free_address()
    paths = os.pathsep.join([str(HERE), str(HERE.parent), *sys.path])
    env = os.environ | {"PYTHONPATH": paths, "JAX_NUM_CPU_DEVICES": "2"}
    said = [(folder / f"{rank}.txt").open("w+", encoding="utf-8") for rank in range(2)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", START, address, str(rank), str(folder / f"{rank}.json")],
            env=env, stdout=said[rank], stderr=subprocess.STDOUT, start_new_session=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        codes = [process.wait(timeout=900) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
        words = []
        for file in said:
            file.seek(0)
            words.append(file.read()[-2000:])
            file.close()
    assert codes == [0, 0], "\n".join(words)
    return [json.loads((folder / f"{rank}.json").read_text("utf-8")) for rank in range(2)]


@pytest.mark.long(20)
@pytest.mark.parametrize("call", QUANTITIES)
@pytest.mark.parametrize("net", ["dense", "spatial"])
def test_a_batch_over_processes_gives_the_numbers_of_one_device(ranks, net, call):
    for rank in ranks:
        assert rank["found"][f"{net}: {call}"] <= LOOSE.get(call, 1e-6)


@pytest.mark.parametrize(
    ("net", "style", "optimizer"),
    [("dense", s, o) for s in ("data", "fsdp", "tensor", "fsdp+tensor") for o in ("sgd", "adam")]
    + [("spatial", "data", "sgd")],
)
@pytest.mark.parametrize("what", STEPS)
def test_steps_over_processes_are_those_of_one_device(ranks, what, net, style, optimizer):
    for rank in ranks:
        gap = rank["found"][f"{net}, {style}, {optimizer}: {what}"]
        assert gap <= STEPS[what][optimizer]


@pytest.mark.parametrize("style", ["data", "fsdp+tensor"])
def test_batches_that_processes_read_half_of_are_those_of_one_device(ranks, style):
    for rank in ranks:
        assert rank["found"][f"stream, {style}"] <= 1e-5


def test_rows_that_differ_between_processes_are_refused_by_all(ranks):
    for rank in ranks:
        assert rank["said"].endswith("the same number of rows in every process, got [16, 15]")
