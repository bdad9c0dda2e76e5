"""Networks from and to other libraries: the same numbers come out, and the same gradients.

Outputs show that every weight stands where it belongs; a gradient, put into a module in the place
of its weights, goes the same way into our order, where it is compared with ours.
"""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false, reportIndexIssue=false
import copy
import functools
import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_close, problem
from maps import Circulant
from test_saved import same

import jbackprop as jb
from jbackprop import convert


def passed(net, params, batch=3, seed=1):
    """x, t, and our outputs and gradient of the sum."""
    rng, dtype = np.random.default_rng(seed), params[0].w.dtype
    x = jnp.asarray(rng.normal(size=(batch, *net.shapes[0])), dtype)
    t = jnp.asarray(rng.normal(size=(batch, *net.shapes[-1])), dtype)

    @jax.jit
    def of(params, x, t):
        factors = jb.backprop(net, params, x, t)
        return factors.tape.a[-1], jb.sum_gradient(factors)

    return x, t, *of(params, x, t)


def first(x):
    """Channels first, a batch."""
    return np.ascontiguousarray(np.moveaxis(np.asarray(x), -1, 1)) if x.ndim > 2 else np.asarray(x)


def compared(ours, theirs, biased):
    """Gradients; a bias that the library has not is left out."""
    for mine, other, b in zip(ours, theirs, biased, strict=True):
        assert_close(mine.w, other.w, 1e-5)
        if b:
            assert_close(mine.b, other.b, 1e-5)


