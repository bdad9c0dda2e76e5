# %% [markdown]
# # Backpropagation, slide by slide
#
# Each slide of the talk that this project was made from, in its order: the equation, the line of
# the library that is it, and its numbers, worked out by hand for a network of 2, 3 and 2 units and
# compared with what the library says. Every number and picture here was computed as this page was
# made. To run it yourself, in a checkout: `make walkthrough` makes this page,
# `python -m experiments.walkthrough` prints its numbers, and an editor that knows `# %%` cells
# opens the file as a notebook.

# %% tags=["hide-input"]
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import jbackprop as jb
from experiments.common import data, networks
from experiments.common.source import line_of
from jbackprop.core import backward, costs, heads


@dataclasses.dataclass(frozen=True)
class Options:
    """Walk through the slides."""

    out: str = ""
    """Nothing is written; taken so that all experiments are called alike."""
    quick: bool = False
    """Little training, only to see that everything works."""


quick = tyro.cli(Options).quick if __name__ == "__main__" else False


def same(by_hand, by_library, how="by hand"):
    """Prints both to four digits, and stops where they differ."""
    for name, numbers in ((how, by_hand), ("by library", by_library)):
        print(f"{name:11}", np.round(np.asarray(numbers, np.float64), 4).tolist())
    np.testing.assert_allclose(by_hand, by_library, rtol=1e-5, atol=1e-7)


# %% [markdown]
# ## Notation
#
# | on the slides | in the code | shape | meaning |
# | --- | --- | --- | --- |
# | $x = a^0$ | `x` | $(n_0,)$ | input |
# | $w^l, b^l$ | `w`, `b` | $(n_l, n_{l-1})$, $(n_l,)$ | weights and bias, $l = 1 \ldots L$ |
# | $z^l$ | `z` | $(n_l,)$ | weighted input |
# | $a^l = f(z^l)$ | `a` | $(n_l,)$ | activation |
# | $y = a^L$ | `y` | $(n_L,)$ | output |
# | $t$ | `t` | $(n_L,)$ | ground truth |
# | $C$ | `cost` | $()$ | cost |
# | $\delta^l = \partial C / \partial z^l$ | `delta` | $(n_l,)$ | error; "gradient" on the slides |
#
# The network of this page has $L = 2$ layers of weights and the sigmoid as $f$ everywhere. Its
# weights are plain numbers, so that a pocket calculator can follow.

# %%
net = jb.Network((2, 3, 2), jb.sigmoid, jb.sigmoid, jb.squared_error)
w1 = np.array([[0.5, -1.0], [1.5, 0.5], [-0.5, 1.0]])
b1 = np.array([0.0, -0.5, 0.5])
w2 = np.array([[1.0, -1.0, 0.5], [-0.5, 1.5, 1.0]])
b2 = np.array([0.0, -1.0])
params = [(w1, b1), (w2, b2)]
x, t = np.array([1.0, 0.5]), np.array([1.0, 0.0])
print(net)

# %% [markdown]
# ## The cost function
#
# Of a scalar output:
#
# - squared error $C = \frac{1}{2} (y - t)^2$
# - cross-entropy $C = -t \ln y - (1 - t) \ln (1 - y)$
#
# **Erratum.** The slide has the second without its minus sign: that would be largest where the
# output is right. With $t = 1$ and $y$ on its way to 1 a cost must fall:

# %%
print(line_of(costs._squared_error, "return"))
print(line_of(costs._binary_cross_entropy, "return"))
ys = np.array([0.1, 0.5, 0.9])
on_the_slide = np.array([1.0 * np.log(y) + (1 - 1.0) * np.log(1 - y) for y in ys])
ours = [float(jb.binary_cross_entropy.value(jnp.array([y]), jnp.ones(1))) for y in ys]
print("as on the slide, y = 0.1, 0.5, 0.9:", on_the_slide.round(3).tolist(), "rises")
print("with the minus sign:               ", np.round(ours, 3).tolist(), "falls")

