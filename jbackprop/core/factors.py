"""The factors of every example's gradient, and the gradients that are contractions of them.

`jax.vmap` of the one-example recursion leaves, for every example i and layer l, δ_i^l and
a_i^{l-1}: the rank-one factors of ∂C_i/∂w^l = δ_i^l (a_i^{l-1})ᵀ. A sum over the batch is one
matrix product of them. B · P numbers are formed by `example_gradients` alone, which is for looking.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jbackprop.core.arrays import check_key, is_key
from jbackprop.core.backward import backpropagation, gradients, output_delta, propagate
from jbackprop.core.batch import Scalar, as_batch, blank, example_cost, without_absent
from jbackprop.core.checks import in_the_structure_of
from jbackprop.core.maps import Map, shaped
from jbackprop.core.network import Layer, Network, Params, Tape, as_layers, forward
from jbackprop.core.numerics import over_total, product, unit, weighted_mean
from jbackprop.core.placement import by_example, everywhere, like, placed
from jbackprop.core.precision import (
    as_compute_dtype,
    is_scaled,
    rounded,
    scaled,
    with_exact_end,
)
from jbackprop.core.remat import as_remat, by_segments
from jbackprop.core.rules import Rule, none
from jbackprop.core.sums import bias_sum, outer_sum

F = TypeVar("F", bound=Callable[..., Any])


class Factors(NamedTuple):
    """What one pass leaves of a batch; every leaf has the leading axis B.

    Attributes:
        cost: C_i, of shape (B,), in float32 at least.
        tape: z and a of every layer.
        delta: (δ^1 … δ^L), δ^l of shape (B, n_l), of a convolution (B, *positions, n_l).
        t: the ground truth that the costs saw, of shape (B, n_L).
        weight: of shape (B,); enters sums and means only. Where it is 0, all the rest is 0.
        maps: those of the network, without which a convolution's δ and a cannot be contracted: as a
            pytree nothing but structure. () where all of it is dense.
        dtype: that of the parameters and of a mean gradient, where the pass had a smaller one; as a
            pytree nothing but structure. () where it had that.
    """

    cost: Float[Array, " B"]
    tape: Tape
    delta: tuple[Float[Array, "B ..."], ...]
    t: Float[Array, "B n_out"]
    weight: Float[Array, " B"]
    maps: tuple["Used", ...] = ()
    dtype: "Wider | tuple[()]" = ()


@jax.tree_util.register_static
@dataclass(frozen=True)
class Used:
    """A linear map of the network, as a pytree without leaves."""

    map: Map


@jax.tree_util.register_static
@dataclass(frozen=True)
class Wider:
    """The dtype of parameters that were rounded for the pass, as a pytree without leaves."""

    dtype: np.dtype


@placed(by_example("x"))
def backprop(
    net: Network,
    params: Any,
    x: Any,
    t: Any,
    *,
    weight: Any = None,
    rule: Rule = backpropagation,
    feedback: Any = None,
    key: Any = None,
    compute_dtype: Any = None,
    remat: Any = None,
) -> Factors:
    """The pass of a batch that keeps every example's δ and a:
    the recursion of `backward.py` under `jax.vmap`.

    Args:
        net: the network.
        params: (w^l, b^l) per layer.
        x: inputs of shape (B, n_0), or (B, *shape of one), of any real dtype; cast to the
            parameters' dtype.
        t: ground truth of shape (B, n_L); or integer labels of shape (B,) with `cross_entropy`. A
            label out of range makes that example's cost and δ NaN.
        weight: of shape (B,), of any real or bool dtype; by default 1. Where it is 0 the row is
            absent, whatever is in it, NaN included.
        rule: how δ is carried back.
        feedback: what the rule keeps, from `rule.init`; not needed where it keeps none.
        key: for a rule that draws; split so that every example and layer has its own. Keys of shape
            (B,) are the examples'.
        compute_dtype: bfloat16 or float16, of z, a and δ, for parameters of a wider dtype, which
            z^L, y and a mean gradient have nonetheless; by default theirs. In float16
            backpropagation gives δ in float32, out of a recursion in which each layer's has a power
            of two of its own; no loss scale is needed. δ of another rule is as it comes.
        remat: k, for very deep networks: a^l is kept at every k-th layer, and the rest worked out
            again as δ comes down. It saves memory where the factors are used up as they come, in a
            compiled step whose gradient is a mean or a sum.

    Returns:
        The `Factors` of the batch.

    Raises:
        ValueError: an argument does not fit the network; the batch is empty; a weight is negative
            or infinite (NaN instead where its value is traced); the rule keeps feedback and got
            none; compute_dtype is not smaller than the parameters' dtype; remat is below 1.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((64, 32, 10), output=jb.softmax, cost=jb.cross_entropy)
    >>> params = jb.init(net, jax.random.key(0))
    >>> factors = jb.backprop(net, params, jnp.ones((5, 64)), jnp.arange(5))
    >>> [d.shape for d in factors.delta], [a.shape for a in factors.tape.a]
    ([(5, 32), (5, 10)], [(5, 64), (5, 32), (5, 10)])
    >>> half = jb.backprop(net, params, jnp.ones((5, 64)), jnp.arange(5), compute_dtype="bfloat16")
    >>> half.delta[0].dtype.name, jb.mean_gradient(half)[0].w.dtype.name
    ('bfloat16', 'float32')
    """
    layers = as_layers(net, params)
    dtype, every = layers[0].w.dtype, as_remat(remat)
    smaller = as_compute_dtype(compute_dtype, dtype)
    batch = as_batch(net, layers, x, t, weight, compute_dtype=smaller)
    x, t, weight, absent, label = without_absent(batch)
    last = layers[-1]
    layers, feedback = rounded((layers, feedback_of(net, layers, rule, feedback)), smaller)
    keys = keys_of(key, len(x))
    recursion = scaled if is_scaled(rule, smaller) else propagate

    def example(x: Any, t: Any, key: Any) -> Any:
        tape = forward(net, layers, x)
        whole = with_exact_end(net, tape, last) if smaller else tape
        cost, delta_L = example_cost(net, whole, t), output_delta(net, whole, t, label=label)
        given = {"rule": rule, "feedback": feedback, "t": t, "key": key}
        if every is None:
            return cost, whole, recursion(net, layers, tape, delta_L, **given)
        (z, a), deltas = by_segments(recursion, every, net, layers, tape, delta_L, **given)
        return cost, Tape((*z[:-1], whole.z[-1]), (*a[:-1], whole.a[-1])), deltas

    cost, tape, deltas, t = blank(absent, (*jax.vmap(example)(x, t, keys), t))
    return Factors(cost, tape, deltas, t, weight, maps_of(net), Wider(dtype) if smaller else ())


def keys_of(key: Any, batch: int) -> Any:
    """One for every example; None where there is none."""
    if key is None or (jnp.shape(key) == (batch,) and is_key(key)):
        return key
    check_key(key)
    return jax.random.split(key, batch)


def maps_of(net: Network) -> tuple[Used, ...]:
    """Those that `Factors` keeps: () where all of it is dense."""
    return () if net.flat else tuple(map(Used, net.maps))


def feedback_of(net: Network, layers: Params, rule: Rule, feedback: Any) -> Any:
    """The rule's feedback; () where it keeps none."""
    given = () if feedback is None else feedback
    given = tuple(given) if isinstance(given, list) else given
    if rule.init is none:
        return given
    expected = jax.eval_shape(lambda: rule.init(net, layers, jax.random.key(0)))
    shapes = lambda tree: [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
    if shapes(given) != shapes(expected):
        raise ValueError(
            f"feedback: expected what rule.init gives for {rule.name}, arrays of shapes "
            f"{shapes(expected)}, got {shapes(given)}; a state is made for one rule, "
            "by init_state(…, rule=rule)"
        )
    return given


def sums_over_batch(factors: Factors, c: Float[Array, " B"], held: Any = ()) -> Params:
    """Σ_i c_i g_i, in float32 at least; `held` may have the g_i of a layer, (w, b) in units."""
    pairs, found = zip(factors.delta, factors.tape.a[:-1], strict=True), []
    if not factors.maps:
        return tuple(Layer(outer_sum(c, delta, a), bias_sum(c, delta)) for delta, a in pairs)
    held = held or [None] * len(factors.maps)
    for used, (delta, a), own in zip(factors.maps, pairs, held, strict=True):
        shape = used.map.w_shape(a.shape[1:])
        if own is None:
            w = used.map.weighted_sum(c, delta, a)
            w = shaped(used.map, "weighted_sum(c, delta, a)", w, shape)
            found.append(Layer(w, bias_sum(c, delta)))
        else:
            w = jnp.tensordot(product(c, own.of_w), own.w, 1).reshape(shape)
            found.append(Layer(w, product(c, own.of_b) @ own.b))
    return tuple(found)


def combines(how: str) -> Callable[[F], F]:
    """Says of a `gradient=` how those of a batch's parts combine: as a "mean" or a "sum"."""

    def told(function: F) -> F:
        setattr(function, "combines", how)  # noqa: B010 - functions have attributes
        return function

    return told


@combines("sum")
@placed(everywhere)
def sum_gradient(factors: Factors) -> Params:
    """The weighted sum of the examples' gradients: Σ_i w_i g_i, with g_i = δ_i^l (a_i^{l-1})ᵀ.

    In float32 at least, since a sum of float16 may be no float16."""
    return sums_over_batch(factors, factors.weight)


@combines("mean")
@placed(everywhere)
def mean_gradient(factors: Factors) -> Params:
    """The weighted mean of the examples' gradients: Σ_i w_i g_i / Σ_i w_i; 0 where every w_i is 0.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((3, 2))
    >>> x, t = jnp.eye(3), jnp.ones((3, 2))
    >>> factors = jb.backprop(net, jb.init(net, jax.random.key(0)), x, t)
    >>> jb.mean_gradient(factors)[0].w.shape
    (2, 3)
    """
    return mean_of(factors, lambda weight: sums_over_batch(factors, weight))


def mean_of(factors: Factors, sums: Callable[[Array], Params]) -> Params:
    """sums(w) / Σ w, in the dtype of the parameters."""
    # The sum is scaled, and not δ before it: that is fused with the optimizer's update. It made a
    # compiled epoch 5 to 10 % faster at every size tried.
    weight = unit(factors.weight)
    share, kept = over_total(weight), factors.dtype
    dtype = kept.dtype if isinstance(kept, Wider) else factors.tape.a[0].dtype
    return jax.tree.map(lambda g: (g * share).astype(dtype), sums(weight))


@placed(by_example("factors"))
def example_gradients(factors: Factors) -> Params:
    """Every example's gradient g_i, with a leading axis B: B · P numbers, for looking only."""
    maps = [used.map for used in factors.maps]

    def example(tape: Tape, deltas: Any) -> Params:
        # a clipped δ is of a wider dtype than its a
        a = [a.astype(delta.dtype) for a, delta in zip(tape.a[:-1], deltas, strict=True)]
        return gradients(tape._replace(a=(*a, tape.a[-1])), deltas, maps)

    return jax.vmap(example)(factors.tape, factors.delta)


@placed(lambda given, shapes: (P(), like(given["params"], shapes[1])))
def value_and_grad(
    net: Network,
    params: Any,
    x: Any,
    t: Any,
    *,
    weight: Any = None,
    compute_dtype: Any = None,
    remat: Any = None,
) -> tuple[Scalar, Any]:
    """The mean cost of a batch and its gradient, in the structure that params came in.

    Arguments and errors are those of `backprop`.
    """
    factors = backprop(net, params, x, t, weight=weight, compute_dtype=compute_dtype, remat=remat)
    cost = weighted_mean(factors.cost, factors.weight)
    return cost, in_the_structure_of("params", params, mean_gradient(factors))
