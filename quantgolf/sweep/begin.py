"""What a sweep looks at before it makes points: its results file, and its statistics."""

from pathlib import Path
from typing import Any

from quantgolf.calibrate.store import Origin, read_calibration, text_digest, write_calibration
from quantgolf.checkpoint import Checkpoint
from quantgolf.compress import batches_of, calibrate
from quantgolf.compress.result import Progress
from quantgolf.errors import QuantGolfError
from quantgolf.json_lines import refuse_unlike
from quantgolf.sweep.asked import Judge, Learned
from quantgolf.sweep.measure import Yardstick
from quantgolf.sweep.store import Claim, ResultsFile
from quantgolf.types import Calibration


def folder_of(out: Path) -> Path:
    """Where statistics, claims and what processes say lie, beside the results."""
    return out.with_name(out.name + ".work")


def calibrated(
    source: Checkpoint, learned: Learned, folder: Path, progress: Progress | None = None
) -> tuple[Calibration, Path, dict[str, Any]]:
    """Statistics, the folder they lie in, and what they were made of: those of an earlier run where there are some.

    Raises:
        QuantGolfError: they are of another model, text or settings.
    """
    if learned.stats is not None:
        calibration, origin = read_calibration(learned.stats, source.fingerprint)
        return calibration, learned.stats, {"text": origin.text, **origin.settings}
    assert learned.text is not None
    batches = batches_of(learned.text, tokens=learned.tokens, length=learned.length, context=learned.context)
    settings = {"tokens": learned.tokens, "length": learned.length, "context": learned.context, "seed": learned.seed}
    wanted = Origin(source.fingerprint, text_digest(batches), settings)
    place = folder / "statistics"
    claim = Claim(folder, "calibration")
    try:
        claim.take(wait=True)  # a second sweep on this file waits for the statistics of the first
        if not place.exists():
            made = calibrate(
                source, learned.text, tokens=learned.tokens, length=learned.length, context=learned.context,
                seed=learned.seed, progress=progress,
            )  # fmt: skip
            write_calibration(place, made, wanted)
    finally:
        claim.drop()
    try:
        calibration, origin = read_calibration(place)
    except QuantGolfError as error:
        raise QuantGolfError(f"{error}; a sweep does so where it finds none: remove {place}") from error
    if origin != wanted:
        have = {**origin.settings, "model": origin.model, "text": origin.text}
        asked = {**settings, "model": wanted.model, "text": wanted.text}
        differ = [f"{name} {have.get(name)} and not {want}" for name, want in asked.items() if have.get(name) != want]
        raise QuantGolfError(
            f"statistics {place}: made with {', '.join(differ)}, expected those of this sweep; give the model and the "
            f"options of the run before, another --out, or remove {folder}"
        )
    return calibration, place, {"text": origin.text, **origin.settings}


def refuse_foreign(file: ResultsFile, source: Checkpoint, judge: Judge, model: str) -> tuple[str, ...]:
    """Refuses a file of something else, and results of another model or another text; returns what could not be read.

    Raises:
        QuantGolfError: that.
    """
    refuse_unlike(file.path)
    stored = file.read()
    text = Yardstick(
        source, judge.text, model=model, length=judge.length, stride=judge.stride, context=judge.context
    ).text
    for point in stored.points.values():
        if point.fingerprint != source.fingerprint:
            raise QuantGolfError(
                f"results {file.path}: of the model {point.model} ({point.fingerprint}), and the checkpoint is "
                f"{source.fingerprint}, expected the same; choose another --out"
            )
        if point.text.get("fingerprint") != text["fingerprint"]:
            told = {name: value for name, value in text.items() if point.text.get(name) != value}
            told = {name: value for name, value in told.items() if len(told) == 1 or name != "fingerprint"}
            differ = [f"{name} {point.text.get(name)} and not {value}" for name, value in told.items()]
            raise QuantGolfError(
                f"results {file.path}: measured on another text or with other windows ({', '.join(differ)}), expected "
                "the same; give the options of the run before or choose another --out"
            )
    return stored.notes
