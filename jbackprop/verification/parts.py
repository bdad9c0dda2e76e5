"""What a user supplies, each by itself: f' beside f, ∇_y C beside C, a map and a pooling beside
their adjoints by autodiff. What is wrong here is wrong in every gradient above it."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbackprop.core.derivatives import check_derivatives
from jbackprop.core.maps import rows_of
from jbackprop.verification.point import Point
from jbackprop.verification.reference import Reference
from jbackprop.verification.report import Row, compared

EXACT = 1e-9  # sums in float64, in another order
DIFFERENCES = 1e-6
STEP = 1e-5
POINTS = 2**18


class Draw:
    """Normal numbers in float64."""

    def __init__(self) -> None:
        self.rng: np.random.Generator = np.random.default_rng(1)

    def __call__(self, shape: Any) -> Any:
        return jnp.asarray(self.rng.normal(size=shape))


def parts_of(at: Point, found: Reference) -> list[Row]:
    """A row of every kind of part where all of them are right; else of each that is wrong, which
    names its layer, and in `blame` whose fault it is."""
    by_kind: dict[str, list[Row]] = {}
    for kind, row in _each(at, found):
        by_kind.setdefault(kind, []).append(row)
    rows = []
    for kind, found_ in by_kind.items():
        wrong = [row for row in found_ if not row.passed]
        worst = max(found_, key=lambda row: row.error)
        rows += wrong or [worst._replace(what=kind, where="", blame="")]
    return rows


def _each(at: Point, found: Reference) -> Iterator[tuple[str, Row]]:
    net, draw = at.net, Draw()
    for record in dict.fromkeys([*net.activations, net.cost]):
        at_layers = [str(l) for l, f in enumerate(net.activations, start=1) if f == record]
        of = f"∇_y C of {record.name}"
        if at_layers:
            of = f"f' of layer {' and '.join(at_layers)}, {record.name}"
        yield "f' and ∇_y C, at points of their own", _by_itself(record, of)
    for l, (f, z) in enumerate(zip(net.activations, found.z, strict=True), start=1):
        yield "f' at the z that occur", _slope(at, l, f, z)
    yield "∇_y C at the y that occur", _cost(at, found)
    layers = zip(net.maps, net.pools, net.shapes, net.z_shapes, strict=False)
    for l, (linear, pool, in_shape, z_shape) in enumerate(layers, start=1):
        yield from _map(l, linear, in_shape, z_shape, draw)
        if pool is not None:
            yield "poolings transposed", _pool(l, pool, z_shape, draw)


def _attempt(what: str, tolerance: float, blame: str, compare: Any) -> Row:
    """A row, of an error too: what a user's function raises is a finding."""
    try:
        return compare()._replace(what=what, tolerance=tolerance, blame=blame)
    except Exception as error:
        return Row(what, np.inf, tolerance, f"{type(error).__name__}: {error}", blame)


def _by_itself(record: Any, of: str) -> Row:
    """At points of every size, whichever this network meets."""

    def compare() -> Row:
        check_derivatives(record)
        return Row("", 0.0, 0.0)

    return _attempt(f"{of}, at points of its own", DIFFERENCES, of, compare)


