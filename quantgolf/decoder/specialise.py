"""Leaves out of a program what constants that are known by now make superfluous."""

import ast
from collections.abc import Mapping

# Only annotations need these, and the minifier drops annotations but not their imports.
TYPING = ("collections.abc", "numpy.typing", "typing")


def specialise(text: str, constants: Mapping[str, bool | str]) -> str:
    """The program with top-level constants replaced by values, without branches not taken and functions not called.

    Comments are lost.
    """
    tree = _Fold(constants).visit(ast.parse(text))
    while True:
        named = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        kept = [node for node in tree.body if not _is_unused(node, named)]
        if len(kept) == len(tree.body):
            return ast.unparse(ast.fix_missing_locations(tree)) + "\n"
        tree.body = kept


def without_typing(text: str) -> str:
    """The program without what is imported for annotations alone."""
    tree = ast.parse(text)
    tree.body = [node for node in tree.body if not (isinstance(node, ast.ImportFrom) and node.module in TYPING)]
    return ast.unparse(tree)


def _is_unused(node: ast.stmt, named: set[str]) -> bool:
    return isinstance(node, ast.FunctionDef) and node.name != "load" and node.name not in named


class _Fold(ast.NodeTransformer):
    def __init__(self, constants: Mapping[str, bool | str]) -> None:
        self.constants = constants

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        if isinstance(node.targets[0], ast.Name) and node.targets[0].id in self.constants:
            return None
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(self.constants[node.id]) if node.id in self.constants else node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.op, ast.Or):
            return node
        if any(isinstance(value, ast.Constant) and value.value is False for value in node.values):
            return ast.Constant(False)
        left = [value for value in node.values if not (isinstance(value, ast.Constant) and value.value is True)]
        return left[0] if len(left) == 1 else ast.BoolOp(node.op, left)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        if not isinstance(node.test, ast.Constant):
            return node
        return node.body if node.test.value else node.orelse

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.test, ast.Constant):
            return node
        return node.body if node.test.value else node.orelse
