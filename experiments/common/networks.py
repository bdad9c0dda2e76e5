"""The networks of papers that more than one experiment trains or times."""

import jbackprop as jb
from jbackprop import Conv, MaxPool

Shape = tuple[int, ...]


def tanh_cnn(image: Shape, classes: int = 10) -> jb.Network:
    """That of private training, for images of at least 28 × 28 (Papernot et al., "Tempered Sigmoid
    Activations for Deep Learning with Differential Privacy", 2021, arXiv:2007.14191)."""
    sizes = ((*image, 1), Conv(16, 8, stride=2, padding=3), MaxPool(2, stride=1),
             Conv(32, 4, stride=2), MaxPool(2, stride=1), 32, classes)  # fmt: skip
    return jb.Network(sizes, jb.tanh, jb.softmax, jb.cross_entropy)


def lenet(image: Shape, classes: int, hidden: jb.Activation) -> jb.Network:
    """Two convolutions of 3 × 3, each pooled, for images of 8 × 8."""
    sizes = ((*image, 1), Conv(16, 3, padding=1), MaxPool(2), Conv(32, 3, padding=1), MaxPool(2),
             64, classes)  # fmt: skip
    return jb.Network(sizes, hidden, jb.softmax, jb.cross_entropy)


def for_images(image: Shape, classes: int, hidden: jb.Activation) -> jb.Network:
    """The tanh network for images of MNIST's size, for smaller ones a LeNet."""
    return tanh_cnn(image, classes) if min(image) >= 28 else lenet(image, classes, hidden)


def one_dimensional(length: int, classes: int = 10) -> jb.Network:
    """The convolutional network of MNIST-1D (Greydanus, 2020, arXiv:2011.14439)."""
    sizes = ((length, 1), Conv(25, 5, stride=2, padding=1), Conv(25, 3, stride=2, padding=1),
             Conv(25, 3, stride=2, padding=1), classes)  # fmt: skip
    return jb.Network(sizes, jb.relu, jb.softmax, jb.cross_entropy)


def c3d3() -> jb.Network:
    """3c3d of DeepOBS, for CIFAR-10 (Schneider et al., 2019, arXiv:1903.05499)."""
    pool = MaxPool(3, stride=2, padding="SAME")
    sizes = ((32, 32, 3), Conv(64, 5), pool, Conv(96, 3), pool, Conv(128, 3, padding="SAME"), pool,
             512, 256, 10)  # fmt: skip
    return jb.Network(sizes, jb.relu, jb.softmax, jb.cross_entropy)


def six_convolutions() -> jb.Network:
    """Six of 3 × 3 in three pairs, each pair pooled, for images of 32 × 32."""
    block = lambda n: (Conv(n, 3, padding=1), Conv(n, 3, padding=1), MaxPool(2))
    sizes = ((32, 32, 3), *block(32), *block(64), *block(128), 128, 10)
    return jb.Network(sizes, jb.relu, jb.softmax, jb.cross_entropy)
