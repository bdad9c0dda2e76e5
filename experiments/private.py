"""Private training, end to end: digits learnt by DP-SGD, and what the privacy costs.

A step takes a Poisson sample (every example by itself, with probability q), clips every example's
gradient to max_norm, adds them up, divides by the *expected* size of a sample, adds Gaussian noise
of standard deviation σ max_norm over that size, and descends. What has been spent, ε at a fixed δ,
is counted by Google's dp-accounting. Abadi et al., "Deep Learning with Differential Privacy", 2016,
arXiv:1607.00133.
"""

import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from scipy.stats import binom

import jbackprop as jb
from experiments.common import networks, run
from experiments.common.data import Data, load

COVERS = """\
Covered: the parameters after every epoch, all of them together, against anyone who knows everything
but whether one training example (one scan) was put in or left empty: (ε, δ). An empty example still
counts as one: their number is public, and with it rate, steps and capacity.
Each σ is a run of its own, with its own parameters, samples and noise: to publish several is to
spend the sum of their ε and of their δ. One with σ = 0 spends everything.
The keys of these draws are as secret as the examples: with them the noise can be taken off.
Not covered: a person who wrote several of the digits; the validation and test digits, which the
accuracies are read from; the choice of these options, had it been made on this data; and attacks on
floating-point arithmetic or on a random number generator that is none of cryptography's."""


@dataclass(frozen=True)
class Options:
    """Train privately on handwritten digits, at several noise levels."""

    network: Literal["dense", "cnn"] = "dense"
    """cnn: the tanh network of Papernot et al., 2021, arXiv:2007.14191; of small images a LeNet."""
    sizes: tuple[int, ...] = (128,)
    """Widths of the hidden layers of a dense network."""
    noise: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
    """σ, each a run of its own: the noise's standard deviation in units of max_norm; 0 is none."""
    max_norm: float = 1.0
    """The bound on the norm of every example's gradient; inf is none."""
    expected_size: int = 128
    """The expected number of examples in a sample."""
    learning_rate: float = 1.0
    epochs: int = 20
    delta: float = 1e-4
    """δ of (ε, δ), to be well below 1 over the number of examples."""
    split: int = 0
    """Which digits are held out, a public number."""
    seed: int | None = None
    """Of parameters, samples and noise, to repeat a run; by default fresh entropy. A secret."""
    record_seed: bool = False
    """Write the seed beside the models: whoever reads it can take the noise off."""
    out: Path = Path("runs/private")
    """Where the run's folder is made."""
    data: Path | None = None
    """A folder with MNIST's four IDX files, gzipped or not, in place of scikit-learn's digits."""
    quick: bool = False
    """Two noise levels and two epochs, only to see that everything works."""


class Sampling(NamedTuple):
    """How samples are drawn.

    Attributes:
        examples: N, how many there are.
        expected: q N, the expected size of a sample, which the sum is divided by.
        steps: in an epoch, 1/q.
        capacity: the rows that hold a sample.
        overflow: the probability that a sample is larger, below 1e-12 a step; spent from δ.
    """

    examples: int
    expected: int
    steps: int
    capacity: int
    overflow: float


