"""`--resume`: which run goes on, with which options, and what is no longer as it was.

A run is its folder; of a folder of runs the newest is meant. Its options are those of its
config.json, and a few may be given anew.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from experiments.common import run

ANEW = ("epochs", "patience", "distributed", "out", "resume")
Options = TypeVar("Options", bound=Any)


def folder_of(path: Path) -> Path:
    """The run's folder: the one that is named, or the newest within."""
    if not path.is_dir():
        raise ValueError(f"resume: expected the folder of a run, or of runs, got {path}")
    if (path / "config.json").exists():
        return path
    moments = {inner: run.moment(inner) for inner in path.iterdir() if inner.is_dir()}
    runs = {moment: inner for inner, moment in moments.items() if moment}
    if not runs and not run.moment(path):
        raise ValueError(
            f"resume: expected the folder of a run, or of runs, got {path}, where none is"
        )
    newest = runs[max(runs)] if runs else path
    if not (newest / "config.json").exists():
        raise ValueError(
            f"resume: expected a run with a config.json, got {newest}, "
            "which ended before that was written: start it anew, without --resume"
        )
    return newest


def options_of(folder: Path, given: Options) -> Options:
    """The run's own options, and of those that it may be given anew the given ones.

    Raises:
        ValueError: config.json is not whole, or of another program; another option is given than
            the run's, and it is not the default.
    """
    kinds = get_type_hints(type(given))
    theirs, default = config_of(folder)["options"], _plain(type(given)())
    if unknown := sorted(theirs.keys() - default.keys()):
        raise ValueError(
            f"{folder / 'config.json'}: expected a run of this program, got one with the options "
            f"{', '.join(unknown)}"
        )
    own = default | theirs
    for name, value in _plain(given).items():
        if not _alike(own[name], default[name]):
            raise ValueError(f"{name}: got {own[name]!r} in {folder / 'config.json'}")
        if name not in ANEW and value not in (default[name], own[name]):
            raise ValueError(
                f"{name}: expected {own[name]!r}, as the run in {folder} has it, got {value!r}"
            )
    anew = {name: getattr(given, name) for name in ("patience", "distributed")}
    if given.epochs != default["epochs"]:
        anew["epochs"] = given.epochs
    made = {name: _as(kinds[name], value) for name, value in own.items()}
    return replace(given, **made | anew | {"resume": folder})


def config_of(folder: Path) -> dict[str, Any]:
    """config.json, read."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}: expected a whole file, got one cut short: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("options"), dict):
        raise ValueError(f"{path}: expected the options of a run, got none")
    return config


def note(folder: Path, options: Any, after: int) -> None:
    """Writes into config.json what is not as it was: [before, now]. The original stays."""
    config, now = config_of(folder), run.here()
    changed = {name: [config.get(name), now[name]] for name in now if config.get(name) != now[name]}
    before = config["options"].get("epochs")
    if before != options.epochs:
        changed["epochs"] = [before, options.epochs]
        config["options"]["epochs"] = options.epochs  # which the next `--resume` goes by
    if changed:
        config.setdefault("resumed", []).append({"after": after} | changed)
        run.write_whole(folder / "config.json", run.as_json(config))


def _plain(options: Any) -> dict[str, Any]:
    """As config.json has them."""
    return json.loads(run.as_json(asdict(options)))


def _alike(value: Any, default: Any) -> bool:
    """Of one kind: both numbers, both lists; an option without a default is a string."""
    kind = lambda v: {float: int, type(None): str}.get(type(v), type(v))
    return kind(value) is kind(default)


def _as(kind: Any, value: Any) -> Any:
    """An option out of JSON: a path, a tuple, or itself."""
    if value is not None and Path in (kind, *get_args(kind)):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