def torch_models():
    from torch import nn

    linear = nn.Linear
    between = [
        nn.Sigmoid(), nn.Tanh(), nn.ReLU(), nn.LeakyReLU(0.2), nn.ELU(0.5), nn.SELU(), nn.CELU(),
        nn.Softplus(), nn.SiLU(), nn.GELU("tanh"), nn.GELU(), nn.Mish(), nn.Softsign(),
        nn.Hardtanh(), nn.Hardtanh(0, 6), nn.Hardsigmoid(), nn.ReLU6(), nn.LogSigmoid(),
    ]  # fmt: skip
    every = [linear(6, 5)]
    for f in between:
        every += [f, linear(5, 5)]
    return {
        "every activation": (every, None),
        "nested": ([nn.Sequential(nn.Flatten(), linear(6, 5)), nn.Identity(),
                    nn.Sequential(nn.Sequential(nn.Tanh(), nn.Dropout(0)), linear(5, 2))], None),
        "no activation, no bias": ([linear(6, 5, bias=False), linear(5, 2, bias=False)], None),
        "its own output": ([linear(6, 5), nn.ReLU(), linear(5, 3), nn.Softmax(-1)], None),
        "images, flattened": ([nn.Flatten(), linear(24, 3)], (4, 3, 2)),
        "1-D": ([nn.Conv1d(2, 4, 3, stride=2, padding=1), nn.Tanh(), nn.MaxPool1d(2),
                 nn.Flatten(), linear(12, 3)], (11, 2)),
        "2-D": ([nn.Conv2d(2, 4, (3, 2), padding=(1, 0), dilation=(1, 2), bias=False), nn.ReLU(),
                 nn.MaxPool2d((3, 2), stride=(2, 1), padding=1), nn.Conv2d(4, 3, 3, stride=2),
                 nn.Tanh(), nn.Flatten(), linear(18, 5), nn.ReLU(), linear(5, 2)], (9, 8, 2)),
        "3-D": ([nn.Conv3d(2, 3, 2), nn.Tanh(), nn.AvgPool3d(2, stride=1), nn.Flatten(),
                 linear(24, 2)], (4, 4, 4, 2)),
        "padding by name": ([nn.Conv2d(2, 3, (3, 4), padding="same"), nn.Tanh(),
                             nn.Conv2d(3, 2, 3, padding="valid"), nn.Flatten()], (3, 3, 2)),
        "modules that pad": ([nn.ZeroPad2d((1, 0, 2, 1)), nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(),
                              nn.ConstantPad2d((0, 1, 1, 0), -np.inf), nn.MaxPool2d(2),
                              nn.Flatten(), linear(48, 2)], (5, 6, 2)),
        "a maximum first": ([nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(4, 4, 2),
                             nn.MaxPool2d(2, stride=1), nn.LeakyReLU(0.3), nn.Flatten(),
                             linear(4, 2)], (8, 8, 2)),
        "a mean at the end": ([nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 2),
                               nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Sigmoid()], (6, 5, 2)),
        "a maximum at the end": ([nn.Conv2d(2, 4, 3), nn.AdaptiveMaxPool2d((2, None)), nn.Tanh(),
                                  nn.Conv2d(4, 3, 2), nn.Flatten()], (6, 4, 2)),
        "a mean, then a map": ([nn.Conv2d(2, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d((1, 1)),
                                nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Flatten(), linear(5, 2)],
                               (6, 4, 2)),
        "a mean, then a matrix": ([nn.Conv1d(2, 4, 3), nn.Tanh(), nn.AvgPool1d(4), nn.Flatten(),
                                   linear(4, 2)], (6, 2)),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same':UserWarning")
@pytest.mark.parametrize("name", [
    "every activation", "nested", "no activation, no bias", "its own output", "images, flattened",
    "1-D", "2-D", "3-D", "padding by name", "modules that pad", "a maximum first",
    "a mean at the end", "a maximum at the end", "a mean, then a map", "a mean, then a matrix",
])  # fmt: skip
def test_torch_gives_the_same(name):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    layers, shape = torch_models()[name]
    module = torch.nn.Sequential(*layers)
    net, params = convert.from_torch(module, shape)
    x, t, y, gradient = passed(net, params)
    theirs = module(torch.tensor(first(x)))
    assert_close(y, theirs.detach().numpy(), 1e-5)
    (0.5 * ((theirs - torch.tensor(np.asarray(t))) ** 2).sum()).backward()
    biased = [
        getattr(m, "bias", None) is not None for m in module.modules() if hasattr(m, "weight")
    ]
    of_gradient = copy.deepcopy(module)
    for p, q in zip(of_gradient.parameters(), module.parameters(), strict=True):
        p.data = q.grad
    compared(gradient, convert.from_torch(of_gradient, shape)[1], biased)
    for p in module.parameters():  # what was given away is a copy
        p.data.zero_()
    assert all(np.asarray(layer.w).any() for layer in params)


NETS = {
    "dense": jb.Network((4, 5, 3), jb.tanh, jb.softmax, jb.cross_entropy),
    "linear": jb.Network((4, 3)),
    "several": jb.Network((4, 5, 6, 7, 3), (jb.relu, jb.gelu_exact, jb.identity), jb.sigmoid,
                          jb.binary_cross_entropy),
    "constants": jb.Network((4, 5, 3), jb.leaky_relu_of(0.2), jb.elu_of(0.5), jb.huber_of(2.0)),
    "2-D": jb.Network(
        ((9, 8, 2), jb.Conv(3, (3, 2), stride=2, padding=((1, 0), (1, 1)), dilation=(1, 2)),
         jb.MaxPool(2, stride=1), jb.Conv(4, 2, padding=1), jb.MeanPool(2), 3),
        jb.silu, jb.softmax, jb.cross_entropy),
    "1-D": jb.Network(((9, 2), jb.Conv(3, 3, padding="SAME"), jb.MaxPool(3, stride=1, padding=1),
                       jb.Conv(2, 3), jb.MeanPool()), jb.relu, jb.tanh),
    "3-D": jb.Network(((5, 4, 4, 1), jb.Conv(2, 2), jb.MaxPool(2, stride=1), 3), jb.gelu),
    "flattened": jb.Network(((4, 3, 2), 5, 3), jb.mish),
}  # fmt: skip
# "SAME" comes back as numbers, where a library's layer has no such word
TOLD = {
    "stride": jb.Network(((8, 6, 2), jb.Conv(3, (4, 3), stride=2, padding="SAME"), 2)),
    "maximum": jb.Network(((8, 6, 2), jb.Conv(3, 3), jb.MaxPool(2, padding="SAME"), 2)),
    "half": jb.Network(((9, 2), jb.Conv(3, 3), jb.MaxPool(3, padding=2), 2)),
}


def torch_there(net, params):
    module = convert.to_torch(net, params)
    import torch

    def predicted(x):
        numbers = first(x)
        if numbers.dtype == jnp.bfloat16:
            return module(torch.tensor(numbers.astype(np.float32)).bfloat16()).float()
        return module(torch.tensor(numbers))

    back = lambda: convert.from_torch(
        module, net.shapes[0] if not net.flat else None, cost=net.cost
    )
    return lambda x: predicted(x).detach().numpy(), back


def equinox_there(net, params):
    module = convert.to_equinox(net, params)
    back = lambda: convert.from_equinox(module, net.shapes[0], cost=net.cost)
    return lambda x: jax.jit(lambda x: jax.vmap(module)(x))(first(x)), back


def flax_there(net, params):
    module = convert.to_flax(net, params)
    back = lambda: convert.from_flax(module, net.shapes[0], cost=net.cost)
    return jax.jit(lambda x: module(x)), back


def linen_there(net, params):
    module, variables = convert.to_linen(net, params)
    back = lambda: convert.from_flax(module, net.shapes[0], params=variables, cost=net.cost)
    return jax.jit(functools.partial(module.apply, variables)), back


THERE = {
    "torch": torch_there,
    "equinox": equinox_there,
    "flax": flax_there,
    "linen": linen_there,
}


@functools.cache
def predicted(net, dtype):
    """Once for all libraries."""
    params, x, _ = problem(net, batch=2, dtype=jnp.dtype(dtype))
    return params, x, jax.jit(functools.partial(jb.predict, net))(params, x)


def there_and_back(library, net, dtype):
    """What the module predicts is what the network predicts; and the network read from it."""
    pytest.importorskip({"linen": "flax"}.get(library, library))
    params, x, y = predicted(net, dtype)
    predict, back = THERE[library](net, params)
    # Flax divides a mean by a whole number, which promotes
    with warnings.catch_warnings(), jax.numpy_dtype_promotion("standard"):
        warnings.filterwarnings("ignore", "Using padding='same'")
        theirs = jnp.asarray(np.asarray(predict(x), np.float64 if dtype == "float64" else None))
    y = jb.predict(net, params, x)
    assert_close(
        y.astype(theirs.dtype), theirs, {"float64": 1e-12, "float32": 1e-5}.get(dtype, 0.05)
    )
    return params, back()


@pytest.mark.parametrize("library", THERE)
@pytest.mark.parametrize("name", NETS)
def test_there_and_back(library, name):
    params, found = there_and_back(library, NETS[name], "float32")
    same(NETS[name], params, found)


@pytest.mark.parametrize("library", THERE)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_every_dtype_there_and_back(library, dtype):
    with jax.enable_x64(dtype == "float64"):
        params, found = there_and_back(library, NETS["dense"], dtype)
        same(NETS["dense"], params, found)


@pytest.mark.parametrize("library", THERE)
@pytest.mark.parametrize("name", TOLD)
def test_words_become_numbers_where_they_must(library, name):
    net = TOLD[name]
    params, (other, read) = there_and_back(library, net, "float32")
    assert np.array_equal(
        *(
            jax.jit(functools.partial(jb.predict, n))(p, predicted(net, "float32")[1])
            for n, p in ((other, read), (net, params))
        )
    )
    for mine, theirs in zip(params, read, strict=True):
        assert np.asarray(mine.w).tobytes() == np.asarray(theirs.w).tobytes()


def equinox_models(keys):
    from equinox import nn

    linear = lambda i, o, **options: nn.Linear(i, o, key=next(keys), **options)
    conv = lambda *sizes, **options: nn.Conv2d(*sizes, key=next(keys), **options)
    f = nn.Lambda
    return {
        "mlp": (nn.MLP(4, 3, 5, 2, activation=jnp.tanh, key=next(keys)), None),
        "mlp, scanned": (nn.MLP(4, 3, 5, 3, jax.nn.gelu, jax.nn.sigmoid, use_bias=False,
                                use_final_bias=False, scan=True, key=next(keys)), None),
        "mlp, one map": (nn.MLP(4, 3, 5, 0, key=next(keys)), None),
        "functions": (nn.Sequential([
            linear(4, 5), f(jax.nn.leaky_relu), linear(5, 5, use_bias=False), nn.Identity(),
            f(functools.partial(jax.nn.elu, alpha=0.5)), nn.Dropout(0.0), linear(5, 5),
            f(lambda z: jnp.sin(z) + z), nn.Sequential([linear(5, 5), f(lambda z: z)]),
            f(jnp.ravel),
            linear(5, 5), f(functools.partial(jax.nn.gelu, approximate=False)), linear(5, 2),
            f(jax.nn.softmax)]), None),
        "2-D": (nn.Sequential([
            conv(2, 4, 3, padding="SAME", stride=2), f(jax.nn.relu), nn.MaxPool2d(2, 1, 1),
            conv(4, 3, (2, 3), padding=((1, 0), (0, 2)), dilation=(1, 2), use_bias=False),
            nn.MaxPool2d((2, 3), (1, 2)), f(jnp.tanh), f(lambda x: x.reshape(-1)),
            linear(12, 2)]), (7, 8, 2)),
        "1-D, a mean": (nn.Sequential([
            nn.Conv1d(2, 4, 3, key=next(keys)), f(jax.nn.silu), nn.AvgPool1d(2, 2),
            nn.Conv1d(4, 3, 2, key=next(keys)), f(lambda x: x.mean(1))]), (8, 2)),
        "3-D": (nn.Sequential([
            nn.Conv3d(1, 3, 2, key=next(keys)), f(jax.nn.sigmoid), nn.AdaptiveMaxPool3d((1, 2, 1)),
            f(jnp.ravel), linear(6, 2)]), (4, 5, 3, 1)),
    }  # fmt: skip


def keys():
    return iter(jax.random.split(jax.random.key(0), 99))


@pytest.mark.parametrize("name", [
    "mlp", "mlp, scanned", "mlp, one map", "functions", "2-D", "1-D, a mean", "3-D",
])  # fmt: skip
def test_equinox_gives_the_same(name):
    eqx = pytest.importorskip("equinox")
    module, shape = equinox_models(keys())[name]
    net, params = convert.from_equinox(module, shape)
    x, t, y, gradient = passed(net, params)

    @eqx.filter_jit
    @functools.partial(eqx.filter_grad, has_aux=True)
    def slope(module):
        y = jax.vmap(module)(jnp.asarray(first(x)))
        return ((y - t) ** 2).sum() / 2, y

    of_gradient, theirs = slope(module)
    assert_close(y, theirs, 1e-5)
    of_gradient = eqx.combine(of_gradient, eqx.filter(module, eqx.is_array, inverse=True))
    is_map = lambda m: hasattr(m, "weight")
    maps = [m for m in jax.tree.leaves(module, is_leaf=is_map) if is_map(m)]
    biased = [m.bias is not None for m in maps]
    if name == "mlp, scanned":
        biased = [False] * 4
    compared(gradient, convert.from_equinox(of_gradient, shape)[1], biased)


def nnx_models(rngs):
    from flax import nnx

    linear = lambda i, o, **options: nnx.Linear(i, o, rngs=rngs, **options)
    conv = lambda *sizes, **options: nnx.Conv(*sizes, rngs=rngs, **options)
    flat = lambda x: x.reshape(len(x), -1)
    return {
        "dense": (nnx.Sequential(
            linear(4, 5), nnx.relu, linear(5, 5, use_bias=False), nnx.tanh, linear(5, 5),
            nnx.Dropout(0.0), nnx.Sequential(functools.partial(nnx.leaky_relu, negative_slope=0.2),
                                             linear(5, 5)),
            lambda z: z * nnx.sigmoid(2 * z), linear(5, 2),
            functools.partial(nnx.softmax, axis=-1)), None),
        "2-D": (nnx.Sequential(
            conv(2, 4, (3, 3), strides=2), nnx.relu,
            lambda x: nnx.max_pool(x, (2, 2), (1, 1), "SAME"),
            conv(4, 3, (2, 3), padding=((1, 0), (0, 2)), kernel_dilation=(1, 2), use_bias=False),
            functools.partial(nnx.max_pool, window_shape=(2, 2)), lambda x: x, nnx.tanh, flat,
            linear(9, 2)), (7, 8, 2)),
        "1-D, a mean": (nnx.Sequential(
            conv(2, 4, 3, padding=1), nnx.silu,
            lambda x: nnx.avg_pool(x, (2,), (2,), count_include_pad=False),
            conv(4, 3, (2,), padding="VALID"), functools.partial(jnp.mean, axis=1)), (8, 2)),
        "3-D": (nnx.Sequential(
            conv(1, 3, (2, 2, 2), padding=[1, 0, (0, 1)]), nnx.sigmoid,
            lambda x: flat(nnx.max_pool(x, (2, 2, 2))), linear(24, 2)), (4, 3, 3, 1)),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["dense", "2-D", "1-D, a mean", "3-D"])
def test_flax_gives_the_same(name):
    nnx = pytest.importorskip("flax.nnx")
    module, shape = nnx_models(nnx.Rngs(0))[name]
    for layer in _biased(module):
        if layer.bias is not None:
            layer.bias[...] = jnp.linspace(-1, 1, layer.bias[...].size)
    net, params = convert.from_flax(module, shape)
    x, t, y, gradient = passed(net, params)
    graph, state, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def slope(state):
        y = nnx.merge(graph, state, rest)(x)
        return ((y - t) ** 2).sum() / 2, y

    with jax.numpy_dtype_promotion("standard"):
        of_gradient, theirs = slope(state)
    assert_close(y, theirs, 1e-5)
    found = convert.from_flax(nnx.merge(graph, of_gradient, rest), shape)[1]
    compared(gradient, found, [layer.bias is not None for layer in _biased(module)])


def _biased(module):
    from flax import nnx

    return [m for _, m in sorted(nnx.iter_modules(module), key=lambda pair: pair[0])
            if isinstance(m, nnx.Linear | nnx.Conv)]  # fmt: skip


def test_linen_gives_the_same():
    nn = pytest.importorskip("flax.linen")
    module = nn.Sequential([
        nn.Conv(4, (3, 3), strides=2), nn.relu, lambda x: nn.max_pool(x, (2, 2)),
        nn.Sequential([nn.Conv(3, (2, 2), padding="VALID", use_bias=False), nn.tanh]),
        lambda x: x.reshape(len(x), -1), nn.Dense(3),
    ])  # fmt: skip
    shape = (7, 8, 2)
    variables = module.init(jax.random.key(0), jnp.ones((1, *shape)))
    net, params = convert.from_flax(module, shape, params=variables)
    x, t, y, gradient = passed(net, params)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def slope(variables):
        y = module.apply(variables, x)
        return ((y - t) ** 2).sum() / 2, y

    of_gradient, theirs = slope(variables)
    assert_close(y, theirs, 1e-5)
    found = convert.from_flax(module, shape, params=of_gradient["params"])[1]
    compared(gradient, found, [True, False, True])


def fitted(kind, out, dtype=np.float32):
    """An estimator after one step of plain descent, what it learns from, and a step more."""
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 4)).astype(dtype)
    t, classes = {
        "softmax": (np.arange(30) % 3, [0, 1, 2]),
        "logistic": (np.arange(30) % 2, [0, 1]),
        "labels": ((rng.random((30, 3)) < 0.5).astype(int), [0, 1, 2]),
        "identity": (x[:, :2] ** 2, None),
        "one": (x[:, 0] ** 2, None),
    }[out]
    made = MLPClassifier if classes else MLPRegressor
    estimator = made(
        hidden_layer_sizes=(5, 6), activation=kind, alpha=0, random_state=0, solver="sgd",
        momentum=0, nesterovs_momentum=False, batch_size=30, learning_rate_init=1.0,
    )  # fmt: skip
    step = lambda **more: estimator.partial_fit(x, t, **more)
    step(**({"classes": classes} if classes else {}))
    return estimator, x, t, step


