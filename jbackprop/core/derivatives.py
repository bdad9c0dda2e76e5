"""Is f' the derivative of f, and ∇_y C the gradient of C? Central differences in float64 tell.

[8 (f(z + h) - f(z - h)) - (f(z + 2h) - f(z - 2h))] / 12h is f'(z) to within h⁴ f⁽⁵⁾ / 30 and what
rounding leaves, ε |f| / h: with h = 1e-5 ten digits where f is smooth.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbackprop.core.records import Activation, Cost

_STEP = 1e-5
_TOLERANCE = 1e-6


def check_derivatives(record: Any) -> None:
    """Tests a derivative by hand:
    f' against f, `pull` against f's Jacobian, or ∇_y C against C, in float64.

    At a few hundred points up to 50 from 0, most of them near it; where a function is no number (a
    logarithm below 0) it is not compared. Points are drawn, so that none lies at a kink, where a
    derivative is a matter of convention.

    Args:
        record: an `Activation` or a `Cost`.

    Raises:
        ValueError: naming the record and the point where its derivative is wrong by more than
            1e-6 of it, of f or of 1, whichever is largest; where f does not act element by element,
            though it has no `pull`; where nothing could be compared.

    >>> import jax.numpy as jnp
    >>> import jbackprop as jb
    >>> jb.check_derivatives(jb.tanh)
    >>> jb.check_derivatives(jb.Activation("tanh", jnp.tanh, lambda z: 1 - jnp.tanh(z)))
    Traceback (most recent call last):
    ValueError: activation tanh: df(z): expected ... at z = ..., got ...
    """
    with jax.enable_x64(True):
        if isinstance(record, Cost):
            _check_cost(record)
        elif not isinstance(record, Activation):
            raise ValueError(f"record: expected an Activation or a Cost, got {record!r}")
        elif record.pull is None:
            _check_slope(record)
        else:
            _check_pull(record)


def _points(rng: Any) -> np.ndarray:
    sizes = [(0.1, 20), (1.0, 100), (4.0, 100), (12.0, 60), (50.0, 40)]
    return np.concatenate([size * rng.uniform(-1, 1, count) for size, count in sizes])


def _agree(what: str, at: Callable[..., str], found: Any, expected: Any, size: Any) -> bool:
    """Whether there was anything to compare; a difference raises."""
    known = np.isfinite(expected) & np.isfinite(size)
    with np.errstate(invalid="ignore"):
        allowed = _TOLERANCE * np.maximum(1, np.maximum(np.abs(expected), np.abs(size)))
        wrong = known & ~(np.abs(found - expected) <= allowed)
    if wrong.any():
        i = tuple(np.argwhere(wrong)[0])
        raise ValueError(f"{what}: expected {expected[i]:.6g} {at(*i)}, got {found[i]:.6g}")
    return bool(known.any())


def _nothing(what: str) -> None:
    raise ValueError(f"{what}: expected finite numbers somewhere, got none at any point tried")


def _numbers(what: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    if np.shape(value) != shape:
        raise ValueError(f"{what}: expected shape {shape}, got {np.shape(value)}")
    return np.asarray(value, float)


def _central(f: Callable[[Any], Any], z: np.ndarray, h: np.ndarray) -> Any:
    """The derivative of f at z along h, times |h|."""
    at = lambda steps: np.asarray(f(jnp.asarray(z + steps * h)), float)
    with np.errstate(invalid="ignore"):
        return (8 * (at(1) - at(-1)) - (at(2) - at(-2))) / 12


def _step(z: np.ndarray) -> np.ndarray:
    return _STEP * np.maximum(1, np.abs(z))


@functools.lru_cache(maxsize=64)  # compiled once, however often it is asked
def _at_all(f: Callable[..., Any]) -> Callable[..., Any]:
    """f of (…, n) points at once, given what else it takes."""
    return jax.jit(lambda z, *rest: jax.vmap(jax.vmap(lambda one: jnp.asarray(f(one, *rest))))(z))


@functools.lru_cache(maxsize=64)
def _of_points(f: Activation) -> tuple[Callable[..., Any], ...]:
    """f of all points, of every point alone, and f'."""
    return jax.jit(f.f), jax.jit(jax.vmap(f.f)), jax.jit(f.slope)


