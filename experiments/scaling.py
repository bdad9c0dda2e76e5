"""What a training step costs on many devices, on paper: time, wire and memory, for four styles.

For a network, a batch, a mesh and a device: the operations, the bytes on the wire and the memory of
each style of `jb.shardings_for`, what holds it up, and where it would begin to wait for the wire.
The formulas and their sources are in experiments/common/cost_model.py. Where as many devices are
there as are asked for (JAX_NUM_CPU_DEVICES=8 makes eight of a CPU), the bytes on paper are put
beside those of the compiled step.
"""

import math
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.console import Console
from rich.table import Table

import jbackprop as jb
from experiments.benchmark.timing import fastest
from experiments.common import cost_model, networks, run
from experiments.common.cost_model import DEVICES, SIZES, Device, Seconds, Step, seconds
from jbackprop.drawing import style as drawing
from jbackprop.training.sharding import STYLES

GIB = 2.0**30


@dataclass(frozen=True)
class Options:
    """Tell what a training step would cost on many devices, and draw it."""

    network: Literal["dense", "3c3d", "six"] = "dense"
    """3c3d: of DeepOBS, for CIFAR-10; six: six convolutions in three pairs."""
    sizes: tuple[int, ...] = (8192, 32768, 8192, 32768, 8192)
    """Of the dense network, from its inputs to its outputs."""
    batch: int = 8192
    """Examples in a step, on all devices together."""
    device: Literal["h100", "h200", "v5p", "cpu"] = "h100"
    """cpu: machines such as this one, which is measured, joined as if by their own memory."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of parameters, their gradient, Adam's moments, activations and errors."""
    devices: int = 8
    """In the table."""
    model: int = 4
    """Of them, how many share a layer under "fsdp+tensor"."""
    most: int = 64
    """Devices in the figure."""
    out: Path = Path("runs/scaling")
    """Where the run's folder is made."""
    quick: bool = False
    """At most eight devices in the figure, only to see that everything works."""


def main(options: Options) -> int:
    """Tells, compares with compiled programs where there are devices for it, and draws."""
    console = Console(markup=False, highlight=False)
    if options.quick:
        options = replace(options, most=min(options.most, 8))
    try:
        net = network(options)
        device = this_cpu(options.dtype) if options.device == "cpu" else DEVICES[options.device]
        check(options, device)
        folder = run.new_folder(options.out)
    except (ValueError, OSError) as error:
        console.print(str(error), style="red", soft_wrap=True)
        return 2
    run.write_config(folder, options, network=str(net), device_peaks=device)
    console.print(
        f"{device.name}: {device.flops[options.dtype] / 1e12:.4g} TFLOP/s {options.dtype}, "
        f"{device.memory / GIB:.4g} GiB at {device.bandwidth / 1e9:.4g} GB/s, "
        f"{device.wire / 1e9:.4g} GB/s to others.",
        soft_wrap=True,
    )
    rows = [numbers(options, net, device, style, options.devices) for style in STYLES]
    console.print(table(options, rows, device))
    console.print(thresholds(rows), soft_wrap=True)
    there = options.devices <= jax.device_count()
    for row in rows:
        run.append(folder, row)
        for kind, (paper, found) in compare(options, net, row["style"]).items() if there else ():
            run.append(folder, {"style": row["style"], kind: found, "paper": paper})
            console.print(f"{row['style']}: {kind} of {paper:,} bytes on paper, {found:,} compiled")
    if not there:
        many = f"{options.devices} devices: JAX_NUM_CPU_DEVICES={options.devices}"
        console.print(f"To compare with compiled programs takes {many}", soft_wrap=True)
    draw(folder / "scaling.png", options, net, device)
    console.print(f"Written to {folder}", soft_wrap=True)
    return 0


def network(options: Options) -> jb.Network:
    """The one that was asked for."""
    if options.network == "dense":
        return jb.Network(options.sizes, jb.relu, jb.softmax, jb.cross_entropy)
    return networks.c3d3() if options.network == "3c3d" else networks.six_convolutions()


