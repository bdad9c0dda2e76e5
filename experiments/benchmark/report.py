"""What people read of the results: Markdown tables, made from the JSON and never by hand."""

from typing import Any

from experiments.benchmark.machine import told

BENCHMARK = "benchmark"  # between these two marks stands a table in the README


def marks(name: str = BENCHMARK) -> tuple[str, str]:
    """Before and behind it."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f})"


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def steps(results: dict[str, Any]) -> str:
    """A table for every network, the fastest first."""
    parts = []
    for name, table in results["steps"].items():
        rows = sorted(table["candidates"].items(), key=lambda row: row[1]["us_per_step"])
        work = table["work"]
        parts.append(
            f"### {name}: {_sizes(work['sizes'])}, batch {work['batch']}\n\n"
            + markdown(
                ["", "µs a step", "jbackprop's compiled epoch / this (quartiles)"],
                [
                    [n, _number(row["us_per_step"]), _ratio(row["ours_over_this"])]
                    for n, row in rows
                ],
            )
            + "\n\n"
            + _limits(table)
        )
    return "\n\n".join(parts)


def _limits(table: dict[str, Any]) -> str:
    products, traffic = (
        f"{table[f'fraction_of_{limit}']['median']:.0%}" for limit in ("product_rate", "bandwidth")
    )
    return (
        f"Of our time, the matrix products need {products} at the rate measured beside it, "
        f"{_number(table['product_gflops'])} GFLOP/s; moving parameters and inputs once needs "
        f"{traffic} at {table['bandwidth_gb']:.1f} GB/s."
    )


def _sizes(sizes: list[int]) -> str:
    if len(sizes) > 6 and len(set(sizes[1:-1])) == 1:
        return f"{sizes[0]}-{len(sizes) - 2}×{sizes[1]}-{sizes[-1]}"
    return "-".join(map(str, sizes))


def goals(results: dict[str, Any]) -> str:
    """Every goal with its figure."""
    rows = [
        [
            g["what"],
            g["where"],
            g["bound"],
            _number(g["figure"]),
            "met" if g["met"] else "**not met**",
        ]
        for g in results["goals"]
    ]
    return markdown(["", "at", "goal", "measured", ""], rows)


def others(results: dict[str, Any]) -> str:
    """Shuffle, many networks, single products, import, growth."""
    parts = []
    if "shuffle" in results:
        rows = [
            [name, _number(row["us_per_step"]), _ratio(row["over_given_order"])]
            for name, row in results["shuffle"].items()
        ]
        head = ["`train_epoch`, which shuffles", "µs a step", "over the same loop in a given order"]
        parts.append(markdown(head, rows))
    if "many" in results:
        rows = [[name, _number(us)] for name, us in results["many"]["us_per_net_and_step"].items()]
        head = [f"{results['many']['nets']} networks of size S", "µs per network and step"]
        parts.append(markdown(head, rows))
    if "pieces" in results:
        rows = [
            [work, kind, _number(row["ms"]),
             f"{row['per_second']:.0f} {'GB/s' if kind.startswith('update') else 'GFLOP/s'}"]
            for work, kinds in results["pieces"].items()
            for kind, row in kinds.items()
        ]  # fmt: skip
        parts.append(
            markdown(["one kind of work at a time, over all layers", "", "ms", "rate"], rows)
        )
    if "import_seconds" in results:
        total, garbage = (
            1e3 * results["import_seconds"][name] for name in ("median", "of_it_collecting_garbage")
        )
        parts.append(
            f"`import jbackprop` after `import jax, optax`: {total:.0f} ms, of which Python spends "
            f"{garbage:.0f} collecting garbage, most of it left by those two."
        )
    if "growth" in results:
        rows = [
            [axis, f"{g['sizes'][0]} to {g['sizes'][-1]}", f"{g['exponent']:.2f}",
             f"{g['memory_exponent']:.2f}" if "memory_exponent" in g else ""]
            for axis, g in results["growth"].items()
        ]  # fmt: skip
        parts.append(markdown(["as this grows", "over", "time grows as", "temporaries as"], rows))
    return "\n\n".join(parts)


def quantities(results: dict[str, Any]) -> str:
    """Per-example quantities: in multiples of the plain gradient, and beside peers."""
    tables = results.get("examples", {})
    if not tables:
        return ""
    first = next(iter(tables.values()))
    rows = [
        [name, *(f"{t['ours'][name]['over_gradient']['median']:.2f}" for t in tables.values()),
         *(_mebibytes(t["ours"][name]["temporary_bytes"]) for t in tables.values())]
        for name in first["ours"]
    ]  # fmt: skip
    head = ["time / that of the gradient, at", *tables, *(f"{name}: MiB" for name in tables)]
    parts = [markdown(head, rows)]
    peers = dict.fromkeys(name for t in tables.values() for name in t["peers"])
    rows = []
    for name in peers:
        found = [t["peers"].get(name) for t in tables.values()]
        of = next(p["quantity"] for p in found if p)
        times = [f"{p['over_ours']['median']:.2f}" if p else "" for p in found]
        rows.append([name, of, *times, *(_mebibytes(p and p["temporary_bytes"]) for p in found)])
    head = ["time / ours of the same quantity, at", "", *tables]
    parts.append(markdown([*head, *(f"{name}: MiB" for name in tables)], rows))
    return "\n\n".join(parts)


def _mebibytes(count: float | None) -> str:
    return "" if count is None else f"{count / 2**20:.2f}"


def page(results: dict[str, Any]) -> str:
    """The whole Markdown page."""
    versions = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    return (
        f"# Benchmark on {told(results['machine'])}\n\n"
        f"`make benchmark` wrote this page: {results['date']}; {versions}. "
        "Candidates take turns in one process; ratios are medians of pairs, with quartiles. "
        "Compile time is kept apart.\n\n"
        f"## Goals\n\n{goals(results)}\n\n## Steps\n\n{steps(results)}\n\n"
        f"![What a step takes beside peers]({results['machine']}-peers.png)\n\n"
        "## Per-example quantities\n\nMiB are temporaries of the compiled program, where known."
        f"\n\n{quantities(results)}\n\n"
        f"## Shuffle, many networks, growth\n\n{others(results)}\n\n"
        f"![Growth]({results['machine']}-growth.png)\n"
    )


def summary(results: dict[str, Any]) -> str:
    """The README's table: µs a step of the best form of each peer, at every size."""
    tables = {
        name.split()[0]: table
        for name, table in results["steps"].items()
        if name.endswith("tanh sgd float32")
    }
    groups = list(
        dict.fromkeys(g for t in tables.values() for g in sorted(t["best"], key=_group_order))
    )
    rows = []
    for group in groups:
        row = [group]
        for table in tables.values():
            name = table["best"].get(group)
            row.append(_number(table["candidates"][name]["us_per_step"]) if name else "")
        rows.append(row)
    heads = [
        f"{name}: {_sizes(t['work']['sizes'])}, batch {t['work']['batch']}"
        for name, t in tables.items()
    ]
    return capabilities(results) + (
        f"µs a step on {told(results['machine'])} (tanh, cross-entropy, SGD, float32; the best "
        f"form of each peer; {results['date']}):\n\n" + markdown(["", *heads], rows)
    )


