"""A point as a plan: written by itself, read again, and made into the file that it measured."""

from pathlib import Path

from quantgolf.blob import write_blob
from quantgolf.errors import QuantGolfError
from quantgolf.sweep.point import FrontierPoint
from quantgolf.sweep.recipe import Recipe
from quantgolf.sweep.store import ResultsFile


def write_point(path: Path, point: FrontierPoint, overwrite: bool = False) -> None:
    """Writes one point as a file of one line.

    Raises:
        QuantGolfError: the name is taken and `overwrite` is off, or it cannot be written.
    """
    write_blob(path, point.line().encode(), overwrite=overwrite)


def read_point(path: Path, key: str | None = None) -> FrontierPoint:
    """The point of a file that holds one, or the measured one of a results file whose key begins with `key`.

    Raises:
        QuantGolfError: no such file or point, several that `key` could mean, or one that failed.
    """
    if not path.is_file():
        raise QuantGolfError(f"plan {path}: no such file, expected a point that `quantgolf sweep --pick` wrote")
    points = ResultsFile(path).read().points
    found = [point for name, point in points.items() if name.startswith(key or "")]
    if not points:
        raise QuantGolfError(f"plan {path}: no point in it, expected one that `quantgolf sweep` wrote")
    if len(found) != 1:
        names = ", ".join(list(points)[:8]) + ("" if len(points) <= 8 else f" and {len(points) - 8} more")
        what = f"{len(found) or 'no'} points" + ("" if key is None else f" have keys that begin with {key}")
        raise QuantGolfError(f"plan {path}: {what}, expected one of {names}; name it with --point")
    (point,) = found
    if point.status != "done":
        raise QuantGolfError(f"plan {path}: point {point.key} failed ({point.error}), expected one that was measured")
    return point


def recipe_of(point: FrontierPoint, fingerprint: str) -> Recipe:
    """What makes a point's file again.

    Args:
        fingerprint: of the checkpoint that it is to be made of.

    Raises:
        QuantGolfError: the point is of another checkpoint, or no sweep made it.
    """
    if point.fingerprint != fingerprint:
        raise QuantGolfError(
            f"the plan is of the model {point.model} ({point.fingerprint}), and the checkpoint is {fingerprint}, "
            "expected the same; give the checkpoint that was swept"
        )
    try:
        return Recipe.of(point.options)
    except QuantGolfError as error:
        raise QuantGolfError(f"the plan {point.key} ({point.method}) is none of a sweep: {error}") from error
