"""Fitted `MLPClassifier` and `MLPRegressor` of scikit-learn as networks, and networks as them."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
from collections.abc import Iterator
from typing import Any

import numpy as np

from jbackprop.conversion.assembly import assembled, dismantled
from jbackprop.conversion.steps import Affine, Step, as_leaf, fail, place_of
from jbackprop.core import activations as ours
from jbackprop.core import costs
from jbackprop.core.linear import Dense
from jbackprop.core.network import Network, Params

_HIDDEN = {
    "identity": ours.identity,
    "logistic": ours.sigmoid,
    "tanh": ours.tanh,
    "relu": ours.relu,
}
_HEADS = {
    "softmax": (ours.softmax, costs.cross_entropy),
    "logistic": (ours.sigmoid, costs.binary_cross_entropy),
    "identity": (ours.identity, costs.squared_error),
}


def network(estimator: Any) -> tuple[Network, Params]:
    """What a fitted estimator is."""
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    kind = type(estimator).__name__
    if not isinstance(estimator, MLPClassifier | MLPRegressor):
        fail("estimator", f"expected an MLPClassifier or an MLPRegressor, got {kind}")
    if not hasattr(estimator, "coefs_"):
        fail("estimator", f"expected a fitted {kind}, got one without coefs_")
    if estimator.out_activation_ not in _HEADS:
        got = estimator.out_activation_
        fail("estimator", f"expected an output of {', '.join(_HEADS)}, got {got}")
    if estimator.activation not in _HIDDEN:
        fail("estimator", f"expected one of {', '.join(_HIDDEN)}, got {estimator.activation}")
    output, cost = _HEADS[estimator.out_activation_]
    return assembled(
        "estimator", _steps(estimator), None, output=output, cost=cost, channels_first=False
    )


def _steps(estimator: Any) -> Iterator[Step]:
    f = _HIDDEN[estimator.activation]
    pairs = [*zip(estimator.coefs_, estimator.intercepts_, strict=True)]
    for i, (w, b) in enumerate(pairs):
        place = place_of("estimator", (i,), "coefs_")
        yield Step(place, Affine(Dense(w.shape[1]), as_leaf(place, w.T), as_leaf(place, b)))
        if i < len(pairs) - 1:
            yield Step(place, f)


def estimator(net: Network, params: Any) -> Any:
    """A fitted estimator that predicts what the network does."""
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.preprocessing import LabelBinarizer

    names = {f: name for name, f in _HIDDEN.items()}
    hidden = [*dict.fromkeys(net.activations[:-1])]
    if len(hidden) > 1 or not set(hidden) <= set(names):
        expected = f"one activation of {', '.join(f.name for f in names)}"
        fail("net", f"expected {expected} in every hidden layer, got {[f.name for f in hidden]}")
    out = {head[0]: name for name, head in _HEADS.items()}.get(net.output)
    if out is None:
        fail("net", f"expected an output softmax, sigmoid or identity, got {net.output.name}")
    if not net.flat:
        fail("net", f"expected dense maps of vectors, got sizes {net.sizes}")
    parts = dismantled(net, params, "scikit-learn", channels_first=False)
    layers = [part for part, _ in parts if isinstance(part, Affine)]
    if layers[0].w.dtype not in (np.float32, np.float64):
        fail("params", f"expected float32 or float64, got {layers[0].w.dtype}")
    n, widths = net.shapes[-1][0], tuple(shape[0] for shape in net.shapes[1:-1])
    options: dict[str, Any] = {"hidden_layer_sizes": widths}
    if hidden:
        options["activation"] = names[hidden[0]]
    if out == "identity":
        found: Any = MLPRegressor(**options)
    else:
        found = MLPClassifier(**options)
        several = out == "logistic" and n > 1
        classes = np.eye(n, dtype=int) if several else np.arange(max(n, 2))
        found._label_binarizer = LabelBinarizer().fit(classes)
        found.classes_ = found._label_binarizer.classes_
    found.coefs_ = [np.array(layer.w.T) for layer in layers]
    found.intercepts_ = [np.array(layer.b) for layer in layers]
    found.n_features_in_, found.n_outputs_, found.n_layers_ = net.shapes[0][0], n, len(layers) + 1
    found.out_activation_ = out
    return found
