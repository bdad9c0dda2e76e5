"""Data larger than the device: batches come from the host, one by one, as they are needed.

JAX computes a step while Python goes on. So the next batch is read, and is on its way to the
device, while those before it compute: a few of them, lest batches and states pile up.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jbackprop.core.arrays import as_numbers, check_size, is_concrete, is_key
from jbackprop.core.batch import pad_batch
from jbackprop.core.network import Network
from jbackprop.training.optimizer import Optimizer, takes_optimizer
from jbackprop.training.state import Info, TrainState, epoch_order
from jbackprop.training.step import How, border
from jbackprop.training.train import train_step

AHEAD = 2  # steps under way while a batch is read
BATCH = "(x, t) or (x, t, weight)"


@takes_optimizer
def train_stream(
    net: Network,
    optimizer: Optimizer,
    state: TrainState,
    batches: Any,
    *,
    batch_size: Any = None,
    put: Callable[[Any], Any] | None = None,
    **options: Any,
) -> tuple[TrainState, Info]:
    """Trains on batches as they come from the host: an epoch of data larger than the device.

    A `train_step` for each of them; the next is read while at most two steps compute. One that has
    fewer rows than the rest is filled up with rows of weight 0 (`pad_batch`), and such ones alone
    are masked: two programs, whatever their sizes.

    Args:
        net, optimizer, state: as in `train_step`.
        batches: an iterable of (x, t) or (x, t, weight), each as `train_step` takes it: from
            `epoch_batches`, a generator, a loader. It may use its memory again for the next.
        batch_size: rows in a step, and the most that a batch may have; by default as many as the
            first has.
        put: (x, t, weight), with None where there is no weight, to the same on devices, such as
            `functools.partial(shard_batch, mesh)`. By default they go where the state lies. Of
            several processes each gives its own rows, as many as the others in every step.
        options: all else that `train_step` takes: `rule`, `gradient`, `observe`, `donate` …
            With `donate` every step writes over the state before it, the caller's too; without,
            up to four of them are held at a time. JAX on a CPU waits for the end of a step whose
            state is donated, so that nothing is read meanwhile.

    Returns:
        The next state, and an `Info` whose leaves have a leading axis: the steps. Each is fetched
        to the host as soon as it is there.

    Raises:
        ValueError: batches is no iterable, or empty; one of them is none, or has no rows, or more
            than batch_size; put does not return three; as in `train_step`, with a note of the
            batch's number, from 0. What the iterable raises comes as it is.

    >>> import jax, numpy as np, optax
    >>> import jbackprop as jb
    >>> net, optimizer = jb.Network((3, 2)), optax.sgd(0.1)
    >>> state = jb.init_state(net, optimizer, jax.random.key(0))
    >>> batches = ((np.ones((rows, 3)), np.ones((rows, 2))) for rows in (4, 4, 2))
    >>> state, info = jb.train_stream(net, optimizer, state, batches)
    >>> info.cost.shape, int(state.step)
    ((3,), 3)
    """
    if batch_size is not None:
        check_size("batch_size", batch_size)
    if not isinstance(batches, Iterable):
        raise ValueError(f"batches: expected an iterable of {BATCH}, got {type(batches).__name__}")
    if "weight" in options:
        raise ValueError("weight: expected in every batch, (x, t, weight), got one for all")
    copy = not isinstance(batches, _Gathered)
    if isinstance(batches, _Gathered) and put is None:  # nobody else sees them
        batches.held = AHEAD + 1
    told: list[Info] = []
    running: deque[Info] = deque()
    for number, batch in enumerate(batches):
        try:
            batch = _filled(_own(batch, number, copy=copy), batch_size, number)
            batch_size = len(batch[0])
            if put is not None:
                batch = _three(put(border(net, state, *batch, how=How())[1:4]))
            x, t, weight = batch
            state, info = train_step(net, optimizer, state, x, t, weight=weight, **options)
        except ValueError as error:
            error.add_note(f"in batch {number}")
            raise
        running.append(info)
        if len(running) > AHEAD:
            told.append(jax.tree.map(_fetched, running.popleft()))
    told += [jax.tree.map(_fetched, info) for info in running]
    if not told:
        raise ValueError("batches: expected at least one, got none")
    return state, jax.tree.map(_stacked, *told)


def epoch_batches(
    state: TrainState, x: Any, t: Any, *, batch_size: Any, weight: Any = None
) -> Iterator[tuple[Any, ...]]:
    """Reads the batches of the coming `train_epoch`, in its order, from where the data are kept.

    With them `train_stream` makes the steps of `train_epoch(…, x, t, batch_size=…)`, of which a
    state like this one, or its `key` and the `step` that its epoch began at, says the order. Of the
    data a batch at a time is in memory, and of the order 4 bytes an example.

    Args:
        state: as it goes into the epoch.
        x: inputs of shape (N, n_0), indexed by rows: a `np.memmap`, an array, a dataset of h5py.
        t: ground truth of shape (N, n_L), or labels of shape (N,).
        batch_size: rows in a batch, at least 1; the last has what is left.
        weight: of shape (N,).

    Returns:
        An iterator of (x, t), or of (x, t, weight) where there is one.

    Raises:
        ValueError: x is empty; t or weight has not a row for each of it; batch_size below 1.

    >>> import jax, numpy as np, optax
    >>> import jbackprop as jb
    >>> state = jb.init_state(jb.Network((3, 2)), optax.sgd(0.1), jax.random.key(0))
    >>> x, t = np.arange(15).reshape(5, 3), np.arange(10).reshape(5, 2)
    >>> rows = [x[:, 0] // 3 for x, t in jb.epoch_batches(state, x, t, batch_size=2)]
    >>> bool((np.concatenate(rows) == jb.epoch_order(state, 5)).all())
    True
    """
    check_size("batch_size", batch_size)
    given = {"x": x, "t": t, "weight": weight}
    data = {name: _indexed(v) for name, v in given.items() if v is not None}
    lengths = {name: (*rows.shape, 0)[0] for name, rows in data.items()}
    n = lengths["x"]
    for name, rows in lengths.items():
        if rows != n or n < 1:
            raise ValueError(f"{name}: expected a row for every example, got {rows}, and {n} of x")
    order = np.asarray(_order(state._replace(params=(), opt_state=(), feedback=()), n))
    return _Gathered([*data.values()], order, int(batch_size))


class _Gathered(Iterator[tuple[np.ndarray, ...]]):
    """Rows of data in an order, a batch at a time, each in memory of its own.

    With `held` there is memory for so many batches, which the next ones write over: new pages for
    every batch, and a copy to where JAX may read it, take a twentieth of a step at size M."""

    def __init__(self, data: list[Any], order: np.ndarray, batch_size: int) -> None:
        self.held: int | None = None
        self._data, self._order, self._size, self._done = data, order, batch_size, 0
        self._memory: dict[tuple[int, int], np.ndarray] = {}

    def __next__(self) -> tuple[np.ndarray, ...]:
        start = self._done * self._size
        rows = self._order[start : start + self._size]
        if not len(rows):
            raise StopIteration
        self._done += 1
        return tuple(self._taken(i, rows) for i in range(len(self._data)))

    def _taken(self, i: int, rows: np.ndarray) -> np.ndarray:
        """data[rows] of the i-th array."""
        data = self._data[i]
        if not isinstance(data, np.ndarray):
            return _read(data, rows)
        if self.held is None or data.dtype.hasobject:
            return data[rows]
        place = i, self._done % self.held
        if place not in self._memory:
            self._memory[place] = _aligned((self._size, *data.shape[1:]), data.dtype)
        return np.take(data, rows, axis=0, out=self._memory[place][: len(rows)], mode="clip")


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """New memory, which JAX on a CPU reads where it lies."""
    size = np.dtype(dtype).itemsize * math.prod(shape)
    room = np.empty(size + 64, np.uint8)
    return room[-room.ctypes.data % 64 :][:size].view(dtype).reshape(shape)


_order = jax.jit(epoch_order, static_argnums=1)  # bare, 1 ms more: operation by operation


def _indexed(data: Any) -> Any:
    """Something with a shape that NumPy's rows are taken of."""
    return data if hasattr(data, "shape") and not isinstance(data, jax.Array) else np.asarray(data)


def _read(data: Any, rows: np.ndarray) -> np.ndarray:
    """data[rows] of a file's, of which h5py takes increasing rows alone."""
    by = np.argsort(rows)
    found = np.asarray(data[rows[by]])
    taken = np.empty_like(found)
    taken[by] = found
    return taken


def _own(batch: Any, number: int, *, copy: bool) -> Any:
    """(x, t, weight) in memory of their own: steps read them when the next one is there."""
    if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
        length = f" of {len(batch)}" if isinstance(batch, tuple | list) else ""
        got = f"{type(batch).__name__}{length} as batch {number}"
        raise ValueError(f"batches: expected {BATCH}, got {got}")

    def own(name: str, value: Any) -> Any:
        fixed = value is None or isinstance(value, jax.Array)
        return value if fixed else np.array(as_numbers(name, value), copy=copy or None)

    x, t, weight = (*batch, None)[:3]
    return own("x", x), own("t", t), own("weight", weight)


def _filled(batch: Any, size: Any, number: int) -> Any:
    """The batch with `size` rows."""
    x, t, weight = batch
    rows = len(x) if x.ndim else 0
    if not 1 <= rows <= (size or rows):
        expected = f"1 to {size} rows, as batch_size says or the first has" if size else "rows"
        raise ValueError(f"batches: expected {expected}, got {rows} in batch {number}")
    return batch if rows == (size or rows) else pad_batch(x, t, size, weight=weight)


def _three(batch: Any) -> Any:
    """What `put` returned."""
    if not isinstance(batch, tuple) or len(batch) != 3:
        raise ValueError(f"put: expected (x, t, weight) back, got {type(batch).__name__}")
    return batch


def _fetched(leaf: Any) -> Any:
    """A number that is told, on the host; where other processes have parts of it, as it is."""
    return np.array(leaf) if is_concrete(leaf) and not is_key(leaf) else leaf


def _stacked(*steps: Any) -> Any:
    return jnp.asarray(np.stack(steps)) if isinstance(steps[0], np.ndarray) else jnp.stack(steps)
