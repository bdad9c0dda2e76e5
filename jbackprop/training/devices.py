"""Every device its own rows: how a step's arrays lie, on a mesh of several devices.

Left alone, the compiler may as well give every device the whole batch. So a step says where its
rows lie, that parameters which are spread over the same devices come together for it, and that
their gradient is spread again. Where nothing lies on a mesh, nothing is said.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from jbackprop.core.arrays import is_traced

Axes = tuple[str, ...]


class Placement(NamedTuple):
    """Where a step's arrays lie; hashable, so that steps are compiled for it.

    Attributes:
        mesh: the devices.
        along: the mesh's axes that examples are spread along; () where they are not.
        params, opt_state: how every leaf lies, between steps; None where that is unknown.
        x, t, weight: how the data lie.
    """

    mesh: Any
    along: Axes
    params: tuple[P | None, ...]
    opt_state: tuple[P | None, ...]
    x: P | None
    t: P | None
    weight: P | None


def placement_of(first: Any, state: Any, x: Any, t: Any, weight: Any) -> Placement | None:
    """How these lie on the mesh that they are on; None where there is none.

    `first` is a parameter. Examples are spread as x is. Where every device has all of x: along the
    axis `data` of the mesh, else along the first that spreads no parameter. Within a trace on an
    Auto mesh how an array lies is unknown, and the mesh is known: examples are spread over it so
    too, and all else is the compiler's affair.
    """
    if _alone(first) and _alone(x):
        return None  # at once: a small step takes 50 µs
    own = _sharding_of(first) or _sharding_of(x) or _sharding_of(t)
    if own is None:
        return None
    trees = state.params, state.opt_state
    kept, made = (tuple(map(_spec_of, jax.tree.leaves(tree))) for tree in trees)
    rows = _spec_of(x), _spec_of(t), _spec_of(weight)
    along = _names(rows[0][0]) if rows[0] else ()
    return Placement(own.mesh, along or _own_rows(own.mesh, kept, rows), kept, made, *rows)


def _alone(leaf: Any) -> bool:
    return type(getattr(leaf, "sharding", None)) is SingleDeviceSharding


def _sharding_of(leaf: Any) -> Any:
    """Its sharding, where that is one of a mesh with axes for the compiler to spread."""
    if not isinstance(leaf, jax.Array):
        return None
    sharding: Any = jax.typeof(leaf).sharding if is_traced(leaf) else leaf.sharding
    on_mesh = isinstance(sharding, NamedSharding) and not sharding.mesh.empty
    return sharding if on_mesh and sharding.mesh.size > 1 and _free(sharding.mesh) else None


def _free(mesh: Any) -> list[str]:
    """The axes that are not a `jax.shard_map`'s own."""
    kinds = zip(mesh.axis_names, mesh.axis_types or (), strict=False)
    return [name for name, kind in kinds if kind != AxisType.Manual]


def _spec_of(leaf: Any) -> P | None:
    sharding = _sharding_of(leaf)
    if sharding is None:
        return P()
    return None if is_traced(leaf) and AxisType.Auto in sharding.mesh.axis_types else sharding.spec


def _own_rows(mesh: Any, params: tuple[P | None, ...], rows: tuple[P | None, ...]) -> Axes:
    of = lambda specs: {name for spec in specs for entry in spec or () for name in _names(entry)}
    free = [name for name in _free(mesh) if name not in of(rows)]
    return ("data",) if "data" in free else tuple(n for n in free if n not in of(params))[:1]


def _names(entry: Any) -> Axes:
    """The axes of a mesh that one axis of an array is spread along."""
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def lying(place: Placement, value: Any, spec: P | None) -> Any:
    """The array, there."""
    if spec is None or jnp.issubdtype(value.dtype, jax.dtypes.extended):
        return value  # keys lie everywhere
    return jax.lax.with_sharding_constraint(value, NamedSharding(_mesh(place), spec))


