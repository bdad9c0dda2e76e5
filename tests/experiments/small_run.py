"""A small run of the digits, as a process or within one: all is real but data and figures, which
are drawn at random and not at all. With it, what two runs must have in common to the bit."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

import jbackprop as jb

ROOT = Path(__file__).parents[2]
CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
SMALL: dict[str, Any] = {
    "sizes": (8,), "batch_size": 8, "optimizer": "adam", "learning_rate": 0.01, "epochs": 12,
}  # fmt: skip


class Part(NamedTuple):
    x: np.ndarray
    labels: np.ndarray


class Data(NamedTuple):
    train: Part
    validation: Part
    test: Part
    image_shape: tuple[int, ...]
    classes: int


def drawn(*_: Any) -> Any:
    """Three classes that are not quite a linear map's: the best epoch is none of the first."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=(144, 4)).astype(np.float32)
    scores = x @ draw.normal(size=(4, 3)) + draw.normal(size=(144, 3))
    labels = np.argmax(scores, 1).astype(np.int32)
    train, validation, test = (Part(x[i : i + 48], labels[i : i + 48]) for i in (0, 48, 96))
    return Data(train, validation, test, (2, 2), 3)


@contextmanager
def spared() -> Iterator[None]:
    """Without what takes most of the time and is no part of saving: the figures, autodiff."""
    from experiments import digits

    picture = SimpleNamespace(savefig=lambda path: path.write_bytes(b"drawn"))
    plots: dict[str, Any] = {
        f"plot_{n}": lambda *_, **__: picture for n in ("learning", "delta_norms", "examples")
    }
    stubs: dict[str, Any] = {"load": drawn, "difference_from_autodiff": lambda *_: 0.0}
    with mock.patch.multiple(jb, **plots), mock.patch.multiple(digits, **stubs):
        yield


def start(*options: Any, core: int = 0, **how: Any) -> "subprocess.Popen[str]":
    """The run as a process of one core, whose last bits do not hang on how many there are."""
    small = {f"--{n.replace('_', '-')}": v for n, v in SMALL.items() if n != "sizes"}
    told = [w for n, v in small.items() if n not in options for w in (n, v)]
    given = [] if "--resume" in options else [*map(str, told), "--sizes", "8"]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / "build/compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    own = {"COLUMNS": "200", "PYTHONPATH": path, "CORE": str(CORES[core % len(CORES)])}
    return subprocess.Popen(
        [sys.executable, "-W", "error", __file__, *given, *map(str, options)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, env=cache | os.environ | own, **how,
    )  # fmt: skip


def ended(process: "subprocess.Popen[str]", limit: float = 300.0) -> tuple[int, str]:
    """Its status and what it said. It is gone, whatever happens."""
    try:
        output, _ = process.communicate(timeout=limit)
        return process.returncode, output
    finally:
        process.kill()
        process.wait()


def ran(*options: Any, core: int = 0) -> tuple[int, str]:
    return ended(start(*options, core=core))


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def parts_of(folder: Path) -> tuple[jb.Network, Any, jb.TrainState]:
    """Network, optimizer and first state of the run in a folder."""
    from experiments import digits
    from experiments.common import resuming

    options = resuming.options_of(folder, digits.Options())
    net, optimizer = digits.network(options, drawn()), digits.make_optimizer(options)
    return net, optimizer, jb.init_state(net, optimizer, jax.random.key(options.seed))


def left(folder: Path) -> dict[str, Any]:
    """All that must be the same to the bit: the state that was saved last, the best parameters,
    what was observed, and the metrics but for the seconds."""
    net, optimizer, state = parts_of(folder)
    state, extra = jb.Checkpoints(folder / "checkpoints", net, optimizer).restore(state)
    state = state._replace(key=jax.random.key_data(state.key))
    timeless = [{k: v for k, v in row.items() if k != "seconds"} for row in rows(folder)]
    found = {"net.npz": (folder / "net.npz").read_bytes(), "metrics.jsonl": timeless}
    for path, leaf in jax.tree.leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        found[name] = str(leaf.dtype), leaf.shape, np.asarray(leaf).tobytes()
    del extra["rows"]  # with the seconds
    return found | {name: np.asarray(value).tobytes() for name, value in extra.items()}


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what is not the same."""
    return [name for name in {**one, **other} if one.get(name) != other.get(name)]


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(os.environ["CORE"])})
    data: Any = ModuleType("experiments.common.data")  # without scikit-learn
    data.Part, data.Data, data.load = Part, Data, drawn
    sys.modules[data.__name__] = data

    import tyro

    from experiments import digits

    with spared():
        sys.exit(digits.main(tyro.cli(digits.Options)))
