"""The comparison that every test leans on can itself fail, in each way that it should."""

import jax.numpy as jnp
import pytest
from helpers import assert_close


def test_accepts_what_is_close():
    assert_close([jnp.array([1.0, 1e3])], [jnp.array([1.001, 1e3])])
    assert_close(jnp.zeros(3), jnp.zeros(3))


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ([jnp.ones(2)], (jnp.ones(2),), "structure"),
        (jnp.ones(2), jnp.ones((2, 1)), "shape"),
        (jnp.ones(2), jnp.ones(2, jnp.bfloat16), "dtype"),
        (jnp.ones(2), jnp.array([1.0, 1.0001]), "error"),
        (jnp.array([1e-9]), jnp.array([2e-9]), "error"),
        (jnp.array([1e-9]), jnp.array([0.0]), "error"),
        (jnp.array([jnp.nan]), jnp.array([1.0]), "error"),
        (jnp.array([1.0]), jnp.array([jnp.nan]), "error"),
    ],
)
def test_rejects(ours, theirs, message):
    with pytest.raises(AssertionError, match=message):
        assert_close(ours, theirs)
