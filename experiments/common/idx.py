"""MNIST's IDX files, read with suspicion: the header's claims are checked before they are believed.

Format: two zero bytes, a type (0x08: unsigned byte), the rank, as many dimensions as big-endian
32-bit numbers, then the data. Source: http://yann.lecun.com/exdb/mnist/
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

LIMIT = 2**30  # bytes unpacked; the largest of the kind (EMNIST ByClass) has 547 million

FILES = {
    "train images": ("train-images", 3),
    "train labels": ("train-labels", 1),
    "test images": ("t10k-images", 3),
    "test labels": ("t10k-labels", 1),
}


class Mnist(NamedTuple):
    """Images of shape (N, rows, columns), uint8; labels of shape (N,), uint8."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


def read_mnist(folder: Path) -> Mnist:
    """MNIST's four files from a folder, each gzipped or not.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    paths = [_find(folder, stem, rank) for stem, rank in FILES.values()]
    arrays = [read_idx(path, rank) for path, (_, rank) in zip(paths, FILES.values(), strict=True)]
    for i in (0, 2):
        images, labels = arrays[i], arrays[i + 1]
        if len(images) != len(labels):
            raise ValueError(
                f"{paths[i + 1]}: {len(labels)} labels "
                f"for the {len(images)} images of {paths[i].name}"
            )
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise ValueError(
            f"{paths[2]}: images of {arrays[2].shape[1:]} pixels, "
            f"where {paths[0].name} has {arrays[0].shape[1:]}"
        )
    return Mnist(*arrays)


def _find(folder: Path, stem: str, rank: int) -> Path:
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    names = [f"{stem}{dot}idx{rank}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder / names[0]}: missing (nor is there a {names[1]})")


def read_idx(path: Path, rank: int) -> np.ndarray:
    """One IDX file of unsigned bytes, gzipped or not, as an array of the given rank.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not packed:
                return _read(raw, path, rank)
            with gzip.open(raw) as unpacked:
                return _read(unpacked, path, rank)  # pyright: ignore[reportArgumentType]
    except EOFError:
        raise ValueError(f"{path}: truncated: the gzip stream ends too soon") from None
    except (OSError, zlib.error) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from None


def _read(file: BinaryIO, path: Path, rank: int) -> np.ndarray:
    head = file.read(4)
    if head[:2] != b"\0\0" or len(head) < 4:
        raise ValueError(f"{path}: no IDX file: it begins with {head.hex(' ') or 'nothing'}")
    if head[2] != 0x08:
        raise ValueError(f"{path}: expected unsigned bytes (type 0x08), got type {head[2]:#04x}")
    if head[3] != rank:
        raise ValueError(f"{path}: expected rank {rank}, got {head[3]}")
    sizes = file.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise ValueError(f"{path}: truncated: the header ends after {4 + len(sizes)} bytes")
    shape = struct.unpack(f">{rank}I", sizes)
    count = math.prod(shape)
    if count == 0 or count > LIMIT:
        raise ValueError(f"{path}: dimensions {shape} claim {count} bytes; expected 1 to {LIMIT}")
    data = file.read(count + 1)  # one more than there should be, and never more than that
    if len(data) != count:
        how = "truncated" if len(data) < count else "over-long"
        raise ValueError(
            f"{path}: {how}: dimensions {shape} need {count} bytes of data, "
            f"got {len(data) if len(data) < count else 'more'}"
        )
    return np.frombuffer(data, np.uint8).reshape(shape)
