"""Functions of JAX and activations, each as the other; and what an unknown function is.

Equinox and Flax have activations, flattening and poolings as functions. Those that are known are
found by identity. Any other is tried: on numbers, and as the program that JAX traces.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbackprop.conversion.reasons import why_not
from jbackprop.conversion.steps import Flatten, Function, fail, shortest, shortest_padding
from jbackprop.core import activations as ours
from jbackprop.core.pooling import MaxPool, MeanPool
from jbackprop.core.records import Activation
from jbackprop.core.windows import Shape

_JAX = {
    ours.identity: jax.nn.identity,
    ours.sigmoid: jax.nn.sigmoid,
    ours.tanh: jnp.tanh,
    ours.relu: jax.nn.relu,
    ours.leaky_relu: jax.nn.leaky_relu,
    ours.elu: jax.nn.elu,
    ours.selu: jax.nn.selu,
    ours.celu: jax.nn.celu,
    ours.softplus: jax.nn.softplus,
    ours.silu: jax.nn.silu,
    ours.gelu: jax.nn.gelu,
    ours.mish: jax.nn.mish,
    ours.softsign: jax.nn.soft_sign,
    ours.hard_tanh: jax.nn.hard_tanh,
    ours.hard_sigmoid: jax.nn.hard_sigmoid,
    ours.relu6: jax.nn.relu6,
    ours.squareplus: jax.nn.squareplus,
    ours.log_sigmoid: jax.nn.log_sigmoid,
    ours.softmax: jax.nn.softmax,
}
_OTHER_NAMES = ((jax.lax.tanh, ours.tanh), (jax.lax.logistic, ours.sigmoid))
_WITH_CONSTANTS = (
    (ours.leaky_relu, jax.nn.leaky_relu, "negative_slope"),
    (ours.elu, jax.nn.elu, "alpha"),
)

# What programs may do that are known from one try: such as tell no number from another, add, divide
_MOVE = {"reshape", "squeeze", "transpose", "broadcast_in_dim", "copy"}
_AVERAGE = _MOVE | {"reduce_sum", "reduce_window_sum", "div", "mul", "convert_element_type"}
_LARGEST = _MOVE | {"reduce_window_max"}


def jax_of(f: Activation) -> Any:
    """The function of JAX; where it has none by that name, the activation's own."""
    if f in _JAX:
        return _JAX[f]
    if f == ours.gelu_exact:
        return partial(jax.nn.gelu, approximate=False)
    for of_kind, function, constant in _WITH_CONSTANTS:
        if ours.function_of(f) is ours.function_of(of_kind):
            return partial(function, **{constant: f.f.constants[0]})
    return f.f


def activation_of(f: Any) -> Activation | None:
    """The library's activation that a function of JAX is, if it is one."""
    named = ((function, activation) for activation, function in _JAX.items())
    own = ((activation.f, activation) for activation in ours.BUILT_IN)
    for function, activation in (*named, *_OTHER_NAMES, *own):
        if f is function:
            return activation
    if isinstance(f, partial) and not f.args:
        return _with_keywords(f.func, f.keywords)
    return None


def _with_keywords(f: Any, keywords: dict[str, Any]) -> Activation | None:
    if f is jax.nn.gelu and [*keywords] == ["approximate"]:
        return ours.gelu if keywords["approximate"] else ours.gelu_exact
    if f is jax.nn.softmax and keywords == {"axis": -1}:
        return ours.softmax
    if f is jax.nn.leaky_relu and [*keywords] == ["negative_slope"]:
        return ours.leaky_relu_of(keywords["negative_slope"])
    if f is jax.nn.elu and [*keywords] == ["alpha"]:
        return ours.elu_of(keywords["alpha"])
    return None


def name_of(f: Any) -> str:
    """What tables call it."""
    f = f.func if isinstance(f, partial) else f
    return getattr(f, "__name__", type(f).__name__)