def _jacobian(f_at_all: Callable[..., Any], z: np.ndarray, *rest: Any) -> np.ndarray:
    """∂f/∂z_k for every k, along a last axis."""
    step, along = _step(z), np.array([1, -1, 2, -2])[:, None, None]
    values = np.asarray(f_at_all(jnp.asarray(z + along * np.diag(step)), *rest), float)
    with np.errstate(invalid="ignore"):
        slopes = (8 * (values[0] - values[1]) - (values[2] - values[3])) / 12
    return np.moveaxis(slopes, 0, -1) / step


def _check_slope(f: Activation) -> None:
    z, (at_once, by_itself, slope_of) = _points(np.random.default_rng(0)), _of_points(f)
    whole = lambda z: _numbers(f"activation {f.name}: f(z)", at_once(jnp.asarray(z)), z.shape)
    value = whole(z)
    alone = _numbers(f"activation {f.name}: f(z)", by_itself(z[:, None]), (len(z), 1))[:, 0]
    what = f"activation {f.name}: f acts element by element, or has a pull"
    _agree(what, lambda k: f"at z = {z[k]:.6g}, as without the others", value, alone, value)
    expected = _central(lambda z: whole(np.asarray(z)), z, _step(z)) / _step(z)
    slope = np.asarray(slope_of(jnp.asarray(z)), float)
    what = f"activation {f.name}: df(z)"
    if not _agree(what, lambda k: f"at z = {z[k]:.6g}", slope, expected, value):
        _nothing(what)


def _check_pull(f: Activation) -> None:
    rng, compared, values = np.random.default_rng(0), False, _at_all(f.f)
    for size in (0.1, 1.0, 4.0, 12.0):
        for _ in range(10):
            z, e = size * rng.uniform(-1, 1, 5), rng.uniform(-1, 1, 5)
            jacobian = _jacobian(values, z)
            at = lambda *i, z=z: f"in component {i[-1]} at z = {z.round(4).tolist()}"
            found = np.asarray(f.back(*map(jnp.asarray, (z, e))), float)
            what = f"activation {f.name}: pull(z, e)"
            compared |= _agree(what, at, found, e @ jacobian, 1.0)
            if f.df is not None:
                what = f"activation {f.name}: df(z), ∂a/∂z"
                found = _numbers(what, f.df(jnp.asarray(z)), jacobian.shape)
                _agree(what, at, found, jacobian, 1.0)
    if not compared:
        _nothing(f"activation {f.name}: f(z)")


def _check_cost(cost: Cost) -> None:
    rng, compared, n = np.random.default_rng(0), False, 4
    values = _at_all(cost.value)
    kinds = {
        "probabilities": lambda: rng.uniform(0.05, 0.95, n),
        "numbers": lambda: rng.normal(size=n) * rng.choice([0.1, 1, 10]),
        "one-hot": lambda: np.eye(n)[rng.integers(n)],
    }
    for _ in range(20):
        for y, t in ((kinds[one](), kinds[two]()) for one in [*kinds][:2] for two in kinds):
            what, given = f"cost {cost.name}: value(y, t)", [jnp.asarray(v) for v in (y, t)]
            value = _numbers(what, cost.value(*given), ())
            expected = _jacobian(values, y, given[1])
            grad = _numbers(f"cost {cost.name}: grad(y, t)", cost.grad(*given), (n,))
            what = f"cost {cost.name}: grad(y, t)"
            at = lambda k, y=y, t=t: (
                f"in component {k} at y = {y.round(4).tolist()}, t = {t.round(4).tolist()}"
            )
            compared |= _agree(what, at, grad, expected, value)
    if not compared:
        _nothing(f"cost {cost.name}: value(y, t)")
