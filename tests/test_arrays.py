"""Numbers of users, by the functions that read them: what is kept as it is, and what is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbackprop.core import arrays

NATIVE = [np.float16, np.float32, np.float64, np.int8, np.uint64, np.bool_]


@pytest.mark.parametrize("dtype", NATIVE)
def test_an_array_that_jax_reads_is_not_copied(dtype):
    value = np.ones(3, dtype)
    assert arrays.as_numbers("x", value) is value


def test_an_array_of_jax_stays_where_it_is():
    value = jnp.ones(3)
    assert arrays.as_numbers("x", value) is value
    assert arrays.stored("x", value, jnp.float32) is value


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i2", ">u8"])
def test_another_byte_order_becomes_the_machines(dtype):
    found = arrays.as_numbers("x", np.array([1, 2, 3], dtype))
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    assert found.dtype.isnative
    assert found.tolist() == [1, 2, 3]


def test_a_longdouble_becomes_a_double():
    found = arrays.as_numbers("x", np.array([0.5, 2], np.longdouble))
    assert found.dtype == np.float64
    assert found.tolist() == [0.5, 2]


def test_a_list_may_hold_traced_numbers():
    found = jax.jit(lambda v: arrays.as_numbers("x", [v, 2.0]))(1.0)
    assert found.tolist() == [1, 2]
    assert isinstance(arrays.as_numbers("x", [1.0, 2.0]), np.ndarray)


@pytest.mark.parametrize("bad", ["a", [1j], [None], np.array([1], object), object()])
def test_what_is_no_number_is_named(bad):
    with pytest.raises(ValueError, match=r"^x: expected an array of real numbers, got "):
        arrays.as_numbers("x", bad)


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [(np.uint8, np.uint8), (np.int32, np.int32), (np.float16, np.float16), (np.int64, np.float32),
     (np.float64, np.float32), (np.bool_, np.bool_)],
)  # fmt: skip
def test_what_is_stored_keeps_its_dtype_where_jax_has_it(dtype, kept):
    value = np.array([0, 1], dtype)
    found = arrays.stored("x", value, jnp.float32)
    assert found.dtype == kept
    assert (found is value) == (dtype == kept)
    assert found.tolist() == [0, 1]


OUTSIDE = [-1, 3, 2**31, 2**32 + 1]


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_indices_are_looked_at_in_their_own_dtype(dtype):
    given = np.array([0, 1, 2, *(i for i in OUTSIDE if i >= 0 or dtype == np.int64)], dtype)
    found, inside = arrays.as_indices("i", given, 3)
    assert found.dtype == np.int32
    assert found.tolist() == [0, 1, 2] + [-1] * (len(given) - 3)
    assert inside.tolist() == [True] * 3 + [False] * (len(given) - 3)
    alone, known = arrays.as_indices("i", given[2], 3)
    assert (int(alone), bool(known)) == (2, True)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.uint16])
def test_small_indices_are_compared_with_large_limits(dtype):
    found, inside = arrays.as_indices("i", jnp.array([0, 1, 100], dtype), 70_000)
    assert found.dtype == jnp.int32
    assert found.tolist() == [0, 1, 100]
    assert inside.tolist() == [True] * 3
    for limit in (100, 101):
        _, inside = arrays.as_indices("i", jnp.array([0, 100], dtype), limit)
        assert inside.tolist() == [True, limit == 101]


def test_large_indices_of_jax_stay_as_they_are():
    for dtype in (jnp.int32, jnp.uint32):
        value = jnp.array([0, 2, 3], dtype)
        found, inside = arrays.as_indices("i", value, 3)
        assert found is value
        assert inside.tolist() == [True, True, False]
    with jax.enable_x64(True):
        _, inside = arrays.as_indices("i", jnp.array([2**32 + 1, 1, -1]), 3)
        assert inside.tolist() == [False, True, False]


def test_indices_are_whole():
    for bad in (np.ones(2), jnp.ones(2), np.ones(2, bool)):
        with pytest.raises(ValueError, match=r"^i: expected integers, got (float|bool)"):
            arrays.as_indices("i", bad, 3)


@pytest.mark.parametrize("bad", [0, -1, 1.0, "1", None, 0.5])
def test_a_size_is_a_whole_number_of_at_least_1(bad):
    with pytest.raises(ValueError, match=r"^n: expected a whole number of at least 1, got "):
        arrays.check_size("n", bad)
    for good in (1, 2, np.int64(1), np.uint8(1)):
        arrays.check_size("n", good)


@pytest.mark.parametrize("bad", [0, -1.0, np.inf, np.nan, [1.0], np.ones(1), 0.0])
def test_what_must_be_positive_is_one_finite_number_above_0(bad):
    with pytest.raises(ValueError, match=r"^x: expected a finite number above 0, got "):
        arrays.check_positive("x", bad)


def test_what_must_be_positive_must_be_known():
    with pytest.raises(ValueError, match=r"^x: expected a finite number above 0, got "):
        jax.jit(lambda v: arrays.check_positive("x", v))(1.0)
    for good in (1, 1e-30, 0.5, np.float32(2.0), jnp.float32(3.0)):
        assert arrays.check_positive("x", good) == float(good)


def test_a_key_is_one_typed_key():
    arrays.check_key(jax.random.key(0))
    for bad in (0, jnp.zeros(2, jnp.uint32), jax.random.PRNGKey(0), None):
        with pytest.raises(ValueError, match=r"^key: expected a typed key"):
            arrays.check_key(bad)
    with pytest.raises(ValueError, match=r"^key: expected one key of shape \(\), got \(2,\)"):
        arrays.check_key(jax.random.split(jax.random.key(0)))


def test_the_first_bad_row_is_named():
    values = np.array([[1, 2], [3, -4], [-5, 6]])
    with pytest.raises(ValueError, match=r"^x: expected more, got -4 at row 1$"):
        arrays.check_rows("x", "more", values, values > 0)
    arrays.check_rows("x", "more", values, values > -9)
    arrays.check_rows("x", "more", values[:0], values[:0] > 0)


def test_what_a_function_returns_has_the_shape_asked_for_and_its_dtype():
    found = arrays.fitted("f", [1, 2], jnp.zeros(2, jnp.float16))
    assert found.dtype == jnp.float16
    assert found.tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"^f: expected shape \(2,\), got \(1,\)"):
        arrays.fitted("f", [1], jnp.zeros(2))


def test_traced_values_are_not_known():
    seen = []
    jax.jit(lambda v: seen.append(arrays.is_concrete(v)))(1.0)
    assert seen == [False]
    assert arrays.is_concrete(jnp.ones(2))
    assert arrays.is_concrete(1.0)
