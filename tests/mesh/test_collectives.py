"""The cost model's bytes against those of the compiled step, by kind of collective.

They are equal but for a few scalars: the sum of the costs and of the weights, which every device is
told. How many collectives they are, which the compiler combines as it likes, is not asked."""

import math
from functools import cache

import pytest

import jbackprop as jb
from experiments import scaling
from experiments.common import cost_model, networks

LAST = (jb.tanh, jb.softmax, jb.cross_entropy)
NETS = {
    "dense": jb.Network((48, 64, 128, 32, 16), *LAST),
    "convolutional": networks.lenet((8, 8), 16, jb.tanh),
    # 50 and 30 do not divide by 8: those arrays, or their other axes, are spread or whole
    "ragged": jb.Network((48, 50, 128, 30, 10), *LAST),
    # a dense map behind channels that are split has to gather them
    "gathered": jb.Network(
        ((6, 6, 3), jb.Conv(16, 3), jb.Conv(16, 3), jb.Conv(8, 1), 32, 16), *LAST
    ),
}
CASES = [
    ("dense", "data", 8, 1),
    ("dense", "fsdp", 8, 1),
    ("dense", "tensor", 1, 8),
    ("dense", "tensor", 2, 4),
    ("dense", "fsdp+tensor", 4, 2),
    ("convolutional", "data", 8, 1),
    ("convolutional", "fsdp", 8, 1),
    ("convolutional", "tensor", 1, 8),
    ("convolutional", "fsdp+tensor", 4, 2),
    ("ragged", "fsdp", 8, 1),
    ("ragged", "tensor", 1, 8),
    ("gathered", "tensor", 2, 4),
]
BATCH, SCALARS = 32, 16  # a few scalars: at most four float32


@cache
def program(net, style, data, model):
    return scaling.lowered(net, style, batch=BATCH, data=data, model=model).compile()


def on_paper(net, style, data, model):
    # a backend without reduce-scatter: XLA on CPUs all-reduces, and every device takes its share
    return cost_model.step(net, style, batch=BATCH, data=data, model=model, size=4, scatters=False)


def more_than_on_paper(net, style, data, model):
    found = cost_model.compiled_bytes(program(net, style, data, model).as_text())
    paper = cost_model.result_bytes(on_paper(net, style, data, model))
    return {kind: found.get(kind, 0) - paper.get(kind, 0) for kind in {**paper, **found}}


@pytest.mark.parametrize(("net", "style", "data", "model"), CASES)
def test_the_compiled_step_sends_what_is_on_paper(net, style, data, model):
    more = more_than_on_paper(NETS[net], style, data, model)
    assert all(0 <= extra <= SCALARS for extra in more.values()), more


@pytest.mark.parametrize(("style", "data", "model"), [("tensor", 1, 8), ("fsdp+tensor", 4, 2)])
def test_a_softmax_that_is_split_tells_five_numbers_of_every_example_more(style, data, model):
    """Its greatest z, sums and cost, which the model leaves out: three layers, so that the last is
    split by its outputs."""
    more = more_than_on_paper(jb.Network((48, 64, 128, 16), *LAST), style, data, model)
    vectors = 5 * 4 * BATCH // data
    assert 0 <= more.pop("all-reduce") - vectors <= SCALARS
    assert not any(more.values())


@pytest.mark.parametrize(("net", "style", "data", "model"), CASES)
def test_a_device_keeps_what_is_on_paper(net, style, data, model):
    """The step's arguments: the state, this device's examples and targets, a key and two counts."""
    step = on_paper(NETS[net], style, data, model)
    batch = BATCH // data * 4 * (math.prod(NETS[net].shapes[0]) + 1)
    held = program(NETS[net], style, data, model).memory_analysis().argument_size_in_bytes
    assert held == step.state + batch + 16


def test_a_convolution_gathers_no_example_and_sums_once():
    net = jb.Network(((24, 24, 4), jb.Conv(32, 3), jb.MaxPool(2), 16), *LAST)
    more = more_than_on_paper(net, "data", 8, 1)
    assert all(0 <= extra <= SCALARS for extra in more.values()), more
