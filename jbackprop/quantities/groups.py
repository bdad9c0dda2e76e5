"""Gradients of groups of examples, one group a user or a class: G_u = Σ_{i in u} w_i g_i.

Their norms come from the products of examples, ‖G_u‖² = Σ_{i, j in u} w_i w_j ⟨g_i, g_j⟩, but where
these cancel; and to scale a group's gradient is to scale the δ of its examples.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jbackprop.core.factors import Factors, sums_over_batch
from jbackprop.core.network import Params
from jbackprop.core.numerics import SEEN, norm, root, rounding, safe_range, unit, unless
from jbackprop.core.placement import by_example, everywhere, placed
from jbackprop.quantities.arguments import as_groups, as_limit
from jbackprop.quantities.clipping import longest_row, over, scale, shrink
from jbackprop.quantities.norms import lengths, norm_of_layers
from jbackprop.quantities.statistics import gram


@placed(everywhere)
def group_gradients(factors: Factors, groups: Any, num_groups: Any) -> Params:
    """One gradient for every user or class u:
    Σ_{i in u} w_i g_i, with a leading axis of num_groups; 0 for an empty group.

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

    return jax.lax.map(one, jnp.arange(num_groups, dtype=groups.dtype))


def _sum_of(factors: Factors, member: Bool[Array, " B"]) -> Params:
    """Σ w_i g_i of the members."""
    # where, not a product: NaN of another group must stay there
    keep = lambda leaves: tuple(jnp.where(over(member, rows), rows, 0) for rows in leaves)
    tape = factors.tape._replace(a=keep(factors.tape.a))
    members = factors._replace(delta=keep(factors.delta), tape=tape)
    return sums_over_batch(members, jnp.where(member, factors.weight, 0))


@partial(jax.jit, static_argnames="num_groups")
def group_norms(factors: Factors, groups: Any, outside: Any, num_groups: int) -> Any:
    """‖Σ_{i in u} w_i g_i‖ of every group, Σ_{i in u} w_i ‖g_i‖, and the sum of what its members'
    sums over positions may hide by rounding, (num_groups,) each.

    Where members cancel, a sum of their products is no norm: a group whose square is below a
    sixteenth of what orthogonal members would have is added up first, and then measured."""
    weight, largest = unit(factors.weight), jax.lax.stop_gradient(jnp.max(factors.weight))
    together = groups[:, None] == groups[None, :]
    rows = jnp.where(together, gram(factors) * (weight[:, None] * weight[None, :]), 0).sum(1)
    found = lengths(factors)
    norms, hidden = weight * norm(found.gradient), weight * norm(found.hidden)
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
        lambda: jax.lax.map(measured, (jnp.arange(num_groups, dtype=groups.dtype), squared, clear)),
    )
    spoilt = jnp.where(outside.any(), jnp.nan, 0)
    parts = [of_group(values) * largest + spoilt for values in (norms, hidden)]
    return of_sum + spoilt, *parts


@placed(everywhere)
def group_squared_norms(factors: Factors, groups: Any, num_groups: Any) -> Float[Array, " groups"]:
    """Squared gradient norms of users or classes u:
    ‖Σ_{i in u} w_i g_i‖², (num_groups,), from the products of their examples.

    Cost: that of `gram`, and a contraction for every group whose members cancel. Arguments and
    errors are those of `group_gradients`.
    """
    groups, outside = as_groups(factors, groups, num_groups)
    return jnp.square(group_norms(factors, groups, outside, int(num_groups))[0])


@placed(by_example("factors"))
def group_clip(factors: Factors, groups: Any, num_groups: Any, max_norm: Any) -> Factors:
    """Clips the gradient of every user or class: c_u = min(1, max_norm / ‖Σ_{i in u} w_i g_i‖).

    With one group a user, adding or removing all of a user's examples moves `sum_gradient` by at
    most max_norm, up to the rounding of the sum of all. Cost: that of `group_squared_norms`.
    Arguments and errors are those of `group_gradients` and `clip`. McMahan et al., 2018,
    arXiv:1710.06963.
    """
    limit = as_limit("max_norm", max_norm, (), factors.weight.dtype)
    groups, outside = as_groups(factors, groups, num_groups)
    norms, parts, hidden = group_norms(factors, groups, outside, int(num_groups))
    dtype = norms.dtype
    lost = rounding(longest_row(factors), dtype) / SEEN * norms  # by products that may cancel
    # and every scaled δ is rounded by itself: where members cancel that is all of their sum's error
    lost += 2 * float(jnp.finfo(dtype).eps) * parts
    # a sum over positions is rounded where it is added up, and where its δ is scaled
    c = shrink(norms + lost + 2 * hidden, limit)
    return scale(factors, c[groups])
