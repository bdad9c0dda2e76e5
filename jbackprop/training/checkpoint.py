"""Checkpoints: the whole `TrainState` on disk, from which training goes on to the bit.

A checkpoint is a folder: the arrays as orbax writes them, small ones as one, and a description of
what they are of, with a digest of every file and a checksum of every array. It is written behind
the training, and gets its name in one stroke, when all of it is there.
"""

import os
import warnings
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jbackprop.core.arrays import check_size
from jbackprop.core.backward import backpropagation
from jbackprop.core.described import description
from jbackprop.core.network import Network
from jbackprop.core.rules import Rule
from jbackprop.training import series, storage
from jbackprop.training.checksums import checksums
from jbackprop.training.likeness import check_likeness, likeness, named_leaves
from jbackprop.training.optimizer import check_optimizer
from jbackprop.training.sealed import Damaged, check_files, described, in_every_process, seal
from jbackprop.training.series import Saved
from jbackprop.training.state import TrainState

FORMAT = 1
_ADDED_TO = "_CHECKPOINT_METADATA"  # by orbax after all else; nobody reads it


class Restored(NamedTuple):
    """What `Checkpoints.restore` gives.

    Attributes:
        state: the `TrainState`, to the bit.
        extra: what was saved beside it, NumPy arrays by name.

    >>> import jbackprop as jb
    >>> jb.Restored._fields
    ('state', 'extra')
    """

    state: Any
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints of one training run: a folder, of which the last few are kept.

    What is saved last is what comes back: a checkpoint of the same step or of later ones, such as
    is there where training went on from an earlier one, is replaced. Older ones go when a newer
    one is whole. One run at a time writes to a folder.

    A checkpoint of private training is a secret, as the data are: it holds the key of the noise to
    come, and whoever has that and later parameters can take the noise off.

    With several processes each makes, saves and restores the same, on a disk that all of them see.

    Args:
        folder: a path; it is made when something is saved.
        net: the network; a map or a pooling of your own is a dataclass of numbers and strings.
        optimizer: the optax transformation.
        rule: how δ is carried back.
        keep: how many are kept, when another one is whole.

    Raises:
        ValueError: keep is below 1; a part of the network cannot be described.
        ImportError: from `save` and `restore`, where orbax is not installed.

    >>> import tempfile, jax, jax.numpy as jnp, optax
    >>> import jbackprop as jb
    >>> net, optimizer = jb.Network((3, 2)), optax.adam(0.1)
    >>> x, t = jnp.ones((4, 3)), jnp.ones((4, 2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with jb.Checkpoints(folder, net, optimizer) as checkpoints:
    ...         state = jb.init_state(net, optimizer, jax.random.key(0))
    ...         for _ in range(5):
    ...             state, info = jb.train_step(net, optimizer, state, x, t)
    ...             checkpoints.save(state, extra={"cost": info.cost})
    ...     start = jb.init_state(net, optimizer, jax.random.key(0))
    ...     with jb.Checkpoints(folder, net, optimizer) as checkpoints:
    ...         restored = checkpoints.restore(start)
    ...         checkpoints.steps, int(restored.state.step)
    ((3, 4, 5), 5)
    >>> bool((restored.state.params[0].w == state.params[0].w).all())
    True
    """

    def __init__(
        self,
        folder: Any,
        net: Network,
        optimizer: Any,
        *,
        rule: Rule = backpropagation,
        keep: Any = 3,
    ) -> None:
        if not isinstance(folder, str | os.PathLike):
            raise ValueError(f"folder: expected a path, got {folder!r}")
        check_optimizer(optimizer)
        check_size("keep", keep)
        description(net)  # raises here, and not after hours
        self._folder = Path(folder).absolute()
        self._net, self._optimizer, self._rule, self._keep = net, optimizer, rule, int(keep)
        self._writer: Any = None
        self._writing: tuple[Saved, dict[str, Any], Any] | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps of the checkpoints that are written, oldest first."""
        return tuple(saved.step for saved in series.current(self._folder))

    def save(self, state: Any, *, extra: Any = None) -> None:
        """Writes a checkpoint of a state, named by its step. Returns when the arrays are copied,
        so that the state may be donated; the writing goes on behind.

        Args:
            state: from `train_step`, `train_epoch` or `init_state`.
            extra: what else to keep: arrays or numbers by name.

        Raises:
            ValueError: state or extra is none.
            OSError: this or the checkpoint before it cannot be written; those before them are as
                they were, and a later save may succeed.
        """
        storage.orbax()
        state = storage.as_state(state)
        leaves = {name: storage.data(leaf) for name, leaf in named_leaves(state).items()}
        beside = storage.as_extra(extra)
        told = {
            "format": FORMAT,
            **self._likeness(state),
            "extra": {
                name: [v.dtype.name, [*v.shape], storage.digest(v)] for name, v in beside.items()
            },
        }
        self.wait()
        series.tidy(self._folder, self._keep)
        there = series.as_first_sees(series.listed(self._folder))
        saved = Saved(max((s.place for s in there), default=0) + 1, int(state.step))
        sums = checksums(leaves)
        arrays = {name: storage.on_host(leaf) for name, leaf in leaves.items()}
        arrays |= {f"extra.{name}": value for name, value in beside.items()}
        told["joined"] = storage.small(arrays)
        self._writer = self._writer or storage.writer(self._seal)
        self._writing = saved, told, sums
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            whole = storage.joined(arrays, told["joined"])
            storage.write(self._writer, self._folder / saved.name, whole)
        except Exception as error:
            self._not_written(error)

    def restore(self, state: Any, *, step: Any = None) -> Restored:
        """The newest checkpoint, or that of a step.

        It is compared with what is here before anything is read: network, rule, optimizer, and
        the leaves' shapes and dtypes. An optimizer is known by the state that it keeps and by the
        names of its transformations; its numbers may be others, and so may what functions of your
        own do. Then every file is compared with its digest, and every array with its checksum.

        Args:
            state: such as `init_state` makes here, of arrays, or as `jax.eval_shape` has it. It
                says what is expected, and where the arrays shall lie: any mesh will do.
            step: which one; by default the newest, or, where that is damaged, the one before, with
                a warning.

        Raises:
            ValueError: there is none; none is whole; it is of another network, rule or optimizer,
                or of a newer format. The error names both sides.
        """
        storage.orbax()
        state = storage.as_state(state)
        self.wait()
        current = series.as_first_sees(series.current(self._folder))
        chosen = [saved for saved in current if step is None or saved.step == step]
        if not chosen and current:
            steps = [saved.step for saved in current]
            raise ValueError(f"step: expected one of {steps} in {self._folder}, got {step!r}")
        if not chosen:
            got = f"{series.told(self._folder)}: {self._folder}"
            raise ValueError(f"folder: expected one with checkpoints of jbackprop, got {got}")
        wrong: list[str] = []
        for saved in reversed(chosen):
            try:
                restored = self._read(saved, state)
            except Damaged as error:
                wrong.append(f"that of step {saved.step} is damaged, {error}")
                continue
            if wrong:
                told = f"{self._folder}: took the checkpoint of step {saved.step}: "
                warnings.warn(told + "; ".join(wrong), stacklevel=2)
            return restored
        told = "folder: expected a checkpoint that is whole, got none in "
        raise ValueError(f"{told}{self._folder}: " + "; ".join(wrong))

    def wait(self) -> None:
        """Returns when all that was saved is on disk. Raises as `save`."""
        if self._writing is None:
            return
        try:
            self._writer.wait_until_finished()
        except Exception as error:
            self._not_written(error)
        self._writing = None
        series.tidy(self._folder, self._keep)

    def close(self) -> None:
        """Waits, and ends what works behind; as does the end of `with`. Raises as `save`."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def _likeness(self, state: TrainState) -> dict[str, Any]:
        return likeness(self._net, self._optimizer, self._rule, state)

    def _not_written(self, error: Exception) -> NoReturn:
        assert self._writing is not None
        saved, self._writing = self._writing[0], None
        if jax.process_count() == 1:  # of several, those that could write wait elsewhere
            series.tidy(self._folder, self._keep)
        what = f"the checkpoint of step {saved.step}"
        raise storage.not_written(error, self._folder, what) from error

    def _seal(self) -> None:
        """Called behind, when orbax has written all and not yet given it its name."""
        assert self._writing is not None
        saved, told, sums = self._writing
        (folder,) = self._folder.glob(f"{saved.name}.orbax-checkpoint-tmp*")
        told["checksums"] = {name: np.asarray(s).tolist() for name, s in sums.items()}
        seal(folder, told, without=[_ADDED_TO])

    def _read(self, saved: Saved, state: TrainState) -> Restored:
        folder = self._folder / saved.name
        told = in_every_process(lambda: described(folder))
        where = f"in the checkpoint of step {saved.step} in {self._folder}"
        if told["format"] != FORMAT:
            by = told["versions"].get("jbackprop")
            raise ValueError(
                f"folder: expected format {FORMAT} {where}, got {told['format']}: "
                f"written by jbackprop {by}, which is newer"
            )
        check_likeness(self._likeness(state), told, where)
        files = [*told["files"].items()][jax.process_index() :: jax.process_count()]
        in_every_process(lambda: check_files(folder, files))
        given = named_leaves(state)
        wanted = {name: storage.to_be(leaf) for name, leaf in given.items()}
        for name, (dtype, shape, _) in told["extra"].items():
            wanted[f"extra.{name}"] = np.empty(shape, jnp.dtype(dtype))
        found = storage.read(folder, wanted, told["joined"])
        extra = {name: found[f"extra.{name}"] for name in told["extra"]}
        leaves = {name: jnp.asarray(found[name]) for name in given}
        sums = {name: np.asarray(s).tolist() for name, s in checksums(leaves).items()}
        changed = [name for name, s in sums.items() if s != told["checksums"][name]]
        changed += [
            f"extra {name}"
            for name, v in extra.items()
            if storage.digest(v) != told["extra"][name][2]
        ]
        if changed:
            raise Damaged(f"its {changed[0]} is not what was saved")
        filled = [storage.as_given(leaf, leaves[name]) for name, leaf in given.items()]
        return Restored(jax.tree.unflatten(jax.tree.structure(state), filled), extra)