@pytest.mark.parametrize(("kind", "out"), [
    ("relu", "softmax"), ("tanh", "logistic"), ("logistic", "labels"), ("identity", "identity"),
    ("relu", "one"),
])  # fmt: skip
def test_sklearn_gives_the_same(kind, out):
    pytest.importorskip("sklearn")
    estimator, x, t, step = fitted(kind, out)
    net, params = convert.from_sklearn(estimator)
    y = np.asarray(jb.predict(net, params, x))
    theirs = getattr(estimator, "predict_proba", estimator.predict)(x).reshape(len(x), -1)
    theirs = theirs[:, 1:] if out == "logistic" else theirs
    np.testing.assert_allclose(y, theirs, rtol=1e-5, atol=1e-6)
    t = t.reshape(len(x), -1) if out != "softmax" else t
    _, gradient = jb.value_and_grad(net, params, x, t)
    step()  # by the mean gradient, at a rate of 1
    after = convert.from_sklearn(estimator)[1]
    moved = jax.tree.map(lambda before, after: before - after, params, after)
    compared(gradient, moved, [True] * 3)


@pytest.mark.parametrize(("kind", "out"), [
    ("relu", "softmax"), ("tanh", "logistic"), ("logistic", "labels"), ("identity", "identity"),
    ("tanh", "one"),
])  # fmt: skip
def test_sklearn_there_and_back(kind, out):
    pytest.importorskip("sklearn")
    estimator, x, _, _ = fitted(kind, out)
    net, params = convert.from_sklearn(estimator)
    made = convert.to_sklearn(net, params)
    assert (made.predict(x) == estimator.predict(x)).all()
    if hasattr(estimator, "predict_proba"):
        assert (made.predict_proba(x) == estimator.predict_proba(x)).all()
    same(net, params, convert.from_sklearn(made))


