"""A convolutional network learns handwritten digits: `make convolution`.

By default a small LeNet on scikit-learn's digits; with `--data` the tanh network of private
training (Papernot et al., "Tempered Sigmoid Activations for Deep Learning with Differential
Privacy", 2021, arXiv:2007.14191) on MNIST; with `--mnist1d` a one-dimensional one, and two that are
not convolutional, on MNIST-1D, beside the numbers of its paper. What comes out is a folder with
config.json, metrics.jsonl, net.npz and two figures: the kernels, and δ^l on its way back.
"""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import tyro
from rich.console import Console

import jbackprop as jb
from experiments.common import networks, run
from experiments.common.data import Data, load, load_1d
from experiments.digits import difference_from_autodiff

PUBLISHED = {"logistic regression": 0.32, "dense": 0.68, "convolutional": 0.94}
SOURCE = "Greydanus, 2020, arXiv:2011.14439"


@dataclass(frozen=True)
class Options:
    """Train a convolutional network on handwritten digits."""

    learning_rate: float | None = None
    """Of Adam; by default 0.002, of MNIST-1D 0.01."""
    batch_size: int | None = None
    """By default 32, of MNIST-1D 100."""
    epochs: int | None = None
    """By default 20, of MNIST-1D 150."""
    seed: int = 0
    """Of the split, the parameters and the order of the examples."""
    out: Path = Path("runs/convolution")
    """Where the run's folder is made."""
    data: Path | None = None
    """A folder with MNIST's four IDX files, gzipped or not, in place of scikit-learn's digits."""
    mnist1d: bool = False
    """One-dimensional digits: logistic regression, a dense network and a convolutional one."""
    quick: bool = False
    """One epoch, only to see that everything works."""


def networks_for(data: Data) -> dict[str, jb.Network]:
    """What is trained; the last is convolutional."""
    length, *more = data.image_shape
    if more:
        return {"convolutional": networks.for_images(data.image_shape, data.classes, jb.relu)}
    last = (jb.relu, jb.softmax, jb.cross_entropy)
    return {
        "logistic regression": jb.Network((length, data.classes), *last),
        "dense": jb.Network((length, 100, 100, data.classes), *last),
        "convolutional": networks.one_dimensional(length, data.classes),
    }


def checked(options: Options) -> tuple[Data, Options]:
    """The data, and every option with a value; `ValueError` where one does not fit."""
    if options.mnist1d and options.data is not None:
        raise ValueError(f"data: expected none beside --mnist1d, got {options.data}")
    usual = (0.01, 100, 150) if options.mnist1d else (2e-3, 32, 20)
    names = "learning_rate", "batch_size", "epochs"
    given = {name: getattr(options, name) for name in names}
    filled = {n: v if given[n] is None else given[n] for n, v in zip(names, usual, strict=True)}
    for name in names[1:]:
        if filled[name] < 1:
            raise ValueError(f"{name}: expected at least 1, got {filled[name]}")
    if options.quick:
        filled["epochs"] = 1
    data = load_1d(options.seed) if options.mnist1d else load(options.data, options.seed)
    return data, replace(options, **filled)


def train(
    console: Console, folder: Path, options: Any, name: str, net: jb.Network, parts: Any, asked: Any
) -> tuple[jb.Params, float, int]:
    """Parameters, accuracy on the test part and an exit status: 0, 1 if training broke down."""
    start, optimizer = time.perf_counter(), optax.adam(options.learning_rate)
    state = jb.init_state(net, optimizer, jax.random.key(options.seed))
    x, t = parts["train"]
    status = 0
    for epoch in range(1, options.epochs + 1):
        state, _ = jb.train_epoch(net, optimizer, state, x, t, batch_size=options.batch_size)
        part = parts["validation"]
        cost, accuracy = map(float, jb.evaluate(net, state.params, *part, batch_size=1024))
        seconds = round(time.perf_counter() - start, 3)
        row = {"network": name, "epoch": epoch, "seconds": seconds}
        run.append(folder, row | {"cost": cost, "accuracy": accuracy})
        if epoch % max(1, options.epochs // 20) == 0:
            console.print(f"{name}, epoch {epoch:3}  cost {cost:.4f}  accuracy {accuracy:.2%}")
        if not np.isfinite(cost):
            console.print("The cost is no longer finite: a lower --learning-rate may help.")
            status = 1
        if status or asked:
            break
    cost, accuracy = map(float, jb.evaluate(net, state.params, *parts["test"], batch_size=1024))
    run.append(folder, {"network": name, "test": {"cost": cost, "accuracy": accuracy}})
    return state.params, accuracy, status


def main(options: Options) -> int:
    """Trains, writes, and returns an exit status: 0, 1 if training broke down, 130 after Ctrl-C,
    143 after SIGTERM."""
    console, start = Console(markup=False, highlight=False), time.perf_counter()
    try:
        data, options = checked(options)
        folder = run.new_folder(options.out)
    except (ValueError, OSError, ImportError) as error:
        console.print(str(error), style="red", soft_wrap=True)
        return 2
    nets = networks_for(data)
    net = nets["convolutional"]
    shaped = lambda net: {
        name: (part.x.reshape(-1, *net.shapes[0]), part.labels)
        for name, part in zip(("train", "validation", "test"), data[:3], strict=True)
    }
    x, t = shaped(net)["train"]
    initial = jb.init(net, jax.random.key(options.seed))
    gap = difference_from_autodiff(net, initial, x[:128], t[:128])
    run.write_config(folder, options, network=net.sizes, difference_from_autodiff=gap)
    console.print(
        f"{len(x)} digits to learn from, a network with a^l of {net.shapes}.\n"
        f"Largest relative difference from jax.grad on a batch: {gap:.1e}"
    )
    params, status, said = initial, 0, []
    with run.stop_between_epochs() as asked:
        for name, each in nets.items():
            params, accuracy, status = train(
                console, folder, options, name, each, shaped(each), asked
            )
            beside = f" (published: {PUBLISHED[name]:.0%}, {SOURCE})" if options.mnist1d else ""
            said.append(f"Test, {name}: accuracy {accuracy:.2%}{beside}")
            if status or asked:
                break
    console.print("\n".join(said), soft_wrap=True)
    if len(said) == len(nets):
        jb.save(folder / "net.npz", net, params)
        filters = jb.plot_filters(params[0].w, title="The kernels w$^1$ that were learned")
        filters.savefig(folder / "kernels.png")
        factors = jb.backprop(net, params, *(v[:8] for v in shaped(net)["test"]))
        title = "The error on its way back, from above: where each digit's δ is large, by layer"
        jb.plot_flow(factors, title=title).savefig(folder / "flow.png")
    console.print(f"Written to {folder} ({time.perf_counter() - start:.1f} s)", soft_wrap=True)
    return status or run.stopped(asked)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
