"""The border of the quantities: what fits stays, what does not is named, or NaN where traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbackprop as jb
from jbackprop.quantities import arguments

NET = jb.Network((4, 5, 3))
PARAMS = jb.init(NET, jax.random.key(0))
FACTORS = jb.backprop(NET, PARAMS, np.ones((3, 4)), np.ones((3, 3)), weight=[1, 0, 2])


@pytest.mark.parametrize("limit", [0, 1, np.inf, 0.5])
def test_a_limit_may_be_anything_from_0_to_infinity(limit):
    f = lambda v: arguments.as_limit("m", v, (), jnp.float32)
    assert f(limit) == limit
    assert f(limit).dtype == jnp.float32
    assert jax.jit(f)(limit) == limit
    assert arguments.as_limit("m", [limit, 1], (2,), jnp.float32).tolist() == [limit, 1]


@pytest.mark.parametrize("limit", [-1, np.nan, -0.5, -np.inf])
def test_another_limit_is_named_or_nan(limit):
    f = lambda v: arguments.as_limit("m", v, (2,), jnp.float32)
    with pytest.raises(ValueError, match=r"^m: expected at least 0, got \["):
        f([1, limit])
    np.testing.assert_array_equal(jax.jit(f)(jnp.array([1, limit])), [1, np.nan])
    with pytest.raises(ValueError, match=r"^m: expected shape \(2,\), got \(\)"):
        f(1)


def test_edges_increase():
    f = lambda v: arguments.as_edges("e", v, jnp.float32)
    assert f([1, 2, 4]).tolist() == [1, 2, 4]
    assert f([1, 2, 4]).dtype == jnp.float32
    assert f([3]).tolist() == [3]
    assert jax.jit(f)(jnp.array([-1.0, 0, jnp.inf])).tolist() == [-1, 0, np.inf]


@pytest.mark.parametrize(
    "edges", [[1, 1], [2, 1], [0, 2, 1], [0, np.nan], [np.nan], [np.nan, 0, 1], [1, 1 + 1e-9]]
)
def test_edges_that_do_not_are_named_or_nan(edges):
    f = lambda v: arguments.as_edges("e", v, jnp.float32)
    with pytest.raises(ValueError, match=r"^e: expected increasing numbers, got \["):
        f(edges)
    if len(edges) > 1:
        assert jnp.isnan(jax.jit(f)(jnp.array(edges))).all()


@pytest.mark.parametrize("edges", [1.0, [], [[1, 2]]])
def test_edges_are_a_row(edges):
    with pytest.raises(ValueError, match=r"^e: expected a row of increasing numbers, got shape \("):
        arguments.as_edges("e", edges, jnp.float32)


def test_groups_of_absent_rows_may_be_anything():
    groups, outside = arguments.as_groups(FACTORS, [0, 9, 1], 2)
    assert groups.dtype == jnp.int32
    assert groups.tolist()[::2] == [0, 1]
    assert not outside.any()
    traced = jax.jit(lambda g: arguments.as_groups(FACTORS, g, 2)[1])
    assert traced(jnp.array([0, 9, 1])).tolist() == [False] * 3
    assert traced(jnp.array([2, 0, -1])).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("groups", "said"),
    [([0, 0, 2], "ids from 0 to 1, got 2 at row 2"), ([-1, 0, 0], "ids from 0 to 1, got -1 at row"),
     ([0.0, 0, 0], r"integers of shape \(3,\), got float64 \(3,\)"),
     ([0, 0], r"integers of shape \(3,\), got int64 \(2,\)")],
)  # fmt: skip
def test_groups_that_do_not_fit_are_named(groups, said):
    with pytest.raises(ValueError, match=f"^groups: expected {said}"):
        arguments.as_groups(FACTORS, groups, 2)


def test_a_direction_has_the_shapes_of_a_gradient_and_float32_at_least():
    half = jb.init(NET, jax.random.key(0), dtype=jnp.float16)
    found = arguments.as_direction(FACTORS, half)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}
    assert [(w.shape, b.shape) for w, b in found] == [((5, 4), (5,)), ((3, 5), (3,))]
    for wrong in (PARAMS[:1], PARAMS[::-1], 3, [1, 2], [(w.T, b) for w, b in PARAMS]):
        with pytest.raises(ValueError, match=r"^curvature: expected \(w, b\) per layer of the"):
            arguments.as_direction(FACTORS, wrong, name="curvature")


def test_batches_of_two_networks_do_not_multiply():
    other = jb.Network((4, 6, 3))
    two = jb.backprop(other, jb.init(other, jax.random.key(0)), np.ones((2, 4)), np.ones((2, 3)))
    said = r"^other: expected factors of a network with sizes \(4, 5, 3\), got \(4, 6, 3\)"
    with pytest.raises(ValueError, match=said):
        arguments.check_same_network(FACTORS, two)
    arguments.check_same_network(FACTORS, FACTORS)
