"""Gradients of groups of examples, one group a user or a class: G_u = Σ_{i in u} w_i g_i.

Their norms come from the products of examples, ‖G_u‖² = Σ_{i, j in u} w_i w_j ⟨g_i, g_j⟩, but where
these cancel; and to scale a group's gradient is to scale the δ of its examples.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jbackprop.core.factors import Factors, rank_one, weighted_sum
from jbackprop.core.network import Params
from jbackprop.core.numerics import norm, root, safe_range, unit, unless
from jbackprop.quantities.arguments import as_groups, as_limit
from jbackprop.quantities.clipping import longest_row, rounded_up, scale, shrink
from jbackprop.quantities.norms import example_norms, norm_of_layers
from jbackprop.quantities.spread import SEEN
from jbackprop.quantities.statistics import gram


def group_gradients(factors: Factors, groups: Any, num_groups: Any) -> Params:
    """Σ_{i in u} w_i g_i of every group u, with a leading axis of num_groups; 0 for an empty group.

    One contraction a group: arithmetic, beside the pass, in proportion to num_groups. Its result is
    num_groups · P numbers, its temporaries are those of one gradient.

    Args:
        factors: of a batch of B.
        groups: (B,) integers from 0 to num_groups - 1; any number where the weight is 0.
        num_groups: how many groups there are, a Python int.

    Raises:
        ValueError: groups are no integers of shape (B,), or one is out of range (everything is NaN
            instead where their values are traced).

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((2, 1))
    >>> params = [(jnp.zeros((1, 2)), jnp.zeros(1))]
    >>> x, t = jnp.zeros((3, 2)), jnp.array([[1.0], [3.0], [5.0]])
    >>> jb.group_gradients(jb.backprop(net, params, x, t), [0, 1, 0], 2)[0].b.tolist()
    [[-6.0], [-3.0]]
    """
    groups, outside = as_groups(factors, groups, num_groups)
    return _group_gradients(factors, groups, outside, int(num_groups))


@partial(jax.jit, static_argnames="num_groups")
def _group_gradients(factors: Factors, groups: Any, outside: Any, num_groups: int) -> Params:
    spoilt = jnp.where(outside.any(), jnp.nan, 0)

    def one(u: Array) -> Params:
        total = _sum_of(factors, groups == u)
        return jax.tree.map(lambda g: g + spoilt.astype(g.dtype), total)

    return jax.lax.map(one, jnp.arange(num_groups))


def _sum_of(factors: Factors, member: Bool[Array, " B"]) -> Params:
    """Σ w_i g_i of the members."""
    # where, not a product: NaN of another group must stay there
    keep = lambda rows: jnp.where(member[:, None], rows, 0)
    pairs = [(keep(delta), keep(a)) for delta, a in rank_one(factors)]
    return weighted_sum(pairs, jnp.where(member, factors.weight, 0))


@partial(jax.jit, static_argnames="num_groups")
def group_norms(factors: Factors, groups: Any, outside: Any, num_groups: int) -> Any:
    """‖Σ_{i in u} w_i g_i‖ and Σ_{i in u} w_i ‖g_i‖ of every group, (num_groups,) each.

    Where members cancel, a sum of their products is no norm: a group whose square is below a
    sixteenth of what orthogonal members would have is added up first, and then measured."""
    weight, largest = unit(factors.weight), jax.lax.stop_gradient(jnp.max(factors.weight))
    together = groups[:, None] == groups[None, :]
    rows = jnp.where(together, gram(factors) * (weight[:, None] * weight[None, :]), 0).sum(1)
    norms = weight * example_norms(factors)
    # an absent row may have any id: its norm is 0, and adds nothing wherever it goes
    of_group = lambda values: jax.ops.segment_sum(values, groups, num_groups)
    low, high = safe_range(norms.dtype)
    squared, longest = of_group(rows), jax.ops.segment_max(norms, groups, num_groups)
    small = longest < high**0.5
    orthogonal = of_group(jnp.square(norms))
    clear = (squared >= SEEN * orthogonal) & (orthogonal >= low) & small
    clear |= of_group((factors.weight != 0).astype(jnp.int32)) == 0

    def measured(group: Any) -> Array:
        u, squared, clear = group
        added_up = lambda: norm(norm_of_layers(_sum_of(factors, groups == u)))
        return unless(clear, lambda: root(squared) * largest, added_up)

    of_sum = unless(
        jnp.all(clear),
        lambda: root(squared) * largest,
        lambda: jax.lax.map(measured, (jnp.arange(num_groups), squared, clear)),
    )
    spoilt = jnp.where(outside.any(), jnp.nan, 0)
    return of_sum + spoilt, of_group(norms) * largest + spoilt


def group_squared_norms(factors: Factors, groups: Any, num_groups: Any) -> Float[Array, " groups"]:
    """‖Σ_{i in u} w_i g_i‖² of every group u, (num_groups,), from the products of its examples.

    Cost: that of `gram`, and a contraction for every group whose members cancel. Arguments and
    errors are those of `group_gradients`.
    """
    groups, outside = as_groups(factors, groups, num_groups)
    return jnp.square(group_norms(factors, groups, outside, int(num_groups))[0])


def group_clip(factors: Factors, groups: Any, num_groups: Any, max_norm: Any) -> Factors:
    """Every group's gradient norm at most max_norm: c_u = min(1, max_norm / ‖Σ_{i in u} w_i g_i‖).

    With one group a user, adding or removing all of a user's examples moves `sum_gradient` by at
    most max_norm, up to the rounding of the sum of all. Cost: that of `group_squared_norms`.
    Arguments and errors are those of `group_gradients` and `clip`. McMahan et al., 2018,
    arXiv:1710.06963.
    """
    limit = as_limit("max_norm", max_norm, (), factors.weight.dtype)
    groups, outside = as_groups(factors, groups, num_groups)
    norms, parts = group_norms(factors, groups, outside, int(num_groups))
    # every scaled δ is rounded by itself: where members cancel that is all of their sum's error
    rounding = float(jnp.finfo(parts.dtype).eps)
    most = rounded_up(norms, int(longest_row(factors) / SEEN**2)) + 2 * rounding * parts
    c = shrink(most, limit)
    return scale(factors, c[groups])
