"""Do all ranks hold the same? A row of bytes from each, and what is different in words.

A row has a fixed size, so that it can be gathered from ranks that disagree: a SHA-256 of each of
the parts, the signal that asked this rank to stop, and the parts in words where they fit.
"""

import hashlib
import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PARTS = ("configuration", "data", "step", "parameters")
WORDS = 4096  # bytes
SHOWN = 3  # differences of a part that are named
_DIGESTS = 32 * len(PARTS)


def described(tree: Any) -> dict[str, str]:
    """Every array by its name: dtype, shape and the SHA-256 of its bytes, of all copies here."""
    name = partial(jax.tree_util.keystr, simple=True, separator=".")
    return {name(path): _array(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def _array(leaf: Any) -> str:
    copies = [leaf]
    if isinstance(leaf, jax.Array):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        copies = [shard.data for shard in leaf.addressable_shards]
    arrays = [np.ascontiguousarray(copy) for copy in copies]
    digests = sorted({hashlib.sha256(array.tobytes()).hexdigest() for array in arrays})
    # one, unless the copies on this rank's devices differ
    return f"{arrays[0].dtype}{list(arrays[0].shape)} {'+'.join(digests)}"


def row(facts: dict[str, Any], asked: list[int]) -> np.ndarray:
    """The bytes that go to the other ranks: of every part its digest, of all of them the words."""
    plain = {part: json.loads(json.dumps(facts[part], default=str)) for part in PARTS}
    digests = [hashlib.sha256(_text(plain[part])).digest() for part in PARTS]
    words = _text({part: _short(plain[part]) for part in PARTS})
    if len(words) > WORDS:  # of many layers: that parameters differ is all that is told then
        words = _text({part: _short(plain[part]) for part in PARTS[:-1]})
    told = words if len(words) <= WORDS else b"{}"
    return np.frombuffer(
        b"".join(digests) + bytes([asked[0] if asked else 0]) + told.ljust(WORDS), np.uint8
    )


def _text(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False).encode()


def _short(value: Any) -> Any:
    """Eight digits of a digest tell two apart."""
    if isinstance(value, dict):
        return {name: _short(inner) for name, inner in value.items()}
    if isinstance(value, str) and len(value) > 64:
        return value[: len(value) - 56]
    return value


def asked_of_any(rows: np.ndarray) -> list[int]:
    """The signal of each rank that was asked to stop."""
    return [int(number) for number in rows[:, _DIGESTS] if number]


def disagreement(rows: np.ndarray) -> str:
    """Who differs from rank 0 in what; '' where all agree. The same words on every rank."""
    digests = rows[:, :_DIGESTS].reshape(len(rows), len(PARTS), 32)
    words = [json.loads(row[_DIGESTS + 1 :].tobytes()) for row in rows]
    told = [
        f"rank {rank} disagrees with rank 0: "
        + "; ".join(
            part + _differences(words[rank].get(part), words[0].get(part))
            for part, ours, theirs in zip(PARTS, digests[0], digests[rank], strict=True)
            if (ours != theirs).any()
        )
        for rank in range(1, len(rows))
        if (digests[rank] != digests[0]).any()
    ]
    return "\n".join(told)


def _differences(theirs: Any, ours: Any) -> str:
    """': seed is 1 there, 0 on rank 0', of what was told."""
    if theirs is None or ours is None:
        return ""
    if not isinstance(ours, dict):
        return f": {theirs} there, {ours} on rank 0"
    names = [n for n in {**ours, **theirs} if theirs.get(n, "?") != ours.get(n, "?")]
    said = [f"{n} is {theirs.get(n, 'not')} there, {ours.get(n, 'not')} on rank 0" for n in names]
    more = f", and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return f": {', '.join(said[:SHOWN])}{more}" if said else ""
