"""check_derivatives: the library's records pass; a wrong one is named, and where it is wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbackprop as jb
from jbackprop.core import derivatives


def _warm(z):
    return jax.nn.softmax(z / 2)


def _pull_warm(z, e):
    return jb.softmax.pull(z / 2, e) / 2


WARM = jb.Activation("warm", _warm, None, _pull_warm)


RECORDS = [v for v in vars(jb).values() if isinstance(v, jb.Activation | jb.Cost)]


@pytest.mark.parametrize(
    "record",
    RECORDS + [jb.elu_of(0.3), jb.leaky_relu_of(-0.2), jb.huber_of(2.5), WARM],
    ids=lambda record: record.name,
)
def test_every_record_of_the_library_is_right(record):
    assert jb.check_derivatives(record) is None


WRONG = {
    "slope": (jb.Activation("a", jnp.tanh, lambda z: 1 - jnp.tanh(z)),
        "activation a: df"),
    "sign": (jb.Activation("a", jnp.sin, lambda z: -jnp.cos(z)),
        "activation a: df"),
    "far out": (
        jb.Activation("a", jnp.tanh, lambda z: jnp.where(z > 6, 0.01, jb.tanh.df(z))),
        "activation a: df"),
    "near 0": (
        jb.Activation("a", jnp.tanh, lambda z: jb.tanh.df(z) + (jnp.abs(z) < 0.1).astype(z.dtype)),
        "activation a: df"),
    "a factor 1.00001": (
        jb.Activation("a", jnp.tanh, lambda z: jb.tanh.df(z) * 1.00001),
        "activation a: df"),
    "nan": (jb.Activation("a", jnp.tanh, lambda z: z * jnp.nan),
        "activation a: df"),
    "of all z": (
        jb.Activation("a", lambda z: z / jnp.linalg.norm(z), jnp.ones_like),
        "activation a: f acts"),
    "softmax hidden": (jb.Activation("a", jax.nn.softmax, jnp.ones_like), "activation a: f acts"),
    "nowhere": (jb.Activation("a", lambda z: z * jnp.nan, jnp.ones_like),
        "activation a: df"),
    "shape": (jb.Activation("a", jnp.sum, jnp.ones_like), "activation a: f"),
    "pull": (
        jb.Activation("a", _warm, None, lambda z, e: 2 * _pull_warm(z, e)), "activation a: pull"),
    "Jacobian": (
        jb.Activation("a", _warm, jb.softmax.df, _pull_warm),
        "activation a: df"),
    "grad": (jb.Cost("c", jb.huber.value, lambda y, t: t - y),
        "cost c: grad"),
    "half": (jb.Cost("c", lambda y, t: jnp.sum((y - t) ** 2), lambda y, t: y - t),
        "cost c: grad"),
    "grad of a mean": (
        jb.Cost("c", lambda y, t: jnp.mean((y - t) ** 2), lambda y, t: 2 * (y - t)),
        "cost c: grad"),
    "grad of a wrong shape": (jb.Cost("c", jb.huber.value, lambda y, t: y[0]),
        "cost c: grad"),
    "value of a wrong shape": (jb.Cost("c", lambda y, t: y, lambda y, t: y), "cost c: value"),
    "labels' sign": (
        jb.Cost("c", jb.cross_entropy.value, lambda y, t: t / y),
        "cost c: grad"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_derivative_is_found_and_named(name):
    record, said = WRONG[name]
    with pytest.raises(ValueError, match=f"^{said}"):
        jb.check_derivatives(record)


def test_check_derivatives_takes_records_only_and_leaves_x64_alone():
    with pytest.raises(ValueError, match=r"^record: expected an Activation or a Cost, got <"):
        jb.check_derivatives([].__len__)
    assert jnp.zeros(1).dtype == jnp.float32


# ---- where it looks, and how closely


def test_it_looks_at_a_few_hundred_points_up_to_50_most_of_them_near_0():
    z = derivatives._points(np.random.default_rng(0))
    ends = np.cumsum([0, 20, 100, 100, 60, 40])
    assert len(z) == ends[-1]
    for size, begin, end in zip([0.1, 1, 4, 12, 50], ends[:-1], ends[1:], strict=True):
        part = z[begin:end] / size
        assert -1 <= part.min() < -0.8
        assert 0.8 < part.max() <= 1


def test_steps_grow_with_what_they_are_taken_from():
    np.testing.assert_allclose(
        derivatives._step(np.array([-50, -0.5, 0, 50])), [5e-4, 1e-5, 1e-5, 5e-4], rtol=1e-12
    )


def at(k):
    return f"at {k}"


@pytest.mark.parametrize(
    ("difference", "expected", "size", "allowed"),
    [(1e-6, 0, 0, True), (1.5e-6, 0, 0, False), (-1.5e-6, 0, 0, False), (9e-4, 1e3, 0, True),
     (9e-4, -1e3, 0, True), (9e-4, 0, 1e3, True), (9e-4, 0, -1e3, True), (1.1e-3, 1e3, 0, False),
     (1.1e-3, 0, 1e3, False), (9e-7, 1e-3, 1e-3, True), (np.nan, 0, 0, False),
     (np.inf, 0, 0, False)],
)  # fmt: skip
def test_differences_are_measured_by_the_largest_of_1_f_and_its_slope(
    difference, expected, size, allowed
):
    expected, size = np.array([1.0, expected]), np.array([1.0, size])
    compare = lambda: derivatives._agree("f", at, expected + [0, difference], expected, size)
    if allowed:
        assert compare()
    else:
        with pytest.raises(ValueError, match=r"^f: expected .* at 1, got "):
            compare()


def test_the_first_difference_is_named():
    with pytest.raises(ValueError, match=r"^f: expected 2 at 1, got 5$"):
        derivatives._agree("f", at, np.array([1.0, 5, 6]), np.array([1.0, 2, 3]), np.ones(3))


@pytest.mark.parametrize("unknown", [np.nan, np.inf])
def test_what_is_no_number_is_not_compared(unknown):
    one, odd = np.array([1.0, 1.0]), np.array([1.0, unknown])
    assert derivatives._agree("f", at, np.array([1.0, 9.0]), odd, one)
    assert derivatives._agree("f", at, np.array([1.0, 9.0]), one, odd)
    assert not derivatives._agree("f", at, one, odd[1:], one[1:])
    assert not derivatives._agree("f", at, one[1:], one[1:], odd[1:])


TURN = np.array(
    [[1.0, 2, 0, 0, 0], [0, 3, 0, 0, 1], [0, 0, 1, 0, 0], [5, 0, 0, 1, 0], [0, 1, 0, 0, 2]]
)


def test_a_pull_is_of_the_jacobian_transposed():
    turned = lambda matrix: lambda z, e: jnp.asarray(matrix) @ e
    of = lambda pull: jb.Activation("a", lambda z: jnp.asarray(TURN) @ z, None, pull)
    assert jb.check_derivatives(of(turned(TURN.T))) is None
    with pytest.raises(ValueError, match=r"^activation a: pull\(z, e\)"):
        jb.check_derivatives(of(turned(TURN)))


@pytest.mark.parametrize("wrong", ["pull", "Jacobian"])
def test_a_pull_and_a_jacobian_are_right_to_a_millionth(wrong):
    pull = lambda z, e: jb.softmax.pull(z, e) + (1.5e-6 if wrong == "pull" else 0)
    jacobian = lambda z: jb.softmax.df(z) + (1.5e-6 if wrong == "Jacobian" else 0)
    with pytest.raises(ValueError, match=r"^activation a: (pull|df)"):
        jb.check_derivatives(jb.Activation("a", jb.softmax.f, jacobian, pull))


def test_a_pull_that_could_not_be_compared_anywhere_is_named():
    nowhere = jb.Activation("a", lambda z: z * jnp.nan, None, lambda z, e: e)
    with pytest.raises(
        ValueError, match=r"^activation a: f\(z\): expected finite numbers somewhere"
    ):
        jb.check_derivatives(nowhere)
    nowhere = jb.Cost("c", lambda y, t: jnp.sum(y) * jnp.nan, lambda y, t: y)
    with pytest.raises(
        ValueError, match=r"^cost c: value\(y, t\): expected finite numbers somewhere"
    ):
        jb.check_derivatives(nowhere)


def test_a_pull_is_tried_up_to_12_with_errors_up_to_1():
    seen = []

    def pull(z, e):
        seen.append((z, e))
        return jb.softmax.pull(z, e)

    jb.check_derivatives(jb.Activation("a", jb.softmax.f, None, pull))
    z, e = (np.array(each).reshape(4, 10, 5) for each in zip(*seen, strict=True))
    for size, of_size in zip([0.1, 1, 4, 12], z, strict=True):
        assert -size <= of_size.min() < -0.8 * size
        assert 0.8 * size < of_size.max() <= size
    assert -1 <= e.min() < -0.9
    assert 0.9 < e.max() <= 1


def test_a_cost_is_tried_on_probabilities_numbers_and_one_hot_targets():
    seen = []

    def grad(y, t):
        seen.append((y, t))
        return y - t

    jb.check_derivatives(jb.Cost("c", jb.squared_error.value, grad))
    assert len(seen) == 20 * 2 * 3
    y, t = (np.array(each).reshape(20, 2, 3, 4) for each in zip(*seen, strict=True))
    for probabilities in (y[:, 0], t[:, :, 0]):
        assert 0.05 <= probabilities.min() < 0.1
        assert 0.9 < probabilities.max() <= 0.95
    for numbers in (y[:, 1], t[:, :, 1]):
        assert numbers.min() < -10
        assert numbers.max() > 10
        assert 0.05 < np.median(np.abs(numbers)) < 2
    assert {*np.unique(t[:, :, 2])} == {0, 1}
    assert (t[:, :, 2].sum(-1) == 1).all()
    assert t[:, :, 2].any(axis=(0, 1)).all()
