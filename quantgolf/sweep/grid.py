"""Designed experiments in a YAML file: defaults, axes that multiply, and points of their own.

    defaults: {solver: gptq, damp: 0.02}
    axes:                        # a list of such blocks makes several products
      max-bytes: 8MB:20MB:1MB
      group-size: [32, 64, row]
      bits: {mlp: [4, 5, 6], attn: [5, 6], "*": 8}
    points:
      - {solver: slope, max-bytes: 12MB, states: 8}

What is not understood is refused with its file, line and key.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from quantgolf.errors import QuantGolfError
from quantgolf.sweep.axes import NAMES, axis_of, recipes_of
from quantgolf.sweep.recipe import APPLIES, Recipe

TOP = ("defaults", "axes", "points")
EXPECTED = f"expected a mapping with {', '.join(TOP)}"


class GridFile:
    """A grid file that was read, whose recipes wait for the checkpoint's size.

    Args:
        path: of the file.

    Raises:
        QuantGolfError: unreadable, not YAML, or keys and values that are not understood; with the line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            text = path.read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except OSError as error:
            raise QuantGolfError(f"grid {path}: {error.strerror}, {EXPECTED}") from error
        except UnicodeDecodeError as error:
            raise QuantGolfError(f"grid {path}: not text ({error.reason}), {EXPECTED}") from error
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f" line {mark.line + 1}" if mark is not None else ""
            raise QuantGolfError(
                f"grid {path}{line}: {getattr(error, 'problem', None) or error}, expected YAML"
            ) from error
        if not isinstance(root, yaml.MappingNode):
            raise self._error(root, f"is {'empty' if root is None else 'no mapping'}, {EXPECTED}")
        parts = dict(self._items(root, TOP))
        if not set(parts) & {"axes", "points"}:
            raise self._error(root, "the grid is empty: it has neither axes nor points, expected one of them")
        self._defaults = self._one_each(parts["defaults"]) if "defaults" in parts else {}
        blocks = self._listed(parts["axes"]) if "axes" in parts else []
        self._axes = [(node, self._values(node)) for node in blocks]
        points = self._listed(parts["points"]) if "points" in parts else []
        self._points = [(node, self._one_each(node)) for node in points]
        if not self._axes and not self._points:
            raise self._error(root, "the grid is empty: it has no axes and no points, expected some")

    def recipes(self, given: Mapping[str, list[Any]], parameters: int, code_bytes: int = 0) -> list[Recipe]:
        """Recipes of all axes and points, each once.

        Args:
            given: values by option of the command line, which stand for those that the file does not name.
            parameters, code_bytes: as `recipes_of`.

        Raises:
            QuantGolfError: as `recipes_of`, with the line of the block or point.
        """
        found: dict[Recipe, None] = {}
        for node, values in [*self._axes, *self._points]:
            below = {**self._defaults, **given}
            if {"max_bytes", "bpw", "bits"} & set(values):
                below = {name: value for name, value in below.items() if name not in ("max_bytes", "bpw", "bits")}
            solvers = values.get("solver", below.get("solver"))
            if solvers is not None:  # a default that means nothing to a block's solver does not stand in its way
                below = {
                    name: value for name, value in below.items()
                    if name not in APPLIES or any(solver in APPLIES[name] for solver in solvers)
                }  # fmt: skip
            try:
                found.update(dict.fromkeys(recipes_of({**below, **values}, parameters, code_bytes)))
            except QuantGolfError as error:
                raise self._error(node, str(error)) from error
        return list(found)

    def _values(self, node: yaml.Node) -> dict[str, list[Any]]:
        found = {}
        for key, value in self._items(node, NAMES):
            try:
                found[NAMES[key]] = axis_of(NAMES[key], _plain(value))
            except QuantGolfError as error:
                raise self._error(value, str(error)) from error
        return found

    def _one_each(self, node: yaml.Node) -> dict[str, list[Any]]:
        found = self._values(node)
        for name, values in found.items():
            if len(values) > 1:
                what = f"{name.replace('_', '-')} has {len(values)} values, expected one outside of axes"
                raise self._error(node, what)
        return found

    def _items(self, node: yaml.Node, known: Any) -> Iterator[tuple[str, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self._error(node, f"{_plain(node)!r:.40}, expected a mapping with keys such as {', '.join(known)}")
        seen = set()
        for key, value in node.value:
            name = str(key.value).replace("_", "-")
            if name not in known:
                raise self._error(key, f"{key.value!r:.40} is not known, expected {', '.join(known)}")
            if name in seen:
                raise self._error(key, f"{name} is there twice, expected it once")
            seen.add(name)
            yield name, value

    def _listed(self, node: yaml.Node) -> list[yaml.Node]:
        return list(node.value) if isinstance(node, yaml.SequenceNode) else [node]

    def _error(self, node: yaml.Node | None, what: str) -> QuantGolfError:
        line = "" if node is None else f" line {node.start_mark.line + 1}"
        return QuantGolfError(f"grid {self.path}{line}: {what}")


def _plain(node: yaml.Node) -> Any:
    """What a node says; scalars stay the text they are, because 1:2:3 is a number to YAML."""
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _plain(value) for key, value in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(each) for each in node.value]
    return str(node.value)