def check(options: Options, device: Device) -> None:
    """Options that no type can check."""
    for name in ("devices", "model", "most", "batch"):
        if getattr(options, name) < 1:
            raise ValueError(f"{name}: expected at least 1, got {getattr(options, name)}")
    if options.dtype not in device.flops:
        raise ValueError(f"dtype: of {device.name} no {options.dtype} rate is published")
    if options.devices % options.model:
        raise ValueError(f"model: expected to divide {options.devices}, got {options.model}")
    if options.batch % options.devices:
        raise ValueError(f"batch: expected a multiple of {options.devices}, got {options.batch}")
    most = max(options.devices, options.most)
    if device.beyond is None and most > device.node:
        raise ValueError(f"most: expected at most {device.node} of {device.name}, got {most}")


def this_cpu(dtype: str) -> Device:
    """Measured: a product of matrices, and a copy in memory, which between devices in one process
    is all that a collective is."""
    n = 512
    square, row = jnp.ones((n, n), dtype), jnp.ones(2**24, jnp.float32)
    product = fastest(jax.jit(jnp.matmul), square, square)
    copied = row.nbytes / fastest(jax.jit(lambda row: row + 1), row)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device("this CPU", {dtype: 2 * n**3 / product}, memory, 2 * copied, copied)


def mesh(style: str, devices: int, model: int) -> tuple[int, int]:
    """(data, model) of so many devices."""
    ways = {"tensor": devices, "fsdp+tensor": math.gcd(model, devices)}.get(style, 1)
    return devices // ways, ways


def on_paper(options: Options, net: jb.Network, style: str, devices: int, **more: Any) -> Step:
    """The cost model's, of so many devices."""
    data, model = mesh(style, devices, options.model)
    given = {"batch": options.batch, "size": SIZES[options.dtype], **more}
    return cost_model.step(net, style, data=data, model=model, **given)


def numbers(
    options: Options, net: jb.Network, device: Device, style: str, devices: int
) -> dict[str, Any]:
    """What there is to tell of a style, as a row."""
    data, model = mesh(style, devices, options.model)
    step = on_paper(options, net, style, devices)
    passes = [seconds(phase, device, options.dtype) for phase in (step.forward, step.backward)]
    least = cost_model.least_examples(step, device, options.dtype, options.batch / data)
    ways = cost_model.most_ways(net, device, options.dtype)
    return {
        "style": style,
        "devices": devices,
        "mesh": f"{data} × {model}",
        **{f"{name}_s": sum(getattr(p, name) for p in passes) for name in Seconds._fields},
        "step_s": sum(map(max, passes)),
        "sent_bytes": sum(c.sent for c in step.forward.collectives + step.backward.collectives),
        "held_bytes": step.memory,
        "bound": [p.bound for p in passes],
        **({"most_ways": ways} if style == "tensor" else {"least_examples": least / model}),
    }


def table(options: Options, rows: list[dict[str, Any]], device: Device) -> Table:
    """A line for every style."""
    title = f"A step of {options.batch:,} examples on {options.devices} devices, of each:"
    found = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False)
    found.add_column("style")
    found.add_column("mesh")
    heads = {"compute": "ms", "memory": "ms", "wire": "ms", "step": "ms", "sent": "MB"}
    for name, unit in {**heads, "holds": "GiB"}.items():
        found.add_column(f"{name}\n{unit}", justify="right")
    found.add_column("bound by")
    for row in rows:
        times = [brief(1e3 * row[f"{name}_s"]) for name in ("compute", "memory", "wire", "step")]
        forward, backward = row["bound"]
        bound = forward if forward == backward else f"{forward}, {backward}"
        if row["held_bytes"] > device.memory:
            bound = "memory's size"
        sent, held = brief(row["sent_bytes"] / 1e6), brief(row["held_bytes"] / GIB)
        found.add_row(row["style"], row["mesh"], *times, sent, held, bound)
    return found


def brief(number: float) -> str:
    """To three digits."""
    return f"{number:.3g}" if number < 999.5 else f"{number:,.0f}"


def thresholds(rows: list[dict[str, Any]]) -> str:
    """Where the wire begins to hold up each style, if memory does not."""
    told = []
    for row in rows:
        if row["style"] == "tensor":
            told.append(f"tensor above {row['most_ways']:.3g} ways")
        elif row["least_examples"] == math.inf:
            told.append(f"{row['style']} at any batch")
        else:
            told.append(f"{row['style']} below {row['least_examples']:,.0f} examples a device")
    return f"In some pass the wire takes longer than the operations: {', '.join(told)}."


