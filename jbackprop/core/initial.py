"""What a network starts from: w^l drawn, b^l = 0."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer, he_normal, lecun_normal

from jbackprop.core.activations import rectifies
from jbackprop.core.arrays import as_floating, check_key, fitted
from jbackprop.core.network import Layer, Network, Params


def init(
    net: Network, key: Any, *, initializer: Initializer | None = None, dtype: Any = jnp.float32
) -> Params:
    """Parameters to start from: draws w^l and sets b^l = 0.

    Args:
        net: the network.
        key: a typed key, `jax.random.key(seed)`.
        initializer: called as `initializer(key, (n_l, n_in), dtype)`, with n_in = n_{l-1}, or
            kernel · channels of a convolution, whose w is that matrix reshaped; one of
            `jax.nn.initializers` with `in_axis=-1, out_axis=-2`. By default LeCun normal (variance
            1/n_{l-1}), and He normal (2/n_{l-1}) where the layer's activation is a rectifier: relu,
            leaky_relu, relu6, elu, celu, silu, gelu, gelu_exact, mish, squareplus.
        dtype: a floating dtype.

    Returns:
        One `Layer` per layer.

    Raises:
        ValueError: key is no typed key; dtype is not floating, or float64 while x64 is off.

    >>> import jax
    >>> import jbackprop as jb
    >>> params = jb.init(jb.Network((64, 32, 10)), jax.random.key(0))
    >>> [w.shape for w, b in params]
    [(32, 64), (10, 32)]
    """
    check_key(key)
    dtype = as_floating("dtype", dtype)
    layers = []
    keys = jax.random.split(key, len(net.maps))
    for linear, shape, f, k in zip(net.maps, net.shapes, net.activations, keys, strict=False):
        normal = he_normal if rectifies(f) else lecun_normal
        draw = initializer or normal(in_axis=-1, out_axis=-2)
        w_shape, b_shape = linear.w_shape(shape), linear.z_shape(shape)[-1:]
        n = w_shape[0] if len(w_shape) > 1 else 1
        matrix = jax.ShapeDtypeStruct((n, math.prod(w_shape) // n), dtype)
        w = fitted("initializer", draw(k, matrix.shape, dtype), matrix)
        layers.append(Layer(w.reshape(w_shape), jnp.zeros(b_shape, dtype)))
    return tuple(layers)