def test_sklearn_of_two_classes_by_softmax():
    pytest.importorskip("sklearn")
    net = jb.Network((4, 3, 2), jb.relu, jb.softmax, jb.cross_entropy)
    params, x, _ = problem(net)
    made = convert.to_sklearn(net, params)
    y = np.asarray(jb.predict(net, params, x))
    np.testing.assert_allclose(made.predict_proba(np.asarray(x)), y, rtol=1e-5)
    assert (made.predict(np.asarray(x)) == y.argmax(1)).all()


def test_a_state_dict_has_names_and_shapes():
    torch = pytest.importorskip("torch")
    net = NETS["2-D"]
    params, _, _ = problem(net)
    state = convert.to_torch(net, params).state_dict()
    same(net, params, (net, convert.load_torch(net, state)))
    half = {name: v.bfloat16() for name, v in state.items()}
    assert convert.load_torch(net, half)[0].w.dtype == jnp.bfloat16
    names = [*state]
    without = {n: v for n, v in state.items() if n != names[1]}
    assert not convert.load_torch(net, without)[0].b.any()
    for broken, told in [
        ({n: v for n, v in state.items() if n not in names[:2]}, "weights of 3 layers .* got 2"),
        (
            {**state, "1.running_mean": torch.zeros(3)},
            "called weight and bias, got '1.running_mean'",
        ),
        ({**state, "9.weight": torch.zeros(3, 3)}, "weights of 3 layers .* got 4"),
        ({**state, names[2]: torch.zeros(4, 3, 3, 3)}, r"weight of shape \(4, 3, 2, 2\), got"),
        ({**state, names[-1]: torch.zeros(4)}, r"bias of shape \(3,\), got \(4,\)"),
        ({n: v for n, v in state.items() if n != names[0]}, "expected a weight with the bias"),
        ({**state, names[0]: state[names[0]].int()}, "a floating dtype, got int32"),
        ({**state, names[0]: state[names[0]].double()}, "float64, which needs 64-bit mode"),
    ]:
        with pytest.raises(ValueError, match=f"^state_dict: .*{told}"):
            convert.load_torch(net, broken)
    with pytest.raises(ValueError, match=r"^state_dict: expected module.state_dict\(\), got list"):
        convert.load_torch(net, [])
    with pytest.raises(ValueError, match=r"^net: layer 1: .*your own"):
        convert.load_torch(jb.Network((8, Circulant())), {"w.weight": np.ones((8, 8))})


