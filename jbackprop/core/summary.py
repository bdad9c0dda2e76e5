"""What `print` says of a network: layer by layer, what it is, how much it holds and computes."""

import math
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from jbackprop.core.maps import rows_of
from jbackprop.core.windows import Shape

HEADS = "", "layer", "shape", "weights", "mul-adds", "kept"


def summary(net: Any) -> str:
    """A table of the layers of a `Network`: maps with their activations, poolings below them.

    mul-adds are the multiply-adds of a forward pass of one example, of which a backward pass takes
    about twice as many more; kept is what a pass in float32 leaves of it: z, a and δ."""
    first = math.prod(net.shapes[0])
    rows = [("0", "input", _by(net.shapes[0]), "", "", _bytes(first))]
    total, known = [0, 0, first], True
    layers = zip(
        net.maps, net.activations, net.pools, net.shapes, net.shapes[1:], net.z_shapes, strict=False
    )
    for l, (linear, f, pool, in_shape, shape, z_shape) in enumerate(layers, start=1):
        w = math.prod(linear.w_shape(in_shape))
        # without rows nobody knows how often a weight is used
        products = math.prod(z_shape[:-1]) * w if rows_of(linear) else None
        known &= products is not None
        numbers = w + z_shape[-1], products, 2 * math.prod(z_shape) + math.prod(shape)
        told = f"{numbers[0]:,}", "–" if products is None else f"{products:,}", _bytes(numbers[2])
        rows.append((str(l), f"{brief(linear)}, {f.name}", _by(z_shape), *told))
        if pool is not None:
            rows.append(("", brief(pool), _by(shape), "", "", ""))
        total = [sum_ + (number or 0) for sum_, number in zip(total, numbers, strict=True)]
    products = f"{total[1]:,}" if known else "–"
    rows.append(("", "", "", f"{total[0]:,}", products, _bytes(total[2])))
    return "\n".join([*_aligned(rows), f"cost: {net.cost.name}"])


def brief(entry: Any) -> str:
    """A record as one would write it, without what is at its default: Conv(16, 8, stride=2)."""
    if not is_dataclass(entry) or isinstance(entry, type):
        return repr(entry)
    kind, listed = type(entry), [f for f in fields(entry) if f.init]
    given = {f.name: getattr(entry, f.name) for f in listed}
    for f in listed:
        others = {name: value for name, value in given.items() if name != f.name}
        if f.default is not MISSING and _made(kind, others) == entry:
            given = others
    told = [
        f"{f.name}={given[f.name]!r}" if f.kw_only else repr(given[f.name])
        for f in listed
        if f.name in given
    ]
    return f"{kind.__name__}({', '.join(told)})"


def _made(kind: Any, given: dict[str, Any]) -> Any:
    """A record of these fields, or None where they do not go together: a stride without a size."""
    try:
        return kind(**given)
    except (TypeError, ValueError):
        return None


def _by(shape: Shape) -> str:
    return "×".join(map(str, shape))


def _bytes(numbers: int) -> str:
    """Of so many float32."""
    size, units = 4.0 * numbers, iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while size >= 1024 and unit != "TiB":
        size, unit = size / 1024, next(units)
    return f"{size:.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Columns as wide as what is in them; numbers to the right."""
    table = [HEADS, *rows]
    width = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [*zip(row, width, strict=True)]
        words, numbers = cells[:3], cells[3:]
        told = [cell.ljust(n) for cell, n in words] + [cell.rjust(n) for cell, n in numbers]
        lines.append("  ".join(told).rstrip())
    return lines
