"""The border: what users may pass, made into arrays that fit; or an error that names the argument.

Shapes and dtypes are known when a function is traced, so what does not fit raises `ValueError`
there, before anything is computed. A value is looked at where it is known, and gives NaN where it
is bad and traced; `values.py` looks at a whole batch.
"""

from typing import Any, NoReturn, Protocol, runtime_checkable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jbackprop.core.costs import Cost, cross_entropy


@runtime_checkable
class Sized(Protocol):
    """What the checks need of a `Network`, which stands above this file."""

    @property
    def sizes(self) -> tuple[int, ...]: ...

    @property
    def cost(self) -> Cost: ...


def fail(net: Sized, name: str, expected: str, got: Any) -> NoReturn:
    """Raises the one form of error that a shape gets."""
    got = getattr(got, "shape", got)
    raise ValueError(f"{name}: expected {expected} for a network with sizes {net.sizes}, got {got}")


def is_concrete(value: Any) -> bool:
    """Whether its numbers are known here; a traced value has none yet."""
    return not isinstance(value, jax.core.Tracer)


def as_numbers(name: str, value: Any) -> Any:
    """A NumPy or JAX array of a real or bool dtype, its own: nothing is rounded or wrapped yet."""
    kind = getattr(value, "dtype", type(value).__name__)
    try:
        if not isinstance(value, jax.Array | np.ndarray):
            # a list may hold traced numbers, which NumPy refuses
            traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))
            value = jnp.asarray(value) if traced else np.asarray(value)
        real = (jnp.floating, jnp.integer, jnp.bool_)
        if any(jnp.issubdtype(value.dtype, numbers) for numbers in real):
            return value
    except (TypeError, ValueError):
        pass
    raise ValueError(f"{name}: expected an array of real numbers, got {kind}") from None


def as_real(name: str, value: Any, dtype: Any = None) -> Array:
    """An array of a real or bool dtype, or of `dtype`."""
    return jnp.asarray(as_numbers(name, value), dtype)


def fitted(name: str, value: Any, like: Any) -> Array:
    """What a user's function returned, which must have the shape of `like`, in its dtype."""
    if np.shape(value) != like.shape:
        raise ValueError(f"{name}: expected shape {like.shape}, got {np.shape(value)}")
    return jnp.asarray(value, like.dtype)


def as_pairs(net: Sized, params: Any) -> tuple[tuple[Array, Array], ...]:
    """(w^l, b^l) per layer, from any structure that unpacks to them."""
    depth = len(net.sizes) - 1
    try:
        pairs = tuple((as_real("w", w), as_real("b", b)) for w, b in params)
    except (TypeError, ValueError):
        fail(net, "params", "arrays (w, b) per layer", type(params).__name__)
    if len(pairs) != depth:
        fail(net, "params", f"{depth} layers of (w, b)", f"{len(pairs)}")
    for l, (w, b) in enumerate(pairs, start=1):
        n_in, n_out = net.sizes[l - 1 : l + 1]
        if w.shape != (n_out, n_in):
            fail(net, "params", f"w^{l} of shape {(n_out, n_in)}", w)
        if b.shape != (n_out,):
            fail(net, "params", f"b^{l} of shape {(n_out,)}", b)
    dtypes = {leaf.dtype for pair in pairs for leaf in pair}
    if len(dtypes) > 1 or not all(jnp.issubdtype(d, jnp.floating) for d in dtypes):
        fail(
            net,
            "params",
            "one floating dtype throughout",
            ", ".join(sorted(d.name for d in dtypes)),
        )
    return pairs


def as_input(net: Sized, x: Any, dtype: Any, *, rank: int | None) -> Array:
    """x in the parameters' dtype: one example (rank 1), a batch (2), any leading axes (None)."""
    x = as_real("x", x, dtype)
    n = net.sizes[0]
    if rank == 1 and x.shape != (n,):
        fail(net, "x", f"one example of shape {(n,)}", x)
    if rank == 2 and (x.ndim != 2 or x.shape[1] != n):
        fail(net, "x", f"shape (B, {n})", x)
    if rank == 2 and len(x) == 0:
        fail(net, "x", "at least one example", x)
    if x.ndim == 0 or x.shape[-1] != n:
        fail(net, "x", f"shape (..., {n})", x)
    return x


def is_label(t: Any, lead: tuple[int, ...] = ()) -> bool:
    """Whether t holds integer classes, one for each example, and no vectors."""
    t = as_numbers("t", t)
    return jnp.issubdtype(t.dtype, jnp.integer) and t.shape == lead


