"""The cost model against closed forms, and the experiment that tells of it."""

import json
import math
from typing import Any

import jax
import pytest

import jbackprop as jb
from experiments import scaling
from experiments.common import cost_model
from experiments.common.cost_model import DEVICES, Collective, compiled_bytes
from jbackprop.training.sharding import STYLES

LAST = (jb.tanh, jb.softmax, jb.cross_entropy)
H100, V5P = DEVICES["h100"], DEVICES["v5p"]
WIDE = jb.Network((1024, 4096, 1024), *LAST)


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):
        yield


def test_a_ring_sends_what_the_formulas_say():
    sent = lambda kind, result: Collective(kind, "gradient", result, 4, 1).sent
    assert sent("all-gather", 400.0) == 300  # all but its own quarter
    assert sent("reduce-scatter", 100.0) == 300
    assert sent("all-reduce", 400.0) == 600  # one after the other


NETS = [WIDE, jb.Network(((12, 12, 8), jb.Conv(64, 3), jb.Conv(64, 1), 64), *LAST)]


@pytest.mark.parametrize("net", NETS, ids=["dense", "convolutional"])
def test_operations_are_those_that_the_compiler_counts(net):
    given: Any = {"batch": 8, "data": 1, "model": 1}  # one block: what loops repeat is counted once
    step = cost_model.step(net, "data", size=4, **given)
    counted = scaling.lowered(net, "data", **given).cost_analysis()["flops"]
    updates = 15 * sum(a.size for a in jax.tree.leaves(jb.init(net, jax.random.key(0))))
    products = step.forward.flops + step.backward.flops
    assert products < counted < 1.05 * products + updates  # Adam, and what is element by element


def test_the_first_layer_carries_no_error_further():
    step = cost_model.step(WIDE, "data", batch=64, data=1, model=1, size=4)
    assert step.forward.flops == 2 * 64 * 2 * 1024 * 4096
    assert step.backward.flops == 1.5 * step.forward.flops


def test_the_rooflines_are_those_of_the_book():
    """C/W of H100s in a node and of TPU v5p along one axis, which it rounds to 2,200 and 2,550."""
    ratio = {"h100": 989.5e12 / 450e9, "v5p": 459e12 / 180e9}
    assert {name: round(r) for name, r in ratio.items()} == {"h100": 2199, "v5p": 2550}
    for name, r in ratio.items():
        step = cost_model.step(WIDE, "fsdp", batch=64, data=8, model=1, size=2)
        least = cost_model.least_examples(step, DEVICES[name], "bfloat16", 8)
        assert least == pytest.approx(r * 7 / 8, rel=2e-3)
        most = cost_model.most_ways(WIDE, DEVICES[name], "bfloat16")
        assert most == pytest.approx(1 + 4096 / r, rel=1e-6)


@pytest.mark.parametrize("style", STYLES)
def test_at_the_least_batch_no_pass_waits_for_the_wire_and_below_it_one_does(style):
    data, model = {"tensor": (4, 2), "fsdp+tensor": (4, 2)}.get(style, (8, 1))
    of = lambda batch: cost_model.step(WIDE, style, batch=batch, data=data, model=model, size=2)
    least = cost_model.least_examples(of(80), V5P, "bfloat16", 80 / data)
    if least == math.inf:  # activations alone take longer than the products
        assert cost_model.most_ways(WIDE, V5P, "bfloat16") < 3
        return

    def waits(batch):
        passes = of(batch)[:2]
        timed = [cost_model.seconds(phase, V5P, "bfloat16") for phase in passes]
        return any(s.wire > s.compute for s in timed)

    assert waits(0.99 * least * data)
    assert not waits(1.01 * least * data)


def test_rings_that_leave_a_node_share_what_leaves_it():
    assert H100.sent(8, 1) == H100.sent(2, 4) == 450e9
    assert H100.sent(16, 1) == 400e9
    assert H100.sent(4, 4) == 100e9
    assert H100.sent(4, 16) == 50e9


