"""Silent promotion is an error in every test: of ranks (a batch by accident) and of dtypes."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _no_silent_promotion():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield
