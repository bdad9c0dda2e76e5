"""A pytest plugin: nothing is compiled before a test, so that all it uses is traced in it."""

import json
from pathlib import Path
from typing import Any

import jax
import pytest

SECONDS: dict[str, float] = {}


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    jax.clear_caches()


def pytest_runtest_logreport(report: Any) -> None:
    """How long each test took, in the process that collects the reports."""
    SECONDS[report.nodeid] = SECONDS.get(report.nodeid, 0.0) + report.duration


def pytest_sessionfinish(session: Any) -> None:
    if not hasattr(session.config, "workerinput"):
        Path("seconds.json").write_text(json.dumps(SECONDS))
