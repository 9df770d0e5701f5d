"""``cyclofocal recipes``: every experiment, what it costs, how to run it and what is to be expected."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cyclofocal.lab.recipes.catalogue import RECIPES, told

PIPED_COLUMNS = 200


def recipes() -> None:
    """List every recipe: data set, model, cost, command, and the expected result or "not yet run"."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_COLUMNS
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("recipe", "data set", "model", "cost", "command", "expected"):
        shown.add_column(heading, no_wrap=heading == "recipe", overflow="fold")
    for name, make in RECIPES.items():
        recipe = make()
        command = told(name, "Command") or f"cyclofocal reproduce {name}"
        shown.add_row(name, recipe.title, recipe.model, told(name, "Cost"), command, told(name, "Expected"))
    console.print(shown, markup=False)
