"""The values of a batch, looked at on the host: what no shape can tell."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jbackprop.core.arrays import check_rows
from jbackprop.core.checks import Sized, as_input, as_target
from jbackprop.core.costs import binary_cross_entropy, cross_entropy


def check_batch(net: Sized, x: Any, t: Any) -> None:
    """Finds what is wrong with the values of a batch, on the host: once, before training.

    Args:
        net: the network.
        x: inputs of shape (B, n_0).
        t: ground truth of shape (B, n_L), or integer labels of shape (B,) for `cross_entropy`.

    Raises:
        ValueError: naming the first row where x or t is not finite, a label lies outside
            0 … n_L - 1, or t is no probability: outside [0, 1] for `binary_cross_entropy`,
            negative for `cross_entropy`. Shapes that do not fit raise as everywhere.

    >>> import jax.numpy as jnp
    >>> import jbackprop as jb
    >>> net = jb.Network((2, 3), output=jb.softmax, cost=jb.cross_entropy)
    >>> jb.check_batch(net, jnp.zeros((2, 2)), jnp.array([0, 3]))
    Traceback (most recent call last):
    ValueError: t: expected labels from 0 to 2, got 3 at row 1
    """
    widest = jnp.result_type(float)  # 1e39 is infinite once it is a float32
    with np.errstate(over="ignore"):
        rows = as_input(net, x, widest, lead=1)
        vectors = np.asarray(as_target(net, t, widest, lead=rows.shape[:1]))
    check_rows("x", "finite numbers", np.asarray(x), np.isfinite(rows))
    t = np.asarray(t)
    if t.ndim == 1:
        n = max(*net.shapes[-1], 2)  # one output tells 0 from 1
        return check_rows("t", f"labels from 0 to {n - 1}", t, (t >= 0) & (t < n))
    check_rows("t", "finite numbers", t, np.isfinite(vectors))
    if net.cost == binary_cross_entropy:
        check_rows("t", "numbers from 0 to 1", t, (t >= 0) & (t <= 1))
    if net.cost == cross_entropy:
        check_rows("t", "numbers of at least 0", t, t >= 0)