def refused(module, told, shape=None, **options):
    kind = "flax" if type(module).__module__.startswith("flax") else "equinox"
    kind = "torch" if hasattr(module, "state_dict") else kind
    with pytest.raises(ValueError, match=told):
        getattr(convert, f"from_{kind}")(module, shape, **options)


@pytest.mark.filterwarnings("ignore")  # PyTorch's, of what is refused
def test_what_torch_has_and_we_have_not():
    torch = pytest.importorskip("torch")
    from torch import nn

    def refuse(layer, told, shape=(8, 8, 2), **options):
        layers = [nn.Conv2d(2, 4, 3, padding=1), layer, nn.Flatten(), nn.Linear(256, 2)]
        refused(nn.Sequential(*layers), rf"^module: layer 1 \({type(layer).__name__}\): .*{told}",
                shape, **options)  # fmt: skip

    class Branch(nn.Module):
        def forward(self, x):
            return x + x

    hooked = nn.Tanh()
    hooked.register_forward_hook(lambda *_: None)
    for layer, told in [
        (nn.BatchNorm2d(4), "mixes the examples"),
        (nn.GroupNorm(2, 4), "normalisation"),
        (nn.LayerNorm(8), "normalisation"),
        (nn.Dropout(0.5), "no dropout yet"),
        (nn.Dropout2d(0.5), "no dropout yet"),
        (nn.AlphaDropout(0.5), "no dropout yet"),
        (nn.Conv2d(4, 4, 3, groups=2), "groups=1"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "padding_mode='zeros'"),
        (nn.ConvTranspose2d(4, 4, 3), "transposed"),
        (nn.LazyConv2d(4, 3), "no weights yet"),
        (nn.MaxPool2d(2, ceil_mode=True), "ceil_mode"),
        (nn.MaxPool2d(2, dilation=2), "dilation"),
        (nn.MaxPool2d(2, return_indices=True), "return_indices"),
        (nn.AdaptiveMaxPool2d(1, return_indices=True), "return_indices"),
        (nn.AdaptiveAvgPool2d(3), "several sizes"),
        (nn.AvgPool2d(2, padding=1), "a mean without padding"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override"),
        (nn.LPPool2d(2, 2), "largest or the mean"),
        (nn.MaxPool1d(2), "positions"),
        (nn.LSTM(4, 4), "recurrence"),
        (nn.MultiheadAttention(4, 2), "attention"),
        (nn.Embedding(4, 4), "indices"),
        (nn.PReLU(), "a parameter"),
        (nn.RReLU(), "random"),
        (nn.Hardswish(), "no counterpart"),
        (nn.LogSoftmax(-1), "output=softmax"),
        (nn.Softmax(0), "dim=-1"),
        (nn.Softmax(-1), "of a flat output"),
        (nn.Flatten(0), "all axes but the first"),
        (nn.Flatten(1, 2), "all axes but the first"),
        (nn.Unflatten(1, (2, 2)), "channels last"),
        (nn.CELU(2.0), "alpha=1.0, got 2.0"),
        (nn.Softplus(2.0), "beta=1.0, got 2.0"),
        (nn.Softplus(threshold=2.0), "at least 20, got 2.0"),
        (nn.Hardtanh(-2, 2), "limits"),
        (nn.ZeroPad2d(-1), "at least 0"),
        (nn.ZeroPad2d(1), "before Flatten"),
        (nn.ReflectionPad2d(1), "in a chain"),
        (nn.Linear(8, 4), "a flattening before it"),
        (nn.Conv2d(3, 4, 3), "do not fit"),
        (nn.Conv2d(4, 4, 9), "at least"),
        (nn.ModuleList([nn.Tanh()]), "in a chain"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3)), "parametrization"),
        (Branch(), "in a chain"),
        (hooked, "hooks"),
    ]:
        refuse(layer, told)

    conv, linear = (lambda: nn.Conv2d(2, 4, 3)), nn.Linear(4, 4)
    for layers, told in [
        ([conv(), nn.Tanh(), nn.ReLU(), nn.Flatten()], r"layer 2 \(ReLU\): .*one activation"),
        ([conv(), nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Flatten()], "layer 2 .*one pooling"),
        ([conv(), nn.AvgPool2d(2), nn.ReLU(), nn.Conv2d(4, 4, 3)], "layer 1 .*change places"),
        ([conv(), nn.MaxPool2d(2), nn.GELU(), nn.Conv2d(4, 4, 3)], "layer 1 .*change places"),
        ([conv(), nn.MaxPool2d(2), nn.LeakyReLU(-1.0), nn.Conv2d(4, 4, 3)], "cannot change places"),
        ([conv(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()], "layer 2 .*cannot change"),
        ([nn.MaxPool2d(2), conv()], r"layer 0 \(MaxPool2d\): .*a linear map before it"),
        ([nn.Tanh(), conv()], "layer 0 .*a linear map before it"),
        ([conv(), nn.Flatten()], r"output of shape \(n,\)"),
        ([conv(), nn.AdaptiveAvgPool2d(1)], r"output of shape \(n,\)"),
        ([conv(), nn.ZeroPad2d(1)], "padding, got none"),
        ([conv(), nn.ZeroPad2d(1), nn.MaxPool2d(2)], "with 0 before"),
        ([nn.ZeroPad2d(1), nn.ZeroPad2d(1), conv()], "one padding"),
        ([nn.ZeroPad2d(1), nn.Conv2d(2, 4, 3, padding="same")], "does not fit"),
        ([conv(), nn.Flatten(), nn.MaxPool2d(2)], r"\(\*positions, channels\)"),
        ([nn.Flatten(), nn.Linear(9, 2)], "expected 9 inputs, got 128"),
        ([], "at least one linear map"),
    ]:  # fmt: skip
        refused(nn.Sequential(*layers), f"^module: .*{told}", (8, 8, 2))
    deep = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), nn.BatchNorm1d(4)))
    refused(deep, r"^module: layer 1\.1 \(BatchNorm1d\): it mixes")
    refused(nn.BatchNorm1d(3), "^module: BatchNorm1d: it mixes")
    refused(nn.Sequential(linear, nn.Tanh(), linear), "^module: layer 2 .*another layer's too")
    mixed = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).half())
    refused(mixed, "^module: layer 1 .*float32, .*got float16")
    refused(
        nn.Sequential(nn.Linear(4, 4).double()), "^module: layer 0 .*float64, which needs 64-bit"
    )
    refused(nn.Sequential(nn.Linear(4, 4, dtype=torch.cfloat)), "floating dtype")
    refused(nn.Sequential(nn.Linear(4, 4, device="meta")), "layer 0 .*cannot be read")
    odd = nn.Linear(4, 4)
    odd.bias = nn.Parameter(torch.zeros(3))
    refused(odd, r"^module: params: expected b\^1 of shape \(4,\)")
    refused(nn.Sequential(conv()), r"^input: .*Conv2d.*got None")
    refused(nn.Sequential(conv()), "^input: .*got 'image'", "image")
    ends = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 4))
    refused(ends, "^module: layer 1 .*an output only")
    ends = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    refused(ends, "^module: it ends in tanh", output=jb.sigmoid)
    refused(linear, "^output: expected one Activation", output=torch.tanh)
    refused(linear, "^cost: expected one Cost", cost=torch.tanh)
    refused(linear, "^output: expected softmax", cost=jb.cross_entropy)
    with pytest.raises(ValueError, match=r"^module: expected a torch.nn.Module, got int"):
        convert.from_torch(3)


