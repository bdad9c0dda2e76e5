"""The border of a network: parameters, inputs and targets that fit it, or an error that says why.

`values.py` looks at the values of a whole batch.
"""

from typing import Any, NoReturn, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jbackprop.core.arrays import (
    as_indices,
    as_numbers,
    as_real,
    check_key,
    check_rows,
    is_concrete,
    stored,
)
from jbackprop.core.costs import binary_cross_entropy, cross_entropy
from jbackprop.core.numerics import at_least_float32
from jbackprop.core.records import Cost


@runtime_checkable
class Sized(Protocol):
    """What the checks need of a `Network`, which stands above this file."""

    @property
    def sizes(self) -> tuple[Any, ...]: ...

    @property
    def maps(self) -> tuple[Any, ...]: ...

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]: ...

    @property
    def z_shapes(self) -> tuple[tuple[int, ...], ...]: ...

    @property
    def cost(self) -> Cost: ...


def fail(net: Sized, name: str, expected: str, got: Any) -> NoReturn:
    """Raises the one form of error that a shape gets."""
    got = getattr(got, "shape", got)
    raise ValueError(f"{name}: expected {expected} for a network with sizes {net.sizes}, got {got}")


def as_pairs(net: Sized, params: Any) -> tuple[tuple[Array, Array], ...]:
    """(w^l, b^l) per layer, from any structure that unpacks to them."""
    depth = len(net.maps)
    expected = "arrays (w, b) per layer"
    try:
        layers = [tuple(layer) for layer in params]
    except TypeError:
        fail(net, "params", expected, type(params).__name__)
    for l, layer in enumerate(layers, start=1):
        if len(layer) == 1 or (len(layer) == 2 and layer[1] is None):
            fail(net, "params", f"{expected}: where a layer has no bias, b of zeros,", f"no b^{l}")
        if len(layer) != 2:
            fail(net, "params", expected, f"{len(layer)} parts in layer {l}")
    pairs = tuple(
        (as_real(f"params: w^{l}", w), as_real(f"params: b^{l}", b))
        for l, (w, b) in enumerate(layers, start=1)
    )
    if len(pairs) != depth:
        fail(net, "params", f"{depth} layers of (w, b)", f"{len(pairs)}")
    for l, (w, b) in enumerate(pairs, start=1):
        of_w, of_b = net.maps[l - 1].w_shape(net.shapes[l - 1]), net.z_shapes[l - 1][-1:]
        if w.shape != of_w:
            fail(net, "params", f"w^{l} of shape {of_w}", w)
        if b.shape != of_b:
            fail(net, "params", f"b^{l} of shape {of_b}", b)
    dtypes = {leaf.dtype for pair in pairs for leaf in pair}
    if len(dtypes) > 1 or not all(jnp.issubdtype(d, jnp.floating) for d in dtypes):
        fail(
            net,
            "params",
            "one floating dtype throughout",
            ", ".join(sorted(d.name for d in dtypes)),
        )
    return pairs


def check_input(net: Sized, x: Any, lead: int | None) -> None:
    """One example (no leading axis), a batch (1), any leading axes (None)."""
    shape = net.shapes[0]
    of_one = ", ".join(map(str, shape))
    if lead == 0 and x.shape != shape:
        fail(net, "x", f"one example of shape {shape}", x)
    if lead == 1 and (x.ndim != 1 + len(shape) or x.shape[1:] != shape):
        fail(net, "x", f"shape (B, {of_one})", x)
    if lead == 1 and len(x) == 0:
        fail(net, "x", "at least one example", x)
    if x.ndim < len(shape) or x.shape[x.ndim - len(shape) :] != shape:
        fail(net, "x", f"shape (..., {of_one})", x)


def as_input(net: Sized, x: Any, dtype: Any, *, lead: int | None) -> Array:
    """x in the parameters' dtype: one example (no leading axis), a batch (1), any axes (None)."""
    x = as_real("x", x, dtype)
    check_input(net, x, lead)
    return x


