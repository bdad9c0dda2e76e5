"""One-line faults, planted by the syntax tree: an operator, a sign, a guard, a key, a dtype.

A fault is one node of one file written otherwise. It is named by its file, the function it stands
in, what is done there and which of them it is, so that its name outlives changes elsewhere.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPERATORS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr, ast.RShift: ast.LShift,
}  # fmt: skip
COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
NAMES = {  # of a function that is called, or of a method
    "maximum": "minimum", "minimum": "maximum", "argmax": "argmin", "argmin": "argmax",
    "all": "any", "any": "all", "max": "min", "min": "max", "sum": "mean", "mean": "sum",
    "isfinite": "isnan", "isnan": "isfinite", "isinf": "isnan", "zeros": "ones", "ones": "zeros",
    "log1p": "log", "expm1": "exp", "segment_max": "segment_sum", "segment_sum": "segment_max",
}  # fmt: skip
PASSED_ON = {"abs", "wide", "stop_gradient", "root", "sqrt", "square", "unit", "rounded_up"}


@dataclass(frozen=True)
class Fault:
    """What is written otherwise, and where.

    Attributes:
        path: of the file, within the package.
        place: the function that it stands in, `Class.method` or `<module>`.
        kind: what is done.
        number: which one of that kind in that place, from 0.
        lines: the first and the last of its statement, up to its block if it has one.
        text: the file with the fault.
        shown: the line, before and after.
    """

    path: str
    place: str
    kind: str
    number: int
    lines: tuple[int, int]
    text: str
    shown: tuple[str, ...]

    @property
    def name(self) -> str:
        """Unique, and the same while its function is."""
        return f"{self.path}:{self.place}:{self.kind}:{self.number}"


def _written(node: ast.AST, **changes: Any) -> ast.AST:
    copy = type(node)(**{name: getattr(node, name) for name in node._fields})
    for name, value in changes.items():
        setattr(copy, name, value)
    return copy


def _otherwise(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """(what is done, the node written otherwise)."""
    match node:
        case ast.BinOp(op=op) if type(op) in OPERATORS:
            other = OPERATORS[type(op)]
            yield f"{type(op).__name__} to {other.__name__}", _written(node, op=other())
        case ast.BinOp(op=ast.MatMult()):
            yield "factors of @ swapped", _written(node, left=node.right, right=node.left)
        case ast.UnaryOp(op=ast.USub(), operand=operand) if not isinstance(operand, ast.Constant):
            yield "sign dropped", operand
        case ast.UnaryOp(op=ast.Not() | ast.Invert(), operand=operand):
            yield "not dropped", operand
        case ast.Compare(ops=[op], left=_) if type(op) in COMPARISONS:
            other = COMPARISONS[type(op)]
            yield f"{type(op).__name__} to {other.__name__}", _written(node, ops=[other()])
        case ast.BoolOp(op=op, values=values):
            other = ast.Or if isinstance(op, ast.And) else ast.And
            yield f"{type(op).__name__} to {other.__name__}", _written(node, op=other())
            yield (
                "first condition dropped",
                values[1] if len(values) == 2 else _written(node, values=values[1:]),
            )
        case ast.Constant(value=bool(value)):
            yield f"{value} to {not value}", ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield "one more", ast.Constant(value + 1)
        case ast.Constant(value=float(value)) if value:
            yield "twice", ast.Constant(2 * value)
        case ast.IfExp(body=body, orelse=orelse):
            yield "branches swapped", _written(node, body=orelse, orelse=body)
        case ast.Call(func=func, args=args):
            called = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
            if called in NAMES and isinstance(func, ast.Attribute):
                swapped = _written(func, attr=NAMES[called])
                yield f"{called} to {NAMES[called]}", _written(node, func=swapped)
            if called == "where" and len(args) == 3:
                yield "where swapped", _written(node, args=[args[0], args[2], args[1]])
                yield "where dropped", args[2] if isinstance(args[1], ast.Constant) else args[1]
            if called == "clip" and len(args) == 3:
                yield "clip dropped", args[0]
            if called == "astype" and isinstance(func, ast.Attribute):
                yield "astype dropped", func.value
            if called in PASSED_ON and args:
                yield f"{called} dropped", args[0]
            if called == "outer" and len(args) == 2:
                yield "outer swapped", _written(node, args=args[::-1])
            if called == "fold_in" and len(args) == 2:
                yield "key not folded", args[0]
            for i, keyword in enumerate(node.keywords):
                if keyword.arg in ("dtype", "preferred_element_type", "precision"):
                    others = node.keywords[:i] + node.keywords[i + 1 :]
                    yield f"{keyword.arg} dropped", _written(node, keywords=others)


def _statement(node: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    match node:
        case ast.If(test=_, body=[ast.Raise(), *_]):
            yield "guard dropped", ast.copy_location(ast.Pass(), node)
        case ast.If(orelse=[]):
            yield "always", _written(node, test=ast.Constant(True))  # pyright: ignore
            yield "never", _written(node, test=ast.Constant(False))  # pyright: ignore
        case ast.Expr(value=ast.Call()):
            yield "call dropped", ast.copy_location(ast.Pass(), node)
        case ast.Assign(targets=[ast.Tuple(elts=[first, second, *rest]) as names]) if not any(
            isinstance(name, ast.Starred) for name in (first, second)
        ):
            swapped = _written(names, elts=[second, first, *rest])
            yield "unpacking swapped", _written(node, targets=[swapped])  # pyright: ignore
        case ast.AugAssign(op=op) if type(op) in OPERATORS:
            other = OPERATORS[type(op)]
            yield f"{type(op).__name__} to {other.__name__}", _written(node, op=other())  # pyright: ignore


def _places(tree: ast.Module) -> Iterator[tuple[str, ast.stmt, ast.AST]]:
    """(function, statement, node) of all that runs: no annotations, docstrings, texts of errors."""

    def walk(
        node: ast.AST, place: str, within: ast.stmt
    ) -> Iterator[tuple[str, ast.stmt, ast.AST]]:
        for name, field in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_params") or isinstance(node, ast.Raise):
                continue
            if isinstance(node, ast.keyword) and node.arg == "strict":
                continue  # of zip: it asserts what is so
            for child in field if isinstance(field, list) else [field]:
                if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                    continue
                if isinstance(child, ast.Import | ast.ImportFrom):
                    continue
                here, statement = place, child if isinstance(child, ast.stmt) else within
                if isinstance(child, ast.FunctionDef | ast.ClassDef):
                    here = child.name if place == "<module>" else f"{place}.{child.name}"
                yield here, statement, child
                yield from walk(child, here, statement)

    yield from walk(tree, "<module>", tree.body[0])


def _extent(statement: ast.stmt) -> tuple[int, int]:
    """The lines of a statement, of one with a block those before it."""
    block = getattr(statement, "body", None)
    last = block[0].lineno - 1 if block else statement.end_lineno
    return statement.lineno, max(statement.lineno, last or 0)


def faults_of(path: Path, root: Path) -> list[Fault]:
    """Every fault of one file. All other lines stay as they are, and where they are."""
    text = path.read_text("utf-8")
    coded, counts, found = text.encode(), Counter(), []
    starts = [0]
    for line in coded.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    name = path.relative_to(root).as_posix()
    for place, statement, node in _places(ast.parse(text)):
        ways = [*(_statement(node) if isinstance(node, ast.stmt) else ()), *_otherwise(node)]
        for kind, other in ways:
            assert isinstance(node, ast.expr | ast.stmt)
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            begin = starts[node.lineno - 1] + node.col_offset
            end = starts[node.end_lineno - 1] + node.end_col_offset
            written = ast.unparse(ast.fix_missing_locations(other))
            missing = "\n" * (node.end_lineno - node.lineno - written.count("\n"))
            if isinstance(node, ast.expr):
                written = f"({written}{missing})"
            else:
                written = written.replace("\n", "\n" + " " * node.col_offset) + missing
            changed = (coded[:begin] + written.encode() + coded[end:]).decode()
            try:
                ast.parse(changed)
            except SyntaxError:
                continue
            number = counts[place, kind]
            counts[place, kind] += 1
            lines = text.splitlines(), changed.splitlines()
            assert len(lines[0]) == len(lines[1]), f"{name}:{place}:{kind}:{number} moves lines"
            shown = tuple(each[node.lineno - 1].strip() for each in lines)
            found.append(Fault(name, place, kind, number, _extent(statement), changed, shown))
    return found


def all_faults(package: Path) -> list[Fault]:
    """Every fault of every file of a package."""
    files = (path for path in sorted(package.rglob("*.py")) if path.name != "__init__.py")
    return [fault for path in files for fault in faults_of(path, package)]
