"""The commands of ``cyclofocal``, one function each; arguments are checked before any work."""

import typer

from cyclofocal.lab.commands.bench import bench
from cyclofocal.lab.commands.compare import compare
from cyclofocal.lab.commands.data import check_data
from cyclofocal.lab.commands.decoupled import decoupled
from cyclofocal.lab.commands.evaluate import evaluate
from cyclofocal.lab.commands.recipes import recipes
from cyclofocal.lab.commands.report import report
from cyclofocal.lab.commands.train import reproduce, train

app = typer.Typer(
    help="Train with the cyclical focal loss and its relatives, and compare them honestly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (compare, reproduce, train, report, recipes, evaluate, decoupled, bench):
    app.command()(command)

data = typer.Typer(help="Look at data sets.", no_args_is_help=True)
data.command("check")(check_data)
app.add_typer(data, name="data")
