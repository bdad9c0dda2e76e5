"""The state of the layers and the panel, against NumPy; inside a compiled epoch as outside it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import assert_close, problem
from materialised import NETS, Case, close

import jbackprop as jb

NET = jb.Network((4, 6, 5, 3), (jb.relu, jb.tanh), jb.softmax, jb.cross_entropy)
WEIGHT = jnp.array([1.0, 0, 2, 1, 0.5, 1])


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_delta_norms():
    case = Case(NETS["deep"], WEIGHT)
    norms = np.stack([np.linalg.norm(np.asarray(d), axis=1) for d in case.factors.delta], 1)
    mean = case.p @ norms
    ours = jb.delta_norms(case.factors)
    close(ours.mean, mean)
    close(ours.deviation, np.sqrt(case.p @ (norms - mean) ** 2), 1e-5)


def test_dead_and_saturated_units():
    params, x, t = problem(NET)
    # two dead units of relu; one tanh that is flat for all, and one for a single example
    one, two, three = params
    one = one._replace(b=one.b.at[:2].set(-100.0))
    two = two._replace(b=two.b.at[0].set(100.0))
    factors = jb.backprop(NET, (one, two, three), x, t, weight=WEIGHT)
    ours = jb.units(NET, factors)
    present = np.asarray(WEIGHT) > 0
    for l, f in enumerate(NET.activations[:-1]):
        flat = np.abs(np.asarray(f.df(factors.tape.z[l])))[present] < 1e-3
        close(ours.dead[l], flat.all(0).mean())
        close(ours.saturated[l], flat.mean())
    assert float(ours.dead[0]) >= 2 / 6
    assert float(ours.dead[1]) == pytest.approx(1 / 5)


def flat_layer(z, df, weight=None):
    """Of one hidden layer with this z and f'."""
    net = jb.Network((1, z.shape[1], 1), jb.Activation("own", lambda z: z, df))
    empty = jnp.zeros((len(z), 1), z.dtype)
    weight = jnp.ones(len(z)) if weight is None else weight
    tape = jb.Tape((z, empty), (empty, z, empty))
    return net, jb.Factors(jnp.zeros(len(z)), tape, (z, empty), empty, weight)


def test_a_unit_is_flat_by_the_size_of_its_slope_below_the_threshold():
    z = jnp.ones((3, 2))
    for slope, flat in ((-1.0, 0), (0.25, 0), (0.2499, 1), (-0.1, 1)):
        found = jb.units(*flat_layer(z, lambda z, s=slope: s * z), threshold=0.25)
        assert [found.dead.tolist(), found.saturated.tolist()] == [[flat], [flat]]
    small = jnp.ones((3, 2), jnp.bfloat16)  # whose 1e-3 is a little less
    assert jb.units(*flat_layer(small, lambda z: 1e-3 * z)).dead.tolist() == [1]
    with jax.enable_x64(True):
        found = jb.units(*flat_layer(z, lambda z: z, jnp.ones(3, jnp.float32)))
        assert (found.dead.dtype, found.saturated.dtype) == (jnp.float32, jnp.float32)


def test_absent_rows_do_not_hide_how_little_the_others_differ():
    rows = jnp.array([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0], [3.0, 4.0 + 2**-20]])
    empty = jnp.zeros((4, 1))
    tape, weight = jb.Tape((rows,), (empty, rows)), jnp.array([1.0, 1, 0, 2])
    factors = jb.Factors(jnp.zeros(4), tape, (rows,), rows, weight)
    expected = 0.8 * 2**-20 * 0.5  # the norms differ by that, half of the weight each
    np.testing.assert_allclose(jb.delta_norms(factors).deviation, [expected], rtol=1e-5)
    same = factors._replace(delta=(rows.at[3].set(rows[0]),))
    assert jb.delta_norms(same).deviation.tolist() == [0]


