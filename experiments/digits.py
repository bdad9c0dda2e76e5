"""A network learns handwritten digits by the hand-written backward pass: `make digits`.

Before it trains, the gradient is compared with `jax.grad` on a batch. What comes out is a table and
a folder with config.json, metrics.jsonl, net.npz and three figures; `--load` evaluates such a net.
Every epoch is saved, and `--resume` goes on with such a folder, as if the run had never ended.
With `--distributed` it is one of several processes that learn together: `make distributed`.
"""

import math
import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from threading import Thread
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import jbackprop as jb
from experiments.common import processes, resuming, run
from experiments.common.data import Data, Part, load
from experiments.common.history import History, finite, packed, unpacked

Hidden = Literal[
    "identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "celu", "softplus", "silu",
    "gelu", "gelu_exact", "mish", "softsign", "hard_tanh", "hard_sigmoid", "relu6", "squareplus",
    "log_sigmoid",
]  # fmt: skip
OUTPUT = {
    "cross_entropy": jb.softmax,
    "binary_cross_entropy": jb.sigmoid,
    "squared_error": jb.identity,
    "huber": jb.identity,
    "log_cosh": jb.identity,
}


@dataclass(frozen=True)
class Options:
    """Train a network on handwritten digits by hand-written backpropagation."""

    sizes: tuple[int, ...] = (256, 128)
    """Widths of the hidden layers; the input's and the output's come from the data."""
    hidden: tuple[Hidden, ...] = ("relu",)
    """Their activation: one for all, or one each."""
    cost: Literal["cross_entropy", "binary_cross_entropy", "squared_error", "huber", "log_cosh"] = (
        "cross_entropy"
    )
    """The cost; softmax, sigmoid or identity is the output that goes with it."""
    optimizer: str = "adamw"
    """Any optimizer of optax that takes a learning rate, by name."""
    learning_rate: float = 1e-3
    batch_size: int = 16
    epochs: int = 80
    seed: int = 0
    """Of the split, the parameters and the order of the examples."""
    out: Path = Path("runs/digits")
    """Where the run's folder is made."""
    data: Path | None = None
    """A folder with MNIST's four IDX files, gzipped or not, in place of scikit-learn's digits."""
    load: Path | None = None
    """A `net.npz` of an earlier run: it is evaluated on this data, and nothing is trained."""
    resume: Path | None = None
    """The folder of a run, or of runs, of which the newest is meant: it goes on after the last
    epoch that was saved, with its own options; a larger `--epochs` goes on further."""
    quick: bool = False
    """Two epochs, only to see that everything works."""
    distributed: bool = False
    """Be one of several processes, started by `experiments.common.launch`, SLURM, MPI, …"""
    patience: float = 30.0
    """Seconds after which a process that is not there, silent or stuck ends all of them."""


def network(options: Options, data: Data) -> jb.Network:
    """The network that the options and the data ask for."""
    hidden = tuple(getattr(jb, name) for name in options.hidden)
    return jb.Network(
        (data.train.x.shape[1], *options.sizes, data.classes),
        hidden[0] if len(hidden) == 1 else hidden,
        OUTPUT[options.cost],
        getattr(jb, options.cost),
    )


def make_optimizer(options: Options) -> optax.GradientTransformation:
    """The optimizer by its name in optax."""
    try:
        optimizer = getattr(optax, options.optimizer)(learning_rate=options.learning_rate)
        assert isinstance(optimizer, optax.GradientTransformation)
    except (AttributeError, TypeError, AssertionError):
        raise ValueError(
            "optimizer: expected the name of an optimizer of optax that takes a learning rate, "
            f"such as sgd, adam or lion, got {options.optimizer!r}"
        ) from None
    return optimizer


def targets(net: jb.Network, part: Part) -> Any:
    """Labels as they are for cross-entropy, one-hot for every other cost."""
    if net.cost == jb.cross_entropy:
        return part.labels
    return np.eye(net.shapes[-1][0], dtype=np.float32)[part.labels]


