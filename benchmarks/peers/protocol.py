"""What passes between the comparison and a peer's process; imported on both sides, so that nothing but torch, numpy and
safetensors is needed here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS, JOB, STATISTICS, REPORT, FILES = (
    "weights.safetensors", "job.json", "statistics.safetensors", "report.json", "files"
)  # fmt: skip
REST = "rest.safetensors"  # of a peer whose own format has no place for what it does not quantize


@dataclass(frozen=True)
class Variant:
    """One way to use a peer.

    Attributes:
        name: what the page calls it, unique within the peer.
        embedding: whether the peer quantizes embeddings, too; otherwise they stay in 16 bits.
        calibrated: whether it looks at statistics of the calibration text.
        options: of the peer's own.
    """

    name: str
    embedding: bool = True
    calibrated: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Weights:
    """A model as a peer sees it.

    Attributes:
        matrices: [N out, K in] fp32 each, to be quantized; embeddings are among them or in `rest`, as the variant says.
        embeddings: names of those that are looked up; a tied one is the head as well.
        rest: what stays in 16 bits, fp16, and belongs into the peer's files.
        moments: [K, K] fp32 of each matrix' inputs x, the mean of x xᵀ over the calibration text; empty where a variant
            takes none.
    """

    matrices: dict[str, Tensor]
    embeddings: frozenset[str]
    rest: dict[str, Tensor]
    moments: dict[str, Tensor] = field(default_factory=dict)


class Peer(Protocol):
    """What a peer's module has."""

    TITLE: str  # what a picture and the page call it
    PACKAGES: tuple[str, ...]  # whose versions are reported
    VARIANTS: tuple[Variant, ...]

    def quantize(self, weights: Weights, variant: Variant, files: Path) -> None:
        """Writes everything of the model into the folder `files`."""

    def load(self, files: Path, variant: Variant) -> dict[str, Tensor]:
        """Every tensor of the model, from the files alone."""


def write_job(
    folder: Path, tensors: Mapping[str, Tensor], matrices: list[str], embeddings: list[str],
    moments: Mapping[str, Tensor], variants: list[str],
) -> None:  # fmt: skip
    """Lays a job into an empty folder."""
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    save_file({name: tensor.float().contiguous() for name, tensor in moments.items()}, folder / STATISTICS)
    job = {"matrices": matrices, "embeddings": embeddings, "variants": variants}
    (folder / JOB).write_text(json.dumps(job), "utf-8")


def read_weights(folder: Path, variant: Variant) -> Weights:
    """The model of a job, as a variant is to see it."""
    job = json.loads((folder / JOB).read_text("utf-8"))
    tensors, embeddings = load_file(folder / WEIGHTS), frozenset(job["embeddings"])
    names = [name for name in job["matrices"] if variant.embedding or name not in embeddings]
    moments = load_file(folder / STATISTICS) if variant.calibrated else {}
    matrices = {name: tensors.pop(name).float() for name in names}
    rest = {name: tensor.half().contiguous() for name, tensor in tensors.items()}
    return Weights(matrices, embeddings, rest, {name: moments[name] for name in names if name in moments})


def as_inputs(moments: Tensor) -> Tensor:
    """K inputs [K, K] whose mean of x xᵀ is that of the calibration text: what GPTQ wants to know of it, exactly."""
    values, vectors = torch.linalg.eigh(moments.double())
    inputs: Tensor = (vectors * (values.clamp(min=0) * len(moments)).sqrt()).T.float().contiguous()
    return inputs


def by_layer(stored: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """What lies under `LAYER|KEY`, by layer and key, and all else."""
    layers: dict[str, dict[str, Any]] = {}
    rest = {}
    for key, value in stored.items():
        name, bar, part = key.partition("|")
        if bar:
            layers.setdefault(name, {})[part] = value
        else:
            rest[name] = value
    return layers, rest


def write_rest(weights: Weights, files: Path) -> None:
    """What a peer leaves alone, beside its own files."""
    if weights.rest:
        save_file(weights.rest, files / REST)


def read_rest(files: Path) -> dict[str, Tensor]:
    """What `write_rest` wrote."""
    return load_file(files / REST) if (files / REST).exists() else {}
