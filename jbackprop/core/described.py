"""What a network is made of, as JSON, and a network from that.

The library's own things stand there by their names and constants, a linear map or a pooling by its
class and fields. Your own are found by name in what you say is known.
"""

import contextlib
import dataclasses
import json
from typing import Any

from jbackprop.core import activations, costs
from jbackprop.core.linear import Conv, Dense
from jbackprop.core.network import Network
from jbackprop.core.pooling import MaxPool, MeanPool
from jbackprop.core.records import Activation, Constants, Cost

_PLACES = (Dense, Conv, MaxPool, MeanPool)
_MODULES = {Activation: activations, Cost: costs}


class Unfit(ValueError):
    """What is wrong with a description, or with the file that it came from."""


def description(net: Network) -> dict[str, Any]:
    """Sizes, activations and cost. `ValueError` where an entry of sizes cannot be described."""
    hidden = net.hidden
    return {
        "sizes": [_told_place(i, entry) for i, entry in enumerate(net.sizes)],
        "hidden": [*map(_told, hidden)] if isinstance(hidden, tuple) else _told(hidden),
        "output": _told(net.output),
        "cost": _told(net.cost),
    }


def described_network(described: dict[str, Any], known: list[Any]) -> Network:
    """What `description` told. `Unfit` where something is not known."""
    sizes = tuple(_place(told, known) for told in described["sizes"])
    hidden = described["hidden"]
    if isinstance(hidden, list):
        hidden = tuple(_record(Activation, told, known) for told in hidden)
    else:
        hidden = _record(Activation, hidden, known)
    output = _record(Activation, described["output"], known)
    return Network(sizes, hidden, output, _record(Cost, described["cost"], known))


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
        raise Unfit(
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
            raise Unfit(f"expected one class called {name!r} in known, got {known!r}")
        fields = {name: _hashable(v) for name, v in told["fields"].items()}
        try:
            return named[0](**fields)
        except (TypeError, ValueError) as error:
            raise Unfit(
                f"expected {name} to be made of {fields}, as it was saved, got {error}"
            ) from error
    return _hashable(told)


def _hashable(value: Any) -> Any:
    """JSON knows no tuples."""
    return tuple(map(_hashable, value)) if isinstance(value, list) else value
