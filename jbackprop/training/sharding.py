"""Training on many devices: a mesh of them, where each array lies on it, and batches put there.

The steps themselves stay as they are: JAX's compiler spreads a computation by where its arguments
lie. What is decided here is where that is, by four styles:

- `"data"`: every device has all parameters and its own examples; gradients are added up.
- `"fsdp"`: every device keeps its share of every array, and of the optimizer's state; a step
  gathers the parameters, and spreads the gradient again (Rajbhandari et al., "ZeRO", 2020).
- `"tensor"`: a layer's matrix is split by its columns, the next one's by its rows, so that only
  the second needs a sum over devices (Shoeybi et al., "Megatron-LM", 2019).
- `"fsdp+tensor"`: both, over a mesh of two axes.
"""

import math
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jbackprop.core.initial import init
from jbackprop.core.linear import Conv, Dense
from jbackprop.core.network import Layer, Network
from jbackprop.training.optimizer import check_optimizer
from jbackprop.training.state import TrainState, init_state

STYLES = ("data", "fsdp", "tensor", "fsdp+tensor")


def make_mesh(*, explicit: bool = False, devices: Any = None, **axes: int) -> Mesh:
    """A mesh of devices, by the sizes of its axes; by default one axis, `data`, of all of them.

    Args:
        explicit: whether where an array lies is part of its type (`AxisType.Explicit`), or the
            compiler's affair (`AxisType.Auto`).
        devices: by default `jax.devices()`, those of all processes.
        axes: sizes by name, such as `data=2, model=4`; one may be -1, for what is left.

    Raises:
        ValueError: a size is no whole number of at least 1; the sizes do not multiply to the number
            of devices.

    >>> import jbackprop as jb
    >>> jb.make_mesh(data=1, model=1).axis_names
    ('data', 'model')
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = dict(axes) or {"data": -1}
    for name, size in sizes.items():
        if not hasattr(size, "__index__") or (size < 1 and size != -1):
            raise ValueError(f"{name}: expected a whole number of at least 1, or -1, got {size!r}")
    known = math.prod(size for size in sizes.values() if size != -1)
    left = [name for name, size in sizes.items() if size == -1]
    if len(left) > 1 or len(devices) % known or (not left and known != len(devices)):
        raise ValueError(
            f"axes: expected sizes that multiply to {len(devices)} devices, got "
            + ", ".join(f"{name}={size}" for name, size in sizes.items())
        )
    shape = tuple(len(devices) // known if size == -1 else int(size) for size in sizes.values())
    kinds = (AxisType.Explicit if explicit else AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, tuple(sizes), kinds, devices=devices)


def shardings_for(
    net: Network,
    mesh: Any,
    style: str = "data",
    *,
    optimizer: Any = None,
    data: str = "data",
    model: str = "model",
) -> Any:
    """Where parameters lie on a mesh, or a whole `TrainState`: for `jax.device_put` and `jax.jit`.

    Of an array the longest axis that divides among the devices is spread, and all of it is
    everywhere where none does. Under `"tensor"` the layers alternate: w^l by its outputs (with b^l;
    of a convolution its channels), w^{l+1} by its inputs, where those are the same features; a
    layer where that does not divide is whole, and so is a map of your own. What an optimizer keeps
    for a parameter lies as that does; the rest of its state, and a rule's feedback, everywhere.

    Args:
        net: the network.
        mesh: of devices, such as `make_mesh` gives.
        style: "data", "fsdp", "tensor" or "fsdp+tensor".
        optimizer: with it, the shardings of a `TrainState`; without, those of `Params`.
        data: the axis of the mesh along which examples are spread, and arrays under "fsdp".
        model: the axis along which features are, under "tensor".

    Returns:
        `Params`, or a `TrainState`, with a `NamedSharding` for every leaf.

    Raises:
        ValueError: no such style; the mesh has no axis that the style needs.

    >>> import jax, optax
    >>> import jbackprop as jb
    >>> net, mesh = jb.Network((64, 32, 10)), jb.make_mesh(data=1, model=1)
    >>> [tuple(layer.w.spec) for layer in jb.shardings_for(net, mesh, "tensor")]
    [('model', None), (None, 'model')]

    A state, put there:

    >>> optimizer = optax.adam(1e-3)
    >>> state = jb.init_state(net, optimizer, jax.random.key(0))
    >>> state = jax.device_put(state, jb.shardings_for(net, mesh, "fsdp", optimizer=optimizer))

    Or one too large for any single device, made there:

    >>> start = lambda key: jb.init_state(net, optimizer, key)
    >>> shardings = jb.shardings_for(net, mesh, "fsdp", optimizer=optimizer)
    >>> state = jax.jit(start, out_shardings=shardings)(jax.random.key(0))
    """
    if style not in STYLES:
        expected = ", ".join(map(repr, STYLES))
        raise ValueError(f"style: expected one of {expected}, got {style!r}")
    needed = [data] * (style != "tensor") + [model] * ("tensor" in style)
    for axis in needed:
        _check_axis(mesh, axis, f" for style {style!r}")
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(partial(init, net), key)
    split = _alternating(net, mesh.shape[model]) if "tensor" in style else [None] * len(params)
    over = (data, mesh.shape[data]) if "fsdp" in style else None
    specs = tuple(_specs(*pair, model, over) for pair in zip(params, split, strict=True))
    placed = lambda spec: NamedSharding(mesh, spec)
    found = jax.tree.map(placed, specs, is_leaf=lambda value: isinstance(value, P))
    if optimizer is None:
        return found
    check_optimizer(optimizer)
    state = jax.eval_shape(partial(init_state, net, optimizer), key)
    kept = _as_their_parameters(state.opt_state, params, found, placed(P()))
    rest: Any = placed(P())
    return TrainState(found, kept, rest, rest, rest)


def shard_batch(mesh: Any, batch: Any, *, axis: str = "data", total: int | None = None) -> Any:
    """A batch, or a dataset, spread over the devices of a mesh by its rows.

    With several processes, each gives its own rows, the same number of them, and gets arrays of
    all rows together: process after process, in the order of the mesh.

    Args:
        mesh: of devices, of all processes.
        batch: a pytree of arrays, each with a row for every example.
        axis: the axis of the mesh along which rows are spread.
        total: rows of all processes together. Without it they ask each other, at every call.

    Raises:
        ValueError: the mesh has no such axis; the arrays have no rows, or not the same number; they
            do not divide among the devices (`pad_batch` adds rows of weight 0); processes have
            different numbers of rows, or not their share of `total`.

    >>> import jax.numpy as jnp
    >>> import jbackprop as jb
    >>> x, t = jb.shard_batch(jb.make_mesh(data=1), (jnp.ones((4, 3)), jnp.arange(4)))
    >>> tuple(x.sharding.spec)
    ('data',)
    """
    _check_axis(mesh, axis)
    batch = jax.tree.map(lambda leaf: leaf if hasattr(leaf, "shape") else np.asarray(leaf), batch)
    lengths = [leaf.shape[0] if leaf.ndim else -1 for leaf in jax.tree.leaves(batch)]
    if not lengths or -1 in lengths or len(set(lengths)) > 1:
        raise ValueError(f"batch: expected arrays with a row for every example, got rows {lengths}")
    sharding, rows, shards = NamedSharding(mesh, P(axis)), lengths[0], mesh.shape[axis]
    here = sharding.addressable_devices_indices_map((shards,)).values()
    own = len({index[0].start for index in here if index is not None})
    every = rows * shards // own
    if jax.process_count() > 1:
        _check_processes(rows, every, total)
    elif total not in (None, rows):
        raise ValueError(f"batch: expected the {total} rows of total, got {rows}")
    if rows % own or not rows:
        raise ValueError(
            f"batch: expected rows that divide among the {own} devices of axis {axis!r} here, "
            f"got {rows}; pad_batch adds rows of weight 0"
        )
    if jax.process_count() == 1:
        return jax.device_put(batch, sharding)
    whole = lambda leaf: jax.make_array_from_process_local_data(
        sharding, np.asarray(leaf), global_shape=(every, *leaf.shape[1:])
    )
    return jax.tree.map(whole, batch)


def _check_axis(mesh: Any, axis: str, why: str = "") -> None:
    if not isinstance(mesh, Mesh):
        raise ValueError(f"mesh: expected a jax.sharding.Mesh, got {type(mesh).__name__}")
    if axis not in mesh.axis_names:
        raise ValueError(f"mesh: expected an axis {axis!r}{why}, got axes {mesh.axis_names}")


def _check_processes(rows: int, every: int, total: int | None) -> None:
    """JAX itself would compute wrong means of 16 rows here and 15 there."""
    if total is not None:
        if every != total:
            raise ValueError(
                f"batch: expected a share of the {total} rows of total in each of "
                f"{jax.process_count()} processes, got {rows} in process {jax.process_index()}"
            )
        return
    counts = np.asarray(multihost_utils.process_allgather(np.int32(rows))).tolist()
    if len(set(counts)) > 1:
        raise ValueError(f"batch: expected the same number of rows in every process, got {counts}")


def _alternating(net: Network, ways: int) -> list[str | None]:
    """By what each layer's matrix is split: its "outputs", its "inputs", or not at all."""
    found: list[str | None] = []
    shapes: list[Any] = [*net.shapes]
    for linear, shape, out in zip(net.maps, shapes[:-1], shapes[1:], strict=True):
        ours = isinstance(linear, Dense | Conv)
        # a dense map of a convolution's outputs sees channels interleaved with positions
        same = not (isinstance(linear, Dense) and len(shape) > 1)
        if ours and found[-1:] == ["outputs"] and same and shape[-1] % ways == 0:
            found.append("inputs")
        else:
            found.append("outputs" if ours and out[-1] % ways == 0 else None)
    return found