def test_what_equinox_has_and_we_have_not():
    eqx = pytest.importorskip("equinox")
    nn, key = eqx.nn, jax.random.key(0)

    class Branch(eqx.Module):
        def __call__(self, x, *, key=None):
            return x + x

    conv = nn.Conv2d(2, 4, 3, key=key)
    same = lambda f: nn.Lambda(f)
    for layer, told in [
        (nn.BatchNorm(4, "batch", mode="batch"), r"\(BatchNorm\): .*mixes the examples"),
        (nn.LayerNorm(4), "normalisation"),
        (nn.Dropout(0.5), "no dropout yet"),
        (nn.PReLU(), "a parameter"),
        (nn.GRUCell(4, 4, key=key), "recurrence"),
        (nn.ConvTranspose2d(4, 4, 3, key=key), "transposed"),
        (nn.Conv2d(4, 4, 3, groups=2, key=key), "groups=1"),
        (nn.Conv2d(4, 4, 3, padding_mode="REFLECT", key=key), "padding_mode='ZEROS'"),
        (nn.Conv2d(4, 4, 2, padding="SAME_LOWER", key=key), "SAME_LOWER"),
        (nn.MaxPool2d(2, use_ceil=True), "use_ceil"),
        (nn.AvgPool2d(2, padding=1), "without padding"),
        (nn.Pool(0.0, jax.lax.add, 2, 2), "largest or the mean"),
        (same(jax.nn.log_softmax), r"\(log_softmax\): .*output=softmax"),
        (same(lambda x: x - x.mean()), "element by element"),
        (same(lambda x: jnp.cumsum(x, 0)), "element by element"),
        (same(lambda x: x[:2]), "element by element"),
        (same(lambda x: x + jnp.arange(6.0)), "element by element"),
        (same(lambda x: 2 * x if len(x) == 4 else 1 / 0), "element by element"),
        (same(lambda x, y: x), "does not take an array"),
        (same(lambda x: x.max((1, 2))), "element by element"),
        (same(lambda x: jnp.clip(x, -99, 99).reshape(-1)), "element by element"),
        (same(lambda x: jnp.clip(x, -99, 99).mean((1, 2))), "element by element"),
        (same(nn.PReLU()), "a parameter"),
        (Branch(), "in a chain"),
        (nn.WeightNorm(conv), "weight itself"),
    ]:
        refused(nn.Sequential([conv, layer]), f"^module: layer 1 .*{told}", (8, 8, 2))
    refused(nn.Linear("scalar", 3, key=key), '"scalar"')
    mlp = lambda **options: nn.MLP(2, 3, 4, 1, key=key, **options)
    refused(mlp(final_activation=jax.nn.softmax), "every number by itself")
    refused(nn.Sequential([nn.Lambda(lambda x: x.ravel()), conv]), "layer 0 .*give input")
    with pytest.raises(ValueError, match=r"^module: expected an equinox.Module, got int"):
        convert.from_equinox(3)


