"""What stands in `sizes`: linear maps, poolings between them, and the shapes that come to each."""

import operator
from collections.abc import Iterable
from typing import Any, NamedTuple

from jbackprop.core.linear import Dense
from jbackprop.core.maps import Map
from jbackprop.core.pooling import Pool
from jbackprop.core.windows import Shape


class Chain(NamedTuple):
    """The linear maps (L), what pools behind each (or None), the shapes of a^0 … a^L, z^1 … z^L."""

    maps: tuple[Map, ...]
    pools: tuple[Pool | None, ...]
    shapes: tuple[Shape, ...]
    z_shapes: tuple[Shape, ...]


def chain_of(sizes: Any) -> tuple[tuple[Any, ...], Chain]:
    """`sizes` with every int as one, and what they are as maps and poolings with their shapes."""
    given = tuple(sizes) if isinstance(sizes, Iterable) else (sizes, None)
    entries = tuple(_entry(entry, sizes, first=i == 0) for i, entry in enumerate(given))
    if len(entries) < 2:
        raise ValueError(f"sizes: expected at least two sizes, each at least 1, got {sizes!r}")
    shape = (entries[0],) if isinstance(entries[0], int) else entries[0]
    maps, pools, shapes, z_shapes = [], [], [shape], []
    for i, entry in enumerate(entries[1:], start=1):
        if _is_pool(entry):
            if i == 1 or _is_pool(entries[i - 1]):
                raise ValueError(
                    f"sizes: expected a pooling behind a map, one at most, got {entry} as entry {i}"
                )
            pools[-1], shapes[-1] = entry, _fitting(i, entry.out_shape, shapes[-1])
        else:
            linear = Dense(entry) if isinstance(entry, int) else entry
            maps.append(linear)
            pools.append(None)
            z_shapes.append(_fitting(i, linear.z_shape, shapes[-1]))
            shapes.append(z_shapes[-1])
    if len(shapes[-1]) != 1:
        raise ValueError(
            "sizes: expected an output of shape (n,), by a number at the end or MeanPool(), "
            f"got {shapes[-1]} from {entries[-1]}"
        )
    return entries, Chain(tuple(maps), tuple(pools), tuple(shapes), tuple(z_shapes))


def _entry(entry: Any, sizes: Any, *, first: bool) -> Any:
    """An int, the input's shape, a map or a pooling."""
    if first and isinstance(entry, tuple | list):
        shape = tuple(_entry(n, sizes, first=False) for n in entry)
        if shape and all(isinstance(n, int) for n in shape):
            return shape[0] if len(shape) == 1 else shape
    if isinstance(entry, type):
        name = entry.__name__
        raise ValueError(f"sizes: expected {name}(…), got the class {name} itself")
    if type(entry) is Dense and not first:  # a subclass has a way of its own
        return entry.n
    if not first and isinstance(entry, Map | Pool):
        try:
            hash(entry)
        except TypeError:
            raise ValueError(
                "sizes: expected entries that can be hashed, such as frozen dataclasses, "
                f"got {entry!r}"
            ) from None
        return entry
    try:
        n = operator.index(entry)  # pyright: ignore
    except TypeError:
        raise ValueError(
            "sizes: expected whole numbers (n_0, …, n_L), or an input's shape first and maps and "
            f"poolings behind it, got {sizes!r}"
        ) from None
    if n < 1:
        raise ValueError(f"sizes: expected at least two sizes, each at least 1, got {sizes!r}")
    return n


def _is_pool(entry: Any) -> bool:
    return isinstance(entry, Pool) and not isinstance(entry, Map)


def _fitting(i: int, shape_of: Any, in_shape: Shape) -> Shape:
    """The shape that comes out of an entry; an error that tells which it is."""
    try:
        return tuple(map(operator.index, shape_of(in_shape)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"sizes: entry {i}: {error}") from error