def storable_input(net: Sized, x: Any, dtype: Any) -> Any:
    """A batch of inputs as it may pass a `jax.jit` border."""
    if not isinstance(x, jax.Array):
        x = stored("x", x, dtype)
    check_input(net, x, 1)
    return x


def is_label(net: Sized, t: Any, lead: tuple[int, ...] = ()) -> bool:
    """Whether t holds integer classes, one for each example, and no vectors."""
    t = as_numbers("t", t)
    whole = jnp.issubdtype(t.dtype, jnp.integer)
    return net.cost == cross_entropy and whole and t.shape == lead


def _is_binary_label(net: Sized, t: Any, lead: tuple[int, ...]) -> bool:
    """Whether t holds 0, 1 or a bool for the one output of each example."""
    whole = jnp.issubdtype(t.dtype, jnp.integer) or t.dtype == bool
    alone = net.cost == binary_cross_entropy and net.shapes[-1] == (1,)
    return alone and whole and t.shape == lead


def storable_target(net: Sized, t: Any, dtype: Any, lead: tuple[int, ...]) -> Any:
    """t as it may pass a `jax.jit` border."""
    if isinstance(t, jax.Array):
        return t
    t = as_numbers("t", t)
    _check_target(net, t, lead)
    if is_label(net, t, lead):
        return as_indices("t", t, *net.shapes[-1])[0]
    if _is_binary_label(net, t, lead) and t.dtype != bool:
        return as_indices("t", t, 2)[0]
    return stored("t", t, dtype)


def _check_target(net: Sized, t: Any, lead: tuple[int, ...]) -> None:
    """Vectors, or labels where the cost takes them."""
    (n,) = net.shapes[-1]
    if t.shape == (*lead, n) or is_label(net, t, lead) or _is_binary_label(net, t, lead):
        return
    expected = f"shape {(*lead, n)}"
    if net.cost == cross_entropy:
        expected += f" or integer labels of shape {lead}"
    elif net.cost == binary_cross_entropy and n == 1:
        expected += f" or integer or bool labels of shape {lead}"
    elif jnp.issubdtype(t.dtype, jnp.integer) and t.shape == lead:
        expected += f", since the cost {net.cost.name} takes no integer labels,"
    fail(net, "t", expected, f"{t.shape} of {t.dtype}")


def as_target(net: Sized, t: Any, dtype: Any, *, lead: tuple[int, ...] = ()) -> Array:
    """t of shape (*lead, n_L) in the parameters' dtype; a label one-hot, or NaN if out of range."""
    t = as_numbers("t", t)
    _check_target(net, t, lead)
    (n,) = net.shapes[-1]
    if is_label(net, t, lead):
        t, in_range = as_indices("t", t, n)
        # `jax.nn.one_hot` gives zeros out of range, as if the example had no class and no cost;
        # masking those afterwards took 4 % longer a step at the smallest nets than this
        zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
        elsewhere = jnp.where(in_range[..., None], zero, jnp.nan)
        return jnp.where(jax.nn.one_hot(t, n, dtype=bool), one, elsewhere)
    if _is_binary_label(net, t, lead):
        if t.dtype != bool:
            t, in_range = as_indices("t", t, 2)
            t = jnp.where(in_range, jnp.asarray(t, dtype), jnp.nan)
        t = t[..., None]
    return jnp.asarray(t, dtype)


def as_weight(weight: Any, batch: int, dtype: Any) -> Array:
    """weight of shape (B,), at least float32 since it enters sums.

    One that is negative or infinite raises where it is concrete, and becomes NaN where traced; one
    too small for the dtype, which would make its row absent, raises."""
    dtype = at_least_float32(dtype)
    if weight is None:
        return jnp.ones(batch, dtype)
    weight = as_numbers("weight", weight)
    if weight.shape != (batch,):
        raise ValueError(
            f"weight: expected shape ({batch},), one for each example, got {weight.shape}"
        )
    if is_concrete(weight):  # looked at on the host, also where a trace is under way around it
        values = np.asarray(weight)
        least, most = float(jnp.finfo(dtype).tiny), float(jnp.finfo(dtype).max)
        expected = "finite numbers of at least 0"
        size = values.astype(np.float64)  # float16 knows neither of the limits
        check_rows("weight", expected, values, (size >= 0) & (size <= most))
        expected = f"0 or numbers of at least {least:.3g}, the least of {jnp.dtype(dtype).name}"
        check_rows("weight", expected, values, (size == 0) | (size >= least))
    weight = jnp.asarray(weight, dtype)
    return jnp.where((weight >= 0) & (weight < jnp.inf), weight, jnp.nan)


