"""Faults put between solving a model and finding its file: every one has to be told before the file gets its name.

    python benchmarks/verified.py --tries 200

Faults of an encoder: another level, code, step, scale, zero or kept value than was solved, another name, dtype, shape,
order or tie, in a file that is sound in itself, so that nothing but the comparison can tell. Faults of a disk: a bit of
the file that was written flips, its end is missing, or zeros are in its place. And bits that flip in files that are
there, which `quantgolf verify` has to tell.
"""

import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated
from unittest import mock

import torch
import typer
from reliability_rows import RESULTS, Row
from torch import Tensor

from quantgolf import atomic
from quantgolf.blob import VERSION, pack
from quantgolf.compress import Compressed
from quantgolf.compress.readback import expected_of, solved_digest
from quantgolf.decoder.check import check
from quantgolf.encode import Entry, Leveled, encode_codes, encode_model
from quantgolf.encode.model import Quantized
from quantgolf.errors import QuantGolfError
from quantgolf.solve.trellis import Trellis
from quantgolf.types import BitPlan, BlobHeader, Block, Exponents, Groups, Steps

OLD = b"what was there before"
MODEL = {"family": "golf", "config": {"dim": 64}}
SCALAR = Trellis(1)


@dataclass(frozen=True)
class Matrix:
    """A solved matrix [N, K]: levels with exponents, or codes of a width with steps or groups."""

    block: Block
    codes: Tensor
    steps: Exponents | Tensor | Groups
    bits: int = 0

    def coded(self) -> Leveled | Quantized:
        """As an entry takes it."""
        if isinstance(self.steps, Exponents):
            return Leveled(self.block, self.steps, self.codes)
        return Quantized(self.block, self.steps, self.bits, encode_codes(self.codes))

    def digest(self) -> str:
        """As a solver's result has it."""
        if isinstance(self.steps, Exponents):
            return solved_digest(self.codes, self.steps.steps())
        return solved_digest(self.codes, self.steps if isinstance(self.steps, Groups) else Steps(self.steps))


@dataclass(frozen=True)
class Tensors:
    """A small model with everything that the format has: tensors by name, their matrices, their further names."""

    originals: dict[str, Tensor]
    matrices: dict[str, tuple[Matrix, ...]]
    aliases: dict[str, tuple[str, ...]]

    def entries(self) -> list[Entry]:
        """What is encoded."""
        return [
            Entry(name, tensor, tuple(each.coded() for each in self.matrices.get(name, ())), self.aliases.get(name, ()))
            for name, tensor in self.originals.items()
        ]


def small(seed: int) -> Tensors:
    """Levels, codes with steps a row, groups of both kinds, a bank of which one entry is kept, a tie, vectors."""
    made = torch.Generator().manual_seed(seed)

    def whole(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high + 1, shape, generator=made)

    exponents = Exponents(whole(-30, -20, 48).short(), whole(-4, 4, 32).short(), -20)
    bank = Exponents(whole(-30, -20, 32).short(), whole(-4, 4, 24).short(), -20)
    halves = Groups(torch.rand(16, 4, generator=made).half() + 0.1, None, 8)
    logs = Groups(whole(-90, -50, 16, 2).short(), whole(-3, 3, 16, 2).char(), 12)
    matrices: dict[str, tuple[Matrix, ...]] = {
        "emb": (Matrix(Block("emb", 1, 0, 48), whole(-9, 9, 48, 32).int(), exponents),),
        "bank": (Matrix(Block("bank", 2, 24, 48, transposed=True), whole(-9, 9, 32, 24).int(), bank),),
        "rows": (Matrix(Block("rows", 1, 0, 24), whole(-7, 7, 24, 24).char(),
                        torch.rand(24, generator=made).half() + 0.1, 4),),
        "halves": (Matrix(Block("halves", 1, 0, 16), whole(-3, 3, 16, 32).char(), halves, 3),),
        "logs": (Matrix(Block("logs", 1, 0, 16), whole(-8, 7, 16, 24).char(), logs, 4),),
    }  # fmt: skip
    originals = {
        "emb": torch.zeros(48, 32).half(),
        "bank": torch.randn(3, 24, 32, generator=made).half(),
        "norm": torch.randn(24, generator=made).half().float(),
        "rows": torch.zeros(24, 24).bfloat16(),
        "halves": torch.zeros(16, 32),
        "logs": torch.zeros(16, 24),
        "gain": torch.randn(7, 3, generator=made).half().float(),
        "steps": whole(0, 1000, 5),
    }
    return Tensors(originals, matrices, {"emb": ("head",)})


