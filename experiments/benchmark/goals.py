"""The goals, each with the figure that this run measured, met or not."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Goal(NamedTuple):
    """A bound on one figure of the results; `figure` raises KeyError where it was not measured."""

    what: str
    where: str
    bound: float
    at_most: bool
    figure: Callable[[dict[str, Any]], float]


def _over(work: str, *groups: str, dtype: str = "float32") -> Callable[[dict[str, Any]], float]:
    """Our compiled epoch over the best form of these peers: the largest of the ratios to them."""

    def figure(results: dict[str, Any]) -> float:
        table = results["steps"][f"{work} tanh sgd {dtype}"]
        names = [table["best"][group] for group in groups]
        return max(table["candidates"][name]["ours_over_this"]["median"] for name in names)

    return figure


def _fraction(work: str, dtype: str = "float32") -> Callable[[dict[str, Any]], float]:
    def figure(results: dict[str, Any]) -> float:
        return results["steps"][f"{work} tanh sgd {dtype}"]["fraction_of_product_rate"]["median"]

    return figure


def _table() -> list[Goal]:
    goals = []
    what = "compiled epoch / best jax.value_and_grad in an epoch"
    for work in ("S", "N", "M", "W", "L", "D", "deep"):
        goals.append(Goal(what, work, 1.02, True, _over(work, "jax.grad")))
    for dtype in ("float32", "bfloat16"):
        goals.append(Goal(f"{what}, {dtype}", "X", 1.02, True, _over("X", "jax.grad", dtype=dtype)))
    what = "fraction of the measured matrix-product rate"
    for work, bound in (("W", 0.90), ("L", 0.90), ("M", 0.75)):
        goals.append(Goal(what, work, bound, False, _fraction(work)))
    goals.append(Goal(f"{what}, bfloat16", "X", 0.75, False, _fraction("X", "bfloat16")))
    peers: dict[str, tuple[tuple[str, ...], dict[str, float]]] = {
        "NumPy by hand": (("NumPy",), {"S": 0.40, "N": 0.50, "M": 0.90}),
        "PyTorch, the better of eager and compiled": (
            ("PyTorch",), {"S": 0.10, "N": 0.10, "M": 0.60, "L": 0.90}),
        "scikit-learn MLPClassifier": (("scikit-learn",), {"S": 0.25, "N": 0.25, "M": 0.80}),
        "Equinox and Flax + optax, stepped": (("Equinox", "Flax NNX"), {"S": 0.10, "N": 0.10}),
    }  # fmt: skip
    for peer, (groups, bounds) in peers.items():
        for work, bound in bounds.items():
            goals.append(Goal(f"compiled epoch / {peer}", work, bound, True, _over(work, *groups)))
    goals += [
        Goal("256 nets in one vmap / one alone, per net and step", "S", 0.5, True,
             lambda r: r["many"]["vmap_over"]["alone"]["median"]),
        Goal("import beyond `import jax, optax` (ms)", "", 60, True,
             lambda r: 1e3 * r["import_seconds"]["median"]),
        Goal("first compiled step / jax.value_and_grad's", "M", 1.0, True,
             lambda r: r["first_step"]["ours_over_this"]["median"]),
    ]  # fmt: skip
    return goals


def _example(work: str, name: str) -> Callable[[dict[str, Any]], float]:
    return lambda r: r["examples"][work]["ours"][name]["over_gradient"]["median"]


def _memory(work: str) -> Callable[[dict[str, Any]], float]:
    """Temporaries of the clipped mean over what it may take."""

    def figure(results: dict[str, Any]) -> float:
        table = results["examples"][work]
        plain, clipped = (
            table["ours"][name]["temporary_bytes"] for name in ("gradient", "clipped mean")
        )
        return clipped / (1.1 * plain + table["factors_bytes"])

    return figure


def _peer(work: str, *starts: str) -> Callable[[dict[str, Any]], float]:
    """How many times slower than ours the fastest of these peers is."""

    def figure(results: dict[str, Any]) -> float:
        peers = results["examples"][work]["peers"].items()
        found = [p["over_ours"]["median"] for name, p in peers if name.startswith(starts)]
        if not found:
            raise KeyError(starts)
        return min(found)

    return figure


def _examples() -> list[Goal]:
    goals = []
    bounds = {
        "factors as well": (1.05,) * 3,
        "norms, noise scale, norm test": (1.05,) * 3,
        "norms alone": (0.75,) * 3,
        "clipped mean": (1.03,) * 3,
        "second moment": (1.50, 1.45, 1.45),
        "variance": (1.50, 1.45, 1.45),
        "inner-product and orthogonality tests": (1.40,) * 3,
        "Gram matrix": (1.35,) * 3,
        "Kronecker factors": (2.3,) * 3,
        "the whole panel": (1.8,) * 3,
    }
    for name, of in bounds.items():
        for work, bound in zip("MWL", of, strict=True):
            goals.append(Goal(f"{name} / gradient", work, bound, True, _example(work, name)))
    for work in "MWL":
        goals.append(Goal("clipped mean: temporaries / allowed", work, 1, True, _memory(work)))
    goals.append(Goal("best vmap(grad) / clipped mean", "M", 20, False, _peer("M", "vmap")))
    for work, bound in (("M", 2.5), ("S", 10)):
        for peer in ("BackPACK", "Opacus"):
            goals.append(Goal(f"{peer} / ours", work, bound, False, _peer(work, peer)))
    return goals


def judged(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Every goal that this run has a figure for."""
    rows = []
    for goal in [*_table(), *_examples()]:
        try:
            figure = goal.figure(results)
        except KeyError:
            continue
        met = figure <= goal.bound if goal.at_most else figure >= goal.bound
        rows.append(
            {
                "what": goal.what,
                "where": goal.where,
                "bound": f"{'≤' if goal.at_most else '≥'} {goal.bound:g}",
                "figure": figure,
                "met": bool(met),
            }
        )
    return rows