def difference_from_autodiff(net: jb.Network, params: jb.Params, x: Any, t: Any) -> float:
    """The largest difference from `jax.grad`, relative to the largest entry of its array."""
    with jax.default_matmul_precision("highest"):
        _, ours = jax.jit(partial(jb.value_and_grad, net))(params, x, t)
        theirs = jax.jit(jax.grad(partial(jb.mean_cost, net)))(params, x, t)

    def relative(a: jax.Array, b: jax.Array) -> jax.Array:
        scale = jnp.max(jnp.abs(b))
        return jnp.max(jnp.abs(a - b)) / jnp.where(scale == 0, 1, scale)

    return float(jnp.max(jnp.stack(jax.tree.leaves(jax.tree.map(relative, ours, theirs)))))


def delta_norms(factors: jb.Factors, state: jb.TrainState, updates: Any) -> Any:
    """Mean ‖δ^l‖ of every layer, (L,): computed at every step inside the compiled epoch."""
    return jb.delta_norms(factors).mean


def progress_bar(console: Console) -> Progress:
    """Epochs done, cost, accuracy, time left."""
    return Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeRemainingColumn(),
        console=console,
    )


class Job(NamedTuple):
    """All that a run needs, made and checked before its folder is."""

    options: Options
    console: Console
    net: jb.Network
    optimizer: optax.GradientTransformation
    state: jb.TrainState
    data: Data
    parts: dict[str, Any]  # (x, t) of train, validation and test
    start: float
    team: processes.Alone
    gap: float | None  # from autodiff; None where the run goes on
    history: History


def prepare(options: Options, console: Console, team: processes.Alone) -> Job:
    """Data, network and optimizer; `ValueError` where an option does not fit."""
    start = time.perf_counter()
    for name in ("batch_size", "epochs"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(options, name)}")
    if options.quick:
        options = replace(options, epochs=min(options.epochs, 2))
    data = load(options.data, options.seed)
    net, optimizer = network(options, data), make_optimizer(options)
    parts = {
        name: (part.x, targets(net, part))
        for name, part in zip(("train", "validation", "test"), data[:3], strict=True)
    }
    for x, t in parts.values():
        jb.check_batch(net, x, t)
    state = jb.init_state(net, optimizer, jax.random.key(options.seed))
    job = Job(options, console, net, optimizer, state, data, parts, start, team, None, History())
    if options.resume is not None:
        return resumed(job, options.resume)
    x, t = parts["train"]
    gap = difference_from_autodiff(net, state.params, x[:128], t[:128])
    return job._replace(gap=gap)


def resumed(job: Job, folder: Path) -> Job:
    """The job after the last epoch that was saved; `ValueError` where that is of another."""
    with (
        warnings.catch_warnings(record=True) as told,
        jb.Checkpoints(folder / "checkpoints", job.net, job.optimizer) as saved,
    ):
        warnings.simplefilter("always", UserWarning)
        if not saved.steps:
            if (folder / "net.npz").exists():
                raise ValueError(
                    f"resume: expected checkpoints beside the net.npz in {folder}, got none"
                )
            return job
        state, extra = saved.restore(job.state)
    for warning in told:
        job.console.print(str(warning.message), style="yellow", soft_wrap=True)
    history = unpacked(extra)
    if len(history.rows) > job.options.epochs:
        raise ValueError(
            f"epochs: expected at least the {len(history.rows)} that are done, "
            f"got {job.options.epochs}"
        )
    start = job.start - history.rows[-1]["seconds"]
    return job._replace(state=state, history=history, start=start)


def main(options: Options) -> int:
    """Trains, writes, and returns an exit status: 0, 1 if training broke down or could not be
    written, 2 if an option does not fit, 130 after Ctrl-C, 143 after SIGTERM."""
    if options.distributed:
        return processes.together(partial(work, options), patience=options.patience)
    return work(options, processes.Alone())