def _slope(at: Point, l: int, f: Any, z: Any) -> Row:
    """f' by central differences at the z^l that occur; an output's Jᵀ e by autodiff."""
    blame = f"f' of layer {l}, {f.name}"

    def element_by_element() -> Row:
        points = np.unique(np.asarray(z, np.float64).ravel())
        points = points[:: max(1, len(points) // POINTS)]
        f_of, slope_of = jax.jit(f.f), jax.jit(f.slope)
        value = lambda v: np.asarray(f_of(jnp.asarray(v)), np.float64)
        h = STEP * np.maximum(1, np.abs(points))
        by_h = lambda k: (value(points + k * h) - value(points - k * h)) / (2 * k * h)
        near, far = by_h(1), by_h(2)
        # a kink between is seen by the two sides, one of f' by steps of two lengths
        sides = np.abs(value(points + h) + value(points - h) - 2 * value(points)) / h
        smooth = (np.abs(near - far) <= 1e-7 * np.maximum(1, np.abs(near))) & (sides <= 1e-2)
        points, expected = points[smooth], ((4 * near - far) / 3)[smooth]
        slope = np.asarray(slope_of(jnp.asarray(points)), np.float64)
        size = np.max(np.abs(value(points)), initial=1)
        row = compared("", slope, expected, 0.0)
        off = np.max(np.abs(slope - expected), initial=0) if row.error < np.inf else np.inf
        return row._replace(error=min(row.error, float(off / size)))

    def by_pull() -> Row:
        z_out = z if at.net.pools[-1] is None else jax.vmap(at.net.pools[-1].apply)(z)
        e = Draw()(z_out.shape)
        theirs = jax.jit(jax.vmap(lambda z, e: jax.vjp(f.f, z)[1](e)[0]))(z_out, e)
        return compared("", jax.jit(jax.vmap(f.back))(z_out, e), theirs, 0.0)

    what = f"f' of layer {l}, {f.name}, at its own z"
    if f.pull is not None:
        return _attempt(what, EXACT, blame, by_pull)
    return _attempt(what, DIFFERENCES, blame, element_by_element)


def _cost(at: Point, found: Reference) -> Row:
    """∇_y C at the y and t that occur."""
    cost, present = at.net.cost, np.asarray(at.weight) > 0

    def compare() -> Row:
        y, t = found.a[-1][present], at.t[present]
        theirs = jax.jit(jax.vmap(jax.grad(cost.value)))(y, t)
        ours = jax.jit(jax.vmap(lambda y, t: jnp.asarray(cost.grad(y, t), y.dtype)))(y, t)
        return compared("", ours, theirs, 0.0)

    what = f"∇_y C of {cost.name}, at its own y"
    return _attempt(what, EXACT, f"∇_y C of {cost.name}", compare)


def _map(l: int, linear: Any, in_shape: Any, z_shape: Any, draw: Draw) -> Iterator[tuple[str, Row]]:
    name = f"layer {l}, {type(linear).__name__}"
    w, a, b = draw(linear.w_shape(in_shape)), draw((3, *in_shape)), draw(in_shape)
    delta, c = draw((3, *z_shape)), draw((3,))
    each = w, a, b, delta, c

    @jax.jit
    def linear_in_both(w: Any, a: Any, b: Any, delta: Any, c: Any) -> Any:
        at = lambda a: linear.apply(w, a)
        theirs = at(a[0]) + 2 * at(b), 3 * at(a[0])
        return (at(a[0] + 2 * b), linear.apply(3 * w, a[0])), theirs

    @jax.jit
    def back(w: Any, a: Any, b: Any, delta: Any, c: Any) -> Any:
        theirs = jax.vjp(lambda a: linear.apply(w, a), a[0])[1](delta[0])[0]
        return linear.transpose(w, delta[0], in_shape), theirs

    @jax.jit
    def summed(w: Any, a: Any, b: Any, delta: Any, c: Any) -> Any:
        of_one = lambda d, a: jax.vjp(lambda w: linear.apply(w, a), w)[1](d)[0]
        return linear.weighted_sum(c, delta, a), jnp.tensordot(c, jax.vmap(of_one)(delta, a), 1)

    @jax.jit
    def by_rows(w: Any, a: Any, b: Any, delta: Any, c: Any) -> Any:
        found = linear.rows(a[0]) @ w.reshape(z_shape[-1], -1).T
        return found.reshape(z_shape), linear.apply(w, a[0])

    checks = {
        "apply": ("maps are linear", linear_in_both),
        "transpose": ("maps transposed", back),
        "weighted_sum": ("maps' weighted sums", summed),
        "rows": ("maps' rows", by_rows),
    }
    if rows_of(linear) is None:
        del checks["rows"]
    rows = {
        part: _attempt(f"{name}: {part}", EXACT, f"{part} of {name}", partial(_agree, pair, each))
        for part, (_, pair) in checks.items()
    }
    backward = "transpose", "weighted_sum"
    if not any(rows[part].passed for part in backward) and _adjoint(linear, in_shape, *each):
        forward = " or ".join(part for part in rows if part not in backward)
        for part in backward:  # two that agree, against the one that both are compared with
            rows[part] = rows[part]._replace(blame=f"{forward} of {name}")
    for part, row in rows.items():
        yield checks[part][0], row


def _adjoint(linear: Any, in_shape: Any, w: Any, a: Any, _: Any, delta: Any, c: Any) -> bool:
    """Whether transpose and weighted_sum are of one map: Σ_i c_i ⟨wᵀδ_i, a_i⟩ = ⟨Σ_i c_i δ_i a_iᵀ,
    w⟩, whatever apply says."""
    try:
        back = jax.vmap(lambda delta: linear.transpose(w, delta, in_shape))(delta)
        by_transpose = np.vdot(c, jnp.sum(back * a, axis=range(1, a.ndim)))
        by_sum = np.vdot(linear.weighted_sum(c, delta, a), w)
    except Exception:  # which its own row tells
        return False
    return bool(abs(by_transpose - by_sum) <= EXACT * np.sum(np.abs(back * a)))


def _agree(pair: Any, given: Any) -> Row:
    """Of a function to (ours, theirs)."""
    ours, theirs = pair(*given)
    return compared("", ours, theirs, 0.0)


def _pool(l: int, pool: Any, z_shape: Any, draw: Draw) -> Row:
    name = f"layer {l}, {type(pool).__name__}"
    # a position that is no window's largest is 0 in the transpose, right or wrong: of many inputs
    # every position is one somewhere
    inputs = int(np.clip(POINTS * 16 // np.prod(z_shape), 4, 256))

    def compare() -> Row:
        u, e = draw((inputs, *z_shape)), draw((inputs, *pool.out_shape(z_shape)))
        theirs = jax.jit(jax.vmap(lambda u, e: jax.vjp(pool.apply, u)[1](e)[0]))(u, e)
        return compared("", jax.jit(jax.vmap(pool.transpose))(u, e), theirs, 0.0)

    return _attempt(f"{name}: transpose", EXACT, f"transpose of {name}", compare)
