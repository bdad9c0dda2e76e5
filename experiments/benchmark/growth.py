"""Growth: time, memory and compile time as width, depth, batch and dataset grow, with exponents."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbackprop as jb
from experiments.benchmark.peers import autodiff
from experiments.benchmark.timing import in_turn
from experiments.benchmark.work import LEARNING_RATE, Work, network

SGD = optax.sgd(LEARNING_RATE)

AXES: dict[str, tuple[Sequence[int], Callable[[int], Work]]] = {
    "width": ((64, 128, 256, 512, 1024, 2048), lambda n: Work("", (n, n, n, 10), 128, 1)),
    "depth": ((2, 4, 8, 16, 32, 64), lambda n: Work("", (*[128] * n, 10), 128, 1)),
    "batch": ((32, 128, 512, 2048, 8192), lambda n: Work("", (256, 256, 256, 10), n, 1)),
}


def exponent(sizes: Sequence[int], values: Sequence[float]) -> float:
    """p of value ≈ c · size^p, fitted to the upper half, where fixed costs no longer show."""
    half = min(len(sizes) // 2, len(sizes) - 2)
    return float(np.polyfit(np.log(sizes[half:]), np.log(values[half:]), 1)[0])


def grow(axis: str, rounds: int, count: int | None = None) -> dict[str, Any]:
    """Seconds and temporary bytes of one step as one axis grows."""
    sizes, make = AXES[axis]
    sizes = sizes[:count]
    runs, memory = {}, []
    for size in sizes:
        work = make(size)
        net = work.net
        state = jb.init_state(net, SGD, jax.random.key(0))
        x, t = jnp.ones((work.batch, work.sizes[0])), jnp.zeros(work.batch, jnp.int32)
        step = jax.jit(lambda s, x, t, net=net: jb.train_step(net, SGD, s, x, t)[0].params)
        compiled = step.lower(state, x, t).compile()
        analysis = compiled.memory_analysis()
        memory.append(analysis.temp_size_in_bytes if analysis else float("nan"))
        runs[str(size)] = lambda f=compiled, a=(state, x, t): jax.block_until_ready(f(*a))
    seconds = in_turn(runs, rounds)
    medians = [float(np.median(seconds[str(size)])) for size in sizes]
    return {
        "sizes": list(sizes),
        "seconds": medians,
        "exponent": exponent(sizes, medians),
        "temporary_bytes": memory,
        "memory_exponent": exponent(sizes, memory),
    }


# VmHWM, since the peak that `resource` tells starts at that of the process which started this one.
EPOCH = """
import re, sys, time
import jax, jax.numpy as jnp, optax, jbackprop as jb
n = int(sys.argv[1])
net, sgd = jb.Network((64, 32, 10), jb.tanh, jb.softmax, jb.cross_entropy), optax.sgd(0.01)
x, t = jnp.ones((n, 64)), jnp.zeros(n, jnp.int32)
state = jb.init_state(net, sgd, jax.random.key(0))
state, _ = jb.train_epoch(net, sgd, state, x, t, batch_size=100)
jax.block_until_ready(state)
start = time.perf_counter()
state, _ = jb.train_epoch(net, sgd, state, x, t, batch_size=100)
jax.block_until_ready(state)
seconds = time.perf_counter() - start
status = open("/proc/self/status").read()
print(seconds, 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", status)[1]))
"""


# Where a process of JAX would take most of a GPU's memory at its start, two need another way.
SHARING = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


def dataset(sizes: Sequence[int]) -> dict[str, Any]:
    """Seconds of one epoch and the peak memory of its process, as the dataset grows."""
    seconds, peak = [], []
    for n in sizes:
        command = [sys.executable, "-c", EPOCH, str(n)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=SHARING)
        a, b = map(float, done.stdout.split())
        seconds.append(a)
        peak.append(b)
    return {
        "sizes": list(sizes),
        "seconds": seconds,
        "exponent": exponent(sizes, seconds),
        "peak_bytes": peak,
    }


def compile_time(depths: Sequence[int], rounds: int) -> dict[str, Any]:
    """Seconds of a first step, by depth: ours, and `jax.value_and_grad`'s."""
    result: dict[str, Any] = {"depths": list(depths)}
    for depth in depths:
        work = Work("", (*[32] * depth, 10), 32, 1)
        for name, seconds in first_steps(work, rounds).items():
            result.setdefault(name, []).append(float(np.median(seconds)))
    for name in ("ours", "jax.value_and_grad"):
        result[f"exponent, {name}"] = exponent(depths, result[name])
    return result


def first_steps(work: Work, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of a first step, tracing and compiling included, in turn."""
    net = network(work)
    x, t = jnp.ones((work.batch, work.sizes[0])), jnp.zeros(work.batch, jnp.int32)
    state = jb.init_state(net, SGD, jax.random.key(0))
    params = [tuple(layer) for layer in state.params]
    cost = partial(autodiff.cost, partial(autodiff.forward, jnp.tanh, True))

    def theirs(params: Any, opt_state: Any, x: Any, t: Any) -> Any:
        value, grads = jax.value_and_grad(cost)(params, x, t)
        updates, opt_state = SGD.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    seconds = {"ours": np.zeros(rounds), "jax.value_and_grad": np.zeros(rounds)}
    for i in range(rounds):
        fresh = jax.tree.map(jnp.copy, state)  # a step takes its state with it
        calls = {
            "ours": lambda s=fresh: jb.train_step(net, SGD, s, x, t),
            "jax.value_and_grad": lambda: jax.jit(theirs)(params, SGD.init(params), x, t),
        }
        for name in calls if i % 2 == 0 else reversed(calls):
            jax.clear_caches()
            start = time.perf_counter()
            jax.block_until_ready(calls[name]())
            seconds[name][i] = time.perf_counter() - start
    return seconds


IMPORT = """
import gc, time, jax, optax
starts, collecting = [], 0.0
def watch(phase, info):
    global collecting
    if phase == "start":
        starts.append(time.perf_counter())
    else:
        collecting += time.perf_counter() - starts[-1]
gc.callbacks.append(watch)
start = time.perf_counter()
import jbackprop
print(time.perf_counter() - start, collecting)
"""


def import_seconds(times: int) -> dict[str, Any]:
    """Seconds that `import jbackprop` takes after `import jax, optax`, each in a fresh process.

    Python collects garbage whenever enough has been allocated since it last did. What JAX's own
    import left may fall due then; how long that took is told apart."""
    command = [sys.executable, "-c", IMPORT]
    done = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(times)
    ]
    total, collecting = np.median(np.array(done, float), axis=0)
    return {"median": float(total), "of_it_collecting_garbage": float(collecting)}
