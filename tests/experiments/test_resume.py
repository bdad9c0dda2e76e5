"""Whatever ends a run, `--resume` goes on with it, and ends with the numbers of one that never
ended: kill -9 at any moment, `KILLS` times; signals, a full disk, files that are damaged.

The table of faults is the first one of docs/faults.md.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import pytest
import small_run
from small_run import ROOT, SMALL, differing, ended, left, ran, rows, start

import jbackprop as jb
from experiments import digits
from experiments.common import resuming, run
from jbackprop.training import sealed

KILLS = int(os.environ.get("KILLS", "10"))
SEED = 0
FAULTS: list[tuple[str, str]] = []  # what happened, and what happens then


def fault(name: str, happens: str) -> Callable[[Any], Any]:
    """A test of a fault, which is a row of the page."""
    FAULTS.append((name, happens))
    return lambda test: test


class Whole(NamedTuple):
    """A run that nobody killed."""

    folder: Path
    left: dict[str, Any]
    start: float  # seconds before its first epoch ended


def only(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def assert_same(folder: Path, whole: dict[str, Any]) -> None:
    assert differing(left(folder), whole) == [], folder


def two_at_a_time(function: Callable[[int], Any], count: int) -> list[Any]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(function, range(count)))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Two at a time, as those that are killed will be; they are the same to the bit."""
    folders = [tmp_path_factory.mktemp("whole") for _ in range(2)]
    for status, output in two_at_a_time(lambda i: ran("--out", folders[i], core=i), 2):
        assert status == 0, output
    first, second = (left(only(folder)) for folder in folders)
    assert differing(first, second) == []
    assert first["metrics.jsonl"][-1]["kept"] > 3  # so that the best epoch has to be remembered
    return Whole(only(folders[0]), first, rows(only(folders[1]))[0]["seconds"] + 1)


# Kills


ANEW = "before config.json was written: to be started anew"
EARLY = "before the first checkpoint"
SAVING = "in the middle of a save"
BETWEEN = "between saves"
LATE = "after the last save"
AFTER = "after the end"
PLACES = ANEW, EARLY, SAVING, BETWEEN, LATE, AFTER


class Kill(NamedTuple):
    """Where a kill fell, how the run that went on ended, and its folder; None where it had none."""

    fell: str
    status: int
    output: str
    folder: Path | None


def fallen(process: "subprocess.Popen[str]", folder: Path | None) -> str:
    """What a run was at when it was killed, by what it left."""
    if process.returncode == 0:
        return AFTER
    if folder is None or not (folder / "config.json").exists():
        return ANEW
    names = [path.name for path in folder.glob("checkpoints/*")]
    if any("." in name for name in names):
        return SAVING
    if not names:
        return EARLY
    last = max(int(name.rsplit("-", 1)[1]) for name in names)
    return BETWEEN if last < 6 * SMALL["epochs"] else LATE


def killed(moment: tuple[int, float], core: int, *options: Any) -> "subprocess.Popen[str]":
    """A run that is killed so many seconds after its start, or after some epochs."""
    epochs, seconds = moment
    process = start(*options, core=core)
    folder = Path(options[1])
    while process.poll() is None and lines(folder) < epochs:
        time.sleep(0.005)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    ended(process)
    return process


def lines(parent: Path) -> int:
    """Of metrics.jsonl, in the one run of a folder."""
    return sum(path.read_bytes().count(b"\n") for path in parent.glob("*/metrics.jsonl"))


def moments(count: int, start: float) -> list[tuple[int, float]]:
    """Over the whole of a run: a quarter before the first epoch ends, the others by epochs, since
    seconds depend on what else the machine does."""
    draw, found = random.Random(SEED), []
    for number in range(count):
        place = (number + draw.random()) / count  # evenly
        if place < 0.25:
            found.append((0, 4 * place * start))
        else:
            found.append((int(1 + (place - 0.25) / 0.75 * SMALL["epochs"]), 0.2 * draw.random()))
    return found


def killed_and_resumed(moment: tuple[int, float], number: int, parent: Path) -> Kill:
    core = number % 2
    process = killed(moment, core, "--out", parent)
    folder = only(parent) if parent.exists() else None
    fell = fallen(process, folder)
    status, output = ran("--resume", parent, core=core)
    return Kill(fell, status, output, folder)