def lowered(net: jb.Network, style: str, *, batch: int, data: int, model: int) -> Any:
    """`jb.train_step` with Adam, to be compiled for a mesh of the devices that are here."""
    on = jb.make_mesh(explicit=True, devices=jax.devices()[: data * model], data=data, model=model)
    optimizer = optax.adam(1e-3)
    lie = jb.shardings_for(net, on, style, optimizer=optimizer)
    state = jax.eval_shape(lambda: jb.init_state(net, optimizer, jax.random.key(0)))
    rows = jax.NamedSharding(on, jax.P("data"))
    at = lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    x = jax.ShapeDtypeStruct((batch, *net.shapes[0]), jnp.float32, sharding=rows)
    t = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=rows)
    step = jax.jit(lambda state, x, t: jb.train_step(net, optimizer, state, x, t))
    placed = jax.tree.map(at, state, jax.tree.broadcast(lie, state))
    return step.lower(placed, x, t)


def compare(options: Options, net: jb.Network, style: str) -> dict[str, tuple[int, int]]:
    """Bytes of the collectives' results by kind, (on paper, compiled): in float32, since XLA's
    collectives on CPUs widen what is narrower."""
    data, model = mesh(style, options.devices, options.model)
    program = lowered(net, style, batch=options.batch, data=data, model=model).compile()
    found = cost_model.compiled_bytes(program.as_text())
    scatters = jax.default_backend() != "cpu"
    step = on_paper(options, net, style, options.devices, size=4, scatters=scatters)
    paper = cost_model.result_bytes(step)
    return {kind: (round(paper.get(kind, 0)), found.get(kind, 0)) for kind in {**paper, **found}}


@drawing.picture
def draw(file: Path, options: Options, net: jb.Network, device: Device) -> None:
    """A step's time against the number of devices, for one and the same batch."""
    figure = drawing.paper(None, 6.4, 4.4)
    axes: Any = figure.subplots()
    counts = [2**k for k in range(min(options.most, options.batch).bit_length())]
    ideal = numbers(options, net, device, "data", 1)["compute_s"]
    shared = [1e3 * ideal / n for n in counts]
    axes.plot(counts, shared, color=drawing.GRID, linewidth=7, label="its operations, shared out")
    waits: list[tuple[int, float]] = []
    for style, color, dashes in zip(STYLES, drawing.in_order(4), drawing.DASHES, strict=False):
        rows = [numbers(options, net, device, style, n) for n in counts]
        fits = [row for row in rows if row["held_bytes"] <= device.memory]
        times = [1e3 * row["step_s"] for row in fits]
        name = f"{style}, {options.model} ways" if style == "fsdp+tensor" else style
        name += "" if len(fits) == len(rows) else ", where it fits"
        on = [row["devices"] for row in fits]
        axes.plot(on, times, color=color, linestyle=dashes, label=name)
        pairs = zip(on, times, fits, strict=True)
        waits += [(n, time) for n, time, row in pairs if "wire" in row["bound"]]
    if waits:
        axes.plot(*zip(*waits, strict=True), "o", color=drawing.ORANGE, markersize=4, zorder=3,
                  label="a pass waits for the wire")  # fmt: skip
    if device.node < counts[-1]:
        axes.axvline(device.node, color=drawing.SOFT, linewidth=0.8, zorder=0)
        axes.text(device.node, 1.01, " beyond one node", transform=axes.get_xaxis_transform(),
                  fontsize=8, color=drawing.SOFT)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="devices", ylabel="a step, ms")
    axes.set_xticks(counts, map(str, counts))
    axes.set_xticks([], minor=True)
    drawing.in_decimals(axes.yaxis)
    axes.grid(axis="y")
    axes.legend(loc="lower left")
    params = jax.eval_shape(lambda: jb.init(net, jax.random.key(0)))
    many = sum(leaf.size for leaf in jax.tree.leaves(params))
    what = f"{many / 1e6:,.1f} million parameters, {options.batch:,} examples, {options.dtype}"
    drawing.caption(figure, f"{what}: {device.name}")
    figure.savefig(file)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
