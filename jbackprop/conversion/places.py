"""Steps in their places: the shape that comes to each, and what is told by it made definite."""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jbackprop.conversion.functions import parts_of
from jbackprop.conversion.steps import (
    Adaptive,
    Affine,
    Flatten,
    Function,
    Pad,
    Step,
    columns_last,
    each,
    fail,
    shortest,
    shortest_padding,
)
from jbackprop.core.linear import Conv, Dense
from jbackprop.core.pooling import MaxPool, MeanPool
from jbackprop.core.records import Activation
from jbackprop.core.windows import Shape


class Placed(NamedTuple):
    """An `Affine` with w in our order, a `Flatten`, an `Activation` or a pooling.

    Attributes:
        place: where the module has it.
        part: what it is.
        shape: of what comes to it; as the library has it, so that a mean over all positions leaves
            positions of 1 until a `Flatten`.
    """

    place: str
    part: Any
    shape: Any


def placed(steps: Iterable[Step], shape: Shape | None, *, channels_first: bool) -> Iterator[Placed]:
    """The steps, from an input of this shape; None where the first map, a dense one, tells it."""
    flattened, pad = None, None
    for place, step in steps:
        if isinstance(step, Pad):
            if pad is not None:
                fail(place, "expected one padding before a map, got another")
            pad = place, step
            continue
        parts = parts_of(place, step, shape) if isinstance(step, Function) else (step,)
        for part in parts:
            if pad is not None:
                part, pad = _padded(*pad, part, shape), None
            if isinstance(part, Adaptive):
                part = _definite(place, part, shape)
            if isinstance(part, MaxPool | MeanPool):
                part = _shortened(place, part, shape)
            if isinstance(part, Affine) and isinstance(part.linear, Dense):
                shape = _told(place, part, shape)
                if flattened is not None and channels_first:
                    part = part._replace(w=columns_last(part.w, flattened))
            yield Placed(place, part, shape)
            if isinstance(part, Flatten):
                if shape is not None and len(shape) > 1:
                    flattened, shape = shape, (math.prod(shape),)
            else:
                shape = _after(place, part, shape)
            if isinstance(part, Affine):
                flattened = None
    if pad is not None:
        fail(pad[0], "expected a convolution or a pooling behind a padding, got none")


def _told(place: str, part: Affine, shape: Shape | None) -> Shape:
    """The shape that a dense map takes."""
    n_in = part.w.shape[1]
    if shape is None or shape == (n_in,):
        return (n_in,)
    if len(shape) > 1:
        fail(
            place,
            f"expected a flattening before it, since by itself it acts along one axis of {shape}",
        )
    fail(place, f"expected {n_in} inputs, got {math.prod(shape)}")


def _after(place: str, part: Any, shape: Shape | None) -> Shape | None:
    """The shape that a part leaves."""
    if isinstance(part, Activation):
        if part.pull is not None and (shape is None or len(shape) > 1):
            fail(place, f"expected {part.name} of a flat output, got one of shape {shape}")
        return shape
    if shape is None:
        fail(
            "input",
            "expected the shape of one example, channels last, which "
            f"{place.partition(': ')[2]} does not tell, got None",
        )
    if len(shape) == 1 and not (isinstance(part, Affine) and isinstance(part.linear, Dense)):
        fail(place, f"expected inputs of shape (*positions, channels), got {shape}")
    try:
        if isinstance(part, Affine):
            if part.linear.w_shape(shape) != part.w.shape:
                fail(place, f"weights of shape {part.w.shape} do not fit inputs of {shape}")
            return part.linear.z_shape(shape)
        if part == MeanPool():
            return (*[1] * (len(shape) - 1), shape[-1])
        return part.out_shape(shape)
    except ValueError as error:
        if str(error).startswith(place):
            raise
        raise ValueError(f"{place}: {error}") from error


def _definite(place: str, part: Adaptive, shape: Shape | None) -> Any:
    """The pooling that leaves so many positions: windows of one size, where they divide."""
    if shape is None or len(shape) != len(part.out) + 1:
        return part.kind((1,) * len(part.out))  # whose place says what is wrong
    positions = shape[:-1]
    out = tuple(m if n is None else n for n, m in zip(part.out, positions, strict=True))
    if any(m % n for n, m in zip(out, positions, strict=True)):
        fail(place, f"{positions} positions to {out}: its windows are of several sizes")
    if part.kind is MeanPool and {*out} == {1}:
        return MeanPool()
    return part.kind(tuple(m // n for n, m in zip(out, positions, strict=True)))


def _shortened(place: str, pool: Any, shape: Shape | None) -> Any:
    """A pooling of numbers for all dimensions, read with one for each."""
    if pool.size is None or isinstance(pool.size, int) or shape is None:
        return pool
    if len(shape) > 1 and len(pool.size) != len(shape) - 1:
        fail(place, f"expected inputs with {len(pool.size)} dimensions of positions, got {shape}")
    size, stride = shortest(pool.size), shortest(pool.stride)
    if isinstance(pool, MeanPool):
        return MeanPool(size, stride=stride)
    return MaxPool(size, stride=stride, padding=shortest_padding(pool.padding))


def _padded(place: str, pad: Pad, part: Any, shape: Shape | None) -> Any:
    """A convolution or a pooling with the rows that a module before it put there."""
    record = part.linear if isinstance(part, Affine) else part
    value = {Conv: 0.0, MaxPool: -float("inf")}.get(type(record))
    rank = len(pad.sides)
    if value is None or pad.value != value:
        fail(
            place,
            "expected a padding with 0 before a convolution, or with -∞ before a maximum, "
            f"got {pad.value} before {getattr(record, 'name', type(record).__name__)}",
        )
    if shape is None or len(shape) != rank + 1 or record.padding == "SAME":
        fail(place, f"a padding of {rank} dimensions does not fit {record} on {shape}")
    own = [(p, p) if isinstance(p, int) else p for p in each(record.padding, rank)]
    sides = [
        (lo + more_lo, hi + more_hi)
        for (lo, hi), (more_lo, more_hi) in zip(own, pad.sides, strict=True)
    ]
    options = {"stride": record.stride, "padding": shortest_padding(sides)}
    if isinstance(record, Conv):
        options["dilation"] = record.dilation
        return part._replace(linear=Conv(record.n, record.kernel, **options))
    return MaxPool(record.size, **options)
