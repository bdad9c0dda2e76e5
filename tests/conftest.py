"""Silent promotion is an error in every test: of ranks (a batch by accident) and of dtypes.

And float32 is float32: by default a GPU or TPU multiplies with fewer digits than are compared."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _no_silent_promotion():
    with (
        jax.numpy_rank_promotion("raise"),
        jax.numpy_dtype_promotion("strict"),
        jax.default_matmul_precision("highest"),
    ):
        yield


@pytest.fixture(autouse=True, scope="module")
def _a_files_programs_go_with_it():
    """Each holds a few maps of memory, of which Linux gives a process 65,530: without this, it dies
    in the compiler after some two thousand tests."""
    yield
    jax.clear_caches()
