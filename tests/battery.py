"""What every pass must satisfy, as functions of the package: a faulty copy of it can be tried.

`jb` is the package under test, `net` one of its networks; the reference is `references.py`.
"""

import jax
import jax.numpy as jnp
import references
from helpers import assert_close, problem


def gradient_is_that_of_autodiff(jb, net, *, seed=0, dtype=jnp.float32, t_sum=1.0):
    """Per example and in the mean, with and without weights: ∂C/∂w^l and ∂C/∂b^l by `jax.grad`."""
    params, x, t = problem(net, seed=seed, dtype=dtype)
    t = t_sum * t
    layers = [tuple(layer) for layer in params]
    expected = jax.jit(
        jax.vmap(jax.grad(lambda p, x, t: references.cost(net, p, x, t)), (None, 0, 0))
    )(layers, x, t)
    plain = lambda gradient: [tuple(layer) for layer in gradient]

    one = jb.forward(net, params, x[1])
    first = jax.tree.map(lambda leaf: leaf[1], expected)
    maps = () if net.flat else net.maps
    assert_close(plain(jb.gradients(one, jb.backward(net, params, one, t[1]), maps)), first)

    factors = jb.backprop(net, params, x, t)
    assert_close(plain(jb.example_gradients(factors)), expected)
    assert_close(
        plain(jb.sum_gradient(factors)), jax.tree.map(lambda leaf: jnp.sum(leaf, 0), expected)
    )
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, 0), expected)
    assert_close(plain(jb.mean_gradient(factors)), mean)

    weight = jnp.array([0.0, 2.0, 1.0, 0.5, 0.0, 3.0])[: len(x)]
    share = (weight / jnp.sum(weight)).astype(dtype)
    mean = jax.tree.map(lambda leaf: jnp.tensordot(share, leaf, 1), expected)
    cost, gradient = jb.value_and_grad(net, params, x, t, weight=weight)
    assert_close(plain(gradient), mean)
    theirs = references.mean_cost(net, params, x, t, weight)
    assert_close(cost, theirs.astype(cost.dtype))
    assert_close(jb.mean_cost(net, params, x, t, weight=weight), theirs.astype(cost.dtype))


def absent_rows_change_nothing(jb, net):
    """A row of weight 0 leaves no trace, whatever is in it."""
    params, x, t = problem(net)
    weight = jnp.array([1.0, 1, 0, 1, 1, 1])
    spoilt = x.at[2].set(jnp.nan), t.at[2].set(jnp.nan)
    ours = jb.backprop(net, params, *spoilt, weight=weight)
    without = jb.backprop(net, params, jnp.delete(x, 2, 0), jnp.delete(t, 2, 0))
    assert_close(tuple(jb.mean_gradient(ours)), tuple(jb.mean_gradient(without)))
    assert not any(leaf[2].any() for leaf in jax.tree.leaves((ours.cost, ours.tape, ours.delta)))


def saturated_heads_are_right(jb):
    """Where the textbook's formula gives NaN, the closed form does not."""
    net = jb.Network((1, 2), output=jb.softmax, cost=jb.cross_entropy)
    params = (jb.Layer(jnp.array([[1e4], [-1e4]]), jnp.zeros(2)),)
    factors = jb.backprop(net, params, jnp.array([[1.0], [-1.0]]), jnp.array([0, 0]))
    assert_close(factors.cost, jnp.array([0.0, 2e4]))
    assert_close(factors.delta[0], jnp.array([[0.0, 0.0], [-1.0, 1.0]]))


def labels_are_one_hot_or_nan(jb):
    """A label in range is its one-hot vector; one out of range is NaN, in its own row alone."""
    net = jb.Network((4, 3), output=jb.softmax, cost=jb.cross_entropy)
    params, x, _ = problem(net)
    factors = jb.backprop(net, params, x, jnp.array([0, 1, 2, 3, -1, 2]))
    one_hot = jb.backprop(net, params, x, jnp.eye(3)[jnp.array([0, 1, 2, 0, 0, 2])])
    good, bad = jnp.array([0, 1, 2, 5]), jnp.array([3, 4])
    assert_close(factors.cost[good], one_hot.cost[good])
    assert_close(factors.delta[0][good], one_hot.delta[0][good])
    assert jnp.isnan(factors.cost[bad]).all()
    assert jnp.isnan(factors.delta[0][bad]).all()


def an_epoch_is_its_steps(jb, optimizer):
    """Gradient descent over an epoch: every example once; a short batch is a mean of its own."""
    net = jb.Network((1, 1))
    n, size = 7, 3
    params = (jb.Layer(jnp.zeros((1, 1)), jnp.zeros(1)),)
    state = jb.init_state(net, optimizer, jax.random.key(3), params=params)
    # the batch's inputs are what `observe` sees of an epoch
    see = lambda factors, state, updates: (factors.tape.a[0][:, 0], factors.weight)
    x, t = jnp.arange(1.0, n + 1)[:, None], jnp.arange(n)[:, None] * 0.1
    x0, t0 = x, t
    state, info = jb.train_epoch(net, optimizer, state, x, t, batch_size=size, observe=see)
    rows, weight = info.observed
    assert rows.shape == (3, 3)
    assert sorted(rows[weight > 0].tolist()) == x0[:, 0].tolist()
    assert weight.tolist() == [[1, 1, 1], [1, 1, 1], [1, 0, 0]]
    for row, w in zip(rows, weight, strict=True):
        at = row[w > 0].astype(int) - 1
        _, gradient = jb.value_and_grad(net, params, x0[at], t0[at])
        params = jb.sgd_step(params, gradient, 0.01)
    assert_close(tuple(state.params), tuple(params))


