"""The solvers' speed: what is compared, what is refused, and what a line holds."""

import json
from pathlib import Path

import pytest
import solve_speed
import torch
import typer
from torch import Tensor
from typer.testing import CliRunner

from quantgolf.errors import QuantGolfError
from quantgolf.solve.trellis import Trellis

CPU = torch.device("cpu")


def test_lines_say_what_was_measured(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(solve_speed.main)
    out = tmp_path / "lines.jsonl"
    result = CliRunner().invoke(app, ["--model", "small", "--states", "4", "--repeats", "1", "--out", str(out)])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["name"].split()[1] for line in lines] == list(solve_speed.KINDS)
    assert [line["matrices"] for line in lines] == [13, 13, 12] and lines[0]["weights"] == 360_448
    for line in lines:
        assert line["device"] == "cpu" and line["agree"] > 0.99 and line["versions"]["torch"] == torch.__version__
        assert line["weights_per_second"] == pytest.approx(line["weights"] / line["solve_seconds"], rel=0.05)
        assert f"{line['weights_per_second']:,}" in result.output
    assert lines[0]["bits"] == 6 and lines[1]["states"] == 4 and "5,000,000 a second" in result.output


def test_the_reference_model_has_36_million_weights() -> None:
    shapes: list[tuple[int, int]] = []

    def keep(found: list[tuple[int, int]], kind: str, device: torch.device) -> list[solve_speed.Matrix]:
        shapes.extend(found)
        return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solve_speed, "made_up", keep)
        solve_speed.made("36M", "scalar", CPU)
    assert sum(rows * columns for rows, columns in shapes) == 35_913_728
    assert (8192, 512) in shapes and shapes.count((2048, 512)) == 11


@pytest.mark.parametrize("kind", solve_speed.KINDS)
def test_wrong_levels_are_noticed(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solve_speed, "ODD", (20, 13))
    assert solve_speed.compared(kind, CPU, Trellis(4)) > 0.99
    name = "feed_back_many" if kind == "scalar" else "solve_slope_many"
    right = getattr(solve_speed, name)

    def wrong(*arguments: object) -> Tensor:
        levels = right(*arguments)
        levels[1, :, 3] = -levels[1, :, 3]
        return levels  # type: ignore[no-any-return]

    monkeypatch.setattr(solve_speed, name, wrong)
    with pytest.raises(QuantGolfError, match=f"{kind} on cpu loses .* no timing"):
        solve_speed.compared(kind, CPU, Trellis(4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(QuantGolfError, match="torch finds no GPU: take --device cpu"):
        solve_speed.main(device="cuda")
    with pytest.raises(QuantGolfError, match="device is tpu, expected cpu or cuda"):
        solve_speed.main(device="tpu")
    with pytest.raises(QuantGolfError, match="model is large, expected one of small"):
        solve_speed.main(model="large")
    with pytest.raises(QuantGolfError, match="vector is not known, expected one of scalar"):
        solve_speed.main(["vector"], model="small")