# %% [markdown]
# ## Backpropagation
#
# The goal is $\partial C / \partial w$ and $\partial C / \partial b$, for stochastic gradient
# descent. The means is one definition: $\delta^l = \partial C / \partial z^l$, the error of layer
# $l$. To have something to go back from, first the way forward, which the talk has in its summary:
# $z^l = w^l a^{l-1} + b^l$ and $a^l = f(z^l)$.

# %%
f = lambda z: 1 / (1 + np.exp(-z))
slope = lambda z: f(z) * (1 - f(z))
z1 = w1 @ x + b1
a1 = f(z1)
z2 = w2 @ a1 + b2
y = f(z2)
tape = jb.forward(net, params, x)
print(line_of(jb.forward, "linear.apply(w, a)"))
same(z1, tape.z[0])
same(a1, tape.a[1])
same(z2, tape.z[1])
same(y, tape.a[2])

# %% [markdown]
# ## Backward pass: the last layer
#
# $$\delta^4 = \frac{\partial C}{\partial z^4} = \frac{\partial C}{\partial y}
# \frac{\partial y}{\partial z^4} = (y - t) \odot f'(z^4)$$
#
# on the slide, whose network has four layers; of ours it is $\delta^2$. The factor $y - t$ belongs
# to the squared error. In general it is $\nabla_y C$, and where a cost and an output go together,
# as cross-entropy and the sigmoid do, the product has a shorter form, $y - t$ alone.

# %%
print(line_of(backward.output_delta, "delta_L = head"))
print(line_of(heads._y_minus_t, "return"))
delta2 = (y - t) * slope(z2)
deltas = jb.backward(net, params, tape, t)
same(delta2, deltas[1])
entropy = jb.Network((2, 3, 2), jb.sigmoid, jb.sigmoid, jb.binary_cross_entropy)
same(y - t, jb.backward(entropy, params, tape, t)[1])

# %% [markdown]
# ## Backward pass: what a hidden unit did
#
# All of $z^4$ depend on $z^3_j$, since $z^4_k = \ldots + w^4_{kj} f(z^3_j) + \ldots$
# By the chain rule
#
# $$\delta^3_j = \frac{\partial C}{\partial z^3_j}
# = \sum_k \frac{\partial C}{\partial z^4_k} \frac{\partial z^4_k}{\partial z^3_j}
# = \sum_k \frac{\partial C}{\partial z^4_k} \frac{\partial z^4_k}{\partial a^3_j}
# \frac{\partial a^3_j}{\partial z^3_j}
# = \left( \sum_k \delta^4_k w^4_{kj} \right) f'(z^3_j)$$
#
# The sum, written out for the three hidden units of ours:

# %%
by_sums = np.array([sum(delta2[k] * w2[k, j] for k in range(2)) * slope(z1)[j] for j in range(3)])
for j in range(3):
    terms = " + ".join(f"{delta2[k]:.4f} · {w2[k, j]:g}" for k in range(2))
    print(f"δ¹_{j + 1} = ({terms}) · {slope(z1)[j]:.4f} = {by_sums[j]:.4f}")
same(by_sums, deltas[0])

# %% [markdown]
# ## Backward pass: the same as a product with a matrix
#
# $$\delta^3 = (w^4)^T \delta^4 \odot f'(z^3)$$
#
# with $\odot$ for the product of each element with its own. Hence, for $l = L-1, \ldots, 1$,
#
# $$\delta^l = (w^{l+1})^T \delta^{l+1} \odot f'(z^l), \qquad
# \delta^L = \nabla_y C \odot f'(z^L)$$
#
# This line is the library. `s` is what reaches a layer: the weights above it, their δ, and the
# slope $f'(z^l)$ of its own activation.

# %%
print(line_of(backward._backpropagation, "return"))
delta1 = (w2.T @ delta2) * slope(z1)
same(delta1, deltas[0])

