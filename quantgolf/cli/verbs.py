"""All verbs of the command line, one file each."""

import typer
from typer.core import TyperGroup

from quantgolf.cli.bench import bench_app
from quantgolf.cli.calibrate import calibrate_verb
from quantgolf.cli.compress import compress_verb
from quantgolf.cli.decompress import decompress_verb
from quantgolf.cli.demo import demo_verb
from quantgolf.cli.diff import diff_verb
from quantgolf.cli.eval import eval_verb
from quantgolf.cli.export_decoder import export_decoder_verb
from quantgolf.cli.generate import generate_verb
from quantgolf.cli.inspect import inspect_verb
from quantgolf.cli.plot import plot_verb
from quantgolf.cli.stopping import told
from quantgolf.cli.sweep import sweep_verb
from quantgolf.cli.verify import verify_verb


class Verbs(TyperGroup):
    """Runs the verb that is asked for; whatever ends it from outside becomes an error of one line.

    Here and not around the whole, because typer has an end of its own for Ctrl-C and closed pipes, which says nothing.
    """

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """As typer has it."""
        with told():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Verbs,
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
app.command("verify")(verify_verb)
app.command("diff")(diff_verb)
app.command("sweep")(sweep_verb)
app.command("plot")(plot_verb)
app.command("decompress")(decompress_verb)
app.command("export-decoder")(export_decoder_verb)
app.add_typer(bench_app, name="bench")
