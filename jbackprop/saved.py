"""A network and its parameters in one file, without pickle: arrays, and a description as JSON.

The description names what the network is made of: the library's own things by their names and
constants, a linear map or a pooling by its class and fields. Your own are found, by name, in what
you hand to `load`; so a file runs no code, and one that is not whole gives an error and no numbers.
"""

import contextlib
import dataclasses
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

from jbackprop.core import activations, costs
from jbackprop.core.linear import Conv, Dense
from jbackprop.core.network import Layer, Network, Params, as_layers
from jbackprop.core.pooling import MaxPool, MeanPool
from jbackprop.core.records import Activation, Constants, Cost

FORMAT = 1
_PLACES = (Dense, Conv, MaxPool, MeanPool)
_MODULES = {Activation: activations, Cost: costs}


def save(path: Any, net: Network, params: Any) -> None:
    """Writes net and params to one `.npz`, whole or not at all.

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
        "sizes": [_told_place(i, entry) for i, entry in enumerate(net.sizes)],
        "hidden": [_told(f) for f in net.hidden]
        if isinstance(net.hidden, tuple)
        else _told(net.hidden),
        "output": _told(net.output),
        "cost": _told(net.cost),
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
        net = _network(described, known)
        return net, _params(net, described["dtype"], arrays)
    except _Unfit as error:
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


class _Unfit(ValueError):
    """What is wrong with a file, told already."""


def _read(data: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The description and the arrays; every checksum compared."""
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise _Unfit(
            f"expected a file written by jbackprop.save, got {len(data)} bytes of another kind, "
            "or a file cut short"
        )
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    if "description" not in arrays:
        raise _Unfit(f"expected a description of the network, got arrays {sorted(arrays)} alone")
    described = json.loads(arrays.pop("description").tobytes().decode())
    if described.get("format") != FORMAT:
        raise _Unfit(
            f"expected format {FORMAT}, got {described.get('format')}: "
            "it was written by another version of jbackprop"
        )
    return described, arrays


def _params(net: Network, dtype: str, arrays: dict[str, np.ndarray]) -> Params:
    names = [f"{name}{l}" for l in range(1, len(net.maps) + 1) for name in "wb"]
    if sorted(arrays) != sorted(names):
        raise _Unfit(f"expected arrays {names}, got {sorted(arrays)}")
    if jax.dtypes.canonicalize_dtype(dtype) != jnp.dtype(dtype):
        raise _Unfit(
            f"its parameters are {dtype}, which needs 64-bit mode, which is off: "
            'jax.config.update("jax_enable_x64", True)'
        )
    stored = _storable(np.empty(0, jnp.dtype(dtype))).dtype
    for name in names:
        if arrays[name].dtype != stored:
            raise _Unfit(f"expected {name} of {stored}, got {arrays[name].dtype}")
    leaves = [jnp.asarray(arrays[name].view(jnp.dtype(dtype))) for name in names]
    layers = zip(leaves[::2], leaves[1::2], strict=True)
    try:
        return as_layers(net, tuple(Layer(w, b) for w, b in layers))
    except ValueError as error:
        raise _Unfit(str(error)) from error


def _told(record: Any) -> Any:
    """An activation or a cost: its name where it is the library's, with constants where it has
    some; of your own the name too, and that it is yours."""
    kind = Activation if isinstance(record, Activation) else Cost
    if _ours(kind, record.name) == record:
        return record.name
    function = record.f if isinstance(record, Activation) else record.value
    if isinstance(function, Constants):
        told = {"made by": record.name.split("(")[0], "constants": [*function.constants]}
        if _made(kind, told) == record:
            return told
    return {"yours": record.name}


def _ours(kind: type, name: str) -> Any:
    found = getattr(_MODULES[kind], name, None)
    return found if isinstance(found, kind) else None


def _made(kind: type, told: dict[str, Any]) -> Any:
    """leaky_relu_of and 0.2 to leaky_relu_of(0.2)."""
    name = told["made by"]
    factory = getattr(_MODULES[kind], name, None) if name.endswith("_of") else None
    return None if factory is None else factory(*told["constants"])


def _record(kind: type, told: Any, known: list[Any]) -> Any:
    """What `_told` told."""
    if isinstance(told, dict) and "yours" in told:
        named = [r for r in known if isinstance(r, kind) and r.name == told["yours"]]
        found = [*dict.fromkeys(named)]  # of a name, equal ones are one
    elif isinstance(told, dict):
        found = [_made(kind, told)]
    else:
        found = [_ours(kind, told)]
    if len(found) != 1 or found[0] is None:
        name = told if isinstance(told, str) else told.get("yours", told)
        raise _Unfit(
            f"expected one {kind.__name__} called {name!r} in known, "
            f"got {len([r for r in found if r is not None])} in {known!r}"
        )
    return found[0]


def _told_place(i: int, entry: Any) -> Any:
    """An entry of `sizes`: a number, a shape, or a dataclass by its class and fields."""
    if type(entry) in (int, tuple):
        return entry
    told = None
    if dataclasses.is_dataclass(entry):
        fields = {f.name: getattr(entry, f.name) for f in dataclasses.fields(entry) if f.init}
        whose = "class" if type(entry) in _PLACES else "your class"
        told = {whose: type(entry).__name__, "fields": fields}
        with contextlib.suppress(TypeError, ValueError):
            if _place(json.loads(json.dumps(told)), [type(entry)]) == entry:
                return told
    raise ValueError(
        f"net: expected entries of sizes that are dataclasses of numbers and strings, which a file "
        f"can describe, got {entry!r} as entry {i}"
    )


def _place(told: Any, known: list[Any]) -> Any:
    if isinstance(told, dict):
        own = [k if isinstance(k, type) else type(k) for k in known]
        among = dict.fromkeys(own) if "your class" in told else _PLACES
        name = told.get("your class") or told["class"]
        named = [c for c in among if c.__name__ == name]
        if len(named) != 1:
            raise _Unfit(f"expected one class called {name!r} in known, got {known!r}")
        fields = {name: _hashable(v) for name, v in told["fields"].items()}
        try:
            return named[0](**fields)
        except (TypeError, ValueError) as error:
            raise _Unfit(
                f"expected {name} to be made of {fields}, as it was saved, got {error}"
            ) from error
    return _hashable(told)


def _hashable(value: Any) -> Any:
    """JSON knows no tuples."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value


def _network(described: dict[str, Any], known: list[Any]) -> Network:
    sizes = tuple(_place(told, known) for told in described["sizes"])
    hidden = described["hidden"]
    if isinstance(hidden, list):
        hidden = tuple(_record(Activation, told, known) for told in hidden)
    else:
        hidden = _record(Activation, hidden, known)
    output = _record(Activation, described["output"], known)
    return Network(sizes, hidden, output, _record(Cost, described["cost"], known))