@pytest.mark.parametrize("size", [2.0**-83, 2.0**83])
def test_a_norm_that_is_the_mean_does_not_hide_the_others(size):
    rows = size * jnp.array([[1.0], [2.0], [3.0]])
    empty = jnp.zeros((3, 1))
    factors = jb.Factors(jnp.zeros(3), jb.Tape((rows,), (empty, rows)), (rows,), rows, jnp.ones(3))
    np.testing.assert_allclose(
        np.float64(jb.delta_norms(factors).deviation), [np.sqrt(2 / 3) * size], rtol=1e-5
    )
    level = factors._replace(delta=(size * (1 + rows / size * 2**-18),))
    np.testing.assert_allclose(
        np.float64(jb.delta_norms(level).deviation), [np.sqrt(2 / 3) * 2**-18 * size], rtol=1e-3
    )


@jax.numpy_dtype_promotion("strict")
def test_histograms_of_small_floats():
    params, x, t = problem(NET, dtype=jnp.bfloat16)
    found = jb.histograms(jb.backprop(NET, params, x, t), [-0.5, 0.5], [0.0])
    assert (found.a.dtype, found.a.sum(1).tolist()) == (jnp.float32, [36, 30, 18])


def test_update_ratio():
    params = (
        jb.Layer(jnp.array([[3.0]]), jnp.array([4.0])),
        jb.Layer(jnp.zeros((1, 1)), jnp.zeros(1)),
    )
    updates = (jb.Layer(jnp.array([[0.0]]), jnp.array([-1.0])), params[1])
    close(jb.update_ratio(params, updates), np.array([0.2, 0.0]))
    assert jb.update_ratio(params, (updates[0], params[0])).tolist()[1] == np.inf
    huge = jax.tree.map(lambda v: 1e25 * v, (params, updates))
    close(jb.update_ratio(*huge), np.array([0.2, 0.0]))


def test_histograms_count_every_unit_of_every_present_example():
    params, x, t = problem(NET)
    factors = jb.backprop(NET, params, x, t, weight=WEIGHT)
    edges = jnp.linspace(-1, 1, 5)
    ours = jb.histograms(factors, edges, edges / 10)
    full = np.concatenate([[-np.inf], edges, [np.inf]])
    for l in range(3):
        a, d = np.asarray(factors.tape.a[l + 1]), np.asarray(factors.delta[l])
        w = np.broadcast_to(np.asarray(WEIGHT)[:, None], a.shape)
        close(ours.a[l], np.histogram(a, full, weights=w)[0])
        full_delta = np.concatenate([[-np.inf], edges / 10, [np.inf]])
        close(ours.delta[l], np.histogram(d, full_delta, weights=w)[0])
        assert float(ours.a[l].sum()) == pytest.approx(float(WEIGHT.sum()) * a.shape[1])


@pytest.mark.long
def test_the_panel_is_what_its_parts_are():
    params, x, t = problem(NET)
    optimizer = optax.sgd(0.1)
    state = jb.init_state(NET, optimizer, jax.random.key(0), params=params)
    factors = jb.backprop(NET, params, x, t, weight=WEIGHT)
    _, info = jb.train_step(NET, optimizer, state, x, t, weight=WEIGHT, observe=jb.observe_all(NET))
    panel, mean = info.observed, jb.mean_gradient(factors)
    updates = jax.tree.map(lambda g: -0.1 * g, mean)
    assert_close(panel.cost, info.cost)
    close(panel.norms, np.sqrt(jb.squared_norms(factors)))
    for ours, theirs in zip(panel.noise, jb.noise_scale(factors), strict=True):
        close(ours, theirs, 1e-5)
    tests = (jb.norm_test, jb.inner_product_test, jb.orthogonality_test)
    for ours, test in zip(panel[3:6], tests, strict=True):
        close(ours, test(factors), 1e-5)
    by_layer = [np.concatenate([np.ravel(layer.w), layer.b]) for layer in mean]
    close(panel.gradient_norm, np.array([np.linalg.norm(v) for v in by_layer]))
    close(panel.variance.sum(), panel.noise.trace, 1e-5)
    assert_close(panel.delta, jb.delta_norms(factors))
    assert_close(panel.units, jb.units(NET, factors))
    close(panel.update_ratio, jb.update_ratio(params, updates))


