"""The machine: its name, and what it can do at most, measured in the same run as the rest."""

import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def name() -> str:
    """Such as `intel-xeon-2-cores` or `nvidia-h100-80gb-hbm3`: fit for a file's name."""
    device = jax.devices()[0]
    if device.platform != "cpu":
        kind = device.device_kind
    else:
        cores = len(affinity())
        kind = f"{_cpu_model()} {cores} core{'s' * (cores > 1)}"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)|cpu|@.*ghz", "", kind.lower())).strip("-")


def told(name: str) -> str:
    """A machine's name as one writes it: AMD EPYC, 2 cores."""
    words = {"amd": "AMD", "epyc": "EPYC", "nvidia": "NVIDIA"}
    kind = [words.get(word, word.capitalize()) for word in name.split("-")]
    if kind[-1] in ("Core", "Cores"):
        return f"{' '.join(kind[:-2])}, {kind[-2]} {kind[-1].lower()}"
    return " ".join(word.upper() if re.search(r"\d", word) else word for word in kind)


def affinity() -> set[int]:
    """The processors that this process may use."""
    import os

    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else {os.cpu_count() or 1}


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*: (.*)", cpuinfo.read_text())
        if found:
            return found.group(1).replace("Processor", "")
    return platform.processor() or platform.machine()


def products(size: int, dtype: Any) -> tuple[float, dict[str, Callable[[], object]]]:
    """(operations, runs): one square product by JAX and, in float32, by NumPy."""
    a = jnp.asarray(np.random.default_rng(0).normal(size=(size, size)), dtype)
    multiply = jax.jit(jnp.matmul)
    runs: dict[str, Callable[[], object]] = {
        f"matrix product, JAX, {size}": lambda: jax.block_until_ready(multiply(a, a))
    }
    if dtype == jnp.float32:
        b = np.asarray(a)
        out = np.empty_like(b)
        runs[f"matrix product, NumPy, {size}"] = lambda: np.matmul(b, b, out=out)
    return 2.0 * size**3, runs


def stream(megabytes: int) -> tuple[float, Callable[[], object]]:
    """(bytes, run): read one large array and write it in its place.

    In place, since fresh memory would measure how fast the system hands out pages."""
    held = [jnp.zeros(megabytes * 2**18, jnp.float32)]
    add = jax.jit(lambda a: a + 1, donate_argnums=0)

    def run() -> None:
        held[0] = jax.block_until_ready(add(held[0]))

    return 2.0 * held[0].nbytes, run
