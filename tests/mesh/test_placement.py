"""Every function of a batch on eight devices: the numbers of one, on Auto and on Explicit meshes,
called bare and compiled, and where the results lie."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jbackprop as jb

DENSE = jb.Network((12, 16, 10), jb.tanh, jb.softmax, jb.cross_entropy)
SPATIAL = jb.Network(
    ((6, 6, 1), jb.Conv(3, 3), jb.MaxPool(2), 10), jb.tanh, jb.softmax, jb.cross_entropy
)
NETS = {"dense": DENSE, "spatial": SPATIAL}
KINDS = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
ADAM, KEY = optax.adam(1e-2), jax.random.key(0)
GROUPS = np.arange(32) // 4
SIGN = jb.Rule("sign", lambda s: (jax.tree.map(jnp.sign, s.w).T @ s.delta) * s.slope)


def pulled(net, params, x):
    y, pull = jb.vjp(net, params, x)
    return y, jb.sum_gradient(pull(y))


def private(factors, params):
    noise = jb.gaussian_noise(1.0, 1.0, 3, KEY)
    return noise.update(jb.clipped_sum(0.1, 30)(factors), noise.init(params))[0]


# of (net, params, x, t, weight, factors, state)
CALLS = {
    "apply": lambda net, p, x, t, w, f, s: jb.apply(net, p, x),
    "backprop": lambda net, p, x, t, w, f, s: jb.backprop(net, p, x, t),
    "backprop, weighted": lambda net, p, x, t, w, f, s: jb.backprop(net, p, x, t, weight=w),
    "a rule": lambda net, p, x, t, w, f, s: jb.mean_gradient(jb.backprop(net, p, x, t, rule=SIGN)),
    "value_and_grad": lambda net, p, x, t, w, f, s: jb.value_and_grad(net, p, x, t),
    "predict": lambda net, p, x, t, w, f, s: jb.predict(net, p, x),
    "mean_cost": lambda net, p, x, t, w, f, s: jb.mean_cost(net, p, x, t, weight=w),
    "vjp": lambda net, p, x, t, w, f, s: pulled(net, p, x),
    "input_gradient": lambda net, p, x, t, w, f, s: jb.input_gradient(net, p, f),
    "clip": lambda net, p, x, t, w, f, s: jb.clip(f, 0.1),
    "clip_layers": lambda net, p, x, t, w, f, s: jb.clip_layers(f, [0.1, 0.2]),
    "scale": lambda net, p, x, t, w, f, s: jb.scale(f, w),
    "clipped_mean": lambda net, p, x, t, w, f, s: jb.clipped_mean(0.1)(f),
    "clipped_sum and noise": lambda net, p, x, t, w, f, s: private(f, p),
    "inner_products": lambda net, p, x, t, w, f, s: jb.inner_products(
        f, jax.tree.map(jnp.ones_like, p)),
    "group_gradients": lambda net, p, x, t, w, f, s: jb.group_gradients(f, GROUPS, 8),
    "group_clip": lambda net, p, x, t, w, f, s: jb.group_clip(f, GROUPS, 8, 0.1),
    "group_squared_norms": lambda net, p, x, t, w, f, s: jb.group_squared_norms(f, GROUPS, 8),
    "units": lambda net, p, x, t, w, f, s: jb.units(net, f),
    "histograms": lambda net, p, x, t, w, f, s: jb.histograms(f, [-1.0, 0, 1], [-1.0, 0, 1]),
    "update_ratio": lambda net, p, x, t, w, f, s: jb.update_ratio(p, p),
    "empirical_ntk": lambda net, p, x, t, w, f, s: jb.empirical_ntk(net, p, x),
    "influence": lambda net, p, x, t, w, f, s: jb.influence(net, p, x, t, x, t, block_size=8),
    "evaluate": lambda net, p, x, t, w, f, s: jb.evaluate(net, p, x, t, weight=w, batch_size=8),
    "train_step": lambda net, p, x, t, w, f, s: jb.train_step(
        net, ADAM, s, x, t, weight=w, gradient=jb.clipped_mean(0.1))[0].params,
    "train_epoch": lambda net, p, x, t, w, f, s: jb.train_epoch(
        net, ADAM, s, x, t, batch_size=12)[0].params,
    "what is observed": lambda net, p, x, t, w, f, s: jb.train_step(
        net, ADAM, s, x, t, observe=jb.observe_all(net))[1].observed,
    **{
        name: lambda net, p, x, t, w, f, s, name=name: getattr(jb, name)(f)
        for name in (
            "squared_norms", "layer_squared_norms", "grand", "el2n", "example_gradients",
            "normalize", "gram", "mean_gradient", "sum_gradient", "variance", "second_moment",
            "signal_to_noise", "norm_test", "inner_product_test", "orthogonality_test",
            "kronecker_factors", "delta_norms", "takeuchi",
        )
    },
}  # fmt: skip
# What is a quotient of a small difference: its rounding on one device is as large. And of a sum of
# 512 ones over 32, one device makes 16.00002.
LOOSE = {"signal_to_noise": 1e-5, "what is observed": 1e-5, "kronecker_factors": 2e-6}


@pytest.fixture(scope="module")
def given():
    """The arguments on one device, by network."""
    found = {}
    for name, net in NETS.items():
        params = jb.init(net, KEY)
        x = jax.random.normal(jax.random.key(1), (32, *net.shapes[0]))
        t, weight = jnp.arange(32) % 10, (jnp.arange(32) % 5).astype(jnp.float32)
        factors = jb.backprop(net, params, x, t, weight=weight)
        state = jb.init_state(net, ADAM, KEY, params=params)
        found[name] = params, x, t, weight, factors, state
    return found


def on(mesh, params, x, t, weight, factors, state):
    put = lambda tree, spec: jax.device_put(tree, NamedSharding(mesh, spec))
    rows = put((x, t, weight, factors), P("data"))
    return (put(params, P()), *rows, put(state, P()))


def numbers(tree):
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def assert_same(found, expected, tolerance):
    for ours, theirs in zip(numbers(found), numbers(expected), strict=True):
        scale = np.max(np.abs(theirs), initial=0, where=np.isfinite(theirs)) or 1
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


@pytest.mark.long(30)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("call", CALLS)
def test_eight_devices_give_the_numbers_of_one(call, net, kind, given):
    mesh = jax.make_mesh((8,), ("data",), (KINDS[kind],))
    of = lambda *arguments: CALLS[call](NETS[net], *arguments)
    spread, expected = on(mesh, *given[net]), of(*given[net])
    for way in (of, jax.jit(of)):
        assert_same(way(*spread), expected, LOOSE.get(call, 1e-6))


@pytest.mark.parametrize(
    ("call", "spec"),
    [("squared_norms", P("data")), ("gram", P("data", None)), ("mean_gradient", P(None, None)),
     ("clip", P("data")), ("variance", P(None, None)), ("predict", P("data", None)),
     ("train_step", P(None, None))],
)  # fmt: skip
def test_rows_lie_as_the_examples_and_sums_everywhere(call, spec, given):
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Explicit,))
    found = CALLS[call](DENSE, *on(mesh, *given["dense"]))
    assert jax.tree.leaves(found)[0].sharding.spec == spec


@pytest.mark.parametrize("net", NETS)
def test_autodiff_goes_through_apply_and_mean_cost(net, given):
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Explicit,))
    params, x, t, weight, *_ = given[net]
    loss = lambda params, x: jnp.sum(jb.apply(NETS[net], params, x) ** 2)
    cost = lambda params, x, t, w: jb.mean_cost(NETS[net], params, x, t, weight=w)
    placed, *rows, _, _ = on(mesh, *given[net])
    found = jax.jit(jax.grad(loss, argnums=(0, 1)))(placed, rows[0])
    assert_same(found, jax.grad(loss, argnums=(0, 1))(params, x), 1e-6)
    assert found[1].sharding.spec[0] == "data"
    assert_same(jax.jit(jax.grad(cost))(placed, *rows), jax.grad(cost)(params, x, t, weight), 1e-6)


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_within_shard_map_a_batch_is_the_devices_own(kind, check_vma, given):
    mesh = jax.make_mesh((8,), ("data",), (KINDS[kind],))
    params, x, t, _, _, _ = given["dense"]

    def local(params, x, t):
        factors = jb.backprop(DENSE, params, x, t)
        return jb.squared_norms(factors), jax.lax.pmean(jb.mean_gradient(factors), "data")

    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("data"), P("data")), out_specs=(P("data"), P()),
        check_vma=check_vma,
    )  # fmt: skip
    factors = jb.backprop(DENSE, params, x, t)
    expected = jb.squared_norms(factors), jb.mean_gradient(factors)
    found = jax.jit(mapped)(*(on(mesh, *given["dense"])[i] for i in (0, 1, 2)))
    assert_same(found, expected, 1e-6)


@pytest.mark.long(20)
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("call", CALLS)
def test_everything_works_within_shard_map(call, net, given):
    """Two devices with the same batch each, and JAX checks what varies over them."""
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    local = lambda *own: jax.tree.map(lambda v: v[None], CALLS[call](NETS[net], *own))
    rows, everywhere = P("data"), P()
    specs = everywhere, rows, rows, rows, rows, everywhere
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=True)
    params, x, t, weight, factors, state = given[net]
    twice = jax.tree.map(lambda v: jnp.concatenate([v, v]), (x, t, weight, factors))
    found = jax.jit(mapped)(params, *twice, state)
    expected = CALLS[call](NETS[net], *given[net])
    for device in range(2):
        assert_same(jax.tree.map(lambda v, i=device: v[i], found), expected, LOOSE.get(call, 1e-6))


def test_bare_mesh_is_an_auto_mesh(given):
    mesh = Mesh(np.array(jax.devices()), ("data",))
    spread = on(mesh, *given["dense"])
    assert_same(CALLS["mean_gradient"](DENSE, *spread), jb.mean_gradient(given["dense"][4]), 1e-6)
