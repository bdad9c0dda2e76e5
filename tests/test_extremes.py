"""Every quantity at every extreme: scales, equal rows, cancelling rows, outliers, zeros; no NaN.

A batch here is a table of δ and a, made directly; the reference is every example's gradient in
float64, whose squares reach to 1e308. A quantity may not lose digits that its result has.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jbackprop as jb
from jbackprop.quantities.spread import spread

SIZES = (4, 5, 3)
B = 6
RNG = np.random.default_rng(0)
DRAWN = [RNG.normal(size=(B, n)) for n in (4, 5, 5, 3)]  # a^0, a^1, δ^1, δ^2
SIGNS = np.array([1, -1, 1, -1, 1, 1.0])[:, None]
EVERY = np.ones(B)


def made(a0: Any = 1.0, a1: Any = 1.0, d1: Any = 1.0, d2: Any = 1.0, *, base: Any = DRAWN,
         shift: Any = (0, 0, 0, 0), weight: Any = EVERY) -> Any:  # fmt: skip
    """a and δ as multiples of drawn numbers, shifted; and weights."""
    scales = (a0, a1, d1, d2)
    rows = [np.asarray(s) * v + m for s, v, m in zip(scales, base, shift, strict=True)]
    return *rows, np.asarray(weight, float)


def row(i, value, rest=1.0):
    """A column of factors: one row's own."""
    column = np.full((B, 1), rest)
    column[i] = value
    return column


LONG = 3.3e38 / np.abs(DRAWN[0][2]).max()  # every number is one of float32, the row's norm is not
EQUAL = [np.repeat(v[:1], B, axis=0) for v in DRAWN]
PARTED = row(0, 1e20) * row(1, 1e-20)
BATCHES = {
    "plain": made(),
    "weighted": made(weight=[1, 0.5, 0, 2, 0, 3]),
    "δ tiny": made(d1=1e-25, d2=1e-25),
    "δ huge": made(d1=1e12, d2=1e12),
    "a tiny": made(a0=1e-25, a1=1e-25),
    "a huge, δ tiny": made(a0=1e20, a1=1e20, d1=1e-20, d2=1e-20),
    "a layer vanishes": made(d1=1e-17),
    "an outlier saturates": made(a0=row(2, 1e20), d1=row(2, 0.0)),
    "an outlier is steep": made(a0=row(2, 1e17)),
    "δ and a part ways": made(a0=PARTED, d1=1 / PARTED),
    "large a meet small δ": made(a0=row(2, 1e4), a1=row(2, 1e4), d1=row(2, 0.0), d2=row(2, 0.0)),
    "the mean dwarfs the spread": made(shift=(0, 0, 2e4, 2e4)),
    "both means dwarf": made(0.01, 0.01, 1, 1, shift=(3, 3, 2e4, 2e4)),
    "equal rows": made(base=EQUAL),
    "equal rows and an absent one": made(base=EQUAL, weight=[0, 1, 2, 1, 1, 1]),
    "equal tiny rows": made(1, 1, 1e-25, 1e-25, base=EQUAL),
    "equal gradients, opposite factors": made(SIGNS, 1, SIGNS, 1, base=EQUAL),
    "rows cancel": made(1, 1, SIGNS * (1 + 1e-4 * np.arange(B)[:, None]), 0.0, base=EQUAL),
    "a longer than any float, δ 0": made(a0=row(2, LONG), d1=row(2, 0.0)),
    "a row of 0": made(d1=row(3, 0.0), d2=row(3, 0.0)),
    "all 0": made(d1=0.0, d2=0.0),
    "nobody": made(weight=np.zeros(B)),
    "one alone": made(weight=[0, 0, 0.3, 0, 0, 0]),
    "one outweighs": made(weight=[1, 1e-9, 1e-9, 1e-9, 1e-9, 0]),
    "weights tiny": made(weight=1e-30 * np.array([1, 2, 0, 1, 1, 3.0])),
    "weights huge": made(weight=1e30 * np.array([1, 2, 0, 1, 1, 3.0])),
}
GROUPS = np.array([0, 0, 1, 1, 2, 2])


