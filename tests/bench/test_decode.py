"""Random models in files, a decode step against the whole forward pass, and what a comparison writes down."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from quantgolf.bench import decode, model
from quantgolf.bench.clock import HostTimer
from quantgolf.bench.step import DecodeStep
from quantgolf.errors import QuantGolfError
from quantgolf.models.golf import Golf, GolfConfig
from quantgolf.runtime import load

CPU = torch.device("cpu")
CONFIG = GolfConfig(vocab_size=96, dim=64, layers=3, heads=4, kv_heads=2, mlp_mult=2)


@pytest.fixture
def file(tmp_path: Path) -> Callable[..., Path]:
    def call(form: str, config: GolfConfig = CONFIG) -> Path:
        path = tmp_path / f"{form}.qg"
        path.write_bytes(model.random_file(config, form, seed=1))
        return path

    return call


@pytest.fixture
def setting(fake: Any) -> decode.Setting:
    return decode.Setting(fake(1e-3), fake(1e-2), CPU, torch.float32, lambda call: call, length=16, batch=2)


@pytest.mark.parametrize("more", [{}, {"loop_first": 1, "loop_last": 2, "loop_times": 2}, {"tied": False},
                                  {"banks": True}])  # fmt: skip
def test_steps_give_the_logits_of_the_whole_text(more: dict[str, Any]) -> None:
    golf = Golf(GolfConfig(**{**CONFIG.described(), **more}))
    golf.initialise(torch.Generator().manual_seed(0))
    for name, parameter in golf.named_parameters():
        if name.endswith(("o.weight", "down.weight", "gain", "scale")):
            nn.init.normal_(parameter, 0.5, 0.2)
    tokens = torch.randint(0, 96, (3, 10), generator=torch.Generator().manual_seed(1))
    step = DecodeStep(golf, 3, 12, CPU, torch.float32)
    with torch.no_grad():
        wanted = golf(tokens)
        for _ in range(2):  # the second time after a restart
            found = torch.stack([step(tokens[:, at]) for at in range(10)], 1)
            assert torch.allclose(found, wanted, atol=1e-5)
            step.restart()


def test_a_step_goes_on_from_the_front_when_its_memory_is_full() -> None:
    step = DecodeStep(Golf(CONFIG), 1, 4, CPU, torch.float32)
    with torch.no_grad():
        for _ in range(9):
            assert step(torch.zeros(1, dtype=torch.int64)).isfinite().all()
    assert step.at.item() == 1


def test_a_model_with_gates_is_refused() -> None:
    with pytest.raises(QuantGolfError, match="the model has gates"):
        DecodeStep(Golf(GolfConfig(**CONFIG.described(), gates=True)), 1, 4, CPU, torch.float32)


def test_the_slope_file_has_levels_of_about_six_bits(file: Callable[..., Path]) -> None:
    config = GolfConfig(vocab_size=512, dim=256, layers=1, heads=4, kv_heads=2, mlp_mult=4)
    packed = load(file("slope", config), materialize=False)
    found = packed.get_submodule("emb").packed
    assert found.bits == 6 and found.column is not None and found.outliers is not None
    assert 6.0 < found.bpw < 6.6
    path = file("slope", config)
    parameters = sum(tensor.numel() for tensor in load(path).parameters())
    assert 4.3 < 8 * path.stat().st_size / parameters < 4.8  # a trellis would store such levels in one bit less


@pytest.mark.parametrize("form", ["2", "5", "8"])
def test_fixed_widths_are_what_they_say(file: Callable[..., Path], form: str) -> None:
    config = GolfConfig(vocab_size=96, dim=128, layers=1, heads=4, kv_heads=2, mlp_mult=2)
    packed = load(file(form, config), materialize=False)
    assert {part.packed.bits for part in packed.modules() if hasattr(part, "packed")} == {int(form)}


def test_forms_are_read() -> None:
    assert model.forms("slope, 4") == ["slope", "4"]
    for text in ("", "1", "4.5", "gptq"):
        with pytest.raises(QuantGolfError, match="expected slope or a width from 2 to 8"):
            model.forms(text)


@pytest.mark.parametrize("form", ["slope", "4"])
def test_a_comparison_says_what_issue_five_asks(file: Callable[..., Path], setting: decode.Setting, form: str) -> None:
    path = file(form)
    packed, dense = load(path, materialize=False), load(path, materialize=True)
    decoded, evaluated = decode.compare(setting, form, packed, dense, dense, ("decode", "eval"))
    assert decoded["name"] == "model decode" and decoded["tokens"] == 1 and decoded["goal"] == 1.0
    assert evaluated["tokens"] == 2 * 16 and evaluated["goal"] == 0.95 and evaluated["bytes_goal"] == 0.5
    assert decoded["tokens_per_second"] == pytest.approx(1e3, rel=0.2)
    assert evaluated["tokens_per_second"] == pytest.approx(32 / 1e-2, rel=0.2)
    assert decoded["gain"] == pytest.approx(decoded["dense_us"] / decoded["us"])
    assert decoded["error"] < 1e-5 and decoded["dense_error"] < 1e-5
    wanted = sum(tensor.nbytes for tensor in dense.parameters())
    assert evaluated["dense_bytes"] == wanted and evaluated["bytes"] < 0.4 * wanted  # fp32


def test_a_tied_weight_counts_once() -> None:
    linear = nn.Linear(8, 8, bias=False)
    assert decode.stored_bytes(nn.ModuleList([linear, linear])) == 256


def test_another_models_logits_are_refused(file: Callable[..., Path], setting: decode.Setting) -> None:
    dense, other = load(file("4")), load(file("2"))
    with pytest.raises(QuantGolfError, match="nothing is timed that is wrong"):
        decode.check(setting, other, dense)


def test_the_hosts_clock_can_time_it_all(file: Callable[..., Path]) -> None:
    setting = decode.Setting(HostTimer(), HostTimer(), CPU, torch.float32, lambda call: call, length=4, batch=1)
    assert decode.timed_decode(setting, load(file("4"))).seconds > 0
