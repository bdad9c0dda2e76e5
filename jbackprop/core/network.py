"""The network: what it is (`Network`), what it learns (`Layer`), what a pass leaves (`Tape`).

a^0 = x;  z^l = w^l a^{l-1} + b^l;  a^l = f(z^l) for l = 1 … L;  y = a^L. Where a pooling P follows
a map, a^l = P(f(z^l)); behind the last, y = f(P(z^L)).

Every function here speaks of one example, but for `predict`, which takes any leading axes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.activations import gives_probabilities, identity, softmax, tanh
from jbackprop.core.arrays import fitted
from jbackprop.core.chain import chain_of
from jbackprop.core.checks import as_input, as_pairs
from jbackprop.core.costs import binary_cross_entropy, cross_entropy, squared_error
from jbackprop.core.linear import Dense
from jbackprop.core.maps import Map, shaped
from jbackprop.core.numerics import wide
from jbackprop.core.placement import by_example, placed
from jbackprop.core.pooling import Pool
from jbackprop.core.records import Activation, Cost
from jbackprop.core.summary import summary
from jbackprop.core.windows import Shape


class Layer(NamedTuple):
    """One layer's parameters (w^l, b^l), or a gradient with respect to them:
    (n_l, n_{l-1}), of a convolution (n_l, *kernel, channels), and (n_l,)."""

    w: Float[Array, "..."]
    b: Float[Array, "*batch _"]


Params = tuple[Layer, ...]
"""The parameters of a network, one `Layer(w, b)` per layer, from the input to the output."""


class Tape(NamedTuple):
    """What the forward pass keeps for the backward pass.

    Attributes:
        z: the weighted inputs (z^1 … z^L), z^l of shape (n_l,), of a convolution (*positions, n_l).
        a: the activations (a^0 … a^L): the input x first, the output y last; pooled, where a
            pooling follows.
    """

    z: tuple[Float[Array, "..."], ...]
    a: tuple[Float[Array, "..."], ...]


@dataclass(frozen=True, init=False)
class Network:
    """A chain of linear maps, as a static description: hashable, comparable by value, no pytree.

    Attributes:
        sizes: from the input to the output: n_0, or the input's shape; then the maps, an int n for
            `Dense(n)`, or a `Conv`, each followed by at most one pooling. (n_0, n_1 … n_L) is a
            dense network.
        hidden: one `Activation` for every hidden layer, or one per hidden layer.
        output: the activation of the last layer.
        cost: the cost C of one example.

    Raises:
        ValueError: fewer than two sizes or one below 1; a map or a pooling that does not fit what
            comes to it, or an output that is not flat; a hidden softmax (its Jacobian is not
            diagonal); a number of activations that is not the number of hidden layers; softmax of
            a single output; a cost that takes probabilities with a built-in output that gives none
            (an activation of your own is trusted).

    >>> from jbackprop import Network, cross_entropy, relu, softmax
    >>> net = Network((64, 32, 10), relu, softmax, cross_entropy)
    >>> [f.name for f in net.activations]
    ['relu', 'softmax']
    >>> from jbackprop import Conv, MaxPool
    >>> net = Network(((28, 28, 1), Conv(16, 5), MaxPool(2), 10), relu, softmax, cross_entropy)
    >>> net.shapes  # of a^0 … a^L
    ((28, 28, 1), (12, 12, 16), (10,))
    >>> print(net)
       layer               shape     weights  mul-adds     kept
    0  input               28×28×1                      3.1 KiB
    1  Conv(16, 5), relu   24×24×16      416   230,400   81 KiB
       MaxPool(2)          12×12×16
    2  Dense(10), softmax  10         23,050    23,040    120 B
                                      23,466   253,440   84 KiB
    cost: cross_entropy
    """

    sizes: tuple[Any, ...]
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
        sizes, chain = chain_of(sizes)
        if not isinstance(hidden, Activation):
            hidden = _hidden(hidden, len(chain.maps) - 1)
        for name, value, kind in [("output", output, Activation), ("cost", cost, Cost)]:
            if not isinstance(value, kind):
                raise ValueError(f"{name}: expected one {kind.__name__}, got {value!r}")
        # a frozen dataclass is written once, here
        self.__dict__.update(sizes=sizes, hidden=hidden, output=output, cost=cost, _chain=chain)
        for f in self.activations[:-1]:
            if f.pull is not None:
                raise ValueError(
                    f"hidden: expected activations that act element by element, got {f.name}, "
                    f"whose Jacobian is not diagonal; {f.name} is an output only"
                )
        _check_output(self.shapes[-1][0], output, cost)

    def __str__(self) -> str:
        """A table of its layers: map, shape, weights, multiply-adds, what a pass keeps."""
        return summary(self)

    @property
    def maps(self) -> tuple[Map, ...]:
        """The linear maps, L of them."""
        return self._chain.maps  # pyright: ignore

    @property
    def pools(self) -> tuple[Pool | None, ...]:
        """What pools behind each of them, or None."""
        return self._chain.pools  # pyright: ignore

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """Of a^0 … a^L."""
        return self._chain.shapes  # pyright: ignore

    @property
    def z_shapes(self) -> tuple[Shape, ...]:
        """Of z^1 … z^L."""
        return self._chain.z_shapes  # pyright: ignore

    @property
    def flat(self) -> bool:
        """Whether it is dense throughout: every a^l and z^l a vector, nothing pooled."""
        of_one = all(type(linear) is Dense for linear in self.maps)
        return of_one and len(self.shapes[0]) == 1 and not any(self.pools)

    @property
    def activations(self) -> tuple[Activation, ...]:
        """(f^1 … f^L), one for each layer."""
        hidden = self.hidden
        if isinstance(hidden, Activation):
            hidden = (hidden,) * (len(self.maps) - 1)
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


def between(net: Network, low: int, high: int) -> Network:
    """Layers low + 1 … high by themselves, from a^low; only its last z^high needs no f."""
    fs, chain, part = net.activations[low:high], net._chain, object.__new__(Network)  # pyright: ignore
    cut = type(chain)(
        chain.maps[low:high],
        chain.pools[low:high],
        chain.shapes[low : high + 1],
        chain.z_shapes[low:high],
    )
    sizes = (cut.shapes[0], *cut.maps)
    part.__dict__.update(sizes=sizes, hidden=fs[:-1], output=fs[-1], cost=net.cost, _chain=cut)
    return part


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
    a = as_input(net, x, params[0].w.dtype, lead=0)
    tape = Tape((), (a,))
    for (w, b), f, linear, pool in zip(params, net.activations, net.maps, net.pools, strict=True):
        z = shaped(linear, "apply(w, a)", linear.apply(w, a), net.z_shapes[len(tape.z)])
        z = z + jnp.broadcast_to(b, z.shape)
        if len(tape.z) < len(params) - 1:
            a = pooled(pool, _activated(f, z))
        else:
            a = _activated(f, pooled(pool, z))
        tape = Tape((*tape.z, z), (*tape.a, a))
    return tape


def _activated(f: Activation, z: Array) -> Array:
    return fitted(f"activation {f.name}", f.f(z), z)


def pooled(pool: Pool | None, u: Array) -> Array:
    """P u."""
    if pool is None:
        return u
    return shaped(pool, "apply(u)", pool.apply(u), pool.out_shape(u.shape))


def unpooled(pool: Pool | None, u: Any, e: Array) -> Array:
    """P'ᵀ e, at the u that was pooled."""
    if pool is None:
        return e
    return shaped(pool, "transpose(u, e)", pool.transpose(u, e), u.shape)


def at_output(net: Network, tape: Tape) -> tuple[Array, Array]:
    """(z^L, y) in float32 at least, as costs are: of a smaller z, y is worked out again, which
    rounded to as few digits is 1 too soon."""
    z, y = pooled(net.pools[-1], tape.z[-1]), tape.a[-1]
    return (z, y) if z.dtype == wide(z).dtype else (wide(z), _activated(net.output, wide(z)))


@placed(by_example("x"))
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
    x = as_input(net, x, params[0].w.dtype, lead=None)

    def output(x: Float[Array, "..."]) -> Float[Array, " n_out"]:
        return forward(net, params, x).a[-1]

    for _ in range(x.ndim - len(net.shapes[0])):
        output = jax.vmap(output)
    return output(x)
