"""Steps become a network and its parameters, whatever library they were read from; and back.

A layer of ours is a linear map, an activation, then at most one pooling: a^l = P(f(z^l)); behind
the last map y = f(P(z^L)). What comes in another order is put in this one where both are equal: a
maximum passes every activation that never decreases, f(max z) = max f(z). A mean does not.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jbackprop.conversion.places import Placed, placed
from jbackprop.conversion.steps import Affine, Flatten, Step, columns_first, fail, on_host, shortest
from jbackprop.core import activations as ours
from jbackprop.core.linear import Conv, Dense
from jbackprop.core.network import Layer, Network, Params, as_layers
from jbackprop.core.pooling import MaxPool, MeanPool
from jbackprop.core.records import Activation
from jbackprop.core.windows import Shape

_NEVER_DECREASE = (
    ours.identity, ours.sigmoid, ours.tanh, ours.relu, ours.selu, ours.celu, ours.softplus,
    ours.softsign, ours.hard_tanh, ours.hard_sigmoid, ours.relu6, ours.squareplus,
    ours.log_sigmoid,
)  # fmt: skip


class _Group(NamedTuple):
    """A layer: a linear map, the activation and the pooling behind it."""

    affine: Affine
    f: Activation
    pool: Any


def assembled(
    argument: str,
    steps: Iterable[Step],
    input: Any,
    *,
    output: Any,
    cost: Any,
    channels_first: bool,
) -> tuple[Network, Params]:
    """The network that does what the steps do, one after the other.

    Args:
        argument: what the module is called in errors.
        steps: in their order.
        input: the shape of one example, channels last; None where the first map tells it.
        output, cost: as in `Network`; output stands on top of a module that ends in none.
        channels_first: how the library flattens positions.

    Returns:
        (net, params).
    """
    shape = None if input is None else _as_shape(input)
    layers: list[list[Placed]] = []
    for one in placed(steps, shape, channels_first=channels_first):
        if isinstance(one.part, Affine):
            layers.append([one])
        elif layers:
            layers[-1].append(one)
        elif not isinstance(one.part, Flatten) and one.part != ours.identity:
            fail(one.place, "expected a linear map before it, which a network begins with")
    if not layers:
        fail(argument, "expected at least one linear map, got none")
    following = [group[0].part.linear for group in layers[1:]]
    groups = [_grouped(*pair) for pair in zip(layers, [*following, None], strict=True)]
    last = groups[-1].f
    if last != ours.identity and output != ours.identity:
        fail(argument, f"it ends in {last.name}, so that output can be no other, got {output!r}")
    hidden = [group.f for group in groups[:-1]]
    sizes = [shape or groups[0].affine.w.shape[-1:]]
    for group in groups:
        sizes += [group.affine.linear] if group.pool is None else [group.affine.linear, group.pool]
    net = Network(
        sizes,
        hidden[0] if len({*hidden}) == 1 else (hidden or ours.tanh),
        last if last != ours.identity else output,
        cost,
    )
    return net, _params(argument, net, layers)


def _as_shape(input: Any) -> Shape:
    try:
        return tuple(int(n) for n in ([input] if hasattr(input, "__index__") else input))
    except (TypeError, ValueError):
        fail("input", f"expected the shape of one example, channels last, got {input!r}")


def _params(argument: str, net: Network, layers: list[list[Placed]]) -> Params:
    """One `Layer` each; zeros where there is no bias."""
    first, owners, found = layers[0][0], [], []
    for place, affine, _ in (group[0] for group in layers):
        w, b = affine.w, affine.b
        if affine.owner is not None and any(affine.owner is other for other in owners):
            fail(place, "its weights are another layer's too, and a network has them once each")
        owners.append(affine.owner)
        b = np.zeros(len(w), w.dtype) if b is None else b
        for leaf in (w, b):
            if leaf.dtype != first.part.w.dtype:
                fail(
                    place,
                    f"expected {first.part.w.dtype}, the dtype of the first map, throughout, "
                    f"got {leaf.dtype}",
                )
        found.append(Layer(jnp.array(w), jnp.array(b)))  # in memory of their own
    try:
        return as_layers(net, found)
    except ValueError as error:
        fail(argument, str(error))


def _grouped(group: list[Placed], following: Any) -> _Group:
    """A layer from a map and what comes behind it, up to the map that follows (None: none)."""
    (_, affine, in_shape), behind = group[0], group[1:]
    acting = [one for one in behind if isinstance(one.part, Activation)]
    acting = [one for one in acting if one.part != ours.identity]
    pooling = [one for one in behind if not isinstance(one.part, Activation | Flatten)]
    for several, what in ((acting, "activation"), (pooling, "pooling")):
        if len(several) > 1:
            fail(several[1].place, f"expected at most one {what} behind a linear map, got another")
    f = acting[0].part if acting else ours.identity
    pool = pooling[0].part if pooling else None
    if f.pull is not None and following is not None:
        fail(acting[0].place, f"{f.name} is an output only, since its Jacobian is not diagonal")
    if acting and pooling:
        pooled_first = behind.index(pooling[0]) < behind.index(acting[0])
        if pooled_first != (following is None) and not _pass_each_other(pool, f):
            wanted = "before the output's activation" if following is None else "behind it"
            fail(
                pooling[0].place,
                f"expected a pooling {wanted}, since {pool} and {f.name} cannot change places",
            )
    flattened = any(isinstance(one.part, Flatten) for one in behind)
    if following is None:
        pool = _flat(affine.linear, in_shape, pool, group[-1].place, flattened)
    elif pool == MeanPool() and not flattened:  # a convolution follows: positions of 1 stay
        pool = MeanPool(shortest(pooling[0].shape[:-1]))
    return _Group(affine, f, pool)


def _pass_each_other(pool: Any, f: Activation) -> bool:
    """Whether P(f(z)) = f(P(z))."""
    rises = f in _NEVER_DECREASE
    for of_kind in (ours.leaky_relu, ours.elu):
        if ours.function_of(f) is ours.function_of(of_kind):
            rises = f.f.constants[0] >= 0
    return isinstance(pool, MaxPool) and rises


def _flat(linear: Any, in_shape: Shape, pool: Any, place: str, flattened: bool) -> Any:
    """The last pooling, so that what comes out is flat, as what the module gives."""
    z_shape = linear.z_shape(in_shape)
    shape = z_shape if pool is None else pool.out_shape(z_shape)
    if len(z_shape) == 1 or (len(shape) == 1 and flattened):
        return pool
    positions = z_shape[:-1]
    one_left = pool is None and {*positions} == {1}
    of_all = isinstance(pool, MeanPool) and pool.size in (positions, shortest(positions))
    if flattened and (one_left or of_all):
        return MeanPool()
    fail(
        place,
        "expected an output of shape (n,), by a dense map or the mean over all positions, flattened"
        f", got {shape} behind the last map",
    )


def dismantled(
    net: Network, params: Any, library: str, *, channels_first: bool
) -> Iterator[tuple[Any, Shape]]:
    """The parts of a network in the order in which they act, each with the shape that comes to it:
    `Affine`, `Activation` (no identity), poolings, and `Flatten` where a dense map asks for it.

    A pooling of no size leaves its numbers flat."""
    layers = zip(as_layers(net, params), net.activations, net.maps, net.pools, strict=True)
    for l, ((w, b), f, linear, pool) in enumerate(layers, start=1):
        in_shape, z_shape, w = net.shapes[l - 1], net.z_shapes[l - 1], on_host(w)
        for part in (linear, pool):
            if type(part) not in (Dense, Conv, MaxPool, MeanPool, type(None)):
                fail("net", f"layer {l}: {part} is your own, and has no counterpart in {library}")
        if type(linear) is Dense and len(in_shape) > 1:
            yield Flatten(), in_shape
            w = columns_first(w, in_shape) if channels_first else w
        yield Affine(linear, w, on_host(b)), in_shape
        acting = [] if f == ours.identity else [f]
        pooling = [] if pool is None else [pool]
        for part in acting + pooling if l < len(net.maps) else pooling + acting:
            yield part, z_shape
