"""f and f' against 60-digit arithmetic, against `jax.nn` at kinks, and as values."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import HIDDEN
from references import EXACT, JAX, KINKS, exact

import jbackprop as jb

Z = [0, 0.5, -0.5, 1.5, -1.5, 4, -4, 8, -8, 17, -17, 88, -88, 104, -104, 1e4, -1e4]

# Below this a float32 is subnormal, and the compiler flushes it to 0 (times z, at most 104).
FLUSHED = 2e-36
# tanh saturates early in float32; see its f'.
FLOOR = {"tanh": 5e-7}


def test_the_table_is_whole():
    assert {f.name for f in HIDDEN} == set(EXACT)


@pytest.mark.parametrize("f", HIDDEN, ids=lambda f: f.name)
@pytest.mark.parametrize("z", Z)
def test_f_and_slope_are_exact_also_where_f_saturates(f, z):
    value, slope = exact(f.name, z)
    at = jnp.float32(z)
    assert abs(float(f.f(at)) - value) <= 2e-6 * abs(value) + FLUSHED
    if z not in KINKS.get(f.name, []):  # where f' is a convention, tested below
        assert abs(float(f.df(at)) - slope) <= 2e-6 * abs(slope) + FLOOR.get(f.name, FLUSHED)


@pytest.mark.parametrize("f", HIDDEN, ids=lambda f: f.name)
def test_slope_at_kinks_and_at_zero_is_that_of_jax_nn(f):
    for z in [0.0, *KINKS.get(f.name, [])]:
        assert float(f.df(jnp.float32(z))) == pytest.approx(float(jax.grad(JAX[f.name])(float(z))))


@pytest.mark.parametrize("f", HIDDEN, ids=lambda f: f.name)
def test_our_own_forward_pass_differentiates_to_our_slope(f):
    z = jnp.array([-1e4, -104.0, -88, -17, -2, -0.3, 0, 0.3, 2, 17, 88, 104, 1e4])
    np.testing.assert_allclose(jax.vmap(jax.grad(f.f))(z), f.df(z), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("f", HIDDEN, ids=lambda f: f.name)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_keeps_shape_and_dtype_and_stays_finite(f, dtype):
    with jax.enable_x64(dtype == "float64"):
        far = 1e4 if f == jb.squareplus else 1e30
        z = jnp.array([[-far, -3, 0], [3, 104, far]], dtype)
        for result in (f.f(z), f.df(z)):
            assert result.shape == z.shape
            assert result.dtype == z.dtype
            assert jnp.isfinite(result).all()


@pytest.mark.parametrize("f", [*HIDDEN, jb.softmax], ids=lambda f: f.name)
def test_pickles_and_compares_by_value(f):
    for twin in (pickle.loads(pickle.dumps(f)), copy.deepcopy(f)):
        assert twin == f
        assert hash(twin) == hash(f)


def test_softmax_slope_is_its_jacobian():
    z = jnp.array([0.3, -1.0, 2.0])
    np.testing.assert_allclose(jb.softmax.df(z), jax.jacobian(jax.nn.softmax)(z), atol=1e-7)