def check_tape(net: Sized, tape: Any) -> None:
    """The tape of one example, from `forward` of this network."""
    expected = [[*net.z_shapes], [*net.shapes]]
    what = f"the tape of ONE example, from forward: z and a of shapes {expected}"
    try:
        got = [[np.shape(leaf) for leaf in leaves] for leaves in (tape.z, tape.a)]
    except (AttributeError, TypeError):
        fail(net, "tape", what, type(tape).__name__)
    if got != expected:
        fail(net, "tape", what, f"{got}{_if_batch(got, expected)}")


def check_deltas(name: str, deltas: Any, z: Any, *, flat: bool) -> None:
    """δ^l has the shape of z^l, of one example: a vector, where the network is flat throughout."""
    got, of_z = [np.shape(d) for d in deltas], [np.shape(leaf) for leaf in z]
    if flat and got == of_z and len({len(shape) for shape in of_z}) > 1:
        raise ValueError(f"maps: expected net.maps, since z^l have positions, {of_z}, got ()")
    expected = [shape[-1:] for shape in of_z] if flat else of_z
    if got != expected or of_z != expected:
        got = {"deltas": got, "z": of_z}
        batch = _if_batch([*got.values()], [expected, expected])
        raise ValueError(f"{name}: expected those of ONE example, {expected}, got {got}{batch}")


def _if_batch(got: Any, expected: Any) -> str:
    """A word to whoever hands a batch to a function of one example."""
    flat = lambda shapes: [shape for part in shapes for shape in part]
    ranks = [(len(shape), len(one)) for shape, one in zip(flat(got), flat(expected), strict=False)]
    if any(rank > of_one for rank, of_one in ranks):
        return ", a batch: jax.vmap makes this a function of one, and backprop does all of it"
    return ""


def per_hidden_layer(net: Sized, feedback: Any, key: Any) -> tuple[Any, Any]:
    """(feedback, keys) with one entry per hidden layer each; None where there is none. A tuple of
    keys has one for each already."""
    if key is not None and not isinstance(key, tuple):
        check_key(key)
    hidden = len(net.maps) - 1
    if not isinstance(feedback, tuple | list) or len(feedback) not in (0, hidden):
        if isinstance(feedback, tuple | list):
            got = f"{type(feedback).__name__} of {len(feedback)}"
        else:
            got = f"{type(feedback).__name__} of shape {np.shape(feedback)}"
        fail(net, "feedback", f"a tuple of {hidden}, one entry per hidden layer, or ()", got)
    nothing = (None,) * hidden
    keys = nothing if key is None else key
    return feedback or nothing, keys if isinstance(keys, tuple) else jax.random.split(keys, hidden)


def in_the_structure_of(name: str, like: Any, layers: Any) -> Any:
    """(w, b) per layer where they stand in `like`, whatever its structure calls and orders them."""
    leaves, structure = jax.tree.flatten(like)
    at = structure.unflatten(range(len(leaves)))
    places = [place for layer in at for place in layer]
    if not all(isinstance(place, int) for place in places) or len(places) != len(leaves):
        raise ValueError(
            "params: expected a pytree whose leaves are the arrays w and b of every layer, "
            f"got {structure}"
        )
    try:
        found = [leaf for w, b in layers for leaf in (w, b)]
    except (TypeError, ValueError):
        found = []
    if len(found) != len(leaves):
        raise ValueError(f"{name}: expected (w, b) per layer, got {type(layers).__name__}")
    return structure.unflatten([found[places.index(place)] for place in range(len(leaves))])