def faults(draw: random.Random) -> dict[str, Callable[[Tensors], Tensors]]:
    """What an encoder may do wrong, by what it is."""

    def matrix(names: str, change: Callable[[Matrix], Matrix]) -> Callable[[Tensors], Tensors]:
        def changed(of: Tensors) -> Tensors:
            name = draw.choice(names.split())
            return replace(of, matrices={**of.matrices, name: tuple(map(change, of.matrices[name]))})

        return changed

    def moved(values: Tensor, lowest: int, highest: int) -> Tensor:
        values = values.clone()
        at = draw.randrange(values.numel())
        flat = values.view(-1)
        flat[at] += 1 if int(flat[at]) < highest and (draw.random() < 0.5 or int(flat[at]) <= lowest) else -1
        return values

    def stepped(each: Matrix) -> Matrix:
        if isinstance(each.steps, Exponents):
            side = draw.choice(("row", "column"))
            other = moved(getattr(each.steps, side), -99, 99)
            row = replace(each.steps, row=other) if side == "row" else replace(each.steps, column=other)
            return replace(each, steps=row)
        if isinstance(each.steps, Tensor):
            return replace(each, steps=moved(each.steps.view(torch.int16), 0, 31000).view(torch.float16))
        if each.steps.zero is not None and draw.random() < 0.5:
            return replace(each, steps=replace(each.steps, zero=moved(each.steps.zero, -8, 7)))
        scale = each.steps.scale.view(torch.int16)
        return replace(each, steps=replace(each.steps, scale=moved(scale, -99, 31000).view(each.steps.scale.dtype)))

    def kept(of: Tensors) -> Tensors:
        name = draw.choice(["norm", "gain", "steps", "bank"])
        values = of.originals[name].clone()
        part = values.view(-1)[: 24 * 32] if name == "bank" else values.view(-1)
        at = draw.randrange(len(part))
        other = part[at] + 1 if name == "steps" else part[at] * (1 + 2.0**-8)
        part[at] = other if other != part[at] else 1  # of a zero
        return replace(of, originals={**of.originals, name: values})

    def renamed(of: Tensors) -> Tensors:
        name = draw.choice(["norm", "gain", "steps"])
        return replace(of, originals={(f"{n}_" if n == name else n): t for n, t in of.originals.items()})

    def retyped(of: Tensors) -> Tensors:
        name, dtype = draw.choice([("norm", torch.float16), ("steps", torch.int32), ("halves", torch.bfloat16)])
        return replace(of, originals={**of.originals, name: of.originals[name].to(dtype)})

    def reshaped(of: Tensors) -> Tensors:
        return replace(of, originals={**of.originals, "gain": of.originals["gain"].reshape(3, 7)})

    def reordered(of: Tensors) -> Tensors:
        names = list(of.originals)
        at = draw.randrange(len(names) - 1)
        names[at : at + 2] = reversed(names[at : at + 2])
        return replace(of, originals={name: of.originals[name] for name in names})

    def left_out(of: Tensors) -> Tensors:
        name = draw.choice(["norm", "gain", "steps"])
        return replace(of, originals={n: t for n, t in of.originals.items() if n != name})

    return {
        "a level": matrix("emb bank", lambda each: replace(each, codes=moved(each.codes, -9, 9))),
        "a code": matrix("rows halves logs", lambda each: replace(
            each, codes=moved(each.codes, -(1 << each.bits - 1) + (each.block.parameter != "logs"),
                              (1 << each.bits - 1) - 1))),
        "a step": matrix("emb bank rows halves logs", stepped),
        "transposed": matrix("rows", lambda each: replace(each, codes=each.codes.T.contiguous())),
        "a kept value": kept,
        "a name": renamed,
        "a dtype": retyped,
        "a shape": reshaped,
        "the order": reordered,
        "a tensor left out": left_out,
        "a tie": lambda of: replace(of, aliases=draw.choice([{}, {"emb": ("head", "other")}, {"rows": ("head",)}])),
    }  # fmt: skip


