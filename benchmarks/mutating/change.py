"""The checks of the reader, and every way in which one is changed.

All mutants of a module lie in it side by side, each behind a condition on `__mutant__`, so that it is imported once.
"""

import ast
import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
ROOMS = ("blob", "encode")
# Loops that Numba compiles run as Python with a mutant in them: compiled ones are cached, and would read anywhere.
COMPILED = {"lanes.py": ("decode_lanes",), "rans.py": ("_decode",)}
CHECKERS = ("check", "_check", "_expect", "finish")
PROTECTIONS = ("max_window_size", "allow_extra_data", "parse_constant", "max_output_size")


@dataclass(frozen=True)
class Mutant:
    """A check that is changed.

    Attributes:
        number: turns it on.
        path: of the module.
        line: of the check.
        what: what was changed, in source.
        site: number of the check among all; tests that meet it are known by that.
        looser: whether it only ever lets more pass.
        compiled: whether it is in a function that Numba compiles.
    """

    number: int
    path: Path
    line: int
    what: str
    site: int
    looser: bool
    compiled: bool

    @property
    def key(self) -> tuple[str, str]:
        """Names it however lines move."""
        return self.path.name, self.what


def modules() -> list[Path]:
    """The modules of the reader."""
    found = [path for room in ROOMS for path in sorted((ROOT / "quantgolf" / room).glob("*.py"))]
    return [path for path in found if path.name not in ("__init__.py", "gpu.py", "spent.py")]


def mutated(
    path: Path, numbers: Iterator[int], sites: Iterator[int], compiled: bool
) -> tuple[ast.Module, list[Mutant]]:
    """A module with all its mutants, of which `__mutant__` says which is on, and whose checks say when they refuse.

    Those in functions that Numba compiles are only there if `compiled`.
    """
    tree, found = ast.parse(path.read_text(encoding="utf-8")), []
    for function, node in list(_sites(tree, path.name)):
        site, inside = next(sites), function.name in COMPILED.get(path.name, ())
        variants = []
        for change, what, looser in _changes(node):
            undo = change()  # trees are changed in place, copied, and changed back
            variants.append((next(numbers), copy.deepcopy(node)))
            undo()
            found.append(Mutant(variants[-1][0], path, node.lineno, what, site, looser, inside))
        if compiled or not inside:
            for number, variant in variants:
                _add(node, variant, number)
            if not inside:
                _note(node, site)
    return ast.fix_missing_locations(tree), found


def _add(node: Any, variant: Any, number: int) -> None:
    """Makes a check what its variant is where that mutant is on."""
    on = ast.parse(f"__mutant__ == {number}", mode="eval").body
    if isinstance(node, ast.If):
        node.test = ast.IfExp(on, variant.test, node.test)
    elif isinstance(node, ast.Expr):
        node.value = ast.IfExp(on, variant.value, node.value)
    elif isinstance(node, ast.Call):
        kept = [each.arg for each in variant.keywords]
        for keyword in [each for each in node.keywords if each.arg is not None and each.arg not in kept]:
            given = ast.Dict([ast.Constant(keyword.arg)], [keyword.value])
            keyword.arg, keyword.value = None, ast.IfExp(on, ast.Dict([], []), given)
    elif ast.unparse(variant.type) != ast.unparse(node.type):
        node.type = ast.IfExp(on, variant.type, node.type)
    else:
        node.body.insert(0, ast.If(on, [ast.Raise()], []))


def _note(node: Any, site: int) -> None:
    """Lets a check say that it refuses, or is called."""
    call = ast.parse(f"__reader_site__({site})", mode="eval").body
    if isinstance(node, ast.If | ast.ExceptHandler):
        node.body.insert(0, ast.Expr(call))
    elif isinstance(node, ast.Expr):
        node.value = ast.Tuple([call, node.value], ast.Load())
    else:
        node.func = ast.Subscript(ast.Tuple([call, node.func], ast.Load()), ast.Constant(1), ast.Load())


def _sites(tree: ast.Module, name: str) -> Iterator[tuple[ast.FunctionDef, Any]]:
    """Every check with the function that it is in."""
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            signals = function.name in COMPILED.get(name, ()) or function.name == "fault"
            yield from ((function, node) for node in _within(function) if _is_check(node, signals))


def _is_check(node: ast.AST, signals: bool) -> bool:
    if isinstance(node, ast.If):
        return any(_refuses(each, signals) for each in node.body)
    if isinstance(node, ast.ExceptHandler):
        return any(_refuses(each, False) for each in node.body)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return _is_checker(node.value.func)
    return isinstance(node, ast.Call) and any(each.arg in PROTECTIONS for each in node.keywords)