def work(options: Options, team: processes.Alone) -> int:
    """What each process does. The lead alone prints, and writes all but the checkpoints."""
    console = Console(markup=False, highlight=False, quiet=not team.lead)
    try:
        if options.resume is not None:
            options = resuming.options_of(resuming.folder_of(options.resume), options)
        if options.load is not None:
            return evaluate_saved(options, options.load, console)
        team.told(asdict(options))
        job = prepare(options, console, team)
        team.begin(job.parts, job.state)
        made = options.resume or (run.new_folder(options.out) if team.lead else None)
        folder = Path(team.of_lead(str(made)))
    except (ValueError, OSError) as error:
        if options.distributed:
            raise processes.Refusal(str(error)) from None  # the others have to hear of it
        console.print(str(error), style="red", soft_wrap=True)
        return 2
    with run.stop_between_epochs() as asked:
        return train(job, folder, asked)


def evaluate_saved(options: Options, path: Path, console: Console) -> int:
    """A table of cost and accuracy of a saved network; `ValueError` where it does not fit."""
    net, params = jb.load(path)
    data = load(options.data, options.seed)
    pixels, inputs = data.train.x.shape[1], math.prod(net.shapes[0])
    if (pixels, data.classes) != (inputs, *net.shapes[-1]):
        raise ValueError(
            f"load: expected a network of {pixels} inputs and {data.classes} outputs, "
            f"got {inputs} and {net.shapes[-1][0]} in {path}"
        )
    found = {}
    for name, part in zip(("train", "validation", "test"), data[:3], strict=True):
        x, t = part.x.reshape(-1, *net.shapes[0]), targets(net, part)
        jb.check_batch(net, x, t)
        found[name] = len(x), jb.evaluate(net, params, x, t, batch_size=1024)
    console.print(f"{net}\n")
    console.print(table_of(found, f"{path}, on these digits"))
    return 0


