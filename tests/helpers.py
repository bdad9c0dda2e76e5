"""The one comparison, and the networks that the batteries run over."""

import jax
import jax.numpy as jnp
import numpy as np

import jbackprop as jb

# Largest error allowed, relative to the largest entry of the leaf that is expected.
TOLERANCE = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 4e-2}


def assert_close(ours, theirs, tolerance=None):
    """Equal structure, shapes and dtypes; entries equal up to `tolerance` × the leaf's scale."""
    structures = jax.tree.structure(ours), jax.tree.structure(theirs)
    assert structures[0] == structures[1], f"structure: {structures[0]} is not {structures[1]}"
    paths = jax.tree_util.tree_leaves_with_path(ours)
    for (path, a), b in zip(paths, jax.tree.leaves(theirs), strict=True):
        where = jax.tree_util.keystr(path)
        a, b = jnp.asarray(a), jnp.asarray(b)
        assert a.shape == b.shape, f"{where}: shape {a.shape} is not {b.shape}"
        assert a.dtype == b.dtype, f"{where}: dtype {a.dtype} is not {b.dtype}"
        allowed = TOLERANCE[a.dtype.name] if tolerance is None else tolerance
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale, error = np.max(np.abs(b), initial=0), np.max(np.abs(a - b), initial=0)
        assert error <= allowed * scale, f"{where}: error {error:.3g} at scale {scale:.3g}"


HIDDEN = [
    jb.identity, jb.sigmoid, jb.tanh, jb.relu, jb.leaky_relu, jb.elu, jb.selu, jb.celu,
    jb.softplus, jb.silu, jb.gelu, jb.gelu_exact, jb.mish, jb.softsign, jb.hard_tanh,
    jb.hard_sigmoid, jb.relu6, jb.squareplus, jb.log_sigmoid,
]  # fmt: skip

# (output, cost): first the three that fuse, then pairs that go through ∇_y C ⊙ f'(z^L)
HEADS = [
    (jb.sigmoid, jb.binary_cross_entropy),
    (jb.softmax, jb.cross_entropy),
    (jb.identity, jb.squared_error),
    (jb.sigmoid, jb.squared_error),
    (jb.tanh, jb.huber),
    (jb.identity, jb.log_cosh),
    (jb.sigmoid, jb.cross_entropy),
    (jb.softmax, jb.squared_error),
    (jb.softmax, jb.binary_cross_entropy),
]

SIZES = [(5, 3), (4, 6, 3), (4, 5, 6, 3)]


def head_name(head):
    return f"{head[0].name}-{head[1].name}"


def problem(net, batch=6, seed=0, dtype=jnp.float32):
    """Parameters with biases that are not 0, inputs, and a ground truth that suits the cost."""
    in_shapes = [*zip(net.maps, net.shapes, strict=False)]
    w_shapes = [linear.w_shape(shape) for linear, shape in in_shapes]
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    params = tuple(
        jb.Layer(draw(*shape) / np.sqrt(np.prod(shape[1:])).astype(dtype), draw(*z_shape[-1:]))
        for shape, z_shape in zip(w_shapes, net.z_shapes, strict=True)
    )
    x, t = draw(batch, *net.shapes[0]), draw(batch, *net.shapes[-1])
    if net.cost.name in ("cross_entropy", "binary_cross_entropy"):
        t = jax.nn.softmax(t)  # neither 0 nor 1, so that the textbook's logarithms are finite
    return params, x, t


def temporaries(compiled):
    """Bytes that a compiled program allocates besides its arguments and results."""
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return analysis.temp_size_in_bytes
