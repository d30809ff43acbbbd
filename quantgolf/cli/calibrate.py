"""`quantgolf calibrate`: statistics of a model on text, kept in a folder for every budget to come."""

from pathlib import Path
from typing import Annotated

import typer

from quantgolf.calibrate.store import refuse_taken
from quantgolf.cli import apart, inputs, learn, show
from quantgolf.cli.capture import document_of, print_capture
from quantgolf.cli.inputs import TextOptions
from quantgolf.cli.learn import Learning


@inputs.reads_text
def calibrate_verb(
    checkpoint: inputs.CheckpointArgument,
    text: TextOptions,
    out: Annotated[Path, typer.Option("--out", help="The folder to write.")],
    model: inputs.ModelOption = None,
    tokens: learn.TokensOption = 32_768,
    offload: learn.OffloadOption = False,
    memory: learn.MemoryOption = None,
    seed: inputs.SeedOption = 0,
    device: inputs.DeviceOption = "cpu",
    rank_timeout: learn.RankTimeoutOption = learn.RANK_TIMEOUT,
    overwrite: inputs.OverwriteOption = False,
    json: inputs.JsonOption = False,
) -> None:
    """Keep what calibration learns of a model, for `compress --stats`."""
    learning = Learning(text, tokens, seed, device, offload, memory)
    learning.limit()
    read = apart.inputs_of(checkpoint, model, text)
    apart.refuse_same({"--out": out}, read)
    apart.refuse_within("--out", out, read)
    refuse_taken(out, overwrite)
    source = inputs.open_source(checkpoint, model)
    learn.open_on(source, device)
    with learn.ranks_and_bars(rank_timeout) as (ranks, report):
        corpus = learning.open(source, checkpoint, report)
        calibration = learning.learn_to(out, source, corpus, ranks, report, overwrite)
    if not ranks.writes:
        return
    size = sum(file.stat().st_size for file in out.iterdir())
    document = {
        "folder": str(out),
        "bytes": size,
        "calibration": {**learning.settings(), "tokens": calibration.tokens, "labels": calibration.labels},
        "unknown_pieces": corpus.unknown,
        **document_of(source, calibration),
    }
    if json:
        show.print_json(document)
    else:
        print_capture(document)
        show.console(False).print(show.calibrated(document["calibration"], corpus.unknown))
        show.console(False).print(f"{out}: {size:,} bytes of statistics; use them with --stats {out}")
