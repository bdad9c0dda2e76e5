"""What an example is worth to training: scores from the factors of its gradient."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jbackprop.core.arrays import check_size
from jbackprop.core.checks import as_target, storable_input, storable_target
from jbackprop.core.examples import over_blocks
from jbackprop.core.factors import Factors, backprop, mean_gradient
from jbackprop.core.network import Network, Params, as_layers
from jbackprop.core.numerics import norms_of_rows, wide
from jbackprop.core.placement import by_example, placed
from jbackprop.quantities.norms import example_norms
from jbackprop.quantities.statistics import inner_products


def grand(factors: Factors) -> Float[Array, " B"]:
    """Scores examples by their gradient, GraNd: ‖g_i‖, (B,). Cost: 2/3.

    The paper takes its mean over several initialisations. Paul et al., "Deep Learning on a Data
    Diet", 2021, arXiv:2107.07075.
    """
    return example_norms(factors)


@placed(by_example("factors"))
def el2n(factors: Factors) -> Float[Array, " B"]:
    """Scores examples by their error, EL2N: ‖y_i - t_i‖, (B,). Cost: a forward pass.

    0 in rows of weight 0. Paul et al., 2021, arXiv:2107.07075.
    """
    return norms_of_rows(wide(factors.tape.a[-1]) - wide(factors.t))


@placed(by_example("x"))
def influence(
    net: Network,
    params: Any,
    x: Any,
    t: Any,
    x_test: Any,
    t_test: Any,
    *,
    block_size: Any = 1024,
) -> Float[Array, " N"]:
    """Which training examples move the cost of a test, TracIn:
    ⟨g_i, ḡ_test⟩ of each, (N,), at these parameters.

    To first order, a step of learning rate η on example i alone lowers the mean test cost by η
    times this. The paper sums it over checkpoints, each with its η. No gradient of a training
    example is formed, and block_size examples are held at a time. Pruthi et al., "Estimating
    Training Data Influence by Tracing Gradient Descent", 2020, arXiv:2002.08484.

    Args:
        net: the network.
        params: (w^l, b^l) per layer.
        x, t: the training set, as for `backprop`, of N examples.
        x_test, t_test: the test batch, as for `backprop`.
        block_size: training examples held in memory at a time.

    Raises:
        ValueError: an argument does not fit the network; block_size below 1.

    >>> import jax, jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((2, 1))
    >>> params = [(jnp.zeros((1, 2)), jnp.zeros(1))]
    >>> x, t = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[1.0], [-1.0]])
    >>> jb.influence(net, params, x, t, x[:1], t[:1]).tolist()
    [2.0, -1.0]
    """
    check_size("block_size", block_size)
    layers = as_layers(net, params)
    dtype = layers[0].w.dtype
    x = jnp.asarray(storable_input(net, x, dtype))
    t = storable_target(net, t, dtype, x.shape[:1])
    as_target(net, t, dtype, lead=x.shape[:1])
    direction = mean_gradient(backprop(net, layers, x_test, t_test))
    return _influence(net, layers, x, t, direction, int(block_size))


@partial(jax.jit, static_argnames=("net", "block_size"))
def _influence(
    net: Network, layers: Params, x: Any, t: Any, direction: Params, block_size: int
) -> Float[Array, " N"]:
    def block(x: Any, t: Any) -> Array:
        return inner_products(backprop(net, layers, x, t), direction)

    return over_blocks(block, x, t, size=block_size)