def compressed(of: Tensors, coded_as: Tensors | None = None, model: object = MODEL) -> Compressed:
    """A result of `of` whose bytes are those of another."""
    coded = encode_model((coded_as or of).entries(), SCALAR)
    solved = {each.block: each.digest() for several in of.matrices.values() for each in several}
    return Compressed(
        pack(coded, model), BlobHeader(VERSION, MODEL), coded, expected_of(of.entries(), solved),  # type: ignore[arg-type]
        BitPlan({}, 0, 0.0), {}, {}, 0, 1,
    )  # fmt: skip


def told(result: Compressed, path: Path) -> bool:
    """Whether writing it is refused, and what was there stays."""
    path.write_bytes(OLD)
    try:
        result.write(path, overwrite=True)
    except QuantGolfError:
        return path.read_bytes() == OLD and len(list(path.parent.iterdir())) == 1
    return False


def encoders(folder: Path, tries: int, draw: random.Random) -> dict[str, tuple[int, int]]:
    """Tries and misses of each fault of an encoder."""
    found = {}
    for name, fault in faults(draw).items():
        missed = 0
        for _ in range(tries):
            model = small(draw.randrange(1 << 30))
            missed += not told(compressed(model, fault(model)), folder / "a.qg")
        found[name] = tries, missed
    model = small(0)
    missed = not told(compressed(model, model=MODEL | {"config": {"dim": 65}}), folder / "a.qg")
    return found | {"the model's description": (1, int(missed))}


def disks(folder: Path, tries: int, draw: random.Random) -> dict[str, tuple[int, int]]:
    """Tries and misses of each fault of a disk."""

    def flipped(data: bytearray) -> None:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)

    def cut(data: bytearray) -> None:
        del data[draw.randrange(len(data)) :]

    def zeroed(data: bytearray) -> None:
        at = draw.randrange(len(data) - 16)
        data[at : at + 512] = bytes(len(data[at : at + 512]))

    found, fill = {}, atomic.fill
    result = compressed(small(0))
    for name, damage in (("a bit flips", flipped), ("the end is missing", cut), ("zeros", zeroed)):
        missed = 0
        for _ in range(tries):

            def faulty(beside: Path, data: bytes, damage: Callable[[bytearray], None] = damage) -> None:
                damaged = bytearray(data)
                damage(damaged)
                fill(beside, bytes(damaged))

            with mock.patch("quantgolf.compress.result.fill", faulty):
                missed += not told(result, folder / "a.qg")
        found[name] = tries, missed
    return found


def files(folder: Path, tries: int, draw: random.Random) -> tuple[int, int]:
    """Files of which one bit flips, and those that `verify` takes for sound."""
    path, data = folder / "a.qg", compressed(small(0)).data
    path.write_bytes(data)
    missed = int(check(path).error is not None)  # the sound one has to pass
    for _ in range(tries):
        changed = bytearray(data)
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        missed += check(path).error is None
    return tries, missed


def main(
    tries: Annotated[int, typer.Option(min=1, help="Of each fault.")] = 200,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="Results file to append to.")] = RESULTS,
) -> None:
    draw, command = random.Random(seed), f"python benchmarks/verified.py --tries {tries}"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compressed(small(0)).write(folder / "sound.qg")
        (folder / "sound.qg").unlink()
        cases: list[tuple[str, Callable[[], dict[str, tuple[int, int]]]]] = [
            ("an encoder's fault, read back before success", lambda: encoders(folder, tries, draw)),
            ("a disk's fault, read back before success", lambda: disks(folder, tries, draw)),
            ("a bit flipped in a file, told by verify", lambda: {"a bit": files(folder, 10 * tries, draw)}),
        ]
        for case, work in cases:
            started = time.monotonic()
            found = work()
            count, missed = (sum(each[index] for each in found.values()) for index in (0, 1))
            seconds = round(time.monotonic() - started, 1)
            detail = {"kinds": len(found), **{kind: misses for kind, (_, misses) in found.items() if misses}}
            row = Row("Verification", case, command, count, count, missed, seconds, detail)
            row.append(out)
            print(f"{case}: {count} tried, {missed} missed, {seconds} s {detail}")


if __name__ == "__main__":
    typer.run(main)