# %% [markdown]
# The error on its way back, from above: δ² at the output, δ¹ at the hidden units, x below, for
# this example and three others. Dark is below 0, light above; at the right the mean ‖δ‖ of the row.

# %%
others = np.array([x, [0.0, 1.0], [-1.0, 0.5], [2.0, -1.0]])
truths = np.array([t, [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
jb.plot_flow(jb.backprop(net, params, others, truths), title="δ², δ¹ and x of four examples")

# %% [markdown]
# ## Backward pass: the weights
#
# $$\frac{\partial C}{\partial w^l_{jk}} = \frac{\partial C}{\partial z^l_j}
# \frac{\partial z^l_j}{\partial w^l_{jk}} = \delta^l_j a^{l-1}_k$$
#
# since $z^l_j = \ldots + w^l_{jk} a^{l-1}_k + \ldots$
#
# **Erratum.** The next slide writes $a^{l-1}_{jk}$ for $a^{l-1}_k$ in its general line: an
# activation has one index. With $j$ in it, an entry of the matrix could not be told from the slide.
#
# For all $j$ and $k$ it is a column times a row, an outer product:
#
# $$\frac{\partial C}{\partial w^l} = \delta^l (a^{l-1})^T, \qquad l = 1, \ldots, L$$

# %%
print(line_of(jb.gradients, "jnp.outer"))
gradient = jb.gradients(tape, deltas)
same(np.outer(delta1, x), gradient[0].w)
same(np.outer(delta2, a1), gradient[1].w)

# %%
jb.plot_outer(deltas[1], tape.a[1], title="∂C/∂w² of the example, as on the slide")

# %% [markdown]
# ## Backward pass: the bias
#
# $$\frac{\partial C}{\partial b^l_j} = \frac{\partial C}{\partial z^l_j}
# \frac{\partial z^l_j}{\partial b^l_j} = \delta^l_j$$
#
# since $z^l_j = \ldots + b^l_j$: the error itself.

# %%
same(delta1, gradient[0].b)
same(delta2, gradient[1].b)

# %% [markdown]
# ## In general, and whether it is true
#
# All of it, twice more: by differences, a weight moved a little to either side, and by `jax.grad`,
# which knows nothing of δ.


# %%
def cost(params):
    """C of the example, by the forward pass alone."""
    return 0.5 * np.sum(
        (f(params[1][0] @ f(params[0][0] @ x + params[0][1]) + params[1][1]) - t) ** 2
    )


step = 1e-5
moved = lambda by: [(w1 + by * np.eye(3, 2) * [1, 0], b1), (w2, b2)]
print("∂C/∂w¹_11 by differences", round((cost(moved(step)) - cost(moved(-step))) / (2 * step), 6))
print("∂C/∂w¹_11 = δ¹_1 x_1    ", round(float(gradient[0].w[0, 0]), 6))
floats = jax.tree.map(jnp.float32, params)
by_autodiff = jax.grad(lambda p: jb.mean_cost(net, p, x[None], t[None]))(floats)
same(by_autodiff[0][0], gradient[0].w, how="by jax.grad")

# %% [markdown]
# ## Summary
#
# | forward | backward |
# | --- | --- |
# | $a^0 = x$ | $\delta^L = \nabla_y C \odot f'(z^L)$ |
# | $z^l = w^l a^{l-1} + b^l$ | $\delta^l = (w^{l+1})^T \delta^{l+1} \odot f'(z^l)$ |
# | $a^l = f(z^l)$ | $\partial C / \partial w^l = \delta^l (a^{l-1})^T$ |
# | $y = a^L$ | $\partial C / \partial b^l = \delta^l$ |
#
# That is where the talk ends. Three pictures of what follows from these lines.
#
# ## What the factor $f'(z^L)$ does: learning slows down
#
# One sigmoid, one input of 1, a target of 0, and two starts: one a little wrong, one very wrong
# (Nielsen, *Neural Networks and Deep Learning*, 2015, chapter 3). With the squared error
# $\delta = (y - t) f'(z)$ is all but 0 where the unit saturates, however wrong it is; with
# cross-entropy $\delta = y - t$, and the worst mistakes teach most.


# %%
def learned(cost, start, steps=300, rate=0.15):
    """y before every step of gradient descent."""
    unit, one = jb.Network((1, 1), output=jb.sigmoid, cost=cost), jnp.ones((1, 1))

    def descend(params, _):
        said = jb.predict(unit, params, one)[0, 0]
        gradient = jb.mean_gradient(jb.backprop(unit, params, one, 0 * one))
        return jb.sgd_step(params, gradient, rate), said

    start = (jb.Layer(jnp.full((1, 1), start[0]), jnp.full(1, start[1])),)
    return jax.lax.scan(descend, start, None, steps)[1]


starts = {"a little wrong": (0.6, 0.9), "very wrong": (2.0, 2.0)}
kinds = {"squared error": jb.squared_error, "cross-entropy": jb.binary_cross_entropy}
jb.plot_lines(
    {
        f"{kind}, {how}": learned(cost, start)
        for kind, cost in kinds.items() for how, start in starts.items()
    },
    title="Output y of one sigmoid that should say 0", xlabel="step",
)  # fmt: skip

# %% [markdown]
# ## What the product of many factors does: δ vanishes
#
# Every step back multiplies by $(w^{l+1})^T$ and by $f'(z^l)$, which of a sigmoid is at most ¼.
# The mean $\|\delta^l\|$ of 200 random inputs in networks of ten hidden layers of 50 units, as they
# are drawn, in units of the last layer's:

# %%
inputs = jax.random.normal(jax.random.key(1), (200, 50))
lines = {}
for activation in (jb.sigmoid, jb.tanh, jb.relu):
    deep = jb.Network((50, *[50] * 10, 10), activation, jb.softmax, jb.cross_entropy)
    drawn = jb.init(deep, jax.random.key(0))
    sizes = np.asarray(jb.delta_norms(jb.backprop(deep, drawn, inputs, jnp.arange(200) % 10)).mean)
    lines[activation.name] = sizes / sizes[-1]
    print(f"{activation.name:8} ‖δ¹‖ / ‖δ¹¹‖ = {sizes[0] / sizes[-1]:.1e}")
jb.plot_lines(lines, title="mean ‖δ$^l$‖ / ‖δ$^{11}$‖", xlabel="layer l", log=True)

# %% [markdown]
# ## The same recursion over an image
#
# A convolution is one small matrix $w^l$ used at every position; with $r_p(a)$ for what it sees at
# position $p$,
#
# $$\frac{\partial C}{\partial w^l} = \sum_p \delta^l_p r_p(a^{l-1})^T, \qquad
# \frac{\partial C}{\partial b^l} = \sum_p \delta^l_p$$
#
# and the recursion stays as it is. δ has a place now: of a digit it says where the error is. Here
# after a little training, of eight test digits: δ⁴ of the ten outputs and δ³ of the hidden units as
# above; below them, of both convolutions, ‖δ‖ at every position, dark where it is large.

# %%
digits = data.load(None, 0)
lenet = networks.lenet((8, 8), 10, jb.relu)
shaped = lambda part: (jnp.reshape(part.x, (-1, 8, 8, 1)), jnp.asarray(part.labels))
optimizer = optax.adam(2e-3)
state = jb.init_state(lenet, optimizer, jax.random.key(0))
first = state.params
for _ in range(1 if quick else 5):
    state, _ = jb.train_epoch(lenet, optimizer, state, *shaped(digits.train), batch_size=32)
images, labels = shaped(digits.test)
print(
    "accuracy on the test digits:",
    round(float(jb.evaluate(lenet, state.params, images, labels).accuracy), 3),
)
jb.plot_flow(jb.backprop(lenet, state.params, images[:8], labels[:8]))

# %% [markdown]
# What all those outer products added up to: the weights, and how far training has moved them.

# %%
jb.plot_weights(state.params, first)
