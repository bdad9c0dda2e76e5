"""The records of an activation and a cost: what they say of themselves, and what they let pass."""

import jax.numpy as jnp
import numpy as np
import pytest

import jbackprop as jb
from jbackprop.core.records import as_constant

F = jnp.tanh


@pytest.mark.parametrize(
    ("told", "doc", "shown"),
    [({}, "Activation a", "<Activation a>"),
     ({"formula": "z²"}, "Activation a: z²", "<Activation a: z²>"),
     ({"elsewhere": "b.c"}, "Activation a\n\nElsewhere: b.c.", "<Activation a>"),
     ({"formula": "z²", "elsewhere": "b.c"}, "Activation a: z²\n\nElsewhere: b.c.",
      "<Activation a: z²>")],
)  # fmt: skip
def test_a_record_says_what_it_is(told, doc, shown):
    record = jb.Activation("a", F, F, **told)
    assert record.__doc__ == doc
    assert repr(record) == shown
    assert record == jb.Activation("a", F, F), "what it says does not tell it apart"
    assert repr(jb.Cost("c", F, F, **told)) == shown.replace("Activation a", "Cost c")


@pytest.mark.parametrize(
    ("made", "said"),
    [(lambda: jb.Activation(3, F, F), "name: expected a string, got 3"),
     (lambda: jb.Activation("a", 3, F), "activation a: expected a function f, got 3"),
     (lambda: jb.Activation("a", F, None), "activation a: expected a function df, got None"),
     (lambda: jb.Activation("a", F, 3, F), "activation a: expected a function df, got 3"),
     (lambda: jb.Activation("a", F, F, 3), "activation a: expected a function pull, got 3"),
     (lambda: jb.Cost("c", 3, F), "cost c: expected a function value, got 3"),
     (lambda: jb.Cost("c", F, 3), "cost c: expected a function grad, got 3")],
)  # fmt: skip
def test_what_is_no_function_is_named(made, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        made()
    assert jb.Activation("a", F, None, F).df is None


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
@pytest.mark.parametrize(
    "df", [lambda z: z > 0, lambda z: jnp.ones_like(z, int), lambda z: 1, lambda z: 1.0,
           lambda z: jnp.ones(3), lambda z: np.ones(3)],
)  # fmt: skip
def test_a_slope_has_the_shape_and_dtype_of_z(df, dtype):
    z = jnp.ones(3, dtype)
    slope = jb.Activation("a", F, df).slope(z)
    assert (slope.shape, slope.dtype, slope.tolist()) == ((3,), dtype, [1, 1, 1])
    pulled = jb.Activation("a", F, None, lambda z, e: jnp.broadcast_to(df(z), 3)).back(z, z)
    assert (pulled.shape, pulled.dtype, pulled.tolist()) == ((3,), dtype, [1, 1, 1])


@pytest.mark.parametrize("kind", [jb.Activation, jb.Cost])
def test_a_record_is_told_apart_by_what_it_computes_and_never_changes(kind):
    one = kind("a", F, F, formula="z²", elsewhere="b.c")
    assert one == kind("a", F, F, formula="other", elsewhere="other")
    assert hash(one) == hash(kind("a", F, F))
    assert one != kind("b", F, F)
    assert one != kind("a", F, jnp.sin)
    assert "function" not in repr(one)
    with pytest.raises(AttributeError):
        one.name = "b"
    with pytest.raises(TypeError):
        kind("a", F, F, None, "a formula by its place")
    with pytest.raises(ValueError, match=r"^name: expected a string, got "):
        kind(F, F, F)


@pytest.mark.parametrize(
    "made",
    [jb.backpropagation, jb.leaky_relu_of(0.5).f, jb.Activation.from_function("a", F).df,
     jb.Network((2, 1))],
    ids=["rule", "constants", "derivative", "network"],
)  # fmt: skip
def test_what_a_program_is_compiled_for_never_changes(made):
    with pytest.raises(AttributeError):
        setattr(made, next(iter(vars(made))), None)


def test_a_slope_of_another_shape_is_named():
    z = jnp.ones(3)
    for wrong in (lambda z: z[:2], lambda z: z[:, None]):
        with pytest.raises(
            ValueError, match=r"^activation a: expected df\(z\) of shape \(3,\), got"
        ):
            jb.Activation("a", F, wrong).slope(z)
        of_pull = jb.Activation("a", F, None, lambda z, e, wrong=wrong: wrong(z))
        with pytest.raises(
            ValueError, match=r"^activation a: expected pull\(z, e\) of shape \(3,\)"
        ):
            of_pull.back(z, z)


@pytest.mark.parametrize("number", [-2, 0, 0.5, 3, np.float32(0.25), jnp.float32(0.25)])
def test_a_constant_is_a_float(number):
    found = as_constant("c", number)
    assert (type(found), found) == (float, number)
    if number > 0:
        assert as_constant("c", number, positive=True) == number
    else:
        with pytest.raises(ValueError, match=r"^c: expected a finite number above 0, got "):
            as_constant("c", number, positive=True)


@pytest.mark.parametrize("bad", ["1", "a", None, np.nan, np.inf, -np.inf, [1, 2], 1j])
def test_another_constant_is_named(bad):
    with pytest.raises(ValueError, match=r"^c: expected a finite number, got "):
        as_constant("c", bad)


def test_constants_may_be_of_either_sign_where_a_slope_may():
    assert jb.leaky_relu_of(-0.2).f(jnp.array([-1.0])).tolist() == [pytest.approx(0.2)]
    for made, name in ((jb.elu_of, "alpha"), (jb.huber_of, "delta"), (jb.leaky_relu_of, "slope")):
        with pytest.raises(ValueError, match=f"^{name}: expected a finite number"):
            made(np.nan)
