"""The steps of every candidate beside ours, checked first to compute the same gradient."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jbackprop as jb
from experiments.benchmark import machine
from experiments.benchmark.peers import Candidate, Params
from experiments.benchmark.timing import in_turn, ratio
from experiments.benchmark.work import LEARNING_RATE, Work, problem

PEERS = ["ours", "autodiff", "by_numpy", "by_sklearn", "by_torch", "by_equinox", "by_flax"]
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
OPTIMIZERS = {"sgd": optax.sgd(LEARNING_RATE), "adam": optax.adam(1e-3)}


class GradientsDiffer(Exception):
    """A candidate that computes another gradient makes every timing meaningless."""


def relative_difference(ours: Params, theirs: Params) -> float:
    """The largest difference, relative to the largest entry of its array."""
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for one, two in zip(ours, theirs, strict=True)
        for a, b in zip(one, two, strict=True)
    ]
    return max(float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)) for a, b in pairs)


def candidates(
    work: Work, peers: list[str], hidden: jb.Activation, optimizer: str, dtype: str, say: Any
) -> list[Candidate]:
    """Those whose library is installed; each is checked against our gradient."""
    numbers = problem(work, hidden, dtype)
    found: list[Candidate] = []
    for peer in peers:
        try:
            module = importlib.import_module(f"experiments.benchmark.peers.{peer}")
        except ImportError as error:
            say(f"  {peer}: skipped, {error.name} is not installed")
            continue
        found += module.candidates(work, numbers, hidden, OPTIMIZERS[optimizer])
    # a device that rounds the factors of a product, as recent GPUs do, must not here
    with jax.default_matmul_precision("highest"):
        gradients = [candidate.gradient() for candidate in found]
    for candidate, gradient in zip(found[1:], gradients[1:], strict=True):
        difference = relative_difference(gradients[0], gradient)
        # not `>`, which NaN would pass
        if not difference <= TOLERANCE[dtype]:
            raise GradientsDiffer(
                f"{candidate.name} at {work.name}: its gradient differs from ours by "
                f"{difference:.1e} of its largest entry; expected at most {TOLERANCE[dtype]:.0e}"
            )
    return found


def compare(
    work: Work,
    *,
    rounds: int,
    product: int,
    say: Any,
    peers: list[str] | None = None,
    hidden: jb.Activation = jb.tanh,
    optimizer: str = "sgd",
    dtype: str = "float32",
) -> dict[str, Any]:
    """A table of this work: µs a step and paired ratios, and the limits of the machine.

    Args:
        work: the network and its batches.
        rounds: how often every candidate runs.
        product: the size of the square product that the machine's rate is taken from.
        say: prints a line.
        peers: modules of `peers`, ours first; by default all.
        hidden, optimizer, dtype: of the network and its training.
    """
    found = candidates(work, peers or PEERS, hidden, optimizer, dtype, say)
    operations, limits = machine.products(product, jnp.dtype(dtype))
    moved, stream = machine.stream(product // 16)
    seconds = in_turn({c.name: c.run for c in found} | limits | {"stream": stream}, rounds)
    groups: dict[str, list[str]] = {}
    for c in found:
        groups.setdefault(c.group, []).append(c.name)
    best = {
        group: min(names, key=lambda name: np.median(seconds[name]))
        for group, names in groups.items()
    }
    ours = seconds[best["jbackprop"]]
    # the better of JAX's and NumPy's product, round by round
    per_operation = np.min([seconds[name] for name in limits], axis=0) / operations
    arithmetic = per_operation * work.operations * work.steps
    traffic = seconds["stream"] / moved * work.values * jnp.dtype(dtype).itemsize * work.steps
    rows = {
        c.name: {
            "group": c.group,
            "us_per_step": 1e6 * float(np.median(seconds[c.name])) / work.steps,
            "ours_over_this": ratio(ours, seconds[c.name])._asdict(),
        }
        for c in found
    }
    return {
        "work": work._asdict(),
        "hidden": hidden.name,
        "optimizer": optimizer,
        "dtype": dtype,
        "rounds": rounds,
        "candidates": rows,
        "best": best,
        "fraction_of_product_rate": ratio(arithmetic, ours)._asdict(),
        "fraction_of_bandwidth": ratio(traffic, ours)._asdict(),
        "product_gflops": float(np.median(1e-9 / per_operation)),
        "bandwidth_gb": float(np.median(1e-9 * moved / seconds["stream"])),
    }


def shuffled(work: Work, rounds: int) -> dict[str, Any]:
    """A row of its own for the shuffle: `train_epoch` beside the loop over given batches."""
    net, optimizer = work.net, OPTIMIZERS["sgd"]
    numbers = problem(work)
    ours = importlib.import_module("experiments.benchmark.peers.ours")
    plain = ours.candidates(work, numbers, jb.tanh, optimizer)[0]
    x = jnp.asarray(numbers.x.reshape(-1, work.sizes[0]))
    labels = jnp.asarray(numbers.labels.ravel())
    state = jb.init_state(net, optimizer, jax.random.key(0))

    def run() -> Any:
        nonlocal state
        state, _ = jb.train_epoch(net, optimizer, state, x, labels, batch_size=work.batch)
        jax.block_until_ready(state.params)

    seconds = in_turn({"shuffled": run, "given": plain.run}, rounds)
    return {
        "us_per_step": 1e6 * float(np.median(seconds["shuffled"])) / work.steps,
        "over_given_order": ratio(seconds["shuffled"], seconds["given"])._asdict(),
    }
