"""Handwritten digits, split into train, validation and test: stratified and seeded."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from experiments.common.idx import read_mnist


class Part(NamedTuple):
    """x of shape (N, pixels), float32 from 0 to 1; labels of shape (N,), int32."""

    x: np.ndarray
    labels: np.ndarray


class Data(NamedTuple):
    """Three disjoint parts, and what is needed to draw an example."""

    train: Part
    validation: Part
    test: Part
    image_shape: tuple[int, ...]
    classes: int


def load(folder: Path | None, seed: int) -> Data:
    """scikit-learn's digits (1,797 scans of 8 × 8, split 60:20:20), or MNIST's files from a folder.

    MNIST's test files stay the test; a tenth of its train files is held out for validation.
    """
    if folder is None:
        pixels, labels = load_digits(return_X_y=True)
        digits = Part(np.reshape(pixels, (-1, 8, 8)), np.asarray(labels))
        rest, test = _split(digits, 0.2, seed)
        train, validation = _split(rest, 0.25, seed)
        brightest = 16
    else:
        mnist = read_mnist(folder)
        train, validation = _split(Part(mnist.train_images, mnist.train_labels), 0.1, seed)
        test = Part(mnist.test_images, mnist.test_labels)
        brightest = 255
    parts = [
        Part(
            (part.x.reshape(len(part.x), -1) / brightest).astype(np.float32),
            part.labels.astype(np.int32),
        )
        for part in (train, validation, test)
    ]
    classes = 1 + max(int(part.labels.max()) for part in parts)
    if classes < 2:
        raise ValueError(f"data: expected at least two classes in {folder}, got the label 0 alone")
    return Data(*parts, image_shape=train.x.shape[1:], classes=classes)


def load_1d(seed: int) -> Data:
    """MNIST-1D: 4,000 rows of 40 numbers to learn from, of which a tenth is held out, and 1,000 to
    test with. The package `mnist1d` draws them itself, always the same. Greydanus, "Scaling down
    Deep Learning", 2020, arXiv:2011.14439."""
    try:
        from mnist1d.data import get_dataset_args, make_dataset
    except ImportError:
        raise ImportError("MNIST-1D needs mnist1d: pip install 'jbackprop[experiments]'") from None
    state = np.random.get_state()  # it seeds the global one
    drawn = make_dataset(get_dataset_args())
    np.random.set_state(state)
    part = lambda x, y: Part(drawn[x].astype(np.float32), drawn[y].astype(np.int32))
    train, validation = _split(part("x", "y"), 0.1, seed)
    return Data(train, validation, part("x_test", "y_test"), image_shape=(40,), classes=10)


def _split(whole: Part, held_out: float, seed: int) -> tuple[Part, Part]:
    kept, out = train_test_split(
        np.arange(len(whole.labels)),
        test_size=held_out,
        stratify=whole.labels,
        random_state=seed,
    )
    return Part(whole.x[kept], whole.labels[kept]), Part(whole.x[out], whole.labels[out])
