"""Numbers that survive the extremes: widened, shared out, scaled before they are squared.

A square leaves the range of a dtype long before its root does: of float32 beyond 1.8e19, or below
1e-19. And a small difference of large sums is what their rounding left of it. Whoever squares or
subtracts here asks first whether that is so, and only then takes the longer way, which `lax.cond`
leaves out of the running program otherwise. (Under `jax.vmap` both are computed.)
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float

Values = Float[Array, "*shape"]
# A difference that is smaller than this share of what it was taken from is worked out the other
# way: its rounding error would be above 16 ε.
SEEN = 1 / 16


def at_least_float32(dtype: Any) -> np.dtype:
    """float32, or float64 if it is that."""
    return np.promote_types(dtype, np.float32)


def wide(values: Array) -> Array:
    """In float32 at least, for squares and sums."""
    return values.astype(at_least_float32(values.dtype))


def square(values: Array) -> Values:
    """v ⊙ v in float32 at least."""
    return jnp.square(wide(values))


def root(squared: Values) -> Values:
    """√s, with a finite derivative at 0: of a norm, whose squares have slope 0 there, that is 0."""
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), squared)


def hypot(x: Values, y: Values) -> Values:
    """√(x² + y²) for x, y ≥ 0, without their squares."""
    large, small = jnp.maximum(x, y), jnp.minimum(x, y)
    finite = (large > 0) & (large < jnp.inf)
    return large * jnp.sqrt(1 + jnp.square(small / jnp.where(finite, large, 1)))


def unit(weight: Float[Array, " B"]) -> Float[Array, " B"]:
    """w / max w: a sum of these neither overflows nor vanishes, whatever the weights' scale."""
    largest = stop_gradient(jnp.max(weight))
    return quotient(weight, jnp.where(largest == 0, 1, largest))


def over_total(weight: Float[Array, "*B"]) -> Float[Array, ""]:
    """1 / Σ w. Where all weights are 0, so is every sum that it multiplies."""
    total = jnp.sum(weight)
    return 1 / jnp.where(total == 0, 1, total)


def shares(weight: Float[Array, " B"]) -> Float[Array, " B"]:
    """p_i = w_i / Σ w; all 0 where every weight is."""
    parts = unit(weight)
    return parts * over_total(parts)


def weighted_mean(values: Float[Array, " B"], weight: Float[Array, " B"]) -> Float[Array, ""]:
    """Σ_i w_i v_i / Σ_i w_i; 0 where all weights are 0."""
    return jnp.sum(shares(weight) * values.astype(weight.dtype))


def squared_rows(values: Float[Array, "*B n"]) -> Float[Array, "*B"]:
    """‖v_i‖² of every row, in float32 at least."""
    # a product with ones: XLA's sums along rows took a seventh of a step at size L on a CPU
    ones = jnp.ones(values.shape[-1], wide(values).dtype)
    return jnp.matmul(square(values), ones, precision=jax.lax.Precision.HIGHEST)


def safe_range(dtype: Any) -> tuple[float, float]:
    """Sums of squares between these lost nothing that mattered, and may still be added up."""
    info = jnp.finfo(dtype)
    return float(info.tiny) * 4096 / float(info.eps), float(info.max) / 2**20


def rounding(longest: int, dtype: Any) -> float:
    """Relative to the sum of absolute terms, what the rounding of a sum may come to.

    That of n terms grows as √n ε where roundings are independent, and as n ε over the length of a
    vector register or more where they all go one way, as of equal numbers. Tested up to 10⁵."""
    return float(jnp.finfo(dtype).eps) * (2 + math.sqrt(longest) / 4 + longest / 400)


def power_of_two(size: Values) -> Values:
    """The power of two at or just below a size, by which to divide it exactly; 1 for 0, ∞, NaN.

    XLA divides all of an array by one number as it multiplies by its reciprocal, which is in range
    too: beyond the largest power for which that is so, it is that."""
    size, tiny = jnp.abs(stop_gradient(size)), jnp.finfo(size.dtype).tiny
    usable = (size >= tiny) & (size < jnp.inf)
    # without its mantissa a float is that power
    bits = jnp.uint32 if size.dtype == jnp.float32 else jnp.uint64
    exponent = jnp.array(jnp.inf, size.dtype).view(bits)
    power = (size.view(bits) & exponent).view(size.dtype)
    return jnp.where(usable, jnp.minimum(power, 1 / tiny), 1)


def quotient(a: Any, b: Array) -> Array:
    """a / b, with a derivative in which b² leaves no range."""
    scale = power_of_two(b)
    return (a / scale) / (b / scale)


def ratio(a: Values, b: Values) -> Values:
    """a / b, and 0 where a is 0: no gradient has no noise."""
    nothing = a == 0
    return jnp.where(nothing, 0, quotient(a, jnp.where(nothing, 1, b)))


def product(u: Values, v: Values) -> Values:
    """u ⊙ v, where 0 · ∞ is 0: what passes nothing on passes no infinity on. NaN stays."""
    nothing = ((u == 0) | (v == 0)) & (jnp.isinf(u) | jnp.isinf(v))
    return jnp.where(nothing, 0, jnp.where(nothing, 1, u) * v)


def norms_of_rows(values: Float[Array, "*B n"], squared: Any = None) -> Float[Array, "*B"]:
    """‖v_i‖ of every row, right over the whole range of the dtype; by their squares, if known."""
    values = wide(values)
    low, _ = safe_range(values.dtype)
    far = 2.0 ** (jnp.finfo(values.dtype).maxexp // 2 + 6)
    squared = stop_gradient(squared_rows(values) if squared is None else squared)
    scale = jnp.where(squared == jnp.inf, 1 / far, jnp.where(squared < low, far, 1))
    # a sum, and no product with ones: it is rarely asked for, and holds no second set of rows
    return root(jnp.sum(jnp.square(values * scale[..., None]), axis=-1)) / scale


def norm(values: Float[Array, "*B n"]) -> Float[Array, "*B"]:
    """‖v‖ along a short last axis, of numbers v ≥ 0 of any size."""
    scale = power_of_two(jnp.max(values, axis=-1))
    return root(jnp.sum(jnp.square(values / scale[..., None]), axis=-1)) * scale


def unless(fine: Bool[Array, ""], plain: Callable[[], Any], careful: Callable[[], Any]) -> Any:
    """The plain way where it is fine, which is what runs nearly always; else the careful one."""
    return jax.lax.cond(fine, plain, careful)
