"""The trained model that quantgolf ships, so that everything can be tried before anything is prepared."""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Demo:
    """Where the demo model lies, and its card: how it was trained, on which texts, and how well.

    `card["files"]` lists the texts of the three parts (train, calibration, validation), name → sha256.
    """

    checkpoint: Path
    card_path: Path
    tokenizer: Path
    card: dict[str, Any]


def read_demo() -> Demo:
    """The demo model's files inside the installed package."""
    folder = Path(str(files("quantgolf.models").joinpath("demo")))
    card_path = folder / "card.json"
    card = json.loads(card_path.read_text(encoding="utf-8"))
    return Demo(folder / "model.safetensors", card_path, folder / "tokenizer.model", card)
