"""Plants every fault by turns, and asks the tests that run its line: which survive?

    python -m tests.planted map              which test runs which line; --only tests/new.py adds
    python -m tests.planted all              every fault; goes on where it was
    python -m tests.planted again            the survivors anew, say with --seconds 40
    python -m tests.planted report           killed and surviving, by file
    python -m tests.planted sample           the faults of sample.txt: all must be killed

Files or names of faults may be chosen: `all --only core/heads.py`.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from tests.planted import mapped, verdicts
from tests.planted.faults import Fault, all_faults
from tests.planted.mapped import BUILD, PACKAGE, ROOT, Asked

ALONE, LIMIT = 200, 300.0  # tests, and seconds, for one that shows at import
SAMPLE = Path(__file__).parent / "sample.txt"
WORKERS = os.cpu_count() or 1
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")


def in_one_process(
    plan: dict[str, Asked], name: str, chosen: Sequence[str] = mapped.LEFT_OUT
) -> None:
    """Verdicts on faults planted by turns, of the tests chosen; anew where one ends the process."""
    into, written, output = (BUILD / f"{name}{end}" for end in (".jsonl", ".plan", ".txt"))
    while plan:
        written.write_text(json.dumps(plan))
        before = len(into.read_text().splitlines()) if into.exists() else 0
        with output.open("w") as printed:
            plugin = ("-p", "tests.planted.planter", f"--plan={written}", f"--verdicts={into}")
            command = [*PYTEST, *plugin, *chosen]
            subprocess.run(command, cwd=ROOT, stdout=printed, stderr=printed, check=False)
        lines = into.read_text().splitlines()[before:] if into.exists() else []
        if not lines:
            raise SystemExit(output.read_text()[-3000:])
        seen = {json.loads(line)["name"] for line in lines}
        plan = {name: asked for name, asked in plan.items() if name not in seen}


def workspace(number: int) -> Path:
    """A copy of the package and its tests, in whose files faults are planted."""
    folder = BUILD / f"copy-{number}"
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("jbackprop", "tests", "experiments"):
        skip = shutil.ignore_patterns("__pycache__", "results")
        shutil.copytree(ROOT / part, folder / part, ignore=skip)
    for part in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / part, folder / part)
    return folder


def collected() -> set[str]:
    """The tests that there are now: one may have gone since the map was made."""
    found = [*PYTEST, "--collect-only", *mapped.LEFT_OUT]
    listed = subprocess.run(found, cwd=ROOT, capture_output=True, text=True, check=True)
    return {line for line in listed.stdout.splitlines() if "::" in line}


def in_its_own_process(fault: Fault, asked: Asked, folder: Path, into: Path) -> None:
    """The verdict on a fault that shows at import."""
    begin, path = time.monotonic(), folder / "jbackprop" / fault.path
    path.write_text(fault.text, "utf-8")
    names = folder / "tests.txt"
    tests = asked.tests[:ALONE]
    names.write_text("\n".join(tests))
    command, said = [*PYTEST, "-x", f"@{names}"], folder / "output.txt"
    try:
        with said.open("w") as output:
            run = subprocess.run(
                command, cwd=folder, stdout=output, stderr=output, timeout=LIMIT, check=False
            )
        verdict = "killed" if run.returncode else "survived"
    except subprocess.TimeoutExpired:
        verdict = "out of time"
    shutil.copy(PACKAGE / fault.path, path)
    if verdict == "killed":  # by the fault, and not by a test that is not there
        found = [*PYTEST, "--collect-only", f"@{names}"]
        subprocess.run(found, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - |$)", said.read_text("utf-8"), re.M)
    by = failed[0] if verdict == "killed" and failed and failed[0] in tests else None
    took = time.monotonic() - begin
    verdicts.ended(into, fault, verdict, by, len(tests), len(asked.tests), took)


def ask(faults: list[Fault], seconds: float) -> None:
    """Verdicts on all of them."""
    begin, plan = time.monotonic(), mapped.plan(faults, seconds)
    names, folders = list(plan), Queue[Path]()
    with ThreadPoolExecutor(WORKERS) as pool:
        shares = [{name: plan[name] for name in names[i::WORKERS]} for i in range(WORKERS)]
        list(pool.map(in_one_process, shares, [f"worker-{i}" for i in range(WORKERS)]))
        found = verdicts.read(BUILD, faults)
        for i in range(WORKERS):
            folders.put(workspace(i))
        there = collected()

        def alone(fault: Fault) -> None:
            folder, asked = folders.get(), plan[fault.name]
            tests = [test for test in asked.tests if test in there]
            into = BUILD / f"{folder.name}.jsonl"
            in_its_own_process(fault, asked._replace(tests=tests), folder, into)
            folders.put(folder)

        list(pool.map(alone, [f for f in faults if found[f.name]["verdict"] == "at import"]))
    print(f"{len(faults)} faults in {(time.monotonic() - begin) / 60:.0f} minutes")


def report(faults: list[Fault]) -> None:
    """Counts by file of what was asked and is not equivalent, and every survivor."""
    found, excused = verdicts.read(BUILD, faults), verdicts.equivalent()
    counts = {fault.path: Counter[str]() for fault in faults}
    for fault in faults:
        verdict = found.get(fault.name, {"verdict": "not asked"})["verdict"]
        if verdict == "survived":
            verdict = "equivalent" if fault.name in excused else verdict
        counts[fault.path][verdict if verdict != "out of time" else "killed"] += 1
        if verdict == "survived":
            asked, of = found[fault.name]["asked"], found[fault.name]["of"]
            print(f"{fault.name}, line {fault.lines[0]}, {asked} of {of} tests")
            print(f"  {fault.shown[0]}\n  {fault.shown[1]}")
    counts["in all"] = sum(counts.values(), Counter())
    for path, count in counts.items():
        faults_indeed = count.total() - count["not asked"] - count["equivalent"]
        share = 100 * count["killed"] / max(1, faults_indeed)
        others = ", ".join(f"{n} {verdict}" for verdict, n in count.items() if verdict != "killed")
        killed = f"{count['killed']:4} of {faults_indeed:4} killed {share:5.1f} %"
        print(f"{path:28} {killed}  {others}")


def sample() -> None:
    """The faults of the sample, by the tests that are known to find them: all must be found."""
    killers, names = verdicts.killers(), SAMPLE.read_text("utf-8").splitlines()
    plan = {name: Asked([killers[name]], 120.0, False) for name in names}
    folder = BUILD / "sample"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    in_one_process(plan, "sample/one", sorted({killers[name] for name in names}))
    found = verdicts.read(folder, all_faults(PACKAGE))
    for name in names:
        print(f"{found[name]['verdict']:12} {name}  {found[name]['shown'][1]}")
    if {record["verdict"] for record in found.values()} != {"killed"}:
        raise SystemExit("A planted fault was not found: see which test should have.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.planted")
    parser.add_argument("what", choices=["map", "all", "again", "report", "sample"])
    parser.add_argument("--only", nargs="*", default=[], help="files or names of faults, or tests")
    parser.add_argument("--seconds", type=float, default=8.0, help="in which to find a fault")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    if options.what == "sample":
        return sample()
    if options.what == "map":
        return mapped.make(options.only)
    everything, chosen = all_faults(PACKAGE), {*options.only}
    faults = [f for f in everything if not chosen or {f.path, f.name} & chosen]
    found = verdicts.read(BUILD, faults)
    verdict = lambda fault: found.get(fault.name, {}).get("verdict")
    if options.what == "all":
        unknown = [fault for fault in faults if verdict(fault) in (None, "at import")]
        ask(unknown, options.seconds)
    elif options.what == "again":
        excused = verdicts.equivalent()
        survived = [fault for fault in faults if verdict(fault) == "survived"]
        ask([fault for fault in survived if fault.name not in excused], options.seconds)
    verdicts.keep_killers(verdicts.read(BUILD, everything), everything)
    report(faults)


if __name__ == "__main__":
    main()
