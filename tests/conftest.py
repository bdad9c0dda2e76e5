"""Silent promotion is an error in every test: of ranks (a batch by accident) and of dtypes.

And float32 is float32: by default a GPU or TPU multiplies with fewer digits than are compared.

A test that takes long is marked so, with how many of its cases are to run every time:
`@pytest.mark.long(2)`. `--cases short` runs those, `--cases rest` the others of them.
"""

import zlib
from collections import defaultdict

import jax
import pytest


def pytest_addoption(parser):
    told = "of tests marked `long` only the cases that always run, or only the rest"
    parser.addoption("--cases", choices=["short", "rest", "all"], default="all", help=told)


def pytest_collection_modifyitems(config, items):
    which = config.getoption("--cases")
    if which == "all":
        return
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("long"):
            cases[item.nodeid.partition("[")[0]].append(item)
    rest = set()
    for of_one in cases.values():
        always = sum(of_one[0].get_closest_marker("long").args)
        # by a hash: a stride would meet the same value of a parameter again and again
        of_one.sort(key=lambda item: zlib.crc32(item.nodeid.encode()))
        rest.update(of_one[always:])
    out = [item for item in items if (item in rest) != (which == "rest")]
    items[:] = [item for item in items if (item in rest) == (which == "rest")]
    config.hook.pytest_deselected(items=out)


@pytest.fixture(autouse=True)
def _no_silent_promotion():
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.default_matmul_precision("highest"),
    ):
        yield


@pytest.fixture(autouse=True, scope="module")
def _a_files_programs_go_with_it():
    """Each holds a few maps of memory, of which Linux gives a process 65,530: without this, it dies
    in the compiler after some two thousand tests."""
    yield
    jax.clear_caches()