@pytest.mark.long
def test_every_quantity_is_observed_in_a_compiled_epoch_with_one_trace():
    traces = []

    def f(z):
        traces.append(z.shape)
        return jnp.tanh(z)

    net = jb.Network(
        (4, 5, 3), jb.Activation("counted", f, jb.tanh.df), jb.softmax, jb.cross_entropy
    )
    params, x, t = problem(net, batch=8)

    def everything(factors, state, updates):
        return (
            jb.observe_all(net)(factors, state, updates),
            jb.second_moment(factors), jb.variance(factors), jb.signal_to_noise(factors),
            jb.gram(factors), jb.kronecker_factors(factors), jb.takeuchi(factors),
            jb.inner_products(factors, updates), jb.grand(factors), jb.el2n(factors),
            jb.group_squared_norms(factors, jnp.zeros(4, int), 2),
            jb.histograms(factors, [-1.0, 0.0, 1.0], [-1.0, 0.0, 1.0]),
        )  # fmt: skip

    optimizer = optax.sgd(0.1)
    state = jb.init_state(net, optimizer, jax.random.key(0), params=params)
    for _ in range(3):
        state, info = jb.train_epoch(net, optimizer, state, x, t, batch_size=4, observe=everything)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(info.observed))
    assert len(traces) == 1


def test_a_network_without_hidden_layers_has_a_panel_too():
    net = jb.Network((4, 3))
    params, x, t = problem(net)
    state = jb.init_state(net, optax.sgd(0.1), jax.random.key(0), params=params)
    _, info = jb.train_step(net, optax.sgd(0.1), state, x, t, observe=jb.observe_all(net))
    assert info.observed.units.dead.shape == (0,)


def test_histograms_leave_nan_out_and_refuse_unsorted_edges():
    params, x, t = problem(NET)
    factors = jb.backprop(NET, params, x.at[0].set(jnp.nan), t)
    ours = jb.histograms(factors, [-1.0, 0.0, 1.0], [0.0])
    assert ours.a.shape == (3, 4)
    assert ours.delta.shape == (3, 2)
    close(ours.a.sum(1), np.array([5 * 6, 5 * 5, 5 * 3]))
    close(ours.delta.sum(1), np.array([5 * 6, 5 * 5, 5 * 3]))
    for edges in ([0.0, 0.0], [1.0, 0.0], [0.0, np.nan], [], 3.0):
        with pytest.raises(ValueError, match=r"^a_edges: expected"):
            jb.histograms(factors, edges, [0.0])
    traced = jax.jit(lambda edges: jb.histograms(factors, edges, [0.0]))(jnp.array([1.0, 0.0]))
    assert jnp.isnan(traced.a).all()
    assert not jnp.isnan(traced.delta).any()


def test_shares_count_right_for_a_million_rows():
    """A dead unit of a million examples, and a saturated one but for a single example."""
    n = 1_000_000
    z = jnp.zeros((n, 3)).at[:, 0].set(-1.0).at[:, 1].set(-1.0).at[8, 1].set(1.0).at[:, 2].set(1.0)
    net = jb.Network((1, 3, 1), jb.relu)
    empty = jnp.zeros((n, 1))
    tape = jb.Tape((z, empty), (empty, jb.relu.f(z), empty))
    factors = jb.Factors(jnp.zeros(n), tape, (z, empty), empty, jnp.ones(n))
    found = jb.units(net, factors)
    assert float(found.dead[0]) == pytest.approx(1 / 3)
    assert float(found.saturated[0]) == pytest.approx((2 * n - 1) / (3 * n), rel=1e-7)
    uneven = factors._replace(weight=jnp.arange(n) % 7 * 0.1)
    assert float(jb.units(net, uneven).dead[0]) == pytest.approx(1 / 3)
    assert float(jb.mean_gradient(uneven)[0].b[2]) == pytest.approx(1, rel=1e-6)


def test_the_variance_of_the_panel_is_never_below_0():
    params, x, t = problem(NET)
    same = jnp.repeat(x[:1], 6, axis=0), jnp.repeat(t[:1], 6, axis=0)
    state = jb.init_state(NET, optax.sgd(0.1), jax.random.key(0), params=params)
    _, info = jb.train_step(NET, optax.sgd(0.1), state, *same, observe=jb.observe_all(NET))
    assert info.observed.variance.tolist() == [0, 0, 0]
    assert info.observed.noise.trace == 0
    assert info.observed.delta.deviation.tolist() == [0, 0, 0]
