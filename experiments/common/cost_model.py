"""What a training step costs on many devices, on paper: operations, bytes on the wire, memory.

B examples on a mesh of D × M devices (data × model), s bytes a number, P parameters, of which w^l
is used at T_l positions. Together the devices do 2 B Σ_l |w^l| T_l operations forward and twice as
many backward, less what would carry δ^1 to the input. What they tell each other, by the bytes of
the *result* that each device holds:

    style   what                                     when      how                         over
    data    the gradient                             backward  all-reduce      s P            D
    fsdp    every w and b, once for both passes      forward   all-gather      s |w|          D
            their gradient                           backward  reduce-scatter  s |w| / D      D
    tensor  z^l of a w^l split by inputs (rows)      forward   all-reduce      s B/D n_l      M
            wᵀδ^l, split by outputs (columns), l>1   backward  all-reduce      s B/D n_{l-1}  M

Under "fsdp+tensor" |w| is what the split by M leaves. In a ring of N a device *sends* (N-1)/N of
what is gathered, as much of what is scattered, and twice that for an all-reduce.

A pass takes as long as the slowest of operations, memory and wire: all at their peaks, without
latency, and as if they overlapped. That, and where the wire becomes the slowest, is from parts 3, 5
and 12 of Austin et al., "How to Scale Your Model", 2025 (https://jax-ml.github.io/scaling-book): in
bfloat16 below C/W examples a device under "data" and "fsdp", above n_l W/C ways under "tensor".
"""

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

import jbackprop as jb

SIZES = {"bfloat16": 2, "float32": 4}


@dataclass(frozen=True)
class Device:
    """An accelerator by its peaks.

    Attributes:
        flops: dense floating point operations a second, by dtype, where they are published.
        memory: bytes.
        bandwidth: of the memory, bytes a second.
        wire: bytes a second that a device sends in a ring, one direction, within a node.
        node: devices that are joined by that.
        beyond: the same of a whole node; None where a ring does not leave it.
    """

    name: str
    flops: dict[str, float]
    memory: float
    bandwidth: float
    wire: float
    node: float = math.inf
    beyond: float | None = None

    def sent(self, ways: int, inner: int) -> float:
        """Bytes a second in a ring of so many, every `inner`-th device being the next.

        Rings side by side share what leaves a node (Austin et al., part 12)."""
        if self.beyond is None or ways * inner <= self.node:
            return self.wire
        return self.beyond / min(inner, self.node)


# NVIDIA's data sheets (nvidia.com/en-us/data-center/h100 and /h200, SXM): bfloat16 1,979 TFLOP/s is
# "with sparsity", twice the dense rate; float32 is without tensor cores, which would round to TF32;
# NVLink 900 GB/s is both directions together. Eight GPUs are a node, from which 8 × 400 Gb/s lead
# (Austin et al., part 12, with the same 990e12, 450e9 and 400e9).
_HOPPER: Any = {
    "flops": {"bfloat16": 989.5e12, "float32": 67e12}, "wire": 450e9, "node": 8, "beyond": 400e9
}  # fmt: skip
DEVICES = {
    "h100": Device("NVIDIA H100 SXM", memory=80e9, bandwidth=3.35e12, **_HOPPER),
    "h200": Device("NVIDIA H200 SXM", memory=141e9, bandwidth=4.8e12, **_HOPPER),
    # cloud.google.com/tpu/docs/v5p: 459 TFLOP/s bfloat16, 95 GB at 2,765 GB/s, 8,960 chips a pod,
    # 4,800 Gb/s between chips, over the six links of a 3D torus. A ring along one axis of it has
    # two links, of which Austin et al., part 2, count 90e9 each. No float32 rate is published.
    "v5p": Device("Google TPU v5p", {"bfloat16": 459e12}, 95e9, 2.765e12, 2 * 90e9, node=8960),
}