def test_what_flax_has_and_we_have_not():
    nnx = pytest.importorskip("flax.nnx")
    from flax import linen

    rngs = nnx.Rngs(0)
    conv = lambda **options: nnx.Conv(4, 4, (3, 3), rngs=rngs, **options)
    for layer, told in [
        (nnx.BatchNorm(4, rngs=rngs), r"\(BatchNorm\): .*mixes the examples"),
        (nnx.LayerNorm(4, rngs=rngs), "normalisation"),
        (nnx.Dropout(0.5, rngs=rngs), "no dropout yet"),
        (nnx.PReLU(), "a parameter"),
        (nnx.Embed(4, 4, rngs=rngs), "indices"),
        (nnx.ConvTranspose(4, 4, (3, 3), rngs=rngs), "transposed"),
        (conv(feature_group_count=2), "one group"),
        (conv(padding="CIRCULAR"), "CIRCULAR"),
        (conv(input_dilation=2), "input_dilation"),
        (conv(mask=jnp.ones((3, 3, 4, 4))), "no mask"),
        (conv(dtype=jnp.bfloat16), "compute in float32"),
        (conv(conv_general_dilated=lambda *a, **k: a[0]), "usual conv_general_dilated"),
        (nnx.Linear(4, 4, rngs=rngs), "a flattening before it"),
        (lambda x: nnx.avg_pool(x, (2, 2), (2, 2), "SAME"), "element by element"),
        (lambda x: nnx.min_pool(x, (2, 2), (2, 2)), "element by element"),
        (lambda x: nnx.relu(nnx.avg_pool(x, (2, 2), (2, 2))), "element by element"),
        (lambda x: x - x.mean(0), "element by element"),
        (lambda x: nnx.max_pool(x, (9, 9), padding=((4, 4), (9, 9))), "element by element"),
        (lambda x: nnx.max_pool(jnp.clip(x, -99, 99), (2, 2)), "element by element"),
        (lambda x: jnp.clip(x, -99, 99).mean((1, 2)), "element by element"),
        (functools.partial(nnx.softmax, axis=1), "softmax"),
    ]:
        module = nnx.Sequential(nnx.Conv(2, 4, (3, 3), rngs=rngs), layer)
        refused(module, f"^module: layer 1 .*{told}", (7, 7, 2))
    linear = nnx.Linear(4, 4, rngs=rngs)
    refused(nnx.Sequential(linear, nnx.tanh, linear), "^module: layer 2 .*another layer's too")
    refused(linear, "^params: expected None", params={})
    dense = linen.Dense(3)
    refused(dense, "^params: expected the variables")
    refused(dense, "^params: expected a mapping", params=[])
    refused(dense, "^module: Dense: expected kernel and bias among params, got", params={})
    with pytest.raises(ValueError, match=r"^module: expected a module of flax.nnx or flax.linen"):
        convert.from_flax(3)