def table_of(found: dict[str, tuple[int, jb.Metrics]], title: str) -> Table:
    """Cost and accuracy of every part of the data."""
    table = Table(title=title, title_justify="left")
    for heading in ("", "examples", "cost", "accuracy"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, (count, (cost, accuracy)) in found.items():
        table.add_row(name, str(count), f"{float(cost):.4f}", f"{float(accuracy):.2%}")
    return table


def begin(job: Job, folder: Path) -> None:
    """Writes the configuration, and says what is going to be done."""
    count = jax.device_count() if job.options.distributed else 1
    job.console.print(
        f"{len(job.data.train.x)} digits to learn from, "
        f"a network {'-'.join(map(str, job.net.sizes))}, "
        f"{f'{count} devices: ' if count > 1 else ''}{jax.devices()[0].device_kind}."
    )
    if job.gap is None:
        done = len(job.history.rows)
        resuming.note(folder, job.options, after=done)
        run.write_whole(folder / "metrics.jsonl", run.lines(job.history.rows))
        after = f"after epoch {done}" if done else "from the beginning: no epoch was saved"
        job.console.print(f"It goes on in {folder}, {after}.", soft_wrap=True)
    else:
        config = {"network": job.net.sizes, "difference_from_autodiff": job.gap}
        run.write_config(folder, job.options, **config)
        job.console.print(
            f"Largest relative difference from jax.grad on a batch: {job.gap:.1e}"
            f"{'' if job.gap else ', the same to the bit'}"
        )


def train(job: Job, folder: Path, asked: list[int]) -> int:
    """The epochs, then what is left of them. What cannot be written ends it."""
    lead = job.team.lead
    try:
        if lead:
            begin(job, folder)
        status, message, history = learn(job, folder, asked)
        job.team.part()
        if lead and history.kept is not None:
            finish(job, folder, history)
    except OSError as error:
        status = 1
        message = f"{error}\nWhat was saved before is whole. Go on with --resume {folder}"
        if job.options.distributed:
            raise processes.Refusal(message) from None  # the others have to hear of it
    if message:
        job.console.print(message, style="yellow", soft_wrap=True)
    seconds = time.perf_counter() - job.start
    job.console.print(f"Written to {folder} ({seconds:.1f} s)", soft_wrap=True)
    return status


def learn(job: Job, folder: Path, asked: list[int]) -> tuple[int, str, History]:
    """Epochs, each of them saved, until they are done, diverge or somebody asks to stop."""
    options, console, net, optimizer, state, _, parts, start, team, _, history = job
    state, (x, t) = team.everywhere((state, parts["train"]))
    evaluate = partial(jb.evaluate, net, batch_size=1024)
    status, message, done = 0, "", len(history.rows)
    saved = jb.Checkpoints(folder / "checkpoints", net, optimizer)
    # takes a second, in which the first epoch can be compiled
    Thread(target=import_module, args=["orbax.checkpoint"]).start()
    alone = nullcontext() if options.distributed else saved  # where others fail they never close it
    with progress_bar(console) as progress, alone:
        bar = progress.add_task("", total=options.epochs, completed=done, status="")
        for epoch in range(done + 1, options.epochs + 1):
            state, info = jb.train_epoch(
                net, optimizer, state, x, t, batch_size=options.batch_size, observe=delta_norms
            )
            params = team.here(state.params)
            scores = {
                name: {k: float(v) for k, v in evaluate(params, *parts[name])._asdict().items()}
                for name in ("train", "validation")
            }
            row = {"epoch": epoch, "seconds": round(time.perf_counter() - start, 3), **scores}
            history = history.after(row, np.asarray(info.observed), params)
            if team.lead:
                run.append(folder, row if finite(row) else row | {"finite": False})
            if not finite(row):
                status = 1
                message = (
                    f"The cost is no longer finite after epoch {epoch}. "
                    f"Try a lower --learning-rate than {options.learning_rate:g}."
                )
                break
            cost, accuracy = scores["validation"].values()
            progress.update(bar, advance=1, status=f"cost {cost:.4f}  accuracy {accuracy:.2%}")
            signals = team.agree(state, asked)
            saved.save(state, extra=packed(history))
            if signals and epoch < options.epochs:
                status = run.stopped(signals)
                message = f"Stopped after epoch {epoch}, as asked. Go on with --resume {folder}"
                break
    saved.close()
    return status, message, history


def costs(net: jb.Network, params: jb.Params, x: Any, t: Any) -> np.ndarray:
    """C of every example, (N,), a thousand at a time."""
    each = jax.jit(lambda x, t: jb.backprop(net, params, x, t).cost)
    return np.concatenate([each(x[i : i + 1000], t[i : i + 1000]) for i in range(0, len(x), 1000)])


def finish(job: Job, folder: Path, history: History) -> None:
    """The table, parameters and figures of the epoch with the best validation accuracy."""
    net, parts, data = job.net, job.parts, job.data
    rows, norms, kept = history
    assert kept
    epoch, params = kept
    jb.save(folder / "net.npz", net, params)
    found = {
        name: (len(x), jb.evaluate(net, params, x, t, batch_size=1024))
        for name, (x, t) in parts.items()
    }
    final = {name: {k: float(v) for k, v in m._asdict().items()} for name, (_, m) in found.items()}
    run.append(folder, {"kept": epoch, **final})
    job.console.print(table_of(found, f"After epoch {epoch}, the best on validation"))

    of = lambda name, what: jnp.array([row[name][what] for row in rows])
    metrics = {n: jb.Metrics(of(n, "cost"), of(n, "accuracy")) for n in ("train", "validation")}
    jb.plot_learning(metrics, kept=epoch).savefig(folder / "curves.png")
    jb.plot_delta_norms(np.stack(norms)).savefig(folder / "deltas.png")
    x, t = parts["test"]
    worst = np.argsort(-costs(net, params, x, t))[:18]
    wrong = round(len(x) * (1 - final["test"]["accuracy"]))
    title = f"The test digits with the highest cost ({wrong} of {len(x)} are classified wrongly)"
    images, labels = x[worst].reshape(-1, *data.image_shape), data.test.labels[worst]
    y = jb.predict(net, params, x[worst])
    jb.plot_examples(images, labels, y, title=title).savefig(folder / "hardest.png")


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
