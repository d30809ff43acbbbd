"""A whole model through the kernels, as a GPU would run it: its logits are those of plain torch."""

from pathlib import Path

import pytest
import torch
from packed_cases import arguments

pytest.importorskip("triton")

from torch import Tensor

from quantgolf import load, read_corpus
from quantgolf.checkpoint import Checkpoint, read_demo
from quantgolf.compress import compress
from quantgolf_kernels import reference
from quantgolf_kernels.gemm import gemm
from quantgolf_kernels.gemv import gemv
from quantgolf_kernels.packing import Packed
from quantgolf_kernels.tuning import choose
from quantgolf_kernels.unpack import unpack_rows

CPU = torch.device("cpu")


def launched(x: Tensor, packed: Packed) -> Tensor:
    """What `ops` does on a GPU, on a CPU: the interpreter runs it."""
    kernel, name = (gemv, "gemv") if len(x) == 1 else (gemm, "gemm")
    config = choose(name, CPU, packed.bits, len(x), *packed.shape) | {"block_n": 128}  # fewer programs to interpret
    return kernel(x, *arguments(packed), packed.bits, packed.offset, packed.columns, packed.group_size, config)


def unpacked(packed: Packed) -> Tensor:
    config = choose("unpack", CPU, packed.bits, packed.shape[0], *packed.shape) | {"block_n": 128}
    return unpack_rows(
        None, *arguments(packed), packed.bits, packed.offset, packed.columns, packed.group_size, torch.float32, config
    )


@pytest.mark.parametrize(
    "asked", [{"rules": [("emb", 6), ("attn", 5), ("*", 3)], "solver": "rtn"}, {"bpw": 4.5, "guard": False}]
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs models through the kernels as it is")
def test_logits_through_the_kernels_are_those_of_plain_torch(
    asked: dict[str, object], tiny: Checkpoint, prose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = read_corpus(prose, read_demo().tokenizer)
    made = compress(tiny, text, tuning=False, **asked)  # type: ignore[arg-type]
    made.write(tmp_path / "tiny.qg")
    model = load(tmp_path / "tiny.qg", materialize=False)
    calls: list[int] = []
    for tokens in (torch.tensor([[5]]), torch.tensor([[1, 900, 3, 77, 1023]])):
        wanted = model(tokens)
        with monkeypatch.context() as patch:
            patch.setattr(reference, "matmul", lambda x, packed: calls.append(len(x)) or launched(x, packed))
            patch.setattr(reference, "weights", unpacked)
            found = model(tokens)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert set(calls) == {1, 5}
