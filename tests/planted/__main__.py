"""Plants every fault by turns, and runs the tests that cover its line: which survive?

    python -m tests.planted map        which test runs which line; again when tests change
    python -m tests.planted all        every fault, or those of --only files; goes on where it was
    python -m tests.planted report     killed and surviving, by file

What a test covers is what is traced while it runs, so that the map is made with nothing compiled
before each test.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from tests.planted.faults import Fault, all_faults

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "jbackprop"
BUILD = ROOT / "build" / "planted"
LIMIT = 120  # seconds for the tests of one fault
WORKERS = os.cpu_count() or 1


def workspace(name: str) -> Path:
    """A copy of the package and its tests, in which a fault is planted."""
    folder = BUILD / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for part in ("jbackprop", "tests", "experiments"):
        skip = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / part, folder / part, ignore=skip)
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, folder / part)
    return folder


def pytest(folder: Path, *arguments: str, limit: float | None = None) -> int | None:
    """The exit status of pytest there; None where it ran out of time."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            return None


def make_map() -> None:
    """Which tests run which line, and how long each takes: build/planted/map.json."""
    folder = workspace("map")
    status = pytest(
        folder, "-p", "tests.planted.apart", "-n", str(WORKERS), "--dist", "loadfile", "--cov",
        "--cov-context=test", "--cov-report=json:covered.json", "--ignore=tests/experiments",
        "--ignore=tests/test_mutants.py", "--deselect=README.md",
    )  # fmt: skip
    if status:
        raise SystemExit((folder / "output.txt").read_text()[-3000:])
    report = folder / "covered.json"
    subprocess.run(
        [sys.executable, "-m", "coverage", "json", "--show-contexts", "-q", "-o", report],
        cwd=folder, check=True,
    )  # fmt: skip
    files = json.loads(report.read_text())["files"]
    covered = {
        path.removeprefix("jbackprop/"): {
            line: sorted({context.split("|")[0] for context in contexts if context})
            for line, contexts in file["contexts"].items()
        }
        for path, file in files.items()
    }
    seconds = json.loads((folder / "seconds.json").read_text())
    (BUILD / "map.json").write_text(json.dumps({"covered": covered, "seconds": seconds}))


def tests_of(fault: Fault, mapped: dict[str, dict]) -> list[str]:
    """The tests that cover its line, the quickest first."""
    lines = mapped["covered"].get(fault.path, {})
    tests = lines.get(str(fault.line), [])
    return sorted(tests, key=lambda test: mapped["seconds"].get(test, 0.0))


def tried(fault: Fault, folder: Path, tests: list[str]) -> str:
    """Killed, by time or by a test; or survived."""
    planted = folder / "jbackprop" / fault.path
    planted.write_text(fault.text, "utf-8")
    try:
        chosen = tests or ["tests", "--ignore=tests/experiments", "--ignore=tests/test_mutants.py"]
        status = pytest(folder, "-x", "-p", "no:randomly", *chosen, limit=LIMIT)
    finally:
        shutil.copy(PACKAGE / fault.path, planted)
    return {None: "out of time", 0: "survived"}.get(status, "killed")


def run_all(only: list[str]) -> None:
    """Every fault that has no verdict yet; verdicts are written as they come."""
    mapped = json.loads((BUILD / "map.json").read_text())
    verdicts_file = BUILD / "verdicts.json"
    verdicts = json.loads(verdicts_file.read_text()) if verdicts_file.exists() else {}
    faults = [
        fault
        for fault in all_faults(PACKAGE)
        if fault.name not in verdicts and (not only or fault.path in only)
    ]
    folders: Queue[Path] = Queue()
    for i in range(WORKERS):
        folders.put(workspace(f"worker-{i}"))

    def one(fault: Fault) -> tuple[Fault, str]:
        folder = folders.get()
        try:
            return fault, tried(fault, folder, tests_of(fault, mapped))
        finally:
            folders.put(folder)

    begin = time.monotonic()
    with ThreadPoolExecutor(WORKERS) as pool:
        for done, (fault, verdict) in enumerate(pool.map(one, faults), start=1):
            verdicts[fault.name] = verdict
            verdicts_file.write_text(json.dumps(verdicts, indent=0))
            if verdict == "survived":
                print(f"{fault.name}, line {fault.line}\n  {fault.shown[0]}\n  {fault.shown[1]}")
            if done % 20 == 0:
                each = (time.monotonic() - begin) / done
                print(f"-- {done} of {len(faults)}, {each:.1f} s each", flush=True)


def report() -> None:
    """Counts by file, and every survivor."""
    verdicts = json.loads((BUILD / "verdicts.json").read_text())
    faults = {fault.name: fault for fault in all_faults(PACKAGE)}
    counts = {path: Counter() for path in sorted({fault.path for fault in faults.values()})}
    for name, verdict in verdicts.items():
        if name in faults:
            counts[faults[name].path][verdict] += 1
    for path, count in counts.items():
        if total := count.total():
            killed = total - count["survived"]
            print(f"{path:28} {killed:4} of {total:4} killed, {100 * killed / total:5.1f} %")
    for name, verdict in verdicts.items():
        if verdict == "survived" and name in faults:
            fault = faults[name]
            print(f"{name}, line {fault.line}\n  {fault.shown[0]}\n  {fault.shown[1]}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.planted")
    parser.add_argument("what", choices=["map", "all", "report"])
    parser.add_argument("--only", nargs="*", default=[], help="files, such as core/heads.py")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    {"map": make_map, "all": lambda: run_all(options.only), "report": report}[options.what]()


if __name__ == "__main__":
    main()