# What the README calls the quantities, and the functions that give them.
CALLED = {
    "factors as well": "`backprop`: every δ and a, kept",
    "norms alone": "`squared_norms`, `layer_squared_norms`, `grand`, with no gradient formed",
    "clipped mean": "`clipped_mean`, `clip`, `clip_layers`, `normalize`, `scale`",
    "norms, noise scale, norm test": "`squared_norms`, `noise_scale` and `norm_test`",
    "inner-product and orthogonality tests": "`inner_product_test`, `orthogonality_test`",
    "Gram matrix": "`gram`; `group_squared_norms`, `group_clip` by it",
    "second moment": "`second_moment`, `takeuchi`",
    "variance": "`variance`, `signal_to_noise`",
    "Kronecker factors": "`kronecker_factors`",
    "the whole panel": "`observe_all`: all the usual ones",
}


def capabilities(results: dict[str, Any]) -> str:
    """What each quantity costs, in multiples of the plain gradient of the same batch."""
    tables = {name: t for name, t in results.get("examples", {}).items() if name in "MWL"}
    if not tables:
        return ""
    rows = [
        [called, *(f"{t['ours'][name]['over_gradient']['median']:.2f}" for t in tables.values())]
        for name, called in CALLED.items()
    ]
    return (
        "Time of the gradient and these beside it, in gradients, on "
        f"{told(results['machine'])}:\n\n"
        + markdown(["", *(f"at {name}" for name in tables)], rows)
        + "\n\n"
    )


def _group_order(group: str) -> tuple[int, str]:
    first = ["jbackprop", "jax.grad", "jbackprop stepped", "jax.grad stepped"]
    return (first.index(group) if group in first else len(first), group)


def split(text: str, name: str = BENCHMARK) -> tuple[str, str]:
    """A README before and after a table, without whose marks it cannot be replaced."""
    begin, end = marks(name)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ValueError(f"readme: expected {begin} and {end} once each, in this order")
    before, rest = text.split(begin)
    return before, rest.split(end)[1]


def into_readme(text: str, summary: str, name: str = BENCHMARK) -> str:
    """The README with the table between its two marks replaced."""
    before, after = split(text, name)
    begin, end = marks(name)
    return f"{before}{begin}\n{summary}\n{end}{after}"
