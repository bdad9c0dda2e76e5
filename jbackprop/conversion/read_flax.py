"""Modules of Flax as steps: `Sequential` of NNX, and of Linen with its variables."""

# pyright: reportMissingImports=false
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from jbackprop.conversion.functions import name_of
from jbackprop.conversion.reasons import why_not
from jbackprop.conversion.steps import (
    Affine,
    Function,
    Step,
    as_leaf,
    conv_of,
    fail,
    moved,
    place_of,
    shortest,
)
from jbackprop.core import activations as ours
from jbackprop.core.linear import Conv, Dense


def steps(module: Any, variables: Any) -> Iterator[Step]:
    """Every layer, in order; a function as one, known by what it does."""
    from flax import linen, nnx

    if isinstance(module, nnx.Module):
        if variables is not None:
            fail("params", "expected None, since a module of NNX holds its own, got some")
        leaves, library = _nnx_leaves(module, ()), nnx
    elif isinstance(module, linen.Module):
        if variables is None:
            fail("params", "expected the variables of a module of Linen, got None")
        if not isinstance(variables, Mapping):
            fail("params", f"expected a mapping of names, got {type(variables).__name__}")
        tree = linen.unbox(variables.get("params", variables))  # without what says where they lie
        leaves, library = _linen_leaves(module, (), tree), linen
    else:
        fail("module", f"expected a module of flax.nnx or flax.linen, got {type(module).__name__}")
    for path, layer, numbers in leaves:
        kind = type(layer).__name__
        if isinstance(layer, nnx.Module | linen.Module):
            place = place_of("module", path, kind)
            known = type(layer) is getattr(library, kind, None)
            part = _part(place, kind, layer, numbers) if known else None
            if part is None:
                fail(place, why_not(kind))
        else:
            place = place_of("module", path, name_of(layer))
            part = Function(layer, channels_first=False)
        yield Step(place, part)


def _nnx_leaves(module: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, Any, Any]]:
    """(path, layer, its numbers)."""
    from flax import nnx

    chain = isinstance(module, nnx.Sequential)
    if chain and type(module).__call__ is nnx.Sequential.__call__:
        for i, layer in enumerate(module.layers):
            yield from _nnx_leaves(layer, (*path, i))
    else:
        names = ("kernel", "bias")
        yield path, module, {n: getattr(module, n, None) for n in names}


def _linen_leaves(module: Any, path: tuple[Any, ...], tree: Any) -> Iterator[tuple[Any, Any, Any]]:
    """The same, with the numbers of layer i under the name layers_i."""
    from flax import linen

    chain = isinstance(module, linen.Sequential)
    if chain and type(module).__call__ is linen.Sequential.__call__:
        for i, layer in enumerate(module.layers):
            yield from _linen_leaves(layer, (*path, i), tree.get(f"layers_{i}", {}))
    else:
        yield path, module, tree


def _part(place: str, kind: str, layer: Any, numbers: Any) -> Any:
    """What a layer is; None where it has no counterpart."""
    from flax import nnx

    if kind == "Dropout" and layer.rate == 0:
        return ours.identity
    if kind not in ("Linear", "Dense", "Conv"):
        return None
    w, b = numbers.get("kernel"), numbers.get("bias") if layer.use_bias else None
    if w is None or (layer.use_bias and b is None):
        fail(place, f"expected kernel and bias among params, got {sorted(numbers)}")
    owner = w if isinstance(w, nnx.Variable) else None  # Linen knows one by its name
    w = moved(as_leaf(place, w[...]), -1, 0)
    b = None if b is None else as_leaf(place, b[...])
    if layer.dtype not in (None, w.dtype):
        got = jnp.dtype(layer.dtype)
        fail(place, f"expected to compute in {w.dtype}, its parameters' dtype, got {got}")
    if kind != "Conv":
        _own(place, layer, "dot_general", lax.dot_general)
        return Affine(Dense(w.shape[0]), w, b, owner)
    _own(place, layer, "conv_general_dilated", lax.conv_general_dilated)
    return Affine(_convolution(place, layer, w.shape), w, b, owner)


def _own(place: str, layer: Any, name: str, usual: Any) -> None:
    """No products of the user's own, such as quantised ones."""
    function, of_class = getattr(layer, name, None), getattr(layer, f"{name}_cls", None)
    if function not in (None, usual) or of_class is not None:
        fail(place, f"expected the usual {name}, got one of its own")


def _convolution(place: str, layer: Any, shape: tuple[int, ...]) -> Conv:
    rank = len(shape) - 2
    each = lambda value: 1 if value is None else value
    if layer.feature_group_count != 1:
        got = f"feature_group_count={layer.feature_group_count}"
        fail(place, f"expected one group, since a map sees all channels, got {got}")
    if shortest(each(layer.input_dilation)) != 1:
        fail(place, f"expected input_dilation=1, got {layer.input_dilation}")
    if layer.mask is not None:
        fail(place, "expected no mask: a masked kernel has weights that are none")
    padding = layer.padding
    if isinstance(padding, str) and padding.upper() not in ("SAME", "VALID"):
        fail(place, f"expected a padding with zeros, 'SAME', 'VALID' or numbers, got {padding!r}")
    stride, dilation = each(layer.strides), each(layer.kernel_dilation)
    return conv_of(shape[0], shape[1 : 1 + rank], stride=stride, padding=padding, dilation=dilation)
