"""Which tests run which line, and in which order to ask them about a fault.

A line counts as run by a test where it is traced in it. So nothing may be compiled before: as the
plugin of a run, this file has every test forget what the ones before it compiled.
"""

import gc
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from functools import _lru_cache_wrapper
from importlib.util import find_spec
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

from tests.planted import verdicts
from tests.planted.faults import Fault

ROOT = Path(__file__).parents[2]
# of the package that is tested, which may be installed elsewhere; found, and not yet imported
PACKAGE = Path(find_spec("jbackprop").origin).parent  # pyright: ignore
BUILD = ROOT / "build" / "planted"
MAP = BUILD / "map.json"
# The benchmark's tests are slow, and the mutants' change files of their own. The README is text.
LEFT_OUT = (
    "--ignore=tests/experiments/test_benchmark.py", "--ignore=tests/test_mutants.py",
    "--ignore=tests/test_planted.py", "--deselect=README.md",
)  # fmt: skip

# What a file's tests are called where not as it is.
CALLED = {
    "formulas": ("activations",), "heads": ("costs",), "records": ("yours",), "rules": ("yours",),
    "state": ("train",), "step": ("train",), "optimizer": ("optimizers",),
    **dict.fromkeys(
        ("norms", "moments", "spread", "batch_size", "groups", "statistics", "diagnostics"),
        ("ways", "extremes", "statistics"),
    ),
    "clipping": ("extremes",),
}  # fmt: skip

OURS = ("jbackprop", "test_")
_seconds: dict[str, float] = {}


def forget() -> None:
    """Nothing traced, compiled or remembered by the package or a test stays."""
    jax.clear_caches()
    for kept in gc.get_objects():
        if type(kept) is _lru_cache_wrapper and kept.__module__.startswith(OURS):
            kept.cache_clear()


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    forget()


def pytest_runtest_logreport(report: Any) -> None:
    """How long each test takes, in the process that collects the reports."""
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration


def pytest_sessionfinish(session: Any) -> None:
    if not hasattr(session.config, "workerinput"):
        (BUILD / "seconds.json").write_text(json.dumps(_seconds))


class Asked(NamedTuple):
    """Who is asked about a fault.

    Attributes:
        tests: that run its line, in this order, until one fails.
        seconds: after which no other is asked.
        at_import: whether its line runs at import alone, even where a function is called there.
    """

    tests: list[str]
    seconds: float
    at_import: bool


def plan(faults: list[Fault], seconds: float) -> dict[str, Asked]:
    """{name: the test that found it before, and those that run its line}.

    Where none runs it, since it runs at import, those of its file."""
    killers = verdicts.killers()
    covered, took = itemgetter("covered", "seconds")(json.loads(MAP.read_text()))
    of_file = {path: _dedication(covered.get(path, {})) for path in {f.path for f in faults}}
    found = {}
    for fault in faults:
        lines, (first, last) = covered.get(fault.path, {}), fault.lines
        tests = {test for i in range(first, last + 1) for test in lines.get(str(i), [])}
        at_import = not tests
        tests = tests or {test for tests in lines.values() for test in tests} or {*took}
        order = _in_order(Path(fault.path).stem, tests, of_file[fault.path], took)
        first = [killers[fault.name]] if fault.name in killers else []
        found[fault.name] = Asked([*dict.fromkeys(first + order)], seconds, at_import)
    return found


def _function(test: str) -> str:
    return test.split("[")[0]


def _dedication(lines: dict[str, list[str]]) -> Counter[str]:
    """{test function: how many lines of a file it runs, each shared with all that do}."""
    dedication = Counter[str]()
    for tests in lines.values():
        functions = {_function(test) for test in tests}
        dedication.update(dict.fromkeys(functions, 0.0))
        for function in functions:
            dedication[function] += 1 / len(functions)  # pyright: ignore
    return dedication


def _in_order(
    name: str, tests: set[str], dedication: Counter[str], took: dict[str, float]
) -> list[str]:
    """First those of a file's own, the quickest first; then all cases of the test functions most
    dedicated to it, for the seconds that they take; of the others one case each, and the rest.

    Cases of one function stand together: they share what they compile."""
    cases: dict[str, list[str]] = {}
    quick = sorted(tests, key=lambda test: took.get(test, 0.0))
    for test in quick:
        cases.setdefault(_function(test), []).append(test)
    worth = lambda f: dedication[f] / (0.1 + sum(took.get(test, 0.0) for test in cases[f]))
    files = [f"/test_{each}.py" for each in (*CALLED.get(name, ()), name)]
    quickest = sorted(cases, key=lambda f: took.get(cases[f][0], 0.0))
    own = [test for file in files for f in quickest if file in f for test in sorted(cases[f])]
    most = [test for f in sorted(cases, key=worth, reverse=True)[:8] for test in cases[f]]
    firsts = [each[0] for each in cases.values()]
    return [*dict.fromkeys(own + most + firsts + quick)]


def make(chosen: Sequence[str] = ()) -> None:
    """Run every test alone, as it were, and write which lines it ran: build/planted/map.json. Of
    the tests chosen, what was known of all others stays."""
    data = {**os.environ, "COVERAGE_FILE": str(BUILD / "coverage")}
    python = [sys.executable, "-m"]
    run = [
        *python, "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.planted.mapped",
        "-n", "auto", "--dist", "loadfile", "--cov", "--cov-context=test", "--cov-report=",
        *(chosen or LEFT_OUT),
    ]  # fmt: skip
    subprocess.run(run, cwd=ROOT, env=data, check=True)
    report = BUILD / "covered.json"
    written = [*python, "coverage", "json", "--show-contexts", "-q", "-o", str(report)]
    subprocess.run(written, cwd=ROOT, env=data, check=True)
    seconds = json.loads((BUILD / "seconds.json").read_text())
    mapped = {*seconds}
    known = json.loads(MAP.read_text()) if chosen else {"covered": {}, "seconds": {}}
    covered: dict[str, dict[str, list[str]]] = {}
    for path, file in json.loads(report.read_text())["files"].items():
        name = Path(path).relative_to("jbackprop").as_posix()
        before = known["covered"].get(name, {})
        covered[name] = {
            line: sorted(
                {context.split("|")[0] for context in file["contexts"].get(line, []) if context}
                | {test for test in before.get(line, []) if test not in mapped}
            )
            for line in before.keys() | file["contexts"].keys()
        }
    others = {t: s for t, s in known["seconds"].items() if t not in mapped}
    MAP.write_text(json.dumps({"covered": covered, "seconds": others | seconds}))
