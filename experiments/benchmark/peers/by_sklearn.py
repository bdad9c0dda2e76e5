"""scikit-learn's MLPClassifier: plain SGD, one pass over the same batches by `partial_fit`."""

from typing import Any, cast

import numpy as np
import optax
from sklearn.neural_network import MLPClassifier

import jbackprop as jb
from experiments.benchmark.peers import Candidate, Params
from experiments.benchmark.work import LEARNING_RATE, Problem, Work


def candidates(
    work: Work, problem: Problem, hidden: jb.Activation, optimizer: optax.GradientTransformation
) -> list[Candidate]:
    """No momentum, no penalty, no shuffle."""
    classes = np.arange(work.sizes[-1])
    x = problem.x.reshape(-1, work.sizes[0])
    labels = problem.labels.ravel()

    def fresh(learning_rate: float = LEARNING_RATE) -> Any:
        mlp: Any = MLPClassifier(
            work.sizes[1:-1], activation=hidden.name, solver="sgd", alpha=0.0, momentum=0.0,
            batch_size=cast(Any, work.batch), learning_rate_init=learning_rate, shuffle=False,
        )  # fmt: skip
        mlp.partial_fit(x[: work.batch], labels[: work.batch], classes=classes)
        mlp.coefs_ = [np.array(w.T) for w, _ in problem.params]
        mlp.intercepts_ = [b.copy() for _, b in problem.params]
        mlp._optimizer.params = [*mlp.coefs_, *mlp.intercepts_]  # what its updates write into
        return mlp

    def gradient() -> Params:
        # it shows its gradient by a step alone, which must be long beside w to be exact
        rate = 1e4
        mlp = fresh(rate)
        before = [*map(np.array, mlp.coefs_)], [*map(np.array, mlp.intercepts_)]
        mlp.partial_fit(x[: work.batch], labels[: work.batch])
        return [
            ((w0 - w1).T / rate, (b0 - b1) / rate)
            for w0, b0, w1, b1 in zip(*before, mlp.coefs_, mlp.intercepts_, strict=True)
        ]

    mlp = fresh()

    def run() -> Any:
        mlp.partial_fit(x, labels)

    return [Candidate("scikit-learn MLPClassifier", gradient, run, "scikit-learn")]