def _specs(layer: Layer, split: str | None, model: str, over: tuple[str, int] | None) -> Layer:
    """Of w^l and b^l."""
    first, last = {"outputs": (model, None), "inputs": (None, model)}.get(split or "", (None, None))
    w: list[Any] = [None] * len(layer.w.shape)
    w[0], w[-1] = (first, last) if len(w) > 1 else (first, None)
    specs: Any = (_spread(layer.w.shape, w, over), _spread(layer.b.shape, [first], over))
    return Layer(*specs)


def _spread(shape: tuple[int, ...], spec: list[Any], over: tuple[str, int] | None) -> P:
    """The longest axis that is whole and divides is spread over the devices too."""
    if over is not None:
        name, ways = over
        free = [d for d, size in enumerate(shape) if spec[d] is None and size % ways == 0]
        if free:
            spec[max(free, key=lambda d: shape[d])] = name
    return P(*spec)


def _as_their_parameters(opt_state: Any, params: Any, shardings: Any, whole: Any) -> Any:
    """What is kept for a parameter, known by where it stands and by its shape, lies as it does."""
    own = [
        (path, leaf.shape, sharding)
        for (path, leaf), sharding in zip(
            jax.tree.leaves_with_path(params), jax.tree.leaves(shardings), strict=True
        )
    ]

    def of(path: Any, leaf: Any) -> Any:
        for end, shape, sharding in own:
            if path[-len(end) :] == end:
                if leaf.shape == shape:
                    return sharding
                if leaf.shape[1:] == shape:  # a history of it
                    return NamedSharding(sharding.mesh, P(None, *sharding.spec))
        return whole

    return jax.tree.map_with_path(of, opt_state)
