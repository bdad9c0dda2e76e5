"""Each building block at the ends of its dtype: what it gives, and what its derivative is there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbackprop.core import numerics as n

F32 = jnp.finfo(jnp.float32)


def f32(*values):
    return jnp.array(values, jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_small_dtypes_are_widened_and_squared_in_float32(dtype):
    values = jnp.array([3.0, 200.0], dtype) * jnp.array(2, dtype)
    assert n.wide(values).dtype == jnp.float32
    assert n.square(values).dtype == jnp.float32
    assert n.square(values).tolist() == [36, 160_000]


def test_large_dtypes_stay():
    values = f32(1, 2)
    assert n.wide(values) is values
    with jax.enable_x64(True):
        double = jnp.ones(2)
        assert n.wide(double) is double


def test_a_root_has_a_finite_slope_at_0():
    assert n.root(f32(0, 4, 9)).tolist() == [0, 2, 3]
    slopes = jax.vmap(jax.grad(n.root))(f32(0, 4, 16))
    assert jnp.isfinite(slopes).all()
    assert slopes[1:].tolist() == [0.25, 0.125]
    assert np.isnan(n.root(f32(np.nan))).all()


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [(3, 4, 5), (4, 3, 5), (0, 0, 0), (0, 2, 2), (3e30, 4e30, 5e30), (3e-30, 4e-30, 5e-30),
     (np.inf, 1, np.inf), (1, np.inf, np.inf), (np.inf, np.inf, np.inf), (2e-38, 0, 2e-38)],
)  # fmt: skip
def test_hypot(x, y, expected):
    np.testing.assert_allclose(n.hypot(f32(x), f32(y)), f32(expected), rtol=3e-7)


def test_weights_are_shared_out_whatever_their_scale():
    for scale in (1.0, 2e-38, 3e37, 1e38):
        np.testing.assert_allclose(n.shares(f32(1, 0, 3) * scale), f32(0.25, 0, 0.75), rtol=1e-6)
    assert n.shares(f32(0, 0)).tolist() == [0, 0]
    assert n.unit(f32(2, 4)).tolist() == [0.5, 1]
    assert n.unit(f32(0, 0)).tolist() == [0, 0]
    assert n.over_total(f32(1, 3)) == 0.25
    assert n.over_total(f32(0, 0)) == 1
    # a scale passes no derivative on: shares of all of them do not change with it
    slope = jax.jacobian(n.shares)(f32(1, 3))
    np.testing.assert_allclose(slope, [[3 / 16, -1 / 16], [-3 / 16, 1 / 16]], rtol=1e-6)


def test_a_weighted_mean_is_over_the_weights():
    assert n.weighted_mean(f32(1, 5, 100), f32(3, 1, 0)) == 2
    assert n.weighted_mean(f32(1, 5), f32(0, 0)) == 0
    half = jnp.array([1, 5], jnp.float16)
    assert n.weighted_mean(half, f32(3, 1)).dtype == jnp.float32


def test_rows_are_squared_in_float32():
    assert n.squared_rows(f32(3, 4, 0).reshape(1, 3)).tolist() == [25]
    half = jnp.full((2, 4), 300, jnp.float16)
    assert n.squared_rows(half).dtype == jnp.float32
    assert n.squared_rows(half).tolist() == [360_000] * 2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_the_safe_range_leaves_room_for_sums(dtype):
    """A square at its lower end keeps all its bits and 4,096 ulps below; 2^20 of the upper fit."""
    info = jnp.finfo(dtype)
    low, high = n.safe_range(dtype)
    assert low == float(info.tiny) * 2.0 ** (12 - np.log2(float(info.eps)))
    assert high == float(info.max) / 2**20


@pytest.mark.parametrize(
    ("size", "power"),
    [(1, 1), (1.5, 1), (2, 2), (-3, 2), (0.75, 0.5), (1e38, 2.0**126), (3e38, 2.0**126),
     (float(F32.tiny), 2.0**-126),
     (0, 1), (np.inf, 1), (-np.inf, 1), (np.nan, 1), (1e-40, 1)],
)  # fmt: skip
def test_the_power_of_two_below(size, power):
    assert float(n.power_of_two(f32(size))[0]) == power
    assert jax.grad(lambda v: n.power_of_two(v) * 1.0)(jnp.float32(3)) == 0
    with jax.enable_x64(True):
        expected = 2.0 ** np.floor(np.log2(1e-300))
        assert float(n.power_of_two(jnp.float64(1e-300))) == expected


def test_a_quotient_has_its_derivative_at_any_size():
    for size in (1e-30, 1.0, 1e30):
        a, b = jnp.float32(3 * size), jnp.float32(2 * size)
        assert n.quotient(a, b) == pytest.approx(1.5)
        slopes = jax.grad(n.quotient, argnums=(0, 1))(a, b)
        np.testing.assert_allclose(slopes, (0.5 / size, -0.75 / size), rtol=1e-6)


def test_no_gradient_has_no_noise():
    assert n.ratio(f32(0, 6, 0), f32(0, 3, 5)).tolist() == [0, 2, 0]
    assert n.ratio(f32(1), f32(0)).tolist() == [np.inf]
    slopes = jax.grad(lambda a, b: jnp.sum(n.ratio(a, b)), argnums=(0, 1))(f32(0, 6), f32(0, 3))
    np.testing.assert_allclose(slopes, [[0, 1 / 3], [0, -2 / 3]], rtol=1e-6)


def test_what_passes_nothing_on_passes_no_infinity_on():
    u, v = f32(0, np.inf, 2, np.inf, 0, np.nan, 0), f32(np.inf, 0, 3, 2, 5, 0, -np.inf)
    np.testing.assert_array_equal(n.product(u, v), f32(0, 0, 6, np.inf, 0, np.nan, 0))
    slopes = jax.grad(lambda u, v: jnp.sum(n.product(u, v)), argnums=(0, 1))(
        f32(0, 2, 0), f32(np.inf, 3, 5)
    )
    assert [slope.tolist() for slope in slopes] == [[0, 3, 5], [0, 2, 0]]


@pytest.mark.parametrize("size", [2e-38, 1e-30, 1e-19, 1e-10, 1, 1e10, 1e19, 1e30, 6e37])
@pytest.mark.parametrize("known", [True, False])
def test_norms_of_rows_of_any_size(size, known):
    rows = f32(3, 4, 0, 0, 0, 0).reshape(2, 3) * size
    squared = n.squared_rows(rows) if known else None
    np.testing.assert_allclose(n.norms_of_rows(rows, squared), f32(5 * size, 0), rtol=1e-6)
    np.testing.assert_allclose(n.norm(rows), f32(5 * size, 0), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1, 1e30])
def test_norms_have_slopes_at_any_size(size):
    row = f32(3, 4) * size
    for f in (lambda v: n.norms_of_rows(v[None])[0], n.norm):
        np.testing.assert_allclose(jax.grad(f)(row), f32(0.6, 0.8), rtol=1e-6)
        assert jax.grad(f)(f32(0, 0)).tolist() == [0, 0]


def test_norms_of_small_dtypes_are_float32():
    rows = jnp.full((1, 4), 300, jnp.float16)
    assert n.norms_of_rows(rows).dtype == jnp.float32
    assert n.norms_of_rows(rows).tolist() == [600]


def test_the_careful_way_is_taken_where_the_plain_one_is_not_fine():
    ways = (lambda: jnp.float32(1), lambda: jnp.float32(2))
    assert n.unless(jnp.array(True), *ways) == 1
    assert n.unless(jnp.array(False), *ways) == 2