def quantities_are_those_of_all_gradients(jb, net):
    """Norms, moments, products and what is made of them, against all gradients written out."""
    params, x, t = problem(net)
    weight = jnp.array([1.0, 0, 2, 1, 0.5, 3])
    factors = jb.backprop(net, params, x, t, weight=weight)

    def rows(gradients, n=6):
        leaves = jax.tree.leaves(gradients)
        return jnp.concatenate([leaf.reshape(n, -1) for leaf in leaves], axis=1)

    vector = lambda gradient: rows(gradient, 1)[0]
    g, p = rows(jb.example_gradients(factors)), weight / jnp.sum(weight)
    mean, kappa = p @ g, jnp.sum(p**2)
    square, norm = jnp.sum(g**2, 1), jnp.sqrt(jnp.sum(g**2, 1))
    m = mean @ mean
    trace = (p @ square - m) / (1 - kappa)

    assert_close(jb.squared_norms(factors), square)
    assert_close(jb.gram(factors), g @ g.T)
    assert_close(jb.inner_products(factors, params), g @ vector(params))
    assert_close(vector(jb.second_moment(factors)), p @ g**2)
    assert_close(vector(jb.variance(factors)), p @ (g - mean[None]) ** 2)
    assert_close(jb.noise_scale(factors).trace, trace)
    squared = jb.noise_scale(factors).squared_gradient  # a difference, of the size of m
    assert_close(jnp.stack([squared, m]), jnp.stack([m - kappa * trace, m]))
    assert_close(jb.norm_test(factors), kappa * trace / m)
    along = p @ (g @ mean - m) ** 2
    assert_close(jb.inner_product_test(factors), kappa / (1 - kappa) * along / m**2)
    if all(hasattr(linear, "rows") for linear in net.maps):
        each = jb.kronecker_factors(factors)
        layers = zip(each, net.maps, factors.tape.a[:-1], factors.delta, strict=True)
        for (a_a, d_d), linear, a, delta in layers:
            one = jax.vmap(linear.rows)(a)
            one = jnp.concatenate([one, jnp.ones((*one.shape[:2], 1))], 2)
            delta = delta.reshape(*one.shape[:2], -1)
            outer = lambda v: jnp.einsum("b,bti,btj->ij", p, v, v)
            assert_close(a_a, outer(one))
            assert_close(d_d, outer(delta) / one.shape[1])

    limit = float(jnp.median(norm))
    clipped = jnp.minimum(1, limit / jnp.where(norm == 0, 1, norm))[:, None] * g
    assert_close(rows(jb.example_gradients(jb.clip(factors, limit))), clipped)
    shrunk = g / (norm + 0.01)[:, None]
    assert_close(rows(jb.example_gradients(jb.normalize(factors))), shrunk)

    limits = 0.3 * jnp.arange(1.0, len(factors.delta) + 1)
    parts = [rows(layer) for layer in jb.example_gradients(factors)]
    lengths = [jnp.sqrt(jnp.sum(v**2, 1)) for v in parts]
    shares = [jnp.minimum(1, c / jnp.where(n == 0, 1, n)) for c, n in zip(limits, lengths)]  # noqa: B905
    clipped = [c[:, None] * v for c, v in zip(shares, parts)]  # noqa: B905
    by_layer = jb.example_gradients(jb.clip_layers(factors, limits))
    assert_close([rows(layer) for layer in by_layer], clipped)

    found, by_l = jb.delta_norms(factors), range(len(factors.delta))
    each = [jnp.sqrt(jnp.sum(d.reshape(6, -1) ** 2, 1)) for d in factors.delta]
    assert_close(found.mean, jnp.stack([p @ n for n in each]))
    spread = [jnp.sqrt(p @ (each[l] - found.mean[l]) ** 2) for l in by_l]
    assert_close(found.deviation, jnp.stack(spread))

    groups = jnp.array([0, 1, 0, 1, 1, 0])
    sums = jnp.stack([jnp.where(groups == u, weight, 0) @ g for u in range(2)])
    assert_close(rows(jb.group_gradients(factors, groups, 2), 2), sums)
    assert_close(jb.group_squared_norms(factors, groups, 2), jnp.sum(sums**2, 1))
    limit = 0.9 * jnp.min(jnp.sqrt(jnp.sum(sums**2, 1)))
    clipped = limit * sums / jnp.sqrt(jnp.sum(sums**2, 1))[:, None]
    bounded = jb.group_clip(factors, groups, 2, limit)
    assert_close(rows(jb.group_gradients(bounded, groups, 2), 2), clipped, 1e-4)

    scores = jb.influence(net, params, x, t, x, t, block_size=4)
    plain = rows(jb.example_gradients(jb.backprop(net, params, x, t)))
    assert_close(scores, plain @ jnp.mean(plain, 0))