@pytest.mark.long
@fault(
    "kill -9, at any moment",
    "`--resume` goes on after the last epoch that was saved, or from the beginning, and ends with "
    "the same parameters, states and metrics to the bit",
)
def test_killed_at_any_moment_it_goes_on_to_the_same_end(
    whole: Whole, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = moments(KILLS, whole.start)
    kills = two_at_a_time(lambda i: killed_and_resumed(chosen[i], i, tmp_path / str(i)), KILLS)
    for kill in kills:
        if kill.fell == ANEW:
            assert kill.status == 2, kill.output
            assert "resume: expected" in kill.output
        else:
            assert kill.status == 0, kill.output
            assert kill.folder
            assert_same(kill.folder, whole.left)
    counts = Counter(kill.fell for kill in kills)
    with capsys.disabled():
        fell = ", ".join(f"{counts[where]} {where}" for where in PLACES if counts[where])
        print(f"\n{KILLS} kills, seed {SEED}: {fell}")
    assert counts[SAVING] + counts[BETWEEN] >= KILLS / 3


@pytest.mark.long
def test_killed_again_and_again_it_comes_to_the_same_end(whole: Whole, tmp_path: Path) -> None:
    draw = random.Random(SEED)
    killed((1, 0.2 * draw.random()), 0, "--out", tmp_path)
    for epochs in (4, 8):
        killed((epochs, 0.2 * draw.random()), 0, "--resume", tmp_path)
    status, output = ran("--resume", tmp_path)
    assert status == 0, output
    assert_same(only(tmp_path), whole.left)


# Signals


@pytest.mark.long
@fault(
    "SIGTERM, or Ctrl-C",
    "the epoch is ended and saved, and its figures are drawn; the status is 143 or 130. "
    "`--resume` goes on as above",
)
def test_asked_to_stop_it_saves_and_can_go_on(whole: Whole, tmp_path: Path) -> None:
    def stopped(number: int) -> None:
        asked, parent = (signal.SIGINT, signal.SIGTERM)[number], tmp_path / str(number)
        process = start("--out", parent, core=number)
        while process.poll() is None and lines(parent) < 3:
            time.sleep(0.005)
        process.send_signal(asked)
        status, output = ended(process)
        assert status == 128 + asked, output
        folder = only(parent)
        *epochs, last = rows(folder)
        done = len(epochs)
        assert 3 <= done < SMALL["epochs"]
        assert f"Stopped after epoch {done}, as asked. Go on with --resume {folder}" in output
        assert last["kept"] <= done
        for name in ("net.npz", "curves.png", "deltas.png", "hardest.png"):
            assert (folder / name).is_file()
        status, output = ran("--resume", folder, core=number)
        assert status == 0, output
        assert f"It goes on in {folder}, after epoch {done}." in output
        assert_same(folder, whole.left)

    two_at_a_time(stopped, 2)


@fault("a second of them", "the run ends at once, as by kill -9")
@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_is_no_longer_caught(first: int) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with run.stop_between_epochs() as asked:
        assert [signal.getsignal(number) for number in numbers] != before
        os.kill(os.getpid(), first)
        assert asked == [first]
        assert [signal.getsignal(number) for number in numbers] == before
    assert run.stopped(asked) == 128 + first
    with run.stop_between_epochs():
        pass
    assert [signal.getsignal(number) for number in numbers] == before


# Runs that are over


def test_a_run_that_is_done_only_draws_again(whole: Whole, copy: Path) -> None:
    config = (copy / "config.json").read_bytes()
    (copy / "curves.png").unlink()
    status, output = ran("--resume", copy)
    assert status == 0, output
    assert_same(copy, whole.left)
    assert (copy / "curves.png").is_file()
    assert (copy / "config.json").read_bytes() == config
    assert rows(copy)[:-1] == rows(whole.folder)[:-1]  # the seconds too


def test_more_epochs_are_those_of_a_run_that_had_them_from_the_start(
    whole: Whole, tmp_path: Path
) -> None:
    status, output = ran("--epochs", 5, "--out", tmp_path)
    assert status == 0, output
    folder = only(tmp_path)
    status, output = ran("--resume", folder, "--epochs", SMALL["epochs"])
    assert status == 0, output
    assert_same(folder, whole.left)
    config = json.loads((folder / "config.json").read_text())
    assert config["options"]["epochs"] == SMALL["epochs"]
    assert config["resumed"] == [{"after": 5, "epochs": [5, 12]}]
    seconds = [row["seconds"] for row in rows(folder)[:-1]]
    assert seconds == sorted(seconds)


# Disks and files


@fault(
    "the disk is full, or a file grows too large",
    "the run ends with status 1 and says where; what was saved before is whole, and `--resume` "
    "goes on from there",
)
def test_a_full_disk_ends_a_run_that_can_go_on(whole: Whole, tmp_path: Path) -> None:
    process = start("--out", tmp_path)
    while process.poll() is None and lines(tmp_path) < 4:
        time.sleep(0.005)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4000, 4000))
    status, output = ended(process)
    assert status == 1, output
    (folder,) = tmp_path.iterdir()
    assert re.search(rf"File too large.*{folder}/checkpoints", output)
    assert f"Go on with --resume {folder}" in output
    net, optimizer, _ = small_run.parts_of(folder)
    assert len(jb.Checkpoints(folder / "checkpoints", net, optimizer).steps) >= 2
    status, output = ran("--resume", folder)
    assert status == 0, output
    assert_same(folder, whole.left)


