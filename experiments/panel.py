"""Everything at every step: training with the whole panel on, and one page of what it saw."""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console

import jbackprop as jb
from experiments.common import run
from experiments.common.data import load


@dataclass(frozen=True)
class Options:
    """Train on handwritten digits with the panel on at every step, and draw it."""

    sizes: tuple[int, ...] = (128, 64)
    """Widths of the hidden layers."""
    learning_rate: float = 0.1
    batch_size: int = 32
    epochs: int = 20
    seed: int = 0
    """Of the split, the parameters and the order of the examples."""
    out: Path = Path("runs/panel")
    """Where the run's folder is made."""
    data: Path | None = None
    """A folder with MNIST's four IDX files, gzipped or not, in place of scikit-learn's digits."""
    quick: bool = False
    """Two epochs, only to see that everything works."""


def main(options: Options) -> int:
    """Trains, draws and tells how long a step took with and without the panel."""
    console = Console(markup=False, highlight=False)
    if options.quick:
        options = replace(options, epochs=min(options.epochs, 2))
    try:
        for name in ("batch_size", "epochs"):
            if getattr(options, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(options, name)}")
        data = load(options.data, options.seed)
        x, t = data.train
        net = jb.Network(
            (x.shape[1], *options.sizes, data.classes), jb.tanh, jb.softmax, jb.cross_entropy
        )
        optimizer = optax.sgd(options.learning_rate)
        state = jb.init_state(net, optimizer, jax.random.key(options.seed))
        folder = run.new_folder(options.out)
    except (ValueError, OSError) as error:
        console.print(str(error), style="red", soft_wrap=True)
        return 2
    run.write_config(folder, options, network=net.sizes)

    panels, seconds = [], {"plain": [], "panel": []}
    costs = np.zeros(len(x))
    each = jax.jit(lambda params, x, t: jb.backprop(net, params, x, t).cost)
    observers: dict[str, Any] = {"plain": None, "panel": jb.observe_all(net)}
    with run.stop_between_epochs() as asked:
        for _ in range(options.epochs):
            spare = jax.tree.map(jnp.copy, state)
            for name, start in (("plain", spare), ("panel", state)):
                before = time.perf_counter()
                trained, info = jb.train_epoch(
                    net, optimizer, start, x, t, batch_size=options.batch_size,
                    observe=observers[name],
                )  # fmt: skip
                jax.block_until_ready(trained)
                seconds[name].append(time.perf_counter() - before)
            state = trained
            panels.append(jax.tree.map(np.asarray, info.observed))
            costs += np.asarray(each(state.params, x, t))
            if asked:
                break
    panel = jax.tree.map(lambda *leaves: np.concatenate(leaves), *panels)
    metrics = jb.evaluate(net, state.params, *data.test)
    for name, times in seconds.items():
        run.append(folder, {"epoch_seconds": name, "median": float(np.median(times[1:] or times))})
    ratios = np.divide(seconds["panel"], seconds["plain"])
    ratio = np.median(ratios[1:] if len(ratios) > 1 else ratios)
    console.print(
        f"{len(panel.cost)} steps; test accuracy {float(metrics.accuracy):.2%}; "
        f"a step with the panel takes {ratio:.2f} times one without.",
        soft_wrap=True,
    )
    worst = np.argsort(-costs)[:10]
    jb.plot_panel(panel).savefig(folder / "panel.png")
    images, y = x[worst].reshape(-1, *data.image_shape), jb.predict(net, state.params, x[worst])
    title = "The training digits of the highest cost, over all of training"
    jb.plot_examples(images, t[worst], y, title=title, columns=5).savefig(folder / "costliest.png")
    console.print(f"Written to {folder}", soft_wrap=True)
    return run.stopped(asked)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
