"""A measured point: one file of one model, what it weighs and what it loses, as one JSON line.

Sweeps, benchmarks and methods of users all write these lines, and pictures and tables read them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from hashlib import blake2b
from typing import Any, Self

from quantgolf.errors import QuantGolfError
from quantgolf.types import Interval

SCHEMA = 1
NEEDED = {"key", "model", "fingerprint", "parameters", "method", "options", "text"}


def digest_of(data: bytes) -> str:
    """A digest of a file, 32 hexadecimal digits."""
    return blake2b(data, digest_size=16).hexdigest()


@dataclass(frozen=True)
class Measured:
    """A value with its 95% interval over documents; without one the ends are None."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, interval: Interval) -> Self:
        """Of what `evaluate` gives; JSON knows no nan."""
        low, high = (None if math.isnan(end) else end for end in (interval.low, interval.high))
        return cls(interval.value, low, high)

    def said(self, form: str = ".4f", sign: str = "") -> str:
        """`0.0188 (0.0158 to 0.0203)`, numbers in this form, with `sign` "+" as differences; without an interval the
        value alone."""
        if self.low is None or self.high is None:
            return f"{self.value:{sign}{form}}"
        return f"{self.value:{sign}{form}} ({self.low:{sign}{form}} to {self.high:{sign}{form}})"


@dataclass(frozen=True)
class Tensor:
    """What one matrix of a file takes and costs.

    Attributes:
        name: of the matrix; `role` what it does in its layer (`attn.q`, `mlp.up`, `emb`); `depth` its layer, None
            outside of layers.
        parameters: how many numbers it has.
        bits: width of its codes, or with one slope their entropy.
        bytes: of the file that it answers for, its share of shared streams included.
        loss: predicted rise of the loss, nats a token; None where the method predicts none.
    """

    name: str
    role: str
    depth: int | None
    parameters: int
    bits: float
    bytes: float
    loss: float | None = None


@dataclass(frozen=True)
class Documents:
    """The measurement document by document, for paired differences between points on one text.

    Attributes:
        bytes, tokens: of each document.
        nats: summed loss of each; `kl` summed KL to the float model, in nats.
    """

    bytes: tuple[int, ...]
    tokens: tuple[int, ...]
    nats: tuple[float, ...]
    kl: tuple[float, ...]


@dataclass(frozen=True)
class Against:
    """A point's paired difference to another one on the same documents: above zero means that the other loses less.

    Attributes:
        key: of the other point.
        kl: KL of this point minus that of the other, bits per byte; `bpb` the same of BPB.
    """

    key: str
    kl: Measured
    bpb: Measured


@dataclass(frozen=True)
class FrontierPoint:
    """One file of one model, measured, or why there is none.

    Attributes:
        key: what identifies the point within a model and a text: the same key is the same file.
        model: a name for people; `fingerprint` the checkpoint's, `parameters` how many numbers it has.
        method: what one line of a picture is: "slope", "gptq", "HQQ".
        options: what was varied, by option name as `compress` spells it, `{"solver": "gptq", "group_size": 64}`.
        text: what was measured on: at least `fingerprint` (of tokens and bytes), `tokens`, `bytes`, `documents`.
        status: "done", or "failed" for the reason in `error`; a failed point has none of what follows but the limit.
        final: whether it would fail again, for its limit or its options; one whose process was killed, whose memory was
            short or whose statistics could not be read may not.
        nearest: the fewest bytes that could be met, where `limit` was below them.
        limit: bytes that file and code were to stay within; None without a limit.
        bytes: of the complete file as it lies on disk and of the code that counts with it; `xz_bytes` of the same
            file after `xz -9e`, where that was measured.
        float_bpb, bpb: bits per byte of the float model and of this one.
        delta_bpb: their paired difference; `kl` KL to the float model, bits per byte.
        top1: share of tokens whose likeliest prediction is the float model's.
        worst: KL of the document that loses most, bits per byte.
        kinds: bytes of the file by kind of stream; `tensors` by matrix.
        documents: for paired differences; None where they were left out.
        against: the difference to a point that this one is compared with; None where there is none.
        seconds: by stage. `versions`: of what made the file. `machine`: what it ran on. `date`: ISO, UTC.
        digest: of the file (`digest_of`), by which it is known again; "" where it was not kept.
        calibration: what its statistics were made of: `text`, a digest, `tokens`, `length`, `context`, `seed`.
    """

    key: str
    model: str
    fingerprint: str
    parameters: int
    method: str
    options: Mapping[str, Any]
    text: Mapping[str, Any]
    status: str = "done"
    error: str = ""
    final: bool = True
    nearest: int | None = None
    limit: int | None = None
    bytes: int | None = None
    xz_bytes: int | None = None
    float_bpb: float | None = None
    bpb: float | None = None
    delta_bpb: Measured | None = None
    kl: Measured | None = None
    top1: float | None = None
    worst: float | None = None
    kinds: Mapping[str, int] = field(default_factory=dict)
    tensors: tuple[Tensor, ...] = ()
    documents: Documents | None = None
    against: Against | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    date: str = ""
    digest: str = ""
    calibration: Mapping[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def bpw(self) -> float | None:
        """Bits of the complete file for each number of the checkpoint."""
        return None if self.bytes is None else 8 * self.bytes / self.parameters

    def line(self) -> str:
        """The point as one line of JSON, with its line break."""
        unset = {"final": True}  # as almost all are; what is empty is left out as well, where it need not be there
        found = {
            name: value
            for name, value in asdict(self).items()
            if name in NEEDED or (value not in (None, "", (), {}) and value != unset.get(name))
        }
        return json.dumps(found, allow_nan=False, separators=(",", ":"), ensure_ascii=False) + "\n"

    @classmethod
    def read(cls, line: str) -> Self:
        """The point of a line.

        Raises:
            QuantGolfError: it is not one, or of a schema that this version does not know.
        """
        try:
            found = json.loads(line)
        except ValueError as error:
            raise QuantGolfError(f"not a line of JSON ({error}), expected a measured point") from error
        if not isinstance(found, dict) or not isinstance(found.get("schema"), int):
            raise QuantGolfError("a line without `schema`, expected a measured point as `quantgolf sweep` writes it")
        if found["schema"] != SCHEMA:
            raise QuantGolfError(
                f"a point of schema {found['schema']}, expected {SCHEMA}: use the version that wrote it"
            )
        unknown = set(found) - {each.name for each in fields(cls)}
        missing = NEEDED - set(found)
        if unknown or missing:
            raise QuantGolfError(
                f"a point with {', '.join(sorted(unknown)) or 'nothing'} too much and "
                f"{', '.join(sorted(missing)) or 'nothing'} missing, expected one as `quantgolf sweep` writes it"
            )
        try:
            for name in ("delta_bpb", "kl"):
                if name in found:
                    found[name] = Measured(**found[name])
            found["tensors"] = tuple(Tensor(**each) for each in found.get("tensors", ()))
            if "documents" in found:
                found["documents"] = Documents(**{name: tuple(value) for name, value in found["documents"].items()})
            if "against" in found:
                other = found["against"]
                found["against"] = Against(other["key"], Measured(**other["kl"]), Measured(**other["bpb"]))
            return cls(**found)
        except (TypeError, AttributeError, KeyError) as error:
            raise QuantGolfError(
                f"a point whose parts do not fit ({error}), expected one of `quantgolf sweep`"
            ) from error
