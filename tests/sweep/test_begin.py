"""Statistics that an earlier sweep left: of something else, or broken."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantgolf.checkpoint import Checkpoint
from quantgolf.data import Corpus
from quantgolf.errors import QuantGolfError
from quantgolf.sweep import Outcome, sweep

pytestmark = pytest.mark.usefixtures("one_thread")


def swept(source: Checkpoint, texts: tuple[Corpus, Corpus], axes: Any, out: Path) -> Outcome:
    return sweep(source, *texts, axes, out, tokens=512, length=64)


def test_leftover_statistics_of_another_model_or_none_name_what_to_do(
    tiny: Checkpoint, texts: tuple[Corpus, Corpus], tmp_path: Path
) -> None:
    out, grid = tmp_path / "r.jsonl", {"solver": ["rtn"], "bits": "4"}
    swept(tiny, texts, grid, out)
    out.unlink()
    other = replace(tiny, tensors={**tiny.tensors, "emb.weight": tiny.tensors["emb.weight"] * 2})
    with pytest.raises(QuantGolfError) as caught:
        swept(other, texts, grid, out)
    assert f"made with model {tiny.fingerprint} and not {other.fingerprint}, expected" in str(caught.value)
    assert str(caught.value).endswith(f"another --out, or remove {out}.work")
    (tmp_path / "r.jsonl.work" / "statistics" / "statistics.json").write_text("{")
    with pytest.raises(
        QuantGolfError, match=r"a sweep does so where it finds none: remove .*r\.jsonl\.work/statistics"
    ):
        swept(tiny, texts, grid, out)
    assert not out.exists()


def test_a_file_of_something_else_is_left_alone(tiny: Checkpoint, texts: tuple[Corpus, Corpus], tmp_path: Path) -> None:
    out = tmp_path / "diary.txt"
    out.write_text("my diary\nby hand, without line break")
    with pytest.raises(QuantGolfError, match="expected lines of JSON to add one to"):
        swept(tiny, texts, {"solver": ["rtn"], "bits": "4"}, out)
    assert out.read_text() == "my diary\nby hand, without line break" and not (tmp_path / "diary.txt.work").exists()
