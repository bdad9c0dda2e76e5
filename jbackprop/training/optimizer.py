"""Any optax optimizer: given what it asks for, and nothing that it refuses.

Optimizers with extra arguments are offered the factors, the cost (`value`), the gradient (`grad`),
and functions of parameters: the cost of this batch (`value_fn`, for line searches; `obj_fn` is
another name of it) and its gradient (`grad_fn`, for sharpness-aware steps).
"""

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

Optimizer = optax.GradientTransformation | optax.MultiSteps
F = TypeVar("F", bound=Callable[..., Any])


def check_optimizer(optimizer: Any) -> None:
    """Something with `init` and `update`, as optax has them."""
    if not callable(getattr(optimizer, "init", None)) or not callable(
        getattr(optimizer, "update", None)
    ):
        made = "; call it with its learning rate" if callable(optimizer) else ""
        got = getattr(optimizer, "__name__", type(optimizer).__name__)
        raise ValueError(f"optimizer: expected an optax transformation, got {got}{made}")


def takes_optimizer(function: F) -> F:
    """Looks at the second argument first: one that was forgotten is missed by its own name."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for optimizer in args[1:2] or [v for name, v in kwargs.items() if name == "optimizer"]:
            check_optimizer(optimizer)
        return function(*args, **kwargs)

    return checked  # pyright: ignore


def updates_of(
    optimizer: Any, grads: Any, opt_state: Any, params: Any, offered: dict[str, Any]
) -> tuple[Any, Any]:
    """(updates, next state), which keeps the dtypes that it has, so that a loop can carry it."""
    try:
        updates, following = optimizer.update(grads, opt_state, params, **offered)
    except (AttributeError, TypeError, ValueError) as error:
        # Known only by its answer: one may stand deep within a chain, or, as in
        # `optax.MultiSteps`, pass on what its signature does not name.
        named = re.findall(r"'(\w+)'", str(error)) if "keyword argument" in str(error) else []
        taken = {name: offered[name] for name in offered.keys() - {*named}}
        if len(taken) == len(offered):
            _check_state(optimizer, opt_state, params, error)
            raise
    else:
        if jax.tree.structure(following) == jax.tree.structure(opt_state):
            following = jax.tree.map(_in_the_dtype_of, opt_state, following)
        _check_shapes(params, updates)
        return updates, following
    return updates_of(optimizer, grads, opt_state, params, taken)


def _check_state(optimizer: Any, opt_state: Any, params: Any, error: Exception) -> None:
    """Whether it failed on a state that was made for another optimizer."""
    own = jax.eval_shape(optimizer.init, params)
    if jax.tree.structure(own) != jax.tree.structure(opt_state):
        raise ValueError(
            "state: expected an opt_state of this optimizer, got one of another; a state is made "
            "for one, by init_state(net, optimizer, …)"
        ) from error


def _in_the_dtype_of(before: Any, after: Any) -> Any:
    dtype = getattr(before, "dtype", None)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        return after
    return jnp.asarray(after, dtype)


def _check_shapes(params: Any, updates: Any) -> None:
    expected, got = ([np.shape(v) for v in jax.tree.leaves(tree)] for tree in (params, updates))
    if got != expected:
        raise ValueError(
            f"gradient: expected one whose updates have the parameters' shapes {expected}, "
            f"got {got} from the optimizer"
        )