@fault("the folder cannot be written to", "the same")
@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="where not even root can write")
def test_a_folder_that_takes_nothing_ends_the_run(whole: Whole, copy: Path) -> None:
    kept = shutil.move(copy / "checkpoints", copy / "kept")
    (copy / "net.npz").unlink()
    (copy / "checkpoints").symlink_to("/proc/self/fdinfo")
    status, output = ran("--resume", copy)
    assert status == 1, output
    assert f"Go on with --resume {copy}" in output
    (copy / "checkpoints").unlink()
    shutil.move(kept, copy / "checkpoints")
    status, output = ran("--resume", copy)
    assert status == 0, output
    assert_same(copy, whole.left)


def newest(folder: Path) -> Path:
    return max(path for path in (folder / "checkpoints").iterdir())


def largest(folder: Path) -> Path:
    """The file with the most numbers in it."""
    return max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)


def cut_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1 << 4
    file.write_bytes(data)


DAMAGED = "a warning names the file; `--resume` goes on from the one before, to the same end"


@pytest.mark.long(1)
@fault("a file of the newest checkpoint is cut short, or gone", DAMAGED)
@fault("a bit of the newest checkpoint flips", DAMAGED)
@fault("metrics.jsonl is cut short", "its lines are in the checkpoint, and written anew")
@pytest.mark.parametrize("damage", [cut_short, flip_bit, Path.unlink], ids=["cut", "bit", "gone"])
def test_a_damaged_checkpoint_is_passed_over(
    damage: Callable[[Path], Any], whole: Whole, copy: Path
) -> None:
    file = largest(newest(copy))
    damage(file)
    (copy / "metrics.jsonl").write_bytes((copy / "metrics.jsonl").read_bytes()[:-300])
    status, output = ran("--resume", copy)
    assert status == 0, output
    assert re.search(rf"step 72 is damaged, its .*{file.name}", output)
    assert f"after epoch {SMALL['epochs'] - 1}." in output
    assert_same(copy, whole.left)


@fault(
    "there is no checkpoint yet",
    "`--resume` begins from the beginning, in the same folder, and says so",
)
def test_without_a_checkpoint_it_begins_again(whole: Whole, copy: Path) -> None:
    shutil.rmtree(copy / "checkpoints")
    (copy / "net.npz").unlink()
    status, output = ran("--resume", copy)
    assert status == 0, output
    assert f"It goes on in {copy}, from the beginning: no epoch was saved." in output
    assert_same(copy, whole.left)


# What cannot go on says why