class Case:
    """The factors of a batch, and in float64 what they stand for.

    Attributes:
        g: every example's gradient, (B, P), 0 where the weight is.
        w, p: weights, and their shares.
        layers: the columns of every layer.
    """

    def __init__(self, name, dtype="float32"):
        *rows, weight = BATCHES[name]
        present = (weight > 0)[:, None]
        a0, a1, d1, d2 = (jnp.asarray(np.where(present, v, 0), dtype) for v in rows)
        y = jnp.zeros((B, 3), dtype)
        tape = jb.Tape((jnp.zeros_like(d1), y), (a0, a1, y))
        self.w = np.asarray(weight, "float32").astype(float)
        weight = jnp.asarray(weight, dtype)
        self.factors = jb.Factors(jnp.zeros(B), tape, (d1, d2), y, weight)
        parts = [
            np.einsum("bj,bk->bjk", np.float64(d), np.c_[np.float64(a), np.ones(B)])
            for d, a in ((d1, a0), (d2, a1))
        ]
        # w, then b, as the leaves of a gradient are ordered
        flat = [v for m in parts for v in (m[:, :, :-1].reshape(B, -1), m[:, :, -1])]
        self.g = np.concatenate(flat, 1) * present
        self.p = self.w / (self.w.sum() or 1)
        self.layers = [slice(0, 25), slice(25, 43)]
        largest = self.p.argmax()
        self.top = largest
        pivot = self.g[largest]  # so that equal rows are as far from their mean as they are: not
        self.mean = pivot * (self.p.sum() > 0) + self.p @ (self.g - pivot)
        self.away = np.where(present, self.g - self.mean, 0)
        rest = np.where(np.arange(B) == largest, np.delete(self.p, largest).sum(), 1 - self.p)
        self.kappa, bessel = (self.p**2).sum(), (self.p * rest).sum()
        self.alone = (self.w > 0).sum() == 1
        self.bessel = np.nan if self.alone else bessel if self.w.any() else 1.0

    @functools.cached_property
    def traces(self):
        squares = self.p @ self.away**2
        return np.array([squares[layer].sum() for layer in self.layers]) / self.bessel


@functools.cache
def case(name, dtype="float32"):
    return Case(name, dtype)


def flat(gradient, rows=()):
    leaves = [np.asarray(v, np.float64) for v in jax.tree.leaves(gradient)]
    return np.concatenate([v.reshape(*rows, -1) for v in leaves], axis=-1)


def by_layer(c, values):
    return np.stack([values[..., layer].sum(-1) for layer in c.layers], -1)


def ratio(a, b):
    with np.errstate(all="ignore"):
        return np.where(a == 0, 0, np.divide(a, np.where(a == 0, 1, b)))


def along(c):
    """⟨g_i - ḡ, ḡ⟩ / ‖ḡ‖²."""
    m = c.mean @ c.mean
    return np.where(c.w > 0, ratio(c.away @ c.mean, m), 0)


def shrunk(norms, limit):
    return np.minimum(1, limit / np.where(norms == 0, 1, norms))


def mean_outer(p, rows):
    return np.einsum("b,bi,bj->ij", p, *[np.float64(rows)] * 2)


def norms(c):
    return np.sqrt((c.g**2).sum(1))


def sums(c, groups=3):
    return np.stack([(c.w * (u == GROUPS)) @ c.g for u in range(groups)])


DIRECTION = tuple(jb.Layer(jnp.full((n, m), 0.5), jnp.full(n, -0.25)) for m, n in ((4, 5), (5, 3)))
V = flat(DIRECTION)

