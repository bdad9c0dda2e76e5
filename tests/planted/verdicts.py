"""What became of each fault, kept line by line so that a run that was stopped goes on.

A verdict is of the line as it stood: where that was written otherwise since, it is none.
"""

import json
import time
import tomllib
from pathlib import Path
from typing import Any

from tests.planted.faults import Fault

EQUIVALENT = Path(__file__).parent / "equivalent.toml"
KILLERS = Path(__file__).parent / "killers.json"


def _write(into: Path, **record: Any) -> None:
    with into.open("a") as file:
        file.write(json.dumps({**record, "at": time.time()}) + "\n")


def begun(into: Path, fault: Fault) -> None:
    """Its tests are asked now. Where nothing follows, they ended the process or took too long."""
    _write(into, name=fault.name, shown=fault.shown, verdict="out of time")


def ended(
    into: Path, fault: Fault, verdict: str, by: str | None, asked: int, of: int, seconds: float
) -> None:
    """Killed `by` a test, survived those asked, or "at import": to be planted in a new process."""
    _write(
        into, name=fault.name, shown=fault.shown, verdict=verdict, by=by, asked=asked, of=of,
        seconds=round(seconds, 2),
    )  # fmt: skip


def read(folder: Path, faults: list[Fault]) -> dict[str, dict[str, Any]]:
    """{name of a fault: its newest verdict}."""
    shown = {fault.name: list(fault.shown) for fault in faults}
    found: dict[str, dict[str, Any]] = {}
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    for record in sorted(map(json.loads, lines), key=lambda record: record["at"]):
        if shown.get(record["name"]) == record["shown"]:
            found[record["name"]] = record
    return found


def equivalent() -> dict[str, str]:
    """{name of a fault that no test can find: the reason}."""
    groups = tomllib.loads(EQUIVALENT.read_text("utf-8"))["same"]
    return {name: group["reason"] for group in groups for name in group["faults"]}


def killers() -> dict[str, str]:
    """{name of a fault: the test that found it when it was last planted}: to be asked first."""
    told = json.loads(KILLERS.read_text("utf-8")) if KILLERS.exists() else {}
    return {
        f"{path}:{rest}": test
        for test, files in told.items()
        for path, names in files.items()
        for rest in names
    }


def keep_killers(found: dict[str, dict[str, Any]], faults: list[Fault]) -> None:
    """Those known before and of these verdicts, for the faults that there are."""
    known = killers() | {name: r["by"] for name, r in found.items() if r.get("by")}
    told: dict[str, dict[str, list[str]]] = {}
    for fault in faults:
        if test := known.get(fault.name):
            names = told.setdefault(test, {}).setdefault(fault.path, [])
            names.append(fault.name.removeprefix(fault.path + ":"))
    text = json.dumps(told, indent=0, sort_keys=True, ensure_ascii=False)
    KILLERS.write_text(text + "\n", "utf-8")