def test_what_sklearn_has_and_we_have_not():
    pytest.importorskip("sklearn")
    from sklearn.linear_model import Ridge
    from sklearn.neural_network import MLPClassifier

    for estimator, told in [
        (Ridge(), "MLPClassifier or an MLPRegressor, got Ridge"),
        (MLPClassifier(), "a fitted MLPClassifier"),
        (fitted("relu", "softmax", np.float64)[0], "layer 0 .*float64, which needs 64-bit mode"),
    ]:
        with pytest.raises(ValueError, match=f"^estimator: .*{told}"):
            convert.from_sklearn(estimator)
    poisson = fitted("relu", "one")[0]
    poisson.out_activation_ = "exp"
    with pytest.raises(ValueError, match=r"^estimator: .*got exp"):
        convert.from_sklearn(poisson)
    poisson.out_activation_, poisson.activation = "identity", "mish"
    with pytest.raises(ValueError, match=r"^estimator: .*got mish"):
        convert.from_sklearn(poisson)
    for net, told in [
        (jb.Network((4, 3, 2), jb.gelu), "every hidden layer"),
        (jb.Network((4, 3, 3, 2), (jb.tanh, jb.relu)), "every hidden layer"),
        (jb.Network((4, 3, 2), jb.relu, jb.tanh), "output softmax, sigmoid or identity, got tanh"),
        (jb.Network(((4, 1), 3, 2), jb.relu), "dense maps of vectors"),
    ]:
        with pytest.raises(ValueError, match=f"^net: .*{told}"):
            convert.to_sklearn(net, problem(net)[0])
    with pytest.raises(ValueError, match="expected float32 or float64, got bfloat16"):
        convert.to_sklearn(NETS["linear"], problem(NETS["linear"], dtype=jnp.bfloat16)[0])
    with jax.enable_x64(True):
        estimator, x, _, _ = fitted("relu", "softmax", np.float64)
        net, params = convert.from_sklearn(estimator)
        assert_close(jb.predict(net, params, x), estimator.predict_proba(x))


cube = jb.Activation.from_function("cube", lambda z: z**3)


@pytest.mark.parametrize("library", THERE)
def test_what_is_yours(library):
    """A map of one's own is refused; an activation is a function where functions are layers."""
    pytest.importorskip({"linen": "flax"}.get(library, library))
    net = jb.Network((8, Circulant(), 2))
    with pytest.raises(ValueError, match=r"^net: layer 1: Circulant.* your own"):
        THERE[library](net, problem(net)[0])
    net = jb.Network((4, 3, 2), cube, jb.squareplus)
    if library == "torch":
        with pytest.raises(ValueError, match="net: the activation cube has no counterpart"):
            THERE[library](net, problem(net)[0])
        return
    params, (other, read) = there_and_back(library, net, "float32")
    assert [f.f for f in other.activations] == [f.f for f in net.activations]
    assert (read[0].w == params[0].w).all()


@pytest.mark.parametrize("function", [
    "from_torch", "to_torch", "from_equinox", "to_equinox", "from_flax", "to_flax", "to_linen",
    "from_sklearn", "to_sklearn",
])  # fmt: skip
def test_a_missing_library_is_told(function, monkeypatch):
    library = {"linen": "flax"}.get(function.split("_")[1], function.split("_")[1])
    package = {"sklearn": "scikit-learn"}.get(library, library)
    for name in [n for n in sys.modules if n.split(".")[0] == library]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, library, None)
    net = NETS["linear"]
    arguments = (net, problem(net)[0]) if function.startswith("to") else (object(),)
    with pytest.raises(ImportError, match=f"^{function} needs .*pip install {package}$"):
        getattr(convert, function)(*arguments)


def test_no_library_is_needed_to_import_it():
    libraries = {"torch", "flax", "equinox", "sklearn"}
    program = f"import sys, jbackprop.convert; print({libraries} & {{*sys.modules}})"
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout == "set()\n"


def test_what_is_traced_is_converted_too():
    """So that a gradient goes through a conversion, to the numbers of the module."""
    eqx = pytest.importorskip("equinox")
    module = eqx.nn.Sequential([
        eqx.nn.Conv1d(2, 3, 2, key=jax.random.key(0)), eqx.nn.Lambda(jnp.tanh),
        eqx.nn.Lambda(jnp.ravel), eqx.nn.Linear(12, 2, key=jax.random.key(1)),
    ])  # fmt: skip
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 2)), jnp.float32)

    @jax.jit
    @jax.grad
    def ours(arrays):
        net, params = convert.from_equinox(eqx.combine(arrays, rest), (5, 2))
        there = convert.to_equinox(net, params)
        return jb.predict(net, params, x).sum() + there(x.T).sum()

    arrays, rest = eqx.partition(module, eqx.is_array)
    theirs = jax.grad(lambda arrays: 2 * eqx.combine(arrays, rest)(x.T).sum())(arrays)
    assert_close(ours(arrays), theirs, 1e-5)
