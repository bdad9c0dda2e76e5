"""Every example's gradient scaled by a number of its own: clipped, normalised, or as one likes.

c g_i = (c δ_i^l) (ã_i^{l-1})ᵀ: to scale an example's gradient is to scale its δ. So a clipped mean
costs what the plain one does, and no example's gradient is formed.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jbackprop.core.arrays import as_numbers, check_positive, is_concrete
from jbackprop.core.factors import Factors, mean_of, sums_over_batch
from jbackprop.core.network import Params
from jbackprop.core.numerics import at_least_float32, norm, quotient, rounding, wide
from jbackprop.core.placement import by_example, everywhere, placed
from jbackprop.quantities.arguments import as_limit
from jbackprop.quantities.ghost import held_of
from jbackprop.quantities.layers import Shared, flat_pairs, layers_of
from jbackprop.quantities.norms import Lengths, lengths


@placed(by_example("factors"))
def scale(factors: Factors, c: Any) -> Factors:
    """Weighs the examples' gradients:
    g_i times c_i, for which δ_i^l becomes c_i δ_i^l in every layer. Cost: 1.

    In float32 at least: a float16 δ times a small c would vanish, and its example with it.

    Args:
        factors: of a batch of B.
        c: of shape (B,), any real numbers. What it holds for rows of weight 0 has no effect.

    Raises:
        ValueError: c has another shape.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((2, 1))
    >>> params = [(jnp.zeros((1, 2)), jnp.zeros(1))]
    >>> factors = jb.backprop(net, params, jnp.zeros((2, 2)), jnp.array([[1.0], [3.0]]))
    >>> jb.scale(factors, [2, 0]).delta[0].tolist()
    [[-2.0], [-0.0]]
    """
    c = as_numbers("c", c)
    if c.shape != factors.weight.shape:
        raise ValueError(f"c: expected shape {factors.weight.shape}, got {c.shape}")
    return _scale_layers(factors, jnp.asarray(c, factors.weight.dtype)[:, None])


def _scale_layers(factors: Factors, c: Float[Array, "B _"]) -> Factors:
    """δ_i^l times c_{il}; c of shape (B, L), or (B, 1) for all layers alike."""
    c = jnp.broadcast_to(c, (len(c), len(factors.delta)))
    present = (factors.weight != 0)[:, None]
    delta = tuple(
        jnp.where(over(present, d), wide(d) * over(c[:, l : l + 1], d), 0)
        for l, d in enumerate(factors.delta)
    )
    return factors._replace(delta=delta)


def over(column: Array, rows: Array) -> Array:
    """One number for each row, whatever its shape."""
    return column.reshape(-1, *(1,) * (rows.ndim - 1))


def rounded_up(norms: Float[Array, "*shape"], longest: int) -> Float[Array, "*shape"]:
    """Norms of rows of up to `longest` numbers, larger than what their rounding may have hidden.

    What is clipped by it is within its bound in exact arithmetic too."""
    return norms * (1 + rounding(longest, norms.dtype))


def longest_row(factors: Factors) -> int:
    """The most numbers in a δ or an a, or in a matrix whose own norm is taken."""
    layers = layers_of(factors)
    rows = [rows.shape[1] for pair in flat_pairs(layers) for rows in pair]
    matrices = [math.prod(layer.matrix_shape) for layer in layers if isinstance(layer, Shared)]
    return max(*rows, *matrices)


def at_most(factors: Factors, found: Lengths) -> Float[Array, " B"]:
    """A number that no ‖g_i‖ is above."""
    return rounded_up(norm(found.gradient), longest_row(factors)) + norm(found.hidden)


def shrink(norms: Float[Array, "*shape"], max_norm: Any) -> Float[Array, "*shape"]:
    """min(1, max_norm / norm): 1 where the norm is 0, and NaN only where something is NaN.

    Below the least normal number it is 0: with the few digits that are left there, where a machine
    has such numbers at all, what is shrunk could be above its bound."""
    inside = norms <= max_norm
    factor = quotient(max_norm, jnp.where(inside, 1, norms))
    factor = jnp.where(factor < jnp.finfo(norms.dtype).tiny, 0, factor)
    return jnp.where(inside, 1, factor)


@placed(by_example("factors"))
def clip(factors: Factors, max_norm: Any) -> Factors:
    """Clips every example's gradient to a norm of at most max_norm:
    c_i = min(1, max_norm / ‖g_i‖). Cost: 1.

    g_i is example i's own gradient, not w_i g_i: with weights of 0 and 1, adding or removing one
    example moves `sum_gradient` by at most max_norm, up to the rounding of that sum. Norms are
    rounded up, so that the bound itself holds under rounding. Abadi et al., "Deep Learning with
    Differential Privacy", 2016, arXiv:1607.00133; in this form ("ghost" or "fast" clipping)
    Goodfellow, 2015, arXiv:1510.01799.

    Args:
        factors: of a batch.
        max_norm: a number from 0 (no gradient is left) to infinity (nothing is changed).

    Raises:
        ValueError: max_norm is negative or NaN (every δ is NaN instead where it is traced).

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((2, 1))
    >>> params = [(jnp.zeros((1, 2)), jnp.zeros(1))]
    >>> factors = jb.backprop(net, params, jnp.zeros((2, 2)), jnp.array([[1.0], [3.0]]))
    >>> jb.squared_norms(jb.clip(factors, 2.0)).round(3).tolist()  # of 1 and 9
    [1.0, 4.0]
    """
    limit = as_limit("max_norm", max_norm, (), factors.weight.dtype)
    norms = at_most(factors, lengths(factors))
    return _scale_layers(factors, shrink(norms, limit)[:, None])


@placed(by_example("factors"))
def clip_layers(factors: Factors, max_norms: Any) -> Factors:
    """Clips every example's gradient of layer l to at most max_norms[l]:
    c_{il} = min(1, m_l / ‖g_i^l‖).

    The whole gradient's norm is then at most √Σ_l m_l². Cost: 1. Raises `ValueError` where
    max_norms is not of shape (L,), or one of them is negative or NaN (NaN where traced). McMahan et
    al., "Learning Differentially Private Recurrent Language Models", 2018, arXiv:1710.06963.
    """
    shape = (len(factors.delta),)
    limits = as_limit("max_norms", max_norms, shape, factors.weight.dtype)
    found = lengths(factors)
    norms = rounded_up(found.gradient, longest_row(factors)) + found.hidden
    return _scale_layers(factors, shrink(norms, jnp.broadcast_to(limits, norms.shape)))


@placed(by_example("factors"))
def normalize(factors: Factors, *, gamma: Any = 0.01) -> Factors:
    """Automatic clipping: c_i = 1 / (‖g_i‖ + γ), so that every norm is below 1. Cost: 1.

    γ > 0 keeps small gradients small. Raises `ValueError` where gamma is negative or NaN. Bu et
    al., "Automatic Clipping: Differentially Private Deep Learning Made Easier and Stronger", 2023,
    arXiv:2206.07136.
    """
    gamma = as_limit("gamma", gamma, (), factors.weight.dtype)
    norms = at_most(factors, lengths(factors)) + gamma
    c = quotient(jnp.ones_like(norms), jnp.where(norms == 0, 1, norms))
    return _scale_layers(factors, c[:, None])


@dataclass(frozen=True)
class ClippedMean:
    """`clipped_mean` of a bound: equal bounds, equal functions, and it pickles."""

    max_norm: Any
    combines: ClassVar[str] = "mean"

    @placed(everywhere)
    def __call__(self, factors: Factors) -> Params:
        limit = as_limit("max_norm", self.max_norm, (), factors.weight.dtype)
        held = [*map(held_of, layers_of(factors))]
        c = shrink(at_most(factors, lengths(factors, held)), limit)
        return mean_of(factors, lambda weight: _sums(factors, c * weight, held))


@dataclass(frozen=True)
class ClippedSum:
    """`clipped_sum` of a bound and a divisor: equal numbers, equal functions, and it pickles."""

    max_norm: Any
    divisor: Any
    combines: ClassVar[str] = "sum"

    @placed(everywhere)
    def __call__(self, factors: Factors) -> Params:
        held = [*map(held_of, layers_of(factors))]
        found = lengths(factors, held)
        finite = (jnp.isfinite(found.delta) & jnp.isfinite(found.a)).all(axis=1)
        keep = lambda leaves: tuple(jnp.where(over(finite, v), v, 0) for v in leaves)
        tape = factors.tape._replace(a=keep(factors.tape.a))
        bounded = factors._replace(delta=keep(factors.delta), tape=tape)
        limit = as_limit("max_norm", self.max_norm, (), factors.weight.dtype)
        c = jnp.where(finite, shrink(at_most(factors, found), limit), 0)
        held = [kept and type(kept)(*keep(kept)) for kept in held]
        sums = _sums(bounded, c * factors.weight, held)
        return jax.tree.map(lambda g: g / self.divisor, sums)


def _sums(factors: Factors, c: Float[Array, " B"], held: Any) -> Params:
    """Σ_i c_i g_i, with no example rounded to a smaller float before it is added."""
    return sums_over_batch(factors._replace(delta=tuple(map(wide, factors.delta))), c, held)


def _bound(max_norm: Any) -> Any:
    """A float where it is known, in a trace of something else too; else it keeps its dtype."""
    given = as_numbers("max_norm", max_norm)
    traced = not is_concrete(given) and jnp.issubdtype(given.dtype, jnp.floating)
    limit = as_limit("max_norm", given, (), at_least_float32(given.dtype) if traced else np.float32)
    return float(given) if is_concrete(given) else limit


def clipped_mean(max_norm: Any) -> ClippedMean:
    """A `gradient=` for training: (factors) -> `mean_gradient` of `clip(factors, max_norm)`.

    Against outliers; it is no DP-SGD. It divides by the batch's own size, so that one example more
    or less also changes what the others count: for privacy there is `clipped_sum`, with noise.

    The same function for the same number, so that it compiles once; a bound that is traced makes a
    function of that trace. Raises as `clip`.

    >>> import jbackprop as jb
    >>> jb.clipped_mean(1.0) is jb.clipped_mean(1)
    True
    """
    bound = _bound(max_norm)
    return _clipped_mean(bound) if isinstance(bound, float) else ClippedMean(bound)


def clipped_sum(max_norm: Any, divisor: Any) -> ClippedSum:
    """A `gradient=` for private training:
    (factors) -> Σ_i w_i clip(g_i) / divisor, in float32 at least.

    The gradient of DP-SGD before its noise: the divisor is the expected size of a sample, which
    does not depend on who is in it, so that one example moves the result by at most
    max_norm / divisor (with weights of 0 and 1). An example whose gradient is no finite number, or
    whose δ or a is longer than any, cannot be bounded, and counts as 0: a sum of NaN would tell
    that it is there. (Parameters that are NaN remain so, and their cost with them.)
    `gaussian_noise` adds the noise. Abadi et al., 2016, arXiv:1607.00133, algorithm 1.

    The same function for the same numbers, so that it compiles once. Raises as `clip`, and
    `ValueError` where the divisor is not a finite number above 0.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((2, 1))
    >>> params = [(jnp.zeros((1, 2)), jnp.zeros(1))]
    >>> factors = jb.backprop(net, params, jnp.zeros((2, 2)), jnp.array([[1.0], [3.0]]))
    >>> total = jb.clipped_sum(2.0, divisor=4)(factors)  # (-1 - 2) / 4 in b
    >>> round(float(total[0].b[0]), 3)
    -0.75
    """
    bound, divisor = _bound(max_norm), check_positive("divisor", divisor)
    made = _clipped_sum if isinstance(bound, float) else ClippedSum
    return made(bound, divisor)


# Equal functions compile once; with a few kept, the same one comes back.
_clipped_mean = functools.lru_cache(maxsize=64)(ClippedMean)
_clipped_sum = functools.lru_cache(maxsize=64)(ClippedSum)
