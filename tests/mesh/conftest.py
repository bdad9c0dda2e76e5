"""Eight devices, of which a process has to know before its first computation: `make test-mesh`."""

import jax
import pytest

DEVICES = 8


def pytest_collection_modifyitems(items):
    if jax.device_count() < DEVICES:
        reason = f"needs {DEVICES} devices, here is {jax.device_count()}: make test-mesh"
        for item in items:
            if "mesh" in item.path.parent.name:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _optax_promotes():
    """Adam multiplies an integer and a float."""
    with jax.numpy_dtype_promotion("standard"):
        yield