def parts_of(place: str, function: Function, shape: Shape | None) -> tuple[Any, ...]:
    """What a function is: an activation, a flattening, a pooling.

    Args:
        place: where it stands, for the error.
        function: the function.
        shape: of what comes to it, ours; None where it is not known.

    Returns:
        The parts that do the same.
    """
    known = activation_of(function.f)
    if known is not None:
        return (known,)
    if shape is None:
        fail(place, "what a function does to an input can be told of a known shape: give input")
    # a mean of Flax promotes a whole number, whatever promotion its caller allows
    with (
        jax.ensure_compile_time_eval(),  # now, also where a trace is under way around it
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        return _tried(place, function.f, shape, channels_first=function.channels_first)


def _tried(place: str, f: Any, shape: Shape, *, channels_first: bool) -> tuple[Any, ...]:
    channels, positions = shape[-1], shape[:-1]
    lying = (channels, *positions) if channels_first else (2, *shape)
    # of both signs, no two alike, some beyond every clamp
    x = np.random.default_rng(0).normal(size=lying).astype(np.float32) * 9
    once = jax.jit(lambda x: f(x))
    try:
        y = np.asarray(once(x))
        program = jax.make_jaxpr(f)(x).jaxpr
    except Exception as error:  # whatever a user's function raises
        fail(place, f"it does not take an array of shape {lying}: {type(error).__name__}: {error}")
    done, flat = _primitives(program), () if channels_first else x.shape[:1]
    if done <= _MOVE and np.array_equal(y, x.reshape(*flat, -1)):
        return (Flatten(),)
    if done <= _MOVE and np.array_equal(y, x):
        return (ours.identity,)
    if done <= _AVERAGE and positions:
        mean = x.mean(tuple(range(1, 1 + len(positions))))
        if y.shape == mean.shape and np.allclose(y, mean, atol=1e-4):
            return (MeanPool(), Flatten())
    pooling = () if channels_first else _windowed(program, done, x, y)
    if pooling:
        return pooling
    if y.shape == x.shape and _acts_on_elements(once, lying):
        return (Activation.from_function(name_of(f), f),)
    fail(place, _why_not(f, x, y))


def _primitives(program: Any) -> set[str]:
    """What a program does, by name, with what it calls."""
    found = set()
    for eqn in program.eqns:
        inner = eqn.params.get("jaxpr")
        found |= {eqn.primitive.name} if inner is None else _primitives(inner.jaxpr)
    return found


def _why_not(f: Any, x: Any, y: Any) -> str:
    reason = why_not(name_of(f))
    if reason != why_not(""):
        return reason
    return (
        "expected a function that acts element by element, flattens, or gives the largest or the "
        f"mean of windows; got one from {x.shape} to {y.shape}"
    )


def _acts_on_elements(f: Any, shape: Shape) -> bool:
    """Whether f(x)_k is the same function of x_k alone, wherever k is and whatever the others."""
    wide = (max(8, shape[0]), *shape[1:])  # of one number alone nothing could be told
    rng = np.random.default_rng(1)
    x = rng.normal(size=wide).astype(np.float32) * 9
    kept = rng.random(wide) < 0.5
    same = partial(np.allclose, rtol=1e-4, atol=1e-5, equal_nan=True)
    try:
        turned = np.asarray(f(x.ravel()[::-1].reshape(wide)))
        mixed = np.asarray(f(np.where(kept, x, np.float32(0.5))))
        y = np.asarray(f(x))
    except Exception:  # whatever a user's function raises: it knows its own shape
        return False
    return same(turned.ravel()[::-1], y.ravel()) and same(mixed[kept], y[kept])


def _windowed(program: Any, done: set[str], x: np.ndarray, y: np.ndarray) -> tuple[Any, ...]:
    """The pooling of a batch whose windows the program has, if it makes y of x; perhaps flat."""
    maximum = done <= _LARGEST
    found = next((eqn for eqn in program.eqns if "window_dimensions" in eqn.params), None)
    if found is None or not (maximum or done <= _AVERAGE):
        return ()
    inner = slice(-x.ndim + 1, -1)  # positions, between batch and channels
    size, stride, padding = (
        found.params[name][inner] for name in ("window_dimensions", "window_strides", "padding")
    )
    try:
        if maximum:
            pool = MaxPool(
                shortest(size), stride=shortest(stride), padding=shortest_padding(padding)
            )
        else:
            pool = MeanPool(shortest(size), stride=shortest(stride))
        pooled = np.asarray(jax.jit(jax.vmap(pool.apply))(x))
    except ValueError:  # no windows of ours
        return ()
    for parts, same in (((pool,), pooled), ((pool, Flatten()), pooled.reshape(len(x), -1))):
        if y.shape == same.shape and np.allclose(y, same, rtol=1e-4, atol=1e-4):
            return parts
    return ()
