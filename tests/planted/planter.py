"""A pytest plugin that plants faults by turns in the package, and asks the tests of each.

All is imported and collected once. A fault then changes the code of the functions that are there,
which takes a second and not a new process; where a fault changes what runs at import, it is left
to one. A test that fails, or that takes too long, has killed it.
"""

import faulthandler
import gc
import importlib
import inspect
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import hypothesis

from tests.planted import mapped, verdicts
from tests.planted.faults import Fault, all_faults


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--plan", help="a file that says which tests to ask about which faults")
    parser.addoption("--verdicts", help="a file to write them to")


def _inner(code: CodeType) -> list[CodeType]:
    return [const for const in code.co_consts if isinstance(const, CodeType)]


def _own(code: CodeType) -> CodeType:
    """It without the functions within it, and without where in its lines what stands."""
    consts = tuple(const for const in code.co_consts if not isinstance(const, CodeType))
    return code.replace(co_consts=consts, co_linetable=b"")


def changed(before: CodeType, after: CodeType) -> dict[CodeType, CodeType] | None:
    """{a function's code: with the fault} of all that differ; None where it is not a function's."""
    found: dict[CodeType, CodeType] = {}
    inner, others = _inner(before), _inner(after)
    at_import = not before.co_flags & inspect.CO_OPTIMIZED  # a module's or a class's
    if at_import and (_own(before) != _own(after) or len(inner) != len(others)):
        return None
    if [code.co_name for code in inner] == [code.co_name for code in others]:
        for one, other in zip(inner, others, strict=True):
            within = changed(one, other)
            if within is None:
                return None
            found |= within
    if before != after and not at_import:
        if before.co_freevars != after.co_freevars:
            return None
        found[before] = after
    return found


@contextmanager
def planted(fault: Fault) -> Iterator[bool]:
    """With the fault in the package as it was imported. False where that cannot be done."""
    name = "jbackprop." + fault.path.removesuffix(".py").replace("/", ".")
    module = importlib.import_module(name)
    path, compiled = module.__file__ or "", module.__spec__.loader.source_to_code  # pyright: ignore
    codes = changed(compiled(Path(path).read_bytes(), path), compiled(fault.text.encode(), path))
    if codes is None:
        yield False
        return
    functions = [
        (each, each.__code__)
        for each in gc.get_objects()
        if type(each) is FunctionType
        and each.__code__.co_filename == path
        and each.__code__ in codes
    ]
    for function, code in functions:
        function.__code__ = codes[code]
    mapped.forget()
    try:
        yield True
    finally:
        for function, code in functions:
            function.__code__ = code
        mapped.forget()


class Planter:
    """The loop over faults, in place of pytest's over tests."""

    def __init__(self, plan: dict[str, mapped.Asked], into: Path) -> None:
        self.plan, self.into, self.failed = plan, into, False
        self.sound: dict[str, bool] = {}  # of each test that failed: whether it passes without

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed |= report.failed

    def first_to_fail(
        self, tests: list[str], items: dict[str, Any], seconds: float
    ) -> tuple[str | None, int]:
        """And how many were asked, within so many seconds."""
        self.failed, end = False, time.monotonic() + seconds
        for i, test in enumerate(tests):
            following = items[tests[i + 1]] if i + 1 < len(tests) else None
            items[test].config.hook.pytest_runtest_protocol(item=items[test], nextitem=following)
            if self.failed or time.monotonic() > end:
                items[test].session._setupstate.teardown_exact(None)
                return test if self.failed else None, i + 1
        return None, len(tests)

    def passes(self, test: str, items: dict[str, Any]) -> bool:
        """Whether it does so without a fault: looked at once."""
        if test not in self.sound:
            self.sound[test] = self.first_to_fail([test], items, 0.0)[0] is None
        return self.sound[test]

    def pytest_runtestloop(self, session: Any) -> bool:
        items = {item.nodeid: item for item in session.items}
        faults = {fault.name: fault for fault in all_faults(mapped.PACKAGE)}
        killers: dict[str, list[str]] = {}  # of each file: likely to find its next fault too
        for name, (tests, seconds, at_import) in self.plan.items():
            fault, begin = faults[name], time.monotonic()
            known = killers.setdefault(fault.path, [])
            tests = [test for test in tests if test in items]  # one may have gone since the map
            order = [
                *dict.fromkeys(tests[:1] + [test for test in known if test in tests][:5] + tests)
            ]
            verdicts.begun(self.into, fault)
            faulthandler.dump_traceback_later(30 + 2 * seconds, exit=True)
            with nullcontext(False) if at_import else planted(fault) as here:
                by, asked = self.first_to_fail(order, items, seconds) if here else (None, 0)
            if by and not self.passes(by, items):
                raise RuntimeError(f"{by} fails without a fault too, and so finds none")
            faulthandler.cancel_dump_traceback_later()
            if by:
                known.insert(0, by)
            verdict = "killed" if by else "survived" if here else "at import"
            took = time.monotonic() - begin
            verdicts.ended(self.into, fault, verdict, by, asked, len(tests), took)
        return True


def pytest_configure(config: Any) -> None:
    if config.getoption("--plan"):
        # What a fault makes fail is not to be made small, nor to be tried first by the next.
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile(
            "planted", database=None, derandomize=True, deadline=None, phases=phases
        )
        hypothesis.settings.load_profile("planted")
        read = json.loads(Path(config.getoption("--plan")).read_text())
        plan = {name: mapped.Asked(*asked) for name, asked in read.items()}
        config.pluginmanager.register(Planter(plan, Path(config.getoption("--verdicts"))))
