"""Commands of ``cyclofocal``: one function each, whose arguments are checked before any work."""

from importlib.metadata import version
from typing import Annotated

import typer

from cyclofocal.lab.commands.bench import bench
from cyclofocal.lab.commands.compare import compare
from cyclofocal.lab.commands.data import check_data
from cyclofocal.lab.commands.decoupled import decoupled
from cyclofocal.lab.commands.evaluate import evaluate
from cyclofocal.lab.commands.predict import export_run, predict_new
from cyclofocal.lab.commands.recipes import recipes
from cyclofocal.lab.commands.report import report
from cyclofocal.lab.commands.train import reproduce, train_model

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def print_version(asked: bool) -> None:
    """Print the version of the package, and end."""
    if asked:
        typer.echo(version("cyclofocal"))
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Train with the cyclical focal loss and related losses, and compare them with statistics."""


app.command()(compare)
app.command()(reproduce)
app.command("train")(train_model)
app.command("predict")(predict_new)
app.command("export")(export_run)
for command in (report, recipes, evaluate, decoupled, bench):
    app.command()(command)

data = typer.Typer(help="Inspect data sets.", no_args_is_help=True)
data.command("check")(check_data)
app.add_typer(data, name="data")