def _within(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """What belongs to a function and to none inside it."""
    todo: list[ast.AST] = list(function.body)
    while todo:
        node = todo.pop(0)
        if not isinstance(node, ast.FunctionDef):
            yield node
            todo[:0] = ast.iter_child_nodes(node)


def _refuses(node: ast.stmt, signals: bool) -> bool:
    if isinstance(node, ast.Raise) and node.exc is not None:
        raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.unparse(raised) == "FormatError" or ast.unparse(raised).endswith("damaged")
    if isinstance(node, ast.Return) and signals and node.value is not None:
        return "-1" in ast.unparse(node.value) or isinstance(node.value, ast.JoinedStr)
    return False


def _is_checker(function: ast.expr) -> bool:
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return name.startswith(CHECKERS)


Undo = Callable[[], None]


def _changes(site: Any) -> Iterator[tuple[Callable[[], Undo], str, bool]]:
    """Ways to change a check: how, in words, and whether it lets more pass and refuses no more."""
    if isinstance(site, ast.Expr):
        yield _set(site, "value", ast.Constant(None)), f"without {ast.unparse(site.value)}", True
    elif isinstance(site, ast.Call):
        for keyword in [each for each in site.keywords if each.arg in PROTECTIONS]:
            rest = [each for each in site.keywords if each is not keyword]
            yield _set(site, "keywords", rest), f"{ast.unparse(site.func)} without {keyword.arg}", True
    elif isinstance(site, ast.ExceptHandler):
        kinds = ast.unparse(site.type) if site.type else ""
        yield _set(site, "body", [ast.Raise()]), f"except {kinds}: raise", True
        if isinstance(site.type, ast.Tuple):
            for kind in site.type.elts:
                rest_of = ast.Tuple([each for each in site.type.elts if each is not kind], ast.Load())
                yield _set(site, "type", rest_of), f"except {kinds}: without {ast.unparse(kind)}", True
    else:
        whole = ast.unparse(site.test)
        yield _set(site, "test", ast.Constant(False)), f"if {whole}: never", True
        yield from _of_condition(site, "test", whole, positive=True)


def _of_condition(owner: Any, field: Any, whole: str, positive: bool) -> Iterator[tuple[Callable[[], Undo], str, bool]]:
    """Parts left out, bounds moved; `positive` where a part that holds more often refuses more."""
    node = owner[field] if isinstance(owner, list) else getattr(owner, field)
    if isinstance(node, ast.BoolOp):
        for at, part in enumerate(node.values):
            rest = [each for each in node.values if each is not part]
            without = rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
            looser = isinstance(node.op, ast.Or) == positive
            yield _set(owner, field, without), f"if {whole}: without {ast.unparse(part)}", looser
            yield from _of_condition(node.values, at, whole, positive)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield from _of_condition(node, "operand", whole, not positive)
    elif isinstance(node, ast.Compare):
        links = list(zip([node.left, *node.comparators], node.ops, node.comparators, strict=False))
        for at, (_, operator, _) in enumerate(links):
            if len(links) > 1:
                rest_of = [ast.Compare(a, [o], [b]) for i, (a, o, b) in enumerate(links) if i != at]
                without = rest_of[0] if len(rest_of) == 1 else ast.BoolOp(ast.And(), list(rest_of))
                yield _set(owner, field, without), f"if {whole}: without link {at + 1}", not positive
            if (moved := MOVED.get(type(operator))) is not None:
                looser = (moved in (ast.Lt, ast.Gt)) == positive
                yield _set(node.ops, at, moved()), f"if {whole}: link {at + 1} with {moved.__name__}", looser
    elif isinstance(node, ast.NamedExpr):
        return


MOVED: dict[type[ast.cmpop], type[ast.cmpop]] = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}


def _set(owner: Any, field: Any, value: Any) -> Callable[[], Undo]:
    def change() -> Undo:
        if isinstance(owner, list):
            before, owner[field] = owner[field], value
            return lambda: owner.__setitem__(field, before)
        before = getattr(owner, field)
        setattr(owner, field, value)
        return lambda: setattr(owner, field, before)

    return change


def all_mutants(compiled: bool) -> tuple[dict[Path, ast.Module], list[Mutant]]:
    """The modules of the reader with their mutants in them."""
    numbers, sites = count(1), count()
    each = {path: mutated(path, numbers, sites, compiled) for path in modules()}
    return {path: tree for path, (tree, _) in each.items()}, [mutant for _, found in each.values() for mutant in found]
