"""Backpropagation by hand, in JAX: a δ recursion that keeps what `jax.grad` throws away."""

from jbackprop.convert import (
    from_equinox,
    from_flax,
    from_sklearn,
    from_torch,
    load_torch,
    to_equinox,
    to_flax,
    to_linen,
    to_sklearn,
    to_torch,
)
from jbackprop.core.activations import (
    celu,
    elu,
    elu_of,
    gelu,
    gelu_exact,
    hard_sigmoid,
    hard_tanh,
    identity,
    leaky_relu,
    leaky_relu_of,
    log_sigmoid,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softmax,
    softplus,
    softsign,
    squareplus,
    tanh,
)
from jbackprop.core.apply import apply
from jbackprop.core.backward import backpropagation, backward, gradients, propagate
from jbackprop.core.batch import mean_cost, pad_batch
from jbackprop.core.costs import (
    binary_cross_entropy,
    cross_entropy,
    huber,
    huber_of,
    log_cosh,
    squared_error,
)
from jbackprop.core.derivatives import check_derivatives
from jbackprop.core.factors import (
    Factors,
    backprop,
    example_gradients,
    mean_gradient,
    sum_gradient,
    value_and_grad,
)
from jbackprop.core.initial import init
from jbackprop.core.linear import Conv, Dense
from jbackprop.core.network import Layer, Network, Params, Tape, forward, predict
from jbackprop.core.pooling import MaxPool, MeanPool
from jbackprop.core.records import Activation, Cost
from jbackprop.core.rules import Rule, Signal
from jbackprop.core.values import check_batch
from jbackprop.core.vjp import Pull, input_gradient, vjp
from jbackprop.plots import (
    plot_delta_norms,
    plot_examples,
    plot_filters,
    plot_flow,
    plot_learning,
    plot_lines,
    plot_outer,
    plot_panel,
    plot_privacy,
    plot_weights,
)
from jbackprop.quantities.batch_size import (
    inner_product_test,
    norm_test,
    orthogonality_test,
    signal_to_noise,
    takeuchi,
)
from jbackprop.quantities.clipping import (
    clip,
    clip_layers,
    clipped_mean,
    clipped_sum,
    normalize,
    scale,
)
from jbackprop.quantities.diagnostics import (
    Histograms,
    Panel,
    Spread,
    Units,
    delta_norms,
    histograms,
    observe_all,
    units,
    update_ratio,
)
from jbackprop.quantities.groups import group_clip, group_gradients, group_squared_norms
from jbackprop.quantities.kernel import empirical_ntk
from jbackprop.quantities.moments import second_moment, variance
from jbackprop.quantities.norms import layer_squared_norms, squared_norms
from jbackprop.quantities.scores import el2n, grand, influence
from jbackprop.quantities.spread import NoiseScale, noise_scale
from jbackprop.quantities.statistics import gram, inner_products, kronecker_factors
from jbackprop.saved import load, save
from jbackprop.training.checkpoint import Checkpoints, Restored
from jbackprop.training.metrics import Metrics, evaluate, every_label
from jbackprop.training.privacy import gaussian_noise, poisson_sample
from jbackprop.training.sharding import make_mesh, shard_batch, shardings_for
from jbackprop.training.shuffle import shuffled
from jbackprop.training.state import Info, TrainState, epoch_order, init_state, sgd_step
from jbackprop.training.streaming import epoch_batches, train_stream
from jbackprop.training.train import train_epoch, train_step
from jbackprop.verification.report import Report
from jbackprop.verify import verify

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Checkpoints",
    "Conv",
    "Cost",
    "Dense",
    "Factors",
    "Histograms",
    "Info",
    "Layer",
    "MaxPool",
    "MeanPool",
    "Metrics",
    "Network",
    "NoiseScale",
    "Panel",
    "Params",
    "Pull",
    "Report",
    "Restored",
    "Rule",
    "Signal",
    "Spread",
    "Tape",
    "TrainState",
    "Units",
    "apply",
    "backprop",
    "backpropagation",
    "backward",
    "binary_cross_entropy",
    "celu",
    "check_batch",
    "check_derivatives",
    "clip",
    "clip_layers",
    "clipped_mean",
    "clipped_sum",
    "cross_entropy",
    "delta_norms",
    "el2n",
    "elu",
    "elu_of",
    "empirical_ntk",
    "epoch_batches",
    "epoch_order",
    "evaluate",
    "every_label",
    "example_gradients",
    "forward",
    "from_equinox",
    "from_flax",
    "from_sklearn",
    "from_torch",
    "gaussian_noise",
    "gelu",
    "gelu_exact",
    "gradients",
    "gram",
    "grand",
    "group_clip",
    "group_gradients",
    "group_squared_norms",
    "hard_sigmoid",
    "hard_tanh",
    "histograms",
    "huber",
    "huber_of",
    "identity",
    "influence",
    "init",
    "init_state",
    "inner_product_test",
    "inner_products",
    "input_gradient",
    "kronecker_factors",
    "layer_squared_norms",
    "leaky_relu",
    "leaky_relu_of",
    "load",
    "load_torch",
    "log_cosh",
    "log_sigmoid",
    "make_mesh",
    "mean_cost",
    "mean_gradient",
    "mish",
    "noise_scale",
    "norm_test",
    "normalize",
    "observe_all",
    "orthogonality_test",
    "pad_batch",
    "plot_delta_norms",
    "plot_examples",
    "plot_filters",
    "plot_flow",
    "plot_learning",
    "plot_lines",
    "plot_outer",
    "plot_panel",
    "plot_privacy",
    "plot_weights",
    "poisson_sample",
    "predict",
    "propagate",
    "relu",
    "relu6",
    "save",
    "scale",
    "second_moment",
    "selu",
    "sgd_step",
    "shard_batch",
    "shardings_for",
    "shuffled",
    "sigmoid",
    "signal_to_noise",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "squared_error",
    "squared_norms",
    "squareplus",
    "sum_gradient",
    "takeuchi",
    "tanh",
    "to_equinox",
    "to_flax",
    "to_linen",
    "to_sklearn",
    "to_torch",
    "train_epoch",
    "train_step",
    "train_stream",
    "units",
    "update_ratio",
    "value_and_grad",
    "variance",
    "verify",
    "vjp",
]