# name: ours, theirs. A row is one function, every entry compared by the scale of its last axis, or
# alone where `by_entry`.
QUANTITIES = {
    "squared_norms": (jb.squared_norms, lambda c: (c.g**2).sum(1)),
    "layer_squared_norms": (jb.layer_squared_norms, lambda c: by_layer(c, c.g**2)),
    "grand": (jb.grand, norms),
    "second_moment": (lambda f: flat(jb.second_moment(f)), lambda c: c.p @ c.g**2),
    "variance": (lambda f: flat(jb.variance(f)), lambda c: c.p @ c.away**2),
    "trace": (lambda f: jb.noise_scale(f).trace, lambda c: c.traces.sum()),
    "traces by layer": (lambda f: spread(f).traces, lambda c: c.traces),
    "norms of the mean by layer": (
        lambda f: spread(f).norms_of_mean,
        lambda c: np.stack([np.linalg.norm(c.mean[layer]) for layer in c.layers])),
    "squared_gradient": (
        lambda f: jb.noise_scale(f).squared_gradient,
        lambda c: c.mean @ c.mean - c.kappa * c.traces.sum()),
    "norm_test": (
        jb.norm_test, lambda c: ratio(c.kappa * c.traces.sum(), c.mean @ c.mean)),
    "inner_product_test": (
        jb.inner_product_test, lambda c: c.kappa * (c.p @ along(c) ** 2) / c.bessel),
    "gram": (jb.gram, lambda c: c.g @ c.g.T),
    "inner_products": (lambda f: jb.inner_products(f, DIRECTION), lambda c: c.g @ V),
    "mean_gradient": (lambda f: flat(jb.mean_gradient(f)), lambda c: c.mean),
    "takeuchi": (jb.takeuchi, lambda c: c.p @ (c.g**2).sum(1)),
    "clip": (
        lambda f: flat(jb.example_gradients(jb.clip(f, 0.01)), (B,)),
        lambda c: shrunk(norms(c), 0.01)[:, None] * c.g),
    "clip by layer": (
        lambda f: flat(jb.example_gradients(jb.clip_layers(f, [0.01, 0.02])), (B,)),
        lambda c: np.concatenate([
            shrunk(np.sqrt((c.g[:, s] ** 2).sum(1)), m)[:, None] * c.g[:, s]
            for s, m in zip(c.layers, (0.01, 0.02), strict=True)], 1)),
    "normalize": (
        lambda f: flat(jb.example_gradients(jb.normalize(f)), (B,)),
        lambda c: c.g / (norms(c) + 0.01)[:, None]),
    "clipped_sum": (
        lambda f: flat(jb.clipped_sum(0.01, 7)(f)),
        lambda c: c.w @ (shrunk(norms(c), 0.01)[:, None] * c.g) / 7),
    "group_squared_norms": (
        lambda f: jb.group_squared_norms(f, GROUPS, 3), lambda c: (sums(c) ** 2).sum(1)),
    "group_clip": (
        lambda f: flat(jb.group_gradients(jb.group_clip(f, GROUPS, 3, 0.01), GROUPS, 3), (3,)),
        lambda c: shrunk(np.sqrt((sums(c) ** 2).sum(1)), 0.01)[:, None] * sums(c)),
    "delta_norms": (
        lambda f: jb.delta_norms(f).mean,
        lambda c: np.stack([
            c.p @ np.linalg.norm(np.float64(d), axis=1) for d in c.factors.delta])),
    "deviation of δ": (
        lambda f: jb.delta_norms(f).deviation,
        lambda c: np.stack([
            np.sqrt(c.p @ (n - n[c.top] - c.p @ (n - n[c.top])) ** 2)
            for n in (np.linalg.norm(np.float64(d), axis=1) for d in c.factors.delta)])),
    "kronecker_factors": (
        lambda f: jb.kronecker_factors(f)[0][1],
        lambda c: mean_outer(c.p, c.factors.delta[0])),
    "A of kronecker_factors": (
        lambda f: jb.kronecker_factors(f)[0][0],
        lambda c: mean_outer(c.p, np.c_[c.factors.tape.a[0], np.ones(B)])),
}  # fmt: skip

# What is a small difference by nature is right to the rounding of what it is taken from.
LOSES = {
    ("squared_gradient", name): lambda c: c.mean @ c.mean + c.kappa * np.nan_to_num(c.traces.sum())
    for name in BATCHES
} | {("inner_products", name): lambda c: np.abs(c.g) @ np.abs(V) for name in BATCHES}
# The sum is rounded before it is measured, to ε of its members.
LOSES |= {
    (name, "rows cancel"): lambda c: np.square((c.w * norms(c)).sum()) * 1e-4
    for name in ("group_squared_norms", "group_clip", "norm_test", "inner_product_test")
}


