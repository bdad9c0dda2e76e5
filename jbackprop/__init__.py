"""Backpropagation by hand, in JAX: a δ recursion that keeps what `jax.grad` throws away."""

from jbackprop.activations import Activation, celu, elu, gelu, gelu_exact, hard_sigmoid, hard_tanh, identity, leaky_relu, log_sigmoid, mish, relu, relu6, selu, sigmoid, silu, softmax, softplus, softsign, squareplus, tanh
from jbackprop.backward import Rule, Signal, backpropagation, backward, gradients, propagate
from jbackprop.checks import check_batch
from jbackprop.costs import Cost, binary_cross_entropy, cross_entropy, huber, log_cosh, squared_error
from jbackprop.factors import Factors, backprop, example_gradients, mean_cost, mean_gradient, sum_gradient, value_and_grad
from jbackprop.metrics import Metrics, evaluate
from jbackprop.network import Layer, Network, Params, Tape, forward, init, predict
from jbackprop.train import Info, TrainState, init_state, sgd_step, train_epoch, train_step

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Cost",
    "Factors",
    "Info",
    "Layer",
    "Metrics",
    "Network",
    "Params",
    "Rule",
    "Signal",
    "Tape",
    "TrainState",
    "backprop",
    "backpropagation",
    "backward",
    "binary_cross_entropy",
    "celu",
    "check_batch",
    "cross_entropy",
    "elu",
    "evaluate",
    "example_gradients",
    "forward",
    "gelu",
    "gelu_exact",
    "gradients",
    "hard_sigmoid",
    "hard_tanh",
    "huber",
    "identity",
    "init",
    "init_state",
    "leaky_relu",
    "log_cosh",
    "log_sigmoid",
    "mean_cost",
    "mean_gradient",
    "mish",
    "predict",
    "propagate",
    "relu",
    "relu6",
    "selu",
    "sgd_step",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "squared_error",
    "squareplus",
    "sum_gradient",
    "tanh",
    "train_epoch",
    "train_step",
    "value_and_grad",
]
