"""Arrays on disk, by orbax: what is handed to it, and what is asked of it."""

import hashlib
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jbackprop.core.arrays import as_numbers
from jbackprop.training.state import TrainState

SMALL = 2**20  # bytes
JOINED = "small arrays"


def orbax() -> Any:
    """Imported where it is needed: that takes a second."""
    try:
        import orbax.checkpoint as ocp
    except ImportError as error:
        raise ImportError("checkpoints need orbax: pip install 'jbackprop[checkpoint]'") from error
    return ocp


def writer(seal: Callable[[], None]) -> Any:
    """What writes behind. It calls `seal` when all is written and has no name yet."""
    ocp = orbax()
    # Were folders made behind too, one that cannot be made would be missed minutes later.
    options = ocp.AsyncOptions(
        post_finalization_callback=seal, create_directories_asynchronously=False
    )
    return ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler(), async_options=options)


def write(by: Any, folder: Path, arrays: dict[str, Any]) -> None:
    """Starts to. Arrays of no elements are left out, which orbax refuses."""
    arrays = {name: value for name, value in arrays.items() if value.size}
    by.save(folder, args=orbax().args.StandardSave(arrays))


def small(arrays: dict[str, Any]) -> list[str]:
    """The names of those that are written as one: each on its own takes orbax 2 ms."""
    alone = jax.process_count() == 1
    fits = lambda v: alone and isinstance(v, np.ndarray) and 0 < v.nbytes <= SMALL
    return [name for name, value in arrays.items() if fits(value)]


def joined(arrays: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The same arrays, but those of these names as one row of bytes."""
    rows = [np.ascontiguousarray(arrays[name]).reshape(-1).view(np.uint8) for name in names]
    among = {*names}
    rest = {name: value for name, value in arrays.items() if name not in among}
    return rest | ({JOINED: np.concatenate(rows)} if rows else {})


def not_written(error: Exception, folder: Path, what: str) -> OSError:
    """With the system's number for it, where that is known."""
    code = re.search(r"os_error_code='(\d+)'", str(error))  # as tensorstore tells it
    number = int(code[1]) if code else getattr(error, "errno", None)
    if number is None:
        return OSError(f"{folder}: {what} is not written: {type(error).__name__}: {error}")
    return OSError(number, f"{os.strerror(number)}: {what} is not written", str(folder))


def read(folder: Path, like: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """Arrays in the shapes, dtypes and places of these; those of some names were `joined`."""
    ocp = orbax()
    from etils import epath  # comes with orbax

    among = {*names}
    wanted = {name: value for name, value in like.items() if value.size and name not in among}
    sizes = [math.prod(like[name].shape) * like[name].dtype.itemsize for name in names]
    if names:
        wanted[JOINED] = np.empty(sum(sizes), np.uint8)
    handler = ocp.StandardCheckpointHandler()
    try:
        found = handler.restore(epath.Path(folder), args=ocp.args.StandardRestore(wanted))
        parts = np.split(found.pop(JOINED), np.cumsum(sizes)[:-1]) if names else []
        apart = {n: _placed(part, like[n]) for n, part in zip(names, parts, strict=True)}
        return like | found | apart
    except Exception as error:  # what is damaged was found before
        error.add_note(f"while orbax-checkpoint {ocp.__version__} read {folder}, which is whole")
        raise
    finally:
        handler.close()


def _placed(row: np.ndarray, like: Any) -> Any:
    """The bytes of an array as it shall be."""
    value = row.copy().view(like.dtype).reshape(like.shape)
    if isinstance(like, np.ndarray):
        return value
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: value[index])


def as_state(state: Any) -> TrainState:
    """Of arrays, or of their shapes and dtypes."""
    if not isinstance(state, TrainState):
        got = type(state).__name__
        raise ValueError(f"state: expected a TrainState, from init_state, got {got}")
    known = jax.Array, jax.ShapeDtypeStruct
    try:
        state = jax.tree.map(lambda v: v if isinstance(v, known) else jnp.asarray(v), state)
    except (TypeError, ValueError) as error:
        raise ValueError(f"state: expected arrays, got {error}") from error
    if state.step.shape != ():
        raise ValueError(f"state: expected one step of shape (), got {state.step.shape}")
    return state


def as_extra(extra: Any) -> dict[str, np.ndarray]:
    """Whole and of its own in every process."""
    if extra is None:
        return {}
    if not isinstance(extra, dict) or not all(isinstance(name, str) for name in extra):
        raise ValueError(f"extra: expected a dict of arrays by name, got {extra!r}")
    return {name: _on_host(as_numbers(f"extra {name!r}", v)) for name, v in extra.items()}


def _on_host(value: Any) -> np.ndarray:
    if isinstance(value, jax.Array) and not (
        value.is_fully_addressable or value.is_fully_replicated
    ):
        value = multihost_utils.process_allgather(value, tiled=True)
    return np.array(value)


def digest(value: np.ndarray) -> str:
    """The SHA-256 of its numbers."""
    return hashlib.sha256(value.tobytes()).hexdigest()


def is_key(leaf: Any) -> bool:
    """Whether it is typed keys, or the shape of such."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def data(leaf: jax.Array) -> jax.Array:
    """The numbers that a key is."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def on_host(leaf: jax.Array) -> Any:
    """For orbax, which copies NumPy's arrays before it returns: on a CPU they share the leaf's
    memory, which a step may take. Of a leaf that is spread over processes it takes each one's."""
    return np.asarray(leaf) if leaf.is_fully_addressable else leaf


def to_be(leaf: Any) -> Any:
    """What is asked of orbax for it: in its place, or on the host where it has none of its own.

    Its numbers are not looked at, which may have been donated."""
    bare = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    bare = jax.eval_shape(jax.random.key_data, bare) if is_key(leaf) else bare
    if leaf.sharding is None or not getattr(leaf, "committed", True):
        return np.empty(bare.shape, bare.dtype)
    return jax.ShapeDtypeStruct(bare.shape, bare.dtype, sharding=leaf.sharding)


def as_given(leaf: Any, found: jax.Array) -> jax.Array:
    """A key again, if that was one."""
    if not is_key(leaf):
        return found
    impl = jax.random.key_impl(jnp.empty((), leaf.dtype))
    return jax.random.wrap_key_data(found, impl=impl)
