"""The command line: one file per verb, and errors as one line with an exit code (2 bad input, 3 budget missed)."""

import os
import sys

import typer
from rich.console import Console

from quantgolf.cli.bench import bench_app
from quantgolf.cli.calibrate import calibrate_verb
from quantgolf.cli.compress import compress_verb
from quantgolf.cli.decompress import decompress_verb
from quantgolf.cli.demo import demo_verb
from quantgolf.cli.eval import eval_verb
from quantgolf.cli.export_decoder import export_decoder_verb
from quantgolf.cli.generate import generate_verb
from quantgolf.cli.inspect import inspect_verb
from quantgolf.cli.plot import plot_verb
from quantgolf.cli.sweep import sweep_verb
from quantgolf.errors import QuantGolfError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Compress a trained model into a hard byte budget with the least loss, and prove both numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo_verb)
app.command("calibrate")(calibrate_verb)
app.command("compress")(compress_verb)
app.command("eval")(eval_verb)
app.command("generate")(generate_verb)
app.command("inspect")(inspect_verb)
app.command("sweep")(sweep_verb)
app.command("plot")(plot_verb)
app.command("decompress")(decompress_verb)
app.command("export-decoder")(export_decoder_verb)
app.add_typer(bench_app, name="bench")


def main() -> None:
    """Entry point of the `quantgolf` command."""
    try:
        app()
    except QuantGolfError as error:
        # What other people's code raised, and is quoted here, may run over several lines.
        line = " ".join(str(error).split())
        who = f"quantgolf, rank {os.environ.get('RANK')}" if "RANK" in os.environ else "quantgolf"
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"{who}: {line}", markup=False)
        sys.exit(error.exit_code)
