"""How fast is it, beside whom, and how near the limit: `make benchmark`.

Writes results/<machine>.json, a Markdown page and figures beside it, and the README's table, once
everything has been measured; a run that stops halfway writes nothing.
"""

import json
import os
import sys
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

import jbackprop as jb
from experiments.benchmark import draw, examples, goals, growth, machine, many, pieces, report
from experiments.benchmark.compare import GradientsDiffer, compare, shuffled
from experiments.benchmark.timing import ratio
from experiments.benchmark.work import QUICK, WIDE, WORK

HERE = Path(__file__).parent
PACKAGES = ["jax", "numpy", "optax", "scikit-learn", "torch", "equinox", "flax", "opacus"]


@dataclass(frozen=True)
class Options:
    """Measure, compare and report."""

    out: Path = HERE / "results"
    """Where the results are written, under this machine's name."""
    readme: Path | None = None
    """A README whose table is to be replaced."""
    rounds: int = 21
    """How often every candidate runs; the largest networks run a third as often."""
    quick: bool = False
    """Toy sizes and two rounds, only to see that everything works."""


def measure(options: Options, say: Any) -> dict[str, Any]:
    """Everything, in one run."""
    quick = options.quick
    works = QUICK if quick else WORK
    rounds = 2 if quick else options.rounds
    results: dict[str, Any] = {
        "machine": machine.name(),
        "date": date.today().isoformat(),
        "versions": {"jbackprop": jb.__version__} | _versions(),
        "steps": {},
    }

    def steps(name: str, **kwargs: Any) -> None:
        work = works[name]
        label = " ".join(
            [name, kwargs.get("hidden", jb.tanh).name, kwargs.get("optimizer", "sgd"),
             kwargs.get("dtype", "float32")]
        )  # fmt: skip
        say(f"steps: {label}")
        few = max(2, rounds // 3) if work.operations * work.steps > 5e9 else rounds
        product = 64 if quick else 2048
        results["steps"][label] = compare(work, rounds=few, product=product, say=say, **kwargs)

    for name in works:
        steps(name)
    plain: dict[str, Any] = {"peers": ["ours", "autodiff"]}
    for name in () if quick else ("S", "M"):
        steps(name, hidden=jb.relu, **plain)
        steps(name, optimizer="adam", **plain)
    if jax.default_backend() != "cpu" or quick:
        works |= {"X": WIDE._replace(sizes=(16, 16, 16, 16), batch=8) if quick else WIDE}
        wide: dict[str, Any] = {"peers": ["ours", "autodiff", "by_torch"]}
        for name in ("X",) if quick else ("W", "L", "X"):
            steps(name, dtype="bfloat16", **wide)
        if not quick:
            steps("X", **wide)

    say("shuffle")
    results["shuffle"] = {name: shuffled(works[name], rounds) for name in ("S", "M")}
    results["examples"] = {}
    for name in [name for name in works if name in ("M" if quick else "SMWL")]:
        say(f"per-example quantities: {name}")
        results["examples"][name] = examples.quantities(works[name], max(2, rounds // 3), say)
    say("one product at a time")
    results["pieces"] = {
        name: pieces.pieces(works[name], max(2, rounds // 3)) for name in works if name in "MWL"
    }
    say("many networks")
    results["many"] = many.many(works["S"], 4 if quick else 256, max(2, rounds // 3), say)
    say("growth")
    count = 2 if quick else None
    results["growth"] = {
        axis: growth.grow(axis, rounds, count)
        for axis in growth.AXES
        if axis == "width" or not quick
    }
    results["growth"]["dataset"] = growth.dataset(
        [1000, 10_000] if quick else [1000, 10_000, 100_000, 1_000_000]
    )
    say("compiling")
    results["compile"] = growth.compile_time(
        [2, 4] if quick else [2, 8, 32, 64, 128, 256], 1 if quick else 3
    )
    first = growth.first_steps(works["M"], 1 if quick else 9)
    results["first_step"] = {
        "seconds": {name: float(np.median(s)) for name, s in first.items()},
        "ours_over_this": ratio(first["ours"], first["jax.value_and_grad"])._asdict(),
    }
    results["import_seconds"] = growth.import_seconds(1 if quick else 9)
    results["goals"] = goals.judged(results)
    return results


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def write(options: Options, results: dict[str, Any]) -> None:
    """The numbers first, then the page, the figures and the README; each text whole or not."""
    options.out.mkdir(parents=True, exist_ok=True)
    name = results["machine"]
    _replace(options.out / f"{name}.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    _replace(options.out / f"{name}.md", report.page(results))
    draw.peers(options.out / f"{name}-peers.png", results)
    draw.growth(options.out / f"{name}-growth.png", results)
    if options.readme is not None:
        text = options.readme.read_text(encoding="utf-8")
        _replace(options.readme, report.into_readme(text, report.summary(results)))


def _replace(path: Path, text: str) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    os.replace(new, path)


def main(options: Options) -> int:
    """Measures, prints and writes; 1 where a candidate computes another gradient."""
    try:
        if options.readme is not None:
            report.split(options.readme.read_text(encoding="utf-8"))
        results = measure(options, lambda line: print(line, flush=True))
    except (GradientsDiffer, OSError, ValueError) as error:
        print(error)
        return 1
    write(options, results)
    print(report.page(results))
    print(f"Written to {options.out / results['machine']}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
