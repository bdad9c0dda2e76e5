"""Linear maps as a user writes them: the functions that a network asks for, and no rows."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np


@dataclass(frozen=True)
class Circulant:
    """z_i = Σ_j w_{(i-j) mod n} a_j: a matrix of n numbers. A map of one's own, without rows."""

    def z_shape(self, in_shape):
        return in_shape

    def w_shape(self, in_shape):
        return in_shape

    def apply(self, w, a):
        return self._matrix(w) @ a

    def transpose(self, w, delta, in_shape):
        return self._matrix(w).T @ delta

    def weighted_sum(self, c, delta, a):
        turned = jax.vmap(lambda k: jnp.roll(a, k, axis=1), out_axes=1)(jnp.arange(a.shape[1]))
        return jnp.einsum("b,bi,bki->k", c, delta, turned)

    def _matrix(self, w):
        i = jnp.arange(len(w))
        return w[(i[:, None] - i[None, :]) % len(w)]


@dataclass(frozen=True)
class Banded:
    """A matrix of which only the entries near the diagonal are there: fixed and sparse."""

    n: int

    def z_shape(self, in_shape):
        return (self.n,)

    def w_shape(self, in_shape):
        return (self.n, *in_shape)

    def apply(self, w, a):
        return self._masked(w) @ a

    def transpose(self, w, delta, in_shape):
        return self._masked(w).T @ delta

    def weighted_sum(self, c, delta, a):
        return self._masked(jnp.einsum("b,bi,bj->ij", c, delta, a))

    def _masked(self, w):
        return jnp.where(np.abs(np.subtract.outer(*map(np.arange, w.shape))) <= 1, w, 0)


def doubled(kind):
    """A map of this kind times 2, by ways of its own: what else it inherits may not be its own."""

    class Doubled(kind):
        def apply(self, w, a):
            return 2 * super().apply(w, a)

        def transpose(self, w, delta, in_shape):
            return 2 * super().transpose(w, delta, in_shape)

        def weighted_sum(self, c, delta, a):
            return 2 * super().weighted_sum(c, delta, a)

    return Doubled
