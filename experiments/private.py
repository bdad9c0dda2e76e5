"""Private training, end to end: digits learnt by DP-SGD, and what the privacy costs.

A step takes a Poisson sample (every example by itself, with probability q), clips every example's
gradient to max_norm, adds them up, adds Gaussian noise of standard deviation σ max_norm, divides by
the *expected* size of a sample, and descends. What has been spent, ε at a fixed δ, is counted by
Google's dp-accounting. Abadi et al., "Deep Learning with Differential Privacy", 2016,
arXiv:1607.00133.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console
from scipy.stats import binom

import jbackprop as jb
from experiments.common import figures, run
from experiments.common.data import Data, load

COVERS = """\
Covered: the parameters after every epoch, all of them together, against anyone who knows everything
but whether one training example (one scan) was there: (ε, δ), adding or removing it.
Each σ is a run of its own: to publish several is to spend the sum of them.
Not covered: a person who wrote several of the digits; the validation and test digits, which the
accuracies are read from; the choice of these options, had it been made on this data; and attacks on
floating-point arithmetic or on a random number generator that is none of cryptography's."""


@dataclass(frozen=True)
class Options:
    """Train privately on handwritten digits, at several noise levels."""

    sizes: tuple[int, ...] = (128,)
    """Widths of the hidden layers."""
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
    seed: int = 0
    """Of the split, the parameters, the samples and the noise."""
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
        capacity: the rows that hold a sample; it is larger with probability below 1e-12 a step.
    """

    examples: int
    expected: int
    steps: int
    capacity: int


def sampling(examples: int, expected: int) -> Sampling:
    """Capacity by the binomial distribution's tail, since a sample that did not fit would not be
    one of the kind that is accounted for."""
    if not 1 <= expected <= examples:
        raise ValueError(f"expected_size: expected 1 to {examples}, got {expected}")
    capacity = int(binom.isf(1e-12, examples, expected / examples)) + 1
    return Sampling(examples, expected, max(1, examples // expected), min(examples, capacity))


def draw(plan: Sampling, key: Any) -> tuple[Any, Any, Any]:
    """A Poisson sample: the rows (capacity,), their weights 1 or 0, and whether it did not fit."""
    chosen = jax.random.bernoulli(key, plan.expected / plan.examples, (plan.examples,))
    (rows,) = jnp.nonzero(chosen, size=plan.capacity, fill_value=0)
    count = jnp.sum(chosen)
    weight = (jnp.arange(plan.capacity) < count).astype(jnp.float32)
    return rows, weight, count > plan.capacity


def released(max_norm: float, expected: int) -> Callable[[jb.Factors], jb.Params]:
    """Σ_i clip(g_i) / expected. One example moves the sum by at most max_norm, whatever the rest
    is: the divisor is fixed, where a mean's would depend on who is there."""

    def gradient(factors: jb.Factors) -> jb.Params:
        total = jb.sum_gradient(jb.clip(factors, max_norm))
        return jax.tree.map(lambda g: g / expected, total)

    return gradient


def make_optimizer(options: Options, sigma: float) -> optax.GradientTransformation:
    """Noise of standard deviation σ max_norm / expected, then gradient descent."""
    sgd = optax.sgd(options.learning_rate)
    if sigma == 0:
        return sgd
    deviation = sigma * options.max_norm / options.expected_size
    return optax.chain(optax.add_noise(deviation**2, 0.0, key=options.seed + 1), sgd)


def epoch(
    net: jb.Network, optimizer: Any, gradient: Any, plan: Sampling, x: Any, t: Any
) -> Callable[[jb.TrainState], tuple[jb.TrainState, Any]]:
    """(state) -> (state, whether a sample did not fit): one compiled loop."""

    def step(state: jb.TrainState, _: Any) -> tuple[jb.TrainState, Any]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), 0)
        rows, weight, overflow = draw(plan, key)
        state, _ = jb.train_step(
            net, optimizer, state, x[rows], t[rows], weight=weight, gradient=gradient
        )
        return state, overflow

    @partial(jax.jit, donate_argnums=0)
    def loop(state: jb.TrainState) -> tuple[jb.TrainState, Any]:
        state, overflow = jax.lax.scan(step, state, length=plan.steps)
        return state, overflow.any()

    return loop


class Accountant:
    """ε spent so far, at a fixed δ: losses of subsampled Gaussian mechanisms, composed."""

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

    def epoch(self) -> float:
        """ε after one more epoch; infinite without noise."""
        if self.sigma == 0:
            return float("inf")
        self.spent.compose(self.event)
        return float(self.spent.get_epsilon(self.delta))


def check(options: Options) -> None:
    """Options that no type can check."""
    for name, low in (("epochs", 1), ("max_norm", 0), ("learning_rate", 0)):
        if not getattr(options, name) >= low:
            raise ValueError(f"{name}: expected at least {low}, got {getattr(options, name)}")
    if not 0 < options.delta < 1:
        raise ValueError(f"delta: expected a number between 0 and 1, got {options.delta}")
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
        data = load(options.data, options.seed)
        plan = sampling(len(data.train.labels), options.expected_size)
        accountants = {sigma: Accountant(sigma, plan, options.delta) for sigma in options.noise}
        folder = run.new_folder(options.out)
    except (ValueError, OSError, ImportError) as error:
        console.print(str(error), style="red", soft_wrap=True)
        return 2
    run.write_config(folder, options, sampling=plan._asdict())
    console.print(
        f"{plan.examples} digits; samples of {plan.expected} on average, q = "
        f"{plan.expected / plan.examples:.3f}, in {plan.capacity} rows; "
        f"{plan.steps} steps an epoch; "
        f"norms clipped to {options.max_norm:g}; δ = {options.delta:g}.",
        soft_wrap=True,
    )
    curves: dict[float, list[dict[str, Any]]] = {}
    with run.stop_between_epochs() as asked:
        for sigma, accountant in accountants.items():
            try:
                curves[sigma] = train(
                    options, console, folder, data, plan, sigma, accountant, asked
                )
            except OverflowError as error:
                console.print(str(error), style="red", soft_wrap=True)
                return 1
            if asked:
                break
    figures.privacy(folder / "privacy.png", curves, options.delta)
    console.print(COVERS, soft_wrap=True)
    console.print(f"Written to {folder}", soft_wrap=True)
    return 130 if asked else 0


def train(
    options: Options,
    console: Console,
    folder: Path,
    data: Data,
    plan: Sampling,
    sigma: float,
    accountant: Accountant,
    asked: list[int],
) -> list[dict[str, Any]]:
    """The epochs of one noise level: a line of ε and accuracy each."""
    x, t = jnp.asarray(data.train.x), jnp.asarray(data.train.labels)
    net = jb.Network(
        (x.shape[1], *options.sizes, data.classes), jb.tanh, jb.softmax, jb.cross_entropy
    )
    optimizer = make_optimizer(options, sigma)
    state = jb.init_state(net, optimizer, jax.random.key(options.seed))
    gradient = released(options.max_norm, plan.expected)
    loop = epoch(net, optimizer, gradient, plan, x, t)
    rows = []
    for number in range(1, options.epochs + 1):
        state, overflow = loop(state)
        if overflow:
            raise OverflowError(
                f"A sample was larger than {plan.capacity} rows, which the accounting has no room "
                f"for. Nothing of σ = {sigma:g} may be published; run again with another --seed."
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
    run.save_params(folder, state.params, name=f"params-{sigma:g}")
    return rows


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
