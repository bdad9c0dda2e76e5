"""What a state is of, as JSON: network, rule, optimizer and leaves; and in what two of them differ.

An optimizer is closed functions. It is known by the state that it keeps, and by the names of the
transformations that it is composed of. Its numbers, such as a learning rate, stay unknown.
"""

import functools
import importlib.metadata
import itertools
import json
import platform
import warnings
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp

from jbackprop.core.described import description
from jbackprop.core.network import Network
from jbackprop.core.rules import Rule
from jbackprop.training.state import TrainState

_MOST = 1000  # names of one optimizer
_WITHIN = 100  # parts of a list, and parts of parts, that are looked into


def named_leaves(state: TrainState) -> dict[str, Any]:
    """The leaves by where they stand, such as params.0.w."""
    found: dict[str, Any] = {}
    for path, leaf in jax.tree.leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if name in found:
            raise ValueError(f"state: expected leaves with names of their own, got two {name!r}")
        found[name] = leaf
    return found


def likeness(net: Network, optimizer: Any, rule: Rule, state: TrainState) -> dict[str, Any]:
    """What a state is of. `ValueError` where a part of the network cannot be described."""
    kinds: dict[str, None] = {}

    def noted(node: Any) -> bool:
        if not hasattr(node, "dtype"):
            kinds[type(node).__name__] = None
        return False

    jax.tree.leaves(state.opt_state, is_leaf=noted)
    of = lambda leaf: f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    told = {
        "versions": _versions(),
        "net": description(net),
        "rule": rule.name,
        "optimizer": {"states": [*kinds], "transformations": transformations(optimizer)},
        "leaves": {name: of(leaf) for name, leaf in named_leaves(state).items()},
    }
    return json.loads(json.dumps(told))


@functools.cache  # 7 ms, which every save would take
def _versions() -> dict[str, str]:
    from jbackprop import __version__  # known when all is imported

    libraries = "jax", "jaxlib", "optax", "orbax-checkpoint"
    found = {name: importlib.metadata.version(name) for name in libraries}
    return {"python": platform.python_version(), "jbackprop": __version__, **found}


def transformations(optimizer: Any) -> list[str]:
    """The names of the functions that an optimizer's update is closed over, in their order."""
    return [*itertools.islice(_names(optimizer.update, ()), _MOST)]


def _names(value: Any, within: tuple[int, ...]) -> Iterator[str]:
    if id(value) in within or len(within) > _WITHIN:
        return
    if isinstance(value, FunctionType) and not hasattr(value, "__wrapped__"):
        name = _name(value)
        if name != "with_extra_args_support":  # optax puts it around everything
            yield name
    try:
        parts = _inside(value)
    except Exception:  # somebody's own, which cannot be looked into
        parts = []
    for part in parts:
        yield from _names(part, (*within, id(value)))


def _name(function: Any) -> str:
    """scale_by_adam, of scale_by_adam.<locals>.update_fn; of a lambda not where it stands."""
    name = function.__qualname__
    return "lambda" if name.endswith("<lambda>") else name.split(".<locals>")[0]


def _inside(value: Any) -> list[Any]:
    """What may hold functions; of one that is decorated, the one within."""
    if hasattr(value, "__wrapped__"):
        return [value.__wrapped__]
    if isinstance(value, FunctionType):
        return [*map(_contents, value.__closure__ or ())]
    if hasattr(value, "init") and hasattr(value, "update"):
        return [value.update]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, dict | list | tuple):
        parts = value.values() if isinstance(value, dict) else value
        return [*itertools.islice(parts, _WITHIN)]
    if hasattr(value, "__func__"):  # a method, as that of `optax.MultiSteps`
        return [value.__func__, *getattr(value.__self__, "__dict__", {}).values()]
    return []


def _contents(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return None


def check_likeness(here: dict[str, Any], there: dict[str, Any], where: str) -> None:
    """`ValueError` where two differ, that names both; a warning where that may be a release's."""
    apart = _differences(here, there)
    words = "; ".join(f"{n}: expected {a}, as here, got {b} {where}" for n, (a, b) in apart.items())
    own = {"transformations": here["optimizer"]["transformations"]}
    renamed = {**there, "optimizer": there["optimizer"] | own}
    written = there["versions"]["optax"]
    if apart and written != here["versions"]["optax"] and not _differences(here, renamed):
        warnings.warn(f"{words}, which optax {written} may have named otherwise", stacklevel=5)
    elif apart:
        if "float64" in words and jax.dtypes.canonicalize_dtype("float64") != jnp.float64:
            words += '; 64-bit mode is off: jax.config.update("jax_enable_x64", True)'
        raise ValueError(words)


def _differences(here: dict[str, Any], there: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """(what it is here, what it is there), by argument, of all in which two differ."""
    names = lambda told: {name: ", ".join(names) for name, names in told["optimizer"].items()}
    found = {
        "net": [*_apart(here["net"], there["net"])],
        "rule": [*_apart(here["rule"], there["rule"])],
        "optimizer": [*_apart(names(here), names(there))],
    }
    if not any(found.values()):  # leaves follow from the rest
        found["state"] = [*_apart(here["leaves"], there["leaves"])]
    return {argument: _told(apart) for argument, apart in found.items() if apart}


def _apart(here: Any, there: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(name, here, there) of the smallest parts in which JSON differs."""
    if isinstance(here, dict) and isinstance(there, dict):
        for n in {**here, **there}:
            yield from _apart(here.get(n), there.get(n), f"{name} {n}".strip())
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for i, pair in enumerate(zip(here, there, strict=True)):
            yield from _apart(*pair, f"{name}[{i}]")
    elif here != there:
        yield name, here, there


def _told(apart: list[tuple[str, Any, Any]]) -> tuple[str, str]:
    def side(which: int) -> str:
        parts = [f"{name} {_text(pair[which])}".strip() for name, *pair in apart[:3]]
        return ", ".join(parts) + (f" and {len(apart) - 3} more" if len(apart) > 3 else "")

    return side(0), side(1)


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value or "nothing"
    return "absent" if value is None else json.dumps(value)