class Collective(NamedTuple):
    """What devices tell each other once in a step.

    Attributes:
        kind: "all-reduce", "all-gather" or "reduce-scatter".
        of: "parameters", "gradient", "activations" or "errors": the last two grow with the batch.
        result: bytes of it on every device, afterwards.
        ways: how many devices it joins.
        inner: every how manieth device.
    """

    kind: str
    of: str
    result: float
    ways: int
    inner: int

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a ring."""
        whole = self.result * (self.ways if self.kind == "reduce-scatter" else 1)
        return (2 if self.kind == "all-reduce" else 1) * (self.ways - 1) / self.ways * whole


class Phase(NamedTuple):
    """One device's share of a pass, forward or backward: operations, bytes to and from its memory,
    and what it tells the others."""

    flops: float
    traffic: float
    collectives: tuple[Collective, ...]


class Step(NamedTuple):
    """One device's share of a training step.

    Attributes:
        forward, backward: its two halves; the update belongs to the second.
        state: bytes of parameters and of Adam's two moments, between steps.
        memory: bytes of those, the gradient, what is gathered, and z, a and δ of its examples.
    """

    forward: Phase
    backward: Phase
    state: float
    memory: float


def step(
    net: jb.Network, style: str, *, batch: float, data: int, model: int, size: int,
    scatters: bool = True,
) -> Step:  # fmt: skip
    """A step of Adam in one of the styles of `jb.shardings_for`.

    Args:
        net: dense and convolutional maps.
        style: one of those.
        batch: B, on all devices together.
        data, model: D and M.
        size: s.
        scatters: whether a gradient is reduce-scattered; XLA on CPUs has no such thing, and
            all-reduces it, of which every device takes its share.
    """
    # only the shape of this mesh is asked for: no device but the first has to be there
    mesh = Mesh(np.full((data, model), jax.devices()[0]), ("data", "model"))
    examples = batch / data
    flops, kept, used = [0.0, 0.0], 0, 0
    found: tuple[list[Collective], list[Collective]] = [], []
    numbers, whole_below = math.prod(net.shapes[0]), True

    def tell(phase: int, kind: str, of: str, count: float, ways: int, inner: int = 1) -> None:
        if ways > 1:
            found[phase].append(Collective(kind, of, size * count, ways, inner))

    layers = zip(net.maps, net.shapes, net.shapes[1:], net.z_shapes, strict=False)
    lie = jb.shardings_for(net, mesh, style)
    for l, ((linear, below, above, z), layer) in enumerate(zip(layers, lie, strict=True)):
        w = linear.w_shape(below)
        rows, columns = layer.w.spec[-1] == "model", layer.w.spec[0] == "model"
        split = model if rows or columns else 1
        products = 2 * examples * math.prod(w) * math.prod(z[:-1]) / split
        flops[0] += products
        flops[1] += products * (2 if l else 1)
        for shape, sharding in ((w, layer.w), (z[-1:], layer.b)):
            own = math.prod(sharding.shard_shape(shape))
            spread = "data" in sharding.spec
            whole = own * data if spread else own
            kept, used = kept + own, used + whole
            if spread:
                tell(0, "all-gather", "parameters", whole, data, model)
            if spread and scatters:
                tell(1, "reduce-scatter", "gradient", own, data, model)
            else:
                tell(1, "all-reduce", "gradient", whole, data, model)
        if not whole_below and not rows:  # features of which every device has to have all
            tell(0, "all-gather", "activations", examples * math.prod(below), model)
        if rows:
            tell(0, "all-reduce", "activations", examples * math.prod(z), model)
        if columns and l:
            tell(1, "all-reduce", "errors", examples * math.prod(below), model)
        numbers += (2 * math.prod(z) + math.prod(above)) / (model if columns else 1)
        whole_below = not columns
    # forward reads w and writes z and a; backward reads those and w, writes δ and the gradient;
    # Adam reads four arrays and writes three
    traffic = used + examples * numbers, 2 * used + 7 * kept + examples * numbers
    forward, backward = (Phase(flops[k], size * traffic[k], tuple(found[k])) for k in (0, 1))
    gathered, gradient = used - kept, kept if scatters else used
    memory = size * (3 * kept + gathered + gradient + examples * numbers)
    return Step(forward, backward, 3 * size * kept, memory)


def result_bytes(step: Step) -> dict[str, float]:
    """Bytes of the results of every kind of collective, on one device."""
    found: dict[str, float] = {}
    for c in (*step.forward.collectives, *step.backward.collectives):
        found[c.kind] = found.get(c.kind, 0) + c.result
    return found


class Seconds(NamedTuple):
    """Of a phase on a device, at its peaks."""

    compute: float
    memory: float
    wire: float

    @property
    def bound(self) -> str:
        """By what."""
        return max(zip(self, self._fields, strict=True))[1]


def seconds(phase: Phase, device: Device, dtype: str) -> Seconds:
    """How long each of its three would take alone; together they take as long as the longest."""
    wire = sum(c.sent / device.sent(c.ways, c.inner) for c in phase.collectives)
    return Seconds(phase.flops / device.flops[dtype], phase.traffic / device.bandwidth, wire)


def least_examples(step: Step, device: Device, dtype: str, examples: float) -> float:
    """The fewest examples along `data` of which no pass's wire takes longer than its operations.

    Given is a step with so many of them: parameters take as long whatever the batch, activations
    and operations grow with it."""
    least = 0.0
    for phase in (step.forward, step.backward):
        grows = tuple(c for c in phase.collectives if c.of in ("activations", "errors"))
        compute, _, each = seconds(phase._replace(collectives=grows), device, dtype)
        fixed = seconds(phase, device, dtype).wire - each
        if fixed or each > compute:
            least = max(least, examples * fixed / (compute - each) if compute > each else math.inf)
    return least


def most_ways(net: jb.Network, device: Device, dtype: str) -> float:
    """The most ways of "tensor", in a node, of which no pass's wire takes longer than operations.

    A pass takes compute/M and sends 2 (M-1)/M of its activations: at M = 2, half and all of it."""
    two = step(net, "tensor", batch=1, data=1, model=2, size=SIZES[dtype])
    passes = [seconds(phase, device, dtype) for phase in (two.forward, two.backward)]
    return min(1 + s.compute / s.wire if s.wire else math.inf for s in passes)


_COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) .*{$")
_COLLECTIVE = re.compile(
    r" = (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_LOOP = re.compile(r" while\(.*body=%?([\w.-]+)(?:.*known_trip_count\D*(\d+))?")
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")


def compiled_bytes(text: str) -> dict[str, int]:
    """Bytes of the results of every kind of collective in a compiled program (HLO), on one device.

    Several that were combined have a tuple of results, all of which count; what only begins
    (-start) returns its operands too, which do not. In a loop each counts as often as that says
    that it goes round.

    >>> compiled_bytes("%g = (f32[2]{0}, f32[8]{0}) all-gather-start(f32[2]{0} %x), dimensions={0}")
    {'all-gather': 32}
    """
    within, loops, found = "", {}, {}
    told: list[tuple[str, str, int]] = []
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            within = head[1]
        elif loop := _LOOP.search(line):
            loops[loop[1]] = within, int(loop[2] or 1)
        elif collective := _COLLECTIVE.search(line):
            result, kind, start = collective.groups()
            if start and kind != "all-reduce":
                result = _second(result)
            told.append((within, kind, _bytes(result)))
    for within, kind, size in told:
        while within in loops:
            within, rounds = loops[within]
            size *= rounds
        found[kind] = found.get(kind, 0) + size
    return found


def _bytes(shapes: str) -> int:
    """Of all arrays in there."""
    size = lambda bits, shape: int(bits or 8) * math.prod(map(int, filter(None, shape.split(","))))
    return sum(size(*array) for array in _ARRAY.findall(shapes)) // 8


def _second(shape: str) -> str:
    """Of a tuple (operands, results, …), which may be tuples themselves."""
    depth, entries = 0, [""]
    for letter in shape[1:-1]:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and not depth:
            entries.append("")
        else:
            entries[-1] += letter
    return entries[1]