def as_target(net: Sized, t: Any, dtype: Any, *, lead: tuple[int, ...] = ()) -> Array:
    """t of shape (*lead, n_L) in the parameters' dtype; a label one-hot, or NaN if out of range."""
    t = as_numbers("t", t)
    n = net.sizes[-1]
    shape = (*lead, n)
    if is_label(t, lead):
        if net.cost != cross_entropy:
            fail(
                net,
                "t",
                f"shape {shape}, since the cost {net.cost.name} takes no integer labels,",
                t,
            )
        if isinstance(t, np.ndarray):  # 2^32 + 1 must not wrap to class 1
            t = np.clip(t, -1, n)
        t = jnp.asarray(t)
        if t.dtype.itemsize < 4:  # uint8 cannot be compared with n > 255
            t = t.astype(jnp.int32)
        # `jax.nn.one_hot` gives zeros out of range, as if the example had no class and no cost;
        # masking those afterwards took 4 % longer a step at the smallest nets than this
        in_range = ((t >= 0) & (t < n))[..., None]
        zero, one = jnp.zeros((), dtype), jnp.ones((), dtype)
        elsewhere = jnp.where(in_range, zero, jnp.nan)
        return jnp.where(jax.nn.one_hot(t, n, dtype=bool), one, elsewhere)
    if t.shape != shape:
        labels = f" or integer labels of shape {lead}" if net.cost == cross_entropy else ""
        fail(net, "t", f"shape {shape}{labels}", t)
    return jnp.asarray(t, dtype)


def as_weight(weight: Any, batch: int, dtype: Any) -> Array:
    """weight of shape (B,), at least float32 since it enters sums.

    One that is negative or infinite raises where it is concrete, and becomes NaN where traced; one
    too small for the dtype, which would make its row absent, raises."""
    dtype = dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
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
        check_rows("weight", expected, values, (values >= 0) & (values <= most))
        expected = f"0 or numbers of at least {least:.3g}, the least of {jnp.dtype(dtype).name}"
        check_rows("weight", expected, values, (values == 0) | (values >= least))
    weight = jnp.asarray(weight, dtype)
    return jnp.where((weight >= 0) & (weight < jnp.inf), weight, jnp.nan)


def check_tape(net: Sized, tape: Any) -> None:
    """The tape of one example, from `forward` of this network."""
    try:
        got = [[np.shape(leaf) for leaf in leaves] for leaves in (tape.z, tape.a)]
    except (AttributeError, TypeError):
        got = type(tape).__name__
    if got != [[(n,) for n in net.sizes[1:]], [(n,) for n in net.sizes]]:
        fail(net, "tape", "the tape of one example, from forward,", f"z and a of shapes {got}")


def check_deltas(name: str, deltas: Any, z: Any) -> None:
    """δ^l has the shape of z^l, of one example."""
    got, expected = [np.shape(d) for d in deltas], [np.shape(leaf) for leaf in z]
    if got != expected or any(len(shape) != 1 for shape in got):
        raise ValueError(f"{name}: expected the shapes of one example's z, {expected}, got {got}")


def per_hidden_layer(net: Sized, feedback: Any, key: Any) -> tuple[Any, Any]:
    """(feedback, keys) with one entry per hidden layer each; None where there is none."""
    if key is not None:
        check_key(key)
    hidden = len(net.sizes) - 2
    if not isinstance(feedback, tuple) or len(feedback) not in (0, hidden):
        got = f"{type(feedback).__name__} {len(feedback) if hasattr(feedback, '__len__') else ''}"
        fail(
            net, "feedback", f"a tuple of {hidden}, one entry per hidden layer, or ()", got.strip()
        )
    nothing = (None,) * hidden
    return feedback or nothing, nothing if key is None else jax.random.split(key, hidden)


def check_size(name: str, size: Any) -> None:
    """A whole number of at least 1."""
    if not hasattr(size, "__index__") or size < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {size!r}")


def check_positive(name: str, value: Any) -> float:
    """A finite number above 0, known here, as a float."""
    number = as_numbers(name, value)
    if not is_concrete(number) or number.shape != () or not 0 < float(number) < float("inf"):
        raise ValueError(f"{name}: expected a finite number above 0, got {value!r}")
    return float(number)


def check_key(key: Any) -> None:
    """A typed key, and one only."""
    dtype = getattr(key, "dtype", type(key).__name__)
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise ValueError(f"key: expected a typed key, jax.random.key(seed), got {dtype}")
    if key.shape != ():
        raise ValueError(f"key: expected one key of shape (), got {key.shape}")


def check_rows(name: str, expected: str, values: np.ndarray, good: Any) -> None:
    """Raises for the first row that is not good."""
    good = np.asarray(good)
    if not good.all():
        at = tuple(np.argwhere(~good)[0])
        raise ValueError(f"{name}: expected {expected}, got {values[at]} at row {at[0]}")
