"""Backpropagation in NumPy, by hand: BLAS for the products, every array allocated once."""

from typing import Any

import numpy as np
import optax

import jbackprop as jb
from experiments.benchmark.peers import Candidate, Params
from experiments.benchmark.work import LEARNING_RATE, Problem, Work


class Net:
    """Buffers for one batch size; every operation writes into one of them."""

    def __init__(self, problem: Problem, batch: int, hidden: str) -> None:
        self.tanh = hidden == "tanh"
        # (n_in, n_out), so that a @ w needs no transpose
        self.w = [np.ascontiguousarray(w.T) for w, _ in problem.params]
        self.b = [b.copy() for _, b in problem.params]
        self.dw = [np.empty_like(w) for w in self.w]
        self.db = [np.empty_like(b) for b in self.b]
        self.a = [np.empty((batch, len(b)), np.float32) for b in self.b]
        self.delta = [np.empty_like(a) for a in self.a]
        self.slope = [np.empty_like(a) for a in self.a]
        self.one_hot = np.eye(len(self.b[-1]), dtype=np.float32)

    def gradient(self, x: np.ndarray, labels: np.ndarray) -> None:
        """Forward and backward; leaves the mean gradient in dw and db."""
        last = len(self.w) - 1
        below = x
        for l, (w, b, a) in enumerate(zip(self.w, self.b, self.a, strict=True)):
            np.matmul(below, w, out=a)
            a += b
            if l == last:
                break
            if self.tanh:
                np.tanh(a, out=a)
            else:
                np.maximum(a, 0, out=a)
            below = a
        y, delta = self.a[-1], self.delta[-1]
        y -= y.max(axis=1, keepdims=True)
        np.exp(y, out=y)
        y /= y.sum(axis=1, keepdims=True)
        np.subtract(y, self.one_hot[labels], out=delta)
        delta /= len(x)
        for l in range(last, -1, -1):
            delta, below = self.delta[l], self.a[l - 1] if l else x
            np.matmul(below.T, delta, out=self.dw[l])
            np.sum(delta, axis=0, out=self.db[l])
            if l:
                np.matmul(delta, self.w[l].T, out=self.delta[l - 1])
                slope = self.slope[l - 1]
                if self.tanh:
                    np.multiply(below, below, out=slope)
                    np.subtract(1, slope, out=slope)
                else:
                    np.greater(below, 0, out=slope)
                self.delta[l - 1] *= slope

    def descend(self) -> None:
        """w ← w - η ∂C/∂w, in place."""
        for p, g in zip([*self.w, *self.b], [*self.dw, *self.db], strict=True):
            g *= LEARNING_RATE
            p -= g


def candidates(
    work: Work, problem: Problem, hidden: jb.Activation, optimizer: optax.GradientTransformation
) -> list[Candidate]:
    """Plain gradient descent only."""
    net = Net(problem, work.batch, hidden.name)

    def gradient() -> Params:
        net.gradient(problem.x[0], problem.labels[0])
        return [(dw.T.copy(), db.copy()) for dw, db in zip(net.dw, net.db, strict=True)]

    def run() -> Any:
        for x, labels in zip(problem.x, problem.labels, strict=True):
            net.gradient(x, labels)
            net.descend()

    return [Candidate("NumPy, by hand", gradient, run, "NumPy")]
