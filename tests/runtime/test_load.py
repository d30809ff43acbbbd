"""Files become modules again, on their own where they can, and with the user's module where they must."""

from pathlib import Path

import pytest
import torch
from torch import nn

from quantgolf.blob import pack, write_blob
from quantgolf.checkpoint import Checkpoint, open_checkpoint
from quantgolf.compress import compress
from quantgolf.compress.refuse import uniform
from quantgolf.encode import Entry, encode_model
from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf
from quantgolf.runtime import load, restore
from quantgolf.types import QTensor, Steps


def compressed(source: Checkpoint, path: Path) -> Path:
    stats = {name: uniform(name, t.float()) for name, t in source.tensors.items() if t.ndim == 2}
    compress(source, stats, rules=[("*", 4)], solver="rtn").write(path)
    return path


def test_reference_models_load_on_their_own(tiny: Checkpoint, tmp_path: Path) -> None:
    path = compressed(tiny, tmp_path / "a.qg")
    module = load(path)
    assert isinstance(module, Golf) and not module.training
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        near, far = module(tokens), tiny.module(tokens)
    assert near.shape == far.shape and not torch.equal(near, far)
    assert float((near - far).square().mean()) < 0.2 * float(far.square().mean())
    for name, tensor in module.state_dict().items():
        if tensor.ndim != 2:
            assert torch.equal(tensor, tiny.module.state_dict()[name])


def test_other_modules_are_filled_and_have_to_fit(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self, size: int = 6) -> None:
            super().__init__()
            self.emb, self.head = nn.Embedding(9, size), nn.Linear(size, 9, bias=False)
            self.head.weight = self.emb.weight
            self.register_buffer("count", torch.tensor(5))

    model = Tied()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(state, tmp_path / "c.pt")
    path = compressed(open_checkpoint(tmp_path / "c.pt", Tied()), tmp_path / "a.qg")
    with pytest.raises(QuantGolfError, match=r"give --model path/to/script\.py:factory"):
        load(path)
    with pytest.raises(QuantGolfError, match=r"emb\.weight is \[9, 6\] where the model has \[9, 7\]"):
        load(path, Tied(7))
    module = load(path, Tied())
    assert isinstance(module, Tied) and module.head.weight is module.emb.weight and int(module.count) == 5
    assert torch.allclose(module.emb.weight, model.emb.weight, atol=0.5)


def test_restored_tensors_have_names_shapes_and_exact_values(tmp_path: Path) -> None:
    codes, rows = torch.arange(-6, 6).to(torch.int8).reshape(2, 6), torch.tensor([0.5, 0.25]).half()
    entry = Entry("w", torch.zeros(2, 3, 2), QTensor(codes, Steps(rows), 4), aliases=("again",))
    coded = encode_model([entry, Entry("b", torch.tensor([1.0, 2.0]))])
    write_blob(tmp_path / "a.qg", pack(coded, None))
    tensors = restore(coded)
    assert list(tensors) == ["w", "again", "b"]
    assert tensors["w"].shape == (2, 3, 2) and tensors["w"].dtype == torch.float32
    assert tensors["again"].flatten().tolist() == [c * s for s, r in ((0.5, range(-6, 0)), (0.25, range(6))) for c in r]


def test_forged_descriptions_allocate_nothing(tmp_path: Path) -> None:
    """A terabyte of embedding, and more layers than a computer builds in a day."""
    coded = encode_model([Entry("emb.weight", torch.zeros(4, 8))])
    for config in ({"vocab_size": 2**30, "dim": 256}, {"vocab_size": 4, "dim": 8, "layers": 10**9}, {"dim": 2**62}):
        write_blob(tmp_path / "a.qg", pack(coded, {"family": "golf", "config": config}), overwrite=True)
        with pytest.raises(QuantGolfError):
            load(tmp_path / "a.qg")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_files_load_onto_the_gpu(tiny: Checkpoint, tmp_path: Path) -> None:
    path = compressed(tiny, tmp_path / "a.qg")
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            load(path, device="cuda")(tokens.cuda()).cpu(), load(path)(tokens), atol=1e-2, rtol=0
        )
