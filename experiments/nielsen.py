"""The experiments of Nielsen's book: `make nielsen`.

Quadratic cost against cross-entropy, large weights against small ones, L2: the settings of *Neural
Networks and Deep Learning*, 2015, chapters 1 and 3, on scikit-learn's digits by default, and with
`--data` on MNIST beside the accuracies that he published. As there, the accuracy is that on the
test images, of the best epoch; that of the last stands beside it. What comes out is a folder with
config.json, metrics.jsonl and a figure.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table

import jbackprop as jb
from experiments.common import run
from experiments.common.data import load
from experiments.common.idx import read_mnist

BATCH = 10
EXAMPLES = 50_000  # those that he learns from: λ is over this many


class Setting(NamedTuple):
    """One line of the book.

    Attributes:
        hidden: units of the one hidden layer.
        cost: of sigmoid outputs.
        large: whether weights are drawn from N(0, 1), or from N(0, 1/n_in); biases from N(0, 1).
        rate: η.
        decay: λ.
        epochs: passes over the data.
        published: accuracy.
    """

    hidden: int
    cost: jb.Cost
    large: bool
    rate: float
    decay: float
    epochs: int
    published: float


SETTINGS = {
    "quadratic": Setting(30, jb.squared_error, True, 3.0, 0.0, 30, 0.9542),
    "cross-entropy": Setting(30, jb.binary_cross_entropy, True, 0.5, 0.0, 30, 0.9549),
    "quadratic, 100 units": Setting(100, jb.squared_error, True, 3.0, 0.0, 30, 0.9659),
    "cross-entropy, L2": Setting(100, jb.binary_cross_entropy, True, 0.5, 5.0, 30, 0.9792),
    "and small weights": Setting(100, jb.binary_cross_entropy, False, 0.1, 5.0, 60, 0.9804),
}


@dataclass(frozen=True)
class Options:
    """Repeat the experiments of Nielsen's book."""

    data: Path | None = None
    """A folder with MNIST's four IDX files, gzipped or not, in place of scikit-learn's digits."""
    seeds: int = 3
    """Networks for each setting."""
    out: Path = Path("runs/nielsen")
    """Where the run's folder is made."""
    quick: bool = False
    """One epoch of one network, only to see that everything works."""


def examples(folder: Path | None) -> tuple[Any, Any, Any, Any]:
    """x and labels to learn from, and to test with."""
    if folder is None:
        data = load(None, 0)
        return data.train.x, data.train.labels, data.test.x, data.test.labels
    mnist = read_mnist(folder)
    rows = lambda images: images.reshape(len(images), -1).astype(np.float32) / 255
    learned = slice(0, EXAMPLES)  # the others are his validation images
    return (
        rows(mnist.train_images[learned]), mnist.train_labels[learned].astype(np.int32),
        rows(mnist.test_images), mnist.test_labels.astype(np.int32),
    )  # fmt: skip


def drawn(net: jb.Network, key: Any, *, large: bool) -> jb.Params:
    """Weights N(0, 1) or N(0, 1/n_in), and biases N(0, 1)."""
    layers = []
    for w, b in jb.init(net, key):
        key, of_w, of_b = jax.random.split(key, 3)
        size = 1.0 if large else w.shape[1] ** -0.5
        layers.append((size * jax.random.normal(of_w, w.shape), jax.random.normal(of_b, b.shape)))
    return tuple(jb.Layer(*layer) for layer in layers)


def descent(setting: Setting) -> optax.GradientTransformation:
    """w ← w - η (∇ + λ w / n), and no λ for biases."""
    weights = lambda params: tuple(jb.Layer._make((True, False)) for _ in params)
    shrink = optax.add_decayed_weights(setting.decay / EXAMPLES, mask=weights)
    return optax.chain(shrink, optax.sgd(setting.rate))


def accuracies(setting: Setting, seeds: int, epochs: int, data: tuple[Any, ...]) -> np.ndarray:
    """On the test images, after every epoch, (seeds, epochs): all networks learn together."""
    x, labels, x_test, labels_test = data
    classes = 1 + int(max(labels.max(), labels_test.max()))
    net = jb.Network((x.shape[1], setting.hidden, classes), jb.sigmoid, jb.sigmoid, setting.cost)
    t, t_test = (jax.nn.one_hot(v, classes) for v in (labels, labels_test))
    optimizer = descent(setting)

    def start(key: Any) -> jb.TrainState:
        params = drawn(net, jax.random.fold_in(key, 1), large=setting.large)
        return jb.init_state(net, optimizer, key, params=params)

    @jax.jit
    @jax.vmap
    def epoch(state: jb.TrainState) -> tuple[jb.TrainState, Any]:
        state, _ = jb.train_epoch(net, optimizer, state, x, t, batch_size=BATCH)
        return state, jb.evaluate(net, state.params, x_test, t_test, batch_size=1000).accuracy

    states = jax.vmap(start)(jax.vmap(jax.random.key)(jnp.arange(seeds)))
    found = []
    for _ in range(epochs):
        states, accuracy = epoch(states)
        found.append(np.asarray(accuracy))
    return np.stack(found, axis=1)


def main(options: Options) -> int:
    """Trains, writes, and returns an exit status."""
    console = Console(markup=False, highlight=False)
    try:
        if options.seeds < 1:
            raise ValueError(f"seeds: expected at least 1, got {options.seeds}")
        data = examples(options.data)
        folder = run.new_folder(options.out)
    except (ValueError, OSError) as error:
        console.print(str(error), style="red", soft_wrap=True)
        return 2
    run.write_config(folder, options)
    data = tuple(map(jnp.asarray, data))
    table = Table(title=f"Accuracy on {len(data[3]):,} test images, {len(data[1]):,} learned from")
    for heading in ("", "published", "best epoch", "of the seeds", "last epoch"):
        table.add_column(heading, justify="right" if heading else "left")
    lines = {}
    for name, setting in SETTINGS.items():
        epochs, seeds = (1, 1) if options.quick else (setting.epochs, options.seeds)
        found = accuracies(setting, seeds, epochs, data)
        best, last = found.max(axis=1), found[:, -1]
        run.append(folder, {"setting": name, "accuracy": found.tolist()})
        published = f"{setting.published:.2%}" if options.data else "of MNIST"
        each = " ".join(f"{100 * accuracy:.2f}" for accuracy in best)
        table.add_row(name, published, f"{best.mean():.2%}", each, f"{last.mean():.2%}")
        lines[name] = 100 * (1 - found.mean(axis=0))
    console.print(table)
    longest = max(map(len, lines.values()))
    filled = {n: np.pad(v, (0, longest - len(v)), constant_values=np.nan) for n, v in lines.items()}
    title = "Wrongly classified test images (%), mean over seeds"
    figure = jb.plot_lines(filled, title=title, xlabel="epoch", log=True)
    figure.savefig(folder / "nielsen.png")
    console.print(f"Written to {folder}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