def _mesh(place: Placement) -> Any:
    """As it is called here: within `placed` its axes are the compiler's."""
    here = jax.sharding.get_abstract_mesh()
    return place.mesh if here.empty else here


def own_rows(place: Placement | None, *batch: Any) -> Any:
    """(x, t, weight) of a batch, each device its own rows."""
    if place is None or not place.along:
        return batch
    lies = zip(batch, (place.x, place.t, place.weight), strict=True)
    return tuple(None if v is None else lying(place, v, _rows(place, v, spec)) for v, spec in lies)


def _rows(place: Placement, value: Any, spec: P | None) -> P:
    """Along the examples' axes, and otherwise as it lay."""
    rest = [P.UNCONSTRAINED] * (value.ndim - 1) if spec is None else spec[1:]
    return P(place.along, *rest)


def gathered(place: Placement | None, params: Any) -> Any:
    """Parameters that are spread over the devices that examples are, whole on each of them."""
    if place is None or not place.along:
        return params
    rest = lambda entry: tuple(n for n in _names(entry) if n not in place.along) or None
    whole = lambda spec: None if spec is None else P(*map(rest, spec))
    return _each(place, params, [*map(whole, place.params)])


def as_params(place: Placement | None, tree: Any) -> Any:
    """A gradient, or new parameters, as the parameters lie."""
    return tree if place is None else _each(place, tree, place.params)


def as_opt_state(place: Placement | None, tree: Any) -> Any:
    """A new state of the optimizer, as the one before it lies."""
    return tree if place is None else _each(place, tree, place.opt_state)


def _each(place: Placement, tree: Any, specs: Any) -> Any:
    leaves, structure = jax.tree.flatten(tree)
    if len(leaves) != len(specs):
        return tree
    return structure.unflatten(lying(place, *pair) for pair in zip(leaves, specs, strict=True))


def everywhere_on(place: Placement | None, value: Any) -> Any:
    """The array, whole on every device."""
    return value if place is None else lying(place, value, P())


def rows_at(place: Placement | None, data: Any, spec: P | None, rows: Int[Array, " B"]) -> Any:
    """Rows of data that are spread as `spec` says along their first axis, or not.

    Of data that every device has, each takes its own rows. Of data that are spread, each device
    fills in what it has of all of them, and a sum over devices leaves each device its own.
    """
    if place is None or spec is None or not any(map(_names, spec[:1])):
        return data[rows]
    along, mesh = _names(spec[0]), _mesh(place)
    count, ways = len(rows), math.prod(mesh.shape[name] for name in along)
    rows = jnp.pad(rows, (0, -count % ways), constant_values=-1)  # a row that nobody has
    kind = data.dtype
    data = data.astype(jnp.uint8) if kind == jnp.bool_ else data

    def own(data: Array, rows: Array) -> Array:
        here = rows - jax.lax.axis_index(along) * len(data)
        mine = ((here >= 0) & (here < len(data))).reshape(-1, *[1] * (data.ndim - 1))
        found = jnp.where(mine, data[jnp.clip(here, 0, len(data) - 1)], jnp.zeros((), data.dtype))
        return jax.lax.psum_scatter(found, along, scatter_dimension=0, tiled=True)

    lies = P(along, *spec[1:])
    taken = jax.shard_map(own, mesh=mesh, in_specs=(lies, P()), out_specs=lies)(data, rows)
    return taken[:count].astype(kind)


def varying(step: Callable[..., Any], state: Any, *rest: Any) -> Any:
    """A state that a loop of `step` can carry within `jax.shard_map`: it has to vary over devices,
    or not, as what `step` makes of it does."""
    if AxisType.Manual not in (jax.sharding.get_abstract_mesh().axis_types or ()):
        return state
    after, _ = jax.eval_shape(step, state, *rest)

    def cast(before: Array, after: Any) -> Array:
        if jnp.issubdtype(before.dtype, jax.dtypes.extended):
            return before  # keys stay as they are
        return jnp.where(True, before, jnp.zeros_like(after))

    return jax.tree.map(cast, state, after)
