"""The planter of faults: it plants what it says, where it says, and a test that fails kills it."""

import ast
from pathlib import Path

import numpy as np
import pytest

import jbackprop as jb
from jbackprop.core import values
from tests.planted import mapped, verdicts
from tests.planted.faults import all_faults, faults_of
from tests.planted.planter import planted

NET = jb.Network((2, 3), output=jb.softmax, cost=jb.cross_entropy)
X = np.ones((2, 2))
SOURCE = '''
"""A docstring of 1 + 1."""
import jax.numpy as jnp

def f(x: int, key, *, axis=-1, guard=True):
    """Another, of 2 * 2."""
    if x < 0:
        raise ValueError(f"x: {x + 1}")
    key, other = jax.random.split(key)
    y = jnp.where(x == 0, 1, x)
    z = jnp.maximum(
        abs(y), 0.5
    ) @ jnp.zeros(3, dtype=float).astype(int)
    if guard:
        z += 1
    check(z)
    return -z if not guard else jax.random.fold_in(other, z) and jnp.clip(z, 0, 1)
'''
EXPECTED = {
    "guard dropped": "pass", "Lt to LtE": "if (x <= 0):",
    "unpacking swapped": "other, key = jax.random.split(key)",
    "Eq to NotEq": "y = jnp.where((x != 0), 1, x)",
    "where swapped": "y = (jnp.where(x == 0, x, 1))", "where dropped": "y = (x)",
    "one more": "def f(x: int, key, *, axis=-(2), guard=True):",
    "True to False": "def f(x: int, key, *, axis=-1, guard=(False)):",
    "maximum to minimum": "z = (jnp.minimum(abs(y), 0.5)", "abs dropped": "(y), 0.5",
    "factors of @ swapped": "z = (jnp.zeros(3, dtype=float).astype(int) @ jnp.maximum(abs(y), 0.5)",
    "twice": "abs(y), (1.0)", "astype dropped": ") @ (jnp.zeros(3, dtype=float))",
    "dtype dropped": ") @ (jnp.zeros(3)).astype(int)",
    "zeros to ones": ") @ (jnp.ones(3, dtype=float)).astype(int)",
    "always": "if True:", "never": "if False:", "Add to Sub": "z -= 1", "call dropped": "pass",
    "sign dropped": "return (z) if not guard else jax.random.fold_in(other, z) "
    "and jnp.clip(z, 0, 1)",
    "branches swapped": "return (jax.random.fold_in(other, z) and jnp.clip(z, 0, 1) "
    "if not guard else -z)",
    "not dropped": "return -z if (guard) else jax.random.fold_in(other, z) and jnp.clip(z, 0, 1)",
    "And to Or": "return -z if not guard else (jax.random.fold_in(other, z) or jnp.clip(z, 0, 1))",
    "first condition dropped": "return -z if not guard else (jnp.clip(z, 0, 1))",
    "key not folded": "return -z if not guard else (other) and jnp.clip(z, 0, 1)",
    "clip dropped": "return -z if not guard else jax.random.fold_in(other, z) and (z)",
}  # fmt: skip


@pytest.fixture(scope="module")
def faults():
    """By name; listing them takes seconds, which only this file's worker is to pay."""
    listed = all_faults(mapped.PACKAGE)
    named = {fault.name: fault for fault in listed}
    assert len(named) == len(listed) > 2000, "names are unique"
    return named


def test_every_kind_of_fault_is_planted(tmp_path):
    path = tmp_path / "core" / "some.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    found = faults_of(path, tmp_path)
    firsts = {fault.kind: fault.shown[1] for fault in found if fault.number == 0}
    assert firsts == EXPECTED
    for fault in found:
        assert fault.path == "core/some.py"
        assert fault.place in ("f", "<module>")
        assert ast.dump(ast.parse(fault.text)) != ast.dump(ast.parse(SOURCE))
        lines = [text.splitlines() for text in (SOURCE, fault.text)]
        differ = [i for i, (a, b) in enumerate(zip(*lines, strict=True), start=1) if a != b]
        first, last = fault.lines
        assert first <= min(differ), "all other lines stay where they are"
        assert max(differ) <= max(last, first + 1)


@pytest.mark.long
def test_every_file_has_faults(faults):
    files = {path.relative_to(mapped.PACKAGE).as_posix() for path in mapped.PACKAGE.rglob("*.py")}
    names_alone = {"plots.py"} | {name for name in files if name.endswith("__init__.py")}
    assert {f.path for f in faults.values()} == files - names_alone


def test_a_planted_fault_is_there_and_goes(faults):
    fault = faults["core/values.py:check_batch:GtE to Gt:0"]
    said = "labels from 0 to 2, got 0 at row 0"
    check = lambda: values.check_batch(NET, X, [0, 2])
    check()
    with planted(fault) as here:
        assert here
        with pytest.raises(ValueError, match=said):
            check()
    check()


def test_what_shows_at_import_is_left_to_a_new_process(faults):
    fault = faults["core/numerics.py:<module>:Div to Mult:0"]
    with planted(fault) as here:
        assert not here


def test_the_sample_is_of_faults_that_are_there_and_were_found(faults):
    """A function that was renamed leaves the sample behind: choose another fault."""
    sample = (Path(__file__).parent / "planted" / "sample.txt").read_text("utf-8").splitlines()
    assert len({*sample}) == len(sample) == 15
    assert len({name.split(":")[2] for name in sample}) == 15, "of every kind one"
    assert {*sample} <= faults.keys()
    assert {*sample} <= verdicts.killers().keys()


def test_an_equivalent_fault_is_there_and_has_a_reason(faults):
    for name, reason in verdicts.equivalent().items():
        assert name in faults
        assert len(reason) > 10
