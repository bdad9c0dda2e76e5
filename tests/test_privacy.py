"""The draws of DP-SGD: a Poisson sample at its rate, and noise of its deviation."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jbackprop as jb

KEY = jax.random.key(0)


def test_a_sample_takes_every_example_by_itself_with_its_rate():
    index, weight = jax.vmap(lambda k: jb.poisson_sample(k, 1000, 0.05, 130))(
        jax.random.split(KEY, 4000)
    )
    counts = np.zeros(1000)
    np.add.at(counts, np.asarray(index), np.asarray(weight))
    q, n = 0.05, 4000
    assert abs(counts - q * n).max() < 5 * np.sqrt(n * q * (1 - q))
    sizes = np.asarray(weight).sum(1)
    assert sizes.var() == pytest.approx(1000 * q * (1 - q), rel=0.1)  # binomial, not fixed
    first = index[0][np.asarray(weight[0]) > 0]
    assert len(np.unique(first)) == len(first)


@pytest.mark.parametrize(("rate", "size"), [(0, 0), (1, 40), (1e-10, 0), (2**-33, 0)])
def test_the_ends_of_the_rate(rate, size):
    index, weight = jb.poisson_sample(KEY, 40, rate, 40)
    assert float(weight.sum()) == size
    assert sorted(index.tolist()) == (list(range(40)) if size else [0] * 40)


def test_a_small_rate_is_never_rounded_up():
    """A float32 uniform below 2e-8 comes with probability 2⁻²³, six times too often."""
    n, keys = 10**6, jax.random.split(KEY, 100)
    draws = jax.jit(lambda: jax.lax.map(lambda k: jb.poisson_sample(k, n, 2e-8, 8)[1].sum(), keys))
    assert 0 < float(draws().sum()) <= 6


def test_a_sample_that_does_not_fit_raises_or_is_nan():
    with pytest.raises(ValueError, match=r"capacity: expected at least \d+ rows, .* got 3"):
        jb.poisson_sample(KEY, 400, 0.5, 3)
    _, weight = jax.jit(lambda k: jb.poisson_sample(k, 400, 0.5, 3))(KEY)
    assert jnp.isnan(weight).all()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_noise_has_its_deviation_and_is_drawn_anew(dtype):
    noise: Any = jb.gaussian_noise(2.0, max_norm=3.0, divisor=50, key=KEY)
    zeros = {"w": jnp.zeros(100_000, dtype), "b": jnp.zeros(100_000, dtype)}
    one, state = noise.update(zeros, noise.init(zeros))
    two, _ = jax.jit(noise.update)(zeros, state)
    draws = [one["w"], one["b"], two["w"], two["b"]]
    for draw in draws:
        assert draw.dtype == jnp.float32
        assert float(draw.std()) == pytest.approx(2.0 * 3.0 / 50, rel=0.01)
        assert abs(float(draw.mean())) < 5 * 0.12 / np.sqrt(1e5)
    assert np.abs(np.corrcoef(draws) - np.eye(4)).max() < 5 / np.sqrt(1e5)


def test_noise_far_below_the_root_of_the_least_float_is_still_noise():
    noise: Any = jb.gaussian_noise(1.0, max_norm=1e-30, divisor=1, key=KEY)
    drawn, _ = noise.update(jnp.zeros(1000), noise.init(jnp.zeros(1000)))
    assert float((drawn * 1e20).std()) == pytest.approx(1e-10, rel=0.2)


def test_no_noise_is_the_identity():
    noise: Any = jb.gaussian_noise(0, max_norm=float("inf"), divisor=3, key=KEY)
    assert noise.update(jnp.ones(3), noise.init(jnp.ones(3)))[0].tolist() == [1, 1, 1]


@jax.numpy_dtype_promotion("standard")
def test_a_private_step_is_the_clipped_sum_its_noise_and_gradient_descent():
    net = jb.Network((2, 1))
    params = [(jnp.zeros((1, 2)), jnp.zeros(1))]
    x, t = jnp.zeros((2, 2)), jnp.array([[1.0], [3.0]])
    noise: Any = jb.gaussian_noise(1.0, 2.0, 4, KEY)
    optimizer = optax.chain(noise, optax.sgd(0.5))
    state = jb.init_state(net, optimizer, KEY, params=params)
    drawn, _ = noise.update(state.params, noise.init(state.params))
    step, _ = jb.train_step(net, optimizer, state, x, t, gradient=jb.clipped_sum(2.0, 4))
    expected = -0.5 * (np.asarray(drawn[0].b) + (-1 - 2) / 4)
    np.testing.assert_allclose(step.params[0].b, expected, rtol=1e-5)


@pytest.fixture
def counted(monkeypatch):
    """Bits are 0, 1, 2, …: with a rate of k / 2³² the first k examples are drawn."""
    monkeypatch.setattr(
        jax.random, "bits", lambda key, shape, dtype: jnp.arange(shape[0], dtype=dtype)
    )


@pytest.mark.parametrize("k", [0, 1, 2, 5, 8])
def test_a_sample_is_who_draws_less_than_the_rate(k, counted):
    for rate in (k / 2**32, (k + 0.99) / 2**32):  # which is rounded down
        for draw in (jb.poisson_sample, jax.jit(jb.poisson_sample, static_argnums=(1, 2, 3))):
            index, weight = draw(KEY, 9, rate, 8)  # and as many as there are rows do fit
            assert index.tolist() == [*range(k)] + [0] * (8 - k)
            assert weight.tolist() == [1] * k + [0] * (8 - k)


def test_a_sample_of_everybody(counted):
    assert jb.poisson_sample(KEY, 9, 1, 9)[1].tolist() == [1] * 9
    with jax.enable_x64(True):
        index, weight = jb.poisson_sample(KEY, 9, 1, 9)
        assert (index.dtype, weight.dtype) == (jnp.int32, jnp.float32)


def test_the_noise_of_a_key_stays_what_it_is():
    """A run is repeated to the bit by later versions too."""
    noise: Any = jb.gaussian_noise(2.0, 3.0, 4, KEY)
    gradient = {"b": jnp.ones(3), "w": jnp.zeros((2, 2))}
    key = KEY
    state = noise.init(gradient)
    for _ in range(2):
        key, this = jax.random.split(key)
        noisy, state = noise.update(gradient, state)
        for leaf, k in zip(("b", "w"), jax.random.split(this, 2), strict=True):
            g = gradient[leaf]
            np.testing.assert_array_equal(noisy[leaf], g + 1.5 * jax.random.normal(k, g.shape))


BAD = {
    "a rate of two": (lambda: jb.poisson_sample(KEY, 10, 2, 10), "rate: .* got 2"),
    "a negative rate": (lambda: jb.poisson_sample(KEY, 10, -0.1, 10), "rate: .* got -0.1"),
    "rates": (lambda: jb.poisson_sample(KEY, 10, [0.5], 10), r"rate: .* got \[0.5\]"),
    "a traced rate": (
        lambda: jax.jit(lambda q: jb.poisson_sample(KEY, 10, q, 10))(0.5),
        "rate: expected a number from 0 to 1, got",
    ),
    "a traced multiplier": (
        lambda: jax.jit(lambda s: jb.gaussian_noise(s, 1, 1, KEY).init(0))(0.5),
        "noise_multiplier: expected a finite number of at least 0, got",
    ),
    "no end of noise": (lambda: jb.gaussian_noise(float("inf"), 1, 1, KEY), "noise_mult.* got inf"),
    "a seed for noise": (lambda: jb.gaussian_noise(1, 1, 1, 0), "key: expected a typed key"),
    "rate": (lambda: jb.poisson_sample(KEY, 10, 1.5, 10), "rate: expected a number from 0 to 1"),
    "NaN rate": (lambda: jb.poisson_sample(KEY, 10, float("nan"), 10), "rate: .* got nan"),
    "n": (lambda: jb.poisson_sample(KEY, 0, 0.5, 10), "n: expected a whole number"),
    "capacity": (lambda: jb.poisson_sample(KEY, 10, 0.5, 0), "capacity: expected a whole number"),
    "a seed": (lambda: jb.poisson_sample(0, 10, 0.5, 10), "key: expected a typed key"),
    "multiplier": (lambda: jb.gaussian_noise(-1, 1, 1, KEY), "noise_multiplier: .* got -1"),
    "no bound": (lambda: jb.gaussian_noise(1, float("inf"), 1, KEY), "max_norm: expected a finite"),
    "divisor": (lambda: jb.gaussian_noise(1, 1, 0, KEY), "divisor: expected a finite number above"),
    "vanishing": (lambda: jb.gaussian_noise(1, 1e-30, 1e10, KEY), "max_norm: expected a noise of"),
    "sum's divisor": (lambda: jb.clipped_sum(1.0, 0), "divisor: expected a finite number above 0"),
    "sum's bound": (lambda: jb.clipped_sum(-1.0, 1), "max_norm: expected at least 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