@pytest.fixture
def copy(whole: Whole, tmp_path: Path) -> Path:
    """Of the run that nobody killed, free to be damaged."""
    return shutil.copytree(whole.folder, tmp_path / whole.folder.name)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What is said of options that do not fit."""

    def of(folder: Path, **options: Any) -> str:
        with small_run.spared(), jax.numpy_dtype_promotion("standard"):
            status = digits.main(digits.Options(resume=folder, **options))
        said = capsys.readouterr().out
        assert status == 2, said
        return said

    return of


def edit(folder: Path, **options: Any) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["options"] |= options
    path.write_text(json.dumps(config))


@fault("all checkpoints are damaged", "an error says of each what is wrong; nothing is begun")
def test_where_none_is_whole_each_is_told(copy: Path, refused: Callable[..., str]) -> None:
    for folder in (copy / "checkpoints").iterdir():
        flip_bit(largest(folder))
    said = refused(copy)
    for step in (60, 66, 72):
        assert f"step {step} is damaged" in said


OTHER = "an error tells both, before anything is read"


@fault("the checkpoint is of another network", OTHER)
@fault("the checkpoint is of another optimizer", OTHER)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes": [9]}, r"net: expected .*9.*, got .*8.*in the checkpoint of step 72"),
        ({"hidden": ["tanh"]}, r"net: expected .*tanh.*, got .*relu"),
        ({"optimizer": "sgd"}, r"optimizer: expected .*, got .*scale_by_adam"),
    ],
)
def test_another_network_or_optimizer_is_refused(
    options: dict[str, Any], words: str, copy: Path, refused: Callable[..., str]
) -> None:
    edit(copy, **options)
    assert re.search(words, refused(copy))


@fault("the checkpoint is of another rule", OTHER)
def test_another_rule_is_refused(copy: Path) -> None:
    net, optimizer, _ = small_run.parts_of(copy)
    rule = jb.Rule("halved", lambda s: 0.5 * (s.w.T @ s.delta) * s.slope)
    state = jb.init_state(net, optimizer, jax.random.key(0), rule=rule)
    checkpoints = jb.Checkpoints(copy / "checkpoints", net, optimizer, rule=rule)
    with pytest.raises(ValueError, match=r"rule: expected halved, .*got backpropagation"):
        checkpoints.restore(state)


@fault("the checkpoint is of a newer format", "an error names the version that wrote it")
def test_a_newer_format_is_refused(copy: Path, refused: Callable[..., str]) -> None:
    for folder in (copy / "checkpoints").iterdir():
        told = sealed.described(folder) | {"format": 99}
        sealed.seal(folder, told, without=["_CHECKPOINT_METADATA", sealed.NAME])
    assert re.search("expected format 1 .*got 99: written by jbackprop", refused(copy))


@fault("config.json is cut short", "an error says so")
def test_a_config_cut_short_is_told(copy: Path, refused: Callable[..., str]) -> None:
    cut_short(copy / "config.json")
    assert re.search(r"config.json: expected a whole file, got one cut short", refused(copy))


@fault("there is no config.json yet, or no run", "the same: it is to be started anew")
def test_a_folder_that_is_no_run_is_told(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "expected the folder of a run, or of runs, got" in refused(tmp_path / "none")
    assert "where none is" in refused(tmp_path)
    (tmp_path / "2026-01-02T03-04-05").mkdir()
    assert "ended before that was written: start it anew" in refused(tmp_path)


@fault(
    "another option is given than the run's",
    "an error tells both; more `--epochs` go on further",
)
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": 0.5}, "learning_rate: expected 0.01, as the run in .* has it, got 0.5"),
        ({"sizes": (3,)}, r"sizes: expected \[8\], as the run in .* has it, got \[3\]"),
        ({"load": Path("net.npz")}, "load: expected None, as the run in .* got 'net.npz'"),
        ({"epochs": 11}, "epochs: expected at least the 12 that are done, got 11"),
    ],
)
def test_another_option_than_the_runs_is_refused(
    options: dict[str, Any], words: str, copy: Path, refused: Callable[..., str]
) -> None:
    assert re.search(words, refused(copy, **options))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"nonsense": 1}, "expected a run of this program, got one with the options nonsense"),
        ({"epochs": "many"}, "epochs: got 'many' in .*config.json"),
        ({"optimizer": 3}, "optimizer: got 3 in .*config.json"),
    ],
)
def test_a_config_of_something_else_is_refused(
    options: dict[str, Any], words: str, copy: Path, refused: Callable[..., str]
) -> None:
    edit(copy, **options)
    assert re.search(words, refused(copy))


def test_a_run_without_checkpoints_that_ended_is_not_begun_again(
    copy: Path, refused: Callable[..., str]
) -> None:
    shutil.rmtree(copy / "checkpoints")
    assert "expected checkpoints beside the net.npz" in refused(copy)


def test_the_newest_run_of_a_folder_is_meant(tmp_path: Path) -> None:
    names = [f"2026-01-02T03-04-05{more}" for more in ("", "-2", "-10")] + ["2025-12-31T23-59-59"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
    (tmp_path / "notes").mkdir()
    assert resuming.folder_of(tmp_path).name == "2026-01-02T03-04-05-10"
    assert resuming.folder_of(tmp_path / names[0]).name == names[0]


def test_what_is_no_longer_as_it_was_is_noted(copy: Path) -> None:
    path = copy / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"commit": "old", "device": "another"}))
    resuming.note(copy, digits.Options(epochs=SMALL["epochs"]), after=7)
    noted = json.loads(path.read_text())
    (entry,) = noted.pop("resumed")
    assert noted == config | {"commit": "old", "device": "another"}
    assert entry == {
        "after": 7, "commit": ["old", run.here()["commit"]],
        "device": ["another", jax.devices()[0].device_kind],
    }  # fmt: skip


def test_what_is_rewritten_is_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"old")
    with (
        mock.patch.object(Path, "replace", side_effect=OSError("full")),
        pytest.raises(OSError, match="full"),
    ):
        run.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    run.write_whole(path, b"new")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("metrics.jsonl", b"new")]


def test_the_page_of_faults_has_the_rows_of_this_table() -> None:
    page = (ROOT / "docs/faults.md").read_text("utf-8")
    table = ["| fault | what happens |", "| --- | --- |", *(f"| {n} | {h} |" for n, h in FAULTS)]
    assert "\n\n" + "\n".join(table) + "\n\n" in page, "\n".join(table)
