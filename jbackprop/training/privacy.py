"""The two draws of DP-SGD: who is in a sample, and the noise on its sum.

With rate q, max_norm C, noise multiplier σ and a fixed divisor, the expected size of a sample:

    θ ← θ - η [Σ_{i in sample} clip(g_i, C) + N(0, σ² C² I)] / divisor

`poisson_sample` draws the sample, `clipped_sum` is its gradient, `gaussian_noise` adds the noise
before any optimizer. One example moves the sum by at most C, whoever else is in it. Abadi et al.,
"Deep Learning with Differential Privacy", 2016, arXiv:1607.00133. (Neither JAX's random numbers
nor floating-point arithmetic are hardened against attacks.)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jbackprop.core.arrays import as_numbers, check_key, check_positive, check_size, is_concrete
from jbackprop.core.numerics import wide


def poisson_sample(
    key: Any, n: Any, rate: Any, capacity: Any
) -> tuple[Int[Array, " capacity"], Float[Array, " capacity"]]:
    """A Poisson sample: every one of n examples by itself, with probability `rate`.

    Its size is binomial, so it comes as `capacity` rows of fixed shape: index and weight, to be
    used as `x[index], t[index], weight=weight`.

    Args:
        key: a typed key.
        n: how many examples there are.
        rate: a number from 0 to 1, known here. What is drawn with is the largest k / 2³² that is
            not above it, never more than is accounted for.
        capacity: rows. Choose it so that a larger sample is hopelessly rare: cut off, it would not
            be one of the kind that the accounting knows.

    Returns:
        index, (capacity,) int32, and weight, (capacity,): 1 in the rows that hold an example, and
        0 in the rest, whose index is 0.

    Raises:
        ValueError: an argument is out of range; the sample is larger than capacity (every weight is
            NaN instead where that is traced, and so is what becomes of it).

    >>> import jax
    >>> import jbackprop as jb
    >>> index, weight = jb.poisson_sample(jax.random.key(0), 1000, 0.05, capacity=100)
    >>> index.shape, int(weight.sum())
    ((100,), 53)
    """
    check_key(key)
    check_size("n", n)
    check_size("capacity", capacity)
    number = as_numbers("rate", rate)
    if not is_concrete(number) or number.shape != () or not 0 <= float(number) <= 1:
        raise ValueError(f"rate: expected a number from 0 to 1, got {rate!r}")
    below = int(float(number) * 2**32)
    chosen = jax.random.bits(key, (int(n),), jnp.uint32) <= jnp.uint32(max(below - 1, 0))
    chosen &= below > 0
    count = jnp.sum(chosen)
    if is_concrete(count) and count > capacity:
        raise ValueError(
            f"capacity: expected at least {count} rows, the size of this sample, got {capacity}"
        )
    (index,) = jnp.nonzero(chosen, size=int(capacity), fill_value=0)
    weight = (jnp.arange(int(capacity)) < count).astype(jnp.float32)
    return index.astype(jnp.int32), jnp.where(count > capacity, jnp.nan, weight)


class GaussianNoiseState(NamedTuple):
    """The key of the noise to come. Whoever has it can take that noise off: it is a secret."""

    key: Array


def gaussian_noise(
    noise_multiplier: Any, max_norm: Any, divisor: Any, key: Any
) -> optax.GradientTransformation:
    """The noise of private training, an optax transformation:
    adds N(0, (noise_multiplier · max_norm / divisor)²) to every entry of a gradient, every step.

    To be chained before an optimizer, behind `gradient=clipped_sum(max_norm, divisor)`. The noise
    is drawn and added in float32 at least.

    Args:
        noise_multiplier: σ, the deviation in units of what one example may contribute; 0 is none.
        max_norm: the bound that the examples' gradients were clipped to.
        divisor: what their sum was divided by.
        key: a typed key, of this run alone: two runs with one key cancel each other's noise.

    Raises:
        ValueError: a number is out of range; the deviation is none of float32, and would become 0
            or infinite.

    >>> import jax, optax
    >>> import jbackprop as jb
    >>> noise = jb.gaussian_noise(1.1, max_norm=1.0, divisor=128, key=jax.random.key(0))
    >>> optimizer = optax.chain(noise, optax.sgd(0.5))
    """
    check_key(key)
    multiplier = as_numbers("noise_multiplier", noise_multiplier)
    if not is_concrete(multiplier) or not 0 <= float(multiplier) < float("inf"):
        raise ValueError(
            f"noise_multiplier: expected a finite number of at least 0, got {noise_multiplier!r}"
        )
    if float(multiplier) == 0:
        return optax.identity()
    deviation = float(multiplier) * check_positive("max_norm", max_norm)
    deviation /= check_positive("divisor", divisor)
    limits = jnp.finfo(jnp.float32)
    if not float(limits.tiny) <= deviation <= float(limits.max):
        raise ValueError(
            f"max_norm: expected a noise of deviation {float(limits.tiny):.3g} to "
            f"{float(limits.max):.3g}, the range of float32, got "
            f"noise_multiplier · max_norm / divisor = {deviation:.3g}"
        )

    def init(params: Any) -> GaussianNoiseState:
        return GaussianNoiseState(key)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, GaussianNoiseState]:
        following, this = jax.random.split(state.key)
        leaves, structure = jax.tree.flatten(updates)
        keys = jax.random.split(this, len(leaves))
        noisy = [
            wide(g) + deviation * jax.random.normal(k, g.shape, wide(g).dtype)
            for g, k in zip(leaves, keys, strict=True)
        ]
        return jax.tree.unflatten(structure, noisy), GaussianNoiseState(following)

    return optax.GradientTransformation(init, update)
