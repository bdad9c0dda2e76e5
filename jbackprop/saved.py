"""A network and its parameters in one file, without pickle: arrays, and a description as JSON.

A file runs no code, and one that is not whole gives an error and no numbers.
"""

import io
import json
import os
import threading
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbackprop.core.described import Unfit, described_network, description
from jbackprop.core.network import Layer, Network, Params, as_layers
from jbackprop.core.records import Activation, Cost

FORMAT = 1


def save(path: Any, net: Network, params: Any) -> None:
    """Writes a network and its parameters to one `.npz`, whole or not at all.

    Args:
        path: of the file; what stands there is replaced at the end, in one stroke.
        net: the network. A map or a pooling of your own is a dataclass of numbers and strings.
        params: (w^l, b^l) per layer, of any floating dtype; they come back bit by bit.

    Raises:
        ValueError: params do not fit the network; a part of it cannot be described.
        OSError: the file cannot be written.

    >>> import tempfile, jax
    >>> import jbackprop as jb
    >>> net = jb.Network((64, 32, 10), jb.leaky_relu_of(0.2), jb.softmax, jb.cross_entropy)
    >>> params = jb.init(net, jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     jb.save(f"{folder}/net.npz", net, params)
    ...     same_net, same_params = jb.load(f"{folder}/net.npz")
    >>> same_net == net, bool((same_params[0].w == params[0].w).all())
    (True, True)
    """
    layers = as_layers(net, params)
    described = {
        "format": FORMAT,
        "dtype": jnp.dtype(layers[0].w.dtype).name,
        **description(net),
    }
    arrays: dict[str, Any] = {
        "description": np.frombuffer(json.dumps(described).encode(), np.uint8)
    }
    for l, layer in enumerate(layers, start=1):
        for name, leaf in layer._asdict().items():
            arrays[f"{name}{l}"] = _storable(np.asarray(leaf))
    path = Path(path).resolve()  # a link stays one
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path: Any, *, known: Any = ()) -> tuple[Network, Params]:
    """The network and the parameters of a file that `save` wrote.

    Args:
        path: of the file.
        known: your own activations and costs, and your maps and poolings or their classes: whatever
            the network is made of that is not the library's. They are found by name.

    Returns:
        (net, params), equal to what was saved, params as `tuple[Layer, ...]` bit by bit.

    Raises:
        ValueError: the file is none of `save`'s, or not whole, or of a newer format; what it names
            is not known; float64 while x64 is off. The error names the file.
        OSError: there is no such file, or it cannot be read.
    """
    data, known = Path(path).read_bytes(), _listed(known)
    try:
        described, arrays = _read(data)
        net = described_network(described, known)
        return net, _params(net, described["dtype"], arrays)
    except Unfit as error:
        raise ValueError(f"{path}: {error}") from error.__cause__
    except Exception as error:  # a flipped bit may break whatever reads it
        raise ValueError(
            f"{path}: expected a whole file written by jbackprop.save, got one that cannot be "
            f"read: {type(error).__name__}: {error}"
        ) from error


def _storable(leaf: np.ndarray) -> np.ndarray:
    """NumPy's files know no bfloat16: of such a number its bits, read again by the dtype's name."""
    builtin = leaf.dtype.isbuiltin == 1
    return leaf if builtin else leaf.view(f"u{leaf.dtype.itemsize}")


def _listed(known: Any) -> list[Any]:
    """Records and classes; one alone is an error, which a class would else give obscurely."""
    if isinstance(known, Activation | Cost | type) or not isinstance(known, Iterable):
        raise ValueError(f"known: expected a list of what is yours, got {known!r}")
    return [*known]


def _read(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the arrays; every checksum compared."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise Unfit(
            f"expected a file written by jbackprop.save, got {len(data)} bytes of another kind, "
            "or a file cut short"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if "description" not in arrays:
        raise Unfit(f"expected a description of the network, got arrays {sorted(arrays)} alone")
    described = json.loads(arrays.pop("description").tobytes().decode())
    if described.get("format") != FORMAT:
        raise Unfit(
            f"expected format {FORMAT}, got {described.get('format')}: "
            "it was written by another version of jbackprop"
        )
    return described, arrays


def _params(net: Network, dtype: str, arrays: dict[str, np.ndarray]) -> Params:
    names = [f"{name}{l}" for l in range(1, len(net.maps) + 1) for name in "wb"]
    if sorted(arrays) != sorted(names):
        raise Unfit(f"expected arrays {names}, got {sorted(arrays)}")
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise Unfit(
            f"its parameters are {dtype}, which needs 64-bit mode, which is off: "
            'jax.config.update("jax_enable_x64", True)'
        )
    stored = _storable(np.empty(0, jnp.dtype(dtype))).dtype
    for name in names:
        if arrays[name].dtype != stored:
            raise Unfit(f"expected {name} of {stored}, got {arrays[name].dtype}")
    leaves = [jnp.asarray(arrays[name].view(jnp.dtype(dtype))) for name in names]
    layers = zip(leaves[::2], leaves[1::2], strict=True)
    try:
        return as_layers(net, tuple(Layer(w, b) for w, b in layers))
    except ValueError as error:
        raise Unfit(str(error)) from error