def test_memory_is_what_each_style_keeps():
    numbers = 2 * 1024 * 4096 + 4096 + 1024
    tape = 1024 + 3 * (4096 + 1024)
    of = lambda style, data, model: cost_model.step(
        WIDE, style, batch=64, data=data, model=model, size=2
    )
    assert of("data", 8, 1).memory == 2 * (4 * numbers + 8 * tape)
    assert of("fsdp", 8, 1).memory == 2 * (4 * numbers / 8 + numbers * 7 / 8 + 8 * tape)
    assert of("fsdp", 8, 1).state == of("data", 8, 1).state / 8


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("%r = f32[] all-reduce(%x), to_apply=%add", {"all-reduce": 4}),
        (
            "ROOT %r = (f32[64,48]{1,0}, f32[], /*index=2*/bf16[3]{0}) all-reduce(%a, %b, %c)",
            {"all-reduce": 4 * 64 * 48 + 4 + 6},
        ),
        ("%r = f32[8]{0} all-reduce-start(%x)\n%d = f32[8]{0} all-reduce-done(%r)",
         {"all-reduce": 32}),
        (
            "%g = ((f32[2,4]{1,0:T(8,128)}, pred[1]{0}), (f32[16,4]{1,0}, pred[8]{0})) "
            "all-gather-start(%x, %y)",
            {"all-gather": 256 + 8},
        ),
        ("%s = ((f32[8]{0}), f32[1]{0}) reduce-scatter-start(%x)", {"reduce-scatter": 4}),
        ("%p = (s32[4]{0}, s32[4]{0}, u32[], u32[]) collective-permute-start(%x)",
         {"collective-permute": 16}),
        ("%t = (u8[2]{0}, u8[2]{0}) all-to-all(%x, %y)", {"all-to-all": 4}),
        (
            "%body (p: s32[]) -> s32[] {\n  %r = f32[2] all-reduce(%x)\n}\n"
            "ENTRY %main (p: s32[]) -> s32[] {\n  %w = s32[] while(%p), condition=%c, body=%body, "
            'backend_config={"known_trip_count":{"n":"4"}}\n  %r = f32[] all-reduce(%x)\n}',
            {"all-reduce": 4 * 8 + 4},
        ),
        ("%f = f32[4]{0} fusion(%all-reduce.1), calls=%all-gather(", {}),
    ],
)  # fmt: skip
def test_bytes_are_read_from_a_compiled_program(line, found):
    assert compiled_bytes(line) == found


def test_the_experiment_tells_and_draws(tmp_path, capsys):
    assert scaling.main(scaling.Options(quick=True, out=tmp_path)) == 0
    (folder,) = tmp_path.iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["config.json", "metrics.jsonl", "scaling.png"]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["style"] for row in rows if "mesh" in row] == [*STYLES]
    said = capsys.readouterr().out
    assert "data below 2,199 examples a device" in said
    assert "JAX_NUM_CPU_DEVICES=8" in said


def test_this_cpu_is_measured(tmp_path, capsys):
    options = scaling.Options(
        network="3c3d", batch=64, device="cpu", dtype="float32", quick=True, out=tmp_path
    )
    assert scaling.main(options) == 0
    assert "this CPU: " in capsys.readouterr().out


def test_devices_that_are_there_are_compared_with(tmp_path, capsys):
    options = scaling.Options(
        sizes=(8, 4, 2), batch=4, devices=1, model=1, most=4, quick=True, out=tmp_path
    )
    assert scaling.main(options) == 0
    assert "To compare" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"devices": 0}, "devices: expected at least 1"),
        ({"device": "v5p", "dtype": "float32"}, "no float32 rate is published"),
        ({"model": 3}, "model: expected to divide 8"),
        ({"batch": 12}, "batch: expected a multiple of 8"),
        ({"device": "v5p", "most": 10_000}, "most: expected at most 8960"),
        ({"sizes": (3,)}, "sizes"),
    ],
)
def test_bad_options_are_named(tmp_path, capsys, changes, said):
    assert scaling.main(scaling.Options(out=tmp_path, **changes)) == 2
    assert said in capsys.readouterr().out
