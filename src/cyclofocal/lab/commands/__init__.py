"""Commands of ``cyclofocal``: one function each, whose arguments are checked before any work."""

import ast
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

TYPER_SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,  # whose tables cut long words in narrow terminals
}


class _Commands(TyperGroup):
    """Commands by name, each imported when it runs: the help of all starts at once, and a report needs no torch."""

    places: ClassVar[dict[str, tuple[str, str]]]
    """File in this folder and function of each command."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {**{name: TyperCommand(name) for name in self.places}, **self.commands}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None and (place := self.places.get(cmd_name)):
            command.help = _docstring(*place)
            command.short_help = (command.help or "").partition("\n\n")[0]  # in full; click cuts that of a long help
        return command

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in self.places:
            file, function = self.places[name]
            single = typer.Typer(**TYPER_SETTINGS)
            single.command(name)(getattr(import_module(f"{__name__}.{file}"), function))
            command = typer.main.get_command(single)
        return name, command, rest


def _docstring(file: str, function: str) -> str | None:
    """Docstring of a function, read from its file."""
    tree = ast.parse(Path(__file__).with_name(f"{file}.py").read_text(encoding="utf-8"))
    return next(
        ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function
    )


class _MainCommands(_Commands):
    places: ClassVar = {
        "compare": ("compare", "compare"),
        "reproduce": ("train", "reproduce"),
        "train": ("train", "train_model"),
        "predict": ("predict", "predict_new"),
        "export": ("predict", "export_run"),
        "report": ("report", "report"),
        "recipes": ("recipes", "recipes"),
        "evaluate": ("evaluate", "evaluate"),
        "decoupled": ("decoupled", "decoupled"),
        "bench": ("bench", "bench"),
    }


class _DataCommands(_Commands):
    places: ClassVar = {"check": ("data", "check_data")}


app = typer.Typer(cls=_MainCommands, no_args_is_help=True, **TYPER_SETTINGS)
app.add_typer(typer.Typer(cls=_DataCommands, help="Inspect data sets.", no_args_is_help=True), name="data")


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
