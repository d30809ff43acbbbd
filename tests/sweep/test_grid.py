"""Grid files: what they say, and which line is wrong."""

from pathlib import Path

import pytest

from quantgolf.errors import QuantGolfError
from quantgolf.sweep.grid import GridFile
from quantgolf.sweep.recipe import Recipe

GRID = """
defaults: {damp: 0.02}
axes:
  - {solver: [slope, gptq], max-bytes: 1MB:2MB:500kB, states: [8, 128]}
  - solver: gptq
    bits: {mlp: [4, 5], "*": 6}
points:
  - {solver: rtn, bits: 5, codec: zstd}
  - {max-bytes: 16_000_000}
"""


def grid(folder: Path, text: str) -> GridFile:
    path = folder / "grid.yaml"
    path.write_text(text)
    return GridFile(path)


def test_axes_multiply_and_points_stand_by_themselves(tmp_path: Path) -> None:
    found = grid(tmp_path, GRID).recipes({}, 1000)
    assert len(found) == 3 * 2 + 3 + 2 + 2
    assert found[0] == Recipe("slope", 1_000_000, states=8, damp=0.02)
    assert found[-4:-2] == [Recipe("gptq", bits=f"mlp={b},*=6", damp=0.02) for b in (4, 5)]
    assert found[-2:] == [Recipe("rtn", bits="5", codec="zstd"), Recipe("slope", 16_000_000, damp=0.02)]


def test_the_command_line_gives_what_the_file_does_not_say(tmp_path: Path) -> None:
    found = grid(tmp_path, "points: [{solver: gptq}, {solver: slope, max-bytes: 5kB}]").recipes(
        {"max_bytes": [9000], "states": [8]}, 1000
    )
    assert found == [Recipe("gptq", 9000), Recipe("slope", 5000, states=8)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "grid.yaml: is empty"),
        ("- a\n", "line 1: is no mapping"),
        ("axes: {}\n", r"line 1: .*the grid is empty"),
        ("axes:\n  max-bytes: [1MB\n", "line 3: .*expected YAML"),
        ("axes:\n  max-bytes: 1MB\n  stats: 3\n", "line 3: 'stats' is not known"),
        ("axes:\n  max-bytes: 1MB\n  damp: 0.1\n  damp: 0.2\n", "line 4: damp is there twice"),
        ("axes:\n  max-bytes: 2MB:1MB:1MB\n", "line 2: --max-bytes '2MB:1MB:1MB' is empty"),
        (
            "axes:\n  max-bytes: 1MB\npoints:\n  - {solver: gptq, max-bytes: [1MB, 2MB]}\n",
            "line 4: max-bytes has 2 values",
        ),
        (
            "axes:\n  max-bytes: 1MB\npoints:\n  - {solver: gptq, states: 8, bits: 4}\n",
            "line 4: --states means nothing",
        ),
        ("axes: 7\n", "line 1: '7', expected a mapping"),
        ("axes: !!python/object/apply:os.system ['true']\n", "line 1"),
    ],
)
def test_errors_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(QuantGolfError, match=message):
        grid(tmp_path, text).recipes({}, 1000)


def test_a_missing_or_binary_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(QuantGolfError, match="No such file"):
        GridFile(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(QuantGolfError, match="not text"):
        GridFile(tmp_path / "binary.yaml")
