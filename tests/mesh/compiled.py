"""What a compiled program has in it, read from its text."""

import re
from math import prod

_RESULT = re.compile(r"%([\w.-]+) = (\w+)\[([\d,]*)\]")
_PRODUCT = re.compile(r"%([\w.-]+) = \S+ (?:dot|convolution)\(%([\w.-]+), %([\w.-]+)\)")


def products(text):
    """The shapes (result, left, right) of every matrix product and convolution."""
    shape = {
        name: tuple(int(size) for size in sizes.split(",") if size)
        for name, _, sizes in _RESULT.findall(text)
    }
    return [tuple(shape[name] for name in found) for found in _PRODUCT.findall(text)]


def gathered(text):
    """How many numbers each array has that comes together from all devices."""
    shapes = re.findall(r"= (\(.*?\)|\S+) all-gather(?:-start)?\(", text)
    sizes = (part for shape in shapes for part in re.findall(r"\[([\d,]*)\]", shape))
    return [prod(int(size) for size in part.split(",") if size) for part in sizes]
