"""Networks from and to other libraries, with their parameters bit by bit.

Of another library a chain is read: linear maps, activations and poolings, in nested `Sequential`s.
What has no counterpart is an error that says where it stands and why; nothing is left out.

The libraries are imported where they are used: none is needed to import this one.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from jbackprop.conversion import (
    read_equinox,
    read_flax,
    read_torch,
    sklearn_,
    state_torch,
    write_equinox,
    write_flax,
    write_torch,
)
from jbackprop.conversion.assembly import assembled
from jbackprop.core.activations import identity
from jbackprop.core.costs import squared_error
from jbackprop.core.network import Network, Params
from jbackprop.core.records import Activation, Cost


def from_torch(
    module: Any, input: Any = None, *, output: Any = identity, cost: Any = squared_error
) -> tuple[Network, Params]:
    """A `torch.nn.Sequential`, nested ones too, as a network.

    Args:
        module: `Linear`, `Conv1d` to `Conv3d`, the poolings, `Flatten`, `ZeroPad` and the
            activations that `help` of ours name; or one of them alone.
        input: the shape of one example, channels last, which is our order and not PyTorch's. Needed
            where positions come in, as for a convolution; a first `Linear` tells its own.
        output: what stands on top of the module, which ends in logits as a rule; where it ends in
            an activation, that is the output, and no other may be given.
        cost: the cost of one example.

    Returns:
        (net, params). Inputs of the network are channels last, `x.permute(0, 2, 3, 1)` of images;
        where a `Flatten` follows positions, the columns of the next weights are in our order. A
        missing bias is zeros. The numbers are copies. The network is in its shortest form: one
        number where all dimensions have the same, one hidden activation where all are alike.

    Raises:
        ValueError: a layer has no counterpart, with its place and the reason; the module is no
            chain; input is needed and missing, or does not fit; float64 while x64 is off.
        ImportError: PyTorch is not installed.

    An example::

        module = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
                               nn.Linear(8 * 13 * 13, 10))
        net, params = jb.from_torch(module, (28, 28, 1), output=jb.softmax, cost=jb.cross_entropy)
        norms = jb.squared_norms(jb.backprop(net, params, x, t))
    """
    steps = read_torch.steps(module)
    return _assembled("torch", steps, input, output, cost, channels_first=True)


def to_torch(net: Network, params: Any) -> Any:
    """A `torch.nn.Sequential` that computes `predict`, the output's activation included.

    Args:
        net: the network, of dense maps and convolutions; its cost is left out.
        params: (w^l, b^l) per layer.

    Returns:
        The module, for batches, channels first. Without its last softmax it gives what
        `torch.nn.CrossEntropyLoss` takes. A padding that PyTorch's layer cannot do itself is a
        module before it. `from_torch` gives the network back, "SAME" as numbers where it was one of
        a stride or a maximum.

    Raises:
        ValueError: params do not fit; an activation, a map or a pooling has no counterpart there.
        ImportError: PyTorch is not installed.
    """
    with _installed("to_torch", "torch"):
        return write_torch.sequential(net, params)


def load_torch(net: Network, state_dict: Any) -> Params:
    """The parameters in a state dict of PyTorch, whatever the module that it came from.

    A state dict has no layers but names and numbers: its entries, in their order, are matched with
    the network's maps, and each shape must be that of its map.

    Args:
        net: the network.
        state_dict: of names, "….weight" and "….bias", to tensors or NumPy arrays, PyTorch's order
            of axes; a missing bias is zeros.

    Returns:
        (w^l, b^l) per layer, in our order of axes: the columns behind positions, too.

    Raises:
        ValueError: entries are missing, left over, called something else, or of another shape.

    >>> import numpy as np
    >>> import jbackprop as jb
    >>> from jbackprop.convert import load_torch
    >>> net = jb.Network(((5, 1), jb.Conv(2, 3), 4))
    >>> state = {"a.weight": np.ones((2, 1, 3)), "b.weight": np.ones((4, 6)), "b.bias": np.ones(4)}
    >>> params = load_torch(net, {name: v.astype(np.float32) for name, v in state.items()})
    >>> [w.shape for w, b in params]
    [(2, 3, 1), (4, 6)]
    """
    return state_torch.from_state(net, state_dict)


def from_equinox(
    module: Any, input: Any = None, *, output: Any = identity, cost: Any = squared_error
) -> tuple[Network, Params]:
    """An `equinox.nn.MLP` or `equinox.nn.Sequential` as a network.

    Args:
        module: of `Linear`, `Conv1d` to `Conv3d`, poolings, and functions in `Lambda`, which are
            found by what they do: activations, flattening, the mean over positions. An activation
            that ours has not becomes `Activation.from_function`.
        input, output, cost: as in `from_torch`; Equinox, too, has channels first.

    Returns:
        (net, params), as `from_torch`.

    Raises:
        ValueError: as `from_torch`; a function does none of these.
        ImportError: Equinox is not installed.

    An example::

        module = eqx.nn.MLP(64, 10, 32, 2, activation=jnp.tanh, key=jax.random.key(0))
        net, params = jb.from_equinox(module, output=jb.softmax, cost=jb.cross_entropy)
    """
    steps = read_equinox.steps(module)
    return _assembled("equinox", steps, input, output, cost, channels_first=True)


def to_equinox(net: Network, params: Any) -> Any:
    """An `equinox.nn.Sequential` of one example that computes `predict`, channels first.

    Arguments and errors are those of `to_torch`; your own activation goes as its function f.
    """
    with _installed("to_equinox", "equinox"):
        return write_equinox.sequential(net, params)


def from_flax(
    module: Any,
    input: Any = None,
    *,
    params: Any = None,
    output: Any = identity,
    cost: Any = squared_error,
) -> tuple[Network, Params]:
    """A `Sequential` of Flax as a network: of `flax.nnx`, or of `flax.linen` with its variables.

    Args:
        module: of `Linear` or `Dense`, `Conv`, and functions of a batch, which are found by what
            they do: activations, flattening, `max_pool` and `avg_pool`, the mean over positions.
        input, output, cost: as in `from_torch`; Flax has channels last, as we do.
        params: of Linen, its variables, {"params": …}; of NNX, None.

    Returns:
        (net, params), as `from_torch`.

    Raises:
        ValueError: as `from_torch`; a function does none of these.
        ImportError: Flax is not installed.

    An example::

        module = nnx.Sequential(
            nnx.Conv(1, 8, (3, 3), rngs=rngs), nnx.relu, lambda x: nnx.max_pool(x, (2, 2), (2, 2)),
            lambda x: x.reshape(len(x), -1), nnx.Linear(8 * 14 * 14, 10, rngs=rngs))
        net, params = jb.from_flax(module, (28, 28, 1), output=jb.softmax, cost=jb.cross_entropy)
    """
    steps = read_flax.steps(module, params)
    return _assembled("flax", steps, input, output, cost, channels_first=False)


def to_flax(net: Network, params: Any) -> Any:
    """A `flax.nnx.Sequential` that computes `predict`, of a batch, channels last.

    Arguments and errors are those of `to_torch`; your own activation goes as its function f.
    """
    with _installed("to_flax", "flax"):
        return write_flax.nnx_sequential(net, params)


def to_linen(net: Network, params: Any) -> tuple[Any, Any]:
    """A `flax.linen.Sequential` that computes `predict`, and its variables.

    Arguments and errors are those of `to_torch`; your own activation goes as its function f.

    Returns:
        (module, variables): `module.apply(variables, x)`.
    """
    with _installed("to_linen", "flax"):
        return write_flax.linen_sequential(net, params)


def from_sklearn(estimator: Any) -> tuple[Network, Params]:
    """A fitted `MLPClassifier` or `MLPRegressor` as a network, with its output and its cost.

    Args:
        estimator: fitted. Labels t of the network are indices into its `classes_`; scikit-learn's
            penalty, alpha, is no part of the cost.

    Returns:
        (net, params): softmax with cross-entropy, sigmoid with binary cross-entropy (two classes,
        or several labels at once), or the identity with the squared error.

    Raises:
        ValueError: the estimator is none of these, or not fitted; it was fitted on float64, as it
            is on inputs of that dtype, while x64 is off.
        ImportError: scikit-learn is not installed.
    """
    with _installed("from_sklearn", "sklearn"):
        return sklearn_.network(estimator)


def to_sklearn(net: Network, params: Any) -> Any:
    """An `MLPClassifier` or `MLPRegressor`, as if fitted, that predicts what the network does.

    Args:
        net: a dense network of one hidden activation (identity, sigmoid, tanh or relu). An output
            softmax or sigmoid makes a classifier of classes 0, 1, …, of several labels at once
            where a sigmoid has several outputs; the identity a regressor.
        params: (w^l, b^l) per layer, float32 or float64.

    Returns:
        The estimator: `predict`, `predict_proba`. A further `fit` begins anew.

    Raises:
        ValueError: params do not fit; scikit-learn has no such network.
        ImportError: scikit-learn is not installed.
    """
    with _installed("to_sklearn", "sklearn"):
        return sklearn_.estimator(net, params)


def _assembled(
    library: str, steps: Any, input: Any, output: Any, cost: Any, *, channels_first: bool
) -> tuple[Network, Params]:
    """The network of steps, which are read, and the library imported, as they are asked for."""
    for name, value, kind in (("output", output, Activation), ("cost", cost, Cost)):
        if not isinstance(value, kind):
            raise ValueError(f"{name}: expected one {kind.__name__}, got {value!r}")
    with _installed(f"from_{library}", library):
        return assembled(
            "module", steps, input, output=output, cost=cost, channels_first=channels_first
        )


_NAMES = {"torch": "PyTorch", "equinox": "Equinox", "flax": "Flax", "sklearn": "scikit-learn"}


@contextmanager
def _installed(function: str, library: str) -> Generator[None, None, None]:
    """A missing library, told as such."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != library:
            raise
        package = {"sklearn": "scikit-learn"}.get(library, library)
        raise ImportError(f"{function} needs {_NAMES[library]}: pip install {package}") from error
