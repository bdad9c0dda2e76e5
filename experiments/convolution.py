"""A convolutional network learns handwritten digits: `make convolution`.

By default a small LeNet on scikit-learn's digits; with `--data` the tanh network of private
training (Papernot et al., "Tempered Sigmoid Activations for Deep Learning with Differential
Privacy", 2021, arXiv:2007.14191) on MNIST. What comes out is a folder with config.json,
metrics.jsonl, params.npz and two figures: the kernels, and δ^l on its way back as images.
"""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

import jbackprop as jb
from experiments.common import figures, run
from experiments.common.data import Data, load
from experiments.digits import difference_from_autodiff
from jbackprop import Conv, MaxPool


@dataclass(frozen=True)
class Options:
    """Train a convolutional network on handwritten digits."""

    learning_rate: float = 2e-3
    """Of Adam."""
    batch_size: int = 32
    epochs: int = 20
    seed: int = 0
    """Of the split, the parameters and the order of the examples."""
    out: Path = Path("runs/convolution")
    """Where the run's folder is made."""
    data: Path | None = None
    """A folder with MNIST's four IDX files, gzipped or not, in place of scikit-learn's digits."""
    quick: bool = False
    """One epoch, only to see that everything works."""


def network(data: Data) -> jb.Network:
    """For images of 28 × 28 the tanh network, for smaller ones a LeNet."""
    image = (*data.image_shape, 1)
    if min(data.image_shape) >= 28:
        sizes = (image, Conv(16, 8, stride=2, padding=3), MaxPool(2, stride=1),
                 Conv(32, 4, stride=2), MaxPool(2, stride=1), 32, data.classes)  # fmt: skip
        return jb.Network(sizes, jb.tanh, jb.softmax, jb.cross_entropy)
    sizes = (image, Conv(16, 3, padding=1), MaxPool(2), Conv(32, 3, padding=1), MaxPool(2), 64,
             data.classes)  # fmt: skip
    return jb.Network(sizes, jb.relu, jb.softmax, jb.cross_entropy)


def checked(options: Options) -> tuple[Data, jb.Network]:
    """Data and network; `ValueError` where an option does not fit."""
    for name in ("batch_size", "epochs"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(options, name)}")
    data = load(options.data, options.seed)
    return data, network(data)


def flow(net: jb.Network, params: jb.Params, x: Any, labels: Any) -> list[np.ndarray]:
    """How large δ^l is at every position of each image, of every convolution: (B, H, W) each."""
    factors = jb.backprop(net, params, x, labels)
    spatial = [delta for delta in factors.delta if delta.ndim == 4]
    return [np.asarray(jnp.sqrt(jnp.sum(delta**2, axis=-1))) for delta in spatial]


def main(options: Options) -> int:
    """Trains, writes, and returns an exit status: 0, 1 if training broke down, 130 after Ctrl-C."""
    console, start = Console(markup=False, highlight=False), time.perf_counter()
    try:
        data, net = checked(options)
        folder = run.new_folder(options.out)
    except (ValueError, OSError) as error:
        console.print(str(error), style="red", soft_wrap=True)
        return 2
    parts = {
        name: (part.x.reshape(-1, *net.shapes[0]), part.labels)
        for name, part in zip(("train", "validation", "test"), data[:3], strict=True)
    }
    optimizer = optax.adam(options.learning_rate)
    state = jb.init_state(net, optimizer, jax.random.key(options.seed))
    x, t = parts["train"]
    gap = difference_from_autodiff(net, state.params, x[:128], t[:128])
    run.write_config(folder, options, network=net.sizes, difference_from_autodiff=gap)
    console.print(
        f"{len(x)} digits to learn from, a network with a^l of {net.shapes}.\n"
        f"Largest relative difference from jax.grad on a batch: {gap:.1e}"
    )
    status = 0
    with run.stop_between_epochs() as asked:
        for epoch in range(1, (1 if options.quick else options.epochs) + 1):
            state, _ = jb.train_epoch(net, optimizer, state, x, t, batch_size=options.batch_size)
            cost, accuracy = map(
                float, jb.evaluate(net, state.params, *parts["validation"], batch_size=1024)
            )
            seconds = round(time.perf_counter() - start, 3)
            row = {"epoch": epoch, "seconds": seconds, "cost": cost, "accuracy": accuracy}
            run.append(folder, row)
            console.print(f"epoch {epoch:3}  cost {cost:.4f}  accuracy {accuracy:.2%}")
            if not np.isfinite(cost):
                console.print("The cost is no longer finite: a lower --learning-rate may help.")
                status = 1
                break
            if asked:
                status = 130
                break
    run.save_params(folder, state.params)
    cost, accuracy = map(float, jb.evaluate(net, state.params, *parts["test"], batch_size=1024))
    run.append(folder, {"test": {"cost": cost, "accuracy": accuracy}})
    console.print(f"Test: cost {cost:.4f}, accuracy {accuracy:.2%}")
    figures.kernels(folder / "kernels.png", np.asarray(state.params[0].w)[..., 0])
    images, labels = (v[:8] for v in parts["test"])
    figures.flow(folder / "flow.png", images[..., 0], flow(net, state.params, images, labels))
    console.print(f"Written to {folder} ({time.perf_counter() - start:.1f} s)", soft_wrap=True)
    return status


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
