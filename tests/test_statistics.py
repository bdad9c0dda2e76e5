"""Numbers about a batch's gradients, against reductions of all gradients written out in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import materialised
import numpy as np
import pytest
from helpers import problem, temporaries
from materialised import CASES, NETS, Case, close

import jbackprop as jb


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    return materialised.case(*request.param)


def test_norms(case):
    close(jb.squared_norms(case.factors), (case.g**2).sum(1))
    by_layer = [(case.g[:, layer] ** 2).sum(1) for layer in case.layers]
    close(jb.layer_squared_norms(case.factors), np.stack(by_layer, 1))


@pytest.mark.long(4)
def test_moments(case):
    close(case.vector(jb.second_moment(case.factors)), case.p @ case.g**2)
    spread = case.p @ (case.g - case.mean) ** 2
    close(case.vector(jb.variance(case.factors)), spread, 1e-5)


def test_products(case):
    close(jb.gram(case.factors), case.g @ case.g.T)
    direction = jax.tree.map(lambda p: p + 0.5, case.params)
    close(jb.inner_products(case.factors, direction), case.g @ case.vector(direction))
    as_lists = [[np.asarray(w), b] for w, b in direction]
    close(jb.inner_products(case.factors, as_lists), case.g @ case.vector(direction))


@pytest.mark.long(2)
def test_gram_across_two_batches(case):
    other = Case(case.net, batch=4, seed=3)
    # the same parameters, or the factors would be of two networks
    factors = jb.backprop(case.net, case.params, other.x, other.t)
    g = case.rows(jb.example_gradients(factors))
    close(jb.gram(case.factors, factors), case.g @ g.T)
    close(jb.gram(factors, case.factors), g @ case.g.T)


def test_gram_is_symmetric_and_positive_semidefinite(case):
    products = np.asarray(jb.gram(case.factors), np.float64)
    np.testing.assert_array_equal(products, products.T)
    assert np.linalg.eigvalsh(products).min() > -1e-5 * products.max()


def test_noise_scale(case):
    ours = jb.noise_scale(case.factors)
    kappa = (case.p**2).sum()
    s, m = case.p @ (case.g**2).sum(1), (case.mean**2).sum()
    trace, squared = (s - m) / (1 - kappa), (m - kappa * s) / (1 - kappa)
    close(ours.trace, trace, 1e-5)
    np.testing.assert_allclose(ours.squared_gradient, squared, atol=1e-5 * m)
    np.testing.assert_allclose(ours.scale, ours.trace / ours.squared_gradient, rtol=1e-6)


def test_noise_scale_without_weights_is_the_sample_covariance():
    case = Case(NETS["softmax"])
    close(jb.noise_scale(case.factors).trace, np.trace(np.cov(case.g.T)), 1e-5)


def test_noise_scale_is_unbiased():
    """Known Σ and G: with w = 0 and C = ½(b - t)², g = -t in b alone, of mean 1 and variance 4."""
    net = jb.Network((1, 1))
    params = (jb.Layer(jnp.zeros((1, 1)), jnp.zeros(1)),)
    weight = jnp.array([1.0, 2.0, 0.5, 0.0, 1.0])

    def one(key):
        t = 1 + 2 * jax.random.normal(key, (5, 1))
        return jb.noise_scale(jb.backprop(net, params, jnp.zeros((5, 1)), t, weight=weight))

    many = jax.vmap(one)(jax.random.split(jax.random.key(0), 40_000))
    for value, truth in ((many.trace, 4.0), (many.squared_gradient, 1.0)):
        error = np.std(value) / np.sqrt(len(value))
        assert abs(np.mean(value) - truth) < 4 * error
    assert (many.squared_gradient < 0).any()


def test_one_example_has_no_spread_and_none_is_zero():
    net = NETS["softmax"]
    params, x, t = problem(net)
    for factors in (
        jb.backprop(net, params, x[:1], t[:1]),
        jb.backprop(net, params, x, t, weight=jnp.array([0.0, 0, 0.3, 0, 0, 0])),
    ):
        assert all(jnp.isnan(v) for v in jb.noise_scale(factors))
        spread, moment = jb.variance(factors)[0].w, jb.second_moment(factors)[0].w
        assert float(spread.max()) <= 1e-6 * float(moment.max())
        assert jnp.isfinite(jb.squared_norms(factors)).all()
    absent = jb.backprop(net, params, x.at[0].set(jnp.nan), t, weight=jnp.zeros(6))
    everything = [
        jb.noise_scale(absent), jb.variance(absent), jb.second_moment(absent), jb.gram(absent),
        jb.squared_norms(absent), jb.kronecker_factors(absent), jb.inner_products(absent, params),
    ]  # fmt: skip
    assert not any(leaf.any() for leaf in jax.tree.leaves(everything))


def test_gradients_of_zero_give_no_nan():
    net = jb.Network((4, 5, 3))
    params, x, _ = problem(net)
    factors = jb.backprop(net, params, x, jb.predict(net, params, x))
    factors = factors._replace(delta=jax.tree.map(jnp.zeros_like, factors.delta))
    values = [jb.noise_scale(factors), jb.variance(factors), jb.normalize(factors).delta,
              jb.clip(factors, 0).delta, jb.norm_test(factors), jb.inner_product_test(factors),
              jb.orthogonality_test(factors), jb.signal_to_noise(factors)]  # fmt: skip
    assert not any(leaf.any() for leaf in jax.tree.leaves(values))


def seen_at(linear, a, positions):
    """Rows (r_p, 1) of one example, asked of the map itself, weight by weight."""
    shape = linear.w_shape(a.shape)
    units = jnp.eye(int(np.prod(shape[1:]))).reshape(-1, 1, *shape[1:])
    of_one = dataclasses.replace(linear, n=1)
    rows = jnp.stack([of_one.apply(unit, a).ravel() for unit in units], axis=1)
    assert len(rows) == positions
    return np.concatenate([np.asarray(rows, np.float64), np.ones((positions, 1))], axis=1)


@pytest.mark.long(9)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("case", [c for c in CASES if c[0] != "a map of one's own"], indirect=True)
def test_kronecker_factors(case, sharing):
    factors, net = case.factors, case.net
    ours = jb.kronecker_factors(factors, sharing=sharing)
    layers = zip(ours, net.maps, factors.tape.a[:-1], factors.delta, strict=True)
    for (a_a, d_d), linear, a, delta in layers:
        delta = np.asarray(delta, np.float64).reshape(6, -1, delta.shape[-1])
        positions = delta.shape[1]
        rows = np.stack([seen_at(linear, one, positions) for one in a])
        if sharing == "reduce":
            rows, delta = rows.mean(1, keepdims=True), delta.sum(1, keepdims=True)
        outer = lambda v: np.einsum("b,bti,btj->ij", case.p, v, v)
        close(a_a, outer(rows))
        close(d_d, outer(delta) / delta.shape[1])


def test_a_nan_row_poisons_what_it_must_and_a_masked_one_nothing():
    net = NETS["softmax"]
    params, x, t = problem(net)
    spoilt = x.at[2].set(jnp.nan)
    factors = jb.backprop(net, params, spoilt, t)
    assert jnp.isnan(jb.squared_norms(factors)).tolist() == [i == 2 for i in range(6)]
    touched = jnp.isnan(jb.gram(factors))
    assert touched.tolist() == [[2 in (i, j) for j in range(6)] for i in range(6)]
    masked = jb.backprop(net, params, spoilt, t, weight=jnp.ones(6).at[2].set(0))
    values = [jb.gram(masked), jb.noise_scale(masked), jb.variance(masked),
              jb.kronecker_factors(masked), jb.clip(masked, 0.1)]  # fmt: skip
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(values))


@pytest.mark.long(7)
@pytest.mark.parametrize(
    "quantity",
    [jb.squared_norms, jb.layer_squared_norms, jb.second_moment, jb.variance, jb.gram,
     jb.noise_scale, jb.kronecker_factors, jb.norm_test, jb.inner_product_test,
     jb.orthogonality_test, jb.signal_to_noise, jb.takeuchi, jb.grand, jb.el2n, jb.delta_norms,
     jb.clipped_mean(1.0), jb.normalize],
    ids=lambda q: getattr(q, "__name__", "clipped"),
)  # fmt: skip
def test_batch_times_parameters_is_never_allocated(quantity):
    """A quarter of one layer's B × P floats would be too much; gram and A need B², n²."""
    net = jb.Network((128, 128, 128), jb.relu)
    params, x, t = problem(net, batch=128)
    step = jax.jit(lambda p, x, t: quantity(jb.backprop(net, p, x, t)))
    assert temporaries(step.lower(params, x, t).compile()) < 128 * 128 * 128


