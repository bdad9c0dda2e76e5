"""Fair timing on a noisy machine: candidates take turns, and what is reported are paired ratios."""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Ratio(NamedTuple):
    """Median of paired ratios, with the quartiles as its spread."""

    median: float
    low: float
    high: float


def in_turn(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of every run in every round, (rounds,) each. A run returns when its work is done.

    Every round runs each candidate once. The order is rotated and reversed between rounds, so that
    none always follows the same one: a run whose threads still spin slows down the next.
    """
    names = list(runs)
    seconds = {name: np.zeros(rounds) for name in names}
    for run in runs.values():
        run()
    for i in range(rounds):
        shift = (i // 2) % len(names)
        order = names[shift:] + names[:shift]
        for name in order if i % 2 == 0 else reversed(order):
            start = time.perf_counter()
            runs[name]()
            seconds[name][i] = time.perf_counter() - start
    return seconds


def ratio(ours: np.ndarray, theirs: np.ndarray) -> Ratio:
    """ours / theirs, round by round."""
    low, median, high = np.quantile(ours / theirs, (0.25, 0.5, 0.75))
    return Ratio(float(median), float(low), float(high))


def fastest(f: Callable[..., Any], *arguments: Any) -> float:
    """Seconds of the best of five calls."""
    times = []
    for _ in range(6):
        before = time.perf_counter()
        jax.block_until_ready(f(*arguments))
        times.append(time.perf_counter() - before)
    return min(times[1:])  # the first compiles
