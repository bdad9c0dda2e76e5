"""IDX files: what is right is read, and everything else is refused by the name of its file."""

import gzip
import struct

import numpy as np
import pytest

from experiments.common import idx
from experiments.common.data import load

RNG = np.random.default_rng(0)
NAMES = {
    "train images": "train-images-idx3-ubyte",
    "train labels": "train-labels-idx1-ubyte",
    "test images": "t10k-images-idx3-ubyte",
    "test labels": "t10k-labels-idx1-ubyte",
}


def packed(array, kind=0x08):
    return (
        struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()
    )


@pytest.fixture
def folder(tmp_path):
    """A small MNIST: 60 and 20 images of 4 × 5 pixels, three classes."""
    for part, n in (("train", 60), ("test", 20)):
        images = RNG.integers(0, 256, (n, 4, 5), np.uint8)
        labels = (np.arange(n) % 3).astype(np.uint8)
        (tmp_path / NAMES[f"{part} images"]).write_bytes(packed(images))
        (tmp_path / NAMES[f"{part} labels"]).write_bytes(packed(labels))
    return tmp_path


def test_reads_plain_and_gzipped_files_alike(folder):
    plain = idx.read_mnist(folder)
    assert plain.train_images.shape == (60, 4, 5)
    assert plain.test_labels.tolist() == [i % 3 for i in range(20)]
    for path in list(folder.iterdir()):
        dotted = path.with_name(path.name.replace("-idx", ".idx") + ".gz")
        dotted.write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    for a, b in zip(plain, idx.read_mnist(folder), strict=True):
        np.testing.assert_array_equal(a, b)


def test_load_splits_without_losing_or_repeating_an_image(folder):
    data = load(folder, seed=0)
    sizes = [len(part.labels) for part in (data.train, data.validation, data.test)]
    assert sizes == [54, 6, 20]
    assert (data.image_shape, data.classes) == ((4, 5), 3)
    assert np.bincount(data.validation.labels).tolist() == [2, 2, 2]
    assert data.train.x.dtype == np.float32
    assert 0 <= data.train.x.min() < data.train.x.max() <= 1
    rows = np.concatenate([data.train.x, data.validation.x])
    original = idx.read_mnist(folder).train_images.reshape(60, -1) / np.float32(255)
    np.testing.assert_allclose(np.sort(rows, 0), np.sort(original, 0), rtol=1e-6)


def test_the_digits_are_split_by_the_seed():
    one, two, again = load(None, 0), load(None, 1), load(None, 0)
    assert [len(part.labels) for part in one[:3]] == [1077, 360, 360]
    np.testing.assert_array_equal(one.test.x, again.test.x)
    assert not np.array_equal(one.test.labels, two.test.labels)
    shares = [np.bincount(part.labels) / len(part.labels) for part in one[:3]]
    np.testing.assert_allclose(shares[1:], [shares[0]] * 2, atol=0.005)


IMAGES, LABELS = np.zeros((2, 3, 3), np.uint8), np.zeros(2, np.uint8)
GZIPPED = gzip.compress(packed(RNG.integers(0, 256, (9, 9, 9), np.uint8)))
FAULTS = {
    "wrong magic": (b"\1" + packed(IMAGES)[1:], "no IDX file: it begins with 01 00 08 03"),
    "empty": (b"", "no IDX file: it begins with nothing"),
    "a picture": (b"\x89PNG\r\n", "no IDX file"),
    "floats": (packed(IMAGES, kind=0x0D), r"unsigned bytes \(type 0x08\), got type 0x0d"),
    "labels for images": (packed(LABELS), "expected rank 3, got 1"),
    "header cut": (packed(IMAGES)[:10], "truncated: the header ends after 10 bytes"),
    "data cut": (packed(IMAGES)[:-1], r"truncated: .* need 18 bytes of data, got 17"),
    "data too long": (packed(IMAGES) + b"\0", r"over-long: .* need 18 bytes of data, got more"),
    "no images": (packed(IMAGES[:0]), "claim 0 bytes"),
    "a bomb": (packed(IMAGES)[:4] + b"\xff" * 12, r"claim \d{29} bytes; expected 1 to 1073741824"),
    "gzip cut": (GZIPPED[:-40], "truncated"),
    "gzip spoilt": (GZIPPED[:40] + bytes(40) + GZIPPED[80:], "cannot be read|truncated"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refuses(fault, tmp_path):
    content, reason = FAULTS[fault]
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path}: .*(?:{reason})"):
        idx.read_idx(path, 3)


def test_a_gzip_bomb_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(packed(IMAGES) + bytes(50_000_000)))
    with pytest.raises(ValueError, match="over-long"):
        idx.read_idx(path, 3)


def test_refuses_a_folder_that_is_not_there_and_files_that_do_not_fit(folder, tmp_path):
    with pytest.raises(ValueError, match="nowhere: no such folder"):
        idx.read_mnist(tmp_path / "nowhere")
    labels = folder / NAMES["test labels"]
    labels.write_bytes(packed(np.zeros(19, np.uint8)))
    with pytest.raises(ValueError, match=r"t10k-labels.*: 19 labels for the 20 images"):
        idx.read_mnist(folder)
    labels.unlink()
    with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte: missing"):
        idx.read_mnist(folder)
    labels.write_bytes(packed(np.zeros(20, np.uint8)))
    (folder / NAMES["test images"]).write_bytes(packed(np.zeros((20, 5, 4), np.uint8)))
    with pytest.raises(ValueError, match=r"t10k-images.* \(5, 4\) pixels, where .* \(4, 5\)"):
        idx.read_mnist(folder)
