"""The network: what it is (`Network`), what it learns (`Layer`), what a pass leaves (`Tape`).

a^0 = x;  z^l = w^l a^{l-1} + b^l;  a^l = f(z^l) for l = 1 … L;  y = a^L.

Every function here speaks of one example, but for `predict`, which takes any leading axes.
"""

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, he_normal, lecun_normal
from jaxtyping import Array, Float

from jbackprop.core.activations import gives_probabilities, identity, rectifies, softmax, tanh
from jbackprop.core.arrays import check_key, fitted
from jbackprop.core.checks import as_input, as_pairs
from jbackprop.core.costs import binary_cross_entropy, cross_entropy, squared_error
from jbackprop.core.records import Activation, Cost


class Layer(NamedTuple):
    """w^l of shape (n_l, n_{l-1}) and b^l of shape (n_l,); or a gradient with respect to them."""

    w: Float[Array, "*batch _ _"]
    b: Float[Array, "*batch _"]


Params = tuple[Layer, ...]


class Tape(NamedTuple):
    """What the forward pass leaves for the backward pass.

    Attributes:
        z: the weighted inputs (z^1 … z^L), z^l of shape (n_l,).
        a: the activations (a^0 … a^L): the input x first, the output y last.
    """

    z: tuple[Float[Array, "*batch _"], ...]
    a: tuple[Float[Array, "*batch _"], ...]


@dataclass(frozen=True, init=False)
class Network:
    """A dense network, as a static description: hashable, comparable by value, never a pytree.

    Attributes:
        sizes: (n_0, n_1 … n_L), from the input to the output.
        hidden: one `Activation` for every hidden layer, or one per hidden layer.
        output: the activation of the last layer.
        cost: the cost C of one example.

    Raises:
        ValueError: fewer than two sizes or one below 1; a hidden softmax (its Jacobian is not
            diagonal); a number of activations that is not the number of hidden layers; softmax of
            a single output; a cost that takes probabilities with a built-in output that gives none
            (an activation of your own is trusted).

    >>> from jbackprop import Network, cross_entropy, relu, softmax
    >>> net = Network((64, 32, 10), relu, softmax, cross_entropy)
    >>> [f.name for f in net.activations]
    ['relu', 'softmax']
    """

    sizes: tuple[int, ...]
    hidden: Activation | tuple[Activation, ...]
    output: Activation
    cost: Cost

    def __init__(
        self,
        sizes: Any,
        hidden: Any = tanh,
        output: Any = identity,
        cost: Any = squared_error,
    ) -> None:
        sizes = _sizes(sizes)
        if not isinstance(hidden, Activation):
            hidden = _hidden(hidden, len(sizes) - 2)
        for name, value, kind in [("output", output, Activation), ("cost", cost, Cost)]:
            if not isinstance(value, kind):
                raise ValueError(f"{name}: expected one {kind.__name__}, got {value!r}")
        # a frozen dataclass is written once, here
        self.__dict__.update(sizes=sizes, hidden=hidden, output=output, cost=cost)
        for f in self.activations[:-1]:
            if f.pull is not None:
                raise ValueError(
                    f"hidden: expected activations that act element by element, got {f.name}, "
                    f"whose Jacobian is not diagonal; {f.name} is an output only"
                )
        _check_output(sizes[-1], output, cost)

    @property
    def activations(self) -> tuple[Activation, ...]:
        """(f^1 … f^L), one for each layer."""
        hidden = self.hidden
        if isinstance(hidden, Activation):
            hidden = (hidden,) * (len(self.sizes) - 2)
        return (*hidden, self.output)


def _check_output(n: int, output: Activation, cost: Cost) -> None:
    if output == softmax and n == 1:
        raise ValueError(
            "output: expected sigmoid, or two outputs, got softmax of a single output, "
            "which is 1 whatever its input"
        )
    if cost in (cross_entropy, binary_cross_entropy) and not gives_probabilities(output):
        fits = "softmax or sigmoid" if cost == cross_entropy else "sigmoid, softmax or hard_sigmoid"
        raise ValueError(
            f"output: expected {fits}, since the cost {cost.name} takes probabilities, "
            f"got {output.name}"
        )


def _sizes(sizes: Any) -> tuple[int, ...]:
    try:
        checked = tuple(operator.index(n) for n in sizes)
    except TypeError:
        raise ValueError(f"sizes: expected whole numbers (n_0, …, n_L), got {sizes!r}") from None
    if len(checked) < 2 or min(checked) < 1:
        raise ValueError(f"sizes: expected at least two sizes, each at least 1, got {sizes!r}")
    return checked


