"""Commands of ``cyclofocal``: one function each, whose arguments are checked before any work."""

import typer

from cyclofocal.lab.commands.bench import bench
from cyclofocal.lab.commands.compare import compare
from cyclofocal.lab.commands.data import check_data
from cyclofocal.lab.commands.decoupled import decoupled
from cyclofocal.lab.commands.evaluate import evaluate
from cyclofocal.lab.commands.recipes import recipes
from cyclofocal.lab.commands.report import report
from cyclofocal.lab.commands.train import reproduce, train_model

app = typer.Typer(
    help="Train with the cyclical focal loss and related losses, and compare them with statistics.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(compare)
app.command()(reproduce)
app.command("train")(train_model)
for command in (report, recipes, evaluate, decoupled, bench):
    app.command()(command)

data = typer.Typer(help="Inspect data sets.", no_args_is_help=True)
data.command("check")(check_data)
app.add_typer(data, name="data")
