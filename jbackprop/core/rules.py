"""What a rule is: the one line of the recursion that may be replaced, and what it is given.

The line itself, as the slides have it, stands in `backward.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from jaxtyping import Array, Float

from jbackprop.core.arrays import fitted


class Signal(NamedTuple):
    """What a rule is given at hidden layer l: all that reaches it on the way back, of ONE example.

    Attributes:
        w: w^{l+1}, (n_{l+1}, n_l): what `.T @` can be asked of. Where a convolution or a pooling
            stands between, an `Operator` for which that holds too.
        feedback: what the rule keeps for this layer, or None. An array shaped as w^{l+1}, or
            (n_L, *shape of z^l), is made such an operator there as well.
        delta: δ^{l+1}, (n_{l+1},).
        output_delta: δ^L, (n_L,); behind its map, so with positions where a pooling follows that.
        t: the ground truth, (n_L,), or None.
        a: a^l, (n_l,).
        slope: f'(z^l), (n_l,).
        key: this example's and layer's own key, or None.

    Of a convolution z^l and δ^l have the shape (*positions, n_l).

    A rule that reads a field that is None raises `ValueError` with the rule's and the field's name.
    """

    w: Any
    feedback: Any
    delta: Any
    output_delta: Any
    t: Any
    a: Any
    slope: Any
    key: Any


def none(net: Any, params: Any, key: Any) -> tuple[()]:
    """The feedback of a rule that keeps none."""
    return ()


def keep(net: Any, params: Any, feedback: Any, updates: Any, factors: Any, key: Any) -> Any:
    """The update of feedback that stays as it is."""
    return feedback


@dataclass(frozen=True)
class Rule:
    """How δ is carried back: the one line of the recursion that may be replaced.

    Attributes:
        name: what tables, figures and errors call it.
        delta: a `Signal` to δ^l of shape (n_l,).
        init: (net, params, key) to the feedback, one entry per hidden layer, or ().
        update: (net, params, feedback, updates, factors, key) to the next feedback; run after a
            step, with the params before it and the updates that were added to them.
    """

    name: str
    delta: Callable[[Signal], Any]
    init: Callable[..., Any] = none
    update: Callable[..., Any] = keep

    def back(self, signal: Signal) -> Float[Array, "..."]:
        """δ^l, in the shape and dtype of z^l; an error with the rule's name."""
        try:
            delta = self.delta(signal)
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"rule {self.name}: {self._reason(signal, error)}") from error
        return fitted(f"rule {self.name}", delta, signal.slope)

    def _reason(self, signal: Signal, error: Exception) -> str:
        """Whether it failed on a field that is None, which is asked again to tell its name."""
        absent = {name: _Absent(name) for name, value in signal._asdict().items() if value is None}
        try:
            self.delta(signal._replace(**absent))
        except _NotGiven as read:
            return f"reads {read}, which it was not given"
        except (AttributeError, TypeError, ValueError):
            pass
        return f"{type(error).__name__}: {error}"


class _NotGiven(ValueError):
    """The name of a field that was read, and is None."""


class _Absent:
    """In place of None: whatever is done with it tells its name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _used(self, *_: Any, **__: Any) -> NoReturn:
        raise _NotGiven(self.name)

    __getattr__ = __getitem__ = __iter__ = __len__ = __bool__ = __call__ = _used
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __matmul__ = __rmatmul__ = _used
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __neg__ = __abs__ = _used
    __lt__ = __le__ = __gt__ = __ge__ = __float__ = __int__ = _used
