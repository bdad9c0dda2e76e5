"""Run by each of two processes with two devices each: what one saves, another mesh restores."""

import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np
import test_checkpoints as here
from jax.experimental import multihost_utils

import jbackprop as jb


def said(call):
    """What it raises."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return "nothing"


@functools.partial(jax.jit, donate_argnums=0)
def overwritten(params):
    return jax.tree.map(lambda leaf: leaf + 1, params)


def main(folder, out):
    """After `jax.distributed.initialize`, which has to come before everything imported above."""
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    folder, found = Path(folder), {}
    start = here.started("fsdp", jb.make_mesh(explicit=True), step=0)
    with here.checkpoints(folder / "alone") as checkpoints:
        found["from one process"] = here.digests(checkpoints.restore(start).state)
    with here.checkpoints(folder / "two", keep=2) as checkpoints:
        extra = {"whole": np.arange(3), "spread": start.params[1].w}
        for step in (1, 2, 3):
            state = here.started("fsdp", jb.make_mesh(), step=step)
            checkpoints.save(state, extra=extra)
            overwritten(state.params)
        restored = checkpoints.restore(start)
        found["steps"] = checkpoints.steps
        found["from two"] = here.digests(restored.state)
        found["spread"] = restored.extra["spread"].tolist()
        found["missing"] = said(lambda: checkpoints.restore(start, step=7))
        multihost_utils.sync_global_devices("before the damage")
        if jax.process_index() == 1:
            newest = max(p for p in (folder / "two").iterdir())
            largest = max(newest.rglob("*"), key=lambda path: path.stat().st_size)
            largest.write_bytes(largest.read_bytes()[:-1])
        multihost_utils.sync_global_devices("after the damage")
        found["damaged"] = said(lambda: checkpoints.restore(start, step=3))
    Path(out).write_text(json.dumps(found), encoding="utf-8")
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