def compare(ours, theirs, scale=None, tolerance=3e-5):
    """Equal up to the tolerance × the scale along the last axis; out of range is ∞, or 0."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert ours.shape == theirs.shape
    limits = np.finfo(np.float32)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
    # near the end of the range the sums on the way may leave it first
    large = np.abs(theirs) > limits.max / 1e6
    fine = ~large & ~np.isnan(theirs) & (scale is None or np.max(scale) < limits.max)
    assert (np.isinf(ours[large]) | (np.abs(ours[large]) > limits.max / 1e8)).all()
    size = np.abs(np.where(fine, theirs, 0))
    own = size.max(-1, keepdims=True, initial=0) if size.ndim else size
    scale = own if scale is None else np.maximum(scale, own)
    allowed = np.broadcast_to(tolerance * scale + 1e3 * limits.tiny, theirs.shape)
    wrong = fine & ~(np.abs(np.where(fine, ours - theirs, 0)) <= allowed)
    assert not wrong.any(), f"{ours[wrong]} for {theirs[wrong]}, at a scale of {np.max(scale):.3g}"


@pytest.mark.long(220)
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value", "ignore:divide by zero")
def test_right_at_the_extremes(quantity, name):
    if (quantity, name) == ("clipped_sum", "a longer than any float, δ 0"):
        pytest.skip("an example that long counts as none")
    ours, theirs = QUANTITIES[quantity]
    c = case(name)
    scale = LOSES.get((quantity, name))
    compare(ours(c.factors), theirs(c), None if scale is None else scale(c))


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_no_nan_arises_where_none_is_the_result(quantity):
    """`jax_debug_nans` is to help users, not to raise on our masks: compiled or step by step."""
    ours, _ = QUANTITIES[quantity]
    fine = [name for name in BATCHES if name != "one alone"]
    with jax.debug_nans(True):
        for name in fine:
            ours(case(name).factors)


@pytest.mark.long(11)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("quantity", QUANTITIES)
def test_small_floats_are_taken_as_float32(quantity, dtype):
    """With strict promotion: nowhere is one multiplied by the other."""
    ours, _ = QUANTITIES[quantity]
    small, large = of_small_floats(case("plain").factors, dtype)
    compare(ours(small), np.asarray(ours(large)), tolerance=2e-2)


def of_small_floats(factors, dtype):
    """Factors in a small dtype, and the same numbers as float32."""
    less = lambda rows: tuple(v.astype(dtype) for v in rows)
    more = lambda rows: tuple(v.astype(jnp.float32) for v in rows)
    small = remade(factors, less(factors.delta), less(factors.tape.a[:-1]))
    return small, remade(small, more(small.delta), more(small.tape.a[:-1]))


@pytest.mark.parametrize("name", ["plain", "δ and a part ways", "both means dwarf", "all 0"])
def test_float64_has_twice_the_digits_and_a_range_of_its_own(name):
    with jax.enable_x64(True):
        c = case(name, "float64")
        for quantity in ("squared_norms", "variance", "trace", "clip", "gram", "delta_norms"):
            ours, theirs = QUANTITIES[quantity]
            value = ours(c.factors)
            assert jax.tree.leaves(value)[0].dtype == np.float64
            scale = LOSES.get((quantity, name))
            compare(value, theirs(c), None if scale is None else scale(c), 1e-11)


def remade(factors, delta, a):
    """The factors with other δ and a."""
    return factors._replace(delta=delta, tape=factors.tape._replace(a=(*a, factors.tape.a[-1])))


SLOPES = {
    "squared_norms": jb.squared_norms,
    "grand": jb.grand,
    "mean of clipped": jb.clipped_mean(1.0),
    "clipped_sum": jb.clipped_sum(1.0, 3),
    "clip by layer": lambda f: jb.mean_gradient(jb.clip_layers(f, [1.0, 1.0])),
    "normalize": lambda f: jb.mean_gradient(jb.normalize(f)),
    "second_moment": jb.second_moment,
    "variance": jb.variance,
    "noise_scale": lambda f: jb.noise_scale(f)[:2],
    "gram": jb.gram,
    "group_squared_norms": lambda f: jb.group_squared_norms(f, GROUPS, 3),
    "delta_norms": jb.delta_norms,
    "inner_products": lambda f: jb.inner_products(f, DIRECTION),
    "kronecker_factors": jb.kronecker_factors,
    "el2n": jb.el2n,
}


@pytest.mark.long(2)
@pytest.mark.parametrize("quantity", SLOPES)
def test_slopes_are_finite_where_there_are_any(quantity):
    def total(delta, a, factors):
        return sum(map(jnp.sum, jax.tree.leaves(SLOPES[quantity](remade(factors, delta, a)))))

    slope = jax.jit(jax.grad(total, argnums=(0, 1)))
    for name in ("plain", "a row of 0", "all 0", "equal rows", "weighted"):
        factors = case(name).factors
        slopes = slope(factors.delta, factors.tape.a[:-1], factors)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes)), name


@pytest.mark.parametrize("clipped", [
    lambda f: jb.clip(f, jnp.inf), lambda f: jb.clip(f, 1e6),
    lambda f: jb.clip_layers(f, [1e6, jnp.inf]), lambda f: jb.scale(f, jnp.ones(B)),
])  # fmt: skip
def test_a_clip_that_does_nothing_is_the_identity_and_so_is_its_slope(clipped):
    def value(delta, factors, through):
        g = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(
            jb.sum_gradient(through(remade(factors, delta, factors.tape.a[:-1]))))])  # fmt: skip
        return jnp.sin(g) @ jnp.arange(g.size, dtype=g.dtype)

    slope = jax.jit(jax.value_and_grad(value), static_argnums=2)
    for name in ("plain", "a row of 0", "all 0"):
        factors = case(name).factors
        ours, plain = (slope(factors.delta, factors, f) for f in (clipped, lambda f: f))
        for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("by", [1e-36, 1e-20, 3.0, 1e20, 1e36])
@pytest.mark.parametrize("quantity", [
    "second_moment", "variance", "trace", "norm_test", "inner_product_test", "mean_gradient",
    "takeuchi", "delta_norms", "kronecker_factors",
])  # fmt: skip
def test_the_scale_of_weights_does_not_matter(quantity, by):
    ours, _ = QUANTITIES[quantity]
    factors = case("weighted").factors
    np.testing.assert_allclose(
        ours(factors._replace(weight=factors.weight * by)), ours(factors), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("limit", [1e-30, 1e-6, 0.01, 1.0])
@pytest.mark.parametrize("name", BATCHES)
def test_a_bound_holds_in_exact_arithmetic(name, limit):
    """Of every clipped example and group, from the numbers as they are, rounded as they are."""
    factors = case(name).factors

    def exact(clipped):
        pairs = zip(clipped.delta, clipped.tape.a[:-1], strict=True)
        return sum(
            (np.float64(d) ** 2).sum(1) * (1 + (np.float64(a) ** 2).sum(1)) for d, a in pairs
        )

    bound = float(np.float32(limit))
    assert np.sqrt(exact(jb.clip(factors, limit))).max() <= bound
    assert np.sqrt(exact(jb.clip_layers(factors, [limit, limit]))).max() <= bound * np.sqrt(2)
    assert np.sqrt(exact(jb.normalize(factors, gamma=0))).max() <= 1
    clipped = jb.group_clip(factors, GROUPS, 3, limit)
    sums = np.zeros(3)
    for d, a in zip(clipped.delta, clipped.tape.a[:-1], strict=True):
        weighted = np.asarray(d, np.float64) * np.asarray(factors.weight, np.float64)[:, None]
        for u in range(3):
            whole = weighted[u == GROUPS].T @ np.c_[np.float64(a), np.ones(B)][u == GROUPS]
            sums[u] += np.sum(whole**2)
    if name != "weights huge":  # whose δ would be below the least of float32
        assert np.sqrt(sums.max()) <= bound


ONE = jb.Network((2, 1))
ZERO = [(jnp.zeros((1, 2)), jnp.zeros(1))]


def of_targets(t, weight=None, x=None):
    t = jnp.array(t)[:, None]
    return jb.backprop(ONE, ZERO, jnp.zeros((len(t), 2)) if x is None else x, t, weight=weight)


def test_group_norms_have_the_slope_of_their_weights():
    total = lambda w: jb.group_squared_norms(of_targets([1.0, 3.0], w), [0, 1], 2).sum()
    np.testing.assert_allclose(jax.grad(total)(jnp.array([1.0, 3.0])), [2, 54], rtol=1e-5)


@pytest.mark.parametrize("by", [1e-25, 1.0, 1e20])
def test_a_clip_has_the_same_slope_at_every_scale(by):
    net, params = jb.Network((2, 2)), [(jnp.zeros((2, 2)), jnp.zeros(2))]
    t = jnp.array([[1.0, 2], [3, -1], [2, 2]])

    def total(t, through):
        return through(jb.backprop(net, params, jnp.zeros((3, 2)), t)).delta[0][:, 0].sum()

    clip = lambda f: jb.clip(f, 0.5 * min(by, 1.0))
    for through in (clip, lambda f: jb.normalize(f, gamma=0.0)):
        unit = jb.normalize if through is not clip else None
        plain = clip if unit is None else through
        slope = jax.grad(lambda t, f=plain: total(t, f))(by * t) * by
        bound = min(by, 1.0) * 0.5 if plain is clip else 1.0
        y = np.asarray(t, float)
        norm = np.linalg.norm(y, axis=1, keepdims=True)
        expected = -bound * (np.array([[1.0, 0]]) / norm - y[:, :1] * y / norm**3)
        np.testing.assert_allclose(slope, expected, rtol=1e-4, atol=1e-5 * bound)


def test_products_of_long_gradients_at_right_angles_are_0():
    net, params = jb.Network((2, 2)), [(jnp.zeros((2, 2)), jnp.zeros(2))]
    t = jnp.array([[1e20, 0], [0, 1e20]])
    products = jb.gram(jb.backprop(net, params, jnp.zeros((2, 2)), t))
    assert [products[0, 1], products[1, 0]] == [0, 0]


def test_equal_gradients_beyond_the_root_of_the_largest_float_have_no_spread():
    found = jb.noise_scale(of_targets([1e20] * 4))
    assert (float(found.trace), float(found.scale)) == (0, 0)


def test_a_layer_without_gradients_does_not_hide_a_tiny_one():
    net = jb.Network((2, 2, 1), jb.relu)
    params = [(jnp.zeros((2, 2)), -jnp.ones(2)), (jnp.ones((1, 2)), jnp.zeros(1))]
    t = 1e-20 * jnp.array([[1.0], [2], [3], [5]])
    factors = jb.backprop(net, params, jnp.ones((4, 2)), t)
    assert float(jb.noise_scale(factors).scale) == pytest.approx(0.4268, rel=1e-3)
    assert float(jb.norm_test(factors)) == pytest.approx(0.0964, rel=1e-3)
    assert float(jb.inner_product_test(factors)) == pytest.approx(0.0964, rel=1e-3)


def test_group_sums_of_float16_are_float32():
    net = jb.Network((1, 1))
    params = jb.init(net, jax.random.key(0), dtype=jnp.float16)
    factors = jb.backprop(net, params, jnp.zeros((1000, 1)), jnp.full((1000, 1), -300.0))
    sums = jb.group_gradients(factors, np.zeros(1000, int), 1)
    assert sums[0].b.tolist() == [[pytest.approx(300_000, rel=1e-6)]]


@pytest.mark.parametrize("at", [0, (0, 1)])
@pytest.mark.parametrize("both", [False, True])
def test_a_masked_row_of_nan_does_not_trip_debug_nans(at, both):
    net = jb.Network((3, 4, 2))
    params = jb.init(net, jax.random.key(0))
    x, t, weight = jnp.ones((3, 3)), jnp.ones((3, 2)), jnp.array([0, 1.0, 1])
    x, t = x.at[at].set(jnp.nan), t.at[at].set(jnp.nan) if both else t
    with jax.debug_nans(True):
        cost = lambda w: jb.mean_cost(net, params, x, t, weight=w)
        assert jnp.isfinite(cost(weight))
        assert jnp.isfinite(jax.grad(cost)(weight)).all()


@pytest.mark.long(1)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_panel_of_small_floats(dtype):
    net = jb.Network((3, 4, 2))
    params = jb.init(net, jax.random.key(0), dtype=dtype)
    factors = jb.backprop(net, params, jnp.eye(3), jnp.ones((3, 2)))
    assert jnp.isfinite(jb.update_ratio(params, params)).all()
    state = jb.TrainState(params, (), (), jax.random.key(0), jnp.int32(0))
    panel = jb.observe_all(net)(factors, state, params)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(panel))


@pytest.mark.parametrize("n", [10, 784, 4096, 100_000])
def test_a_bound_holds_for_long_rows_too(n):
    """Random rows, and equal numbers, whose roundings all go one way."""
    rows = np.random.default_rng(n).normal(size=(12, n)).astype(np.float32)
    rows[8:] = np.array([0.1, 0.7, 1.1, 3.3], np.float32)[:, None]
    delta, a, t = jnp.asarray(rows[:, :7]), jnp.asarray(rows), jnp.zeros((12, 7))
    factors = jb.Factors(jnp.zeros(12), jb.Tape((delta,), (a, t)), (delta,), t, jnp.ones(12))
    clipped = jb.clip(factors, 0.01)
    squares = (np.asarray(clipped.delta[0], np.float64) ** 2).sum(1)
    norms = np.sqrt(squares * (1 + (rows.astype(np.float64) ** 2).sum(1)))
    assert norms.max() <= float(np.float32(0.01))
    assert norms.min() > 0.01 * (1 - 3e-4)  # and not far within it