def test_bfloat16_factors_give_numbers_in_float32():
    net = NETS["softmax"]
    params, x, t = problem(net)
    small = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params)
    factors = jb.backprop(net, small, x, t)
    wide = jax.tree.map(lambda v: v.astype(jnp.float32), factors._replace(weight=factors.weight))
    for quantity in (jb.squared_norms, jb.gram, jb.kronecker_factors):
        for a, b in zip(
            jax.tree.leaves(quantity(factors)), jax.tree.leaves(quantity(wide)), strict=True
        ):
            assert a.dtype == jnp.float32
            close(a, b, 1e-2)


def test_under_another_rule_and_with_own_activation_and_cost():
    """The factors are the rule's: Σ δ̃ aᵀ, whatever carried δ̃ back."""
    cube = jb.Activation("cube", lambda z: z**3, lambda z: 3 * z**2)
    quartic = jb.Cost("quartic", lambda y, t: jnp.sum((y - t) ** 4), lambda y, t: 4 * (y - t) ** 3)
    net = jb.Network((4, 5, 3), cube, jb.tanh, quartic)
    params, x, t = problem(net)
    rule = jb.Rule("sign", lambda s: (jnp.sign(s.w).T @ s.delta) * s.slope)
    factors = jb.backprop(net, params, x, t, rule=rule)
    g = Case.flat(jax.tree.leaves(jb.example_gradients(factors)), 6)
    close(jb.squared_norms(factors), (g**2).sum(1))
    close(jb.gram(factors), g @ g.T)
    close(Case.flat(jax.tree.leaves(jb.mean_gradient(jb.clip(factors, 0.5))), 1)[0],
          (g * np.minimum(1, 0.5 / np.linalg.norm(g, axis=1))[:, None]).mean(0))  # fmt: skip


def test_products_across_networks_of_other_sizes_are_refused():
    one, other = (materialised.case(name, "none").factors for name in ("softmax", "deep"))
    with pytest.raises(ValueError, match=r"^other: expected factors of a network with sizes"):
        jb.gram(one, other)
