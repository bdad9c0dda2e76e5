"""The empirical tangent kernel against Jacobians written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import HEADS, head_name, problem, temporaries
from materialised import Case, close

import jbackprop as jb

NET = jb.Network((4, 5, 3), jb.gelu)


def jacobian(net, params, x):
    """(N, n_L, P), by autodiff."""
    of_one = jax.jacobian(lambda p, x: jb.forward(net, p, x).a[-1])
    leaves = jax.tree.leaves(jax.vmap(of_one, (None, 0))(params, x))
    rows = [Case.flat([leaf[:, k] for leaf in leaves], len(x)) for k in range(net.shapes[-1][0])]
    return np.stack(rows, 1)


@pytest.mark.long(4)
@pytest.mark.parametrize("pair", HEADS, ids=head_name)
def test_equals_the_product_of_jacobians(pair):
    net = jb.Network((4, 5, 3), jb.tanh, *pair)
    params, x, _ = problem(net)
    j = jacobian(net, params, x)
    close(jb.empirical_ntk(net, params, x), np.einsum("ikp,jkp->ij", j, j))
    close(jb.empirical_ntk(net, params, x, per_output=True), np.einsum("ikp,jkp->kij", j, j))


@pytest.mark.long(1)
@pytest.mark.parametrize("block_size", [1, 2, 4, 5, 100])
def test_blocks_of_any_size_give_the_same(block_size):
    params, x, _ = problem(NET, batch=7)
    other = problem(NET, batch=5, seed=1)[1]
    j, j2 = jacobian(NET, params, x), jacobian(NET, params, other)
    one = jb.empirical_ntk(NET, params, x, other, block_size=block_size)
    close(one, np.einsum("ikp,jkp->ij", j, j2))
    each = jb.empirical_ntk(NET, params, x, other, block_size=block_size, per_output=True)
    close(each, np.einsum("ikp,jkp->kij", j, j2))


def test_is_symmetric_and_positive_semidefinite():
    params, x, _ = problem(NET, batch=12)
    kernel = np.asarray(jb.empirical_ntk(NET, params, x, block_size=5), np.float64)
    np.testing.assert_allclose(kernel, kernel.T, rtol=1e-5)
    assert np.linalg.eigvalsh(kernel).min() > -1e-4 * kernel.max()


def test_memory_is_that_of_a_block():
    net = jb.Network((64, 128, 4))
    params, x, _ = problem(net, batch=512)
    small, large = (
        temporaries(
            jax.jit(lambda p, x, b=block: jb.empirical_ntk(net, p, x, block_size=b))
            .lower(params, x).compile()
        )
        for block in (32, 512)
    )  # fmt: skip
    result = 4 * 512 * 512
    assert small - result < (large - result) / 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p, x: jb.empirical_ntk(NET, p, x, block_size=0), "block_size: expected a whole"),
        (lambda p, x: jb.empirical_ntk(NET, p, x[:, :2]), "x: expected shape"),
        (lambda p, x: jb.empirical_ntk(NET, p, x, x[0]), "x: expected shape"),
        (lambda p, x: jb.empirical_ntk(NET, p[:1], x), "params: expected 2"),
    ],
)
def test_bad_input_is_named(call, message):
    params, x, _ = problem(NET)
    with pytest.raises(ValueError, match=f"^{message}"):
        call(params, jnp.asarray(x))


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4), (3, 5)])
def test_batches_of_another_shape_are_named(shape):
    net = jb.Network((4, 5, 3))
    params, x, _ = problem(net)
    for batches in ((jnp.ones(shape),), (x, jnp.ones(shape))):
        with pytest.raises(ValueError, match=r"^x: expected shape \(B, 4\)"):
            jb.empirical_ntk(net, params, *batches)


def test_float32_stays_float32_where_float64_is_the_default():
    net = jb.Network((4, 5, 3), output=jb.softmax)
    params, x, _ = problem(net)
    expected = jb.empirical_ntk(net, params, x)
    with jax.enable_x64(True):
        found = jb.empirical_ntk(net, params, x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)
