"""The work that every candidate does: networks, batches and their order, the same for all."""

from typing import NamedTuple

import jax
import numpy as np

import jbackprop as jb

LEARNING_RATE = 0.01


class Work(NamedTuple):
    """One network and the batches of one timed run.

    Attributes:
        name: what the tables call it.
        sizes: (n_0 … n_L).
        batch: examples in a step.
        steps: steps in one timed run.
    """

    name: str
    sizes: tuple[int, ...]
    batch: int
    steps: int

    @property
    def net(self) -> jb.Network:
        """The jbackprop network: softmax and cross-entropy at the output."""
        return network(self)

    @property
    def operations(self) -> int:
        """Floating-point operations of one step's matrix products, 2 B n_l n_{l-1} each.

        z and ∂C/∂w of every layer, δ of all but the last."""
        products = [
            2 * self.batch * a * b for a, b in zip(self.sizes, self.sizes[1:], strict=False)
        ]
        return 3 * sum(products) - products[0]

    @property
    def values(self) -> int:
        """Numbers that one step moves at least: parameters read and written, x read."""
        params = sum((a + 1) * b for a, b in zip(self.sizes, self.sizes[1:], strict=False))
        return 2 * params + self.batch * self.sizes[0]


WORK = {
    work.name: work
    for work in (
        Work("S", (64, 32, 10), 32, 500),
        Work("N", (784, 30, 10), 10, 500),  # Nielsen's network
        Work("M", (784, 512, 512, 10), 128, 20),
        Work("W", (784, 2048, 2048, 10), 256, 3),
        Work("L", (1024, 4096, 4096, 1000), 512, 1),
        Work("D", (784, *[128] * 8, 10), 256, 10),
        Work("deep", (64, *[64] * 255, 10), 256, 2),
    )
}
# Wide enough for an accelerator; a CPU would need minutes.
WIDE = Work("X", (8192, 8192, 8192, 8192), 4096, 4)
QUICK = {"S": Work("S", (64, 32, 10), 32, 3), "M": Work("M", (20, 16, 16, 10), 8, 2)}


def network(work: Work, hidden: jb.Activation = jb.tanh) -> jb.Network:
    """The jbackprop network of the work."""
    return jb.Network(work.sizes, hidden, jb.softmax, jb.cross_entropy)


class Problem(NamedTuple):
    """Parameters as (w (n_out, n_in), b); x of shape (steps, B, n_0), labels (steps, B)."""

    params: list[tuple[np.ndarray, np.ndarray]]
    x: np.ndarray
    labels: np.ndarray


def problem(work: Work, hidden: jb.Activation = jb.tanh, dtype: str = "float32") -> Problem:
    """The same numbers for every candidate."""
    rng = np.random.default_rng(0)
    params = jb.init(network(work, hidden), jax.random.key(0), dtype=dtype)
    x = rng.normal(size=(work.steps, work.batch, work.sizes[0])).astype(params[0].w.dtype)
    labels = rng.integers(0, work.sizes[-1], (work.steps, work.batch)).astype(np.int32)
    return Problem([(np.asarray(w), np.asarray(b)) for w, b in params], x, labels)
