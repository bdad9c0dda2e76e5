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
    sizes = [0.3, 2, 17, 88, 104, 1e4, 1e20, 3e38]
    z = jnp.array([-z for z in sizes] + [0.0] + sizes)
    np.testing.assert_allclose(jax.vmap(jax.grad(f.f))(z), f.df(z), rtol=1e-5, atol=1e-6)


def over_the_range(dtype):
    """Numbers of either sign from the least to the largest of a dtype, and ±∞ beyond."""
    info = jnp.finfo(dtype)
    ends = float(info.tiny), float(info.max)
    decades = np.linspace(np.log10(ends[0]), np.log10(ends[1]), 16)[1:-1]
    steps = (10.0**decades).tolist() + [0.3, 1, 2.5, 3, 6, 20, 40, 90, 300]
    sizes = [*(s for s in steps if s < ends[1]), *ends, np.inf]
    return jnp.array([0.0, *sizes, *(-s for s in sizes)]).astype(dtype)


# At ±∞, where f and f' have limits; all else is as it is at the largest number.
AT_INFINITY = {
    "identity": (-np.inf, 1), "relu": (0, 0), "leaky_relu": (-np.inf, 0.01), "sigmoid": (0, 0),
    "tanh": (-1, 0), "elu": (-1, 0), "celu": (-1, 0), "selu": (-1.7580993, 0), "softplus": (0, 0),
    "silu": (0, 0), "gelu": (0, 0), "gelu_exact": (0, 0), "mish": (0, 0), "softsign": (-1, 0),
    "hard_tanh": (-1, 0), "hard_sigmoid": (0, 0), "relu6": (0, 0), "squareplus": (0, 0),
    "log_sigmoid": (-np.inf, 1),
}  # fmt: skip


@pytest.mark.parametrize("f", HIDDEN, ids=lambda f: f.name)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_right_over_the_whole_range_of_every_dtype(f, dtype):
    with jax.enable_x64(dtype == "float64"), jax.debug_nans(True):
        z = over_the_range(dtype)
        info = jnp.finfo(dtype)
        pair = [f.f(z), f.df(z)]
        assert all(v.shape == z.shape and v.dtype == z.dtype for v in pair)
        values, slopes = (np.asarray(v, np.float64) for v in pair)
        zs = np.asarray(z, np.float64)
        digits = 1e-12 if dtype == "float64" else 1e-6
        floor = max(float(info.tiny), 0 if dtype == "float64" else FLUSHED) * 4
        for at, value, slope in zip(zs, values, slopes, strict=True):
            if np.isinf(at):
                if at < 0:
                    np.testing.assert_allclose((value, slope), AT_INFINITY[f.name], rtol=4e-3)
                continue
            true, true_slope = exact(f.name, at)
            allowed = 4 * digits + float(info.eps)
            out = abs(true) > float(info.max)
            assert out or abs(value - true) <= allowed * abs(true) + floor, (at, value, true)
            if at not in KINKS.get(f.name, []):
                lost = FLOOR.get(f.name, 0) if dtype != "float64" else 1e-15
                error = abs(slope - true_slope)
                assert error <= allowed * abs(true_slope) + lost + floor, (at, slope, true_slope)


@pytest.mark.parametrize("f", [*HIDDEN, jb.softmax], ids=lambda f: f.name)
def test_pickles_and_compares_by_value(f):
    for twin in (pickle.loads(pickle.dumps(f)), copy.deepcopy(f)):
        assert twin == f
        assert hash(twin) == hash(f)


def test_softmax_slope_is_its_jacobian():
    z = jnp.array([0.3, -1.0, 2.0])
    np.testing.assert_allclose(jb.softmax.df(z), jax.jacobian(jax.nn.softmax)(z), atol=1e-7)


@pytest.mark.parametrize("top", [0, 1, 2])
def test_softmax_pulls_without_cancelling(top):
    """What reaches the largest output is as small as the others are, to every digit."""
    z, e = np.roll([15.0, 0, 1], top), np.roll([1.0, 2, 3], top)
    y = np.exp(z) / np.exp(z).sum()
    expected = y * (e - (y * e).sum())
    expected[top] = y[top] * sum(y[j] * (e[top] - e[j]) for j in range(3) if j != top)
    found = jb.softmax.pull(jnp.array(z, jnp.float32), jnp.array(e, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=2e-6)
