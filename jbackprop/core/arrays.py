"""Numbers from users, made into arrays; or an error that names the argument.

Shapes and dtypes are known when a function is traced, so what does not fit raises `ValueError`
there, before anything is computed. A value is looked at where it is known, and gives NaN where it
is bad and traced.
"""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def is_traced(value: Any) -> bool:
    """Whether it stands for numbers that there will be."""
    return isinstance(value, jax.core.Tracer)


def is_concrete(value: Any) -> bool:
    """Whether its numbers are known here; a traced value has none yet, and of an array that is
    spread over processes each of them knows a part."""
    if is_traced(value):
        return False
    readable = not isinstance(value, jax.Array) or value.is_fully_addressable
    return readable or value.is_fully_replicated


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
            return _as_jax_reads_it(value) if isinstance(value, np.ndarray) else value
    except (TypeError, ValueError, RuntimeError, OverflowError):
        pass  # a tensor of another library may refuse to be read
    raise ValueError(f"{name}: expected an array of real numbers, got {kind}") from None


def _as_jax_reads_it(value: np.ndarray) -> np.ndarray:
    """JAX knows no other byte order than the machine's, and no float beyond 64 bits."""
    if not value.dtype.isnative:
        value = value.astype(value.dtype.newbyteorder("="))
    if value.dtype == np.longdouble:
        with np.errstate(over="ignore"):
            value = value.astype(np.float64)
    return value


def as_real(name: str, value: Any, dtype: Any = None) -> Array:
    """An array of a real or bool dtype, or of `dtype`."""
    return jnp.asarray(as_numbers(name, value), dtype)


def stored(name: str, value: Any, dtype: Any) -> Any:
    """Numbers that may pass a `jax.jit` border: in their own dtype, or `dtype` where JAX has none.

    So images of uint8 stay small, and 64-bit integers do not wrap."""
    value = as_numbers(name, value)
    if jax.dtypes.canonicalize_dtype(value.dtype) == value.dtype:
        return value
    with np.errstate(over="ignore"):
        return jnp.asarray(value, dtype)


def as_floating(name: str, dtype: Any) -> np.dtype:
    """A floating dtype that this mode of JAX has."""
    try:
        floating = jnp.issubdtype(dtype, jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        got = getattr(dtype, "__name__", dtype)
        raise ValueError(f"{name}: expected a floating dtype, got {got}")
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise ValueError(
            f"{name}: {jnp.dtype(dtype).name} needs 64-bit mode, which is off: "
            'jax.config.update("jax_enable_x64", True)'
        )
    return jnp.dtype(dtype)


def fitted(name: str, value: Any, like: Any) -> Array:
    """What a user's function returned, which must have the shape of `like`, in its dtype."""
    if np.shape(value) != like.shape:
        raise ValueError(f"{name}: expected shape {like.shape}, got {np.shape(value)}")
    return jnp.asarray(value, like.dtype)


def as_indices(name: str, value: Any, n: int) -> tuple[Any, Any]:
    """Whole numbers meant to lie in 0 … n - 1, and whether they do.

    Looked at in the dtype that they came in: 2^32 + 1 must not wrap to 1, nor 300 to 44."""
    value = as_numbers(name, value)
    if not jnp.issubdtype(value.dtype, jnp.integer):
        raise ValueError(f"{name}: expected integers, got {value.dtype}")
    if isinstance(value, np.ndarray):
        inside = (value >= 0) & (value < n)
        fitting = np.full(value.shape, -1, np.int32)
        fitting[inside] = value[inside]
        return fitting, inside
    if value.dtype.itemsize < 4:
        value = value.astype(jnp.int32)
    inside = (value >= 0) & (value < n)
    if value.dtype.itemsize > 4:
        value = jnp.where(inside, value, -1).astype(jnp.int32)
    return value, inside


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


def is_key(value: Any) -> bool:
    """Whether it is a typed key, or an array of them."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def check_key(key: Any) -> None:
    """A typed key, and one only."""
    dtype = getattr(key, "dtype", type(key).__name__)
    if not is_key(key):
        raise ValueError(f"key: expected a typed key, jax.random.key(seed), got {dtype}")
    if key.shape != ():
        raise ValueError(f"key: expected one key of shape (), got {key.shape}")


def check_rows(name: str, expected: str, values: np.ndarray, good: Any) -> None:
    """Raises for the first row that is not good."""
    good = np.asarray(good)
    if not good.all():
        at = tuple(np.argwhere(~good)[0])
        raise ValueError(f"{name}: expected {expected}, got {values[at]} at row {at[0]}")
