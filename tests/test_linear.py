"""Linear maps: each function against its definition by loops in float64, and against the others."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jbackprop import Conv, Dense
from jbackprop.core.maps import Map

RNG = np.random.default_rng(0)
# (a map, the shape of its input): 1-D to 3-D; strides that divide and do not; every padding
CASES = {
    "dense": (Dense(3), (5,)),
    "dense of images": (Dense(3), (4, 3, 2)),
    "1-D": (Conv(3, 3), (7, 2)),
    "1-D strided": (Conv(3, 3, stride=2), (8, 2)),
    "1-D as long as the input": (Conv(2, 6), (6, 2)),
    "1-D dilated": (Conv(3, 3, dilation=2, padding=2), (7, 1)),
    "1 x 1": (Conv(4, 1), (3, 5, 2)),
    "1 x 1 strided": (Conv(2, 1, stride=2), (4, 5, 2)),
    "2-D": (Conv(3, 3), (5, 6, 2)),
    "2-D stride 2": (Conv(3, 3, stride=2), (7, 7, 1)),
    "2-D stride 2 that does not divide": (Conv(3, 3, stride=2), (8, 6, 2)),
    "2-D stride 3": (Conv(2, 2, stride=3), (8, 7, 2)),
    "2-D stride by dimension": (Conv(2, (2, 3), stride=(1, 2)), (5, 8, 2)),
    "2-D padded": (Conv(3, 3, padding=1), (4, 5, 2)),
    "2-D padded by pairs": (Conv(3, 3, padding=((0, 2), (1, 0))), (5, 5, 2)),
    "2-D padded beyond the kernel": (Conv(3, 2, padding=3), (3, 4, 2)),
    "2-D padded beyond, strided": (Conv(3, 2, padding=((3, 0), 4), stride=2), (3, 4, 2)),
    "2-D SAME": (Conv(3, 3, padding="SAME"), (5, 4, 2)),
    "2-D SAME stride 2": (Conv(3, 3, padding="SAME", stride=2), (6, 5, 2)),
    "2-D SAME stride 3 even kernel": (Conv(3, 4, padding="same", stride=3), (8, 7, 2)),
    "2-D VALID": (Conv(3, 2, padding="VALID"), (4, 4, 2)),
    "2-D dilated": (Conv(3, 2, dilation=(2, 3)), (6, 7, 2)),
    "2-D dilated, strided, padded": (Conv(2, 3, dilation=2, stride=2, padding=1), (8, 7, 2)),
    "the tanh CNN's first": (Conv(4, 8, stride=2, padding=3), (12, 12, 1)),
    "3-D": (Conv(2, 2), (3, 4, 3, 2)),
    "3-D strided SAME": (Conv(2, 3, stride=2, padding="SAME"), (4, 5, 3, 1)),
}
B = 3


def draw(*shape):
    return RNG.normal(size=shape)


def row(a, place, conv, low):
    """What a window that starts at `place` of the padded input sees, by loops."""
    rank = a.ndim - 1
    each = lambda v: (v,) * rank if isinstance(v, int) else v
    kernel, dilation = each(conv.kernel), each(conv.dilation)
    seen = []
    for at in itertools.product(*map(range, kernel)):
        where = [p - lo + i * d for p, lo, i, d in zip(place, low, at, dilation, strict=True)]
        inside = all(0 <= i < n for i, n in zip(where, a.shape[:-1], strict=True))
        seen.append(a[tuple(where)] if inside else np.zeros(a.shape[-1]))
    return np.concatenate(seen)


def rows_by_definition(linear, a):
    """(T, n_in)."""
    if isinstance(linear, Dense):
        return a.reshape(1, -1)
    rank = a.ndim - 1
    each = lambda v: (v,) * rank if isinstance(v, int) else v
    stride, kernel, dilation = each(linear.stride), each(linear.kernel), each(linear.dilation)
    if linear.padding == "SAME":
        missing = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, s, k, d in zip(a.shape, stride, kernel, dilation, strict=False)
        ]
        pads = [(m // 2, m - m // 2) for m in missing]
    else:
        pads = [(p, p) if isinstance(p, int) else p for p in each(linear.padding)]
    ends = [
        n + lo + hi - (k - 1) * d
        for n, (lo, hi), k, d in zip(a.shape, pads, kernel, dilation, strict=False)
    ]
    places = itertools.product(*[range(0, n, s) for n, s in zip(ends, stride, strict=True)])
    return np.stack([row(a, place, linear, [lo for lo, _ in pads]) for place in places])


@pytest.fixture(params=CASES)
def case(request):
    linear, shape = CASES[request.param]
    with jax.enable_x64(True):
        w, a = draw(*linear.w_shape(shape)), draw(B, *shape)
        delta, c = draw(B, *linear.z_shape(shape)), draw(B)
        yield linear, *map(jnp.asarray, (w, a, delta, c))


@pytest.mark.long(8)
def test_it_is_its_matrix_on_the_rows_that_it_sees(case):
    linear, w, a, delta, c = case
    n = w.shape[0]
    matrix, rows = w.reshape(n, -1), [rows_by_definition(linear, np.asarray(one)) for one in a]
    for one, own in zip(a, rows, strict=True):
        np.testing.assert_allclose(linear.rows(one), own)
        z = linear.apply(w, one)
        assert z.shape == linear.z_shape(one.shape)
        np.testing.assert_allclose(z.reshape(-1, n), own @ matrix.T, atol=1e-12)
    expected = np.einsum("b,btn,btm->nm", c, delta.reshape(B, -1, n), np.stack(rows))
    total = linear.weighted_sum(c, delta, a)
    assert total.shape == w.shape
    np.testing.assert_allclose(total, expected.reshape(w.shape), atol=1e-12)


@pytest.mark.long(13)
def test_its_transpose_is_its_adjoint(case):
    linear, w, a, delta, _ = case
    back = linear.transpose(w, delta[0], a[0].shape)
    (theirs,) = jax.linear_transpose(lambda v: linear.apply(w, v), a[0])(delta[0])
    np.testing.assert_allclose(back, theirs, atol=1e-12)
    forth = linear.apply(w, a[1])
    np.testing.assert_allclose(jnp.vdot(back, a[1]), jnp.vdot(delta[0], forth), atol=1e-11)


@pytest.mark.long(7)
def test_a_convolution_is_the_dense_map_whose_matrix_is_written_out(case):
    linear, w, a, delta, c = case
    shape, z_shape = a.shape[1:], delta.shape[1:]
    basis = jnp.eye(a[0].size).reshape(-1, *shape)
    matrix = jax.vmap(lambda v: linear.apply(w, v).ravel())(basis).T
    dense = Dense(matrix.shape[0])
    np.testing.assert_allclose(linear.apply(w, a[0]).ravel(), dense.apply(matrix, a[0]), atol=1e-12)
    back = linear.transpose(w, delta[0], shape)
    np.testing.assert_allclose(back, dense.transpose(matrix, delta[0].ravel(), shape), atol=1e-12)
    # the matrix's gradient, pulled back to w
    whole = dense.weighted_sum(c, delta.reshape(B, -1), a)
    (pulled,) = jax.linear_transpose(
        lambda w: jax.vmap(lambda v: linear.apply(w, v).ravel())(basis).T, w
    )(whole)
    np.testing.assert_allclose(linear.weighted_sum(c, delta, a), pulled, atol=1e-11)
    assert z_shape == linear.z_shape(shape)


def test_a_translated_input_moves_what_comes_out():
    conv = Conv(3, 3, stride=2)
    w, a = jnp.asarray(draw(3, 3, 3, 2)), jnp.asarray(draw(9, 9, 2))
    moved = jnp.roll(a, 2, axis=0)
    np.testing.assert_allclose(conv.apply(w, moved)[1:], conv.apply(w, a)[:-1], rtol=1e-5)


def test_permuted_channels_permute():
    conv, order = Conv(4, 2), jnp.array([2, 0, 3, 1])
    w, a = jnp.asarray(draw(4, 2, 2, 4)), jnp.asarray(draw(5, 5, 4))
    np.testing.assert_allclose(conv.apply(w[order], a), conv.apply(w, a)[..., order], rtol=1e-6)
    np.testing.assert_allclose(
        conv.apply(w[..., order], a[..., order]), conv.apply(w, a), rtol=1e-4, atol=1e-5
    )


def test_a_kernel_of_one_is_a_dense_map_at_every_position():
    w, a = jnp.asarray(draw(4, 1, 1, 2)), jnp.asarray(draw(3, 5, 2))
    each = jax.vmap(jax.vmap(lambda v: Dense(4).apply(w[:, 0, 0], v)))(a)
    np.testing.assert_allclose(Conv(4, 1).apply(w, a), each, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("linear", [Dense(3), Conv(3, 2)], ids=["dense", "conv"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_small_floats_are_taken_in_float32(linear, dtype):
    shape = (5, 5, 2)
    a, delta = (jnp.asarray(draw(B, *s), dtype) for s in (shape, linear.z_shape(shape)))
    c = jnp.full(B, 300.0)
    total = linear.weighted_sum(c, 300 * jnp.ones_like(delta), jnp.ones_like(a))
    assert total.dtype == jnp.float32
    positions = delta[0].size / 3
    np.testing.assert_allclose(total, 300 * 300 * B * positions, rtol=1e-2)  # no float16
    exact = linear.weighted_sum(c, delta.astype("float32"), a.astype("float32"))
    np.testing.assert_allclose(
        linear.weighted_sum(c, delta, a), exact, rtol=2e-2, atol=2e-2 * float(jnp.abs(exact).max())
    )
    w = jnp.ones(linear.w_shape(shape), dtype)
    assert linear.apply(w, a[0]).dtype == linear.transpose(w, delta[0], shape).dtype == dtype


def test_they_are_maps_equal_by_value():
    for linear, _ in CASES.values():
        assert isinstance(linear, Map)
    assert Conv(3, 3, padding="valid") == Conv(3, 3) == Conv(np.int64(3), kernel=3, padding=0)
    assert Conv(3, [2, 3], padding=[1, (0, 2)]) == Conv(3, (2, 3), padding=((1, 1), (0, 2)))
    assert hash(Conv(3, [2, 3])) == hash(Conv(3, (2, 3)))
    assert Conv(3, 3) != Conv(3, 3, stride=2)
    assert Dense(3) == Dense(np.int32(3)) != Dense(4)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Dense(0), "n: expected a whole number of at least 1, got 0"),
        (lambda: Dense(2.5), "n: expected a whole number of at least 1, got 2.5"),
        (lambda: Conv(0, 3), "n: expected a whole number"),
        (lambda: Conv(3, 0), "kernel: expected a whole number"),
        (lambda: Conv(3, (3, 0)), "kernel: expected a whole number"),
        (lambda: Conv(3, 3, stride=0), "stride: expected a whole number"),
        (lambda: Conv(3, 3, dilation=0.5), "dilation: expected a whole number"),
        (lambda: Conv(3, 3, padding=-1), "padding: expected a number of at least 0, .* got -1"),
        (lambda: Conv(3, 3, padding=(1, (1, -2))), "padding: expected a number of at least 0"),
        (lambda: Conv(3, 3, padding="half"), "padding: .* got 'half'"),
        (lambda: Conv(3, 3, padding=1.5), "padding: .* got 1.5"),
        (lambda: Conv(3, (3, 3)).z_shape((5, 1)), "Conv.*: expected one kernel or 1, .* got 2"),
        (lambda: Conv(3, 3, stride=(1, 2)).z_shape((5, 1)), "Conv.*: expected one stride or 1"),
        (lambda: Conv(3, 3, dilation=(1, 2)).z_shape((5, 1)), "Conv.*: expected one dilation or 1"),
        (lambda: Conv(3, 3, padding=(1, 2)).z_shape((5, 1)), "Conv.*: expected one padding or 1"),
        (lambda: Conv(3, 3).z_shape((5,)), r"Conv.*\(\*positions, channels\).* got \(5,\)"),
        (lambda: Conv(3, 3).z_shape((5, 5, 5, 5, 1)), "Conv.* 1 to 3 dimensions"),
        (lambda: Conv(3, 9).z_shape((5, 5, 1)), r"Conv.*: expected .* \(9, 9\) .* got \(5, 5\)"),
        (lambda: Conv(3, 3, dilation=3).z_shape((6, 1)), r"at least \(7,\) positions"),
    ],
)
def test_what_does_not_fit_is_named(made, said):
    with pytest.raises(ValueError, match=f"{said}"):
        made()
    assert Conv(3, 3, dilation=3).z_shape((7, 1)) == (1, 3)
