"""Gradients of groups of examples, one group a user or a class: G_u = Σ_{i in u} w_i g_i.

Their norms come from the products of examples, ‖G_u‖² = Σ_{i, j in u} w_i w_j ⟨g_i, g_j⟩, and to
scale a group's gradient is to scale the δ of its examples.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.factors import Factors, rank_one, weighted_sum
from jbackprop.core.network import Params
from jbackprop.quantities.arguments import as_groups, as_limit
from jbackprop.quantities.clipping import scale, shrink
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
    spoilt = jnp.where(outside.any(), jnp.nan, 0)

    def one(u: Array) -> Params:
        member = groups == u
        # where, not a product: NaN of another group must stay there
        pairs = [(jnp.where(member[:, None], delta, 0), a) for delta, a in rank_one(factors)]
        pairs = [(delta, jnp.where(member[:, None], a, 0)) for delta, a in pairs]
        total = weighted_sum(pairs, jnp.where(member, factors.weight, 0))
        return jax.tree.map(lambda g: g + spoilt.astype(g.dtype), total)

    return jax.lax.map(one, jnp.arange(num_groups))


def group_squared_norms(factors: Factors, groups: Any, num_groups: Any) -> Float[Array, " groups"]:
    """‖Σ_{i in u} w_i g_i‖² of every group u, (num_groups,), from the products of its examples.

    Cost: that of `gram`. Arguments and errors are those of `group_gradients`.
    """
    groups, outside = as_groups(factors, groups, num_groups)
    together = groups[:, None] == groups[None, :]
    weight = factors.weight
    rows = jnp.where(together, gram(factors) * (weight[:, None] * weight[None, :]), 0).sum(1)
    squared = jax.ops.segment_sum(rows, jnp.where(weight == 0, 0, groups), num_groups)
    # a sum of products can round below 0
    return jnp.where(outside.any(), jnp.nan, jnp.maximum(squared, 0))


def group_clip(factors: Factors, groups: Any, num_groups: Any, max_norm: Any) -> Factors:
    """Every group's gradient norm at most max_norm: c_u = min(1, max_norm / ‖Σ_{i in u} w_i g_i‖).

    With one group a user, adding or removing all of a user's examples moves `sum_gradient` by at
    most max_norm, up to rounding. Cost: that of `gram`. Arguments and errors are those of
    `group_gradients` and `clip`. McMahan et al., 2018, arXiv:1710.06963.
    """
    limit = as_limit("max_norm", max_norm, (), factors.weight.dtype)
    squared = group_squared_norms(factors, groups, num_groups)
    groups, _ = as_groups(factors, groups, num_groups)
    return scale(factors, shrink(squared, limit)[jnp.clip(groups, 0, num_groups - 1)])
