"""The records of a network's parts: `Activation` and `Cost`, two functions each, and a name.

What a user's function returns is looked at in one place: `Activation.slope` and `Activation.back`
here, `Cost` in `heads.py`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def as_constant(name: str, value: Any, *, positive: bool = False) -> float:
    """A finite number, known here, as a float."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or isinstance(value, str) or (positive and number <= 0):
        expected = "a finite number above 0" if positive else "a finite number"
        raise ValueError(f"{name}: expected {expected}, got {value!r}")
    return number


def written(constant: float) -> str:
    """As a factor of what follows in a formula, where 1 is not written."""
    return "" if constant == 1 else f"{constant:g} "


@dataclass(frozen=True)
class Constants:
    """A function with its constants: equal functions of equal constants are equal, and pickle."""

    function: Callable[..., Any]
    constants: tuple[float, ...]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments, *self.constants)


@dataclass(frozen=True)
class Derivative:
    """f' of an f that acts element by element, by forward mode."""

    f: Callable[[Any], Any]

    def __call__(self, z: Any) -> Any:
        return jax.jvp(self.f, (z,), (jnp.ones_like(z),))[1]


@dataclass(frozen=True, repr=False)
class _Record:
    """What both have: a name, and what `help` and `repr` say of it."""

    name: Any
    formula: str = field(default="", compare=False, kw_only=True)
    elsewhere: str = field(default="", compare=False, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ValueError(f"name: expected a string, got {self.name!r}")
        told = f"{type(self).__name__} {self.name}"
        if self.formula:
            told += f": {self.formula}"
        if self.elsewhere:
            told += f"\n\nElsewhere: {self.elsewhere}."
        # a frozen dataclass is written once, here; `help(jb.tanh)` shows it
        self.__dict__["__doc__"] = told

    def __repr__(self) -> str:
        kind, formula = type(self).__name__, f": {self.formula}" if self.formula else ""
        return f"<{kind} {self.name}{formula}>"

    def _check_functions(self, **functions: Any) -> None:
        for name, function in functions.items():
            if not callable(function):
                kind = type(self).__name__.lower()
                raise ValueError(
                    f"{kind} {self.name}: expected a function {name}, got {function!r}"
                )


@dataclass(frozen=True, repr=False)
class Activation(_Record):
    """An activation function f and its derivative f': ours, or your own, two functions of z.

    Attributes:
        name: what tables, figures and errors call it.
        f: z of shape (n,) to a of shape (n,), element by element: behind a convolution z has the
            shape (*positions, n).
        df: z to f'(z) of the same shape, or to a constant.
        pull: (z, e) to Jᵀ e, of shape (n,) all of them, with J = ∂a/∂z: for an output whose
            outputs depend on all of z, such as a softmax with a temperature. Then `df` is not used
            by a pass, and may be None.
        formula, elsewhere: what `help` says of it.

    `Activation` is a static description: hashable, never a pytree. Define f and df once, at module
    level: a network made of fresh lambdas compiles anew each time. `check_derivatives` compares
    them.

    Raises:
        ValueError: name is no string; f, df or pull is no function.

    >>> import jax.numpy as jnp
    >>> from jbackprop import Activation, Network
    >>> cube = Activation("cube", lambda z: z**3, lambda z: 3 * z**2)
    >>> cube.df(jnp.array([2.0]))
    Array([12.], dtype=float32)
    >>> Network((2, 3, 1), cube).activations[0].name
    'cube'
    """

    f: Any
    df: Any
    pull: Any = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_functions(f=self.f)
        if self.pull is not None:
            self._check_functions(pull=self.pull)
        if self.pull is None or self.df is not None:
            self._check_functions(df=self.df)

    @staticmethod
    def from_function(name: str, f: Callable[[Any], Any]) -> "Activation":
        """The activation f, element by element, with f' by automatic differentiation.

        Equal functions make equal activations. Where f saturates, f' is what that gives: a formula
        of one's own may keep more digits.

        >>> import jax.numpy as jnp
        >>> from jbackprop import Activation
        >>> cube = Activation.from_function("cube", lambda z: z**3)
        >>> cube.df(jnp.array([2.0]))
        Array([12.], dtype=float32)
        """
        return Activation(name, f, Derivative(f))

    def slope(self, z: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """f'(z) in the shape and dtype of z, whatever `df` returns: bools, whole numbers, one."""
        try:
            slope = jnp.asarray(self.df(z))
        except TypeError as error:
            raise ValueError(
                f"activation {self.name}: df(z) does not take z of shape {z.shape}: {error}. "
                "Of a function of one number, Activation.from_function makes an activation"
            ) from error
        if slope.shape not in (z.shape, ()):
            raise ValueError(
                f"activation {self.name}: expected df(z) of shape {z.shape}, got {slope.shape}"
            )
        return jnp.broadcast_to(slope.astype(z.dtype), z.shape)

    def back(self, z: Float[Array, " n"], e: Float[Array, " n"]) -> Float[Array, " n"]:
        """Jᵀ e of an output with a `pull` of its own."""
        assert self.pull is not None
        found = jnp.asarray(self.pull(z, e))
        if found.shape != z.shape:
            raise ValueError(
                f"activation {self.name}: expected pull(z, e) of shape {z.shape}, got {found.shape}"
            )
        return found.astype(z.dtype)


@dataclass(frozen=True, repr=False)
class Cost(_Record):
    """A cost C of one example and its derivative ∇_y C: ours, or your own, two functions of (y, t).

    Attributes:
        name: what tables, figures and errors call it.
        value: (y, t), both of shape (n_L,), to C of shape ().
        grad: (y, t) to ∇_y C of shape (n_L,).
        formula, elsewhere: what `help` says of it.

    Raises:
        ValueError: name is no string; value or grad is no function.

    >>> import jax.numpy as jnp
    >>> from jbackprop import squared_error
    >>> y, t = jnp.array([3.0, 0.0]), jnp.array([1.0, 0.0])
    >>> float(squared_error.value(y, t)), squared_error.grad(y, t).tolist()
    (2.0, [2.0, 0.0])
    """

    value: Any
    grad: Any

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_functions(value=self.value, grad=self.grad)
