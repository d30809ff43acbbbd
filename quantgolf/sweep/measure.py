"""One float model and one text as the yardstick of many files: what each of them weighs and loses, as points."""

import copy
import os
import platform
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from torch import nn

from quantgolf.checkpoint import Checkpoint
from quantgolf.checkpoint.call import logits_of
from quantgolf.compress import Compressed
from quantgolf.data import Context, Corpus
from quantgolf.errors import QuantGolfError
from quantgolf.evaluate import difference, evaluate_against, kl_interval
from quantgolf.sweep.point import Documents, FrontierPoint, Measured, Tensor
from quantgolf.sweep.roles import role_of
from quantgolf.sweep.spending import kinds_of, tensors_of

__all__ = ["Yardstick", "kinds_of", "machine", "module_beside", "role_of", "tensors_of", "text_fingerprint", "versions"]


class Yardstick:
    """Measures modules against one float model on one text.

    Args:
        source: the float model, whose module is left as it is.
        text: to measure on.
        model: what people call it.
        length, stride, context: of windows; see `quantgolf.evaluate.evaluate`.
        seed: of the intervals.
        remember: bytes that logits of the float model may take, which then runs once however many points there are.
    """

    def __init__(
        self,
        source: Checkpoint,
        text: Corpus,
        *,
        model: str,
        length: int = 512,
        stride: int | None = None,
        context: Context = "dense",
        seed: int = 0,
        remember: int = 0,
    ) -> None:
        self.source, self.corpus, self.model, self.seed = source, text, model, seed
        self.length, self.stride, self.context = length, stride, context
        self.reference = Remembered(source.module, remember) if remember else source.module
        # Points that were read with other windows do not compare, so that these are part of what the text is.
        self.text: dict[str, Any] = {
            "fingerprint": text_fingerprint(text, (length, stride or length, context)),
            "tokens": len(text.tokens),
            "bytes": int(text.bytes.sum()),
            "documents": len(text.bytes),
            "counted": text.counted,
            "length": length,
            "stride": stride or length,
            "context": context,
        }

    def point(
        self,
        module: nn.Module,
        *,
        key: str,
        method: str,
        options: Mapping[str, Any],
        bytes: int,
        limit: int | None = None,
        xz_bytes: int | None = None,
        kinds: Mapping[str, int] | None = None,
        tensors: tuple[Tensor, ...] = (),
        seconds: Mapping[str, float] | None = None,
        versions: Mapping[str, str] | None = None,
        digest: str = "",
        calibration: Mapping[str, Any] | None = None,
        documents: bool = True,
        progress: Callable[[int, int], None] | None = None,
    ) -> FrontierPoint:
        """The measured point of a module, as `FrontierPoint` has it.

        Args:
            module: the model as its file gives it back.
            versions: of what made the file beside quantgolf, torch and Python, which are always there.
            digest, calibration: as `FrontierPoint` has them.
            documents: whether the measurement is kept document by document.
            progress: called with (tokens scored, tokens to score).

        Raises:
            QuantGolfError: a module that does not fit the text, or whose logits are not finite.
        """
        result, base = evaluate_against(
            module, self.reference, self.corpus, length=self.length, stride=self.stride, context=self.context,
            progress=progress,
        )  # fmt: skip
        assert result.kl is not None
        kept = None
        if documents:
            kept = Documents(
                tuple(map(int, result.bytes)),
                tuple(map(int, result.tokens)),
                _rounded(result.nats),
                _rounded(result.kl),
            )
        return FrontierPoint(
            **self._common(key, method, options, versions),
            limit=limit,
            bytes=bytes,
            xz_bytes=xz_bytes,
            float_bpb=base.bpb,
            bpb=result.bpb,
            delta_bpb=Measured.of(difference(result, base, seed=self.seed)),
            kl=Measured.of(kl_interval(result, seed=self.seed)),
            top1=result.top1,
            worst=result.worst,
            kinds=dict(kinds or {}),
            tensors=tensors,
            documents=kept,
            seconds={stage: round(taken, 3) for stage, taken in (seconds or {}).items()},
            digest=digest,
            calibration=dict(calibration or {}),
        )

    def failed(
        self,
        *,
        key: str,
        method: str,
        options: Mapping[str, Any],
        error: str,
        limit: int | None = None,
        nearest: int | None = None,
        final: bool = True,
        versions: Mapping[str, str] | None = None,
    ) -> FrontierPoint:
        """A point that came to nothing; `error` says why, in one line. `nearest` and `final` as `FrontierPoint`."""
        common = self._common(key, method, options, versions)
        return FrontierPoint(
            **common, status="failed", error=" ".join(error.split()), final=final, nearest=nearest, limit=limit
        )

    def _common(
        self, key: str, method: str, options: Mapping[str, Any], further: Mapping[str, str] | None
    ) -> dict[str, Any]:
        return {
            "key": key,
            "model": self.model,
            "fingerprint": self.source.fingerprint,
            "parameters": self.source.parameters,
            "method": method,
            "options": dict(options),
            "text": self.text,
            "versions": {**versions(), **(further or {})},
            "machine": machine(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def module_beside(source: Checkpoint, result: Compressed) -> nn.Module:
    """The module that a file gives back, beside the float one.

    Raises:
        QuantGolfError: the user's own module cannot be copied.
    """
    if result.header.model is not None:
        return result.module()
    try:
        return result.module(copy.deepcopy(source.module))
    except QuantGolfError:
        raise
    except Exception as error:  # whatever copying the user's own objects raises
        raise QuantGolfError(
            f"the module cannot be copied ({type(error).__name__}: {error}), expected one that copy.deepcopy takes, to "
            "measure files beside it; mend it"
        ) from error


class Remembered(nn.Module):
    """A module that gives the logits again which it gave for the same tokens before.

    Args:
        module: gives logits as `checkpoint.call` understands them.
        room: bytes that kept logits may take; what does not fit is computed each time.
    """

    def __init__(self, module: nn.Module, room: int) -> None:
        super().__init__()
        self.module, self.room = module, room
        self._known: dict[tuple[tuple[int, ...], bytes], torch.Tensor] = {}

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Logits [B, L, V] of int64 tokens [B, L]."""
        key = tuple(tokens.shape), tokens.cpu().numpy().tobytes()
        found = self._known.get(key)
        if found is None:
            found = logits_of(self.module, tokens, targets)
            if found.nbytes <= self.room:
                self.room -= found.nbytes
                self._known[key] = found
        return found


def text_fingerprint(text: Corpus, settings: tuple[Any, ...] = ()) -> str:
    """A digest of a text's tokens, documents and bytes, and of how it is read."""
    digest = blake2b(repr(settings).encode(), digest_size=8)
    for values in (text.tokens.numpy(), text.document.numpy(), text.bytes):
        digest.update(np.ascontiguousarray(values).astype("<i8").tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of quantgolf and what it computes with."""
    return {"quantgolf": version("quantgolf"), "torch": torch.__version__, "python": platform.python_version()}


def machine() -> str:
    """What this runs on, in words: nothing that names a person's computer."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _rounded(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, ...]:
    """Seven digits of each: a line of some thousand documents stays small, and sums lose nothing that counts."""
    return tuple(float(f"{value:.7g}") for value in values)