def sampling(examples: int, expected: int) -> Sampling:
    """Capacity by the binomial distribution's tail, since a sample that did not fit would not be
    one of the kind that is accounted for."""
    if not 1 <= expected <= examples:
        raise ValueError(f"expected_size: expected 1 to {examples}, got {expected}")
    rate = expected / examples
    capacity = min(examples, int(binom.isf(1e-12, examples, rate)) + 1)
    overflow = float(binom.sf(capacity, examples, rate))
    return Sampling(examples, expected, max(1, examples // expected), capacity, overflow)


def run_keys(seed: int | None, runs: int) -> Any:
    """A key for every run, (runs,): of two with one key, each would take off the other's noise."""
    if seed is None:
        words = jax.random.key_data(jax.random.key(0))
        entropy = np.frombuffer(secrets.token_bytes(words.nbytes), np.uint32)
        key = jax.random.wrap_key_data(jnp.asarray(entropy.reshape(words.shape)))
    else:
        key = jax.random.key(seed)
    return jax.random.split(key, runs)


def start(
    net: jb.Network, options: Options, sigma: float, key: Any
) -> tuple[optax.GradientTransformation, jb.TrainState]:
    """Optimizer and state of one run: its parameters, samples and noise all come from its key."""
    for_state, for_noise = jax.random.split(key)
    noise = jb.gaussian_noise(sigma, options.max_norm, options.expected_size, for_noise)
    optimizer = optax.chain(noise, optax.sgd(options.learning_rate))
    return optimizer, jb.init_state(net, optimizer, for_state)


def epoch(
    net: jb.Network, optimizer: Any, options: Options, plan: Sampling, x: Any, t: Any
) -> Callable[[jb.TrainState], tuple[jb.TrainState, Any]]:
    """(state) -> (state, whether a sample did not fit): one compiled loop."""
    gradient = jb.clipped_sum(options.max_norm, plan.expected)

    def step(state: jb.TrainState, _: Any) -> tuple[jb.TrainState, Any]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 0)
        rate = plan.expected / plan.examples
        index, weight = jb.poisson_sample(key, plan.examples, rate, plan.capacity)
        state, _ = jb.train_step(
            net, optimizer, state, x[index], t[index], weight=weight, gradient=gradient
        )
        return state, jnp.isnan(weight).any()

    @partial(jax.jit, donate_argnums=0)
    def loop(state: jb.TrainState) -> tuple[jb.TrainState, Any]:
        state, overflow = jax.lax.scan(step, state, length=plan.steps)
        return state, overflow.any()

    return loop


class Accountant:
    """ε spent so far, at a fixed δ: losses of subsampled Gaussian mechanisms, composed.

    An example that is left empty contributes 0 to the sum where it is drawn, so the mechanism is
    that of adding or removing one, at a rate that stays as it is. What is lost where a sample does
    not fit counts towards δ."""

    def __init__(self, sigma: float, plan: Sampling, delta: float) -> None:
        try:
            import dp_accounting
            from dp_accounting import pld
        except ImportError:
            raise ImportError(
                "private training needs dp-accounting: pip install 'jbackprop[privacy]'"
            ) from None
        self.sigma, self.delta = sigma, delta
        self.spent = pld.PLDAccountant()
        sampled = dp_accounting.PoissonSampledDpEvent(
            plan.expected / plan.examples, dp_accounting.GaussianDpEvent(sigma)
        )
        self.event = dp_accounting.SelfComposedDpEvent(sampled, plan.steps)
        self.overflow = plan.overflow * plan.steps

    def epoch(self) -> float:
        """ε after one more epoch; infinite without noise."""
        if self.sigma == 0:
            return float("inf")
        self.spent.compose(self.event)
        self.delta -= self.overflow
        return float(self.spent.get_epsilon(self.delta))


def check(options: Options) -> None:
    """Options that no type can check."""
    for name, low in (("epochs", 1), ("max_norm", 0), ("learning_rate", 0)):
        if not getattr(options, name) >= low:
            raise ValueError(f"{name}: expected at least {low}, got {getattr(options, name)}")
    if not 0 < options.delta < 1:
        raise ValueError(f"delta: expected a number between 0 and 1, got {options.delta}")
    if options.record_seed and options.seed is None:
        raise ValueError("record_seed: expected a --seed to record, got none")
    if len(set(options.noise)) < len(options.noise):
        raise ValueError(f"noise: expected different numbers, got {options.noise}")
    for sigma in options.noise:
        if not 0 <= sigma < float("inf"):
            raise ValueError(f"noise: expected numbers of at least 0, got {sigma}")
        if sigma and not 0 < options.max_norm < float("inf"):
            raise ValueError(
                "max_norm: expected a finite number above 0 where there is noise, "
                f"got {options.max_norm}"
            )


def main(options: Options) -> int:
    """Trains once for every σ, and draws privacy against accuracy."""
    console = Console(markup=False, highlight=False)
    if options.quick:
        options = replace(options, epochs=min(options.epochs, 2), noise=options.noise[:2])
    try:
        check(options)
        data = load(options.data, options.split)
        plan = sampling(len(data.train.labels), options.expected_size)
        if options.delta >= 1 / plan.examples:
            raise ValueError(
                f"delta: expected less than 1/N = {1 / plan.examples:.2g}, got {options.delta:g}: "
                "to publish one example chosen at random would be (0, 1/N)-private"
            )
        net = network(options, data)
        as_images = lambda part: part._replace(x=part.x.reshape(-1, *net.shapes[0]))
        data = data._replace(**{name: as_images(getattr(data, name)) for name in data._fields[:3]})
        jb.check_batch(net, *data.train)
        runs = {}
        keys = run_keys(options.seed, len(options.noise))
        for sigma, key in zip(options.noise, keys, strict=True):
            runs[sigma] = (Accountant(sigma, plan, options.delta), *start(net, options, sigma, key))
        folder = run.new_folder(options.out)
    except (ValueError, OSError, ImportError) as error:
        console.print(str(error), style="red", soft_wrap=True)
        return 2
    recorded = options if options.record_seed else replace(options, seed=None)
    run.write_config(folder, recorded, sampling=plan._asdict())
    console.print(
        f"{plan.examples} digits; samples of {plan.expected} on average, q = "
        f"{plan.expected / plan.examples:.3f}, in {plan.capacity} rows; "
        f"{plan.steps} steps an epoch; "
        f"norms clipped to {options.max_norm:g}; δ = {options.delta:g}.",
        soft_wrap=True,
    )
    curves: dict[float, list[dict[str, Any]]] = {}
    with run.stop_between_epochs() as asked:
        for sigma, (accountant, optimizer, state) in runs.items():
            loop = epoch(net, optimizer, options, plan, *map(jnp.asarray, data.train))
            try:
                curves[sigma] = train(
                    options, console, folder, net, data, sigma, loop, state, accountant, asked
                )
            except OverflowError as error:
                console.print(str(error), style="red", soft_wrap=True)
                return 1
            if asked:
                break
    draw(folder / "privacy.png", curves, options.delta)
    console.print(COVERS, soft_wrap=True)
    console.print(f"Written to {folder}", soft_wrap=True)
    return run.stopped(asked)


def draw(file: Path, curves: dict[float, list[dict[str, Any]]], delta: float) -> None:
    """Accuracy against ε; without noise it is a level."""
    of = lambda rows, what: [row[what] for row in rows]
    spent = {s: (of(rows, "epsilon"), of(rows, "test")) for s, rows in curves.items() if s and rows}
    without = curves[0][-1]["test"] if curves.get(0) else None
    jb.plot_privacy(spent, delta, without=without).savefig(file)


def network(options: Options, data: Data) -> jb.Network:
    """A tanh network for the digits."""
    if options.network == "cnn":
        return networks.for_images(data.image_shape, data.classes, jb.tanh)
    sizes = (data.train.x.shape[1], *options.sizes, data.classes)
    return jb.Network(sizes, jb.tanh, jb.softmax, jb.cross_entropy)


def train(
    options: Options,
    console: Console,
    folder: Path,
    net: jb.Network,
    data: Data,
    sigma: float,
    loop: Callable[[jb.TrainState], tuple[jb.TrainState, Any]],
    state: jb.TrainState,
    accountant: Accountant,
    asked: list[int],
) -> list[dict[str, Any]]:
    """The epochs of one noise level: a line of ε and accuracy each."""
    rows = []
    for number in range(1, options.epochs + 1):
        state, overflow = loop(state)
        if overflow:
            raise OverflowError(
                "A sample was larger than its rows, which the accounting has no room for. "
                f"Nothing of σ = {sigma:g} may be published; run it again with other randomness."
            )
        spent = accountant.epoch()
        test, validation = (
            float(jb.evaluate(net, state.params, part.x, part.labels, batch_size=1024).accuracy)
            for part in (data.test, data.validation)
        )
        row = {"noise": sigma, "epoch": number, "epsilon": spent, "test": test}
        rows.append(row | {"validation": validation})
        run.append(folder, rows[-1])
        console.print(
            f"σ = {sigma:<4g} epoch {number:3}   ε = {spent:6.2f}   validation {validation:.2%}"
            f"   test {test:.2%}"
        )
        if asked:
            break
    jb.save(folder / f"net-{sigma:g}.npz", net, state.params)
    return rows


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
