"""``cyclofocal recipes``: every experiment with its cost, command and expected result."""

from collections.abc import Callable

from rich.box import SIMPLE_HEAD
from rich.table import Table

from cyclofocal.lab.commands.output import table_console
from cyclofocal.lab.oltr.recipes import TWO_STAGES
from cyclofocal.lab.oltr.stage_recipe import TwoStages
from cyclofocal.lab.recipes.catalogue import RECIPES
from cyclofocal.lab.recipes.recipe import Recipe

LIST_COLUMNS = 200


def recipes() -> None:
    """List every recipe: data set, model, cost, command, and the expected result or "not yet run"."""
    shown = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("recipe", "data set", "model", "cost", "command", "expected"):
        shown.add_column(heading, no_wrap=heading == "recipe", overflow="fold")
    makers: dict[str, Callable[[], Recipe | TwoStages]] = {**RECIPES, **TWO_STAGES}
    for name, make in makers.items():
        found = make()
        recipe = found.first if isinstance(found, TwoStages) else found
        title = recipe.title.replace(", stage 1", ", two stages")
        command = found.facts.command or f"cyclofocal reproduce {name}"
        shown.add_row(name, title, recipe.model, found.facts.cost, command, found.facts.expected)
    table_console(LIST_COLUMNS).print(shown, markup=False)
