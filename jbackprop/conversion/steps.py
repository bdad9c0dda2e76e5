"""The steps that a module of another library is read as, and that a network is written from.

Shapes are ours, of ONE example and channels last, whatever the order of the library.
"""

from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jbackprop.core.arrays import is_concrete
from jbackprop.core.linear import Conv
from jbackprop.core.windows import Shape


class Affine(NamedTuple):
    """A linear map and its numbers.

    Attributes:
        linear: a `Dense` or a `Conv`.
        w: of a convolution (n, *kernel, channels), of a dense map (n, n_in) with its columns in the
            order in which the library flattens.
        b: (n,), or None.
        owner: what holds w where layers may share it, compared by identity.
    """

    linear: Any
    w: Any
    b: Any
    owner: Any = None


class Flatten(NamedTuple):
    """All axes of an example become one."""


class Pad(NamedTuple):
    """Rows of a value around the positions, (before, behind) for each dimension."""

    sides: tuple[tuple[int, int], ...]
    value: float


class Adaptive(NamedTuple):
    """A pooling, `MaxPool` or `MeanPool`, that leaves so many positions, one number for each
    dimension (None: as many as come)."""

    kind: Any
    out: Any


class Function(NamedTuple):
    """A function of arrays, of which only what it does can tell what it is.

    Attributes:
        f: of a batch, or of one example.
        channels_first: how an example lies in its argument.
    """

    f: Any
    channels_first: bool


class Step(NamedTuple):
    """A part, which is one of those above, an `Activation` or a pooling; and where it stands."""

    place: str
    part: Any


def fail(place: str, why: str) -> NoReturn:
    """The one form of error that a layer gets."""
    raise ValueError(f"{place}: {why}")


def place_of(argument: str, path: tuple[Any, ...], kind: str) -> str:
    """module: layer 3.0 (BatchNorm2d), as the library counts them."""
    at = f"layer {'.'.join(map(str, path))} ({kind})" if path else kind
    return f"{argument}: {at}"


def as_leaf(place: str, value: Any) -> Any:
    """Numbers of a library, of a dtype that ours may have; NumPy's, where they are not traced."""
    dtype = jnp.dtype(value.dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        fail(place, f"expected parameters of a floating dtype, got {dtype.name}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        fail(
            place,
            f"its parameters are {dtype.name}, which needs 64-bit mode, which is off: "
            'jax.config.update("jax_enable_x64", True)',
        )
    return on_host(value)


def on_host(value: Any) -> Any:
    """On the host nothing is compiled for what moves numbers about."""
    return np.asarray(value) if is_concrete(value) else value


def moved(w: Any, source: int, target: int) -> Any:
    """`moveaxis`, of an array of NumPy or of JAX, traced too."""
    order = [*range(w.ndim)]
    order.insert(target % w.ndim, order.pop(source))
    return w.transpose(order)


def each(value: Any, rank: int) -> tuple[Any, ...]:
    """One for every dimension, so that a layer's rank is known by it."""
    return (value,) * rank if value is None or isinstance(value, int) else tuple(value)


def shortest(values: Any) -> Any:
    """One number where all dimensions have the same."""
    if isinstance(values, int | np.integer):
        return int(values)
    values = tuple(map(int, values))
    return values[0] if len({*values}) == 1 else values


def shortest_padding(padding: Any) -> Any:
    """A string, a number, numbers or pairs, as `Conv` and `MaxPool` are given them by hand."""
    if isinstance(padding, str):
        return "SAME" if padding.upper() == "SAME" else 0
    if isinstance(padding, int | np.integer):
        return int(padding)
    pairs = [(p, p) if isinstance(p, int | np.integer) else tuple(p) for p in padding]
    pairs = tuple((int(before), int(behind)) for before, behind in pairs)
    numbers = {p for pair in pairs for p in pair}
    return numbers.pop() if len(numbers) == 1 else pairs


def conv_of(n: int, kernel: Any, *, stride: Any, padding: Any, dilation: Any) -> Conv:
    """A convolution as one would write it by hand."""
    return Conv(
        n,
        shortest(kernel),
        stride=shortest(stride),
        padding=shortest_padding(padding),
        dilation=shortest(dilation),
    )


def columns_last(w: Any, in_shape: Shape) -> Any:
    """(n, channels · positions) to (n, positions · channels)."""
    first = w.reshape(len(w), in_shape[-1], *in_shape[:-1])
    return moved(first, 1, -1).reshape(len(w), -1)


def columns_first(w: Any, in_shape: Shape) -> Any:
    """(n, positions · channels) to (n, channels · positions)."""
    return moved(w.reshape(len(w), *in_shape), -1, 1).reshape(len(w), -1)