def _hidden(hidden: Any, count: int) -> tuple[Activation, ...]:
    """A list becomes a tuple, since a `Network` is hashable."""
    listed = tuple(hidden) if isinstance(hidden, Iterable) else (hidden,)
    if not all(isinstance(f, Activation) for f in listed):
        raise ValueError(f"hidden: expected an Activation, or one per hidden layer, got {hidden!r}")
    if len(listed) != count:
        raise ValueError(
            f"hidden: expected {count} activations, one per hidden layer, got {len(listed)}"
        )
    return listed


def init(
    net: Network, key: Any, *, initializer: Initializer | None = None, dtype: Any = jnp.float32
) -> Params:
    """Draws w^l and sets b^l = 0.

    Args:
        net: the network.
        key: a typed key, `jax.random.key(seed)`.
        initializer: called as `initializer(key, (n_l, n_{l-1}), dtype)`; one of
            `jax.nn.initializers` with `in_axis=-1, out_axis=-2`. By default LeCun normal (variance
            1/n_{l-1}), and He normal (2/n_{l-1}) where the layer's activation is a rectifier: relu,
            leaky_relu, relu6, elu, celu, silu, gelu, gelu_exact, mish, squareplus.
        dtype: a floating dtype.

    Returns:
        One `Layer` per layer.

    Raises:
        ValueError: key is no typed key; dtype is not floating, or float64 while x64 is off.

    >>> import jax
    >>> import jbackprop as jb
    >>> params = jb.init(jb.Network((64, 32, 10)), jax.random.key(0))
    >>> [w.shape for w, b in params]
    [(32, 64), (10, 32)]
    """
    check_key(key)
    try:
        floating = jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        got = getattr(dtype, "__name__", dtype)
        raise ValueError(f"dtype: expected a floating dtype, got {got}")
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(
            f"dtype: {jnp.dtype(dtype).name} needs 64-bit mode, which is off: "
            'jax.config.update("jax_enable_x64", True)'
        )
    layers = []
    keys = jax.random.split(key, len(net.activations))
    for (n_in, n_out), f, k in zip(pairwise(net.sizes), net.activations, keys, strict=True):
        normal = he_normal if rectifies(f) else lecun_normal
        draw = initializer or normal(in_axis=-1, out_axis=-2)
        w = jax.ShapeDtypeStruct((n_out, n_in), dtype)
        w = fitted("initializer", draw(k, w.shape, dtype), w)
        layers.append(Layer(w, jnp.zeros(n_out, dtype)))
    return tuple(layers)


def as_layers(net: Network, params: Any) -> Params:
    """Params of any structure that unpacks to (w, b) per layer, checked, as `tuple[Layer, ...]`."""
    return tuple(Layer(w, b) for w, b in as_pairs(net, params))


def forward(net: Network, params: Any, x: Any) -> Tape:
    """The forward pass of ONE example: z^l = w^l a^{l-1} + b^l, a^l = f(z^l).

    Args:
        net: the network.
        params: (w^l, b^l) per layer.
        x: the input a^0, of shape (n_0,) and any real dtype; cast to the parameters' dtype.

    Returns:
        The `Tape` of every z and a.

    Raises:
        ValueError: params or x do not fit the network.

    >>> import jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((2, 1, 1), jb.relu)
    >>> one, two = (jnp.array([[1.0, 2.0]]), jnp.array([3.0])), (jnp.array([[-1.0]]), jnp.zeros(1))
    >>> tape = jb.forward(net, [one, two], jnp.array([1.0, 1.0]))
    >>> [z.tolist() for z in tape.z]
    [[6.0], [-6.0]]
    """
    params = as_layers(net, params)
    a = as_input(net, x, params[0].w.dtype, rank=1)
    tape = Tape((), (a,))
    for (w, b), f in zip(params, net.activations, strict=True):
        z = w @ a + b
        a = fitted(f"activation {f.name}", f.f(z), z)
        tape = Tape((*tape.z, z), (*tape.a, a))
    return tape


def predict(net: Network, params: Any, x: Any) -> Float[Array, "*batch n_out"]:
    """The output y = a^L, of shape (..., n_L), for inputs x of shape (..., n_0): any leading axes.

    Raises:
        ValueError: params or x do not fit the network.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((64, 32, 10))
    >>> jb.predict(net, jb.init(net, jax.random.key(0)), jnp.ones((2, 3, 64))).shape
    (2, 3, 10)
    """
    params = as_layers(net, params)
    x = as_input(net, x, params[0].w.dtype, rank=None)

    def output(x: Float[Array, " n_in"]) -> Float[Array, " n_out"]:
        return forward(net, params, x).a[-1]

    for _ in range(x.ndim - 1):
        output = jax.vmap(output)
    return output(x)
