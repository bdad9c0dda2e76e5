"""Where results lie on a mesh of devices: here alone is that decided.

On a mesh whose axes are Explicit, where an array lies is part of its type, and what a sum over a
batch that is spread over devices shall lie like has to be said at every one. Within a function that
is `placed` the axes are left to the compiler, as they are on an Auto mesh; where what it returns
lies is said once, beside its name. Without such a mesh, and within `jax.shard_map`, nothing
happens.
"""

import inspect
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, TypeVar

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jbackprop.core.arrays import is_traced

F = TypeVar("F", bound=Callable[..., Any])
# (arguments by name, shapes of the results) -> a PartitionSpec for each leaf of the results
Specs = Callable[[dict[str, Any], Any], Any]


def placed(specs: Specs) -> Callable[[F], F]:
    """A function whose results lie as `specs` says, whatever its arguments lie like."""

    def decorate(f: F) -> F:
        signature = inspect.signature(f)

        @wraps(f)
        def anywhere(*args: Any, **kwargs: Any) -> Any:
            leaves, structure = jax.tree.flatten((args, kwargs))
            mesh = explicit_mesh(leaves)
            if mesh is None:
                return f(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            return _on(mesh, f, specs, given, leaves, structure)

        return anywhere  # pyright: ignore

    return decorate


def _on(mesh: Any, f: Any, specs: Specs, given: Any, leaves: list[Any], structure: Any) -> Any:
    """f with the mesh's Explicit axes left to the compiler."""
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.Array)]

    def of_arrays(*arrays: Any) -> Any:
        rest = iter(arrays)
        filled = [next(rest) if isinstance(leaf, jax.Array) else leaf for leaf in leaves]
        args, kwargs = jax.tree.unflatten(structure, filled)
        return f(*args, **kwargs)

    weak = lambda array: getattr(array, "weak_type", False)  # keys have none
    bare = [jax.ShapeDtypeStruct(a.shape, a.dtype, weak_type=weak(a)) for a in arrays]
    # traced for its shapes alone: `auto_axes` has to know where results lie before there are any
    with jax.sharding.use_abstract_mesh(_left_to_the_compiler(mesh)):
        shapes = jax.eval_shape(of_arrays, *bare)
    found = specs(given, shapes)
    lies = jax.tree.map(lambda spec: NamedSharding(mesh, spec), found, is_leaf=_is_spec)
    with _entered(arrays):
        return jax.sharding.auto_axes(of_arrays, axes=_explicit(mesh), out_sharding=lies)(*arrays)


def explicit_mesh(leaves: Iterable[Any]) -> Any:
    """The mesh with an Explicit axis that one of these lies on; None where there is none."""
    for leaf in leaves:
        if isinstance(leaf, jax.Array) and (
            is_traced(leaf) or isinstance(leaf.sharding, NamedSharding)
        ):
            mesh = jax.typeof(leaf).sharding.mesh
            if _explicit(mesh):
                return mesh
    return None


def everywhere(given: dict[str, Any], shapes: Any) -> Any:
    """All of it on every device: sums over examples, and what is made of them."""
    return jax.tree.map(lambda _: P(), shapes)


def by_example(name: str) -> Specs:
    """What has a row for every example of an argument lies as those do; the rest everywhere."""
    return lambda given, shapes: rows_like(given[name], shapes)


def rows_like(batch: Any, shapes: Any) -> Any:
    """By their rows as a batch lies, of which each leaf has a row for every example."""
    leaves = jax.tree.leaves(batch)
    along = next((P(*spec) for leaf in leaves if any(spec := spec_of(leaf)[:1])), P())
    own = lambda s: along if s.shape[:1] == leaves[0].shape[:1] else P()
    return jax.tree.map(own, shapes)


def like(value: Any, shapes: Any) -> Any:
    """Leaf by leaf as a value of the same structure lies."""
    return jax.tree.unflatten(jax.tree.structure(shapes), map(spec_of, jax.tree.leaves(value)))


def spec_of(value: Any) -> P:
    """How the axes of an array lie."""
    return jax.typeof(value).sharding.spec if isinstance(value, jax.Array) else P()


def _explicit(mesh: Any) -> tuple[str, ...]:
    kinds = mesh.axis_types or ()
    pairs = zip(mesh.axis_names, kinds, strict=False)
    return tuple(name for name, kind in pairs if kind == AxisType.Explicit)


def _left_to_the_compiler(mesh: Any) -> AbstractMesh:
    """The mesh as it is within: what was Explicit is Auto."""
    kinds = tuple(AxisType.Auto if k == AxisType.Explicit else k for k in mesh.axis_types)
    return AbstractMesh(mesh.axis_sizes, mesh.axis_names, kinds)


def _entered(arrays: list[Any]) -> AbstractContextManager[Any]:
    """Within the mesh of concrete arrays: what is made on the way has to meet them."""
    if any(map(is_traced, arrays)):
        return nullcontext()
    meshes = [getattr(array.sharding, "mesh", None) for array in arrays]
    return jax.set_mesh(next(m for m in meshes if isinstance(m, Mesh) and _explicit(m)))


def _is_spec(value: Any) -> bool:
    return isinstance(value, P)
